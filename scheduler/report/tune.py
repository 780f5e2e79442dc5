"""A tuning while it goes on, and its answer: the bracket live on a terminal, plain lines elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from scheduler import lifecycle
from scheduler.assignment import Plan
from scheduler.clock import Clock
from scheduler.events import Action, Event
from scheduler.record import RunFolder
from scheduler.report.live import live_on, trouble
from scheduler.report.text import plain, say
from scheduler.run import Watch
from scheduler.search import Bracket, Try
from scheduler.tuning import Asked, Of, Outcome, TrialRecord, TuneResult
from workloads.protocol import Scenario

LAST_SHOWN = 8
BAR = 40
"""Columns of the drawn bracket."""
WORDS: dict[Of, str] = {"baseline": "alone", "hetero": "in company"}


class TuneView:
    """Shows the searches of one tuning, one after the other."""

    def __init__(self, plan: Plan, asked: Asked, console: Console, *, plain: bool = False) -> None:
        self._scenario = plan.main.settings.scenario
        self._asked = asked
        self._console = console
        self._trials: list[TrialRecord] = []
        self._bracket = Bracket()
        self._step: tuple[int, Try] | None = None
        self._of: Of = "baseline"
        self._clock = Clock.start()
        self._begun_s = 0.0
        self._state = ""
        self._live = live_on(console, self._render, plain=plain)

    def goes_on(self, trials: Sequence[TrialRecord]) -> None:
        """The trials that were made before."""
        self._trials = list(trials)
        if trials:
            self._line(f"going on after {len(trials)} trials, {trials[-1].elapsed_s:.0f} s")

    @contextmanager
    def run(self, of: Of, plan: Plan, folder: RunFolder) -> Iterator[Watch]:
        """A run in which trials follow one another."""
        self._of, self._bracket = of, Bracket()
        beside = f" beside {', '.join(one.workload for one in plan.background)}" if plan.background else ""
        self._line(f"{WORDS[of]}: {plan.main.workload} on {plan.main.slice.id}{beside} ({folder.path.name})")
        if self._live is not None:
            self._live.start()

        try:
            yield self._watch
        finally:
            if self._live is not None:
                self._live.stop()

    def next_trial(self, number: int, step: Try) -> None:
        """A trial is about to begin."""
        self._step, self._begun_s, self._bracket = (number, step), self._clock.now(), step.bracket

    def judged(self, trial: TrialRecord, bracket: Bracket) -> None:
        """A trial has been judged."""
        self._trials.append(trial)
        self._bracket = bracket
        if self._live is None:
            self._line(f"{_of_trial(trial)}{_of_bracket(bracket) if self._is_server else ''}")

    @property
    def _is_server(self) -> bool:
        return self._scenario is Scenario.SERVER

    def _watch(self, what: Event | Action, story: lifecycle.Run) -> None:
        self._state = story.phase.value
        words = trouble(what)
        if words is not None:
            self._line(words)

    def _line(self, text: str) -> None:
        console = self._console if self._live is None else self._live.console
        console.print(f"[{self._clock.now():8.1f} s] {text}", markup=False, highlight=False, soft_wrap=True)

    def _render(self) -> Group:
        shown = [one for one in self._trials if one.of == self._of][-LAST_SHOWN:]
        lines: list[Table | Text] = [trials_table(shown)] if shown else []
        if self._is_server:
            lines.append(Text(_drawn(self._bracket, self._step[1].rate if self._step else 0.0)))

        if self._step is not None:
            number, step = self._step
            at = f"at {_rate(step.rate)}/s" if step.rate else "at a rate still to be picked"
            passed_s = self._clock.now() - self._begun_s
            lines.append(
                Text(f"{WORDS[self._of]}, {self._state}: trial {number}, {step.kind} {at}, {passed_s:.0f} s")
            )

        return Group(*lines)


def show_tuning(result: TuneResult, console: Console) -> None:
    """The answer, what it rests on, and every trial."""
    console.print()
    console.print(trials_table(result.trials))
    console.print()
    limit = "" if result.latency_limit_ms is None else f", limit {result.latency_limit_ms:g} ms"
    say(
        f"{result.workload}, {result.scenario}{limit}: {result.size}, {result.precision}, on {result.slice}; "
        f"full length {result.full_length_s:g} s, screening {result.screening_s:g} s, {result.confirm} to confirm, "
        f"tolerance {result.tolerance:.2%}",
        console,
        under=2,
    )
    table = Table(box=None, padding=(0, 1, 0, 2))
    for column in ("", "queries/s", "score", "latency ms", "trials"):
        left = column in ("", "trials")
        table.add_column(column, justify="left" if left else "right", no_wrap=column != "trials")

    both = (("baseline", result.baseline), ("hetero", result.hetero))
    found = [(of, one) for of, one in both if one is not None]
    for of, one in found:
        table.add_row(of, *_of_outcome(one))

    console.print(table)
    for of, one in found:
        say(f"  {of}: {one.why}", console, under=4)

    if result.derating is not None:
        against = ", against a baseline that was given and not measured" if result.baseline.given else ""
        console.print(f"  derating {result.derating:.3f} (hetero ÷ baseline{against})", highlight=False)

    if result.ended == "out of time":
        proven = [one for _, one in found if one.qps is not None and not one.given]
        told = "these are the best proven so far" if proven else "no rate was proven"
        say(
            f"  the time was over after {result.elapsed_s:.0f} s: {told}; the same command "
            "with --output and a longer --max-time goes on",
            console,
            under=4,
        )

    for note in result.notes:
        say(f"  note: {note}", console)


def trials_table(trials: Sequence[TrialRecord]) -> Table:
    """One line a trial."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("trial", "", "length", "queries/s", "verdict", "completed/s", "latency ms", "window s"):
        left = column in ("", "length", "verdict")
        table.add_column(column, justify="left" if left else "right", no_wrap=not left, overflow="fold")

    for one in trials:
        table.add_row(
            str(one.number),
            WORDS[one.of],
            "full" if one.kind == "confirmation" else "short",
            _rate(one.rate),
            _verdict(one),
            "" if one.completed is None else _rate(one.completed),
            "" if one.latency_ms is None else f"{one.latency_ms:.4g}",
            "" if one.window_s is None else f"{one.window_s:.1f}",
        )

    return table


def _of_outcome(one: Outcome) -> tuple[str, ...]:
    score = "" if one.metric is None else f"{_rate(one.metric.value)} {one.metric.unit}"
    latency = "" if one.latency_ms is None else f"{one.latency_ms:.4g}"
    return "none" if one.qps is None else _rate(one.qps), score, latency, counted(one)


def counted(one: Outcome) -> str:
    """5 short, 3 full, 1 spoiled: its trials; empty where the rate was given."""
    if one.given:
        return ""

    spoiled = f", {one.spoiled_trials} spoiled" if one.spoiled_trials else ""
    return f"{one.screening_trials} short, {one.full_length_trials} full{spoiled}"


def _of_trial(one: TrialRecord) -> str:
    latency = "" if one.latency_ms is None else f", latency {one.latency_ms:.4g} ms"
    share = "" if one.latency_share is None else f" ({one.latency_share:.2f} of the limit)"
    why = f": {one.spoiled[0]}" if one.spoiled else ""
    return f"trial {one.number}, {one.kind} at {_rate(one.rate)}/s: {_verdict(one)}{latency}{share}{why}"


def _verdict(one: TrialRecord) -> str:
    if one.spoiled:
        return "spoiled"

    return "VALID" if one.valid else "INVALID, cut" if one.cut else "INVALID"


def _of_bracket(known: Bracket) -> str:
    low = "?" if known.low is None else _rate(known.low)
    high = "?" if known.high is None else _rate(known.high)
    return f"; bracket {low} to {high}"


def _drawn(known: Bracket, rate: float) -> str:
    """The bracket as a line, with the rate that is tried now."""
    low = "" if known.low is None else _rate(known.low)
    high = "" if known.high is None else _rate(known.high)
    bar = list("·" * BAR)
    if known.low is not None and known.high is not None and known.high > known.low:
        place = round((rate - known.low) / (known.high - known.low) * (BAR - 1))
        bar[min(max(place, 0), BAR - 1)] = "●"

    return f"VALID {low or '?'} [{''.join(bar)}] {high or '?'} INVALID"


def _rate(value: float) -> str:
    return plain(value) if value >= 10_000 else f"{value:,.1f}" if value >= 100 else f"{value:.4g}"
