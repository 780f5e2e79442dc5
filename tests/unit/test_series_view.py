"""A series of runs on a terminal while it goes on: its panel, and where there is none."""

import io
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console
from rich.text import Text

from scheduler import lifecycle, pairs
from scheduler.clock import Clock
from scheduler.events import Exited
from scheduler.record import RunFolder
from scheduler.report import derate, matrix
from scheduler.report.profile_text import ProfileView
from scheduler.report.series_view import SeriesView, Step
from scheduler.result import Result
from tests.process.runs import planned
from tests.results import measured

NAMES = ("null", "fixed")


def terminal(width: int = 80, **environment: str) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, _environ=environment)


def shown(console: Console) -> str:
    """What is on it, without colours."""
    assert isinstance(console.file, io.StringIO)
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", console.file.getvalue())


def came_out(**samples_per_s: float) -> Mapping[str, tuple[Result, float]]:
    """Runs by key, ``_`` for ``-``; each lasted 30 s."""
    return {key.replace("_", "-"): (measured(rate).result, 30.0) for key, rate in samples_per_s.items()}


@pytest.mark.parametrize(
    ("console", "plain"),
    [(Console(file=io.StringIO()), False), (terminal(TERM="dumb"), False), (terminal(), True)],
)
def test_pipes_dumb_terminals_and_who_wants_lines_get_lines(console: Console, plain: bool):
    assert not SeriesView(console, plain=plain).is_live
    assert SeriesView(terminal()).is_live


def test_the_panel_has_the_present_run_and_the_time_left_once_one_has_ended(tmp_path: Path):
    console = terminal()
    view = SeriesView(console)
    console.print(view.render())  # of a series that is answered already this is all
    assert shown(console).strip() == ""
    view.next_run(Step(number=1, runs=4, words="null alone, time 1", left_s=None))
    console.print(view.render(), Text())
    assert "run 1 of 4: null alone, time 1\n" in shown(console)

    _spec, plan = planned(main="null", background="fixed")
    view.next_run(Step(number=2, runs=4, words="null beside fixed", left_s=90.0))
    with view.run(plan, RunFolder(tmp_path / "null-beside-fixed"), Clock.start()) as watch:
        story = lifecycle.Run(background=["background-1-fixed"], mains=["main-null"], windows=plan.windows)
        story.begin(0.0)
        watch(Exited("background-1-fixed", 1.0, 9), story)
        console.print(view.render())

    text = shown(console)
    assert "null-beside-fixed: background-1-fixed exited with 9\n" in text
    assert re.search(r"cpu0 +main-null", text)
    assert re.search(r"\nrun 2 of 4: null beside fixed, about (90|89) s left\n", text)
    assert max(map(len, text.splitlines())) <= 80


def test_a_profile_that_is_there_already_says_so_once():
    console = terminal()
    with ProfileView(console) as view:
        view.goes_on(8, 8)

    assert shown(console).split("\n")[0] == "8 of 8 steps are there already"
    assert shown(console).count("steps") == 1


def test_a_matrix_shows_the_heat_map_so_far_where_it_fits():
    runs = pairs.order(NAMES, 2)
    assert [run.key for run in runs[:4]] == [
        *("null-alone-1", "fixed-alone-1"),
        *("null-beside-null", "fixed-beside-fixed"),
    ]
    finished = came_out(null_alone_1=100, fixed_alone_1=10, null_beside_null=90).get
    found = matrix.so_far(NAMES, 2, 5, finished, 80)
    assert found is not None
    console = terminal()
    console.print(found)
    rows = [line.split() for line in shown(console).splitlines()[1:]]
    assert rows == [["null", "?", "0.900", "·"], ["fixed", "·", "failed"]]
    assert matrix.so_far([f"workload-{number}" for number in range(20)], 2, 1, finished, 80) is None


def test_a_derating_shows_its_pairs_so_far():
    finished = came_out(**{"01_baseline": 200, "01_hetero": 150, "02_baseline": 210}).get
    step = derate.step("02-hetero", 3, finished)
    assert (step.number, step.runs, step.words) == (4, 6, "pair 2 of 3, main in company")
    assert step.left_s == 90
    assert step.so_far is not None
    console = terminal()
    console.print(step.so_far)
    lines = [line.split() for line in shown(console).splitlines()]
    assert lines[0] == ["pair", "alone", "samples/s", "company", "samples/s", "ratio"]
    assert lines[1:] == [["1", "200", "150", "0.750"], ["2", "210"]]

    first = derate.step("01-baseline", 3, lambda _key: None)
    assert (first.left_s, first.so_far) == (None, None)
