"""What LoadGen drives: a sample library and a system under test. Imports no LoadGen."""

import queue
import random
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Executor
from itertools import cycle, repeat
from time import monotonic_ns
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from workloads.pipeline import SORTED_BATCHES, Begin, Generate, Lengths, Pending, by_length
from workloads.protocol import Workload
from workloads.queries import Queries

if TYPE_CHECKING:
    from workloads.protocol import Outputs

LOOK_EVERY_NS = 100_000
"""How long Server's thread waits for a query before it looks whether the batch in flight is done."""

Complete = Callable[[Sequence[int], "Outputs"], None]
"""Hand LoadGen the outputs of these response ids, in order; returns once LoadGen has taken them."""


class Watcher(Protocol):
    """Who is told of first issue and of batches: the benchmark's Progress, or nobody."""

    def first_issue(self, at_ns: int) -> None: ...

    def began(self, begin_ns: int) -> None: ...

    def completed(self, begin_ns: int, end_ns: int, samples: int, filler: bool) -> None: ...


class Nobody:
    """Watches a test that is not part of the benchmark: one of the calibration."""

    def first_issue(self, at_ns: int) -> None:
        """Not counted."""

    def began(self, begin_ns: int) -> None:
        """Not counted."""

    def completed(self, begin_ns: int, end_ns: int, samples: int, filler: bool) -> None:
        """Not counted."""


class Library:
    """LoadGen's QSL over a workload: what is loaded stays loaded until other samples are asked for.

    LoadGen unloads after each test; with the same seeds the next test asks for the same samples again, and
    the filler needs them in between.
    """

    def __init__(self, workload: Workload) -> None:
        self._workload = workload
        self._loaded: dict[int, None] = {}  # a set that keeps its order
        self._turn: Iterator[int] = iter(())

    def load(self, indices: Sequence[int]) -> None:
        """Have these samples in memory, and no others."""
        wanted = dict.fromkeys(indices)
        surplus = [index for index in self._loaded if index not in wanted]
        missing = [index for index in wanted if index not in self._loaded]
        if surplus:
            self._workload.unload_samples(surplus)

        if missing:
            self._workload.load_samples(missing)

        if surplus or missing:
            self._loaded = wanted
            self._turn = cycle(wanted)

    def load_any(self, count: int, seed: int) -> None:
        """Have ``count`` samples in memory (all, if there are fewer), drawn from the whole library."""
        total = self._workload.total_sample_count
        self.load(random.Random(seed).sample(range(total), min(count, total)))

    def take(self, count: int) -> list[int]:
        """The next ``count`` loaded samples, in turn; the same one again where few are loaded."""
        return [next(self._turn) for _ in range(count)]


class _InFlight(NamedTuple):
    ids: Sequence[int]
    """Of the first samples of the batch; what it was filled up with has none."""
    samples: int
    """Predicted, with those it was filled up with."""
    pending: Pending


class Batches:
    """Runs batches: predict, complete, and tell the watcher. Used by one thread at a time.

    Args:
        begin: begins a batch that is asked for later (None: ``predict`` alone, one batch after another).
        depth: how many may be in flight. The watcher is told of each as if it began when the one before it
            ended: batches in flight together share the device, and their times must not be counted twice.
        lengths: a query of several batches is cut into batches of samples of like length.
        generate: predicts, and tells the first tokens on the way, which go to ``complete_first``.
    """

    def __init__(
        self,
        predict: Callable[[Sequence[int]], "Outputs"],
        complete: Complete,
        batch_size: int,
        watcher: Watcher,
        on_issuing: Callable[[int], None] | None = None,
        *,
        begin: Begin | None = None,
        depth: int = 1,
        lengths: Lengths | None = None,
        generate: Generate | None = None,
        complete_first: Complete | None = None,
    ) -> None:
        self.begin_ns = 0
        """LoadGen's first issue(); 0 before."""
        self.end_ns = 0
        """When the last QuerySamplesComplete returned."""
        self.samples = 0
        self.batch_size = batch_size
        self.depth = depth if begin is not None else 1
        self._predict = predict
        self._begin = begin
        self._lengths = lengths
        self._generate = generate
        self._complete_first = complete_first
        self._complete = complete
        self._watcher = watcher
        self._began = watcher.began
        self._completed = watcher.completed
        self._on_issuing = on_issuing
        self._flight: deque[_InFlight] = deque()
        self._head_began_ns = 0

    @property
    def samples_per_s(self) -> float:
        """From first issue to last completion."""
        return self.samples * 1e9 / (self.end_ns - self.begin_ns)

    @property
    def in_flight(self) -> int:
        """Batches begun and not completed."""
        return len(self._flight)

    def first_issue(self) -> None:
        """LoadGen issues the test's first query now."""
        self.begin_ns = monotonic_ns()
        self._watcher.first_issue(self.begin_ns)

    def run(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """Answer these samples, in batches of at most ``batch_size``; one batch may have surplus ``indices``.

        All are complete on return, and those that were in flight.
        """
        count, size = len(ids), self.batch_size
        if count <= size:
            self.start(ids, indices)
        else:
            window = size if self._lengths is None else SORTED_BATCHES * size
            for start in range(0, count, window):
                self._start_each(ids[start : start + window], indices[start : start + window])

        while self._flight:
            self.finish_one()

    def _start_each(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        if self._lengths is not None:
            places = by_length(indices, self._lengths)
            ids, indices = [ids[place] for place in places], [indices[place] for place in places]

        for start in range(0, len(ids), self.batch_size):
            stop = start + self.batch_size
            self.start(ids[start:stop], indices[start:stop])

    def start(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """Begin one batch, after the oldest is complete if ``depth`` are in flight; without ``begin``, run it."""
        if self._begin is None:
            self._run_one(ids, indices, len(ids))
            return

        if len(self._flight) == self.depth:
            self.finish_one()

        if not self._flight:
            self._head_began_ns = monotonic_ns()
            self._began(self._head_began_ns)

        self._flight.append(_InFlight(ids, len(indices), self._begin(indices)))

    def head_is_done(self) -> bool:
        """Whether ``finish_one`` would not have to wait."""
        return self._flight[0].pending.done()

    def finish_one(self) -> None:
        """Wait for the oldest batch in flight and complete it."""
        head = self._flight.popleft()
        count = len(head.ids)
        outputs = head.pending.result()
        self._complete(head.ids, outputs if head.samples == count else outputs[:count])
        self._done(self._head_began_ns, count)
        self._head_began_ns = self.end_ns
        if self._flight:
            self._began(self.end_ns)

    def _run_one(self, ids: Sequence[int], indices: Sequence[int], count: int) -> None:
        begin_ns = monotonic_ns()
        self._began(begin_ns)
        outputs = self._answers(ids, indices)
        self._complete(ids, outputs if len(indices) == count else outputs[:count])
        self._done(begin_ns, count)

    def _answers(self, ids: Sequence[int], indices: Sequence[int]) -> "Outputs":
        told = self._complete_first
        if self._generate is None or told is None:
            return self._predict(indices)

        return self._generate(indices, lambda first: told(ids, first[: len(ids)]))

    def _done(self, begin_ns: int, count: int) -> None:
        self.end_ns = end_ns = monotonic_ns()
        self.samples += count
        self._completed(begin_ns, end_ns, count, False)
        if self._on_issuing is not None:
            self._on_issuing(self.begin_ns)
            self._on_issuing = None


class InlineSut:
    """Answers on the thread LoadGen issues on: nothing is handed over, so nothing is added to a latency."""

    def __init__(self, batches: Batches) -> None:
        self.queries = Queries()
        self._issued, self._completed = self.queries.issued_ns.append, self.queries.completed_ns.append
        self._batches = batches

    def issue(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """LoadGen's IssueQuery; returns when all is answered."""
        issued_ns = monotonic_ns()
        if not self._batches.begin_ns:
            self._batches.first_issue()

        self._batches.run(ids, indices)
        self._issued(issued_ns)
        self._completed(self._batches.end_ns)

    def __enter__(self) -> "InlineSut":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        """Nothing to end."""


class QueueSut:
    """Answers on a thread of its own, several queries in a batch where several wait: for Server.

    A batch is made of what waits when the thread is free, up to ``batch_size``; if that is less, the thread
    waits for more until ``wait_ns`` after it took the first. Of fewer than ``batch_size`` it takes the oldest
    power of two: a GPU's libraries plan (and on first use load) their kernels anew for every batch size, some
    100 ms for resnet50 on an H200, so there may only be few sizes, each met before the test. Where the next
    power takes hardly longer (a GPU that waits for its host) all that wait go together, and the batch is filled
    up with samples it has already, whose answers are dropped.

    Where batches can be in flight together, a second one is begun once it is half full, or full where half a batch
    takes as long: before that, waiting for the first to end makes it fuller and costs no time. Further ones are full.

    Args:
        guard: wraps the thread's work so that no exception leaves it.
        compute: the thread.
        filled: the batch sizes that are filled up to, as they take hardly longer than half of them.
    """

    def __init__(
        self,
        batches: Batches,
        wait_ns: int,
        guard: Callable[[Callable[[], None]], Callable[[], None]],
        compute: Executor,
        filled: Collection[int] = (),
    ) -> None:
        self.queries = Queries()
        """Of one sample each, as Server's are."""
        self._filled = filled
        self._batches = batches
        self._wait_ns = wait_ns
        self._queue: queue.SimpleQueue[tuple[Sequence[int], Sequence[int]] | None] = queue.SimpleQueue()
        self._over = False
        size = batches.batch_size
        self._enough_beside = size if size in filled else -(-size // 2)
        self._guard = guard
        self._compute = compute

    def issue(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """LoadGen's IssueQuery; returns at once."""
        issued_ns = monotonic_ns()
        if not self._batches.begin_ns:
            self._batches.first_issue()

        self._queue.put((ids, indices))
        self.queries.issued_ns.extend(repeat(issued_ns, len(ids)))

    def __enter__(self) -> "QueueSut":
        self._serving = self._compute.submit(self._guard(self._serve))
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._queue.put(None)
        self._serving.result()

    def _serve(self) -> None:
        ids: list[int] = []
        indices: list[int] = []
        batches = self._batches
        while ids or batches.in_flight or self._take(ids, indices, None):
            if batches.in_flight:
                self._gather_beside(ids, indices)
                if len(ids) < self._enough() or batches.in_flight == batches.depth:
                    batches.finish_one()
                    self._note_completed()
                    continue
            else:
                self._gather(ids, indices)

            count, size = batch_of(len(ids), batches.batch_size, self._filled)
            batches.start(ids[:count], (indices[:count] * size)[:size] if size > count else indices[:count])
            del ids[:count], indices[:count]
            self._note_completed()

    def _note_completed(self) -> None:
        """Samples are answered in the order they came in."""
        completed_ns = self.queries.completed_ns
        completed_ns.extend(repeat(self._batches.end_ns, self._batches.samples - len(completed_ns)))

    def _gather(self, ids: list[int], indices: list[int]) -> None:
        until_ns = monotonic_ns() + self._wait_ns
        while len(ids) < self._batches.batch_size:
            if not self._take(ids, indices, max(0, until_ns - monotonic_ns())):
                return

    def _gather_beside(self, ids: list[int], indices: list[int]) -> None:
        """Take what waits, and what comes until it is enough for a batch beside or the batch in flight is done."""
        self._take_waiting(ids, indices)
        enough = self._enough()
        while len(ids) < enough and not self._batches.head_is_done():
            if not self._take(ids, indices, LOOK_EVERY_NS) and self._over:
                return

    def _enough(self) -> int:
        """Samples that are worth a batch beside those in flight, or that no more are taken than."""
        return self._enough_beside if self._batches.in_flight == 1 else self._batches.batch_size

    def _take_waiting(self, ids: list[int], indices: list[int]) -> None:
        """Add what waits, up to a batch; 0.6 µs less a query than `_take` for each."""
        get = self._queue.get_nowait
        for _ in range(min(self._queue.qsize(), self._batches.batch_size - len(ids))):
            query = get()  # nobody else takes any
            if query is None:
                self._over = True
                self._queue.put(None)
                return

            ids += query[0]
            indices += query[1]

    def _take(self, ids: list[int], indices: list[int], wait_ns: int | None) -> bool:
        """Add a query to those in hand; False if none came in time (None: however long) or the test is over."""
        try:
            query = self._queue.get(timeout=wait_ns / 1e9) if wait_ns else self._queue.get(wait_ns is None)
        except queue.Empty:
            return False

        if query is None:  # what was taken is answered first
            self._over = True
            self._queue.put(None)
            return False

        ids += query[0]
        indices += query[1]
        return True


def batch_of(waiting: int, batch_size: int, filled: Collection[int] = ()) -> tuple[int, int]:
    """How many of ``waiting`` samples the next batch answers, and its size, a power of two or ``batch_size``."""
    if waiting >= batch_size:
        return batch_size, batch_size

    below = 1 << (waiting.bit_length() - 1)
    above = min(2 * below, batch_size)
    return (waiting, above) if waiting > below and above in filled else (below, below)


Sut = InlineSut | QueueSut
