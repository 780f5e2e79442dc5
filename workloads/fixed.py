"""A fixed service time a sample, asleep: a load whose rate is known and which computes nothing."""

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from workloads.protocol import Size, WorkloadOptions

if TYPE_CHECKING:
    from workloads.protocol import Outputs

SAMPLES = 1024
SERVICE_TIME_S: dict[Size, float] = {"full": 0.010, "small": 0.001}


class Fixed:
    """A batch of n samples takes n service times; the answer to a sample is its index."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        self.total_sample_count = SAMPLES
        self.service_time_s = SERVICE_TIME_S[options.size]
        self.notes = [f"{name} sleeps {self.service_time_s * 1e3:g} ms a sample"]

    def load(self) -> None:
        """Nothing to build."""

    def load_samples(self, indices: Sequence[int]) -> None:
        """Nothing to have ready."""

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Nothing to let go of."""

    def predict(self, indices: Sequence[int]) -> "Outputs":
        """(batch, 1) int64 indices, after the batch's service time."""
        time.sleep(len(indices) * self.service_time_s)
        return self.reference(indices)

    def reference(self, indices: Sequence[int]) -> "Outputs":
        """(batch, 1) int64 indices."""
        return np.array(indices, np.int64).reshape(-1, 1)
