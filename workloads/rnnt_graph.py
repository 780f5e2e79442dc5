"""RNN-T's decoder on a GPU: its small steps captured as a CUDA graph, replayed until all utterances are at their end.

A step is some thirty small kernels, an utterance of 15 s some hundreds of steps: launched one by one they cost
the host far more than the GPU.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from workloads.engine import Eager, Graphs, HostCopies, engine_for
from workloads.protocol import WorkloadOptions
from workloads.rnnt_network import Decoding, Network

AHEAD = 2
"""Replays queued beyond the one whose word on the end is waited for: a surplus one changes nothing."""


class GraphDecoder:
    """Decodes batches of up to ``options.batch_size`` utterances of up to ``steps`` time steps.

    Raises:
        WorkloadError: the engine asked for does not work here.
    """

    def __init__(self, network: Network, steps: int, options: WorkloadOptions, notes: list[str]) -> None:
        self.steps = steps
        self._decoding = Decoding(network, steps, options.batch_size)
        if options.engine == "compile":
            notes.append("engine: graph for compile: torch.compile has no cuDNN LSTM to fuse with")
            options = replace(options, engine="graph")

        self._engine: Eager | Graphs = engine_for(self._decoding.advance, options, notes)
        self._copies = HostCopies(AHEAD)

    def decode(self, encoded: Tensor, lengths: Tensor) -> list[npt.NDArray[np.generic]]:
        """``encoded`` [time, n, width], ``lengths`` int64 [n] → the symbols of each, int64."""
        count = encoded.shape[1]
        decoding = self._decoding
        decoding.begin(encoded, lengths)
        self._until_all_are_at_their_end(lambda: self._engine.run(count))
        ends = decoding.counts[:count].cpu().numpy()
        symbols = decoding.symbols[:count, : max(int(ends.max()), 1)].cpu().numpy()
        return [row[:end].copy() for row, end in zip(symbols, ends, strict=True)]

    def _until_all_are_at_their_end(self, advance: Callable[[], Tensor]) -> None:
        words = [self._copies.fetch(advance(), 1) for _ in range(AHEAD)]
        while not words.pop(0).result()[0]:
            words.append(self._copies.fetch(advance(), 1))
