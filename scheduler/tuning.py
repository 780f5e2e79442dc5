"""One search of a tuning as its journal tells it: trials in, the next step or the outcome out. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from scheduler import search
from scheduler.result import BenchmarkRecord, Metric, Result
from scheduler.search import Bracket, Found, Kind, Terms, Trial, Try
from workloads.protocol import Scenario

Of = Literal["baseline", "hetero"]
CUT = "Too many outstanding queries"
"""In LoadGen's error of a test that was cut since too many queries waited."""
OF_THE_RATE = ("loadgen-invalid", "loadgen-errors")
"""Breaches that a rate too high explains; any other spoils the trial."""
TOLD_OF_MEASURED = {Scenario.OFFLINE: 0.96, Scenario.SINGLE_STREAM: 1.15, Scenario.MULTI_STREAM: 1.15}
"""The rate LoadGen is told, of the one measured. Offline: it makes 1.1 times as many samples, and is to have some more
than enough. Streams: twice as many queries, of which a slice that is a little faster must not run out."""
PERCENTILES = {0.5: "p50", 0.9: "p90", 0.95: "p95", 0.99: "p99", 0.999: "p999"}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TrialRecord(_Record):
    """One line of the journal."""

    number: int
    of: Of
    run: str
    """Its run's key: the folder is ``runs/<run>/<name>``."""
    name: str
    kind: Kind
    rate: float
    """Told to LoadGen, in queries/s (Offline: samples/s)."""
    valid: bool
    """LoadGen says so, without errors, and nothing spoiled it."""
    cut: bool
    """Ended early, since too many queries waited: INVALID, and nothing else is told by it."""
    spoiled: list[str]
    """What was wrong with the trial itself; it then says nothing of the rate."""
    reasons: list[str]
    """Why LoadGen says INVALID."""
    metric: Metric | None
    completed: float | None
    """Queries/s (Offline: samples/s)."""
    latency_ms: float | None
    """At the percentile that the limit is for; SingleStream, MultiStream: the score."""
    latency_share: float | None
    """Server: of the limit."""
    held_share: float | None = None
    """Server: what early stopping holds against the limit in a full-length test at that rate, in limits."""
    window_s: float | None
    batch_size: int
    batch_times_ns: list[tuple[int, int, int, int]]
    """As its calibration found them, or was told them."""
    elapsed_s: float
    """Of the tuning, when it was judged."""


class Outcome(_Record):
    """What one search found."""

    qps: float | None
    """The rate to tell LoadGen; None: none is proven."""
    given: bool = False
    """The user said so; nothing was searched."""
    why: str
    low: float | None = None
    """The highest rate that was VALID, in a trial of either kind."""
    high: float | None = None
    """The lowest above it that was not."""
    metric: Metric | None = None
    """LoadGen's score of the last full-length trial at that rate."""
    latency_ms: float | None = None
    screening_trials: int = 0
    full_length_trials: int = 0
    spoiled_trials: int = 0


class TuneResult(_Record):
    """``result.json`` of a tuning."""

    schema_version: int = 1
    kind: Literal["tune"] = "tune"
    ended: Literal["found", "out of time"]
    workload: str
    scenario: Scenario
    slice: str
    size: str
    precision: str
    preset: str
    comparable_to_mlperf: bool
    full_length_s: float
    screening_s: float
    confirm: int
    tolerance: float
    latency_limit_ms: float | None
    latency_percentile: float | None
    background: list[str]
    baseline: Outcome
    hetero: Outcome | None
    """None: there is no background, or the time was over before it."""
    derating: float | None
    """hetero ÷ baseline, of the rates found (Server), of the scores (Offline), of the scores' inverses (streams)."""
    elapsed_s: float
    notes: list[str]
    trials: list[TrialRecord]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How to search."""

    confirm: int
    tolerance: float
    screening_s: float
    max_time_s: float | None
    baseline_qps: float | None


def next_step(
    scenario: Scenario, asked: Asked, hint: float | None, trials: Sequence[TrialRecord]
) -> Try | Found:
    """What follows from the trials of one search.

    Args:
        hint: where it begins; None: where its first trial did, or with what a calibration picks.
    """
    terms = _terms(asked, hint)
    if scenario is Scenario.SERVER:
        return search.next_step(terms, _seen(trials))

    return search.next_sizing(terms, _seen(trials), TOLD_OF_MEASURED[scenario])


def bracket(asked: Asked, trials: Sequence[TrialRecord]) -> Bracket:
    """What the trials of one search say so far."""
    return search.bracket(_terms(asked, None), _seen(trials))


def outcome(scenario: Scenario, asked: Asked, trials: Sequence[TrialRecord]) -> Outcome:
    """What one search has found, whether it is over or not."""
    step = next_step(scenario, asked, None, trials)
    qps = step.rate if isinstance(step, Found) else search.proven(_terms(asked, None), _seen(trials))
    at_it = [one for one in trials if one.rate == qps and one.kind == "confirmation" and one.valid]
    counted = [one for one in trials if not one.spoiled]
    return Outcome(
        qps=qps,
        why=step.why if isinstance(step, Found) else "the time was over before the search was",
        low=step.bracket.low,
        high=step.bracket.high,
        metric=at_it[-1].metric if at_it else None,
        latency_ms=at_it[-1].latency_ms if at_it else None,
        screening_trials=sum(one.kind == "screening" for one in counted),
        full_length_trials=sum(one.kind == "confirmation" for one in counted),
        spoiled_trials=len(trials) - len(counted),
    )


def derating(scenario: Scenario, baseline: Outcome, hetero: Outcome) -> float | None:
    """hetero ÷ baseline: of the rates found, of Offline's scores, of the inverses of the streams' latencies."""
    if scenario is Scenario.SERVER:
        above, below = hetero.qps, baseline.qps
    else:
        scores = [None if one.metric is None else one.metric.value for one in (hetero, baseline)]
        above, below = scores if scenario is Scenario.OFFLINE else reversed(scores)

    return round(above / below, 4) if above and below else None


def judged(
    result: Result,
    record: BenchmarkRecord,
    calibrated: Mapping[str, Any],
    *,
    number: int,
    of: Of,
    run_key: str,
    kind: Kind,
    full_s: float,
    elapsed_s: float,
) -> TrialRecord:
    """A trial's line in the journal, from its verdict and what its worker's calibration left.

    Args:
        full_s: what a full-length trial lasts.
    """
    main, settings = result.main, record.settings
    breaches = [finding for finding in result.findings if finding.severity == "breach"]
    reasons = [finding.message for finding in breaches if finding.code in OF_THE_RATE]
    percentile = PERCENTILES.get(settings["target_latency_percentile"] or 0)
    latency_ms = getattr(main.latency_ms, percentile) if percentile else None
    completed = None if main.metric is None else main.metric.value
    if main.scenario in (Scenario.SINGLE_STREAM, Scenario.MULTI_STREAM):
        latency_ms, mean_ms = completed, main.latency_ms.mean
        completed = 1e3 / mean_ms if mean_ms else None

    rate = settings["target_qps"] or calibrated.get("target_qps") or 0.0
    limit_ms = (settings["server_target_latency_ns"] or 0) / 1e6
    share = latency_ms / limit_ms if latency_ms and limit_ms else None
    held = None
    if share and main.latency_ms.p999:
        queries = max(rate * full_s, settings["min_query_count"])
        tail = main.latency_ms.p999 / limit_ms
        held = search.held_share(share, tail, settings["target_latency_percentile"], queries)

    return TrialRecord(
        number=number,
        of=of,
        run=run_key,
        name=record.name,
        kind=kind,
        rate=rate,
        valid=result.verdict == "VALID",
        cut=bool(settings["server_max_async_queries"]) and any(CUT in reason for reason in reasons),
        spoiled=[finding.message for finding in breaches if finding.code not in OF_THE_RATE],
        reasons=reasons,
        metric=main.metric,
        completed=completed,
        latency_ms=latency_ms,
        latency_share=share,
        held_share=held,
        window_s=result.timing.main_s,
        batch_size=main.batch_size,
        batch_times_ns=[
            (one["batch_size"], one["median_ns"], one["mean_ns"], one["batches"])
            for one in calibrated.get("batch_times", [])
            if main.scenario is Scenario.SERVER
        ],
        elapsed_s=elapsed_s,
    )


def _terms(asked: Asked, hint: float | None) -> Terms:
    return Terms(hint=hint or 0.0, tolerance=asked.tolerance, confirm=asked.confirm)


def _seen(trials: Sequence[TrialRecord]) -> list[Trial]:
    """As the search sees them; those that were spoiled it does not."""
    return [
        Trial(
            rate=one.rate,
            kind=one.kind,
            valid=one.valid,
            completed=one.completed,
            latency_share=one.latency_share,
            held_share=one.held_share,
            cut=one.cut,
        )
        for one in trials
        if not one.spoiled
    ]
