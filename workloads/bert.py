"""BERT question answering on SQuAD v1.1: transformers' BertForQuestionAnswering."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForQuestionAnswering

from workloads.precision import compute_dtype, refuse_data, to_device
from workloads.protocol import Size, WorkloadError, WorkloadOptions
from workloads.weights import load_weights, seeded

SEQUENCE: dict[Size, int] = {"full": 384, "small": 128}
"""The longest sample, in tokens; longer documents are split before they become samples."""

SHAPE: dict[Size, dict[str, int]] = {
    "full": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
    },
    "small": {
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 1024,
    },
}
VOCABULARY = 30_522
TOKEN_TYPES = 2
POSITIONS = 512
CLS, SEP, FIRST_WORD = 101, 102, 999
"""Token ids of bert-large-uncased; below ``FIRST_WORD`` are special and unused ones."""

UNUSED_KEYS = ("bert.pooler.", "bert.embeddings.position_ids")
"""In older checkpoints; question answering does not use the pooler."""

SAMPLES = 10_833
"""SQuAD v1.1's dev set as MLPerf splits it: 384 tokens with a stride of 128."""

MEAN_SHARE = 177 / 384
MEDIAN_SHARE, SPREAD, LEAST_SHARE = 164 / 384, 0.42, 32 / 384
"""Lengths as shares of the longest: log-normal, clipped. Of SQuAD v1.1 padded to 384 tokens 54 % is padding
(openreview.net/forum?id=3nzKUh9a4M), so the mean is 177; about 2 % of the samples are full, as 263 of the
10 833 come from splitting a document."""

PAD_MULTIPLE = 64
MASKED_LOGIT = -10_000.0
"""What stands for "no answer here" past a sample's end."""


def build(size: Size) -> BertForQuestionAnswering:
    """The network, with transformers' own random initialisation (normal, 0.02)."""
    config = BertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=POSITIONS,
        type_vocab_size=TOKEN_TYPES,
        attn_implementation="sdpa",
        **SHAPE[size],
    )
    return BertForQuestionAnswering(config).eval()


def mean_tokens(size: Size) -> int:
    """Tokens of a sample of mean length."""
    return round(MEAN_SHARE * SEQUENCE[size])


def flops_per_sample(size: Size) -> int:
    """FLOPs of one sample of mean length, unpadded; counted on the meta device."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        tokens = torch.zeros(1, mean_tokens(size), dtype=torch.int64)
        build(size)(input_ids=tokens, token_type_ids=tokens)

    return int(counter.get_total_flops())


class Bert:
    """Answers: float32 [batch, sequence, 2], the start and end logits of each position."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        refuse_data(name, options)
        self._dtype = compute_dtype(options)
        self._options = options
        self._sequence = SEQUENCE[options.size]
        self.total_sample_count = SAMPLES
        self.notes: list[str] = []

    def load(self) -> None:
        """Build the network and the whole sample library (a few MB of token ids)."""
        options = self._options
        self._network = self._build(self._dtype)
        self._reference: BertForQuestionAnswering | None = None
        rng = np.random.default_rng(options.seed)
        self._lengths = sample_tokens(rng, self._sequence)
        self._question_lengths = np.minimum(rng.integers(8, 20, SAMPLES), self._lengths - 4)
        self._starts = np.concatenate(([0], np.cumsum(self._lengths)))
        self._tokens = rng.integers(FIRST_WORD, VOCABULARY, int(self._starts[-1]), dtype=np.int64)
        self.notes = [
            f"weights: {options.weights}" if options.weights else f"weights: random, seed {options.seed}",
            f"inputs: synthetic, seed {options.seed}: {SAMPLES} samples of {self._lengths.min()} to "
            f"{self._lengths.max()} tokens, mean {self._lengths.mean():.0f}, as SQuAD v1.1's at "
            f"{self._sequence}; each batch starts in host memory",
            f"padding: to the batch's longest, rounded up to {PAD_MULTIPLE} tokens; MLPerf's reference pads "
            f"every sample to 384. Logits past a sample's end are {MASKED_LOGIT:.0f}",
        ]

    def load_samples(self, indices: Sequence[int]) -> None:
        """Nothing to do: every sample is in memory from ``load`` on."""

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Nothing to do: the library is kept."""

    def predict(self, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        """Float32 [batch, 384 (128 for small), 2]."""
        return self._answer(self._network, indices)

    def reference(self, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        """The same, one sample at a time in fp32."""
        if self._reference is None:
            self._reference = self._network if self._dtype is torch.float32 else self._build(torch.float32)

        return np.concatenate([self._answer(self._reference, [index]) for index in indices])

    def _build(self, dtype: torch.dtype) -> BertForQuestionAnswering:
        options = self._options
        with seeded(options.seed):
            network = build(options.size)

        if options.weights is not None:
            check_config(options.weights, options.size)
            load_weights(network, options.weights, unused=UNUSED_KEYS)

        return network.to(device=options.device, dtype=dtype)

    def _answer(self, network: BertForQuestionAnswering, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        tokens, segments, mask = (to_device(each, self._options) for each in self._batch(indices))
        with torch.inference_mode():
            answer = network(input_ids=tokens, token_type_ids=segments, attention_mask=mask)
            logits = torch.stack((answer.start_logits, answer.end_logits), dim=-1).float()
            logits.masked_fill_(mask.logical_not()[..., None], MASKED_LOGIT)

        padded = np.full((len(indices), self._sequence, 2), MASKED_LOGIT, dtype=np.float32)
        padded[:, : logits.shape[1]] = logits.cpu().numpy()
        return padded

    def _batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Token ids, segment ids and attention mask, int64 [batch, longest rounded up]."""
        lengths = self._lengths[list(indices)]
        width = min(-(-int(lengths.max()) // PAD_MULTIPLE) * PAD_MULTIPLE, self._sequence)
        tokens = np.zeros((len(indices), width), dtype=np.int64)
        for row, index in enumerate(indices):
            tokens[row, : lengths[row]] = self._tokens[self._starts[index] : self._starts[index + 1]]

        rows = np.arange(len(indices))
        first_sep = self._question_lengths[list(indices)] + 1  # [CLS] question [SEP] document [SEP]
        tokens[:, 0] = CLS
        tokens[rows, first_sep] = SEP
        tokens[rows, lengths - 1] = SEP
        position = np.arange(width)
        mask = position < lengths[:, None]
        segments = (position > first_sep[:, None]) & mask
        return torch.from_numpy(tokens), torch.from_numpy(segments).long(), torch.from_numpy(mask).long()


def sample_tokens(rng: np.random.Generator, sequence: int) -> npt.NDArray[np.int64]:
    """Tokens of each sample, at most ``sequence``."""
    share = rng.lognormal(np.log(MEDIAN_SHARE), SPREAD, SAMPLES).clip(LEAST_SHARE, 1.0)
    return (share * sequence).astype(np.int64)


def check_config(weights: Path, size: Size) -> None:
    """Hold a transformers folder's config.json, where there is one, against the network.

    Raises:
        WorkloadError: unreadable, or of another size; names file and field.
    """
    path = weights / "config.json"
    if not path.is_file():
        return

    try:
        found: dict[str, Any] = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise WorkloadError(f"weights config {path} cannot be read: {error}") from error

    wanted = {
        **SHAPE[size],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": TOKEN_TYPES,
    }
    different = [
        f"{key} is {found.get(key)}, {size} has {value}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    if different:
        raise WorkloadError(f"weights config {path} is not of bert {size}: {'; '.join(different)}")
