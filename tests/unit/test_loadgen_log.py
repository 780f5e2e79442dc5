"""The reader of LoadGen's detail log, on logs of the real LoadGen (scripts/make-golden-logs)."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scheduler.errors import CutOff, LogError, NoLog
from scheduler.loadgen_log import LoadgenResult, parse
from workloads.protocol import Scenario

GOLDEN = Path(__file__).parent.parent / "golden"


def lines_of(name: str) -> list[str]:
    return (GOLDEN / f"{name}.txt").read_text(encoding="utf-8").splitlines(keepends=True)


def golden(name: str) -> LoadgenResult:
    return parse(lines_of(name))


def logged(key: str, value: object, **metadata: bool) -> str:
    return ":::MLLOG " + json.dumps({"key": key, "value": value, "metadata": metadata}) + "\n"


def without(lines: list[str], key: str) -> list[str]:
    kept = [line for line in lines if f'"key": "{key}"' not in line]
    assert len(kept) < len(lines)
    return kept


# --- verdicts, as LoadGen gave them


@pytest.mark.parametrize(
    ("name", "scenario", "metric", "unit"),
    [
        ("offline", Scenario.OFFLINE, "result_samples_per_second", "samples/s"),
        ("server", Scenario.SERVER, "result_completed_samples_per_sec", "samples/s"),
        ("single_stream", Scenario.SINGLE_STREAM, "early_stopping_latency_ss", "ms"),
        ("multi_stream", Scenario.MULTI_STREAM, "early_stopping_latency_ms", "ms"),
        ("submission", Scenario.OFFLINE, "result_samples_per_second", "samples/s"),
    ],
)
def test_valid(name: str, scenario: Scenario, metric: str, unit: str):
    result = golden(name)

    assert (result.scenario, result.valid, result.loadgen_valid) == (scenario, True, True)
    assert (result.num_errors, result.errors, result.invalid_reasons) == (0, (), ())
    assert all(result.met.values())
    assert result.metric is not None
    assert (result.metric.name, result.metric.unit) == (metric, unit)
    assert result.metric.value == result.figures[metric] / (1e6 if unit == "ms" else 1)
    assert result.loadgen_version is not None
    assert result.loadgen_version.startswith("6.0.17 @ ")
    assert result.notes == ()


@pytest.mark.parametrize(
    ("name", "reasons", "num_errors"),
    [
        (
            "offline_finished_early",
            [
                "the minimum duration was not met",
                "Increase expected QPS so the loadgen pre-generates a larger (coalesced) query.",
            ],
            0,
        ),
        (
            "server_over_latency",
            [
                "the latency constraint was not met",
                "early stopping was not met: Run unsuccessful. Processed 2010 queries.",
                "Reduce target QPS to improve latency.",
            ],
            0,
        ),
        (
            "server_cut_short",
            [
                "the minimum number of queries was not met",
                "the latency constraint was not met",
                "early stopping was not met: Run unsuccessful. Processed 500 queries.",
                "Reduce target QPS to improve latency. The test exited early, before enough queries were issued.",
            ],
            1,
        ),
        (
            "single_stream_too_few",
            ["early stopping was not met: Only processed 63 queries. Need to process at least 64 queries"],
            0,
        ),
        (
            "ran_out_of_queries",
            [
                "the minimum duration was not met",
                "Decrease the expected latency so the loadgen pre-generates more queries.",
            ],
            1,
        ),
    ],
)
def test_invalid_with_every_reason(name: str, reasons: list[str], num_errors: int):
    result = golden(name)

    assert (result.valid, result.loadgen_valid, result.num_errors) == (False, False, num_errors)
    assert len(result.invalid_reasons) == len(reasons)
    for told, expected in zip(result.invalid_reasons, reasons, strict=True):
        assert told.startswith(expected)


def test_errors_are_told_in_loadgens_words():
    (error,) = golden("ran_out_of_queries").errors

    assert error.startswith("error_runtime: Ending early: Ran out of generated queries")


def test_a_valid_test_with_an_error_is_not_loadgen_valid():
    """``result_validity`` does not look at errors (LOADGEN.md, section 0, 11)."""
    lines = lines_of("offline")
    result = parse([*lines, logged("error_late", "an error after the count", is_error=True)])

    assert (result.valid, result.num_errors, result.loadgen_valid) == (True, 1, False)


def test_an_error_before_the_first_line_is_this_tests():
    """LoadGen logs a complaint of FromConfig at the head of the next test's log."""
    result = parse(
        [logged("error_invalid_config", "Multiple conf files", is_error=True), *lines_of("offline")]
    )

    assert result.errors == ("error_invalid_config: Multiple conf files",)
    assert result.notes == ()


def test_warnings_are_kept_apart_from_errors():
    result = parse([*lines_of("offline"), logged("warning_generic", "slow clock", is_warning=True)])

    assert result.warnings == ("warning_generic: slow clock",)
    assert result.loadgen_valid


# --- figures


def test_without_an_early_stopping_estimate_the_percentile_stands_and_is_named():
    """LoadGen writes 0 where there were too few queries for an estimate."""
    single = golden("single_stream_too_few")
    multi = parse(without(lines_of("multi_stream"), "early_stopping_latency_ms"))

    assert single.figures["early_stopping_latency_ss"] == 0
    assert single.metric is not None
    assert single.metric.name == "result_90.00_percentile_latency_ns"
    assert single.latency_ms is not None
    assert single.metric.value == single.latency_ms.p90
    assert multi.metric is not None
    assert multi.metric.name == "result_99.00_percentile_per_query_latency_ns"


def test_a_server_log_without_the_completed_rate_has_the_scheduled_one():
    """As LoadGen wrote them before round v4.0."""
    result = parse(without(lines_of("server"), "result_completed_samples_per_sec"))

    assert result.metric is not None
    assert result.metric.name == "result_scheduled_samples_per_sec"


def test_a_metric_that_is_no_number_is_none():
    lines = without(lines_of("offline"), "result_samples_per_second")

    assert parse(lines).metric is None
    assert parse([*lines, logged("result_samples_per_second", "many")]).metric is None
    assert parse([*lines, logged("result_samples_per_second", True)]).metric is None
    assert parse([*lines, logged("result_samples_per_second", float("inf"))]).metric is None


@pytest.mark.parametrize("name", ["offline", "server", "single_stream", "multi_stream"])
def test_latencies_in_milliseconds_in_order(name: str):
    result = golden(name)
    latency = result.latency_ms

    assert latency is not None
    figures = [latency.p50, latency.p90, latency.p95, latency.p99, latency.p999]
    assert None not in figures
    assert figures == sorted(figures, key=lambda figure: figure or 0)
    assert latency.mean is not None
    assert latency.mean == pytest.approx(result.figures["result_mean_latency_ns"] / 1e6)
    assert latency.p50 == pytest.approx(result.figures["result_50.00_percentile_latency_ns"] / 1e6)


def test_multi_stream_latency_is_of_the_query():
    lines = [
        *lines_of("multi_stream"),
        logged("result_99.00_percentile_per_query_latency_ns", 9_000_000),
        logged("result_99.00_percentile_latency_ns", 1_000_000),
    ]
    latency = parse(lines).latency_ms

    assert latency is not None
    assert latency.p99 == 9


def test_counts_and_settings():
    offline, multi = golden("offline"), golden("multi_stream")

    assert (offline.query_count, offline.samples_per_query) == (1, offline.settings["samples_per_query"])
    assert (multi.query_count, multi.samples_per_query) == (662, 8)
    assert offline.settings["min_duration_ms"] == 200
    assert multi.settings["target_latency_percentile"] == 0.99
    assert not any(key.startswith("effective_") for key in offline.settings)


def test_missing_figures_are_none_not_an_error():
    lines = lines_of("offline")
    for key in (
        "result_99.90_percentile_latency_ns",
        "result_query_count",
        "power_begin",
        "loadgen_version",
        "result_min_duration_met",
    ):
        lines = without(lines, key)

    result = parse(lines)

    assert result.latency_ms is not None
    assert (result.latency_ms.p999, result.query_count) == (None, None)
    assert (result.power_begin, result.loadgen_version) == (None, None)
    assert "result_min_duration_met" not in result.met
    assert result.loadgen_valid


# --- accuracy and submission runs


def test_an_accuracy_run_has_no_result_and_is_complete_at_power_end():
    result = golden("accuracy")

    assert (result.mode, result.valid, result.loadgen_valid) == ("AccuracyOnly", True, True)
    assert (result.metric, result.latency_ms, result.met, result.figures) == (None, None, {}, {})
    assert (result.query_count, result.samples_per_query) == (1, 64)
    with pytest.raises(CutOff, match="ends before power_end"):
        parse(without(lines_of("accuracy"), "power_end"))


def test_a_submission_run_is_judged_by_its_performance_half():
    """Two ``power_begin`` in one log: the last counts, and the accuracy half alone is no result."""
    lines = lines_of("submission")
    begins = [json.loads(line[9:])["value"] for line in lines if '"key": "power_begin"' in line]

    assert len(begins) == 2
    assert parse(lines).power_begin == begins[1]
    first_end = next(index for index, line in enumerate(lines) if '"key": "power_end"' in line)
    with pytest.raises(CutOff, match="ends before result_validity"):
        parse(lines[: first_end + 1])


# --- logs that do not say what is needed


@pytest.mark.parametrize(
    "lines", [[], ["\n"], ["Segmentation fault\n", ":::MLLOG {", ':::MLLOG {"key": 1}\n']]
)
def test_no_log(lines: list[str]):
    with pytest.raises(NoLog, match="LoadGen never ran"):
        parse(lines)


def test_a_killed_test_left_a_log_without_verdict():
    with pytest.raises(
        CutOff, match="ends before result_validity; its last line is generated_query_duration"
    ):
        golden("killed")


def test_a_verdict_without_the_last_line_is_cut_off():
    """The verdict is written before the figures: what stands after it may be missing."""
    with pytest.raises(CutOff, match="ends before num_errors"):
        parse(lines_of("server")[:-1])


def test_a_scenario_that_loadgen_does_not_have():
    with pytest.raises(CutOff, match="'Interactive'"):
        parse([*lines_of("server"), logged("effective_scenario", "Interactive")])


def test_lines_that_are_not_loadgens_are_passed_over():
    rubbish = [
        "warning: something else wrote here\n",
        ":::MLLOG not json\n",
        ":::MLLOG [1, 2]\n",
        ':::MLLOG {"key": 7, "value": 1}\n',
        ':::MLLOG {"key": "result_validity"}\n',
        "\x00\ufffd\n",
        ':::MLLOG {"key": "generic_message", "value": "no metadata", "metadata": 3}\n',
    ]
    lines = lines_of("server")

    assert parse([each for line in lines for each in (*rubbish, line)]) == parse(lines)


def test_of_two_tests_in_a_log_the_last_counts_and_is_not_completed_by_the_first():
    first, second = lines_of("offline"), lines_of("ran_out_of_queries")

    both = parse([*first, *second])
    assert (both.scenario, both.valid, both.num_errors) == (Scenario.SINGLE_STREAM, False, 1)
    assert both.notes == ("the log holds 2 tests; this is the last",)
    assert parse([*second, *first]).errors == ()
    with pytest.raises(CutOff):
        parse([*first, *lines_of("killed")])


def test_of_two_verdicts_in_a_test_the_last_counts_with_a_note():
    result = parse([*lines_of("offline"), logged("result_validity", "INVALID")])

    assert not result.valid
    assert result.invalid_reasons == ()
    assert result.notes == ("the log holds 2 verdicts of one test; this is the last",)


@pytest.mark.parametrize(
    "name", ["offline", "server", "server_cut_short", "multi_stream", "accuracy", "submission"]
)
@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_log_cut_anywhere_is_refused_or_says_the_same(name: str, data: st.DataObject):
    whole = (GOLDEN / f"{name}.txt").read_bytes()
    # Half of the cuts near the end, where the verdict is.
    end = data.draw(
        st.one_of(st.integers(0, len(whole)), st.integers(len(whole) - 5000, len(whole))), label="bytes kept"
    )
    expected = golden(name)

    try:
        result = parse(whole[:end].decode("utf-8", errors="replace").splitlines(keepends=True))
    except LogError:
        return

    assert (result.valid, result.metric, result.num_errors, result.latency_ms) == (
        expected.valid,
        expected.metric,
        expected.num_errors,
        expected.latency_ms,
    )


@pytest.mark.parametrize("name", ["offline", "server", "single_stream", "multi_stream"])
def test_a_log_cut_after_any_line_but_the_last_is_refused(name: str):
    lines = lines_of(name)

    for end in range(len(lines)):
        with pytest.raises(LogError):
            parse(lines[:end])


@given(text=st.text())
@example(text=':::MLLOG {"key": "effective_scenario", "value": [], "metadata": null}')
@settings(deadline=None)
def test_any_text_is_a_log_error(text: str):
    with pytest.raises(LogError):
        parse(text.splitlines())
