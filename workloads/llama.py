"""Text generation: transformers' LlamaForCausalLM in the shape of Llama-3.2-1B, prefill and greedy decoding.

A batch's prompts go through the network at once (prefill), then one token of each at a time (llama_decoding.py), with
keys and values in a StaticCache: fixed shapes, and no memory asked for while decoding. Prompts of a batch are padded
on the right: causal attention never looks there from within a prompt, and in decoding a mask hides it.
"""

import math
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

from workloads import grouped_attention
from workloads.answers import of_size
from workloads.engine import chosen
from workloads.fidelity import Choices, Fidelity, Pair
from workloads.llama_decoding import Decoding
from workloads.pipeline import SORTED_BATCHES, FirstTokens
from workloads.precision import compute_dtype, is_exact, to_device
from workloads.protocol import Size, WorkloadOptions
from workloads.quantised import form_of, quantise, told
from workloads.weights import check_config, load_weights, told_weights

SHAPE: dict[Size, dict[str, int]] = {
    "full": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "small": {
        "vocab_size": 4096,
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
    },
}
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
"""Rotary position embeddings of Llama 3.2."""

LONGEST_PROMPT: dict[Size, int] = {"full": 512, "small": 32}
NEW_TOKENS: dict[Size, int] = {"full": 128, "small": 8}
"""Generated for every sample: no token ends a text early."""
SAMPLES = 4096
PAD_MULTIPLE = 16
"""Prompts are padded to the batch's longest, rounded up to this."""
MEDIAN_SHARE, SPREAD, LEAST_SHARE = 0.4, 0.6, 1 / 16
"""Lengths as shares of the longest: log-normal, clipped; this project's choice, no data set's."""
TENSORS_AT_MOST = 4096
PREFIX = "model."
"""Of the checkpoint's names, before those of the network without its head, which shares the embedding's weights."""


def config(size: Size) -> LlamaConfig:
    """The shape; full is Llama-3.2-1B's config.json.

    Random weights of the small one are larger by as much as its layers are narrower: otherwise the embedding, which
    is also the head, outweighs what the layers add, and the text is the prompt's last token again and again.
    """
    return LlamaConfig(
        **SHAPE[size],
        max_position_embeddings=131_072,
        rms_norm_eps=1e-5,
        rope_parameters=dict(ROPE),
        tie_word_embeddings=True,
        initializer_range=0.02 * math.sqrt(2048 / SHAPE[size]["hidden_size"]),
        attn_implementation=grouped_attention.NAME,
    )


def build(size: Size) -> LlamaForCausalLM:
    """The network, in evaluation, each of its norms in one call (transformers' is six)."""
    network = LlamaForCausalLM(config(size)).eval()
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, LlamaRMSNorm):
                setattr(module, name, nn.RMSNorm(child.weight.shape[0], child.variance_epsilon))

    return network


def draw(network: LlamaForCausalLM, seed: int, threads: int) -> None:
    """Random weights as transformers draws them: normal, and ones for the norms; of bf16's values, as Llama's own are,
    so that they are the same in 16 bits (nearly: fp16's least are 6e-8 apart).

    Each tensor has a generator of its own, so that on a CPU several threads share the work: a thousand million
    numbers take one about ten seconds. A GPU draws its own by itself (weights.seeded).
    """

    def fill(numbered: tuple[int, Tensor]) -> None:
        number, tensor = numbered
        if tensor.dim() == 1:
            tensor.fill_(1.0)
        else:
            generator = torch.Generator(tensor.device).manual_seed(seed * TENSORS_AT_MOST + number)
            drawn = torch.empty(tensor.shape, device=tensor.device)
            tensor.copy_(drawn.normal_(0, network.config.initializer_range, generator=generator).bfloat16())

    with ThreadPoolExecutor(threads if network.device.type == "cpu" else 1) as pool:
        for _ in pool.map(fill, enumerate(parameter.data for parameter in network.parameters())):
            pass  # read to the end, so that an error comes out


def prompt_tokens(rng: np.random.Generator, longest: int) -> npt.NDArray[np.int64]:
    """Tokens of each sample's prompt, at most ``longest``."""
    share = rng.lognormal(np.log(MEDIAN_SHARE), SPREAD, SAMPLES).clip(LEAST_SHARE, 1.0)
    return (share * longest).astype(np.int64)


def mean_prompt(size: Size) -> int:
    """Tokens of a prompt of mean length, with seed 0."""
    return round(float(prompt_tokens(np.random.default_rng(0), LONGEST_PROMPT[size]).mean()))


def flops_per_sample(size: Size) -> int:
    """FLOPs of one sample of mean length, unpadded: every token through the network once, every new one through its
    head; counted on the meta device (attention as if it saw the whole text from every token)."""
    new = NEW_TOKENS[size]
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        count = mean_prompt(size) + new - 1
        build(size)(
            input_ids=torch.zeros(1, count, dtype=torch.int64),
            attention_mask=torch.ones(1, 1, count, count, dtype=torch.bool),
            logits_to_keep=new,
            use_cache=False,
        )

    return int(counter.get_total_flops())


def token_agreement(pairs: Iterable[Pair]) -> Fidelity:
    """`Choices` of tokens.

    Raises:
        WorkloadError: an answer has not the reference's size.
    """
    choices = Choices()
    for number, (answer, reference) in enumerate(pairs):
        of_size(answer, number, reference.nbytes, "the reference's tokens")
        choices.add(np.frombuffer(answer, reference.dtype), reference.ravel())

    return Fidelity(
        metric="token agreement",
        value=choices.percent,
        samples=choices.samples,
        details=choices.told("tokens"),
    )


class Llama:
    """Answers: int64 [batch, 128 (8 for small)], the tokens that follow each prompt."""

    fidelity = staticmethod(token_agreement)

    def __init__(self, name: str, options: WorkloadOptions) -> None:  # noqa: ARG002  the catalogue's
        self._dtype = compute_dtype(options)
        self._options = options
        self.new_tokens = self._new = NEW_TOKENS[options.size]
        self._longest = LONGEST_PROMPT[options.size]
        self.total_sample_count = SAMPLES
        self.notes: list[str] = []

    def load(self) -> None:
        """Build the network and the whole sample library (a few MB of token ids).

        Raises:
            WorkloadError: weights of another shape or kind, naming file and key.
        """
        options = self._options
        self.network = self._build(self._dtype)
        self._exact: LlamaForCausalLM | None = self.network if is_exact(options) else None
        form = form_of(options)
        quantised = "" if form is None else told(quantise(self.network.model, form), form)
        self._decodings: dict[int, Decoding] = {}
        rng = np.random.default_rng(options.seed)
        self._lengths = prompt_tokens(rng, self._longest)
        self._starts = np.concatenate(([0], np.cumsum(self._lengths)))
        self._tokens = rng.integers(0, SHAPE[options.size]["vocab_size"], int(self._starts[-1]), np.int64)
        self.notes = [
            told_weights(options, "; the text means nothing"),
            f"inputs: synthetic, seed {options.seed}: {SAMPLES} prompts of {self._lengths.min()} to "
            f"{self._lengths.max()} tokens, mean {self._lengths.mean():.0f}; each batch starts in host memory, padded "
            f"to its longest, rounded up to {PAD_MULTIPLE}; under Offline of prompts of like length, {SORTED_BATCHES} "
            "batches' worth sorted at a time",
            f"each sample generates {self._new} tokens, greedily: tokens/s = {self._new} × samples/s. A batch's first "
            "tokens are told together, after its prefill, its texts when the longest is complete",
        ]
        self.notes += [quantised] if quantised else []
        if options.device == "cpu" or chosen(options) == "eager":
            self.notes.append("engine: eager; on a GPU a step of decoding can be a CUDA graph")
            return

        self._decodings[options.batch_size] = self._new_decoding(options.batch_size, self.notes)

    def load_samples(self, indices: Sequence[int]) -> None:
        """Nothing to do: every sample is in memory from ``load`` on."""

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Nothing to do: the library is kept."""

    def prompt(self, index: int) -> npt.NDArray[np.int64]:
        """One sample's token ids, ``[length]``."""
        return self._tokens[self._starts[index] : self._starts[index + 1]]

    def lengths(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Tokens of each prompt: a batch's prefill is as long as its longest (pipeline.py)."""
        tokens: npt.NDArray[np.int64] = self._lengths[np.asarray(indices)]
        return tokens

    def predict(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """Int64 [batch, 128 (8 for small)]."""
        return self.generate(indices, None)

    def generate(self, indices: Sequence[int], first_tokens: FirstTokens | None) -> npt.NDArray[np.int64]:
        """The same, the first token of each told as soon as the host has it (pipeline.py)."""
        rows = [*indices, *([indices[0]] * (self._rows(len(indices)) - len(indices)))]
        return self._generate(self._decoding_of(len(rows)), rows, len(indices), first_tokens)

    def reference(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        """The same, one sample at a time in fp32."""
        if self._exact is None:
            self._exact = self._build(torch.float32)

        decoding = Decoding(self._exact, 1, self._longest, self._new)
        return np.concatenate([self._generate(decoding, [index], 1, None) for index in indices])

    def _rows(self, count: int) -> int:
        """Computed for ``count`` samples: on a GPU a power of two, or a whole batch, each with a graph."""
        if self._options.device == "cpu":
            return count

        return min(1 << (count - 1).bit_length(), self._options.batch_size)

    def _decoding_of(self, rows: int) -> Decoding:
        if rows not in self._decodings:
            if self._options.device == "cpu":
                self._decodings.clear()  # of one size alone: its memory is free before the next one's is taken

            self._decodings[rows] = self._new_decoding(rows, [])

        return self._decodings[rows]

    @torch.inference_mode()
    def _new_decoding(self, rows: int, notes: list[str]) -> Decoding:
        decoding = Decoding(self.network, rows, self._longest, self._new)
        if self._options.device == "cuda" and chosen(self._options) != "eager":
            # Of the longest prompt: every other prefill finds its memory within what this one took.
            decoding.begin(*self._prompts([int(self._lengths.argmax())] * rows))
            decoding.capture(self._options, notes)

        return decoding

    def _build(self, dtype: torch.dtype) -> LlamaForCausalLM:
        options = self._options
        with torch.device("meta"):
            network = build(options.size).to(dtype)

        network.to_empty(device=options.device)
        network.model.rotary_emb = LlamaRotaryEmbedding(network.config).to(options.device)
        network.tie_weights()
        if options.weights is None:
            draw(network, options.seed, options.threads)
        else:
            wanted = {**SHAPE[options.size], "tie_word_embeddings": True}
            check_config(options.weights, wanted, "llama", options.size, source="Llama-3.2-1B")
            load_weights(network.model, options.weights, unused=("lm_head.",), renamed={PREFIX: ""})

        return network.requires_grad_(False)

    @torch.inference_mode()
    def _generate(
        self, decoding: Decoding, rows: Sequence[int], count: int, first_tokens: FirstTokens | None
    ) -> npt.NDArray[np.int64]:
        """The texts of the first ``count`` rows."""
        answers = [decoding.begin(*self._prompts(rows)).clone()]
        if first_tokens is not None:
            first_tokens(answers[0][:count].cpu().numpy())

        answers += [decoding.next().clone() for _ in range(self._new - 1)]
        generated: npt.NDArray[np.int64] = torch.cat(answers, dim=1)[:count].cpu().numpy()
        return generated

    def _prompts(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Padded prompts and their lengths, on the device."""
        lengths = torch.from_numpy(self._lengths[list(indices)])
        return to_device(self._padded(indices), self._options), to_device(lengths, self._options)

    def _padded(self, indices: Sequence[int]) -> Tensor:
        """Token ids ``[batch, longest rounded up]``, zeros behind each prompt."""
        longest = int(self._lengths[list(indices)].max())
        width = min(-(-longest // PAD_MULTIPLE) * PAD_MULTIPLE, self._longest)
        tokens = np.zeros((len(indices), width), dtype=np.int64)
        for row, index in enumerate(indices):
            tokens[row, : self._lengths[index]] = self.prompt(index)

        return torch.from_numpy(tokens)
