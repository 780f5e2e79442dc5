"""Medical segmentation: 3D U-Net over sliding windows of KiTS19-sized volumes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from workloads import kits19
from workloads.engine import Graphs, chosen, compiled, engine_for
from workloads.fidelity import mean_dice
from workloads.labelled import Labelled
from workloads.precision import compute_dtype, to_device
from workloads.protocol import Size, WorkloadOptions
from workloads.unet3d_gpu import on_gpu
from workloads.unet3d_network import CLASSES, FILTERS, Network
from workloads.weights import load_weights, seeded, told_weights

WINDOW: dict[Size, int] = {"full": 128, "small": 32}
"""Voxels a side; windows overlap by half, as in MLPerf's reference."""

VOLUMES: dict[Size, dict[tuple[int, int, int], int]] = {
    "full": {
        (128, 256, 256): 3,
        (192, 256, 256): 3,
        (256, 256, 256): 3,
        (128, 320, 320): 2,
        (192, 320, 320): 4,
        (256, 320, 320): 5,
        (320, 320, 320): 7,
        (384, 320, 320): 5,
        (256, 384, 384): 3,
        (384, 384, 384): 4,
        (448, 384, 384): 2,
        (512, 384, 384): 1,
        (320, 448, 448): 1,
    },
    "small": {(48, 48, 48): 29, (48, 48, 64): 14},
}
"""Depth, height, width in voxels → cases. MLPerf resamples KiTS19 to 1.6 × 1.2 × 1.2 mm and pads or crops
each side to a multiple of 64, at least 128. These 43 shapes are made so, with its mean of 32.4 M voxels; they
are not the data set's own list."""

SAMPLES = 43
NOISE_PERIOD = 4_000_037
"""Voxels after which the noise repeats; odd, so that no two planes of a volume are alike."""

OFFSETS = 1 << 20
"""Voxels by which the starts of two volumes may differ."""

GAUSSIAN_SPREAD = 0.125
"""Standard deviation of the blending weights, in window sides."""

MOST_WINDOWS = 8
WINDOW_MIB = 3_072
"""GPU memory of one more full window in a forward pass: fp32 activations at the top level, and workspace."""

CPU_WINDOWS: dict[Size, int] = {"full": 1, "small": 2}
"""Two where they are small: on one thread torch convolves a single 32³ window without oneDNN, six times
slower. Of full windows two are no faster than one, and take twice the memory."""


def build(size: Size) -> Network:
    """The network, initialised at random (torch's own ways)."""
    return Network(FILTERS[size]).eval()


def flops_per_sample(size: Size) -> int:
    """FLOPs of the mean case: those of a window, counted on the meta device, times the mean windows."""
    side = WINDOW[size]
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        build(size)(torch.zeros(1, 1, side, side, side))

    windows = sum(len(corners(shape, side)) * cases for shape, cases in VOLUMES[size].items())
    return int(counter.get_total_flops()) * windows // SAMPLES


def corners(shape: Sequence[int], side: int) -> list[tuple[int, ...]]:
    """Where the windows of a volume begin, in voxels: every half side along each axis."""
    step = side // 2
    return list(product(*(range(0, length - side + 1, step) for length in shape)))


def blending_weights(side: int) -> Tensor:
    """Float32 [side, side, side]: the cube root of a Gaussian, 1 at its peak, as in MLPerf's reference."""
    distance = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2) / (GAUSSIAN_SPREAD * side)
    line = torch.exp(-(distance**2) / 2 / 3)
    cube = line[:, None, None] * line[:, None] * line
    return (cube / cube.max()).float()


class Unet3d:
    """Answers: one uint8 array [depth, height, width] a sample, the class of each voxel."""

    fidelity = staticmethod(mean_dice)

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        self.name = name
        self._dtype = compute_dtype(options)
        self._options = options
        self._side = WINDOW[options.size]
        self.total_sample_count = SAMPLES
        self.notes: list[str] = []
        self.labelled: Labelled | None = None
        self._data: kits19.Kits19 | None = None
        self._volumes: dict[int, Tensor] = {}

    def load(self) -> None:
        """Build the network; find the cases, or make the noise that every synthetic volume is a run of."""
        options = self._options
        self._network = self._build(self._dtype)
        self._reference: Network | None = None
        self._weights = to_device(blending_weights(self._side), options)
        self._windows = CPU_WINDOWS[options.size]
        if options.device == "cuda":
            torch.backends.cudnn.benchmark = True  # all windows are of one shape
            window_mib = WINDOW_MIB * self._dtype.itemsize / torch.float32.itemsize
            # A graph of the odd last group has memory of its own beside that of the whole ones.
            share = 2 if chosen(options) == "eager" else 3
            self._windows = int(min(MOST_WINDOWS, max(1, options.memory_mib / share // window_mib)))

        inputs = self._make_volumes() if options.data is None else self._find_volumes(options.data)
        engine = self._make_engine()
        self.notes = [
            told_weights(options),
            *inputs,
            *engine,
            f"windows: {self._side}³ with overlap 0.5, {self._windows} a forward pass",
        ]

    def _find_volumes(self, folder: Path) -> list[str]:
        """Notes of what is in the folder."""
        self._data = data = kits19.find(folder)
        self.total_sample_count = len(data.cases)
        self.labelled = kits19.MeanDice(data, self._side) if data.has_labels else None
        of_labels = "of all of them" if data.has_labels else "none: no case_XXXXX_y.npy"
        notes = [
            f"inputs: {len(data.cases)} cases of {folder}, by {data.made_by}; those asked for are in host memory",
            f"labels: {of_labels}",
        ]
        if self._options.size == "small":
            notes.append("the small model has no weights of MLPerf's: no accuracy to hold against MLPerf's")

        return notes

    def _make_volumes(self) -> list[str]:
        """Notes of what was made."""
        rng = np.random.default_rng(self._options.seed)
        cases = [shape for shape, count in VOLUMES[self._options.size].items() for _ in range(count)]
        self._shapes = [cases[i] for i in rng.permutation(SAMPLES)]
        self._starts = rng.integers(0, OFFSETS, SAMPLES)
        # Every volume is contiguous in one flat pool, so that 43 of them cost the memory of the largest.
        length = max(prod(shape) for shape in cases) + OFFSETS
        period = rng.standard_normal(min(length, NOISE_PERIOD), dtype=np.float32)
        self._noise = torch.empty(length, pin_memory=self._options.device == "cuda")
        for part in torch.split(self._noise, len(period)):
            part.copy_(torch.from_numpy(period[: len(part)]))

        voxels = [prod(shape) for shape in self._shapes]
        return [
            f"inputs: synthetic, seed {self._options.seed}: {SAMPLES} volumes of {min(voxels) / 1e6:.2f} to "
            f"{max(voxels) / 1e6:.2f} M voxels, mean {np.mean(voxels) / 1e6:.2f} M"
            + (", as KiTS19's after MLPerf's preprocessing" if self._options.size == "full" else "")
            + f"; each is a run of one pool of noise in host memory ({self._noise.nbytes / 2**20:.0f} MiB), "
            "where it starts from",
        ]

    def load_samples(self, indices: Sequence[int]) -> None:
        """Read these cases; of synthetic volumes the noise is in memory from ``load`` on.

        Raises:
            WorkloadError: a case cannot be read.
        """
        if self._data is None:
            return

        for index in indices:
            if index not in self._volumes:
                image = kits19.read_image(self._data.cases[index])
                fitted = np.ascontiguousarray(kits19.fitted(image, self._side, kits19.PADDING))
                volume = torch.from_numpy(fitted)
                self._volumes[index] = volume.pin_memory() if self._options.device == "cuda" else volume

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Let go of these cases; the noise is kept."""
        for index in indices:
            self._volumes.pop(index, None)

    def predict(self, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        """The segmentation of each volume."""
        return [
            self._classes(self._volume(index), self._windows, self._run).cpu().numpy() for index in indices
        ]

    def reference(self, indices: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        """The same in fp32, eager, one window at a time."""
        if self._reference is None:
            self._reference = self._network if self._dtype is torch.float32 else self._build(torch.float32)

        exact = self._reference
        return [
            self._classes(self._volume(index), 1, lambda windows: exact(torch.stack(list(windows))[:, None]))
            .cpu()
            .numpy()
            for index in indices
        ]

    def _make_engine(self) -> list[str]:
        """Notes of how the network is run: over windows copied to where a graph reads them."""
        side, notes = self._side, list[str]()
        network = self._network_to_run(notes)
        self._crops = torch.zeros(
            self._windows, 1, side, side, side, device=self._options.device, dtype=self._dtype
        )
        self._engine = engine_for(
            lambda count: network(self._crops[:count]),
            replace(self._options, batch_size=self._windows),
            notes,
        )
        if isinstance(self._engine, Graphs):
            self._engine.capture_all()  # a volume's last group is of any size, and cuDNN tries its kernels for each

        return notes

    def _network_to_run(self, notes: list[str]) -> Callable[[Tensor], Tensor]:
        """Says in ``notes`` by whose kernels volumes are normed, where they might be ours."""
        options = self._options
        if options.device == "cpu" or self._dtype is torch.float32 or chosen(options) == "compile":
            return compiled(self._network, options)

        own = on_gpu(self._network)
        notes.append(
            "volumes: channels last, normed by our kernels"
            if own
            else "norms: torch's kernels; Triton, or the C compiler it needs, is missing"
        )
        return own or self._network

    def _run(self, windows: Sequence[Tensor]) -> Tensor:
        """The logits of these windows, [windows, classes, side, side, side], overwritten by the next call."""
        for crop, window in zip(self._crops, windows, strict=False):
            crop[0].copy_(window)

        outputs: Tensor = self._engine.run(len(windows))
        return outputs

    def _build(self, dtype: torch.dtype) -> Network:
        options = self._options
        with seeded(options.seed, options.device):
            network = build(options.size)

        if options.weights is not None:
            load_weights(network, options.weights)

        return network.to(device=options.device, dtype=dtype)

    def _volume(self, index: int) -> Tensor:
        """Float32 [depth, height, width] on the device."""
        if self._data is not None:
            return self._volumes[index].to(self._options.device, non_blocking=True)

        start, shape = int(self._starts[index]), self._shapes[index]
        volume = self._noise[start : start + prod(shape)].view(shape)
        return volume.to(self._options.device, non_blocking=True)

    @torch.inference_mode()
    def _classes(self, volume: Tensor, windows: int, run: Callable[[Sequence[Tensor]], Tensor]) -> Tensor:
        """The class of each voxel, uint8 [depth, height, width] on the device; ``windows`` of them at a time."""
        side = self._side
        # MLPerf's reference divides by the summed weights before it takes the largest class; the sum is the same
        # for all three classes, so the largest is the same without.
        logits = volume.new_zeros(CLASSES, *volume.shape)
        places = [
            tuple(slice(begin, begin + side) for begin in corner) for corner in corners(volume.shape, side)
        ]
        for first in range(0, len(places), windows):
            group = places[first : first + windows]
            for place, output in zip(group, run([volume[place] for place in group]), strict=True):
                logits[(slice(None), *place)] += output * self._weights

        # A slab at a time: argmax's int64 of a whole volume would be three quarters of a gigabyte.
        return torch.cat([slab.argmax(0).to(torch.uint8) for slab in torch.split(logits, side, dim=1)])
