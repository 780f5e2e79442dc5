"""Encoders of text as transformers has them: BERT-base, DistilBERT, MiniLM, MPNet; a few words in, one vector out.

The shapes are those of the checkpoints that MIGPerf profiles (mig_perf, utils/common.py): multilingual BERT-base and
DistilBERT, and the multilingual MiniLM of sentence-transformers. Its mpnet is a student of MPNet with XLM-R's
architecture; here it is MPNet itself, of the same depth and width (sentence-transformers' all-mpnet-base-v2).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    MPNetConfig,
    MPNetModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from workloads.engine import AtHand, Eager, Graphs, HostCopies, compiled, engine_for
from workloads.pipeline import Pending
from workloads.precision import compute_dtype, is_exact
from workloads.protocol import Size, WorkloadOptions
from workloads.quantised import form_of, quantise, told
from workloads.samples import SampleStore
from workloads.weights import check_config, load_weights, seeded, told_weights

SEQUENCE: dict[Size, int] = {"full": 128, "small": 32}
"""Tokens of every sample: nothing is padded."""
SAMPLES = 10_000
SMALL_VOCABULARY = 8192
FIRST_WORD = 1000
"""Below it are special and unused token ids."""
UNMASKED = "unmasked"
"""``attn_implementation`` without a mask, as nothing is padded: while a CUDA graph is captured transformers makes one
all the same, which keeps FlashAttention out, and MPNet's (of a number) cannot be captured at all."""

AttentionInterface.register(UNMASKED, sdpa_attention_forward)
AttentionMaskInterface.register(UNMASKED, lambda *_, **__: None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """One of them."""

    config: Callable[..., Any]
    shape: dict[Size, dict[str, int]]
    """What of the config is not its default; small is 4 layers (DistilBERT: 2) of 256 or 128."""
    network: Callable[[Any], Any]
    """From the config; with transformers' own random initialisation."""
    embeds: bool
    """Sentence embeddings (mean of the tokens' vectors, of length one) in place of a classification."""
    unused: tuple[str, ...] = ()
    """How keys begin that checkpoints have and the network has not."""
    sources: str
    """Whose checkpoints have its shape."""


def _bert(layers: int, width: int, heads: int, vocabulary: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "vocab_size": vocabulary,
    }


def _distilbert(layers: int, width: int, heads: int, vocabulary: int) -> dict[str, int]:
    return {
        "n_layers": layers,
        "dim": width,
        "n_heads": heads,
        "hidden_dim": 4 * width,
        "vocab_size": vocabulary,
    }


ENCODERS: dict[str, Encoder] = {
    "bert-base": Encoder(
        config=BertConfig,
        shape={"full": _bert(12, 768, 12, 119_547), "small": _bert(4, 256, 4, SMALL_VOCABULARY)},
        network=BertForSequenceClassification,
        embeds=False,
        unused=("bert.embeddings.position_ids",),
        sources="bert-base-multilingual-cased",
    ),
    "distilbert": Encoder(
        config=DistilBertConfig,
        shape={"full": _distilbert(6, 768, 12, 119_547), "small": _distilbert(2, 256, 4, SMALL_VOCABULARY)},
        network=DistilBertForSequenceClassification,
        embeds=False,
        sources="distilbert-base-multilingual-cased",
    ),
    "minilm": Encoder(
        config=BertConfig,
        shape={"full": _bert(12, 384, 12, 250_037), "small": _bert(4, 128, 4, SMALL_VOCABULARY)},
        network=lambda config: BertModel(config, add_pooling_layer=False),
        embeds=True,
        unused=("pooler.", "embeddings.position_ids"),
        sources="paraphrase-multilingual-MiniLM-L12-v2",
    ),
    "mpnet": Encoder(
        config=MPNetConfig,
        shape={
            "full": _bert(12, 768, 12, 30_527) | {"max_position_embeddings": 514},
            "small": _bert(4, 256, 4, SMALL_VOCABULARY) | {"max_position_embeddings": 514},
        },
        network=lambda config: MPNetModel(config, add_pooling_layer=False),
        embeds=True,
        unused=("pooler.", "embeddings.position_ids"),
        sources="all-mpnet-base-v2",
    ),
}


def build(name: str, size: Size) -> nn.Module:
    """The network with random weights, in evaluation."""
    encoder = ENCODERS[name]
    config = encoder.config(**encoder.shape[size], attn_implementation=UNMASKED)
    network: nn.Module = encoder.network(config)
    return network.eval()


def bias_once(network: MPNetModel, length: int) -> None:
    """Compute MPNet's bias of relative positions now, for all texts of ``length`` tokens: transformers does it in each
    forward pass, some versions of it on the CPU, from where a CUDA graph can take nothing."""
    encoder: Any = network.encoder
    with torch.no_grad():
        bias: Tensor = encoder.compute_position_bias(torch.empty(1, length, 1, device=network.device))

    encoder.compute_position_bias = lambda _hidden: bias


def flops_per_sample(name: str, size: Size) -> int:
    """FLOPs of one sample; counted on the meta device."""
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        build(name, size)(input_ids=torch.zeros(1, SEQUENCE[size], dtype=torch.int64))

    return int(counter.get_total_flops())


class TextEncoder:
    """Answers: float32 [batch, classes] logits, or [batch, width] sentence embeddings of length one."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        self._dtype = compute_dtype(options)
        self._name = name
        self._encoder = ENCODERS[name]
        self._options = options
        self._exact: nn.Module | None = None
        self._samples: SampleStore | None = None
        self._network: nn.Module | None = None
        self.engine: Eager | Graphs | None = None
        """Runs the network on the batch in its buffers; None before ``load``."""
        self.depth = 2 if options.device == "cuda" else 1
        """Batches in flight (pipeline.py)."""
        self._copies = HostCopies(self.depth)
        self.total_sample_count = SAMPLES
        self.notes: list[str] = []

    def load(self) -> None:
        """Build the network, and the token ids of the whole sample library (10 MB).

        Raises:
            WorkloadError: weights of another shape or kind, naming file and key.
        """
        options, encoder = self._options, self._encoder
        length = options.sequence_length or SEQUENCE[options.size]
        vocabulary = encoder.shape[options.size]["vocab_size"]
        rng = np.random.default_rng(options.seed)
        tokens = torch.from_numpy(rng.integers(FIRST_WORD, vocabulary, (SAMPLES, length), np.int64))
        self._samples = SampleStore(
            lambda index, row: row.copy_(tokens[index]),
            shape=(length,),
            dtype=torch.int64,
            device=torch.device(options.device),
            batch_size=options.batch_size,
        )
        plain, form = self._placed(self._dtype), form_of(options)
        self._exact = plain if is_exact(options) else None
        quantised = "" if form is None else told(quantise(plain, form), form)
        self._network = compiled(plain, options)
        answers = "sentence embeddings" if encoder.embeds else "logits of a classification"
        self.notes = [
            told_weights(options),
            f"inputs: synthetic, seed {options.seed}: {SAMPLES} samples of {length} token ids each, no padding; "
            "each batch starts in host memory",
            f"{self._name} {options.size} has the shape of {encoder.sources}"
            f"{'' if options.size == 'full' else ' made small'}; answers: {answers}",
        ]
        self.notes += [quantised] if quantised else []
        self.engine = engine_for(self._forward, options, self.notes)

    def load_samples(self, indices: Sequence[int]) -> None:
        self._store().load(indices)

    def unload_samples(self, indices: Sequence[int]) -> None:
        self._store().unload(indices)

    def predict(self, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        """Float32 [batch, classes or width]."""
        answers: npt.NDArray[np.float32] = self.bare(indices)().cpu().numpy()
        return answers

    def begin(self, indices: Sequence[int]) -> Pending:
        """Begin a batch (pipeline.py)."""
        if self.depth == 1:
            return AtHand(self.predict(indices))

        with torch.inference_mode():
            return self._copies.fetch(self.bare(indices)(), self._options.batch_size)

    def bare(self, indices: Sequence[int]) -> Callable[[], Tensor]:
        """What computes a batch of these samples that stays on the device."""
        engine = self.engine
        assert engine is not None, "load() first"
        self._store().gather(indices)

        @torch.inference_mode()
        def run() -> Tensor:
            answers: Tensor = engine.run(len(indices))
            return answers

        return run

    def reference(self, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        """The same, one sample at a time in fp32."""
        if self._exact is None:
            self._exact = self._placed(torch.float32)

        with torch.inference_mode():
            rows = [self._vectors(self._exact, self._store().gather([index])) for index in indices]
            answers: npt.NDArray[np.float32] = torch.cat(rows).cpu().numpy()

        return answers

    def _forward(self, count: int) -> Tensor:
        """What the engine runs: the first ``count`` rows of the gathered batch through the network."""
        assert self._network is not None
        return self._vectors(self._network, self._store().batch(count))

    def _vectors(self, network: nn.Module, tokens: Tensor) -> Tensor:
        """Token ids ``[B, length]`` to answers, fp32."""
        raw = network(input_ids=tokens)
        if self._encoder.embeds:
            return normalize(raw.last_hidden_state.float().mean(dim=1), dim=1)

        logits: Tensor = raw.logits.float()
        return logits

    def _placed(self, dtype: torch.dtype) -> nn.Module:
        """The network with its weights, on the device, ready for inference."""
        options = self._options
        with seeded(options.seed, options.device):
            network = build(self._name, options.size)

        if options.weights is not None:
            wanted, source = ENCODERS[self._name].shape[options.size], ENCODERS[self._name].sources
            check_config(options.weights, wanted, self._name, options.size, source=source)
            load_weights(network, options.weights, unused=self._encoder.unused)

        network.to(device=options.device, dtype=dtype).requires_grad_(False)
        if isinstance(network, MPNetModel):
            bias_once(network, options.sequence_length or SEQUENCE[options.size])

        return network

    def _store(self) -> SampleStore:
        assert self._samples is not None, "load() first"
        return self._samples
