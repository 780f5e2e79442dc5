"""Training: real steps of an inference workload's network, forward, backward and optimizer, on synthetic labels.

One LoadGen sample is one training sample, one batch is one step, and the answer to a sample is its loss in that step.
Weights, gradients and the optimizer's state are fp32; ``--precision bf16`` and ``fp16`` compute under autocast, fp16
with a gradient scaler.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

from workloads import bert, resnet50, swin_transformer, vision_transformer
from workloads.classification import CLASSES, SIDES
from workloads.precision import compute_dtype, to_device
from workloads.protocol import Size, WorkloadError, WorkloadOptions
from workloads.samples import SampleStore, SyntheticImages
from workloads.weights import load_weights, seeded

IMAGENET_TRAINING_IMAGES = 1_281_167
SGD_BATCH = 256
"""The batch that the learning rate of SGD is given for; others take it in proportion (Goyal et al. 2017)."""
LARGEST_GRADIENT = 1.0
"""Norm to which AdamW's gradients are clipped, as is usual for transformers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one network is trained; learning rates are constant."""

    network: Callable[[Size], nn.Module]
    """Random weights, drawn from torch's generator."""
    samples: "Callable[[WorkloadOptions, torch.dtype], TrainingSamples]"
    sample_count: int
    optimizer: type[torch.optim.SGD] | type[torch.optim.AdamW]
    learning_rate: float
    weight_decay: float
    unused_weights: tuple[str, ...] = ()


class TrainingSamples(Protocol):
    """The data of one recipe: batches on the device, and the loss of a network on them."""

    said: str
    """What they are, for the notes."""

    def load(self, indices: Sequence[int]) -> None:
        """Have these samples in memory."""

    def unload(self, indices: Sequence[int]) -> None:
        """Let go of them."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """These samples on the device; valid until the next call."""

    def losses(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """The loss of each sample, ``[B]`` fp32."""


class LabelledImages:
    """Synthetic images of ImageNet's shape, each with a label of 1000."""

    def __init__(self, options: WorkloadOptions, dtype: torch.dtype) -> None:
        side = SIDES[options.size]
        self._options = options
        self.said = f"synthetic images 3×{side}×{side} with random labels of {CLASSES}, seed {options.seed}"
        labels = np.random.default_rng(options.seed).integers(0, CLASSES, IMAGENET_TRAINING_IMAGES, np.int64)
        self._labels = torch.from_numpy(labels)
        self._store = SampleStore(
            SyntheticImages(seed=options.seed, side=side).fill,
            shape=(side, side, 3),
            dtype=dtype,
            device=torch.device(options.device),
            batch_size=options.batch_size,
            threads=options.threads,
        )

    def load(self, indices: Sequence[int]) -> None:
        self._store.load(indices)

    def unload(self, indices: Sequence[int]) -> None:
        self._store.unload(indices)

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Images ``[B, 3, side, side]``, channels last, and labels ``[B]``."""
        labels = to_device(self._labels[list(indices)], self._options)
        return self._store.gather(indices).permute(0, 3, 1, 2), labels

    def losses(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        images, labels = batch
        return cross_entropy(network(images).float(), labels, reduction="none")


class AnsweredQuestions:
    """Synthetic token ids with SQuAD's lengths, each with a place where its answer begins and one where it ends."""

    def __init__(self, options: WorkloadOptions, dtype: torch.dtype) -> None:  # noqa: ARG002  tokens have none
        self._options = options
        rng = np.random.default_rng(options.seed)
        self._sequence = bert.SEQUENCE[options.size]
        self._lengths = bert.sample_tokens(rng, self._sequence)
        count = len(self._lengths)
        self._tokens = rng.integers(bert.FIRST_WORD, bert.VOCABULARY, (count, self._sequence), np.int32)
        self._places = rng.integers(0, self._lengths[:, None], (count, 2), np.int64)
        self.said = (
            f"synthetic samples of {self._lengths.min()} to {self._lengths.max()} tokens, mean "
            f"{self._lengths.mean():.0f}, with random places of the answer, seed {options.seed}; padded to the batch's "
            f"longest, rounded up to {bert.PAD_MULTIPLE}"
        )

    def load(self, indices: Sequence[int]) -> None:
        """Nothing to do: every sample is in memory."""

    def unload(self, indices: Sequence[int]) -> None:
        """Nothing to do: the library is kept."""

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Token ids and attention mask ``[B, width]``, places ``[B, 2]``."""
        chosen = list(indices)
        lengths = self._lengths[chosen]
        width = min(-(-int(lengths.max()) // bert.PAD_MULTIPLE) * bert.PAD_MULTIPLE, self._sequence)
        mask = np.arange(width) < lengths[:, None]
        tokens = np.where(mask, self._tokens[chosen, :width], 0)
        arrays = (tokens.astype(np.int64), mask.astype(np.int64), self._places[chosen])
        return tuple(to_device(torch.from_numpy(array), self._options) for array in arrays)

    def losses(self, network: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        """Mean of the cross-entropies of where the answer begins and where it ends, as BERT is tuned on SQuAD."""
        tokens, mask, places = batch
        answer = network(input_ids=tokens, attention_mask=mask)
        logits = torch.stack((answer.start_logits, answer.end_logits), dim=1).float()
        logits = logits.masked_fill(mask[:, None, :] == 0, bert.MASKED_LOGIT)
        both = cross_entropy(logits.flatten(0, 1), places.flatten(), reduction="none")
        return both.view(-1, 2).mean(dim=1)


RECIPES: dict[str, Recipe] = {
    "resnet50:train": Recipe(
        network=lambda _size: resnet50.network(),
        samples=LabelledImages,
        sample_count=IMAGENET_TRAINING_IMAGES,
        optimizer=torch.optim.SGD,
        learning_rate=0.1,
        weight_decay=1e-4,
    ),
    "vision-transformer:train": Recipe(
        network=vision_transformer.network,
        samples=LabelledImages,
        sample_count=IMAGENET_TRAINING_IMAGES,
        optimizer=torch.optim.AdamW,
        learning_rate=1e-4,
        weight_decay=0.05,
    ),
    "swin-transformer:train": Recipe(
        network=swin_transformer.network,
        samples=LabelledImages,
        sample_count=IMAGENET_TRAINING_IMAGES,
        optimizer=torch.optim.AdamW,
        learning_rate=1e-4,
        weight_decay=0.05,
    ),
    "bert:train": Recipe(
        network=bert.build,
        samples=AnsweredQuestions,
        sample_count=bert.SAMPLES,
        optimizer=torch.optim.AdamW,
        learning_rate=3e-5,
        weight_decay=0.01,
        unused_weights=bert.UNUSED_KEYS,
    ),
}


class Training:
    """Answers: float32 [batch, 1], the loss of each sample in the step that trained on it."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        self._dtype = compute_dtype(options)
        self._recipe = RECIPES[name]
        self._options = options
        self.total_sample_count = self._recipe.sample_count
        self.notes: list[str] = []

    def load(self) -> None:
        """Build network, optimizer and samples.

        Raises:
            WorkloadError: weights do not fit, naming file and key.
        """
        options, recipe = self._options, self._recipe
        self._samples = recipe.samples(options, self._dtype)
        self.network = self._fresh_network()
        self._optimizer = self._new_optimizer(self.network)
        self._scaler = torch.amp.GradScaler(options.device, enabled=self._dtype is torch.float16)
        self.steps = 0
        optimizer = recipe.optimizer.__name__
        self.notes = [
            f"weights: {options.weights}" if options.weights else f"weights: random, seed {options.seed}",
            f"inputs: {self._samples.said}; each batch starts in host memory",
            f"training: forward, backward and {optimizer} step a batch, learning rate {self._learning_rate:g} "
            f"throughout; weights fp32, computed in {options.precision}. Answers are losses: they fall as it learns, "
            "so no two runs of a batch agree",
            "engine: eager, whatever --engine says: steps are neither captured nor compiled",
        ]

    def load_samples(self, indices: Sequence[int]) -> None:
        self._samples.load(indices)

    def unload_samples(self, indices: Sequence[int]) -> None:
        self._samples.unload(indices)

    def predict(self, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        """One training step on these samples: float32 [batch, 1], their losses before it.

        Raises:
            WorkloadError: a loss is no finite number.
        """
        batch = self._samples.batch(indices)
        self._optimizer.zero_grad(set_to_none=True)
        with self._random_of(self.steps), self._autocast():
            losses = self._samples.losses(self.network, batch)

        self._scaler.scale(losses.mean()).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self._recipe.optimizer is torch.optim.AdamW:
            self._scaler.unscale_(self._optimizer)
            clip_grad_norm_(self.network.parameters(), LARGEST_GRADIENT)

        self._scaler.step(self._optimizer)
        self._scaler.update()
        self.steps += 1
        answers: npt.NDArray[np.float32] = losses.detach()[:, None].cpu().numpy()
        if not np.isfinite(answers).all():
            raise WorkloadError(
                f"training diverged: a loss of step {self.steps} is no finite number, at batch size {len(answers)} in "
                f"{self._options.precision}; take another --batch-size, --precision or --weights"
            )

        return answers

    def reference(self, indices: Sequence[int]) -> npt.NDArray[np.float32]:
        """Float32 [batch, 1]: what these samples' losses are in fp32 if they are the first batch.

        Not one sample at a time: batch normalisation makes a loss depend on the whole batch.
        """
        network = self._fresh_network()
        batch = tuple(
            tensor.float() if tensor.is_floating_point() else tensor
            for tensor in self._samples.batch(indices)
        )
        with self._random_of(0), torch.no_grad():
            losses: npt.NDArray[np.float32] = self._samples.losses(network, batch)[:, None].cpu().numpy()

        return losses

    @property
    def _learning_rate(self) -> float:
        recipe = self._recipe
        of_batch = self._options.batch_size / SGD_BATCH if recipe.optimizer is torch.optim.SGD else 1.0
        return recipe.learning_rate * of_batch

    def _fresh_network(self) -> nn.Module:
        """As training begins: on the device, in fp32."""
        options, recipe = self._options, self._recipe
        with seeded(options.seed):
            network = recipe.network(options.size)

        if options.weights is not None:
            load_weights(network, options.weights, unused=recipe.unused_weights)

        network.to(device=options.device, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack the combination
        return network.train()

    def _new_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        recipe = self._recipe
        settings: dict[str, Any] = {
            "lr": self._learning_rate,
            "weight_decay": recipe.weight_decay,
            "fused": self._options.device == "cuda",
        }
        if recipe.optimizer is torch.optim.SGD:
            settings["momentum"] = 0.9

        return recipe.optimizer(network.parameters(), **settings)

    def _autocast(self) -> AbstractContextManager[object]:
        if self._dtype is torch.float32:
            return nullcontext()

        return torch.autocast(self._options.device, dtype=self._dtype)

    def _random_of(self, step: int) -> AbstractContextManager[None]:
        """Within it, dropout and stochastic depth draw what belongs to this step, whoever drew before."""
        return drawn_from(self._options.seed << 32 | step, self._options.device)


@contextmanager
def drawn_from(seed: int, device: str) -> Iterator[None]:
    """Within it, torch's generators start from ``seed``; afterwards they are as they were before."""
    with torch.random.fork_rng(devices=[0] if device == "cuda" else []):
        torch.manual_seed(seed)
        yield


def flops_per_sample(name: str, size: Size) -> int:
    """FLOPs of one sample's forward and backward pass (the optimizer's are not counted), of mean length; counted on
    the meta device."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = RECIPES[name].network(size).train()
        if name == "bert:train":
            tokens = torch.zeros(1, bert.mean_tokens(size), dtype=torch.int64)
            answer = network(input_ids=tokens)
            (answer.start_logits + answer.end_logits).sum().backward()
        else:
            network(torch.empty(2, 3, SIDES[size], SIDES[size])).sum().backward()

    return int(counter.get_total_flops()) // (1 if name == "bert:train" else 2)
