"""Workloads that compute nothing and take their time, for loops that ask them."""

import threading
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workloads.pipeline import Pending


class Server:
    """Takes ``service_s`` a batch, and ``stall_s`` for the one that comes first after ``stall`` was asked for."""

    def __init__(self, service_s: float, stall_s: float = 0.0) -> None:
        self.total_sample_count = 64
        self.notes: list[str] = []
        self.batches: list[int] = []
        self.stall_at: int | None = None
        self._service_s, self._stall_s = service_s, stall_s

    def load(self) -> None: ...
    def load_samples(self, indices: Sequence[int]) -> None: ...
    def unload_samples(self, indices: Sequence[int]) -> None: ...

    def predict(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        self.batches.append(len(indices))
        stalls = self.stall_at is not None and len(self.batches) == self.stall_at
        time.sleep(self._stall_s if stalls else self._service_s)
        return np.zeros((len(indices), 1), np.int64)

    def reference(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        return self.predict(indices)


class Overlapping(Server):
    """Answers each batch 20 ms after it began, two at a time."""

    depth = 2

    class _Batch:
        def __init__(self) -> None:
            self._over = threading.Event()
            threading.Timer(0.02, self._over.set).start()

        def done(self) -> bool:
            return self._over.is_set()

        def result(self) -> npt.NDArray[np.int64]:
            self._over.wait()
            return np.zeros((1, 1), np.int64)

    def begin(self, indices: Sequence[int]) -> Pending:
        self.batches.append(len(indices))
        return self._Batch()
