"""RNN-T's decoder on a GPU: its small steps captured as a CUDA graph, replayed until all utterances are at their end.

A step is some thirty small kernels, an utterance of 15 s some hundreds of steps: launched one by one they cost
the host far more than the GPU. They leave most of a GPU idle, so they have a stream of their own: while one batch is
decoded, the next is encoded.
"""

import math
from collections import deque
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from workloads.engine import Eager, Graphs, HostCopies, OnItsWay, engine_for
from workloads.protocol import WorkloadOptions
from workloads.ragged import Ragged
from workloads.rnnt_network import STEPS_BETWEEN_LOOKS, Decoding, Network

AHEAD = 2
"""Replays queued beyond the one whose word on the end is waited for: a surplus one changes nothing."""
QUEUED_AT_ONCE = 0.95
"""Of the steps that the batch before took, for as many time steps: the host is busy with the next batch meanwhile."""
MOST_PACE = 3.0
"""Steps of decoding a time step that are queued at once at most. Speech takes 1.9, 14.5 symbols in 16.7 time steps a
second; an utterance that runs away may take 31, and the next batch is to be spared that."""


class Transcription:
    """A batch that is encoded, then decoded once those before it are; a Pending (pipeline.py).

    Args:
        encoded: [time, n, width], queued on the current stream.
        lengths: int64 [n], likewise.
    """

    def __init__(self, decoder: "GraphDecoder", encoded: Tensor, lengths: Tensor) -> None:
        self._decoder = decoder
        self.symbols: Ragged | None = None
        """Once it is decoded."""
        self.encoded: tuple[Tensor, Tensor] | None = (encoded, lengths)
        self.arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.arrived.record()

    def done(self) -> bool:
        """Whether all its utterances are at their end; goes on with the decoding, without waiting."""
        return self.symbols is not None or self._decoder.is_at_end(self)

    def result(self) -> Ragged:
        """Wait for the symbols of each utterance, int64; those of the batches before it too."""
        while self.symbols is None:
            self._decoder.finish_one()

        return self.symbols


class GraphDecoder:
    """Decodes batches of up to ``options.batch_size`` utterances of up to ``steps`` time steps, one after another.

    Raises:
        WorkloadError: the engine asked for does not work here.
    """

    def __init__(self, network: Network, steps: int, options: WorkloadOptions, notes: list[str]) -> None:
        self._decoding = Decoding(network, steps, options.batch_size)
        self._stream = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if options.engine == "compile":
            notes.append("engine: graph for compile: torch.compile has no cuDNN LSTM to fuse with")
            options = replace(options, engine="graph")

        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._engine: Eager | Graphs = engine_for(self._decoding.advance, options, notes)

        self._copies = HostCopies(AHEAD)
        self._begun: deque[Transcription] = deque()
        """Oldest first; that one is being decoded."""
        self._words: deque[OnItsWay] = deque()
        """Whether it is at its end, after each of its last replays."""
        self._utterances = self._time_steps = 0
        """Of the oldest: how many, and the most time steps of one."""
        self._pace = 1.0
        """Of the batch before: steps of decoding a time step of its longest utterance."""

    def begin(self, encoded: Tensor, lengths: Tensor) -> Transcription:
        """``encoded`` [time, n, width] and ``lengths`` int64 [n], on the current stream."""
        begun = Transcription(self, encoded, lengths)
        if not self._begun:
            self._start(begun)

        self._begun.append(begun)
        return begun

    def is_at_end(self, batch: Transcription) -> bool:
        """Whether it is the oldest, and nothing of it is left to decode; queues what is, without waiting."""
        if batch is not self._begun[0]:
            return False

        while self._words[0].done():
            if self._words[0].result()[0]:
                return True

            self._replay_once_more()

        return False

    @torch.inference_mode()
    def finish_one(self) -> None:
        """Wait for the oldest batch, and begin to decode the next."""
        while not self._words[0].result()[0]:
            self._replay_once_more()

        oldest = self._begun.popleft()
        assert oldest.encoded is not None, "it has been decoded"
        decoding = self._decoding
        with torch.cuda.stream(self._stream):
            counts = decoding.counts[: self._utterances]
            # A step emits a symbol or goes on by a time step; a 30th symbol does both.
            self._pace = int((counts + oldest.encoded[1]).max()) / self._time_steps
            ends = counts.cpu().numpy()
            symbols = decoding.symbols[: len(ends), : max(int(ends.max()), 1)].cpu().numpy()

        oldest.encoded = None
        if self._begun:
            self._start(self._begun[0])

        oldest.symbols = Ragged(symbols[np.arange(symbols.shape[1]) < ends[:, None]], ends)

    def _start(self, batch: Transcription) -> None:
        """Queue the first steps; they wait for the encoder on the GPU."""
        assert batch.encoded is not None, "it has been decoded"
        self._words.clear()
        self._time_steps, self._utterances = batch.encoded[0].shape[:2]
        self._stream.wait_event(batch.arrived)
        with torch.cuda.stream(self._stream), torch.inference_mode():
            self._decoding.begin(*batch.encoded)

        for _ in range(self._replays_at_once() - 1):
            self._run()

        for _ in range(AHEAD):
            self._replay()

    def _replays_at_once(self) -> int:
        """Replays of the oldest to queue before a word is asked for: about as many as it will take. Steps that are
        launched one by one would keep the host for as long as it is to be spared."""
        if isinstance(self._engine, Eager):
            return 1

        steps = max(1.0, QUEUED_AT_ONCE * min(self._pace, MOST_PACE)) * self._time_steps
        return math.ceil(steps / STEPS_BETWEEN_LOOKS)

    def _replay_once_more(self) -> None:
        self._words.popleft()
        self._replay()

    @torch.inference_mode()
    def _replay(self) -> None:
        at_end = self._run()
        with torch.cuda.stream(self._stream):
            self._words.append(self._copies.fetch(at_end, 1))

    @torch.inference_mode()
    def _run(self) -> Tensor:
        with torch.cuda.stream(self._stream):
            at_end: Tensor = self._engine.run(self._utterances)

        return at_end
