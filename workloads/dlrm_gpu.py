"""DLRM on a GPU in 16 bits: the same arithmetic in shapes that tensor cores take, batches in flight.

A matrix whose rows are no multiple of 16 bytes costs a product several times over. So the 13 counts of a pair are 16
(the others have no weight), and the 479 inputs of the top are 480; where the interaction is torch's, a pair's 27
vectors are 32 (the others are never looked at). Samples of a batch go as one tensor of all their pairs.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from workloads.engine import HostCopies, OnItsWay
from workloads.ragged import Ragged
from workloads.triton_at_hand import at_hand

DEPTH = 3
"""Batches in flight: while one is computed the next is on its way, and the host is busy with the answers of a third."""
VECTORS = 32
"""Of a pair: the bottom's, then one of each table, then some that only fill up."""
MULTIPLE = 8
"""Of the inputs of a product: 16 bytes."""

Interact = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""The bottom's vectors [pairs, width], all tables' rows, those chosen (int32 [pairs, tables]) and a number of columns →
the top's inputs [pairs, columns]: the bottom's vector, the products of every two of a pair's vectors, zeros."""
Bring = Callable[[tuple[Tensor, Tensor], Tensor, Tensor, Tensor], None]
"""Copies runs (int64 [3, samples]: where each begins, where it goes, its pairs) of a pool of pairs, dense and rows, to
two tensors that have room for just these."""


class FastNetwork:
    """The arithmetic of dlrm.py's Network, from its weights."""

    def __init__(self, network: Any, interact: Interact) -> None:
        self._tables = network.emb_l.together
        self._interact = interact
        self._bottom = _linears(network.bot_l)
        self._top = _linears(network.top_l)

    def forward(self, dense: Tensor, chosen: Tensor) -> Tensor:
        """``dense`` [pairs, 13]; ``chosen`` rows, int32 [pairs, 26] → probabilities, float32 [pairs]."""
        return self.above(self._interact(self.below(dense), self._tables, chosen, self.columns))

    @property
    def columns(self) -> int:
        """Inputs of the top, those without weight too."""
        return self._top[0][0].shape[1]

    def below(self, dense: Tensor) -> Tensor:
        """The bottom's vectors [pairs, 128]."""
        weight = self._bottom[0][0]
        x = functional.pad(dense.to(weight.dtype), (0, weight.shape[1] - dense.shape[1]))
        for weight, bias in self._bottom:
            x = _relu(x, weight, bias)

        return x

    def above(self, y: Tensor) -> Tensor:
        """The probabilities of the top's inputs."""
        for weight, bias in self._top[:-1]:
            y = _relu(y, weight, bias)

        return functional.linear(y, *self._top[-1])[:, 0].float().sigmoid()


def interact(x: Tensor, tables: Tensor, chosen: Tensor, columns: int) -> Tensor:
    """The interaction (see `Interact`) by torch's own kernels."""
    features = 1 + chosen.shape[1]
    rows = functional.pad(chosen, (1, VECTORS - features))
    vectors = tables.index_select(0, rows.flatten()).view(len(rows), VECTORS, -1)
    vectors[:, 0] = x
    products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1)
    below = torch.tril_indices(features, features, offset=-1, device=x.device)
    products = products.index_select(1, below[0] * VECTORS + below[1])
    return functional.pad(torch.cat((x, products), dim=1), (0, columns - x.shape[1] - products.shape[1]))


def bring(pool: tuple[Tensor, Tensor], runs: Tensor, dense: Tensor, chosen: Tensor) -> None:
    """The same as `Bring` says by torch's own kernels."""
    begins, to, lengths = runs
    places = torch.arange(len(dense), device=dense.device)
    places += (begins - to).repeat_interleave(lengths, output_size=len(dense))
    for source, target in zip(pool, (dense, chosen), strict=True):
        torch.index_select(source, 0, places, out=target)


def own_kernels(network: Any) -> tuple[Interact, Bring] | None:
    """Both as one kernel each, compiled; None where Triton, or the C compiler it needs, is missing."""
    return at_hand(partial(_tried, network))


def _tried(network: Any) -> tuple[Interact, Bring]:
    from workloads.dlrm_triton import SMS_A_PROGRAM, bring, interact

    sms = torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count
    bring_on_few = partial(bring, programs=max(1, sms // SMS_A_PROGRAM))
    tables = network.emb_l.together
    dense = torch.zeros(1, network.bot_l[0].in_features, device=tables.device)
    chosen = torch.zeros(1, len(network.emb_l), dtype=torch.int32, device=tables.device)
    bring_on_few((dense, chosen), torch.zeros(3, 1, dtype=torch.int64, device=tables.device), dense, chosen)
    interact(tables[:1], tables, chosen, _whole(network.top_l[0].in_features))
    torch.cuda.synchronize()
    return interact, bring_on_few


@dataclass(frozen=True, slots=True)
class _Input:
    """A batch's place on the GPU."""

    dense: Tensor
    chosen: Tensor
    taken: torch.cuda.Event
    """The network is through with what stood there."""


class Coalesced:
    """Runs batches on the GPU: the samples' pairs side by side in pinned memory, then one copy of each kind.

    Args:
        network: dlrm.py's Network.
        most: pairs of the largest batch.
        pool: dense float32 and rows int32 of all pairs, on the host, where samples are runs of it; is pinned.
    """

    def __init__(
        self, network: Any, most: int, batch_size: int, pool: tuple[Tensor, Tensor] | None = None
    ) -> None:
        own = own_kernels(network)
        self.note = "look-ups and interaction: " + (
            "one kernel" if own else "torch's kernels; Triton, or the C compiler it needs, is missing"
        )
        by, self._bring = own or (interact, bring)
        self._network = FastNetwork(network, by)
        self._most = most
        tables, counts = len(network.emb_l), network.bot_l[0].in_features
        self._inputs = deque(
            _Input(
                torch.zeros(most, counts, device="cuda"),
                torch.zeros(most, tables, dtype=torch.int32, device="cuda"),
                torch.cuda.Event(),  # type: ignore[no-untyped-call]  # torch leaves it untyped
            )
            for _ in range(DEPTH)
        )
        self._staged: deque[tuple[Tensor, Tensor]] = deque()
        self._copies = HostCopies(DEPTH)
        self._copying = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]  # likewise
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # likewise
        self._last = (self._inputs[0].dense[:1], self._inputs[0].chosen[:1])
        self._pool = None if pool is None else (seen_by_gpu(pool[0]), seen_by_gpu(pool[1]))
        self._staged_runs: deque[Tensor] = deque(
            torch.empty(3 * batch_size, dtype=torch.int64, pin_memory=True) for _ in range(DEPTH + 1)
        )

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> "Split":
        """Begin a batch of these samples, dense float32 [n, 13] and rows int32 [n, 26] each."""
        if not self._staged:
            on_gpu = self._inputs[0]
            self._staged.extend(
                (_pinned_like(on_gpu.dense), _pinned_like(on_gpu.chosen)) for _ in range(DEPTH + 1)
            )

        lengths = np.array([len(counts) for counts, _ in pairs])
        total = int(lengths.sum())
        dense, chosen = (each[:total] for each in self._staged[0])
        self._staged.rotate(-1)
        torch.cat([counts for counts, _ in pairs], out=dense)
        torch.cat([rows for _, rows in pairs], out=chosen)

        def copy(to_dense: Tensor, to_chosen: Tensor) -> None:
            to_dense.copy_(dense, non_blocking=True)
            to_chosen.copy_(chosen, non_blocking=True)

        return self._begin(copy, lengths, total)

    def begin_runs(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> "Split":
        """Begin a batch of samples that are runs of the pool, which the GPU reads where it is, in host memory."""
        assert self._pool is not None, "made without a pool"
        pool, total, count = self._pool, int(lengths.sum()), len(lengths)
        staged = self._staged_runs[0][: 3 * count].view(3, count)
        self._staged_runs.rotate(-1)
        np.stack((starts, lengths.cumsum() - lengths, lengths), out=staged.numpy())

        def copy(dense: Tensor, chosen: Tensor) -> None:
            self._bring(pool, staged.to("cuda", non_blocking=True), dense, chosen)

        return self._begin(copy, lengths, total)

    def _begin(
        self, copy: Callable[[Tensor, Tensor], None], lengths: npt.NDArray[np.int64], total: int
    ) -> "Split":
        """Copy a batch to the GPU while the one before it is computed, and compute it."""
        place = self._inputs[0]
        self._inputs.rotate(-1)
        self._last = dense, chosen = place.dense[:total], place.chosen[:total]
        current = torch.cuda.current_stream()
        with torch.inference_mode():
            with torch.cuda.stream(self._copying):
                self._copying.wait_event(place.taken)
                copy(dense, chosen)
                self._arrived.record(self._copying)

            current.wait_event(self._arrived)
            rated = self._network.forward(dense, chosen)
            place.taken.record(current)
            return Split(self._copies.fetch(rated, self._most), lengths)

    def bare(self) -> None:
        """Compute the last batch once more; the GPU has it."""
        with torch.inference_mode():
            self._network.forward(*self._last)


def _pinned_like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True)


class _Pinned:
    """Pinned host memory as the CUDA array interface describes memory (version 3): with unified addressing, a GPU
    reads it under the host's own address."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.pin_memory()
        code = {torch.float32: "<f4", torch.int32: "<i4"}[tensor.dtype]
        place = {"data": (self.tensor.data_ptr(), False), "shape": tuple(tensor.shape), "typestr": code}
        self.__cuda_array_interface__ = place | {"version": 3}


def seen_by_gpu(tensor: Tensor) -> Tensor:
    """A pinned copy of a host tensor, float32 or int32, as a tensor of the GPU's: kernels read it over the bus."""
    return torch.as_tensor(_Pinned(tensor.contiguous()), device="cuda")


class Split:
    """A batch's probabilities on their way; a Pending (pipeline.py)."""

    def __init__(self, rated: OnItsWay, lengths: npt.NDArray[np.int64]) -> None:
        self._rated = rated
        self._lengths = lengths

    def done(self) -> bool:
        """Whether they are on the host."""
        return self._rated.done()

    def result(self) -> Ragged:
        """One float32 array a sample; they are in one of `HostCopies`' own."""
        return Ragged(self._rated.result(), self._lengths)


def _relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch._addmm_activation(bias, x, weight.t())


def _linears(layers: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases; those of the first layer have inputs of weight 0, up to a whole `MULTIPLE`."""
    (weight, bias), *rest = [
        (layer.weight.detach(), layer.bias.detach()) for layer in layers if isinstance(layer, nn.Linear)
    ]
    return [(functional.pad(weight, (0, _whole(weight.shape[1]) - weight.shape[1])), bias), *rest]


def _whole(inputs: int) -> int:
    return -(-inputs // MULTIPLE) * MULTIPLE
