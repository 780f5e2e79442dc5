"""Samples of the machine while a run lasts: one JSON line a second in ``telemetry.jsonl``.

A line has one GPU, each in its turn: asking a GPU takes some 5 ms of a core (seen on an H200), and the
harness is to be quieter than what it measures.

A sample that cannot be taken is written as null with nothing made up in its place.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import cycle
from typing import TYPE_CHECKING, Any

import psutil

from scheduler.clock import Clock
from scheduler.errors import GpuError, RecordError
from scheduler.record import RunFolder

if TYPE_CHECKING:
    from scheduler.nvml import Nvml

PERIOD_S = 1.0


@contextmanager
def recording(folder: RunFolder, clock: Clock, gpu_uuids: Sequence[str]) -> Iterator[None]:
    """Sample host and GPUs (those with the given UUIDs) until the ``with`` is left."""
    enough = threading.Event()
    with ExitStack() as until_the_end:
        gpus = until_the_end.enter_context(_opened()) if gpu_uuids else None
        sampler = threading.Thread(
            target=_sample, args=(folder, clock, gpus, gpu_uuids, enough), daemon=True, name="telemetry"
        )
        sampler.start()
        try:
            yield
        finally:
            enough.set()
            sampler.join()


@contextmanager
def _opened() -> Iterator["Nvml"]:
    from scheduler import nvml

    with nvml.open() as gpus:
        yield gpus


def _sample(
    folder: RunFolder, clock: Clock, gpus: "Nvml | None", uuids: Sequence[str], enough: threading.Event
) -> None:
    launcher = psutil.Process()
    psutil.cpu_percent()  # the first call only sets its zero
    turn = cycle(uuids)
    while not enough.wait(PERIOD_S):
        line: dict[str, Any] = {
            "at": round(clock.now(), 3),
            "host_cpu_percent": psutil.cpu_percent(),
            "host_load_1min": psutil.getloadavg()[0],
            "launcher_cpu_s": sum(launcher.cpu_times()[:2]),
            "host_memory_available_mib": psutil.virtual_memory().available // 2**20,
        }
        if gpus is not None:
            uuid = next(turn)
            line["gpus"] = {uuid: _gpu(gpus, uuid)}

        try:
            folder.append_line("telemetry.jsonl", line)
        except RecordError:  # the run's own record will meet the same disk, and say so
            return


def _gpu(gpus: "Nvml", uuid: str) -> dict[str, Any] | None:
    try:
        return asdict(gpus.sample(uuid))
    except GpuError:
        return None
