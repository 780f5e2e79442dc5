"""Answers at once: what is measured with it is the harness alone. Imports no torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from workloads.protocol import WorkloadOptions

if TYPE_CHECKING:
    from workloads.protocol import Outputs

SAMPLES = 1024


class Null:
    """Every answer is the same eight zero bytes; computing and copying nothing."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        self.total_sample_count = SAMPLES
        self.notes = [f"{name} computes nothing"]
        answers = np.zeros((options.batch_size, 1), np.int64)
        self._answers = [answers[:count] for count in range(options.batch_size + 1)]

    def load(self) -> None:
        """Nothing to build."""

    def load_samples(self, indices: Sequence[int]) -> None:
        """Nothing to have ready."""

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Nothing to let go of."""

    def predict(self, indices: Sequence[int]) -> "Outputs":
        """(batch, 1) int64 zeros, always the same array for the same batch size."""
        return self._answers[len(indices)]

    def reference(self, indices: Sequence[int]) -> "Outputs":
        """(batch, 1) int64 zeros."""
        return np.zeros((len(indices), 1), np.int64)
