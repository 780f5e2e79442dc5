"""Fixed FLOPs: one square matrix product a sample, 2·n³ of them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from workloads.precision import DTYPES
from workloads.protocol import Size, WorkloadOptions

if TYPE_CHECKING:
    from workloads.protocol import Outputs

SAMPLES = 1024
MATRICES = 4
"""Distinct left factors, shared by the samples in turn: a matrix a sample would not fit any slice."""
SIDE: dict[Size, int] = {"full": 4096, "small": 512}


class Matmul:
    """The answer to a sample is the trace of its product, which the host waits for."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        self.total_sample_count = SAMPLES
        self.side = SIDE[options.size]
        self._options = options
        self.notes = [
            f"{name}: {self.side}³ in {options.precision}; {MATRICES} seeded random left factors serve all samples"
        ]

    def load(self) -> None:
        """Draw the factors; entries of the products are about a quarter, within any precision's range."""
        torch.set_num_threads(self._options.threads)
        generator = torch.Generator().manual_seed(self._options.seed)
        shape = (self.side, self.side)
        left = [torch.rand(shape, generator=generator) / self.side for _ in range(MATRICES)]
        right = torch.rand(shape, generator=generator)
        device, dtype = self._options.device, DTYPES[self._options.precision]
        self._left = [matrix.to(device, dtype) for matrix in left]
        self._right = right.to(device, dtype)
        self._product = torch.empty_like(self._right)

    def load_samples(self, indices: Sequence[int]) -> None:
        """The factors are on the device since ``load``."""

    def unload_samples(self, indices: Sequence[int]) -> None:
        """They stay there."""

    @torch.inference_mode()
    def predict(self, indices: Sequence[int]) -> "Outputs":
        """(batch, 1) float32 traces; copying them to the host waits for the products."""
        traces = [
            torch.matmul(self._left[index % MATRICES], self._right, out=self._product)
            .diagonal()
            .float()
            .sum()
            for index in indices
        ]
        return torch.stack(traces).reshape(-1, 1).cpu().numpy()

    @torch.inference_mode()
    def reference(self, indices: Sequence[int]) -> "Outputs":
        """(batch, 1) float32 traces of the fp32 product, as sums over both factors: another way to compute them."""
        right = self._right.float().T
        traces = [(self._left[index % MATRICES].float() * right).sum() for index in indices]
        return torch.stack(traces).reshape(-1, 1).cpu().numpy()
