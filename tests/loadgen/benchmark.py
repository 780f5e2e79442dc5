"""A benchmark's process as small as it gets: LoadGen in a side thread, as the worker has it.

python benchmark.py FOLDER JSON; leaves result.json or error.txt in FOLDER. Runs in a process of its own,
since LoadGen may end the process.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import psutil

from workloads import catalog, loadgen
from workloads.pipeline import FirstTokens
from workloads.progress import Progress, read_mark
from workloads.protocol import LoadgenSettings, Scenario, Workload, WorkloadOptions

if TYPE_CHECKING:
    from workloads.protocol import Outputs

TOLD, RAISED = 3, 4
"""Exit codes: on_error was told; measure() or keep_busy() raised."""


class Watched:
    """A workload of the catalogue that refuses misuse, may take time by the batch, and may break."""

    def __init__(self, inner: Workload, asked: dict[str, Any]) -> None:
        self._inner = inner
        self._break_at_load: int | None = asked.get("break_at_load")
        self._batch_s: float = asked.get("batch_s", 0.0)
        self._slow_calibration: bool = asked.get("slow_calibration", False)
        self._in_use = threading.Lock()
        self.total_sample_count = inner.total_sample_count
        self.notes: list[str] = []
        self.loaded: set[int] = set()
        self.load_calls = 0
        self.batches: list[int] = []

    def load(self) -> None:
        self._inner.load()

    def load_samples(self, indices: Sequence[int]) -> None:
        with self:
            self.load_calls += 1
            self.loaded |= set(indices)
            self._inner.load_samples(indices)

    def unload_samples(self, indices: Sequence[int]) -> None:
        with self:
            self.loaded -= set(indices)
            self._inner.unload_samples(indices)

    def predict(self, indices: Sequence[int]) -> "Outputs":
        with self:
            self.batches.append(len(indices))
            if not self.loaded.issuperset(indices):
                raise LookupError("asked for a sample that is not loaded")

            if self.load_calls == self._break_at_load:
                raise ArithmeticError("the model broke")

            if self._slow_calibration and self.load_calls < 2:  # LoadGen's own samples are loaded second
                time.sleep(0.05)

            time.sleep(self._batch_s)
            return self._inner.predict(indices)

    def reference(self, indices: Sequence[int]) -> "Outputs":
        return self._inner.reference(indices)

    def __enter__(self) -> None:
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError("used by two threads at once")

    def __exit__(self, *_reason: object) -> None:
        self._in_use.release()


class Ticket:
    """A batch that a device of one thread computes; a Pending (workloads/pipeline.py)."""

    def __init__(self, computed: "Future[Outputs]") -> None:
        self._computed = computed

    def done(self) -> bool:
        return self._computed.done()

    def result(self) -> "Outputs":
        return self._computed.result()


class InFlight(Watched):
    """Watched, computing on a thread of its own: two batches may be in flight, and samples differ in length."""

    depth = 2

    def __init__(self, inner: Workload, asked: dict[str, Any]) -> None:
        super().__init__(inner, asked)
        self._device = ThreadPoolExecutor(1)

    def begin(self, indices: Sequence[int]) -> Ticket:
        return Ticket(self._device.submit(self.predict, list(indices)))

    def lengths(self, indices: Sequence[int]) -> np.ndarray:
        return np.asarray(indices) % 16


class Telling(Watched):
    """Watched, generating texts: the first tokens after a while, the whole texts after ``further_s`` more."""

    new_tokens = 8

    def __init__(self, inner: Workload, asked: dict[str, Any]) -> None:
        super().__init__(inner, asked)
        self._further_s = asked["further_s"]

    def generate(self, indices: Sequence[int], first_tokens: FirstTokens) -> "Outputs":
        outputs = self.predict(indices)
        first_tokens(np.zeros((len(indices), 1), np.int64))
        time.sleep(self._further_s)
        return outputs


def made(asked: dict[str, Any]) -> Watched:
    """The workload that is asked for."""
    options = WorkloadOptions(
        size=asked.get("size", "small"),
        device="cpu",
        precision="fp32",
        batch_size=asked["batch_size"],
        seed=1,
        threads=1,
        memory_mib=1024,
    )
    kind = InFlight if "in_flight" in asked else Telling if "further_s" in asked else Watched
    return kind(catalog.build(asked["workload"], options), asked)


def run(folder: Path, asked: dict[str, Any]) -> None:
    """Do as ``asked`` and write what came of it."""

    def end(error: BaseException, code: int) -> NoReturn:
        (folder / "error.txt").write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
        os._exit(code)

    def on_error(error: BaseException) -> NoReturn:
        end(error, TOLD)

    workload = made(asked)
    workload.load()
    given = asked["settings"]
    settings = LoadgenSettings(**given | {"scenario": Scenario(given["scenario"])})
    issuing: list[int] = []
    drain = threading.Event()
    rss_mib: list[float] = []
    with Progress(folder) as progress:
        common = (workload, settings, asked["batch_size"], folder, progress, issuing.append)
        done: list[loadgen.Measured] = []

        def work() -> None:
            lasting_ns = int(asked["lasting_s"] * 1e9) if "lasting_s" in asked else None
            try:
                if "tests" in asked or lasting_ns is not None:
                    end_it = {"drain": drain, "lasting_ns": lasting_ns}
                    done.append(loadgen.keep_busy(*common, on_error=on_error, **end_it))
                else:
                    done.append(loadgen.measure(*common, on_error=on_error))
            except Exception as error:  # noqa: BLE001 - the test asks which it was
                end(error, RAISED)

        thread = threading.Thread(target=work)
        begin_ns = time.monotonic_ns()
        thread.start()
        while thread.is_alive():
            thread.join(0.02)
            mark = read_mark(folder)
            if mark is not None and mark.tests_completed >= len(rss_mib) * 10:
                rss_mib.append(psutil.Process().memory_info().rss / 2**20)

            if mark is not None and mark.tests_completed >= asked.get("tests", sys.maxsize):
                drain.set()

    result = {
        "measured": asdict(done[0]),
        "issuing": issuing,
        "begin_ns": begin_ns,
        "load_calls": workload.load_calls,
        "largest_batch": max(workload.batches),
        "rss_mib": rss_mib,
    }
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    os._exit(0)


if __name__ == "__main__":
    run(Path(sys.argv[1]), json.loads(sys.argv[2]))
