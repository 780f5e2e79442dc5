"""What the image workloads share: a network on the device, images in, answers out."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.ops import MLP

from workloads.engine import AtHand, Eager, Graphs, HostCopies, OnItsWay, chosen, compiled, engine_for
from workloads.fused import fused, runs
from workloads.labelled import Labelled
from workloads.pipeline import Pending
from workloads.precision import compute_dtype, is_exact
from workloads.protocol import WorkloadOptions
from workloads.quantised import form_of, quantise, told
from workloads.samples import SampleStore, SyntheticImages
from workloads.weights import load_weights, seeded, told_weights

if TYPE_CHECKING:
    import numpy.typing as npt

    from workloads.protocol import Outputs

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
"""Keeps the variance of a layer under ReLU whose filters sum to zero (Brock et al. 2021, NF-ResNets)."""

FUSED = (
    "convolutions: with normalisation, addition and ReLU in one cuDNN call each, where they follow each other"
)


class ImageWorkload:
    """A Workload (protocol.py) over square RGB images of ``side``; a subclass brings network and answers."""

    total_sample_count: int

    def __init__(self, name: str, options: WorkloadOptions, *, side: int, images_in_data_set: int) -> None:
        self.name = name
        self.options = options
        self.side = side
        self.total_sample_count = images_in_data_set
        self.notes: list[str] = []
        self.labelled: Labelled | None = None
        self.device = torch.device(options.device)
        self._network: nn.Module | None = None
        self._exact: nn.Module | None = None
        self._samples: SampleStore | None = None
        self.engine: Eager | Graphs | None = None
        """Runs the network on the batch in its buffers; None before ``load``."""
        self.depth = 2 if options.device == "cuda" else 1
        """Batches in flight (pipeline.py)."""
        self._copies = HostCopies(self.depth)

    def build(self) -> nn.Module:
        """The network with random weights, drawn from torch's generator, in fp32, where torch makes tensors."""
        raise NotImplementedError

    def renamed_weights(self) -> Mapping[str, str]:
        """Pieces of names as older checkpoints have them → the network's."""
        return {}

    def reduced(self, raw: Any) -> Tensor:
        """What of the network's output the host needs, a row a sample; runs on the device, and where that is a GPU in
        shapes that the batch size sets, so that it is captured with the network."""
        raise NotImplementedError

    def answer(self, found: "npt.NDArray[Any]", indices: Sequence[int]) -> "Outputs":
        """What ``reduced`` gave for these samples, on the host, as the outputs that LoadGen logs."""
        raise NotImplementedError

    def images(self) -> Callable[[int, Tensor], object]:
        """What writes sample ``index`` into a row ``[side, side, 3]``; sets ``total_sample_count`` and, where
        the data has labels, ``labelled``."""
        raise NotImplementedError

    def synthetic_images(self) -> Callable[[int, Tensor], object]:
        self.notes.append(f"inputs: synthetic images 3×{self.side}×{self.side}, seed {self.options.seed}")
        return SyntheticImages(seed=self.options.seed, side=self.side).fill

    def load(self) -> None:
        options = self.options
        dtype = compute_dtype(options)
        self.notes.clear()
        self.labelled = None
        fill = self.images()
        self._samples = SampleStore(
            fill,
            shape=(self.side, self.side, 3),
            dtype=dtype,
            device=self.device,
            batch_size=options.batch_size,
            threads=options.threads,
        )
        if options.device == "cuda":
            self.notes.append("inputs start in pinned host memory; each batch is copied to the GPU")

        self._network, self._exact = self._made_ready(dtype)
        self.engine = engine_for(self._forward, options, self.notes)
        self.notes.append(told_weights(options, "; the answers mean nothing"))

    def load_samples(self, indices: Sequence[int]) -> None:
        self._store().load(indices)

    def unload_samples(self, indices: Sequence[int]) -> None:
        self._store().unload(indices)

    def predict(self, indices: Sequence[int]) -> "Outputs":
        assert self.engine is not None, "load() first"
        with torch.inference_mode():
            self._store().gather(indices)
            return self.answer(self.engine.run(len(indices)).cpu().numpy(), indices)

    def begin(self, indices: Sequence[int]) -> Pending:
        """Begin a batch (pipeline.py)."""
        assert self.engine is not None, "load() first"
        if self.depth == 1:
            return AtHand(self.predict(indices))

        with torch.inference_mode():
            self._store().gather(indices)
            found = self._copies.fetch(self.engine.run(len(indices)), self.options.batch_size)

        return Answering(found, partial(self.answer, indices=indices))

    def bare(self, indices: Sequence[int]) -> Callable[[], object]:
        """What computes a batch of these samples that stays on the device: the engine without copies, for speed
        measurements."""
        assert self.engine is not None, "load() first"
        with torch.inference_mode():
            self._store().gather(indices)

        return partial(self.engine.run, len(indices))

    def reference(self, indices: Sequence[int]) -> "list[Any]":
        if self._exact is None:
            self._exact = self._placed(torch.float32)

        answers: list[Any] = []
        with torch.inference_mode():
            for index in indices:
                image = self._store().gather([index]).float().permute(0, 3, 1, 2)
                answers.extend(self.answer(self.reduced(self._exact(image)).cpu().numpy(), [index]))

        return answers

    def _forward(self, count: int) -> Any:
        """What the engine runs: the first ``count`` rows of the gathered batch through the network."""
        assert self._network is not None
        # Rows are H×W×3: seen as 3×H×W they are channels_last, which convolutions want.
        return self.reduced(self._network(self._store().batch(count).permute(0, 3, 1, 2)))

    def _made_ready(self, dtype: torch.dtype) -> tuple[nn.Module, nn.Module | None]:
        """The network as its engine runs it, and in plain fp32 if that is at hand."""
        options, form = self.options, form_of(self.options)
        in_16_bits = dtype is not torch.float32 and form is None
        if in_16_bits and options.device == "cuda" and chosen(options) == "graph":
            torch.backends.cudnn.benchmark = True  # few shapes, each met before the test
            exact = self._placed(torch.float32)
            whole = fused(exact)  # folded in fp32, then rounded once
            whole.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
            # A whole batch: what cuDNN chooses for it is chosen once.
            if runs(whole, self._store().batch(options.batch_size).permute(0, 3, 1, 2)):
                self.notes.append(FUSED)
                return whole, exact

        plain = self._placed(dtype)
        if form is not None:  # attention reads its layers' weights: they stay as they are
            parts = [part for part in plain.modules() if isinstance(part, MLP)]
            self.notes.append(told(sum(quantise(part, form) for part in parts), form))

        return compiled(plain, options), plain if is_exact(options) else None

    def _placed(self, dtype: torch.dtype) -> nn.Module:
        """The network with its weights, on the device, ready for inference."""
        with seeded(self.options.seed, self.options.device):
            network = self.build()

        if self.options.weights is not None:
            load_weights(network, self.options.weights, renamed=self.renamed_weights())

        network.to(device=self.device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack the combination
        return network.eval().requires_grad_(False)

    def _store(self) -> SampleStore:
        assert self._samples is not None, "load() first"
        return self._samples


class Answering:
    """A batch whose rows are on their way to the host; a Pending (pipeline.py)."""

    def __init__(self, found: OnItsWay, answer: "Callable[[npt.NDArray[Any]], Outputs]") -> None:
        self._found = found
        self._answer = answer
        self.done = found.done

    def result(self) -> "Outputs":
        """Wait for the rows, and make answers of them."""
        return self._answer(self._found.result())


def spread(network: nn.Module) -> None:
    """Draw the weights of all convolutions so that random networks still tell images apart.

    Scaled weight standardisation (Brock et al. 2021, arXiv:2101.08692, eq. 1): filters sum to zero, with
    variance gain²/fan-in. Under plain He initialisation and without batch statistics, ReLU's positive mean
    takes over layer by layer, and every image gets the same answer. Filters that see one channel (depth-
    wise) or raw pixels keep their mean: it carries the picture there.
    """
    for module in network.modules():
        if not isinstance(module, nn.Conv2d):
            continue

        weight = module.weight.data
        pixels = weight.shape[1] == 3
        if weight.is_meta:
            continue

        weight.normal_()
        if not pixels and weight.shape[1] > 1:
            weight -= weight.mean(dim=(1, 2, 3), keepdim=True)

        gain = 1.0 if pixels else RELU_GAIN
        weight *= gain / math.sqrt(weight[0].numel())
        if module.bias is not None:
            module.bias.data.zero_()
