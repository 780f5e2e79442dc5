"""When a warm-up is over: found in the times of its batches, not guessed. Pure.

The rule is that of Triton's perf_analyzer (inference_profiler.cc: ``stability_window`` 3, ``--stability-percentage``
10): three windows one after another in which the slowest is at most 10 % slower than the fastest. There a window is
seconds long and holds requests; here it is as short as can be told apart from one slow batch.
"""

WINDOWS = 3
WITHIN = 0.10
WINDOW_S = 0.1
WINDOW_BATCHES = 3
"""A window is closed once it has both."""


class WarmUp:
    """Takes batch times as they come, and says when they are steady."""

    def __init__(self) -> None:
        self.batches = 0
        self._means: list[float] = []
        self._time_s = 0.0
        self._count = 0

    def took(self, batch_s: float) -> bool:
        """One more batch, which took so long; whether the batches are steady now."""
        self.batches += 1
        self._time_s += batch_s
        self._count += 1
        if self._time_s >= WINDOW_S and self._count >= WINDOW_BATCHES:
            self._means.append(self._time_s / self._count)
            self._time_s, self._count = 0.0, 0

        return self.steady

    @property
    def steady(self) -> bool:
        """Whether the last windows that are closed agree."""
        last = self._means[-WINDOWS:]
        return len(last) == WINDOWS and max(last) <= (1 + WITHIN) * min(last)
