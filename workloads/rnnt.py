"""Speech recognition with RNN-T on LibriSpeech."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from workloads import librispeech
from workloads.engine import AtHand, chosen
from workloads.fidelity import symbol_agreement
from workloads.labelled import Labelled
from workloads.pipeline import SORTED_BATCHES, Pending
from workloads.precision import compute_dtype, to_device
from workloads.protocol import Size, WorkloadOptions
from workloads.rnnt_features import FrontEnd
from workloads.rnnt_graph import GraphDecoder
from workloads.rnnt_network import (
    FEATURES,
    FRAMES_PER_S,
    POST_LAYERS,
    PRE_LAYERS,
    PREDICTION_LAYERS,
    SHAPE,
    STACK,
    SYMBOLS,
    Network,
    build,
    greedy_decode,
)
from workloads.rnnt_speech import SYMBOLS_PER_S, speak
from workloads.weights import load_weights, seeded

if TYPE_CHECKING:
    from workloads.protocol import Outputs

SAMPLES = 2_513
"""LibriSpeech dev-clean's utterances under 15 s, of 2 703."""

LONGEST_S, SHORTEST_S = 15.0, 1.4
MEDIAN_S, SPREAD = 5.88, 0.635
"""Lengths: log-normal. Its mean (7.19 s = 5.4 h / 2 703, Panayotov et al. 2015) and its share under 15 s
(2 513 / 2 703) give both figures; cut at 15 s, the mean is 6.25 s."""

OLD_NAMES = {"joint_net.": "joint.net."}
UNUSED_KEYS = ("audio_preprocessor.",)
"""MLPerf's checkpoint as published, rnnt.pt (pytorch_SUT.py, ``load_and_migrate_checkpoint``)."""

MOST_STEPS = -(-(math.ceil(LONGEST_S * FRAMES_PER_S) + 2) // STACK)
"""Of the encoder, for the longest utterance and a rounded frame."""

MEAN_FRAMES = round(6.25 * FRAMES_PER_S)
DEPTH = 2
"""Batches in flight on a GPU: one is decoded while the next is encoded."""
POOL_FRAMES = 1 << 15
"""Frames of synthetic features; a sample is a run of its length at an offset of its own. 31 MB."""


def flops_per_sample(size: Size) -> int:
    """FLOPs of a sample of mean length, by formula, as the flop counter does not know LSTMs.

    A layer of width H with inputs of width I takes 2 · 4H · (I + H) a step (its two matrix products); the
    prediction network and the joint run once a symbol and once a time step.
    """
    shape = SHAPE[size]
    steps = -(-MEAN_FRAMES // STACK)
    decoded = steps + round(SYMBOLS_PER_S * MEAN_FRAMES / FRAMES_PER_S)

    def lstm(inputs: int, width: int, layers: int) -> int:
        return 8 * width * (inputs + width + (layers - 1) * 2 * width)

    pre = MEAN_FRAMES * lstm(FEATURES, shape.encoder, PRE_LAYERS)
    post = steps * lstm(STACK * shape.encoder, shape.encoder, POST_LAYERS)
    prediction = decoded * lstm(shape.prediction, shape.prediction, PREDICTION_LAYERS)
    joint = (
        decoded * 2 * shape.joint * (shape.prediction + SYMBOLS + 1) + steps * 2 * shape.joint * shape.encoder
    )
    return pre + post + prediction + joint


class Rnnt:
    """Answers: one int64 array of symbols a sample."""

    fidelity = staticmethod(symbol_agreement)

    def __init__(self, name: str, options: WorkloadOptions) -> None:  # noqa: ARG002  the catalogue's
        self._dtype = compute_dtype(options)
        self._options = options
        self.total_sample_count = SAMPLES
        self.labelled: Labelled | None = None
        """What is said; None with synthetic samples. Complete once ``load`` has returned."""
        self.notes: list[str] = []
        self._decoder: GraphDecoder | None = None
        self.depth = DEPTH if options.device == "cuda" else 1
        """Batches in flight (pipeline.py)."""

    def load(self) -> None:
        """Build the network; make the pool of synthetic features, or find the recordings."""
        options = self._options
        self._network = self._build(self._dtype)
        self._reference: Network | None = None
        if options.data is None:
            self._samples: SyntheticSpeech | RecordedSpeech = SyntheticSpeech(options)
        else:
            recorded = RecordedSpeech(options, options.data)
            self._samples = recorded
            self.labelled = recorded.labels

        self.total_sample_count = len(self._samples)
        self.notes = [
            f"weights: {options.weights}"
            if options.weights
            else f"weights: random, seed {options.seed}, then set so that the decoder emits about "
            f"{SYMBOLS_PER_S} symbols a second of audio, as speech has",
            self._samples.note,
            f"batches: under Offline of utterances of like length, {SORTED_BATCHES} batches' worth sorted at a time",
        ]
        self._decoder = None
        if options.device == "cuda":
            self._decoder = GraphDecoder(self._network, MOST_STEPS, options, self.notes)
        else:
            self.notes.append(f"engine: {chosen(options)}")

    def load_samples(self, indices: Sequence[int]) -> None:
        """Read these recordings; synthetic features are in memory from ``load`` on.

        Raises:
            WorkloadError: one is damaged.
        """
        self._samples.load(indices)

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Let go of them; synthetic features are kept."""
        self._samples.unload(indices)

    def predict(self, indices: Sequence[int]) -> "Outputs":
        """The symbols of each utterance, int64 [its count]."""
        return self.begin(indices).result()

    def begin(self, indices: Sequence[int]) -> Pending:
        """Begin a batch (pipeline.py)."""
        with torch.inference_mode():
            encoded, steps = self._encoded(self._network, indices)
            if self._decoder is not None and len(encoded) <= MOST_STEPS:
                return self._decoder.begin(encoded, steps)

            return AtHand(_decoded(self._network, encoded, steps))

    def lengths(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Of each utterance: a batch is as long as its longest (pipeline.py)."""
        return self._samples.lengths(indices)

    def reference(self, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        """The same, one utterance at a time in fp32."""
        if self._reference is None:
            self._reference = self._network if self._dtype is torch.float32 else self._build(torch.float32)

        exact = self._reference
        with torch.inference_mode():
            return [_decoded(exact, *self._encoded(exact, [index]))[0] for index in indices]

    def _build(self, dtype: torch.dtype) -> Network:
        options = self._options
        with seeded(options.seed):
            network = build(options.size)
            if options.weights is None:
                speak(network)

        if options.weights is not None:
            load_weights(network, options.weights, unused=UNUSED_KEYS, renamed=OLD_NAMES)

        network.to(device=options.device, dtype=dtype)
        for module in network.modules():
            if isinstance(module, nn.LSTM):
                module.flatten_parameters()  # cuDNN wants them in one piece, and .to() made copies

        return network

    def _encoded(self, network: Network, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The encoder's output, [time, batch, width], and the steps of each utterance, int64 [batch]."""
        features, lengths = self._samples.batch(indices, network.joint.last.weight.dtype)
        return network.encoder(features, lengths), (lengths + STACK - 1) // STACK


def _decoded(network: Network, encoded: Tensor, steps: Tensor) -> list[npt.NDArray[np.generic]]:
    symbols, counts = greedy_decode(network, encoded, steps)
    rows, ends = symbols.cpu().numpy(), counts.cpu().numpy()
    return [row[:end].copy() for row, end in zip(rows, ends, strict=True)]


class SyntheticSpeech:
    """Features with dev-clean's lengths, each utterance a run of one seeded pool."""

    def __init__(self, options: WorkloadOptions) -> None:
        self._options = options
        rng = np.random.default_rng(options.seed)
        self._lengths = utterance_frames(rng)
        self._starts = rng.integers(0, POOL_FRAMES - self._lengths, SAMPLES)
        self._pool = torch.from_numpy(rng.standard_normal((POOL_FRAMES, FEATURES), dtype=np.float32))
        self._pinned: dict[torch.dtype, Tensor] = {}
        self._copying = torch.cuda.Stream() if options.device == "cuda" else None  # type: ignore[no-untyped-call]  # torch leaves it untyped
        seconds = self._lengths / FRAMES_PER_S
        self.note = (
            f"inputs: synthetic features, seed {options.seed}: {SAMPLES} utterances of {seconds.min():.1f} to "
            f"{seconds.max():.1f} s, mean {seconds.mean():.2f} s, as LibriSpeech dev-clean's under 15 s; each "
            f"is a run of one pool of {POOL_FRAMES} frames. A batch starts in host memory, as features: the "
            "audio front end is not computed"
        )

    def __len__(self) -> int:
        return SAMPLES

    def load(self, indices: Sequence[int]) -> None:
        """Nothing to do: the pool is in memory."""

    def unload(self, indices: Sequence[int]) -> None:
        """Nothing to do: the pool is kept."""

    def lengths(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Frames."""
        frames: npt.NDArray[np.int64] = self._lengths[np.asarray(indices)]
        return frames

    def batch(self, indices: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Features [frames, batch, 240] and frames int64 [batch], on the device."""
        lengths = torch.from_numpy(self._lengths[list(indices)])
        if self._copying is not None:
            brought = self._brought(indices, int(lengths.max()), dtype, self._copying)
            return brought, to_device(lengths, self._options)

        features = torch.zeros(int(lengths.max()), len(indices), FEATURES)
        for lane, index in enumerate(indices):
            start, length = self._starts[index], self._lengths[index]
            features[:length, lane] = self._pool[start : start + length]

        return to_device(features.to(dtype), self._options), to_device(lengths, self._options)

    def _brought(
        self, indices: Sequence[int], longest: int, dtype: torch.dtype, copying: torch.cuda.Stream
    ) -> Tensor:
        """Features [longest, batch, 240] on the GPU, each utterance copied from pinned memory, beside what is computed
        there; zeros past its end."""
        if dtype not in self._pinned:
            self._pinned[dtype] = self._pool.to(dtype).pin_memory()

        pool, asked = self._pinned[dtype], list(indices)
        runs = [
            pool[start : start + length]
            for start, length in zip(self._starts[asked], self._lengths[asked], strict=True)
        ]
        with torch.cuda.stream(copying):
            arrived = torch.zeros(len(runs), longest, FEATURES, dtype=dtype, device="cuda")
            lanes = [lane[: len(run)] for lane, run in zip(arrived.unbind(), runs, strict=True)]
            torch._foreach_copy_(lanes, runs, non_blocking=True)

        current = torch.cuda.current_stream()
        current.wait_stream(copying)
        arrived.record_stream(current)
        return arrived.transpose(0, 1).contiguous()


class RecordedSpeech:
    """LibriSpeech's recordings, held in host memory while they are loaded: 32 KB a second."""

    def __init__(self, options: WorkloadOptions, folder: Path) -> None:
        self._options = options
        self._speech = librispeech.inspect(folder)
        self._front_end = FrontEnd(torch.device(options.device))
        self._loaded: dict[int, Tensor] = {}
        self.labels = librispeech.SpeechLabels(self._speech)
        seconds = [each.seconds or 0.0 for each in self._speech.utterances]
        self.note = (
            f"inputs: {self._speech.manifest or folder}, labelled: {len(self)} utterances of {min(seconds):.1f} to "
            f"{max(seconds):.1f} s, mean {sum(seconds) / len(seconds):.2f} s; {self._speech.too_long} of more than "
            f"{librispeech.LONGEST_S:g} s left out. A batch starts in host memory, as 16 bit samples: the audio "
            "front end is computed in the measured time, in fp32, as in MLPerf's reference"
        )
        if len(self) != SAMPLES:
            self.note += (
                f". MLPerf's data set has {SAMPLES} such utterances: this is not it, or not all of it"
            )

    def __len__(self) -> int:
        return len(self._speech.utterances)

    def load(self, indices: Sequence[int]) -> None:
        new = [index for index in dict.fromkeys(indices) if index not in self._loaded]
        with ThreadPoolExecutor(self._options.threads) as pool:
            waves = pool.map(librispeech.read, [self._speech.utterances[index] for index in new])
            self._loaded.update(zip(new, map(torch.from_numpy, waves), strict=True))

    def unload(self, indices: Sequence[int]) -> None:
        for index in indices:
            self._loaded.pop(index, None)

    def lengths(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Audio samples of each, loaded."""
        return np.array([len(self._loaded[index]) for index in indices])

    def batch(self, indices: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Features [frames, batch, 240] and frames int64 [batch], on the device."""
        waves = [self._loaded[index] for index in indices]
        samples = torch.tensor([len(wave) for wave in waves])
        padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
        features, lengths = self._front_end(
            to_device(padded, self._options), to_device(samples, self._options)
        )
        return features.to(dtype), lengths


def utterance_frames(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Frames of each sample: log-normal seconds, those too long or too short drawn again."""
    seconds = rng.lognormal(np.log(MEDIAN_S), SPREAD, 2 * SAMPLES)
    seconds = seconds[(seconds >= SHORTEST_S) & (seconds < LONGEST_S)][:SAMPLES]
    return np.ceil(seconds * FRAMES_PER_S).astype(np.int64)
