"""A workload that goes wrong in one chosen way; its name says which. Runs in real worker processes."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from workloads.protocol import WorkloadError, WorkloadOptions

BATCHES_BEFORE_FAULT = 20
BATCHES_BEFORE_SILENCE = 2000
"""Past the calibration, which lasts about a second: a silence is a stall only while it issues."""


class Faulty:
    """Computes nothing, one millisecond a batch, until its fault is due."""

    def __init__(self, name: str, _options: WorkloadOptions) -> None:
        self.total_sample_count = 64
        self.notes: list[str] = []
        self._fault = name.removeprefix("faulty-")
        self._batches = 0

    def load(self) -> None:
        match self._fault:
            case "exits-0-in-load":
                os._exit(0)
            case "killed-in-load":
                os.kill(os.getpid(), signal.SIGKILL)
            case "hangs-in-load":
                time.sleep(3600)
            case "refuses":
                raise WorkloadError("the file x.safetensors has no key fc.weight")
            case "raises-in-load":
                raise RuntimeError("no such kernel")
            case "out-of-memory":
                raise MemoryError
            case "leaves-a-grandchild":
                subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
            case "leaves-a-grandchild-in-its-own-session":
                subprocess.Popen(
                    [sys.executable, "-c", "import time; time.sleep(3600)"], start_new_session=True
                )
            case _:
                pass

    def load_samples(self, indices: Sequence[int]) -> None:
        pass

    def unload_samples(self, indices: Sequence[int]) -> None:
        pass

    def predict(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        time.sleep(0.001)
        self._batches += 1
        if self._fault == "floods":
            os.write(1, b"x" * 262_144)

        silent = self._fault in ("stalls", "ignores-every-request")
        if self._batches >= (BATCHES_BEFORE_SILENCE if silent else BATCHES_BEFORE_FAULT):
            self._go_wrong()

        return np.zeros(len(indices), dtype=np.int64)

    def reference(self, indices: Sequence[int]) -> npt.NDArray[np.int64]:
        return self.predict(indices)

    def _go_wrong(self) -> None:
        match self._fault:
            case "exits-0":
                os._exit(0)
            case "exits-1":
                os._exit(1)
            case "aborts":
                os.abort()
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raises":
                raise RuntimeError("an illegal memory access was encountered")
            case "stalls":
                time.sleep(3600)
            case "ignores-every-request":
                ctypes.PyDLL(None).sleep(3600)  # holds the GIL: no thread of this process can answer
            case _:
                pass
