"""A stop signal is never lost: not after the last event of a run, nor between two runs of a series."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from scheduler import lifecycle, series
from scheduler.assignment import Plan
from scheduler.clock import Clock
from scheduler.errors import SeriesCutShort, Stopped
from scheduler.events import Action, Event
from scheduler.lifecycle import Phase
from scheduler.record import RunFolder
from scheduler.run import Watch
from scheduler.search import Bracket, Try
from scheduler.slices import Machine
from scheduler.tune import Journal, Tuning
from scheduler.tuning import Asked, Of, TrialRecord, TuneResult
from tests.process.runs import carry_out, planned

MACHINE = Machine(cores=(0, 1), memory_mib=4096)
QUESTION = {"command": "any"}
TUNE = {"main": "fixed", "main_scenario": "offline", "target_qps": 1000, "background": "null"}


@contextmanager
def unwatched(*_told: object) -> Iterator[Watch]:
    yield lambda *_: None


class StopsAtAConfirmation:
    """Sends SIGTERM when the first full-length trial has been judged VALID: the search of the baseline is over."""

    def __init__(self) -> None:
        self.sent = False

    def run(self, of: Of, _plan: Plan, _folder: RunFolder) -> Any:
        assert of == "baseline", "it went on after the stop"
        return unwatched()

    def next_trial(self, number: int, step: Try) -> None:
        pass

    def judged(self, trial: TrialRecord, _bracket: Bracket) -> None:
        if trial.kind == "confirmation" and trial.valid and not self.sent:
            self.sent = True
            os.kill(os.getpid(), signal.SIGTERM)


def tuned(folder: Path, max_time_s: float | None) -> TuneResult:
    spec, plan = planned(**TUNE)
    asked = Asked(confirm=1, tolerance=0.01, screening_s=0.2, max_time_s=max_time_s, baseline_qps=None)
    with series.opened(folder, QUESTION) as runs:
        return Tuning(
            plan=plan,
            spec=spec,
            asked=asked,
            machine=MACHINE,
            runs=runs,
            journal=Journal(runs),
            show=StopsAtAConfirmation(),
        ).carry_out()


def test_after_the_last_trial_of_a_search_it_stops_the_tuning_which_goes_on_from_there(tmp_path: Path):
    with pytest.raises(SeriesCutShort) as cut:
        tuned(tmp_path / "tuning", None)

    assert cut.value.exit_code == 128 + signal.SIGTERM
    assert not (tmp_path / "tuning" / "result.json").exists()

    result = tuned(tmp_path / "tuning", 0.001)  # no time for a trial in company
    assert (result.baseline.qps is not None, result.hetero, result.ended) == (True, None, "out of time")
    assert {one.run for one in result.trials} == {"baseline-1"}


def test_when_all_is_over_and_nobody_listens_it_is_raised_to_whoever_called(tmp_path: Path):
    def watch(_what: Event | Action, story: lifecycle.Run) -> None:
        if story.phase is Phase.OVER:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="SIGINT") as stopped:
        carry_out(tmp_path / "run", watch)

    assert stopped.value.exit_code == 130


def test_while_a_background_is_ended_it_stops_the_series_and_the_run_is_kept(tmp_path: Path):
    @contextmanager
    def watching(_plan: Plan, _folder: RunFolder, _clock: Clock) -> Iterator[Watch]:
        def watch(_what: Event | Action, story: lifecycle.Run) -> None:
            if story.phase is Phase.STOPPING and not story.stop_requests:
                os.kill(os.getpid(), signal.SIGINT)

        yield watch

    spec, plan = planned(background="fixed")
    with series.opened(tmp_path / "series", QUESTION) as runs:
        with pytest.raises(SeriesCutShort) as cut:
            runs.run("one", plan, spec, MACHINE, watching)

        assert cut.value.exit_code == 130
        done = runs.finished("one")
        assert done is not None
        assert done[1].verdict == "VALID"
