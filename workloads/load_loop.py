"""Requests asked of a workload in a closed or an open loop, each timed: what ``hetero-mig profile`` measures.

A request is one batch. One model answers them, in the order they came; where the workload is pipelined (pipeline.py),
up to its ``depth`` are in flight at once. Imports neither torch (but asks it, where the workload has loaded it) nor
LoadGen, which cannot be told when to stop.

``latencies.npy``: int64 [requests, 3], nanoseconds of ``time.monotonic_ns()``: when the request came (in an open loop:
was to come), when its batch began, when its outputs were on the host. The last two are 0 of a request that was not
answered before the measurement was given up.
"""

import resource
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from time import monotonic_ns
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import psutil

from workloads.pipeline import begin_of, depth_of
from workloads.protocol import Load, Workload
from workloads.sut import Library, Watcher

if TYPE_CHECKING:
    from workloads.protocol import Outputs

LATENCIES_FILE = "latencies.npy"
BATCHES_OF_SAMPLES = 4
"""Batches' worth of samples that are loaded, and taken in turn."""
SPIN_NS = 200_000
"""Before a request is to come the loop waits awake: sleep() is that late."""
LOOK_EVERY_S = 50e-6
"""How often it is looked whether the batch in flight is done, while another may come beside it."""
GIVE_UP_AFTER = 2.0
"""Of the time that requests come in an open loop: one that cannot keep up is given up then."""


class Settling(Protocol):
    """Says when batch times have become steady."""

    batches: int

    def took(self, batch_s: float) -> bool:
        """One more batch; whether they are steady now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profiled:
    """What ran. The requests themselves are in ``latencies.npy``."""

    begin_ns: int
    """The measured window's: the warm-up is over."""
    end_ns: int
    """Last completion, in an open loop not before the time that requests come in is over; of one given up, when that
    was."""
    warm_up_s: float
    warm_up_batches: int
    steady: bool
    """False: the warm-up was as long as it may be, and batch times still differed."""
    answered: int
    unanswered: int
    batch_size: int
    memory: dict[str, float]
    """MiB: host_memory, host_memory_peak; of CUDA torch_allocated_peak, torch_reserved_peak, device_memory_used."""


class _Done:
    """A batch computed at once."""

    def __init__(self, outputs: "Outputs") -> None:
        self._outputs = outputs

    def done(self) -> bool:
        return True

    def result(self) -> "Outputs":
        return self._outputs


class _Line:
    """The batches in flight, oldest first, each with when its request came and when it began."""

    def __init__(self, workload: Workload, batches: Iterator[Sequence[int]], watcher: Watcher) -> None:
        self.depth = depth_of(workload)
        self._begin = begin_of(workload) or (lambda indices: _Done(workload.predict(indices)))
        self._batches = batches
        self._watcher = watcher
        self._flight: deque[tuple[int, int, int, Any]] = deque()
        self._ended_ns = 0

    def __len__(self) -> int:
        return len(self._flight)

    def start(self, came_ns: int) -> None:
        """Begin the batch of a request that came then."""
        indices = next(self._batches)
        begin_ns = monotonic_ns()
        self._watcher.began(begin_ns)
        self._flight.append((came_ns, begin_ns, len(indices), self._begin(indices)))

    def oldest_is_done(self) -> bool:
        """Whether ``finish`` would return at once."""
        return bool(self._flight[0][3].done())

    def finish(self, *, filler: bool = False) -> tuple[int, int, int]:
        """Wait for the oldest batch: when its request came, when it began, when it was done (ns)."""
        came_ns, begin_ns, samples, pending = self._flight.popleft()
        pending.result()
        end_ns = monotonic_ns()
        # Batches in flight together share the device: their times must not be counted twice.
        self._watcher.completed(max(begin_ns, self._ended_ns), end_ns, samples, filler)
        self._ended_ns = end_ns
        return came_ns, begin_ns, end_ns


def limit_memory(mib: int) -> None:
    """From here on, what this process may allocate beside what it has already (the forkserver's imports)."""
    has = psutil.Process().memory_info().data  # the kernel's VmData, which is what the limit is of
    limit = has + mib * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def measure(
    workload: Workload,
    load: Load,
    batch_size: int,
    folder: Path,
    watcher: Watcher,
    *,
    settling: Settling,
    arrivals: Iterator[float],
    on_warm: Callable[[int], None],
    wait_to_begin: Callable[[], bool],
) -> Profiled:
    """Warm up until batch times are steady, then measure; the requests are in ``folder/latencies.npy``.

    Args:
        watcher: told of every batch; those of the warm-up are filler.
        arrivals: of an open loop, seconds from its begin, rising.
        on_warm: told of the first batch's begin (ns) once the warm-up is over.
        wait_to_begin: asked between two batches, which go on until it says True.

    Raises:
        Exception: whatever the workload raises.
    """
    library = Library(workload)
    library.load_any(BATCHES_OF_SAMPLES * batch_size, load.seed)
    batches = cycle([library.take(batch_size) for _ in range(BATCHES_OF_SAMPLES)])
    line = _Line(workload, batches, watcher)
    outstanding = 1 if load.concurrency is None else min(load.concurrency, line.depth)
    began_ns = monotonic_ns()
    steady = _warm_up(line, outstanding, settling, load.longest_warm_up_s)
    warm_ns = monotonic_ns()
    on_warm(began_ns)
    while not wait_to_begin():
        line.start(0)
        line.finish(filler=True)

    _reset_peak()
    begin_ns = monotonic_ns()
    requests = (
        _open_loop(line, arrivals, begin_ns, load.seconds)
        if load.concurrency is None
        else _closed_loop(line, load.concurrency, begin_ns, load.seconds)
    )
    over_ns = monotonic_ns()
    table = np.frombuffer(requests, np.int64).reshape(-1, 3)
    np.save(folder / LATENCIES_FILE, table)
    unanswered = int((table[:, 2] == 0).sum())
    return Profiled(
        begin_ns=begin_ns,
        end_ns=over_ns if load.concurrency is None else int(table[:, 2].max()),
        warm_up_s=(warm_ns - began_ns) / 1e9,
        warm_up_batches=settling.batches,
        steady=steady,
        answered=len(table) - unanswered,
        unanswered=unanswered,
        batch_size=batch_size,
        memory=_memory(),
    )


def _warm_up(line: _Line, outstanding: int, settling: Settling, longest_s: float) -> bool:
    """Closed loop until batch times, from completion to completion, are steady; False: until it is long enough."""
    began_ns = last_ns = monotonic_ns()
    while True:
        while len(line) < outstanding:
            line.start(0)

        *_, end_ns = line.finish(filler=True)
        steady = settling.took((end_ns - last_ns) / 1e9)
        last_ns = end_ns
        if steady or end_ns - began_ns >= longest_s * 1e9:
            break

    while line:
        line.finish(filler=True)

    return steady


def _closed_loop(line: _Line, clients: int, begin_ns: int, seconds: float) -> "array[int]":
    """Each client asks, and asks again the moment it is answered, until the time is over; all are answered."""
    requests = array("q")
    waiting = deque([begin_ns] * clients)
    until_ns = begin_ns + round(seconds * 1e9)
    while waiting or line:
        while waiting and len(line) < line.depth:
            line.start(waiting.popleft())

        answered = line.finish()
        requests.extend(answered)
        if answered[2] < until_ns:
            waiting.append(answered[2])

    return requests


def _open_loop(line: _Line, arrivals: Iterator[float], begin_ns: int, seconds: float) -> "array[int]":
    """Requests come when they come, none of them after ``seconds``, of which each is part of what is measured; those
    still waiting when it is given up were not answered."""
    requests = array("q")
    schedule = (begin_ns + round(at_s * 1e9) for at_s in arrivals)
    give_up_ns = begin_ns + round(GIVE_UP_AFTER * seconds * 1e9)
    waiting: deque[int] = deque()
    coming_ns = next(schedule, None)
    while coming_ns is not None or waiting or line:
        now_ns = monotonic_ns()
        while coming_ns is not None and coming_ns <= now_ns:
            waiting.append(coming_ns)
            coming_ns = next(schedule, None)

        if now_ns > give_up_ns:
            break

        if waiting and len(line) < line.depth:
            line.start(waiting.popleft())
        elif line and (coming_ns is None or len(line) == line.depth or line.oldest_is_done()):
            requests.extend(line.finish())
        elif line:
            time.sleep(LOOK_EVERY_S)
        elif coming_ns is not None:
            _wait_until(coming_ns)

    while line:
        requests.extend(line.finish())

    for came_ns in waiting:
        requests.extend((came_ns, 0, 0))

    _wait_until(begin_ns + round(seconds * 1e9))
    return requests


def _wait_until(at_ns: int) -> None:
    while (left_ns := at_ns - monotonic_ns()) > 0:
        if left_ns > SPIN_NS:
            time.sleep((left_ns - SPIN_NS) / 1e9)


def _cuda() -> Any:
    """torch.cuda, where this process computes on a GPU; else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_initialized() else None


def _reset_peak() -> None:
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()


def _memory() -> dict[str, float]:
    """MiB, of the process and, where it computes on a GPU, of torch's allocator and the device."""
    found = {
        "host_memory": psutil.Process().memory_info().rss / 2**20,
        "host_memory_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    cuda = _cuda()
    if cuda is not None:
        free, total = cuda.mem_get_info()
        found |= {
            "torch_allocated_peak": cuda.max_memory_allocated() / 2**20,
            "torch_reserved_peak": cuda.max_memory_reserved() / 2**20,
            "device_memory_used": (total - free) / 2**20,
        }

    return {name: round(mib, 3) for name, mib in found.items()}
