"""Two results side by side: what changed, what differs, what is too much."""

import io

import pytest
from rich.console import Console

from scheduler import comparison
from scheduler.comparison import Compared, Row
from scheduler.derating import answer
from scheduler.report import compare as report
from tests.results import measured
from tests.unit.test_derating import pairs
from tests.unit.test_report import holds, shown
from workloads.protocol import Scenario

BOTH = ("VALID", "VALID")


def rows(a: float, b: float, scenario: Scenario = Scenario.SERVER) -> list[Row]:
    return comparison.runs(measured(a, scenario=scenario), measured(b, scenario=scenario, latency_ms=12.0))[0]


def test_the_main_figure_comes_first_and_latencies_follow():
    found = rows(100, 90)
    assert (found[0].figure, found[0].better) == ("result_completed_samples_per_sec", "more")
    assert found[0].change == pytest.approx(-0.1)
    assert found[0].worsening == pytest.approx(0.1)
    p99 = next(one for one in found if one.figure == "latency p99")
    assert (p99.a, p99.b, p99.better) == (30.0, 36.0, "less")
    assert p99.worsening == pytest.approx(0.2)


def test_of_a_stream_less_is_better_and_an_offline_latency_is_neither():
    stream = rows(5.0, 6.0, Scenario.SINGLE_STREAM)[0]
    assert (stream.better, stream.unit) == ("less", "ms")
    assert stream.worsening == pytest.approx(0.2)
    offline = [one for one in rows(100, 100, Scenario.OFFLINE) if one.figure.startswith("latency")]
    assert {one.better for one in offline} == {"neither"}
    assert {one.worsening for one in offline} == {None}


def test_the_background_is_told_by_slice_and_not_judged():
    found, conditions = comparison.runs(measured(), measured(company=True))
    [beside] = [one for one in found if one.figure == "fixed on cpu1"]
    assert (beside.a, beside.b, beside.better) == (None, 90.0, "neither")
    assert {(one.name, one.a, one.b) for one in conditions} == {
        ("kind", "baseline", "hetero"),
        ("background", "none", "fixed on cpu1"),
    }


@pytest.mark.parametrize(
    ("most", "most_p99", "why"),
    [
        (None, None, []),
        (0.10001, 0.2001, []),
        (0.05, None, ["result_completed_samples_per_sec is 10.0% worse, and 5.0% was allowed"]),
        (None, 0.1, ["latency p99 is 20.0% worse, and 10.0% was allowed"]),
    ],
)
def test_regressions(most: float | None, most_p99: float | None, why: list[str]):
    assert comparison.regressions(rows(100, 90), BOTH, most, most_p99) == why


def test_what_got_better_is_no_regression():
    assert comparison.regressions(rows(90, 100), BOTH, 0.0, None) == []


def test_an_invalid_run_holds_no_figure():
    assert comparison.regressions(rows(100, 100), ("VALID", "INVALID"), 0.05, None) == ["B is INVALID"]
    assert comparison.regressions(rows(100, 50), ("VALID", "INVALID"), None, None) == []


def test_scores_of_two_scenarios_are_not_held_against_each_other():
    found, conditions = comparison.runs(measured(), measured(scenario=Scenario.SERVER))
    assert [(one.a, one.b, one.change) for one in found[:2]] == [(100.0, None, None), (None, 100.0, None)]
    assert comparison.regressions(found, BOTH, 0.05, None) == ["no main figure in both"]
    assert "scenario" in {one.name for one in conditions}


def test_an_offline_run_has_no_p99_to_regress():
    assert comparison.regressions(rows(100, 100, Scenario.OFFLINE), BOTH, None, 0.05) == [
        "no latency p99 in both"
    ]


def test_another_workload_is_not_held_against():
    a, b = measured(), measured(workload="bert")
    found, conditions = comparison.runs(a, b)
    assert comparison.regressions(found, BOTH, 0.05, None, conditions) == [
        "workload is null in A and bert in B"
    ]
    assert comparison.regressions(found, BOTH, None, None, conditions) == []


def test_two_deratings_on_two_machines_say_so():
    one, elsewhere = measured(), measured(host={"hostname": "two", "versions": {"torch": "2.15.0"}})
    both = answer(pairs([0.95, 0.95]), repeats=2)
    _, conditions = comparison.deratings(both, both, (one, elsewhere))
    assert [(each.name, each.a, each.b) for each in conditions] == [("machine", "one", "two")]
    assert comparison.deratings(both, both, (one, one))[1] == []
    [untold] = comparison.deratings(both, both, (one, None))[1]
    assert (untold.name, untold.b) == ("machine and versions", "not known")


def test_two_deratings():
    a, b = answer(pairs([0.95, 0.95]), repeats=2), answer(pairs([0.90, 0.90, 0.90]), repeats=3)
    found, conditions = comparison.deratings(a, b, (measured(), measured()))
    assert [one.figure for one in found] == ["throughput, ratio", "throughput, alone", "throughput, company"]
    assert found[0].worsening == pytest.approx(0.05 / 0.95)
    assert {one.name for one in conditions} == {"pairs"}
    assert len(comparison.regressions(found, BOTH, 0.05, None)) == 1


def test_a_folders_name_is_no_markup():
    on = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False)
    condition = comparison.Condition(name="data", a="/[b]/imagenet", b="/[/b]")
    told = Compared(a="x[/red]y", b="[b]", verdicts=BOTH, rows=[], conditions=[condition], regressions=[])
    report.show_compared(told, on)
    for word in ("x[/red]y", "[b]\n", "/[b]/imagenet", "/[/b]"):
        assert word in shown(on) + "\n"


def test_on_a_terminal_of_80_columns():
    found, conditions = comparison.runs(measured(), measured(80.0, company=True, precision="bf16"))
    limits = comparison.regressions(found, BOTH, 0.05, None)
    on = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False)
    told = Compared(
        a="results/a", b="results/b", verdicts=BOTH, rows=found, conditions=conditions, regressions=limits
    )
    report.show_compared(told, on)
    holds("compare.txt", shown(on))
