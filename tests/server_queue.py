"""A Server whose true capacity is known: a simulated queue with Poisson arrivals and batches of noisy service times.

Its truth is the highest rate whose long run keeps the percentile of latency under the limit. A trial is judged as
LoadGen judges one: the percentile, and early stopping's margin for how many queries there were. As with LoadGen, whose
schedule follows from a seed and the rate, the tests of one search meet the same arrivals, faster or slower.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from scheduler import search
from scheduler.search import Found, Kind, Terms, Trial, Try

LEAST_QUERIES = 2010
SIGMAS = 2.326
"""Of early stopping's 99 % confidence, one-sided; LoadGen uses the binomial distribution itself."""
PERCENTILE = 0.99
TRUTH_RUNS = 4
TRUTH_WITHIN = 1.001


@dataclass(frozen=True, slots=True)
class ServerQueue:
    """Takes what waits, up to a batch; n samples take ``a_s + b_s·n`` seconds, give or take."""

    a_s: float
    b_s: float
    batch_size: int
    limit_s: float
    noise: float = 0.05
    """Standard deviation of a batch's time, as a share of it."""

    @property
    def peak_qps(self) -> float:
        """Of full batches one after another."""
        return self.batch_size / (self.a_s + self.b_s * self.batch_size)

    def answer(
        self, rate: float, duration_s: float, schedule: int, test: int = 0, most_waiting: int = 0
    ) -> tuple[npt.NDArray[np.float64], float, bool]:
        """One test: latencies (queries,) in s, when the last one was answered, and whether the test was cut."""
        queries = max(LEAST_QUERIES, int(rate * duration_s))
        arrivals = np.cumsum(np.random.default_rng(schedule).exponential(1 / rate, queries))
        noise = np.random.default_rng((schedule, test)).normal(1, self.noise, queries).clip(0.5, 2).tolist()
        at = arrivals.tolist()
        now, first, batch, cut = 0.0, 0, 0, False
        ends: list[float] = []
        sizes: list[int] = []
        while first < queries:
            now = max(now, at[first])
            if (
                most_waiting
                and not cut
                and first + most_waiting < queries
                and at[first + most_waiting] <= now
            ):
                cut, queries = True, bisect_right(at, now, first, queries)

            upto = bisect_right(at, now, first, min(queries, first + self.batch_size))
            now += (self.a_s + self.b_s * (upto - first)) * noise[batch]
            ends.append(now)
            sizes.append(upto - first)
            first, batch = upto, batch + 1

        return np.repeat(ends, sizes) - arrivals[:queries], now, cut

    def trial(
        self,
        rate: float,
        kind: Kind,
        duration_s: float,
        schedule: int,
        test: int,
        *,
        full_s: float | None = None,
        may_be_cut: bool = True,
    ) -> tuple[Trial, float]:
        """A test as the search is told of it, and how long it took, s; ``full_s``: what a confirmation lasts."""
        bound = search.most_waiting(rate, duration_s, LEAST_QUERIES, self.limit_s, PERCENTILE)
        most = bound if may_be_cut else 0
        latencies, ended_s, cut = self.answer(rate, duration_s, schedule, test, most)
        share, tail = (float(at) / self.limit_s for at in np.quantile(latencies, [PERCENTILE, 0.999]))
        full = max(LEAST_QUERIES, rate * (full_s or duration_s))
        trial = Trial(
            rate=rate,
            kind=kind,
            valid=share <= 1 and not cut and self._stops_early(latencies),
            completed=len(latencies) / ended_s,
            latency_share=share,
            held_share=search.held_share(share, tail, PERCENTILE, full),
            cut=cut,
        )
        return trial, ended_s

    def _stops_early(self, latencies: npt.NDArray[np.float64]) -> bool:
        queries, late = len(latencies), int((latencies > self.limit_s).sum())
        expected = (1 - PERCENTILE) * queries
        return late + SIGMAS * math.sqrt(expected * PERCENTILE) <= expected


@cache
def truth(server: ServerQueue, duration_s: float) -> float:
    """The highest rate at which the percentile of long runs, on average, is under the limit."""
    low, high = 0.75 * server.peak_qps, server.peak_qps
    while high > low * TRUTH_WITHIN:
        rate = math.sqrt(low * high)
        runs = (server.answer(rate, duration_s, 10_000 + seed)[0] for seed in range(TRUTH_RUNS))
        held = np.mean([np.quantile(one, PERCENTILE) for one in runs]) <= server.limit_s
        low, high = (rate, high) if held else (low, rate)

    return low


@dataclass(frozen=True, slots=True)
class Tuned:
    """What a search came to on a simulated Server."""

    rate: float | None
    trials: list[Trial]
    took_s: float
    """Simulated: the trials and what lies between them."""


def tuned(
    server: ServerQueue, terms: Terms, seed: int, *, screening_s: float, full_s: float, between_s: float
) -> Tuned:
    """Search on a simulated Server, as `hetero-mig tune` does on a real one."""
    trials: list[Trial] = []
    took_s = 0.0
    while isinstance(step := search.next_step(terms, trials), Try):
        duration_s = full_s if step.kind == "confirmation" else screening_s
        trial, trial_s = server.trial(step.rate, step.kind, duration_s, seed, len(trials), full_s=full_s)
        trials.append(trial)
        took_s += between_s + trial_s

    assert isinstance(step, Found)
    return Tuned(step.rate, trials, took_s)


def stepped_down(
    server: ServerQueue, baseline: float, seed: int, *, step: float, full_s: float, between_s: float
) -> Tuned:
    """The published practice: full length at the baseline's rate, relaunch 2 % lower, until it is VALID."""
    trials: list[Trial] = []
    took_s, rate = 0.0, baseline
    while not trials or not trials[-1].valid:
        trial, trial_s = server.trial(rate, "confirmation", full_s, seed, len(trials), may_be_cut=False)
        trials.append(trial)
        took_s += between_s + trial_s
        rate *= 1 - step

    return Tuned(trials[-1].rate, trials, took_s)
