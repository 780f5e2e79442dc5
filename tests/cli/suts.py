"""Systems under test for the audits: one honest, the others each cheating in a way of its own.

A sample takes `SAMPLE_S`, asleep; its answer is eight int64 that follow from its index.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from workloads.protocol import WorkloadOptions

if TYPE_CHECKING:
    from workloads.protocol import Outputs

SAMPLES, SAMPLE_S = 1024, 0.004


class Honest:
    """Computes each sample each time."""

    BATCH_SIZE = 8

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        self.total_sample_count = SAMPLES
        self.notes = [f"{name} sleeps {SAMPLE_S * 1e3:g} ms a sample, in batches of {options.batch_size}"]

    def load(self) -> None:
        """Nothing to build."""

    def load_samples(self, indices: Sequence[int]) -> None:
        """Nothing to have ready."""

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Nothing to let go of."""

    def predict(self, indices: Sequence[int]) -> "Outputs":
        """(batch, 8) int64, after a time by the sample."""
        time.sleep(len(indices) * SAMPLE_S)
        return self.reference(indices)

    def reference(self, indices: Sequence[int]) -> "Outputs":
        """(batch, 8) int64."""
        return np.array(indices, np.int64).reshape(-1, 1) * 8 + np.arange(8)


class Caching(Honest):
    """Computes each sample of a batch once."""

    def predict(self, indices: Sequence[int]) -> "Outputs":
        time.sleep(len(set(indices)) * SAMPLE_S)
        return self.reference(indices)


class TwoFaced(Honest):
    """Tells a performance run by its asking for a sample again, and then answers anything."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        super().__init__(name, options)
        self.seen: set[int] = set()

    def load_samples(self, indices: Sequence[int]) -> None:  # noqa: ARG002 - that they are loaded says enough
        self.seen.clear()

    def predict(self, indices: Sequence[int]) -> "Outputs":
        time.sleep(len(indices) * SAMPLE_S)
        again = [index in self.seen for index in indices]
        self.seen.update(indices)
        answers = np.asarray(self.reference(indices)).copy()
        answers[again] = 0
        return answers


class RightAtFirst(Honest):
    """Beside the honest one's accuracy run: its first element is right, all that MLPerf's script looks at."""

    def predict(self, indices: Sequence[int]) -> "Outputs":
        answers = np.asarray(super().predict(indices)).copy()
        answers[:, 1:] = 0
        return answers


class Tuned(Honest):
    """Quicker with the batches that it met in its first run, and so with those that the round's seeds make."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        super().__init__(name, options)
        self._kept = Path(__file__).with_suffix(".kept")
        self._learns = not self._kept.exists()
        self._known = frozenset() if self._learns else frozenset(self._kept.read_text().splitlines())

    def predict(self, indices: Sequence[int]) -> "Outputs":
        batch = " ".join(map(str, indices))
        time.sleep(len(indices) * SAMPLE_S * (0.5 if batch in self._known else 1))
        if self._learns:
            with self._kept.open("a") as kept:
                kept.write(f"{batch}\n")

        return self.reference(indices)
