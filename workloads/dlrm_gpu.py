"""DLRM on a GPU in 16 bits: the same arithmetic in shapes that tensor cores take, batches in flight.

A matrix whose rows are no multiple of 16 bytes costs a product several times over. So the 27 vectors of a pair are
32 (the others are never looked at), and the 479 inputs of the top are 480 (the last has no weight). Samples of a
batch go as one tensor of all their pairs.
"""

from collections import deque
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from workloads.engine import HostCopies, OnItsWay

DEPTH = 2
"""Batches in flight."""
VECTORS = 32
"""Of a pair: the bottom's, then one of each table, then some that only fill up."""


class FastNetwork:
    """The arithmetic of dlrm.py's Network, from its weights."""

    def __init__(self, network: Any) -> None:
        self._tables = network.emb_l.together
        features = 1 + len(network.emb_l)
        below = torch.tril_indices(features, features, offset=-1, device=self._tables.device)
        self._below = below[0] * VECTORS + below[1]
        self._bottom = _linears(network.bot_l)
        first, *rest = _linears(network.top_l)
        self._zeros = -first[0].shape[1] % 8
        self._top = [(functional.pad(first[0], (0, self._zeros)), first[1]), *rest]

    def forward(self, dense: Tensor, rows: Tensor) -> Tensor:
        """``dense`` [pairs, 13]; ``rows`` int32 [pairs, 32], those of the tables from column 1 on, any valid row
        elsewhere → probabilities, float32 [pairs]."""
        x = dense.to(self._bottom[0][0].dtype)
        for weight, bias in self._bottom:
            x = _relu(x, weight, bias)

        vectors = self._tables.index_select(0, rows.flatten()).view(len(rows), VECTORS, -1).to(x.dtype)
        vectors[:, 0] = x
        products = torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self._below)
        y = torch.cat((x, products, x.new_zeros(len(x), self._zeros)), dim=1)
        for weight, bias in self._top[:-1]:
            y = _relu(y, weight, bias)

        return functional.linear(y, *self._top[-1])[:, 0].float().sigmoid()


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
        self._network = FastNetwork(network)
        self._most = most
        tables, counts = len(network.emb_l), network.bot_l[0].in_features
        self._columns = slice(1, 1 + tables)
        self._dense = torch.zeros(most, counts, device="cuda")
        self._chosen = torch.zeros(most, tables, dtype=torch.int32, device="cuda")
        self._rows = torch.zeros(most, VECTORS, dtype=torch.int32, device="cuda")
        self._staged: deque[tuple[Tensor, Tensor]] = deque(
            (
                torch.empty(most, counts, pin_memory=True),
                torch.empty(most, tables, dtype=torch.int32, pin_memory=True),
            )
            for _ in range(DEPTH + 1)
        )
        self._copies = HostCopies(DEPTH)
        self._copying = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self._arrived, self._taken = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]  # likewise
        self._last_pairs = 1
        self._places = torch.arange(most, device="cuda")
        self._pool = None if pool is None else (seen_by_gpu(pool[0]), seen_by_gpu(pool[1]))
        self._staged_runs: deque[Tensor] = deque(
            torch.empty(2, batch_size, dtype=torch.int64, pin_memory=True) for _ in range(DEPTH + 1)
        )

    def begin(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> "Split":
        """Begin a batch of these samples, dense float32 [n, 13] and rows int32 [n, 26] each."""
        lengths = [len(counts) for counts, _ in pairs]
        total = sum(lengths)
        dense, chosen = self._staged[0]
        self._staged.rotate(-1)
        torch.cat([counts for counts, _ in pairs], out=dense[:total])
        torch.cat([rows for _, rows in pairs], out=chosen[:total])
        current = torch.cuda.current_stream()
        with torch.inference_mode():
            with torch.cuda.stream(self._copying):
                self._copying.wait_event(self._taken)
                self._dense[:total].copy_(dense[:total], non_blocking=True)
                self._chosen[:total].copy_(chosen[:total], non_blocking=True)
                self._arrived.record(self._copying)

            current.wait_event(self._arrived)
            rated = self._run(total)
            self._taken.record(current)
            return Split(self._copies.fetch(rated, self._most), lengths)

    def begin_runs(self, starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> "Split":
        """Begin a batch of samples that are runs of the pool, which the GPU reads where it is, in host memory."""
        assert self._pool is not None, "made without a pool"
        total, count = int(lengths.sum()), len(lengths)
        staged = self._staged_runs[0]
        self._staged_runs.rotate(-1)
        host = staged.numpy()
        host[0, :count] = starts - (lengths.cumsum() - lengths)
        host[1, :count] = lengths
        current = torch.cuda.current_stream()
        with torch.inference_mode():
            with torch.cuda.stream(self._copying):
                self._copying.wait_event(self._taken)
                runs = staged[:, :count].to("cuda", non_blocking=True)
                at = self._places[:total] + runs[0].repeat_interleave(runs[1], output_size=total)
                torch.index_select(self._pool[0], 0, at, out=self._dense[:total])
                torch.index_select(self._pool[1], 0, at, out=self._chosen[:total])
                self._arrived.record(self._copying)

            current.wait_event(self._arrived)
            rated = self._run(total)
            self._taken.record(current)
            return Split(self._copies.fetch(rated, self._most), lengths.tolist())

    def bare(self) -> None:
        """Compute the last batch once more; the GPU has it."""
        with torch.inference_mode():
            self._run(self._last_pairs)

    def _run(self, total: int) -> Tensor:
        self._last_pairs = total
        self._rows[:total, self._columns] = self._chosen[:total]
        return self._network.forward(self._dense[:total], self._rows[:total])


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

    def __init__(self, rated: OnItsWay, lengths: Sequence[int]) -> None:
        self._rated = rated
        self._lengths = lengths

    def done(self) -> bool:
        """Whether they are on the host."""
        return self._rated.done()

    def result(self) -> list[npt.NDArray[np.generic]]:
        """One float32 array a sample."""
        rated = self._rated.result().copy()
        return [rated[start:stop] for start, stop in pairwise(accumulate(self._lengths, initial=0))]


def _relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch._addmm_activation(bias, x, weight.t())


def _linears(layers: nn.Sequential) -> list[tuple[Tensor, Tensor]]:
    found: list[Any] = [layer for layer in layers if isinstance(layer, nn.Linear)]
    return [(layer.weight.detach(), layer.bias.detach()) for layer in found]
