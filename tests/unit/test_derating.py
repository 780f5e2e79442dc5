"""From runs to a derating: what is compared, what is refused, and what is said."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from scheduler.conditions import Clocks, clocks
from scheduler.derating import Derating, Pair, alone, answer, rate_of
from scheduler.report import derate as report
from scheduler.result import Placement
from tests.process.runs import planned
from tests.results import measured
from tests.unit.test_report import holds, shown
from tests.unit.test_verdict import MANIFEST
from workloads.protocol import Scenario

SLOWER = [0.950, 0.953, 0.947, 0.951]


def pair(number: int, ratio: float, **changes: Any) -> Pair:
    """One pair, in company ``ratio`` times as fast, and as much slower to answer."""
    before = measured(100 + number, key=f"{number:02d}-baseline", **changes)
    after = measured(
        (100 + number) * ratio, key=f"{number:02d}-hetero", company=True, latency_ms=10 / ratio, **changes
    )
    return Pair(before, after)


def pairs(ratios: list[float], **changes: Any) -> list[Pair]:
    return [pair(number, ratio, **changes) for number, ratio in enumerate(ratios, start=1)]


def codes(found: Derating) -> list[tuple[str, str]]:
    return [(one.code, one.severity) for one in found.findings]


def test_offline_has_the_derating_of_throughput_alone():
    found = answer(pairs(SLOWER), repeats=4)
    [ratio] = found.ratios
    assert (found.verdict, found.pairs, found.repeats) == ("VALID", 4, 4)
    assert (ratio.figure, ratio.unit, ratio.better) == ("throughput", "samples/s", "more")
    assert ratio.ratio == pytest.approx(0.95, abs=1e-3)
    assert ratio.interval is not None
    assert ratio.interval[0] < 0.95 < ratio.interval[1] < 0.97
    assert ratio.words == "difference"
    assert found.background == {"cpu1": "fixed"}
    assert found.main.target_qps is None


def test_offlines_rate_is_no_load_and_a_run_that_needs_more_samples_is_compared():
    faster = {"target_qps": 160.0, "min_sample_count": 1600, "samples_per_query": 1760}
    company = measured(137.0, key="01-hetero", company=True, settings=faster)
    found = answer([Pair(measured(), company)], repeats=1)
    assert (found.verdict, found.main.target_qps) == ("VALID", None)
    assert found.ratios[0].ratio == pytest.approx(1.37)
    assert rate_of(company.result) is None


@pytest.mark.parametrize(
    ("scenario", "first"), [(Scenario.SERVER, "throughput"), (Scenario.SINGLE_STREAM, "score")]
)
def test_server_and_the_streams_have_their_latencies_too(scenario: Scenario, first: str):
    found = answer(pairs(SLOWER, scenario=scenario), repeats=4)
    latencies = [f"latency {name}" for name in ("p50", "p90", "p99", "p999")]
    assert [one.figure for one in found.ratios] == [first, *latencies]
    assert all(one.ratio == pytest.approx(1 / 0.95, abs=1e-3) for one in found.ratios[1:])
    assert all(one.better == "less" for one in found.ratios[1:])


def test_the_answer_is_json_that_is_read_back_the_same():
    found = answer(pairs(SLOWER), repeats=4)
    assert Derating.model_validate(found.model_dump(mode="json")) == found


def test_noisy_pairs_say_how_to_go_on():
    found = answer(pairs([0.9, 1.1, 0.95, 1.04]), repeats=4)
    assert found.verdict == "VALID"
    assert codes(found) == [("too-noisy", "info")]
    more = found.ratios[0].repeat_more
    assert more is not None
    assert f"--repeats {4 + more}" in found.findings[0].recommendation


def test_a_pair_with_an_invalid_run_is_left_out_and_named():
    spoilt = Pair(measured(key="03-baseline"), measured(key="03-hetero", company=True, valid=False))
    found = answer([*pairs(SLOWER[:2]), spoilt], repeats=3)
    assert (found.verdict, found.pairs) == ("INVALID", 2)
    assert codes(found)[0] == ("run-invalid", "breach")
    assert "03-hetero" in found.findings[0].message
    assert found.findings[0].recommendation == "lower it"
    assert len(found.runs) == 6


def test_a_pair_that_was_left_out_counts_among_those_that_are_there():
    spoilt = Pair(measured(key="05-baseline"), measured(key="05-hetero", company=True, valid=False))
    found = answer([*pairs([0.9, 1.1, 0.95, 1.04]), spoilt], repeats=5)
    more = found.ratios[0].repeat_more
    assert more is not None
    assert f"--repeats {5 + more} measures {more} pairs more" in found.findings[-1].recommendation


def test_a_first_run_that_is_invalid_has_no_ratios():
    found = answer([Pair(measured(valid=False), None)], repeats=8)
    assert (found.verdict, found.pairs, found.ratios, found.background) == ("INVALID", 0, [], {})


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"precision": "bf16"}, "precision"),
        ({"size": "full"}, "size"),
        ({"batch_size": 8}, "batch size"),
        ({"settings": {"min_duration_ms": 5_000}}, "setting min_duration_ms"),
        ({"host": {"hostname": "one", "versions": {"torch": "2.16.0"}}}, "version of torch"),
        ({"gpus": {"driver": {"version": "575.1"}}}, "driver version"),
        ({"slice": "cpu1"}, "slice"),
    ],
)
def test_runs_under_other_conditions_are_not_compared(changed: dict[str, Any], named: str):
    other = Pair(measured(key="02-baseline"), measured(key="02-hetero", company=True, **changed))
    found = answer([pair(1, 0.95), other], repeats=2)
    assert (found.verdict, found.ratios) == ("INVALID", [])
    breaches = [one.message for one in found.findings if one.code == "conditions-differ"]
    assert any(message.startswith(f"{named} is ") and "02-hetero" in message for message in breaches)


@pytest.mark.parametrize(("rate", "verdict"), [(4863350.0, "VALID"), (4864000.0, "INVALID")])
def test_a_rate_as_loadgen_rounds_it_is_the_same_load_and_another_is_another(rate: float, verdict: str):
    calibrated = measured(scenario=Scenario.SERVER, settings={"target_qps": 4863352.0})
    given = measured(key="01-hetero", company=True, scenario=Scenario.SERVER, settings={"target_qps": rate})
    found = answer([Pair(calibrated, given)], repeats=1)
    assert (found.verdict, found.main.target_qps) == (verdict, 4863352.0)
    assert [one.message.split(" is ")[0] for one in found.findings if one.severity == "breach"] == (
        [] if verdict == "VALID" else ["setting target_qps"]
    )


def test_throttled_clocks_are_told_and_not_refused():
    held = Clocks(sm_mhz=1500.0, throttled=("sw_power_cap",))
    hot = Pair(
        measured(key="02-baseline", clocks=Clocks(sm_mhz=1980.0)),
        measured(key="02-hetero", company=True, clocks=held),
    )
    found = answer([pair(1, 0.95), hot], repeats=2)
    assert found.verdict == "VALID"
    [told] = [one for one in found.findings if one.code == "clocks-throttled"]
    assert told.severity == "warning"
    assert "0 of 2 baseline runs and 1 of 2 hetero runs" in told.message
    assert "1980 MHz in baseline runs, 1500 MHz in hetero runs" in told.message


def test_clocks_are_of_mains_gpu_in_mains_window():
    where = {"id": "gpu0:gi7:ci0", "kind": "mig", "uuid": "MIG-1"}
    placed = Placement(gpu_uuid="GPU-1", start=0, size=1)
    slices = [MANIFEST.slices[0].model_copy(update={**where, "placement": placed})]
    main = MANIFEST.main.model_copy(update={"slice": "gpu0:gi7:ci0"})
    gpus = {"settings": {"GPU-2": {}, "GPU-1": {}}}
    told = MANIFEST.model_copy(update={"slices": slices, "main": main, "gpus": gpus})
    samples: list[dict[str, Any]] = [
        {"at_s": 1.0, "gpus": {"GPU-1": {"sm_clock_mhz": 300, "throttle_reasons": ["hw_slowdown"]}}},
        {"at_s": 5.0, "gpus": {"GPU-1": {"sm_clock_mhz": 1900, "throttle_reasons": ["gpu_idle"]}}},
        {"at_s": 6.0, "gpus": {"GPU-2": {"sm_clock_mhz": 100, "throttle_reasons": ["hw_slowdown"]}}},
        {"at_s": 7.0, "gpus": {"GPU-1": {"sm_clock_mhz": 1700, "throttle_reasons": ["sw_power_cap"]}}},
        {"at_s": 8.0, "gpus": {"GPU-1": None}},
        {"at_s": 9.0},
    ]
    assert clocks(samples, told, (4.0, 9.5)) == Clocks(sm_mhz=1800.0, throttled=("sw_power_cap",))
    assert clocks(samples, told, None) == clocks(samples, MANIFEST, (4.0, 9.5)) == Clocks()
    unplaced = told.model_copy(update={"slices": [MANIFEST.slices[0].model_copy(update=where)]})
    assert clocks(samples, unplaced, (4.0, 9.5)) == Clocks()  # whose GPU's would be a guess
    whole = MANIFEST.slices[0].model_copy(update={**where, "kind": "gpu", "uuid": "GPU-2"})
    assert clocks(samples, told.model_copy(update={"slices": [whole]}), (4.0, 9.5)).sm_mhz == 100.0


def test_an_interval_that_reaches_anywhere_is_told_so():
    on = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False)
    report.show(answer(pairs([0.3, 2.0]), repeats=2), on)
    assert "0.000–over 1000" in shown(on)


def test_alone_is_the_same_main_with_the_same_options():
    _spec, beside = planned(main="dlrm", background="null,fixed")
    by_itself = alone(beside)
    assert by_itself.main == beside.main
    assert (by_itself.background, by_itself.windows) == ((), beside.windows)
    assert [one.id for one in by_itself.idle] == ["cpu1", "cpu2"]
    assert any("share" in note for note in beside.notes)
    assert not any("share" in note for note in by_itself.notes)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("derate.txt", answer(pairs(SLOWER, scenario=Scenario.SERVER), repeats=4)),
        ("derate_noisy.txt", answer(pairs([0.9, 1.1, 0.95, 1.04], scenario=Scenario.SERVER), repeats=4)),
        ("derate_refused.txt", answer([pair(1, 0.95), pair(2, 0.95, size="full")], repeats=2)),
    ],
)
def test_on_a_terminal_of_80_columns(name: str, found: Derating, tmp_path: Path):
    on = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False)
    report.show(found, on)
    holds(name, shown(on))
