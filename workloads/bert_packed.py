"""BERT without padding: the tokens of a batch one after another, attention within each sample alone.

MLPerf's samples are 54 % padding at 384 tokens; here none is computed. Linear layers see one long sequence;
attention sees where each sample begins: a kernel of ours, or torch's FlashAttention.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional
from transformers import BertForQuestionAnswering

from workloads.engine import Graphs, HostCopies, OnItsWay, chosen, compile_with, end_compiling
from workloads.passes import PLAIN, Form, Norm, Passes, Tables
from workloads.passes_at_hand import kernels
from workloads.protocol import WorkloadError, WorkloadOptions
from workloads.quantised import ScaledLinear, form_of, told

LADDER = (256, 512, 768, 1024, 1536, 2048, 3072, 4096)
"""Tokens of a batch that have a CUDA graph each. Of more tokens than the last the GPU is busy for longer than the
host needs to launch (BERT-large on an H200: 11 000 tokens run as fast eagerly as in a graph), so they run as they
are, with no token too many."""
ALIGNED = 64
"""Beyond the ladder, tokens are a multiple of it: what matrix products like."""
PRODUCTS_A_LAYER = 4
FLAT = (
    "the logits of random weights are nearly flat: the error of 8 bits flips spans, and no choice of scales or layers "
    "was found that keeps 99 % of span F1 (docs/workloads.md)"
)
DEPTH = 2
"""Batches in flight."""


@dataclass(frozen=True, slots=True)
class Packed:
    """A batch's samples one after another."""

    words: npt.NDArray[np.int32]
    """[3, tokens]: token ids, segments, positions."""
    bounds: npt.NDArray[np.int32]
    """[samples + 1]: where each begins, and where the last ends."""

    @property
    def tokens(self) -> int:
        return int(self.words.shape[1])


Linear = Callable[[Tensor], Tensor]
"""``x @ weight.T + bias``, of weights that it holds."""


class Layer(NamedTuple):
    """One encoder layer; query, key and value in one product, GELU in ``up``."""

    qkv: Linear
    attended: Linear
    attended_norm: Norm
    up: Linear
    down: Linear
    norm: Norm


class ScaledLayer(NamedTuple):
    """The same in 8 bits; GELU comes after ``up``."""

    qkv: ScaledLinear
    attended: ScaledLinear
    attended_norm: Norm
    up: ScaledLinear
    down: ScaledLinear
    norm: Norm


class PackedNetwork:
    """BertForQuestionAnswering's arithmetic over packed samples, from its weights.

    On a GPU the activation is cuBLASLt's own epilogue, GELU by tanh: it differs from BERT's, by erf, by 5e-4 at
    most, less than bf16 tells apart.

    Args:
        form: of the encoder's products; None: that of the network.
    """

    def __init__(self, network: BertForQuestionAnswering, longest: int, form: Form | None = None) -> None:
        bert: Any = network.bert
        self.heads, self.width = network.config.num_attention_heads, network.config.hidden_size
        self._longest = longest
        self._form = form
        embeddings = bert.embeddings
        self._tables: Tables = (
            embeddings.word_embeddings.weight.detach(),
            embeddings.token_type_embeddings.weight.detach(),
            embeddings.position_embeddings.weight.detach(),
        )
        self._first_norm = _norm(embeddings.LayerNorm)
        self._layers = [] if form else [_layer(each) for each in bert.encoder.layer]
        self._scaled = [_scaled_layer(each, form) for each in bert.encoder.layer] if form else []
        self._last = _of(network.qa_outputs)
        self.passes: Passes = PLAIN

    def forward(self, words: Tensor, bounds: Tensor) -> Tensor:
        """Int32 ``words`` [3, tokens] and ``bounds`` [n + 1] → float32 logits [tokens, 2]."""
        x = self.passes.embedded(words, self._tables, self._first_norm)
        x = self._encoded(x, bounds) if self._form is None else self._encoded_by(self._form, x, bounds)
        return functional.linear(x, *self._last).float()

    def _encoded(self, x: Tensor, bounds: Tensor) -> Tensor:
        add_norm = self.passes.add_norm
        for layer in self._layers:
            attended = self._attend(layer.qkv(x), bounds)
            x = add_norm(layer.attended(attended), x, layer.attended_norm)
            x = add_norm(layer.down(layer.up(x)), x, layer.norm)

        return x

    def _encoded_by(self, form: Form, x: Tensor, bounds: Tensor) -> Tensor:
        """In 8 bits: every product is followed by one pass over what it wrote, and that of qkv by none in fp8."""
        passes, dtype = self.passes, x.dtype
        rows = passes.quantised(x, form)
        for layer in self._scaled:
            attended = self._attend(passes.scaled(layer.qkv.product(rows, dtype), dtype), bounds)
            product = layer.attended.product(passes.quantised(attended, form), dtype)
            x, rows = passes.normed(product, x, layer.attended_norm, form)
            activated = passes.activated(layer.up.product(rows, dtype), form)
            x, rows = passes.normed(layer.down.product(activated, dtype), x, layer.norm, form)

        return x

    def _attend(self, qkv: Tensor, bounds: Tensor) -> Tensor:
        return self.passes.attended(qkv.view(len(qkv), 3, self.heads, -1), bounds, self._longest)


class PackedBert:
    """Runs packed batches on the GPU: one copy to it, a graph where there is one, one copy back.

    Raises:
        WorkloadError: the engine asked for does not work here.
    """

    def __init__(
        self, network: BertForQuestionAnswering, longest: int, options: WorkloadOptions, notes: list[str]
    ) -> None:
        form = form_of(options)
        self._network = PackedNetwork(network, longest, form)
        if form is not None:
            notes.append(told(len(network.bert.encoder.layer) * PRODUCTS_A_LAYER, form))
            notes += [FLAT] if options.weights is None and options.size == "full" else []

        self._longest = longest
        self._engine = chosen(options)
        self._copies = HostCopies(DEPTH)
        self._most = -(-options.batch_size * longest // ALIGNED) * ALIGNED + longest
        # The last of a ladder step's tokens belong to no sample: sequences of their own, each of its full length.
        self._bounds = options.batch_size + 2 + max(LADDER) // longest
        size = 3 * self._most + self._bounds
        self._on_device = torch.zeros(size, dtype=torch.int32, device="cuda")
        self._staged: deque[Tensor] = deque(
            torch.zeros(size, dtype=torch.int32, pin_memory=True) for _ in range(DEPTH + 1)
        )
        found = None if self._engine == "compile" else kernels()
        if found is not None:
            self._network.passes = found
            notes.append("attention, and what else comes between two products, is one kernel each (Triton)")

        self._forward = self._network.forward
        if self._engine == "compile":
            compile_with(options.threads)
            self._forward = torch.compile(self._network.forward, dynamic=True)

        self._graphs = self._captured(options, notes)

    def begin(self, batch: Packed) -> OnItsWay:
        """Begin a batch; its logits, float32 [tokens or more, 2], arrive."""
        step = step_for(batch.tokens, self._most) if self._graphs else None
        tokens = -(-batch.tokens // ALIGNED) * ALIGNED if step is None else step
        self._last_tokens = tokens
        staged = self._staged[0]
        self._staged.rotate(-1)
        fill(staged.numpy(), batch, tokens, self._bounds, self._longest)
        used = 3 * tokens + self._bounds
        with torch.inference_mode():
            self._on_device[:used].copy_(staged[:used], non_blocking=True)
            return self._copies.fetch(self._compute(tokens), self._most)

    def bare(self) -> None:
        """Compute the last batch once more; the GPU has it."""
        with torch.inference_mode():
            self._compute(self._last_tokens)

    def _compute(self, tokens: int) -> Tensor:
        """What is on the device, as so many tokens: by their graph, if they have one."""
        if self._graphs and tokens in LADDER:
            captured: Tensor = self._graphs.replay(tokens)
            return captured

        logits = self._run(tokens)
        if self._engine == "compile":
            end_compiling()

        return logits

    def _run(self, tokens: int) -> Tensor:
        words = self._on_device[: 3 * tokens].view(3, tokens)
        return self._forward(words, self._on_device[3 * tokens : 3 * tokens + self._bounds])

    def _captured(self, options: WorkloadOptions, notes: list[str]) -> Graphs | None:
        if self._engine == "eager":
            notes.append("engine: eager, samples packed without padding")
            return None

        graphs = Graphs(self._run, max(LADDER))
        steps = [step for step in LADDER if step <= self._most]
        try:
            with torch.inference_mode():
                for step in reversed(steps):
                    empty = Packed(np.zeros((3, 0), np.int32), np.zeros(1, np.int32))
                    host = self._staged[0].numpy()
                    fill(host, empty, step, self._bounds, self._longest)
                    self._on_device.copy_(self._staged[0])
                    graphs.replay(step)

                torch.cuda.synchronize()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            if options.engine != "auto":
                raise WorkloadError(
                    f"engine {options.engine}: bert cannot be captured as CUDA graphs ({reason}); "
                    "ask for --engine eager"
                ) from error

            notes.append(f"engine: eager, samples packed without padding; CUDA graphs failed: {reason}")
            return None

        compiled = "torch.compile, " if self._engine == "compile" else ""
        notes.append(
            f"engine: {self._engine}: {compiled}CUDA graphs of batches up to {steps[-1]} tokens, launched one by one "
            "beyond; samples packed without padding"
        )
        return graphs


def step_for(tokens: int, most: int) -> int | None:
    """The least of the ladder's steps that holds so many tokens; None where there is no such step up to ``most``."""
    return next((step for step in LADDER if tokens <= step <= most), None)


def fill(staged: npt.NDArray[np.int32], batch: Packed, tokens: int, bounds: int, longest: int) -> None:
    """Write a batch into ``staged`` as ``tokens`` tokens and ``bounds`` bounds, flat one after another.

    What is too many are tokens of id 0 in sequences of at most ``longest``; bounds left over close empty ones.
    """
    words = staged[: 3 * tokens].reshape(3, tokens)
    words[:, : batch.tokens] = batch.words
    words[:, batch.tokens :] = 0
    given = len(batch.bounds)
    rest = staged[3 * tokens : 3 * tokens + bounds]
    rest[:given] = batch.bounds
    rest[given:] = np.minimum(batch.tokens + longest * np.arange(1, bounds - given + 1), tokens)


def _up(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if x.is_cuda:
        return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)

    return functional.gelu(functional.linear(x, weight, bias))


def _of(module: Any) -> tuple[Tensor, Tensor]:
    return module.weight.detach(), module.bias.detach()


def _norm(module: Any) -> Norm:
    return Norm(*_of(module), module.eps)


def _together(modules: Sequence[Any]) -> tuple[Tensor, Tensor]:
    weights, biases = zip(*(_of(module) for module in modules), strict=True)
    return torch.cat(weights), torch.cat(biases)


class _Weights(NamedTuple):
    """A layer's weights and biases."""

    qkv: tuple[Tensor, Tensor]
    attended: tuple[Tensor, Tensor]
    attended_norm: Norm
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    norm: Norm


def _weights(layer: Any) -> _Weights:
    attention = layer.attention.self
    return _Weights(
        qkv=_together([attention.query, attention.key, attention.value]),
        attended=_of(layer.attention.output.dense),
        attended_norm=_norm(layer.attention.output.LayerNorm),
        up=_of(layer.intermediate.dense),
        down=_of(layer.output.dense),
        norm=_norm(layer.output.LayerNorm),
    )


def _linear(parts: tuple[Tensor, Tensor]) -> Linear:
    return partial(functional.linear, weight=parts[0], bias=parts[1])


def _layer(layer: Any) -> Layer:
    own = _weights(layer)
    up = partial(_up, weight=own.up[0], bias=own.up[1])
    return Layer(
        *(_linear(own.qkv), _linear(own.attended), own.attended_norm), *(up, _linear(own.down), own.norm)
    )


def _scaled_layer(layer: Any, form: Form) -> ScaledLayer:
    own = _weights(layer)
    qkv, attended, up, down = (
        ScaledLinear(*parts, form) for parts in (own.qkv, own.attended, own.up, own.down)
    )
    return ScaledLayer(qkv, attended, own.attended_norm, up, down, own.norm)
