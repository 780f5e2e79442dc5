"""LoadGen's ``mlperf_log_detail.txt``: lines in, result out.

What stands in the log, and when, was seen of LoadGen 6.0.17: in a performance run ``result_validity`` and the
figures follow the test, ``num_errors`` is the last line; an accuracy run ends with ``power_end`` and has no
``result_…`` line; a test that was stopped or died leaves none of them.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any

from scheduler.errors import CutOff, NoLog
from workloads.protocol import Scenario

_MARK = ":::MLLOG "
_FIRST_KEY = "loadgen_version"
_NS_PER_MS = 1e6

# The score of each scenario, best first: (key in the log, divisor, unit). Under the streams it is the
# early-stopping estimate (of the 90th percentile for SingleStream, the 99th for MultiStream); where too few
# queries were made for one, LoadGen writes 0 and the plain percentile is all there is.
_SCORES: dict[Scenario, tuple[tuple[str, float, str], ...]] = {
    Scenario.OFFLINE: (("result_samples_per_second", 1.0, "samples/s"),),
    Scenario.SERVER: (
        ("result_completed_samples_per_sec", 1.0, "samples/s"),
        ("result_scheduled_samples_per_sec", 1.0, "samples/s"),
    ),
    Scenario.SINGLE_STREAM: (
        ("early_stopping_latency_ss", _NS_PER_MS, "ms"),
        ("result_90.00_percentile_latency_ns", _NS_PER_MS, "ms"),
    ),
    Scenario.MULTI_STREAM: (
        ("early_stopping_latency_ms", _NS_PER_MS, "ms"),
        ("result_99.00_percentile_per_query_latency_ns", _NS_PER_MS, "ms"),
    ),
}

_CONDITIONS = {
    "result_min_duration_met": "the minimum duration was not met",
    "result_min_queries_met": "the minimum number of queries was not met",
    "result_perf_constraints_met": "the latency constraint was not met",
    "early_stopping_met": "early stopping was not met",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A scenario's score: samples a second, or a latency in ms."""

    name: str
    """LoadGen's own key."""
    value: float
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyMs:
    """Latencies in ms: of a sample, under MultiStream of a query; under Offline from the test's start."""

    mean: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    p999: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Of a test with token latencies (LoadGen's ``use_token_latencies``)."""

    tokens_per_s: float | None
    ttft_ms: LatencyMs | None
    """Time to the first token; None under Offline, where LoadGen tells no latencies of tokens."""
    tpot_ms: LatencyMs | None
    """Time for each further token, of a text's mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadgenResult:
    """What LoadGen says of one test."""

    scenario: Scenario
    mode: str
    """``PerformanceOnly``, ``AccuracyOnly``, ``SubmissionRun`` …"""
    valid: bool
    """``result_validity``, which does not look at errors; of an accuracy run: that it came to its end."""
    invalid_reasons: tuple[str, ...]
    """The conditions that were not met, then LoadGen's advice; empty where ``valid``."""
    num_errors: int
    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    metric: Metric | None
    """None in accuracy mode."""
    latency_ms: LatencyMs | None
    """None in accuracy mode."""
    tokens: Tokens | None
    """None of a test without token latencies."""
    query_count: int | None
    samples_per_query: int | None
    met: dict[str, bool]
    """LoadGen's conditions by its own keys, those this scenario has."""
    figures: dict[str, float]
    """Every number of the result by LoadGen's own key."""
    settings: dict[str, Any]
    """The effective settings, without the prefix ``effective_``."""
    power_begin: str | None
    power_end: str | None
    """UTC wall clock to the millisecond, of the first query and the last completion; never order by them."""
    loadgen_version: str | None
    notes: tuple[str, ...]

    @property
    def loadgen_valid(self) -> bool:
        """VALID and free of errors: LoadGen says VALID of tests that it itself found errors in."""
        return self.valid and self.num_errors == 0


@dataclass(slots=True)
class _Test:
    """The lines of one test."""

    facts: dict[str, Any] = field(default_factory=dict)
    """The last value of each key, in the order of the log."""
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    verdicts: int = 0

    def number(self, key: str) -> float | None:
        value = self.facts.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
        return value if is_number else None

    def count(self, key: str) -> int | None:
        value = self.number(key)
        return None if value is None else int(value)

    def text(self, key: str) -> str | None:
        value = self.facts.get(key)
        return None if value is None else str(value)


def parse(lines: Iterable[str]) -> LoadgenResult:
    """The result of the log's last test; lines that are not LoadGen's, or are cut, are passed over.

    Raises:
        NoLog: not one line of LoadGen's.
        CutOff: the log ends before LoadGen's result does.
    """
    tests = _tests(lines)
    if not tests:
        raise NoLog(
            asked="LoadGen's result from its detail log",
            found="the log is empty or holds no line of LoadGen's",
            do="see the benchmark's stderr: LoadGen never ran, or its output folder was missing",
        )

    test = tests[-1]
    scenario, mode = _kind(test)
    if mode == "AccuracyOnly":
        _must_reach(test, "power_end")
        valid = True
    else:
        _must_reach(test, "result_validity", "num_errors")
        valid = test.facts["result_validity"] == "VALID"

    met = {key: test.facts[key] is True for key in _CONDITIONS if key in test.facts}
    has_result = "result_validity" in test.facts
    return LoadgenResult(
        scenario=scenario,
        mode=mode,
        valid=valid,
        invalid_reasons=() if valid else _reasons(test, met),
        num_errors=max(test.count("num_errors") or 0, len(test.errors)),
        errors=tuple(test.errors),
        warnings=tuple(test.warnings),
        metric=_metric(test, scenario) if has_result else None,
        latency_ms=_latency(test, scenario) if has_result else None,
        tokens=_tokens(test) if has_result and _has_tokens(test) else None,
        query_count=test.count("result_query_count" if has_result else "generated_query_count"),
        samples_per_query=test.count("generated_samples_per_query"),
        met=met,
        figures=_figures(test),
        settings={
            key.removeprefix("effective_"): value
            for key, value in test.facts.items()
            if key.startswith("effective_")
        },
        power_begin=test.text("power_begin"),
        power_end=test.text("power_end"),
        loadgen_version=test.text(_FIRST_KEY),
        notes=_notes(tests),
    )


def _tests(lines: Iterable[str]) -> list[_Test]:
    tests: list[_Test] = []
    for line in lines:
        entry = _entry(line)
        if entry is None:
            continue

        key, value, metadata = entry
        if not tests or (key == _FIRST_KEY and _FIRST_KEY in tests[-1].facts):
            tests.append(_Test())

        test = tests[-1]
        test.facts.pop(key, None)  # so that the last key is the last line's
        test.facts[key] = value
        test.verdicts += key == "result_validity"
        if metadata.get("is_error") is True:
            test.errors.append(f"{key}: {value}")
        elif metadata.get("is_warning") is True:
            test.warnings.append(f"{key}: {value}")

    return tests


def _entry(line: str) -> tuple[str, Any, Mapping[str, Any]] | None:
    if not line.startswith(_MARK):
        return None

    try:
        entry = json.loads(line[len(_MARK) :])
    except ValueError:
        return None

    if not isinstance(entry, dict) or not isinstance(entry.get("key"), str) or "value" not in entry:
        return None

    metadata = entry.get("metadata")
    return entry["key"], entry["value"], metadata if isinstance(metadata, dict) else {}


def _kind(test: _Test) -> tuple[Scenario, str]:
    _must_reach(test, "effective_scenario", "effective_test_mode")
    try:
        return Scenario(test.facts["effective_scenario"]), str(test.facts["effective_test_mode"])
    except ValueError:
        raise CutOff(
            asked="LoadGen's result from its detail log",
            found=f"a scenario that LoadGen does not have: {test.facts['effective_scenario']!r}",
            do="the log is damaged: run again",
        ) from None


def _must_reach(test: _Test, *keys: str) -> None:
    missing = [key for key in keys if key not in test.facts]
    if missing:
        raise CutOff(
            asked="LoadGen's result from its detail log",
            found=f"the log ends before {missing[0]}; its last line is {next(reversed(test.facts))}",
            do="the test was stopped or died: see the benchmark's exit code and stderr",
        )


def _reasons(test: _Test, met: Mapping[str, bool]) -> tuple[str, ...]:
    reasons = [words for key, words in _CONDITIONS.items() if met.get(key) is False]
    if met.get("early_stopping_met") is False:
        reasons[-1] += ": " + _one_line(test.text("early_stopping_result"))

    advice = _one_line(test.text("result_invalid_reason"))
    return (*reasons, advice) if advice else tuple(reasons)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").replace(" * ", " ").split())


def _metric(test: _Test, scenario: Scenario) -> Metric | None:
    for key, divisor, unit in _SCORES[scenario]:
        if key == "early_stopping_latency_ss" and _has_tokens(test):
            continue  # then it is of the first token, whatever its name

        value = test.number(key)
        if value:
            return Metric(name=key, value=value / divisor, unit=unit)

    return None


def _latency(test: _Test, scenario: Scenario) -> LatencyMs:
    of_what = "query_latency_ns" if scenario is Scenario.MULTI_STREAM else "latency_ns"
    percentile = f"percentile_{'per_' if scenario is Scenario.MULTI_STREAM else ''}{of_what}"
    return _latencies(test, f"result_mean_{of_what}", f"result_{{}}_{percentile}")


def _latencies(test: _Test, mean: str, percentile: str) -> LatencyMs:
    """By LoadGen's keys; ``{}`` in ``percentile`` is the figure."""

    def ms(key: str) -> float | None:
        value = test.number(key)
        return None if value is None else value / _NS_PER_MS

    return LatencyMs(
        mean=ms(mean),
        p50=ms(percentile.format("50.00")),
        p90=ms(percentile.format("90.00")),
        p95=ms(percentile.format("95.00")),
        p99=ms(percentile.format("99.00")),
        p999=ms(percentile.format("99.90")),
    )


def _has_tokens(test: _Test) -> bool:
    return test.facts.get("requested_use_token_latencies") is True


def _tokens(test: _Test) -> Tokens:
    """``result_token_throughput`` is passed over: LoadGen 6.0.17 divides it once too often by 10⁹."""
    first, further = "result_first_token_", "result_time_per_output_token_{}_percentile_ns"
    has_latencies = test.number("result_first_token_mean_latency_ns") is not None
    return Tokens(
        tokens_per_s=test.number("result_completed_tokens_per_second")
        or test.number("result_tokens_per_second"),
        ttft_ms=_latencies(test, f"{first}mean_latency_ns", first + "{}_percentile_latency_ns")
        if has_latencies
        else None,
        tpot_ms=_latencies(test, "result_time_to_output_token_mean", further) if has_latencies else None,
    )


def _figures(test: _Test) -> dict[str, float]:
    wanted = (key for key in test.facts if key.startswith(("result_", "early_stopping_")))
    return {key: value for key in wanted if (value := test.number(key)) is not None}


def _notes(tests: list[_Test]) -> tuple[str, ...]:
    if len(tests) > 1:
        return (f"the log holds {len(tests)} tests; this is the last",)

    if tests[-1].verdicts > 1:
        return (f"the log holds {tests[-1].verdicts} verdicts of one test; this is the last",)

    return ()
