"""What company costs: from pairs of runs, alone and beside others, to ratios with an interval and words. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from math import exp, log
from statistics import fmean
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from scheduler.assignment import Plan
from scheduler.conditions import Difference, Measured, differences
from scheduler.result import Finding, Latencies, Metric, Result, SliceRecord
from scheduler.statistics import MARGIN, Comparison, Decision, compare
from workloads.protocol import Precision, Scenario, Size

SCHEMA_VERSION = 1
TREATMENT = ("kind", "background")
"""Conditions in which the two runs of a pair are meant to differ."""
LATENCIES = ("p50", "p90", "p99", "p999")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Ratio(_Record):
    """Of one figure: in company ÷ alone."""

    figure: str
    """``throughput``; ``latency p99``, at equal load; ``score`` of the streams."""
    unit: str
    better: Literal["more", "less"]
    baseline: float
    """Geometric mean."""
    hetero: float
    ratio: float
    interval: tuple[float, float] | None
    """At ``confidence``, by Student's t on logarithms; None with one pair."""
    bootstrap: tuple[float, float] | None
    """By resampling pairs; told beside it, too narrow with few pairs."""
    confidence: float
    margin: float
    spread: float | None
    """Standard deviation of the logarithm of the ratio, from pair to pair."""
    pairs: int
    decision: Decision
    repeat_more: int | None
    words: str


class RunTold(_Record):
    """One run of the series."""

    key: str
    """Its folder, in ``runs/``."""
    kind: Literal["baseline", "hetero"]
    verdict: Literal["VALID", "INVALID"]
    started_utc: str
    metric: Metric | None
    latency_ms: Latencies
    sm_clock_mhz: float | None
    """Mean of main's GPU in main's window."""
    throttled: tuple[str, ...]
    background_samples_per_s: dict[str, float | None]
    """By slice, in main's window."""


class MainTold(_Record):
    """What was measured."""

    workload: str
    size: Size
    precision: Precision
    batch_size: int
    scenario: Scenario
    slice: str
    target_qps: float | None
    """The same in every run; of the first, where it was not given. Under Offline None: it is no load there."""
    min_duration_s: float | None


class Derating(_Record):
    """``result.json`` of ``hetero-mig derate``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["derate"] = "derate"
    verdict: Literal["VALID", "INVALID"]
    """VALID: every run is, and all were under the same conditions."""
    started_utc: str
    preset: str
    comparable_to_mlperf: bool
    main: MainTold
    background: dict[str, str]
    """Workload by slice."""
    repeats: int
    """Pairs asked for."""
    pairs: int
    """Pairs that were compared."""
    ratios: list[Ratio]
    findings: list[Finding]
    runs: list[RunTold]
    slices: list[SliceRecord]


@dataclass(frozen=True, slots=True)
class Pair:
    """One baseline, and the run in company that followed it (None where there was none)."""

    baseline: Measured
    hetero: Measured | None

    @property
    def runs(self) -> tuple[Measured, ...]:
        return (self.baseline,) if self.hetero is None else (self.baseline, self.hetero)

    @property
    def valid(self) -> bool:
        return self.hetero is not None and all(run.result.verdict == "VALID" for run in self.runs)


def alone(plan: Plan) -> Plan:
    """The same main with the same options on the same slice, and nothing on the others."""
    shared = f"{len(plan.all)} benchmarks share"
    return replace(
        plan,
        background=(),
        idle=(*plan.idle, *(one.slice for one in plan.background)),
        notes=tuple(note for note in plan.notes if not note.startswith(shared)),
    )


def rate_of(result: Result) -> float | None:
    """The rate that LoadGen loaded main with: what was asked for, or what a calibration picked; None under Offline.

    Offline's only says how many samples LoadGen makes: a faster run needs more of them to last as long.
    """
    if result.main.scenario is Scenario.OFFLINE:
        return None

    rate = result.main.settings.get("target_qps")
    return float(rate) if rate else None


def answer(pairs: Sequence[Pair], repeats: int, margin: float = MARGIN) -> Derating:
    """The derating that these pairs show. The first pair has a baseline.

    A pair with an INVALID run is left out; if any two runs differ in a condition that company does not change,
    nothing is compared.
    """
    runs = [run for pair in pairs for run in pair.runs]
    findings = [*_of_validity(pairs), *_of_conditions(runs), *_of_clocks(runs)]
    compared = [pair for pair in pairs if pair.valid]
    differing = any(finding.code == "conditions-differ" for finding in findings)
    ratios = [] if differing or not compared else list(_ratios(compared, margin))
    first = runs[0]
    company = next((run.result for run in runs if run.result.background), None)
    return Derating(
        verdict="INVALID" if any(finding.severity == "breach" for finding in findings) else "VALID",
        started_utc=first.result.started_utc,
        preset=first.result.preset,
        comparable_to_mlperf=all(run.result.comparable_to_mlperf for run in runs),
        main=_main(first),
        background={} if company is None else {one.slice: one.workload for one in company.background},
        repeats=repeats,
        pairs=len(compared) if ratios else 0,
        ratios=ratios,
        findings=[*findings, *_of_words(ratios, len(pairs))],
        runs=[_told(run) for run in runs],
        slices=first.result.slices if company is None else company.slices,
    )


# ---------------------------------------------------------------------- figures


def _ratios(pairs: Sequence[Pair], margin: float) -> Iterator[Ratio]:
    both = [(pair.baseline.result, pair.hetero.result) for pair in pairs if pair.hetero is not None]
    for name, unit, better in _figures(both[0][0]):
        values = [(_figure(before, name), _figure(after, name)) for before, after in both]
        told = [(before, after) for before, after in values if before and after]
        if len(told) == len(values):
            befores, afters = [one for one, _ in told], [other for _, other in told]
            yield _ratio(name, unit, better, befores, afters, compare(befores, afters, margin))


def _figures(result: Result) -> Iterator[tuple[str, str, Literal["more", "less"]]]:
    """What is compared under this scenario. An Offline latency is only how long the test took."""
    metric = result.main.metric
    by_rate = result.main.scenario in (Scenario.OFFLINE, Scenario.SERVER)
    if metric is not None:
        yield ("throughput", metric.unit, "more") if by_rate else ("score", metric.unit, "less")

    if result.main.scenario is not Scenario.OFFLINE:
        yield from ((f"latency {name}", "ms", "less") for name in LATENCIES)


def _figure(result: Result, name: str) -> float | None:
    if name.startswith("latency "):
        value: float | None = getattr(result.main.latency_ms, name.removeprefix("latency "))
        return value

    return None if result.main.metric is None else result.main.metric.value


def _ratio(
    name: str,
    unit: str,
    better: Literal["more", "less"],
    befores: Sequence[float],
    afters: Sequence[float],
    found: Comparison,
) -> Ratio:
    return Ratio(
        figure=name,
        unit=unit,
        better=better,
        baseline=exp(fmean(map(log, befores))),
        hetero=exp(fmean(map(log, afters))),
        words=found.words,
        **asdict(found),
    )


# ---------------------------------------------------------------------- findings


def _of_validity(pairs: Sequence[Pair]) -> Iterable[Finding]:
    for pair in pairs:
        for run in pair.runs:
            breaches = [one for one in run.result.findings if one.severity == "breach"]
            if run.result.verdict == "INVALID":
                yield Finding(
                    code="run-invalid",
                    severity="breach",
                    message=f"run {run.key} is INVALID: {'; '.join(one.message for one in breaches)}",
                    recommendation=breaches[0].recommendation if breaches else "",
                )


def _of_conditions(runs: Sequence[Measured]) -> Iterable[Finding]:
    """Runs that were not under the first one's conditions: each condition once, with the runs it is of."""
    seen: dict[Difference, list[str]] = {}
    for run in runs[1:]:
        for one in differences(runs[0], run, TREATMENT):
            seen.setdefault(one, []).append(run.key)

    for one, keys in seen.items():
        yield Finding(
            code="conditions-differ",
            severity="breach",
            message=f"{one.name} is {one.one} in {runs[0].key} and {one.other} in {', '.join(keys)}",
            recommendation="not compared: measure all runs under the same conditions",
        )


def _of_clocks(runs: Sequence[Measured]) -> Iterable[Finding]:
    """Told, and not refused: slices share their GPU's power and heat, so this may be what company costs."""
    held = {
        kind: [run.clocks for run in runs if run.result.kind == kind and run.clocks.throttled]
        for kind in ("baseline", "hetero")
    }
    if not any(held.values()):
        return

    of = {kind: sum(run.result.kind == kind for run in runs) for kind in held}
    words = sorted(set(chain.from_iterable(one.throttled for many in held.values() for one in many)))
    counted = " and ".join(f"{len(held[kind])} of {of[kind]} {kind} runs" for kind in held)
    yield Finding(
        code="clocks-throttled",
        severity="warning",
        message=f"the GPU's clocks were held down ({', '.join(words)}) in {counted}{_mean_clocks(runs)}",
        recommendation="slices share power and heat: a part of the derating may be the clocks'; a lower power draw "
        "of the others, or clocks locked for all runs, tells them apart",
    )


def _mean_clocks(runs: Sequence[Measured]) -> str:
    by_kind = {
        kind: [run.clocks.sm_mhz for run in runs if run.result.kind == kind and run.clocks.sm_mhz]
        for kind in ("baseline", "hetero")
    }
    told = [f"{fmean(mhz):.0f} MHz in {kind} runs" for kind, mhz in by_kind.items() if mhz]
    return f"; mean SM clock {', '.join(told)}" if told else ""


def _of_words(ratios: Sequence[Ratio], measured: int) -> Iterable[Finding]:
    """How to go on; ``measured`` counts the pairs that are there, those that are left out as well."""
    noisy = [one for one in ratios if one.decision == "too noisy to tell"]
    more = [one.repeat_more for one in noisy if one.repeat_more is not None]
    if more:
        yield Finding(
            code="too-noisy",
            severity="info",
            message=f"too noisy to tell: {', '.join(one.figure for one in noisy).replace('p999', 'p99.9')}",
            figure=ratios[0].pairs,
            limit=ratios[0].pairs + max(more),
            recommendation=f"the same command with --output (this folder) and --repeats {measured + max(more)} "
            f"measures {max(more)} pairs more",
        )


# ---------------------------------------------------------------------- what was measured


def _main(run: Measured) -> MainTold:
    main = run.result.main
    duration_ms = main.settings.get("min_duration_ms")
    return MainTold(
        workload=main.workload,
        size=main.size,
        precision=main.precision,
        batch_size=main.batch_size,
        scenario=main.scenario,
        slice=main.slice,
        target_qps=rate_of(run.result),
        min_duration_s=None if duration_ms is None else duration_ms / 1000,
    )


def _told(run: Measured) -> RunTold:
    rates: Mapping[str, Any] = {one.slice: one.samples_per_s_in_main_window for one in run.result.background}
    return RunTold(
        key=run.key,
        kind=run.result.kind,
        verdict=run.result.verdict,
        started_utc=run.result.started_utc,
        metric=run.result.main.metric,
        latency_ms=run.result.main.latency_ms,
        sm_clock_mhz=run.clocks.sm_mhz,
        throttled=run.clocks.throttled,
        background_samples_per_s=dict(rates),
    )
