"""How a network is run: eager, as captured CUDA graphs, or compiled.

A graph holds the launches of one batch size with the addresses they read and write, so replaying it costs the
host some 10 µs where launching resnet50's kernels one by one costs 3.5 ms (H200, torch 2.11). It belongs to no
thread: cuDNN's plans, which do, were chosen when it was captured.
"""

import sys
from collections import deque
from collections.abc import Callable, Collection
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from workloads.protocol import EngineName, WorkloadError, WorkloadOptions

if TYPE_CHECKING:
    import numpy.typing as npt

WARM_UPS = 3
"""Runs before a capture: libraries choose kernels and make their handles, which a capture forbids."""

Function = Callable[[int], Any]
"""Computes the first n rows of buffers that stay where they are; gives one tensor or a tuple of them, whose
first axis is the n rows. Its shapes follow from n alone, and it never waits for the device."""


def chosen(options: WorkloadOptions) -> Literal["eager", "graph", "compile"]:
    """The engine that ``options`` ask for; ``auto`` is graph on a GPU, eager on a CPU.

    Raises:
        WorkloadError: CUDA graphs on a CPU.
    """
    if options.engine == "auto":
        return "graph" if options.device == "cuda" else "eager"

    if options.engine == "graph" and options.device == "cpu":
        raise WorkloadError(
            "engine graph on a CPU slice: CUDA graphs are a GPU's launches; ask for --engine eager or compile"
        )

    return options.engine


def bucket_of(count: int, batch_size: int, captured: Collection[int], seen: Collection[int]) -> int:
    """The rows to compute for ``count`` samples: a power of two, or ``batch_size``, not less than ``count``.

    A size met for the first time goes into the smallest one already captured that holds it, as the odd last
    batch of a test does; only a size that comes again is worth a graph of its own.
    """
    own = min(1 << (count - 1).bit_length(), batch_size)
    if own in captured or (own == count and own in seen):
        return own

    return min((size for size in captured if size >= count), default=own)


class Eager:
    """Calls the function as it is."""

    name: EngineName = "eager"

    def __init__(self, function: Function) -> None:
        self._function = function

    def run(self, count: int) -> Any:
        """The outputs of the first ``count`` rows; on a GPU only queued, on the current stream."""
        return self._function(count)


class Compiled(Eager):
    """Calls a compiled function with few batch sizes: each is compiled anew, an odd last batch of a test too."""

    name: EngineName = "compile"

    def __init__(self, function: Function, batch_size: int) -> None:
        super().__init__(function)
        self._batch_size = batch_size
        self._compiled: set[int] = set()
        self._seen: set[int] = set()

    def run(self, count: int) -> Any:
        """The outputs of the first ``count`` rows."""
        bucket = bucket_of(count, self._batch_size, self._compiled, self._seen)
        self._seen.add(count)
        outputs = self._function(bucket)
        if bucket not in self._compiled:
            self._compiled.add(bucket)
            end_compiling()

        return _rows(outputs, count)


class Graphs:
    """The function captured once for each bucket, all in one pool of memory.

    A run's outputs are overwritten by the next run, which waits for whatever was queued on the same stream.
    Called by one thread at a time, always with the same current stream.
    """

    name: EngineName = "graph"

    def __init__(self, function: Function, batch_size: int) -> None:
        self._function = function
        self._batch_size = batch_size
        self._pool = torch.cuda.graph_pool_handle()
        self._captured: dict[int, tuple[torch.cuda.CUDAGraph, Any]] = {}
        self._seen: set[int] = set()

    @property
    def buckets(self) -> list[int]:
        """The batch sizes captured so far."""
        return sorted(self._captured)

    def run(self, count: int) -> Any:
        """The outputs of the first ``count`` rows, queued on the current stream.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        bucket = bucket_of(count, self._batch_size, self._captured, self._seen)
        self._seen.add(count)
        return _rows(self.replay(bucket), count)

    @torch.inference_mode()
    def capture_all(self) -> None:
        """Capture every batch size now, the largest first: none amid a measurement.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        for power in reversed(range((self._batch_size - 1).bit_length())):
            self.replay(1 << power)

    def replay(self, bucket: int) -> Any:
        """The outputs of exactly that many rows, captured on the first call; queued on the current stream.

        Raises:
            RuntimeError: the function cannot be captured.
        """
        if bucket not in self._captured:
            self._captured[bucket] = self._capture(bucket)

        graph, outputs = self._captured[bucket]
        graph.replay()
        return outputs

    def _capture(self, bucket: int) -> tuple[torch.cuda.CUDAGraph, Any]:
        current = torch.cuda.current_stream()
        # Torch's graphs keep the priority that their kernels were captured with.
        aside = torch.cuda.Stream(priority=current.priority)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._function(bucket)

        current.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        try:
            # Where a capture fails, torch 2.11 leaves its stream as the current one: this puts the former back.
            with torch.cuda.stream(current), recording(graph, pool=self._pool, stream=aside):
                outputs = self._function(bucket)
        except RuntimeError:
            end_failed_capture()
            raise

        end_compiling()
        return graph, outputs


recording = partial(torch.cuda.graph, capture_error_mode="thread_local")
"""Captures what is launched within; other threads of the process may use CUDA meanwhile (LoadGen's pins samples)."""


def end_failed_capture() -> None:
    """Capture something that can be: until then torch 2.11 takes its generator of random numbers to be in the capture
    that failed, and refuses to draw any (CUDAGeneratorImpl.cpp: ``capturing_``)."""
    place = torch.zeros(1, device="cuda")
    with recording(torch.cuda.CUDAGraph()):
        place.zero_()


def engine_for(function: Function, options: WorkloadOptions, notes: list[str]) -> Eager | Graphs:
    """The engine that ``options`` ask for, ready for batches of ``batch_size``; says in ``notes`` which.

    Of ``auto``, a function that cannot be captured runs eagerly.

    Raises:
        WorkloadError: graphs were asked for, and the function cannot be captured.
    """
    wanted = chosen(options)
    if wanted == "eager":
        notes.append("engine: eager")
        return Eager(function)

    if options.device == "cpu":
        notes.append(f"engine: compile: batches of powers of two, up to {options.batch_size}")
        return Compiled(function, options.batch_size)

    graphs = Graphs(function, options.batch_size)
    try:
        with torch.inference_mode():
            graphs.run(options.batch_size)
            torch.cuda.synchronize()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        if options.engine != "auto":
            raise WorkloadError(
                f"engine {wanted}: it cannot be captured as a CUDA graph ({reason}); ask for --engine eager"
            ) from error

        notes.append(f"engine: eager; CUDA graphs failed: {reason}")
        return Eager(function)

    compiled = "torch.compile and " if wanted == "compile" else ""
    notes.append(
        f"engine: {wanted}: {compiled}CUDA graphs of batches of powers of two, up to {options.batch_size}"
    )
    return graphs


def compiled(network: nn.Module, options: WorkloadOptions) -> nn.Module:
    """The network as torch.compile makes it where the engine is ``compile``, else as it is. Compiled on its first
    call with each batch size."""
    if chosen(options) != "compile":
        return network

    compile_with(options.threads)
    made: nn.Module = torch.compile(network, dynamic=False)  # type: ignore[assignment]  # a module gives a module
    return made


def compile_with(threads: int) -> None:
    """Have torch.compile use so many processes; its own choice follows the machine's cores, not the slice's."""
    import torch._inductor.config  # slow: where nothing is compiled it is not needed

    torch._inductor.config.compile_threads = threads


def end_compiling() -> None:
    """End the processes that torch.compile keeps for more to come: beside a measurement none of ours idles. Where
    there is more, they start anew."""
    pools = sys.modules.get("torch._inductor.async_compile")
    if pools is not None:
        pools.shutdown_compile_workers()


class OnItsWay:
    """Outputs that are being copied to the host; a Pending (pipeline.py)."""

    def __init__(self, array: "npt.NDArray[np.generic]", arrived: torch.cuda.Event) -> None:
        self._array = array
        self._arrived = arrived

    def done(self) -> bool:
        """Whether the copy is complete."""
        return bool(self._arrived.query())  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def result(self) -> "npt.NDArray[np.generic]":
        """Wait for it; the array is one of `HostCopies`' own."""
        self._arrived.synchronize()
        return self._array


class AtHand:
    """Outputs that are there already; a Pending (pipeline.py)."""

    def __init__(self, outputs: Any) -> None:
        self._outputs = outputs

    def done(self) -> bool:
        """They are."""
        return True

    def result(self) -> Any:
        """The outputs."""
        return self._outputs


class HostCopies:
    """Pinned host buffers for the outputs of ``depth`` batches in flight, used in turn."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._turn: deque[tuple[Tensor, torch.cuda.Event, dict[int, npt.NDArray[np.generic]]]] = deque()

    def fetch(self, rows: Tensor, batch_size: int) -> OnItsWay:
        """Queue the copy of ``rows`` (first axis: the batch, at most ``batch_size``) on the current stream."""
        if not self._turn:
            for _ in range(self._depth + 1):  # one more: the last taken may still be read
                buffer = torch.empty((batch_size, *rows.shape[1:]), dtype=rows.dtype, pin_memory=True)
                arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
                self._turn.append((buffer, arrived, {}))

        buffer, arrived, views = self._turn[0]
        self._turn.rotate(-1)
        count = len(rows)
        buffer[:count].copy_(rows, non_blocking=True)
        arrived.record()
        if count not in views:
            views[count] = buffer[:count].numpy()

        return OnItsWay(views[count], arrived)


def _rows(outputs: Any, count: int) -> Any:
    if isinstance(outputs, Tensor):
        return outputs[:count]

    return tuple(_rows(one, count) for one in outputs)
