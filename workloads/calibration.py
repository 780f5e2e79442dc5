"""Picks what LoadGen must be told before a test: the rate a slice answers at, found on the slice itself.

Offline: LoadGen makes 1.1 × expected rate × min_duration samples beforehand, and a slice that is through them
early has an INVALID test; so 1.25 × the measured rate, since too high a rate only lengthens the test.
SingleStream, MultiStream: it makes 2 × min_duration / expected latency queries, and running out of them is an
error; so 0.75 × the measured median latency. Server: the rate the measured batch times allow, proved in short
LoadGen tests: lowered until the latency limit is held with room, or raised while it is, and at last between the two.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from workloads.kept_times import Earlier
from workloads.protocol import LoadgenSettings, Scenario, Workload
from workloads.stopwatch import PER_BATCH_SIZE_S, BatchTime, Stopwatch
from workloads.sut import Library

WARM_UP_S = 2.0
"""The longest warm-up after the first batch."""
OFFLINE_MARGIN = 1.25
STREAM_MARGIN = 0.75
HARNESS_COUNTS_NS = 100_000
"""A query (Offline: a sample) answered quicker than this is timed in a LoadGen test instead, since LoadGen's
and this harness's own 1 to 5 µs are then no longer nothing beside it."""
FAST_TRIALS, FAST_TRIAL_MS, FAST_TRIAL_SAMPLES, FASTEST_QUERY_NS = 3, 200, 200_000, 2_000
SERVER_QUERY_NS = 5_000
"""This harness's own time for a Server query, handed from thread to thread."""
BATCH_SHARE = 0.4
"""Of the latency limit that one Server batch may take: a query that comes as a batch begins waits for two."""
SAME = 1.25
"""Batch times that differ by less count as the same."""
FIRST_SHARE, NEXT_SHARE = 0.75, 0.7
"""The first rate tried, of what the batch times allow; the next, of the one before."""
RISE, MOST_RISES = 1.13, 5
"""A first rate that holds is followed by higher ones, each by so much, as long as they hold."""
CLOSE, MOST_HALVINGS = 1.08, 2
"""Rates nearer to each other than this have none between them tried; and so many are at most."""
ROOM = 0.7
"""Of the latency limit that a trial's percentile may take: the real test is longer and meets more."""
FEW_QUERIES = 100
MOST_TRIALS = 6
TRIAL_MS, LONGEST_TRIAL_MS = 1500, 10_000
LIMITS_PER_TRIAL, QUERIES_PER_TRIAL = 10, 50
"""A trial lasts many latency limits, or a queue that slowly grows would not be seen to break the limit."""
HOPELESS_LIMITS, HOPELESS_QUERIES = 4, 100
"""A trial is cut short when so many latency limits' worth of queries, and so many at least, wait."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One short LoadGen test."""

    asked_qps: float
    seen_qps: float
    """Queries (Offline: samples) completed, from the first issue to the last completion."""
    queries: int
    latency_ns: int | None
    """Server: at the percentile that the limit is for."""
    errors: int
    held: bool
    """Server: the limit, with room."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, and what was picked by it."""

    target_qps: float
    """LoadGen's expected or target rate, in queries (Offline: samples)."""
    given: bool
    """The user gave ``target_qps``; only the rest was measured."""
    batch_size: int
    """The most samples predicted at once: what was asked for, or less under Server's latency limit."""
    first_batch_ns: int
    warm_up_batches: int
    batch_times: tuple[BatchTime, ...]
    trials: tuple[Trial, ...]
    earlier_utc: str | None
    """Of the calibration that the batch times are kept from; None: they were measured now, or given."""
    took_s: float
    notes: tuple[str, ...]


RunTrial = Callable[[LoadgenSettings, int, int], tuple[int, float, Mapping[str, Any]]]
"""(settings, batch size, most queries outstanding or 0) → queries answered (Offline: samples), how many a
second, and the detail log, of one LoadGen test."""


class Timed(NamedTuple):
    """What was timed."""

    warm_up: list[int]
    """Its batches' times in ns."""
    batch_times: tuple[BatchTime, ...]
    """Those of the largest batch last."""
    again: BatchTime | None = None
    """What those of an earlier calibration were held against."""
    confirmed: bool = False
    """They are those of the earlier calibration."""


Compute = Callable[[Callable[[], Timed]], Timed]


def calibrate(
    workload: Workload,
    library: Library,
    settings: LoadgenSettings,
    batch_size: int,
    run_trial: RunTrial,
    compute: Compute | None = None,
    earlier: Earlier | None = None,
) -> Calibration:
    """Warm the slice up, then measure what ``settings.target_qps`` leaves open.

    Samples must be loaded. Afterwards the same or others are, as ``run_trial`` left it. Batches are timed by
    way of ``compute`` (None: on this thread). What an ``earlier`` calibration found is taken as found where a short
    measurement agrees with it; of Server, its rate is the first that is tried.

    Raises:
        ValueError: a Server test without a latency limit.
    """
    begin_s = time.monotonic()
    at_once = _samples_at_once(settings, batch_size)
    watch = Stopwatch(workload, library, batch_size, in_flight=settings.scenario is Scenario.OFFLINE)
    timed = (compute or _here)(lambda: _timed(watch, settings, at_once, earlier))
    known = earlier if timed.confirmed else None
    trials: tuple[Trial, ...] = ()
    notes = [] if earlier is None or timed.again is None else [_how_it_compares(earlier, timed)]
    chosen, qps = batch_size, settings.target_qps
    if settings.scenario is Scenario.SERVER:
        limit_ns = _limit_ns(settings)
        best = best_batch(timed.batch_times, limit_ns)
        chosen = best.batch_size
        if qps is None:
            trials = _prove(best, settings, run_trial, None if known is None else known.target_qps)
            qps = proven(trials).asked_qps
            notes += _what_it_says(proven(trials), limit_ns)
    elif qps is None and known is not None and known.target_qps is not None:
        qps = known.target_qps
    elif qps is None:
        whole = timed.batch_times[-1]
        trials = _fast_trials(whole, settings, batch_size, run_trial)
        qps = _expected_qps(whole, trials, settings.scenario)

    return Calibration(
        target_qps=qps,
        given=settings.target_qps is not None,
        batch_size=chosen,
        first_batch_ns=timed.warm_up[0],
        warm_up_batches=len(timed.warm_up),
        batch_times=timed.batch_times,
        trials=trials,
        earlier_utc=None if known is None else known.measured_utc,
        took_s=round(time.monotonic() - begin_s, 3),
        notes=tuple(notes),
    )


def way(settings: LoadgenSettings, batch_size: int) -> str:
    """What batch times depend on beside the engine, in words."""
    words = f"{settings.scenario}, {_samples_at_once(settings, batch_size)} at once"
    if settings.scenario is Scenario.SERVER:
        words += f", within {_limit_ns(settings) / 1e6:g} ms at {settings.target_latency_percentile}"
        if settings.use_token_latencies:
            words += f", {(settings.server_tpot_latency_ns or 0) / 1e6:g} ms a token"

    return words


def told(found: Calibration, scenario: Scenario) -> list[str]:
    """Where the rate comes from, as a note; none where it was given."""
    if found.given:
        return []

    rate = f"target_qps {digits(found.target_qps)}"
    if found.earlier_utc is not None and scenario is not Scenario.SERVER:
        return [
            f"{rate} is that of the calibration of {found.earlier_utc}, confirmed in {found.took_s:.1f} s"
        ]

    held = scenario is Scenario.SERVER and any(one.held for one in found.trials)
    highest = ", a rate it can hold, not the highest" if held else ""
    return [f"{rate} was picked by a calibration of {found.took_s:.1f} s on the slice{highest}"]


def digits(rate: float) -> str:
    """A rate as people write it: whole from a thousand on, else of four digits."""
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.4g}"


def has_new(found: Calibration, earlier: Earlier | None) -> bool:
    """Whether it found anything that the earlier one had not. A lower rate at the same batch times is not: whoever was
    in its way may be gone the next time."""
    if earlier is None or found.earlier_utc is None:
        return True

    return not found.given and found.target_qps > (earlier.target_qps or 0.0)


def _here(job: Callable[[], Timed]) -> Timed:
    return job()


def _timed(watch: Stopwatch, settings: LoadgenSettings, at_once: int, earlier: Earlier | None) -> Timed:
    if settings.batch_times_ns:
        warm_up = watch.warm_up(at_once, WARM_UP_S)
        known = tuple(BatchTime(*one) for one in settings.batch_times_ns)
        watch.reach(known)
        watch.finish()
        return Timed(warm_up, known)

    again, warm_up = None, list[int]()
    if earlier is not None and earlier.batch_times[-1].batch_size == at_once:
        *smaller, whole = earlier.batch_times
        warm_up = watch.warm_up(at_once, 0.0, at_least=1 if whole.is_long else 2)
        again = watch.again(whole)
        if whole.agrees(again):
            for one in smaller:
                watch.warm_up(one.batch_size, 0.0)  # each size has its own graph to be captured

            watch.finish()
            return Timed(warm_up, earlier.batch_times, again, confirmed=True)

    warm_up += watch.warm_up(at_once, WARM_UP_S)
    whole = watch.settle(at_once, warm_up[1:])
    watch.finish()
    if settings.scenario is not Scenario.SERVER:
        return Timed(warm_up, (whole,), again)

    return Timed(warm_up, _by_batch_size(watch, whole, _limit_ns(settings)), again)


def _how_it_compares(earlier: Earlier, timed: Timed) -> str:
    now, former = timed.again, earlier.batch_times[-1]
    assert now is not None, "it was held against something"
    kept = f"batch times kept with the engine, of {earlier.measured_utc},"
    if timed.confirmed:
        return f"{kept} are confirmed by {now.batches} batch{'es' if now.batches > 1 else ''} on this slice"

    return (
        f"{kept} do not hold here: {former.batch_size} samples take {now.mean_ns / 1e6:.3g} ms, not "
        f"{former.mean_ns / 1e6:.3g}; calibrated anew"
    )


def worth_filling(batch_times: Sequence[BatchTime]) -> frozenset[int]:
    """The batch sizes that take hardly longer than the size below them."""
    by_size = sorted(batch_times, key=lambda one: one.batch_size)
    return frozenset(
        one.batch_size for below, one in pairwise(by_size) if one.median_ns <= SAME * below.median_ns
    )


def best_batch(batch_times: Sequence[BatchTime], limit_ns: int) -> BatchTime:
    """The batch size of highest throughput that leaves room under the limit, or is about as quick as any."""
    most_ns = _longest_batch_ns(batch_times, limit_ns)
    fitting = [one for one in batch_times if one.median_ns <= most_ns]
    return max(fitting, key=lambda one: one.samples_per_s)


def _longest_batch_ns(batch_times: Sequence[BatchTime], limit_ns: int) -> float:
    """The share of the limit; or, where no batch is that quick, little more than the quickest: a batch of 64
    may take as long as one of 1, where a GPU waits for its host."""
    return max(BATCH_SHARE * limit_ns, SAME * min(one.median_ns for one in batch_times))


def _samples_at_once(settings: LoadgenSettings, batch_size: int) -> int:
    if settings.scenario is Scenario.SINGLE_STREAM:
        return 1

    return (
        settings.multi_stream_samples_per_query if settings.scenario is Scenario.MULTI_STREAM else batch_size
    )


def _limit_ns(settings: LoadgenSettings) -> int:
    limit_ns = settings.first_limit_ns
    if limit_ns is None:
        raise ValueError("a Server test needs server_target_latency_ns")

    return limit_ns


def _expected_qps(measured: BatchTime, trials: Sequence[Trial], scenario: Scenario) -> float:
    fastest = max((trial.seen_qps for trial in trials), default=0.0)
    if scenario is Scenario.OFFLINE:
        return OFFLINE_MARGIN * (fastest or measured.samples_per_s)

    return (fastest or 1e9 / measured.median_ns) / STREAM_MARGIN


def _fast_trials(
    measured: BatchTime, settings: LoadgenSettings, batch_size: int, run_trial: RunTrial
) -> tuple[Trial, ...]:
    offline = settings.scenario is Scenario.OFFLINE
    if (1e9 / measured.samples_per_s if offline else measured.median_ns) > HARNESS_COUNTS_NS:
        return ()

    enough = min(FAST_TRIAL_MS / 1e3 * measured.samples_per_s, FAST_TRIAL_SAMPLES)
    asked_qps = 1.0 if offline else 1e9 / max(measured.median_ns, FASTEST_QUERY_NS)
    asked = replace(
        settings,
        min_duration_ms=1 if offline else FAST_TRIAL_MS,
        min_query_count=max(1, round(enough)) if offline else 1,
        target_qps=asked_qps,
    )
    trials: list[Trial] = []
    while len(trials) < FAST_TRIALS:  # so short that another process may have been in the way of one
        queries, seen_qps, log = run_trial(asked, batch_size, 0)
        trials.append(Trial(asked_qps, seen_qps, queries, None, int(log["num_errors"]), held=True))

    return tuple(trials)


def _by_batch_size(watch: Stopwatch, whole: BatchTime, limit_ns: int) -> tuple[BatchTime, ...]:
    """Batches of 1, 2, 4, … samples up to ``whole``, as far as the limit makes sense of them."""
    times: list[BatchTime] = []
    size = 1
    while size < whole.batch_size:
        watch.warm_up(size, 0.0)  # the first two of a size may choose its kernels and capture its graph
        times.append(watch.measure(size, PER_BATCH_SIZE_S))
        if times[-1].median_ns > max(limit_ns, SAME * whole.median_ns):
            break

        size *= 2

    return (*times, whole)


def _prove(
    best: BatchTime, settings: LoadgenSettings, run_trial: RunTrial, proven_qps: float | None
) -> tuple[Trial, ...]:
    """Server trials at falling rates, until one holds the limit; if the first does, at rising ones, as batches in
    flight together answer more than the batch times allow; then between the highest that held and the next. A rate
    that was proven before is the first; where it holds and the next does not, nothing between is tried."""
    trials: list[Trial] = []
    qps = proven_qps or FIRST_SHARE * 1e9 / (1e9 / best.samples_per_s + SERVER_QUERY_NS)
    while len(trials) < MOST_TRIALS and not (trials and trials[-1].held):
        trials.append(_trial(best, settings, run_trial, qps))
        qps *= NEXT_SHARE

    while len(trials) <= MOST_RISES and all(one.held for one in trials):
        trials.append(_trial(best, settings, run_trial, RISE * trials[-1].asked_qps))

    as_before = proven_qps is not None and [one.held for one in trials] == [True, False]
    if not as_before:
        for _ in range(MOST_HALVINGS):
            middle = _between(trials)
            if middle is not None:
                trials.append(_trial(best, settings, run_trial, middle))

    return tuple(trials)


def _between(trials: Sequence[Trial]) -> float | None:
    """The middle between the highest rate that held and the lowest above it that did not; None where they are close."""
    held = max((one.asked_qps for one in trials if one.held), default=math.inf)
    broke = min((one.asked_qps for one in trials if one.asked_qps > held), default=0.0)
    return math.sqrt(held * broke) if broke > CLOSE * held else None


def _trial(best: BatchTime, settings: LoadgenSettings, run_trial: RunTrial, qps: float) -> Trial:
    limit_ns = _limit_ns(settings)
    share = f"{100 * (settings.target_latency_percentile or 0.99):.2f}_percentile"
    percentile = f"result_{'first_token_' if settings.use_token_latencies else ''}{share}_latency_ns"
    wanted_ms = max(LIMITS_PER_TRIAL * limit_ns / 1e6, QUERIES_PER_TRIAL / qps * 1e3, TRIAL_MS)
    duration_ms = round(min(wanted_ms, LONGEST_TRIAL_MS))
    outstanding = max(HOPELESS_QUERIES, round(HOPELESS_LIMITS * qps * limit_ns / 1e9))
    asked = replace(settings, min_duration_ms=duration_ms, min_query_count=1, target_qps=qps)
    queries, seen_qps, log = run_trial(asked, best.batch_size, outstanding)
    latency_ns, errors = int(log[percentile]), int(log["num_errors"])
    room = ROOM if queries >= FEW_QUERIES else 1.0  # of few, the percentile is the slowest of all
    held = latency_ns <= room * limit_ns and not errors
    if settings.use_token_latencies and settings.server_tpot_latency_ns is not None:
        per_token_ns = int(log[f"result_time_per_output_token_{share}_ns"])
        held = held and per_token_ns <= room * settings.server_tpot_latency_ns

    return Trial(qps, seen_qps, queries, latency_ns, errors, held=held)


def proven(trials: Sequence[Trial]) -> Trial:
    """The highest rate that held the limit; if none did, the lowest."""
    held = [one for one in trials if one.held]
    return max(held, key=lambda one: one.asked_qps) if held else min(trials, key=lambda one: one.asked_qps)


def _what_it_says(last: Trial, limit_ns: int) -> list[str]:
    if last.held or last.latency_ns is None:
        return []

    return [
        f"no rate tried holds the latency limit of {limit_ns / 1e6:g} ms with room: at {digits(last.asked_qps)} "
        f"queries/s, the lowest, the latency is {digits(last.latency_ns / 1e6)} ms; the test runs at that rate"
    ]
