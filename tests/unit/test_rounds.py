"""MLPerf's rounds: what a later one has of its own."""

import json
from pathlib import Path
from typing import Any

from scheduler import audit
from scheduler.assignment import Plan, assign
from scheduler.record import RunFolder
from scheduler.spec import loadgen_round, parse_run, presets
from tests.unit.test_assignment import SEVEN_MIG
from workloads.protocol import Scenario


def test_a_later_round_differs_in_what_its_file_says():
    before, round_, newest = loadgen_round(), loadgen_round("v4.1"), loadgen_round("v6.1")

    assert (before.hetero_mig, round_.hetero_mig) == (True, False)
    assert (round_.qsl_rng_seed, newest.qsl_rng_seed) == (3066443479025735752, 2085463073848966840)
    assert round_.least_queries("bert", Scenario.OFFLINE) == 10_833
    assert before.least_queries("bert", Scenario.OFFLINE) == 24_576
    assert round_.least_queries("bert", Scenario.SERVER) == before.least_queries("bert", Scenario.SERVER)
    assert round_.of("resnet50").server_target_latency_ms == before.of("resnet50").server_target_latency_ms
    assert (round_.of("rnnt").accuracy, round_.of("rnnt").audits) == (None, ())
    assert (before.test05 is None, round_.test05 is None, newest.test05 is None) == (False, False, True)
    assert {name: list(newest.of(name).audits) for name in ("resnet50", "bert")} == {
        "resnet50": ["TEST01", "TEST04"],
        "bert": ["TEST01"],
    }


def test_a_later_rounds_seeds_and_counts_are_taken_and_it_has_no_background():
    def of(main: str, **asked: Any) -> Plan:
        spec = parse_run({"main": main, "round": "v4.1", **asked})
        return assign(spec, SEVEN_MIG, presets(), loadgen_round(spec.round))

    alone, beside = of("bert"), of("bert", background="resnet50")
    assert alone.main.settings.qsl_rng_seed == 3066443479025735752
    assert alone.main.settings.min_query_count == 10_833
    assert of("bert", preset="quick").main.settings.min_query_count == 1
    assert (alone.comparable_to_mlperf, beside.comparable_to_mlperf) == (True, False)
    assert "not comparable to MLPerf: a background, which round v4.1 has not" in beside.notes
    assert "not comparable to MLPerf: dlrm is not a benchmark of round v4.1" in of("dlrm").notes


def test_a_compliance_test_takes_rate_batch_and_batch_times_of_the_performance_run(tmp_path: Path):
    round_ = loadgen_round("v4.1")
    spec = parse_run({"main": "bert", "main_scenario": "Server", "round": "v4.1"})
    plan = assign(spec, SEVEN_MIG, presets(), round_)
    sizes = [
        {"batch_size": size, "median_ns": 2 * size, "mean_ns": 3 * size, "batches": 9} for size in (1, 4, 16)
    ]
    told = {
        "effective": {
            "scenario": "Server",
            "batch_size": 4,
            "offline_expected_qps": 120.5,
            "server_target_qps": 120.5,
            "single_stream_expected_latency_ns": 1,
            "multi_stream_expected_latency_ns": 1,
        },
        "calibration": {"batch_times": sizes},
    }
    ran = tmp_path / plan.main.name
    ran.mkdir()
    (ran / "loadgen_settings.json").write_text(json.dumps(told))
    main = audit.test_plan("TEST05", plan, RunFolder(tmp_path), round_).main
    assert (main.settings.target_qps, main.options.batch_size) == (120.5, 4)
    assert main.settings.batch_times_ns == ((1, 2, 3, 9), (4, 8, 12, 9))
    assert main.settings.test05
