"""BERT question answering on SQuAD v1.1: transformers' BertForQuestionAnswering."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForQuestionAnswering

from workloads import squad
from workloads.bert_packed import DEPTH, Packed, PackedBert
from workloads.engine import AtHand, OnItsWay, chosen
from workloads.fidelity import span_f1
from workloads.labelled import Labelled
from workloads.pipeline import Pending
from workloads.precision import compute_dtype, is_exact, to_device
from workloads.protocol import Size, WorkloadOptions
from workloads.quantised import form_of, quantise, told
from workloads.weights import check_config, load_weights, seeded, told_weights

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

OLD_NAMES = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
"""As checkpoints converted from TensorFlow before transformers 1.0 have them. MLPerf's own model.pytorch
(mlcommons/inference, language/bert/bert_tf_to_pytorch.py) has today's names, and the pooler."""

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

    fidelity = staticmethod(span_f1)

    def __init__(self, name: str, options: WorkloadOptions) -> None:  # noqa: ARG002  the catalogue's
        self._dtype = compute_dtype(options)
        self._options = options
        self._sequence = SEQUENCE[options.size]
        self.total_sample_count = SAMPLES
        self.labelled: Labelled | None = None
        """SQuAD's answers; None with synthetic samples. Complete once ``load`` has returned."""
        self.notes: list[str] = []
        self._packed: PackedBert | None = None
        # FlashAttention is for 16 bits.
        self._packs = options.device == "cuda" and self._dtype is not torch.float32
        self.depth = DEPTH if self._packs else 1
        """Batches in flight (pipeline.py)."""

    def load(self) -> None:
        """Build the network and the whole sample library (a few MB of token ids)."""
        options = self._options
        self._network = self._build(self._dtype)
        self._reference: BertForQuestionAnswering | None = None
        inputs = self._make_samples() if options.data is None else self._read_samples(options.data)
        self._starts = np.concatenate(([0], np.cumsum(self._lengths)))
        self.notes = [
            told_weights(options),
            f"{inputs}; each batch starts in host memory",
        ]
        form = form_of(options)
        if self._packs:
            self._packed = PackedBert(self._network, self._sequence, options, self.notes)
            self.notes.append(f"logits past a sample's end are {MASKED_LOGIT:.0f}")
            return

        if form is not None:
            self.notes.append(told(quantise(self._network.bert.encoder, form), form))

        chosen(options)  # on a CPU, says why there are no graphs
        self.notes.append("engine: eager; bert has others on a GPU, in fp16 and bf16")
        self.notes.append(
            f"padding: to the batch's longest, rounded up to {PAD_MULTIPLE} tokens; MLPerf's reference pads "
            f"every sample to 384. Logits past a sample's end are {MASKED_LOGIT:.0f}"
        )

    def _make_samples(self) -> str:
        """Synthetic tokens with SQuAD's lengths; returns what they are."""
        seed = self._options.seed
        rng = np.random.default_rng(seed)
        self._lengths = sample_tokens(rng, self._sequence)
        self._question_lengths = np.minimum(rng.integers(8, 20, SAMPLES), self._lengths - 4)
        self._tokens = rng.integers(FIRST_WORD, VOCABULARY, int(self._lengths.sum()), dtype=np.int64)
        return (
            f"inputs: synthetic, seed {seed}: {SAMPLES} samples of {self._lengths.min()} to "
            f"{self._lengths.max()} tokens, mean {self._lengths.mean():.0f}, as SQuAD v1.1's at {self._sequence}"
        )

    def _read_samples(self, folder: Path) -> str:
        """SQuAD's features and their labels; returns what they are."""
        found = squad.inspect(folder)
        features = squad.Features(found, self._sequence)
        self._lengths = features.lengths
        self._question_lengths = features.question_lengths
        self._tokens = features.tokens
        self.total_sample_count = len(features.samples)
        self.labelled = squad.SquadLabels(features)
        text = (
            f"inputs: {found.file}, labelled: {len(found.questions)} questions as {len(features.samples)} samples of "
            f"at most {self._sequence} tokens (windows advance by {features.stride}), mean "
            f"{self._lengths.mean():.0f}; words of {found.vocabulary}"
        )
        if self._options.size == "small":
            text += f". MLPerf's are of 384 tokens: at {self._sequence} the windows and the F1 are others"
        elif len(features.samples) != SAMPLES:
            text += f". MLPerf's data set makes {SAMPLES} samples: this is not all of it, or another one"

        return text

    def load_samples(self, indices: Sequence[int]) -> None:
        """Nothing to do: every sample is in memory from ``load`` on."""

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Nothing to do: the library is kept."""

    def predict(self, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        """Float32 [batch, 384 (128 for small), 2]."""
        if self._packed is not None:
            return self._begin_packed(self._packed, indices).result()

        return self._answer(self._network, indices)

    def begin(self, indices: Sequence[int]) -> Pending:
        """Begin a batch (pipeline.py)."""
        return (
            AtHand(self.predict(indices))
            if self._packed is None
            else self._begin_packed(self._packed, indices)
        )

    def bare(self, indices: Sequence[int]) -> Callable[[], object]:
        """What computes a batch of these samples that stays on the device, for speed measurements."""
        self.predict(indices)
        return partial(self.predict, indices) if self._packed is None else self._packed.bare

    def _begin_packed(self, packed: PackedBert, indices: Sequence[int]) -> "_PaddedOnArrival":
        batch = self.packed(indices)
        return _PaddedOnArrival(packed.begin(batch), batch, self._sequence)

    def reference(self, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        """The same, one sample at a time in fp32."""
        if self._reference is None:
            self._reference = self._network if is_exact(self._options) else self._build(torch.float32)

        return np.concatenate([self._answer(self._reference, [index]) for index in indices])

    def _build(self, dtype: torch.dtype) -> BertForQuestionAnswering:
        options = self._options
        with seeded(options.seed, options.device):
            network = build(options.size)

        if options.weights is not None:
            check_config(options.weights, config_of(options.size), "bert", options.size)
            load_weights(network, options.weights, unused=UNUSED_KEYS, renamed=OLD_NAMES)

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

    def packed(self, indices: Sequence[int]) -> Packed:
        """These samples one after another."""
        asked = np.asarray(indices)
        lengths = self._lengths[asked]
        bounds = np.concatenate(([0], np.cumsum(lengths)))
        at = np.arange(bounds[-1])
        words = np.empty((3, len(at)), np.int32)
        words[2] = at - np.repeat(bounds[:-1], lengths)
        words[0] = self._tokens[np.repeat(self._starts[asked], lengths) + words[2]]
        first_sep = self._question_lengths[asked] + 1  # [CLS] question [SEP] document [SEP]
        words[0, bounds[:-1]] = CLS
        words[0, bounds[:-1] + first_sep] = words[0, bounds[1:] - 1] = SEP
        words[1] = words[2] > np.repeat(first_sep, lengths)
        return Packed(words, bounds.astype(np.int32))

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


class _PaddedOnArrival:
    """A packed batch on its way; a Pending (pipeline.py)."""

    def __init__(self, logits: OnItsWay, batch: Packed, sequence: int) -> None:
        self._logits = logits
        self._batch = batch
        self._sequence = sequence

    def done(self) -> bool:
        """Whether its logits are on the host."""
        return self._logits.done()

    def result(self) -> npt.NDArray[np.float32]:
        """Float32 [batch, sequence, 2], with the masked logit past each sample's end."""
        logits, bounds = self._logits.result(), self._batch.bounds
        padded = np.full((len(bounds) - 1, self._sequence, 2), MASKED_LOGIT, dtype=np.float32)
        for row, (start, stop) in enumerate(pairwise(bounds.tolist())):
            padded[row, : stop - start] = logits[start:stop]

        return padded


def sample_tokens(rng: np.random.Generator, sequence: int) -> npt.NDArray[np.int64]:
    """Tokens of each sample, at most ``sequence``."""
    share = rng.lognormal(np.log(MEDIAN_SHARE), SPREAD, SAMPLES).clip(LEAST_SHARE, 1.0)
    return (share * sequence).astype(np.int64)


def config_of(size: Size) -> dict[str, int]:
    """What a config.json of this network says."""
    return {
        **SHAPE[size],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": TOKEN_TYPES,
    }
