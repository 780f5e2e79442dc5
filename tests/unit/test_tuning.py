"""A tuning's journal: what becomes of a verdict, and what follows from the lines so far."""

from typing import Any

import pytest

from scheduler.result import BenchmarkRecord, Finding, Result
from scheduler.search import Found, Try
from scheduler.tuning import Asked, Outcome, TrialRecord, bracket, derating, judged, next_step, outcome
from workloads.protocol import Scenario

ASKED = Asked(confirm=1, tolerance=0.01, screening_s=60, max_time_s=None, baseline_qps=None)
SETTINGS = {
    "target_qps": 900.0,
    "target_latency_percentile": 0.99,
    "server_target_latency_ns": 15_000_000,
    "min_query_count": 2010,
    "server_max_async_queries": 500,
}
OUTSTANDING = "IssueQueryThread 0 Ending early: Too many outstanding queries. issued 1701 outstanding 501"
CALIBRATED = {
    "target_qps": 870.0,
    "batch_times": [{"batch_size": 8, "median_ns": 4, "mean_ns": 5, "batches": 6}],
}


def a_result(scenario: Scenario, *breaches: Finding) -> Result:
    unit = "samples/s" if scenario in (Scenario.SERVER, Scenario.OFFLINE) else "ms"
    return Result.model_validate(
        {
            "kind": "hetero",
            "verdict": "INVALID" if breaches else "VALID",
            "started_utc": "",
            "preset": "mlperf",
            "comparable_to_mlperf": True,
            "notes": [],
            "findings": [one.model_dump() for one in breaches],
            "main": {
                "workload": "resnet50",
                "size": "full",
                "precision": "fp16",
                "batch_size": 8,
                "scenario": scenario,
                "slice": "mig0",
                "device": {},
                "loadgen_valid": not breaches,
                "num_errors": 0,
                "metric": {"name": "score", "value": 4.0, "unit": unit},
                "latency_ms": {"mean": 2.0, "p99": 12.0, "p999": 15.0},
                "window": {"begin_s": 1, "end_s": 2},
                "settings": {},
                "notes": [],
            },
            "background": [],
            "timing": {
                "launch_to_all_issuing_s": 1,
                "start_buffer_s": 1,
                "buffer_overshoot_ms": 0,
                "main_s": 61.0,
                "stop_to_all_gone_s": 1,
            },
            "slices": [],
        }
    )


def line(*breaches: Finding, scenario: Scenario = Scenario.SERVER, **settings: Any) -> TrialRecord:
    record = BenchmarkRecord(
        name="trial-003-resnet50",
        role="main",
        workload="resnet50",
        slice="mig0",
        size="full",
        precision="fp16",
        batch_size=8,
        scenario=scenario,
        settings=SETTINGS | settings,
    )
    return judged(
        a_result(scenario, *breaches),
        record,
        CALIBRATED,
        number=3,
        of="hetero",
        run_key="hetero-1",
        kind="screening",
        full_s=600,
        elapsed_s=100,
    )


def breach(code: str, message: str = "why") -> Finding:
    return Finding(code=code, severity="breach", message=message)


def trial(rate: float, *, valid: bool = True, kind: Any = "confirmation", **changes: Any) -> TrialRecord:
    return line().model_copy(
        update={"rate": rate, "valid": valid, "kind": kind, "latency_share": None} | changes
    )


def test_a_valid_trial_tells_its_rate_its_latency_and_its_batch_times():
    one = line()
    assert (one.valid, one.cut, one.spoiled, one.reasons) == (True, False, [], [])
    assert (one.rate, one.completed, one.latency_ms, one.latency_share) == (900, 4, 12, 0.8)
    assert 0.8 < (one.held_share or 0) < 0.81  # of 540,000 queries a few late ones less than 1 % may be
    assert one.batch_times_ns == [(8, 4, 5, 6)]
    assert line(target_qps=None).rate == 870  # what its calibration picked


def test_loadgens_no_is_of_the_rate_and_any_other_breach_spoils_the_trial():
    late = line(breach("loadgen-invalid", "the latency constraint was not met"))
    assert (late.valid, late.reasons, late.spoiled) == (False, ["the latency constraint was not met"], [])

    alone = line(breach("loadgen-invalid"), breach("gap-in-window", "bert completed nothing for 3 s"))
    assert (alone.valid, alone.spoiled) == (False, ["bert completed nothing for 3 s"])


def test_a_trial_that_loadgen_ended_early_is_told_as_cut():
    cut = line(breach("loadgen-invalid"), breach("loadgen-errors", OUTSTANDING))
    assert (cut.valid, cut.cut) == (False, True)
    assert not line(breach("loadgen-errors", OUTSTANDING), server_max_async_queries=0).cut


def test_under_the_streams_the_score_is_a_latency_and_the_rate_its_mean_s_inverse():
    one = line(scenario=Scenario.SINGLE_STREAM, server_target_latency_ns=None)
    assert (one.completed, one.latency_ms, one.latency_share, one.held_share) == (500, 4, None, None)
    assert one.batch_times_ns == []


def test_a_spoiled_trial_is_made_again_and_counts_for_nothing():
    spoiled = trial(900, valid=False, kind="screening", spoiled=["bert stalled"])
    step = next_step(Scenario.SERVER, ASKED, 900, [spoiled])
    assert isinstance(step, Try)
    assert (step.rate, step.kind) == (900, "screening")

    found = outcome(Scenario.SERVER, ASKED, [spoiled, trial(900, kind="screening")])
    assert (found.screening_trials, found.full_length_trials, found.spoiled_trials) == (1, 0, 1)


def test_an_outcome_has_the_score_of_the_trial_that_proved_it():
    trials = [trial(900, kind="screening"), trial(902, valid=False), trial(895), trial(898, valid=False)]
    assert isinstance(next_step(Scenario.SERVER, ASKED, None, trials), Found)
    found = outcome(Scenario.SERVER, ASKED, trials)
    assert (found.qps, found.low, found.high, found.latency_ms) == (895, 895, 898, 12)
    assert found.metric is not None
    assert bracket(ASKED, trials).high == 898


def test_a_search_cut_short_by_the_time_has_the_best_proven_so_far():
    unproven = outcome(Scenario.SERVER, ASKED, [trial(900, kind="screening")])
    assert (unproven.qps, unproven.why) == (None, "the time was over before the search was")
    assert outcome(Scenario.SERVER, ASKED, [trial(900)]).qps == 900


def test_the_other_scenarios_are_sized_by_what_was_measured():
    step = next_step(Scenario.OFFLINE, ASKED, None, [trial(900, kind="screening", completed=1000.0)])
    assert isinstance(step, Try)
    assert step.rate == pytest.approx(960)


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [(Scenario.SERVER, 0.9), (Scenario.OFFLINE, 0.5), (Scenario.SINGLE_STREAM, 2.0)],
)
def test_derating_is_of_rates_found_of_scores_or_of_their_inverses(scenario: Scenario, expected: float):
    def found(qps: float, score: float) -> Outcome:
        metric = {"name": "score", "value": score, "unit": ""}
        return Outcome.model_validate({"qps": qps, "why": "", "metric": metric})

    assert derating(scenario, found(1000, 40), found(900, 20)) == expected
    assert derating(scenario, Outcome(qps=None, why=""), found(900, 20)) is None
