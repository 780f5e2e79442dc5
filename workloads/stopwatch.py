"""Times the predicting of batches: until they are steady, for a while, or just enough to see that nothing changed."""

import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from time import monotonic_ns

from workloads.pipeline import SORTED_BATCHES, Pending, begin_of, by_length, depth_of, lengths_of
from workloads.protocol import Workload
from workloads.sut import Library

BATCHES_IN_TURN = 4
"""Batches' worth of samples that are loaded, and taken in turn."""
STEADY = 1.1
"""Warm when the slowest of the last three batches took at most this much longer than the fastest."""
MEASURE_S = 1.0
"""One window of measuring; windows follow each other until one is hardly faster than those before."""
GROWTH, MOST_WINDOWS = 1.03, 8
MOST_BATCHES = 1000
PER_BATCH_SIZE_S = 0.4
"""Enough for some tens of batches on a GPU: of samples of other lengths each has kernels of its own."""
LONG_NS = round(PER_BATCH_SIZE_S * 1e9)
"""A batch of so long brings a device to its full clocks by itself, and is a measurement by itself."""
WINDOWS_AGAIN = 4
"""In which batches may become as quick as they were, while a GPU raises its clocks."""
SORTED_STEP = 5
"""Sorted batches are taken in steps of so many, so that a few in a row are of all lengths; prime to their number."""


@dataclass(frozen=True, slots=True)
class BatchTime:
    """How long batches of one size took."""

    batch_size: int
    median_ns: int
    mean_ns: int
    batches: int
    fastest_ns: int = 0
    slowest_ns: int = 0

    @classmethod
    def of(cls, batch_size: int, times_ns: Sequence[int]) -> "BatchTime":
        return cls(
            batch_size,
            round(statistics.median(times_ns)),
            round(statistics.fmean(times_ns)),
            len(times_ns),
            min(times_ns),
            max(times_ns),
        )

    @property
    def samples_per_s(self) -> float:
        """Of such batches one after another."""
        return self.batch_size * 1e9 / self.mean_ns

    def agrees(self, now: "BatchTime") -> bool:
        """Whether batches take as long ``now``: on average, or, long ones of which few were timed, within what was
        seen; neither slower nor faster by more than STEADY."""
        least, most = (self.fastest_ns, self.slowest_ns) if self.is_long else (self.mean_ns, self.mean_ns)
        return least / STEADY <= now.mean_ns <= STEADY * most

    @property
    def is_long(self) -> bool:
        """Whether one batch is a measurement by itself."""
        return self.mean_ns >= LONG_NS


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
            batches = [ordered[at : at + samples] for at in range(0, len(ordered), samples)]
            self._sorted.extend(batches[SORTED_STEP * at % SORTED_BATCHES] for at in range(SORTED_BATCHES))

        return self._sorted.popleft()

    def finish(self) -> None:
        """Wait for the batches still in flight."""
        while self._flight:
            self._flight.popleft().result()

    def warm_up(self, samples: int, seconds: float, at_least: int = 2) -> list[int]:
        """Predict until the times are steady, or long, or ``seconds`` over."""
        times = [self.time(samples)]
        until_s = time.monotonic() + seconds
        while len(times) < at_least or (time.monotonic() < until_s and not _steady(times)):
            times.append(self.time(samples))

        return times

    def measure(self, samples: int, seconds: float, former: Sequence[int] = ()) -> BatchTime:
        """Time queries for so long, and a turn of them if they differ; of ``former`` times the long ones stand."""
        times = [one for one in former if one >= LONG_NS]
        until_s = time.monotonic() + seconds
        while not times or (
            len(times) < MOST_BATCHES and (time.monotonic() < until_s or _within_a_turn(times))
        ):
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

    def again(self, known: BatchTime) -> BatchTime:
        """Batches of a known size, timed for as short as tells whether they take as long as they did: a long one
        once, others until a window is not slower."""
        if known.is_long:
            return self.measure(known.batch_size, 0.0)

        for _ in range(WINDOWS_AGAIN):
            now = self.measure(known.batch_size, PER_BATCH_SIZE_S)
            if now.mean_ns <= STEADY * known.mean_ns:
                break

        return now

    def settle(self, samples: int, former: Sequence[int]) -> BatchTime:
        """Measure until it gets hardly faster; the fastest window.

        A GPU raises its clocks only under load: on an H200 the second after the warm-up was 1.8 times slower
        than the test that followed. Long batches have been load enough.
        """
        fastest = self.measure(samples, MEASURE_S, former)
        for _ in range(0 if fastest.is_long else MOST_WINDOWS - 1):
            again = self.measure(samples, MEASURE_S)
            grown = again.samples_per_s > GROWTH * fastest.samples_per_s
            fastest = max(fastest, again, key=lambda one: one.samples_per_s)
            if not grown:
                break

        return fastest


def _steady(times: Sequence[int]) -> bool:
    last = times[-3:]
    return times[-1] >= LONG_NS or (len(times) > 3 and max(last) <= STEADY * min(last))


def _within_a_turn(times: Sequence[int]) -> bool:
    """Whether further batches may be others: these differ, and not all loaded samples have had their turn."""
    return len(times) < BATCHES_IN_TURN and max(times) > STEADY * min(times)
