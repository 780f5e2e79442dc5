"""Picks what LoadGen must be told before a test: the rate a slice answers at, found on the slice itself.

Offline: LoadGen makes 1.1 × expected rate × min_duration samples beforehand, and a slice that is through them
early has an INVALID test; so 1.25 × the measured rate, since too high a rate only lengthens the test.
SingleStream, MultiStream: it makes 2 × min_duration / expected latency queries, and running out of them is an
error; so 0.75 × the measured median latency. Server: the rate the measured batch times allow, proved in short
LoadGen tests and lowered until the latency limit is held with room, or raised while it is.
"""

import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from time import monotonic_ns
from typing import Any

from workloads.pipeline import SORTED_BATCHES, Pending, begin_of, by_length, depth_of, lengths_of
from workloads.protocol import LoadgenSettings, Scenario, Workload
from workloads.sut import Library

WARM_UP_S = 2.0
"""The longest warm-up after the first batch."""
STEADY = 1.1
"""Warm when the slowest of the last three batches took at most this much longer than the fastest."""
MEASURE_S = 1.0
"""One window of measuring; windows follow each other until one is hardly faster than those before."""
GROWTH, MOST_WINDOWS = 1.03, 8
MOST_BATCHES = 1000
PER_BATCH_SIZE_S = 0.4
"""Enough for some tens of batches on a GPU: of samples of other lengths each has kernels of its own."""
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
class BatchTime:
    """How long batches of one size took."""

    batch_size: int
    median_ns: int
    mean_ns: int
    batches: int

    @classmethod
    def of(cls, batch_size: int, times_ns: Sequence[int]) -> "BatchTime":
        return cls(
            batch_size, round(statistics.median(times_ns)), round(statistics.fmean(times_ns)), len(times_ns)
        )

    @property
    def samples_per_s(self) -> float:
        """Of such batches one after another."""
        return self.batch_size * 1e9 / self.mean_ns


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
    took_s: float
    notes: tuple[str, ...]


RunTrial = Callable[[LoadgenSettings, int, int], tuple[int, float, Mapping[str, Any]]]
"""(settings, batch size, most queries outstanding or 0) → queries answered (Offline: samples), how many a
second, and the detail log, of one LoadGen test."""


Timed = tuple[list[int], tuple[BatchTime, ...]]
"""Times of the warm-up's batches in ns, and the batch times, those of the largest batch last."""
Compute = Callable[[Callable[[], Timed]], Timed]


class Stopwatch:
    """Times the predicting of loaded samples, taken in turn.

    Args:
        most_at_once: what a query of more samples is cut into.
        in_flight: as Offline has them: batches follow each other as closely as the workload allows, and are of
            samples of like length; a batch's time is then that from the end of the one before it.
    """

    def __init__(
        self, workload: Workload, library: Library, most_at_once: int, *, in_flight: bool = False
    ) -> None:
        self._workload = workload
        self._library = library
        self._most_at_once = most_at_once
        self._begin = begin_of(workload) if in_flight else None
        self._depth = depth_of(workload)
        self._flight: deque[Pending] = deque()
        self._lengths = lengths_of(workload) if in_flight else None
        self._sorted: deque[Sequence[int]] = deque()

    def time(self, samples: int) -> int:
        """Nanoseconds for one query of this many samples."""
        begin_ns = monotonic_ns()
        if self._begin is not None:
            while len(self._flight) < self._depth:
                self._flight.append(self._begin(self._next(samples)))

            self._flight.popleft().result()
            return monotonic_ns() - begin_ns

        indices = self._next(samples)
        for start in range(0, samples, self._most_at_once):
            self._workload.predict(indices[start : start + self._most_at_once])

        return monotonic_ns() - begin_ns

    def _next(self, samples: int) -> Sequence[int]:
        if self._lengths is None:
            return self._library.take(samples)

        if not self._sorted:
            taken = self._library.take(SORTED_BATCHES * samples)
            ordered = [taken[place] for place in by_length(taken, self._lengths)]
            self._sorted.extend(ordered[at : at + samples] for at in range(0, len(ordered), samples))

        return self._sorted.popleft()

    def finish(self) -> None:
        """Wait for the batches still in flight."""
        while self._flight:
            self._flight.popleft().result()

    def warm_up(self, samples: int, seconds: float) -> list[int]:
        """Predict until the times are steady or ``seconds`` over, and at least twice."""
        times = [self.time(samples)]
        until_s = time.monotonic() + seconds
        while len(times) < 2 or (time.monotonic() < until_s and not _steady(times)):
            times.append(self.time(samples))

        return times

    def measure(self, samples: int, seconds: float, former: Sequence[int] = ()) -> BatchTime:
        """Time queries for so long; of ``former`` times those that alone took longer stand."""
        times = [one for one in former if one > seconds * 1e9]
        until_s = time.monotonic() + seconds
        while not times or (time.monotonic() < until_s and len(times) < MOST_BATCHES):
            times.append(self.time(samples))

        return BatchTime.of(samples, times)

    def reach(self, known: Sequence[BatchTime]) -> None:
        """Predict batches of each known size, those of the largest until they are as quick as they were."""
        for one in known[:-1]:
            self.warm_up(one.batch_size, 0.0)

        whole = known[-1]
        for _ in range(round(MOST_WINDOWS * MEASURE_S / PER_BATCH_SIZE_S)):
            if self.measure(whole.batch_size, PER_BATCH_SIZE_S).mean_ns <= STEADY * whole.mean_ns:
                break

    def settle(self, samples: int, former: Sequence[int]) -> BatchTime:
        """Measure until it gets hardly faster; the fastest window.

        A GPU raises its clocks only under load: on an H200 the second after the warm-up was 1.8 times slower
        than the test that followed.
        """
        fastest = self.measure(samples, MEASURE_S, former)
        for _ in range(MOST_WINDOWS - 1):
            again = self.measure(samples, MEASURE_S)
            grown = again.samples_per_s > GROWTH * fastest.samples_per_s
            fastest = max(fastest, again, key=lambda one: one.samples_per_s)
            if not grown:
                break

        return fastest


def calibrate(
    workload: Workload,
    library: Library,
    settings: LoadgenSettings,
    batch_size: int,
    run_trial: RunTrial,
    compute: Compute | None = None,
) -> Calibration:
    """Warm the slice up, then measure what ``settings.target_qps`` leaves open.

    Samples must be loaded. Afterwards the same or others are, as ``run_trial`` left it. Batches are timed by
    way of ``compute`` (None: on this thread).

    Raises:
        ValueError: a Server test without a latency limit.
    """
    begin_s = time.monotonic()
    at_once = _samples_at_once(settings, batch_size)
    watch = Stopwatch(workload, library, batch_size, in_flight=settings.scenario is Scenario.OFFLINE)
    warm_up, batch_times = (compute or _here)(lambda: _timed(watch, settings, at_once))
    whole = batch_times[-1]
    trials: tuple[Trial, ...] = ()
    notes: list[str] = []
    chosen, qps = batch_size, settings.target_qps
    if settings.scenario is Scenario.SERVER:
        limit_ns = _limit_ns(settings)
        best = best_batch(batch_times, limit_ns)
        chosen = best.batch_size
        if qps is None:
            trials = _prove(best, settings, run_trial)
            qps = proven(trials).asked_qps
            notes = _what_it_says(proven(trials), limit_ns)
    elif qps is None:
        trials = _fast_trials(whole, settings, batch_size, run_trial)
        qps = _expected_qps(whole, trials, settings.scenario)

    return Calibration(
        target_qps=qps,
        given=settings.target_qps is not None,
        batch_size=chosen,
        first_batch_ns=warm_up[0],
        warm_up_batches=len(warm_up),
        batch_times=batch_times,
        trials=trials,
        took_s=round(time.monotonic() - begin_s, 3),
        notes=tuple(notes),
    )


def _here(job: Callable[[], Timed]) -> Timed:
    return job()


def _timed(watch: Stopwatch, settings: LoadgenSettings, at_once: int) -> Timed:
    warm_up = watch.warm_up(at_once, WARM_UP_S)
    if settings.batch_times_ns:
        known = tuple(BatchTime(*one) for one in settings.batch_times_ns)
        watch.reach(known)
        watch.finish()
        return warm_up, known

    whole = watch.settle(at_once, warm_up[1:])
    watch.finish()
    if settings.scenario is not Scenario.SERVER:
        return warm_up, (whole,)

    return warm_up, _by_batch_size(watch, whole, _limit_ns(settings))


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


def _steady(times: Sequence[int]) -> bool:
    last = times[-3:]
    return len(times) > 3 and max(last) <= STEADY * min(last)


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


def _prove(best: BatchTime, settings: LoadgenSettings, run_trial: RunTrial) -> tuple[Trial, ...]:
    """Server trials at falling rates, until one holds the limit; if the first does, at rising ones, as batches in
    flight together answer more than the batch times allow."""
    trials: list[Trial] = []
    qps = FIRST_SHARE * 1e9 / (1e9 / best.samples_per_s + SERVER_QUERY_NS)
    while len(trials) < MOST_TRIALS and not (trials and trials[-1].held):
        trials.append(_trial(best, settings, run_trial, qps))
        qps *= NEXT_SHARE

    while len(trials) <= MOST_RISES and all(one.held for one in trials):
        trials.append(_trial(best, settings, run_trial, RISE * trials[-1].asked_qps))

    return tuple(trials)


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
        f"no rate tried holds the latency limit of {limit_ns / 1e6:g} ms with room: at {last.asked_qps:.3g} "
        f"queries/s, the lowest, the latency is {last.latency_ns / 1e6:.3g} ms; the test runs at that rate"
    ]
