"""Speech recognition with RNN-T on LibriSpeech."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from workloads.precision import compute_dtype, refuse_data, to_device
from workloads.protocol import Size, WorkloadOptions
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

SAMPLES = 2_513
"""LibriSpeech dev-clean's utterances under 15 s, of 2 703."""

LONGEST_S, SHORTEST_S = 15.0, 1.4
MEDIAN_S, SPREAD = 5.88, 0.635
"""Lengths: log-normal. Its mean (7.19 s = 5.4 h / 2 703, Panayotov et al. 2015) and its share under 15 s
(2 513 / 2 703) give both figures; cut at 15 s, the mean is 6.25 s."""

MEAN_FRAMES = round(6.25 * FRAMES_PER_S)
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

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        refuse_data(name, options)
        self._dtype = compute_dtype(options)
        self._options = options
        self.total_sample_count = SAMPLES
        self.notes: list[str] = []

    def load(self) -> None:
        """Build the network and the pool of features that every sample is a run of."""
        options = self._options
        if options.device == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean fp32

        self._network = self._build(self._dtype)
        self._reference: Network | None = None
        rng = np.random.default_rng(options.seed)
        self._lengths = utterance_frames(rng)
        self._starts = rng.integers(0, POOL_FRAMES - self._lengths, SAMPLES)
        pool = rng.standard_normal((POOL_FRAMES, FEATURES), dtype=np.float32)
        self._pool = torch.from_numpy(pool)
        seconds = self._lengths / FRAMES_PER_S
        self.notes = [
            f"weights: {options.weights}"
            if options.weights
            else f"weights: random, seed {options.seed}, then set so that the decoder emits about "
            f"{SYMBOLS_PER_S} symbols a second of audio, as speech has",
            f"inputs: synthetic features, seed {options.seed}: {SAMPLES} utterances of {seconds.min():.1f} to "
            f"{seconds.max():.1f} s, mean {seconds.mean():.2f} s, as LibriSpeech dev-clean's under 15 s; each "
            f"is a run of one pool of {POOL_FRAMES} frames. A batch starts in host memory, as features: the "
            "audio front end is not computed",
        ]

    def load_samples(self, indices: Sequence[int]) -> None:
        """Nothing to do: the pool is in memory from ``load`` on."""

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Nothing to do: the pool is kept."""

    def predict(self, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        """The symbols of each utterance, int64 [its count]."""
        return self._transcribe(self._network, indices)

    def reference(self, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        """The same, one utterance at a time in fp32."""
        if self._reference is None:
            self._reference = self._network if self._dtype is torch.float32 else self._build(torch.float32)

        return [self._transcribe(self._reference, [index])[0] for index in indices]

    def _build(self, dtype: torch.dtype) -> Network:
        options = self._options
        with seeded(options.seed):
            network = build(options.size)
            if options.weights is None:
                speak(network)

        if options.weights is not None:
            load_weights(network, options.weights)

        network.to(device=options.device, dtype=dtype)
        for module in network.modules():
            if isinstance(module, nn.LSTM):
                module.flatten_parameters()  # cuDNN wants them in one piece, and .to() made copies

        return network

    def _transcribe(self, network: Network, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        lengths = torch.from_numpy(self._lengths[list(indices)])
        features = torch.zeros(int(lengths.max()), len(indices), FEATURES)
        for lane, index in enumerate(indices):
            start, length = self._starts[index], self._lengths[index]
            features[:length, lane] = self._pool[start : start + length]

        dtype = network.joint.last.weight.dtype
        lengths = to_device(lengths, self._options)
        with torch.inference_mode():
            encoded = network.encoder(to_device(features.to(dtype), self._options), lengths)
            symbols, counts = greedy_decode(network, encoded, (lengths + STACK - 1) // STACK)
            rows, ends = symbols.cpu().numpy(), counts.cpu().numpy()

        return [row[:end].copy() for row, end in zip(rows, ends, strict=True)]


def utterance_frames(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Frames of each sample: log-normal seconds, those too long or too short drawn again."""
    seconds = rng.lognormal(np.log(MEDIAN_S), SPREAD, 2 * SAMPLES)
    seconds = seconds[(seconds >= SHORTEST_S) & (seconds < LONGEST_S)][:SAMPLES]
    return np.ceil(seconds * FRAMES_PER_S).astype(np.int64)
