"""The compliance tests: what LoadGen is told, and what is found in what it logged."""

import struct
from dataclasses import asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import audit_rules
from scheduler.audit_rules import Check, Comparison, Ran, compare
from scheduler.loadgen_log import LoadgenResult, Metric, parse
from scheduler.result import Finding
from scheduler.spec import AuditTest, RoundName, loadgen_round
from scheduler.verdict import judge
from tests.unit.test_verdict import EVIDENCE, GOLDEN, MANIFEST, STORY
from workloads.protocol import LoadgenSettings, Precision, Scenario

RESULT = judge(MANIFEST, STORY, EVIDENCE)
V2, V4, V6 = (loadgen_round(name) for name in ("v2.0", "v4.1", "v6.1"))
SETTINGS = LoadgenSettings(
    conf_model="resnet50",
    scenario=Scenario.OFFLINE,
    min_duration_ms=1000,
    min_query_count=24576,
    performance_sample_count=1024,
    target_qps=100.0,
    qsl_rng_seed=1,
    sample_index_rng_seed=2,
    schedule_rng_seed=3,
)


def log(name: str = "offline", value: float | None = None, **changed: Any) -> LoadgenResult:
    """One of the golden logs, with another score."""
    found = parse((GOLDEN / f"{name}.txt").read_text().splitlines())
    if value is not None:
        assert found.metric is not None
        metric = Metric(name=found.metric.name, value=value, unit=found.metric.unit)
        found = replace(found, metric=metric, figures=found.figures | {metric.name: value})

    return replace(found, **changed)


def ran(found: LoadgenResult | None, *breaches: str, **main: Any) -> Ran:
    findings = [Finding(code=code, severity="breach", message=f"what {code} tells") for code in breaches]
    result = RESULT.model_copy(
        update={"findings": findings, "main": RESULT.main.model_copy(update={"loadgen_valid": True, **main})}
    )
    return Ran(result=result, log=found)


# ---------------------------------------------------------------------- what LoadGen is told


@pytest.mark.parametrize(
    ("key", "round_name", "changed"),
    [
        (
            "TEST01",
            "v6.1",
            {"accuracy_log_rng_seed": 720381539243781796, "accuracy_log_sampling_target": 4096},
        ),
        (
            "TEST04",
            "v4.1",
            {"performance_issue_same": True, "performance_issue_same_index": 3},
        ),
        ("TEST04-A", "v2.0", {"performance_issue_unique": True}),
        (
            "TEST04-B",
            "v2.0",
            {"performance_issue_same": True, "performance_issue_same_index": 3},
        ),
        (
            "TEST05",
            "v2.0",
            {
                "qsl_rng_seed": 313588358309856706,
                "sample_index_rng_seed": 471397156132239067,
                "schedule_rng_seed": 413914573387865862,
            },
        ),
        (
            "TEST05",
            "v4.1",
            {
                "test05": True,
                "test05_qsl_rng_seed": 16799458546791641818,
                "test05_sample_index_rng_seed": 5453809927556429288,
                "test05_schedule_rng_seed": 5435552105434836064,
            },
        ),
    ],
)
def test_a_test_changes_what_its_audit_config_would(key: str, round_name: RoundName, changed: dict[str, Any]):
    told = audit_rules.settings_of(key, SETTINGS, loadgen_round(round_name), "resnet50")
    assert asdict(told) == asdict(SETTINGS) | changed


def test_the_audit_config_for_the_record_is_mlperfs():
    assert audit_rules.audit_config("TEST01", V2, "ssd-resnet34").splitlines() == [
        "*.*.mode = 2",
        "*.*.accuracy_log_rng_seed = 720381539243781796",
        "*.*.accuracy_log_sampling_target = 256",
    ]
    assert "*.*.qsl_rng_seed = 313588358309856706" in audit_rules.audit_config("TEST05", V2, "bert")
    assert audit_rules.audit_config("TEST05", V4, "bert").splitlines()[1:] == ["*.*.test05 = 1"]
    assert "*.*.performance_issue_unique = 1" in audit_rules.audit_config("TEST04-A", V2, "resnet50")
    assert "*.*.performance_issue_same = 1" in audit_rules.audit_config("TEST04", V6, "resnet50")


def test_a_library_of_few_samples_has_no_fourth():
    few = replace(SETTINGS, performance_sample_count=2)
    assert audit_rules.settings_of("TEST04", few, V6, "null").performance_issue_same_index == 1


def test_a_round_without_the_test_has_no_settings_for_it():
    with pytest.raises(ValueError, match=r"v6\.1 has no test TEST05"):
        audit_rules.settings_of("TEST05", SETTINGS, V6, "resnet50")


def test_the_runs_of_an_audit_by_round():
    assert audit_rules.steps("TEST01", V4) == ("performance", "accuracy", "TEST01")
    assert audit_rules.steps("TEST04", V6) == ("performance", "TEST04")
    assert audit_rules.steps("TEST04", V2) == ("performance", "TEST04-A", "TEST04-B")
    assert audit_rules.reference_of("TEST04-B") == "TEST04-A"
    assert {audit_rules.reference_of(key) for key in ("TEST01", "TEST04", "TEST05")} == {"performance"}


# ---------------------------------------------------------------------- answers


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def integers(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}q", *values)


def compared(expected: bytes, answer: bytes, dtype: str, precision: Precision = "fp32") -> Comparison:
    return compare({7: expected}, [(7, answer)], dtype, precision)


def test_the_second_element_counts_though_mlperfs_script_passes_it():
    found = compared(integers(3, 4), integers(3, 5), "int64")
    assert (found.first_differs, found.differs) == (0, 1)
    assert audit_rules.official_accuracy(found)
    assert found.examples == ["sample 7: element 1 of 2 differs"]


def test_floats_may_differ_as_much_as_the_precision_makes_them():
    off = floats(1.0, 100.0 + 0.5)
    assert compared(floats(1.0, 100.0), off, "float32", "fp16").differs == 0
    assert compared(floats(1.0, 100.0), off, "float32", "fp32").differs == 1
    assert compared(floats(1.0, 100.0), floats(1.0, 102.0), "float32", "fp16").differs == 1
    assert compared(floats(1.0, 100.0), floats(1.0, 102.0), "float32", "bf16").differs == 0
    first = compared(floats(1.0, 100.0), floats(1.001, 100.0), "float32", "fp16")
    assert (first.first_differs, first.differs) == (1, 0)


def test_nan_is_nan_and_nothing_else():
    nan = float("nan")
    assert compared(floats(1.0, nan), floats(1.00001, nan), "float32").differs == 0
    assert compared(floats(1.0, nan), floats(1.0, 2.0), "float32").differs == 1
    assert compared(floats(1.0, float("inf")), floats(1.0, 2.0), "float32").differs == 1


def test_lengths_and_unknown_samples_are_told():
    shorter = compared(integers(1, 2), integers(1), "int64")
    assert shorter.differs == 1
    assert "8 bytes where the accuracy run has 16" in shorter.examples[0]
    found = compare({1: b"a"}, [(2, b"a"), (1, b"a"), (1, b"b")], "uint8", "fp32")
    assert (found.entries, found.matched, found.missing, found.differs) == (3, 2, 1, 1)
    assert compared(b"", b"", "uint8").first_differs == 0
    assert compared(b"", b"x", "uint8").first_differs == 1


@given(st.dictionaries(st.integers(0, 50), st.binary(min_size=8, max_size=8), min_size=1), st.data())
def test_one_changed_byte_of_an_integer_is_found_wherever_it_is(
    answers: dict[int, bytes], data: st.DataObject
):
    index = data.draw(st.sampled_from(sorted(answers)))
    place = data.draw(st.integers(0, 7))
    changed = bytearray(answers[index])
    changed[place] ^= 1 << data.draw(st.integers(0, 7))
    entries = {**answers, index: bytes(changed)}
    found = compare(answers, entries.items(), "int64", "fp32")
    assert (found.differs, found.first_differs) == (1, 1)
    bytewise = compare(answers, entries.items(), "uint8", "fp32")
    assert (bytewise.differs, bytewise.first_differs) == (1, int(place == 0))
    assert compare(answers, answers.items(), "int64", "fp32").differs == 0


# ---------------------------------------------------------------------- the judgement


def performance(test: AuditTest, reference: Ran, tested: Ran) -> Check:
    return audit_rules.checks(test, V4, {"performance": reference, test: tested}, None)[0]


@pytest.mark.parametrize(
    ("test", "scenario", "ratio", "passes"),
    [
        ("TEST01", "offline", 0.91, True),
        ("TEST01", "offline", 0.89, False),
        ("TEST01", "offline", 1.11, False),
        ("TEST01", "single_stream", 1.09, True),
        ("TEST04", "offline", 1.09, True),
        ("TEST04", "offline", 1.11, False),
        ("TEST04", "offline", 0.3, True),
        ("TEST04", "single_stream", 1 / 1.11, False),
        ("TEST04", "multi_stream", 5.0, True),
        ("TEST05", "offline", 0.96, True),
        ("TEST05", "offline", 0.94, False),
        ("TEST05", "server", 2.0, True),
        ("TEST05", "single_stream", 1.04, True),
        ("TEST05", "single_stream", 1.06, False),
        ("TEST05", "single_stream", 0.5, True),
    ],
)
def test_the_score_is_held_against_the_reference_as_mlperf_does(
    test: AuditTest, scenario: str, ratio: float, passes: bool
):
    check = performance(test, ran(log(scenario, 200.0)), ran(log(scenario, 200.0 * ratio)))
    assert check.passed is passes, check.message
    told = audit_rules.verify_performance(
        test, test, ran(log(scenario, 200.0)), ran(log(scenario, 200 * ratio))
    )
    assert ("TEST PASS" in told.splitlines()) is passes


def test_very_short_latencies_have_more_room():
    short, longer = ran(log("single_stream", 0.2)), ran(log("single_stream", 0.23))
    assert performance("TEST01", short, longer).passed
    assert not performance("TEST01", ran(log("single_stream", 2.0)), ran(log("single_stream", 2.3))).passed


def test_a_caching_sut_fails_for_its_speed_also_where_its_test_ended_early():
    early = log("offline_finished_early", 1600.0)
    assert not early.valid
    found = audit_rules.checks(
        "TEST04", V6, {"performance": ran(log(value=100.0)), "TEST04": ran(early, "loadgen-invalid")}, None
    )
    assert not audit_rules.passed(found)
    assert "16.000 times as fast; one sample again and again" in found[0].message
    assert found[0].message.endswith("as if answers were kept")
    assert [check.what for check in found if not check.passed] == ["performance of TEST04", "TEST04 run"]


def test_what_else_was_wrong_with_a_run_is_told_beside_and_does_not_decide():
    noisy = ran(log())
    warning = Finding(code="host-load", severity="warning", message="others took half of the cores")
    noisy = Ran(result=noisy.result.model_copy(update={"findings": [warning]}), log=noisy.log)
    found = audit_rules.checks("TEST05", V4, {"performance": noisy, "TEST05": ran(log())}, None)
    assert audit_rules.passed(found)
    assert (found[-1].what, found[-1].message) == (
        "conditions of the performance run",
        "others took half of the cores",
    )


def test_up_to_v2_the_two_parts_are_held_against_each_other_and_may_end_early():
    early = log("offline_finished_early", 100.0)
    runs = {
        "performance": ran(log(value=50.0)),
        "TEST04-A": ran(early, "loadgen-invalid"),
        "TEST04-B": ran(early),
    }
    assert audit_rules.passed(audit_rules.checks("TEST04", V2, runs, None))
    in_bad_company = runs | {"TEST04-A": ran(early, "loadgen-invalid", "background-died")}
    found = audit_rules.checks("TEST04", V2, in_bad_company, None)
    assert [check.message for check in found if not check.passed] == ["what background-died tells"]


def test_what_is_not_alike_is_not_compared():
    other = performance("TEST01", ran(log("offline")), ran(log("single_stream")))
    assert (other.passed, other.message) == (False, "test and reference are of different scenarios")
    limited = log("server", settings={**log("server").settings, "target_latency_ns": 1})
    assert "latency limits" in performance("TEST01", ran(log("server")), ran(limited)).message
    assert "no score of the TEST01 run" in performance("TEST01", ran(log()), ran(None)).message


def test_of_a_performance_run_that_came_to_nothing_there_is_no_more_to_judge():
    found = audit_rules.checks("TEST01", V4, {"performance": ran(None, "main-died")}, None)
    assert [(check.what, check.passed) for check in found] == [("performance run", False)]


def test_01_needs_every_answer_and_tells_mlperfs_own_finding_beside():
    same, off = floats(1.0, 2.0), floats(1.0001, 2.0)
    runs = {"performance": ran(log()), "accuracy": ran(log("accuracy")), "TEST01": ran(log())}
    good = audit_rules.checks("TEST01", V4, runs, compared(same, same, "float32"))
    assert audit_rules.passed(good)
    near = audit_rules.checks("TEST01", V4, runs, compared(same, off, "float32", "fp16"))
    assert audit_rules.passed(near)
    official = next(check for check in near if check.what.startswith("MLPerf's own"))
    assert not official.passed
    assert "verify_accuracy.py fails" in official.message
    wrong = audit_rules.checks("TEST01", V4, runs, compared(same, floats(1.0, 9.0), "float32", "fp16"))
    assert not audit_rules.passed(wrong)
    nothing = audit_rules.checks("TEST01", V4, runs, compare({1: same}, [], "float32", "fp32"))
    assert not audit_rules.passed(nothing)
    unfinished = runs | {"accuracy": ran(None, loadgen_valid=False)}
    assert not audit_rules.passed(
        audit_rules.checks("TEST01", V4, unfinished, compared(same, same, "float32"))
    )


def test_the_verification_is_written_in_mlperfs_words():
    told = audit_rules.verify_accuracy(compared(integers(1), integers(2), "int64")).splitlines()
    assert {"num_perf_log_data_mismatch = 1", "num_perf_log_qsl_idx_match = 1", "TEST FAIL"} <= set(told)
    invalid = audit_rules.verify_performance(
        "TEST05", "TEST05", ran(log()), ran(log("offline_finished_early"))
    )
    assert invalid == "Verifying performance.\nTEST FAIL: Test results are invalid\n"
    parts = audit_rules.verify_performance("TEST04", "TEST04-B", ran(log(value=2.0)), ran(log(value=1.0)))
    assert parts.splitlines()[1:] == ["TEST04-A score = 2.0", "TEST04-B score = 1.0", "TEST PASS"]
    unscored = audit_rules.verify_performance("TEST05", "TEST05", ran(log()), ran(log(metric=None)))
    assert unscored.endswith("TEST FAIL: Test score invalid\n")
