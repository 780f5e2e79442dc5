"""A model of one's own: hetero-mig --main examples/my_workload.py:MyWorkload --background bert"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from workloads.protocol import WorkloadOptions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class MyWorkload:
    """A small CNN that puts RGB images of 32×32 into ten classes."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        self.device, self.dtype, self.seed = options.device, DTYPES[options.precision], options.seed
        self.total_sample_count = 256
        self.notes = [f"{name}: synthetic images and random weights, seed {options.seed}"]

    def load(self) -> None:
        torch.manual_seed(self.seed)
        layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(256, 10)]
        self.network = nn.Sequential(*layers).eval().to(self.device)
        self.images = torch.randn(self.total_sample_count, 3, 32, 32)

    def load_samples(self, indices: Sequence[int]) -> None: ...  # all are in host memory from load() on

    def unload_samples(self, indices: Sequence[int]) -> None: ...

    def predict(self, indices: Sequence[int]) -> Any:
        with torch.inference_mode(), torch.autocast(self.device, self.dtype, self.dtype != torch.float32):
            return self.network(self.images[list(indices)].to(self.device)).float().cpu().numpy()

    @torch.inference_mode()
    def reference(self, indices: Sequence[int]) -> Any:
        logits = [self.network(self.images[[index]].to(self.device)) for index in indices]
        return torch.cat(logits).cpu().numpy()
