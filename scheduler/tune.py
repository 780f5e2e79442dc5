"""The highest rate at which a workload keeps its latency: alone on its slice, then while others run on the others.

One folder, as of every series of runs:

series.json          what is searched for
trials.jsonl         the journal: one trial a line, as it was judged
runs/baseline-1/     a run in which trials of main follow one another, each in a sub-folder of its own
runs/hetero-1/       the same over a background that is kept running; hetero-2 where hetero-1 was cut short
result.json          last: the answer

What is done next follows from the journal alone, so a tuning that was cut short goes on where it was.
"""

from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import count
from typing import Literal, Protocol

from scheduler import inspection, judging, run, search
from scheduler.assignment import Assignment, Plan
from scheduler.clock import Clock
from scheduler.errors import SeriesCutShort
from scheduler.events import NextMain, NoMoreMains
from scheduler.record import RunFolder
from scheduler.run import Watch
from scheduler.search import Bracket, Found, Kind, Try
from scheduler.series import Series, breaches
from scheduler.slices import Machine
from scheduler.spec import RunSpec
from scheduler.supervisor import Supervisor
from scheduler.tuning import (
    OF_THE_RATE,
    Asked,
    Of,
    Outcome,
    TrialRecord,
    TuneResult,
    bracket,
    derating,
    judged,
    next_step,
    outcome,
)
from workloads.protocol import Scenario

JOURNAL = "trials.jsonl"
MOST_SPOILED = 3
"""Trials one after another that say nothing of the rate, since their overlap was broken or LoadGen left no result."""


class Show(Protocol):
    """Who is shown a tuning while it goes on."""

    def run(self, of: Of, plan: Plan, folder: RunFolder) -> AbstractContextManager[Watch]:
        """A run in which trials follow one another; shown its events and actions."""

    def next_trial(self, number: int, step: Try) -> None:
        """A trial is about to begin."""

    def judged(self, trial: TrialRecord, bracket: Bracket) -> None:
        """A trial has been judged."""


class OutOfTime(Exception):
    """The next trial would end after ``max_time_s``."""


def trials_of(tuning: Series | RunFolder) -> list[TrialRecord]:
    """The trials that were judged so far.

    Raises:
        FolderDamaged: they cannot be read.
    """
    told = f"{JOURNAL} of {tuning.path}"
    return [
        judging.understood(TrialRecord, line, f"line {number} of {told}")
        for number, line in enumerate(tuning.lines(JOURNAL), start=1)
    ]


class Journal:
    """The trials so far, and how long they took."""

    def __init__(self, runs: Series) -> None:
        self._runs = runs
        self.trials = trials_of(runs)
        self._before_s = self.trials[-1].elapsed_s if self.trials else 0.0
        self._clock = Clock.start()

    @property
    def elapsed_s(self) -> float:
        """Of the tuning, over all the times it was gone on with."""
        return round(self._before_s + self._clock.now(), 3)

    def add(self, trial: TrialRecord) -> None:
        """Keep it: from now on it is not repeated."""
        self._runs.append_line(JOURNAL, trial.model_dump(mode="json"))
        self.trials.append(trial)

    def of(self, which: Of) -> list[TrialRecord]:
        """The trials of one of the two searches."""
        return [one for one in self.trials if one.of == which]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What both searches have in common."""

    plan: Plan
    """Main and its company, as one run would have them."""
    spec: RunSpec
    asked: Asked
    machine: Machine
    runs: Series
    journal: Journal
    show: Show

    def carry_out(self) -> TuneResult:
        """Search alone, then in company from what was found alone, and write the answer.

        Raises:
            SeriesCutShort: it was stopped, or a benchmark died; the same command goes on from here.
        """
        ended: Literal["found", "out of time"] = "found"
        try:
            baseline = self._baseline()
            if self.plan.background:
                _Search("hetero", self.plan, baseline.qps or self.spec.target_qps, self).carry_out()
        except OutOfTime:
            ended = "out of time"

        result = self._result(ended)
        self.runs.write_answer(result.model_dump(mode="json"))
        return result

    def _baseline(self) -> Outcome:
        if self.asked.baseline_qps is None:
            beside = (*(one.slice for one in self.plan.background), *self.plan.idle)
            alone = replace(self.plan, background=(), idle=beside)
            _Search("baseline", alone, self.spec.target_qps, self).carry_out()

        return self._outcome("baseline")

    # ------------------------------------------------------------------ the answer

    def _outcome(self, of: Of) -> Outcome:
        if of == "baseline" and self.asked.baseline_qps is not None:
            return Outcome(qps=self.asked.baseline_qps, given=True, why="given, not measured")

        return outcome(self.plan.main.settings.scenario, self.asked, self.journal.of(of))

    def _result(self, ended: Literal["found", "out of time"]) -> TuneResult:
        main, settings = self.plan.main, self.plan.main.settings
        baseline = self._outcome("baseline")
        hetero = self._outcome("hetero") if self.journal.of("hetero") else None
        return TuneResult(
            ended=ended,
            workload=main.workload,
            scenario=settings.scenario,
            slice=main.slice.id,
            size=main.options.size,
            precision=main.options.precision,
            preset=self.plan.preset,
            comparable_to_mlperf=self.plan.comparable_to_mlperf,
            full_length_s=settings.min_duration_ms / 1e3,
            screening_s=self.asked.screening_s,
            confirm=self.asked.confirm,
            tolerance=self.asked.tolerance,
            latency_limit_ms=None
            if settings.server_target_latency_ns is None
            else settings.server_target_latency_ns / 1e6,
            latency_percentile=settings.target_latency_percentile,
            background=[one.workload for one in self.plan.background],
            baseline=baseline,
            hetero=hetero,
            derating=None if hetero is None else derating(settings.scenario, baseline, hetero),
            elapsed_s=self.journal.elapsed_s,
            notes=list(self.plan.notes),
            trials=self.journal.trials,
        )


class _Search:
    """One of the two searches. Its trials follow one another in one run; in another where that was cut short."""

    def __init__(self, of: Of, plan: Plan, hint: float | None, tuning: Tuning) -> None:
        self._of, self._plan, self._hint, self._tuning = of, plan, hint, tuning
        self._journal = tuning.journal

    def carry_out(self) -> None:
        """Make the trials that are still to be made.

        Raises:
            OutOfTime: there is no time for the next.
            SeriesCutShort: it was stopped, or the run ended before the search did.
        """
        while isinstance(step := self._next(), Try):
            if not self._in_time(step, self._plan.windows.start_buffer_s if self._plan.background else 0.0):
                raise OutOfTime

            self._run(step)

    def _run(self, step: Try) -> None:
        """One run: trial after trial, until the search is over, the time is, or something ends it."""
        tuning, runs = self._tuning, self._tuning.runs
        keys = (f"{self._of}-{number}" for number in count(1))
        self._key = next(key for key in keys if not (runs.path / "runs" / key).exists())
        self._folder, self._clock = runs.new_run(self._key), Clock.start()
        plan = replace(self._plan, main=self._trial(step))
        about = inspection.about(tuning.machine)
        heeding = runs.heeding_stops(self._key, self._folder)
        with heeding, tuning.show.run(self._of, plan, self._folder) as watch:
            run.carry_out(plan, tuning.spec, about, self._clock, self._folder, watch, self._what_follows)

        last = self._journal.trials[-1] if self._journal.trials else None
        if last is None or last.name != self._at_hand.name or last.run != self._key:
            result = judging.judge(self._folder, run.benchmark_record(self._at_hand))
            code = judging.exit_code(result, self._folder)
            told, advice = breaches(result)
            raise SeriesCutShort(code if code > 1 else 3, self._key, told, runs.path, advice)

        if self._hopeless():
            raise SeriesCutShort(3, self._key, last.spoiled, runs.path, self._advice)

    def _what_follows(self, workers: Supervisor) -> NextMain | NoMoreMains:
        self._take_down()
        step = self._next()
        if isinstance(step, Found) or self._hopeless() or not self._in_time(step):
            return NoMoreMains(self._clock.now())

        trial = self._trial(step)
        workers.know(run.task_of(trial, self._folder.benchmark(trial.name), self._clock))
        return NextMain(trial.name, self._clock.now())

    # ------------------------------------------------------------------ deciding

    def _next(self) -> Try | Found:
        scenario = self._plan.main.settings.scenario
        return next_step(scenario, self._tuning.asked, self._hint, self._journal.of(self._of))

    def _in_time(self, step: Try, before_s: float = 0.0) -> bool:
        limit_s = self._tuning.asked.max_time_s
        lasts_s = self._duration_s(step.kind)
        if step.rate:
            lasts_s = max(lasts_s, self._least_queries(step.kind) / step.rate)

        return limit_s is None or self._journal.elapsed_s + before_s + lasts_s <= limit_s

    def _hopeless(self) -> bool:
        """The last trials of this run have all been spoiled."""
        last = [one for one in self._journal.of(self._of) if one.run == self._key][-MOST_SPOILED:]
        return len(last) == MOST_SPOILED and all(one.spoiled for one in last)

    def _duration_s(self, kind: Kind) -> float:
        full_s = self._plan.main.settings.min_duration_ms / 1e3
        return min(self._tuning.asked.screening_s, full_s) if kind == "screening" else full_s

    def _least_queries(self, kind: Kind) -> int:
        """Where a short trial only measures the rate, as many as it takes: the round's may be minutes of them."""
        settings = self._plan.main.settings
        sizes = kind == "screening" and settings.scenario is not Scenario.SERVER
        return 1 if sizes else settings.min_query_count

    def _trial(self, step: Try) -> Assignment:
        """The step as a benchmark of its own; from now on it is the one at hand."""
        main, number = self._plan.main, len(self._journal.trials) + 1
        known = [one.batch_times_ns for one in self._journal.of(self._of) if one.batch_times_ns]
        duration_s, settings = self._duration_s(step.kind), main.settings
        most = 0
        if settings.scenario is Scenario.SERVER and step.rate and settings.server_target_latency_ns:
            limit_s, percentile = (
                settings.server_target_latency_ns / 1e9,
                settings.target_latency_percentile or 0.99,
            )
            most = search.most_waiting(step.rate, duration_s, settings.min_query_count, limit_s, percentile)

        self._at_hand = replace(
            main,
            name=f"trial-{number:03d}-{main.workload}",
            settings=replace(
                settings,
                target_qps=step.rate or None,
                min_duration_ms=max(1, round(duration_s * 1e3)),
                min_query_count=self._least_queries(step.kind),
                server_max_async_queries=most,
                batch_times_ns=tuple(known[-1]) if known else (),
            ),
        )
        self._kind = step.kind
        self._tuning.show.next_trial(number, step)
        return self._at_hand

    # ------------------------------------------------------------------ judging

    def _take_down(self) -> None:
        """Judge the trial that has ended, and keep what it told."""
        record = run.benchmark_record(self._at_hand)
        result = judging.judge(self._folder, record)
        own = RunFolder(self._folder.benchmark(record.name))
        own.write_json(judging.OF_A_MAIN, record.model_dump(mode="json"))
        own.write_result(result.model_dump(mode="json"))
        self._advice = breaches(result, leave_out=OF_THE_RATE)[1]
        calibrated = self._folder.calibration(record.name)
        self._journal.add(
            judged(
                result,
                record,
                calibrated,
                number=len(self._journal.trials) + 1,
                of=self._of,
                run_key=self._key,
                kind=self._kind,
                full_s=self._plan.main.settings.min_duration_ms / 1e3,
                elapsed_s=self._journal.elapsed_s,
            )
        )
        known = bracket(self._tuning.asked, self._journal.of(self._of))
        self._tuning.show.judged(self._journal.trials[-1], known)
