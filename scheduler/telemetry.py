"""Samples of the machine while a run lasts: ``telemetry.jsonl``, one JSON line each, and ``telemetry.json``.

A thread of the launcher takes them, never a worker. What is asked takes turns, and there are no more turns than
``BUDGET`` allows: asking a GPU takes some 5 ms of a core (seen on an H200), and the harness is to be quieter than
what it measures. The columns are in columns.py; what the machine does not tell is None, with the reason once in
``telemetry.json``.

Of slices that are to be idle it is also told who computes there: ``idle.json``, for GPUs before and after the run,
and in each line of ``telemetry.jsonl`` how long the CPU cores have worked.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from scheduler.clock import Clock, process_cpu_s, thread_cpu_s
from scheduler.columns import GpuState, Telemetry
from scheduler.errors import GpuError, RecordError
from scheduler.host import Host
from scheduler.proc import OpenProcess
from scheduler.record import RunFolder
from scheduler.telemetry_gpus import opened, opened_nvml
from scheduler.turns import Learn, Line, Living, Turn, Watched, merge
from workloads.progress import MARK_BYTES, MARK_FILE, ProgressMark, mark_of

BUDGET, SAVED_S = 0.0075, 1.0
"""Of a core, for sampling, and for how long it may be saved up. With the supervisor's own work the launcher stays
under 1 %."""

CHILDREN_EVERY_S = 0.5
"""A worker's children are asked of each of its threads: some 10 µs each."""

SOURCES = {"host": "psutil and /proc/stat", "workers": "/proc and progress.bin"}


@contextmanager
def recording(
    folder: RunFolder,
    clock: Clock,
    watched: Watched,
    living: Living,
    rate_hz: float,
    dcgm_url: str | None = None,
) -> Iterator[None]:
    """Sample so many times a second until the ``with`` is left; at a rate of 0, never.

    Args:
        living: asked at every sample, from another thread.
        dcgm_url: of a running dcgm-exporter, to take activity from.

    Raises:
        RecordError: ``telemetry.json`` cannot be written.
        GpuError: there are GPUs among the slices, and NVML does not start.
    """
    if not rate_hz:
        yield
        return

    enough = threading.Event()
    with ExitStack() as until_the_end:
        workers = until_the_end.enter_context(_Workers(folder, living))
        gpus = until_the_end.enter_context(opened(watched, clock, workers.pids_on, workers.booked, dcgm_url))
        turns: list[Turn] = [_Machine(watched), workers, *gpus.turns]
        sampler = _Sampler(folder, clock, rate_hz, turns, gpus.sources)
        sampler.write(before=gpus.states())
        thread = threading.Thread(target=sampler.run, args=(enough,), daemon=True, name="telemetry")
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join()

        sampler.write(after=gpus.states())


@contextmanager
def processes_noted(folder: RunFolder, gpu_uuids: Sequence[str]) -> Iterator[None]:
    """Write down who computes on these GPUs on entering and on leaving the ``with``."""
    if not gpu_uuids:
        yield
        return

    before = _processes(gpu_uuids)
    folder.write_json("idle.json", {"before": before})  # a trial is judged before the run's end
    yield
    folder.write_json("idle.json", {"before": before, "after": _processes(gpu_uuids)})


def _processes(gpu_uuids: Sequence[str]) -> dict[str, list[int] | None]:
    """Pids by UUID; None where the driver does not tell."""
    found: dict[str, list[int] | None] = dict.fromkeys(gpu_uuids)
    with opened_nvml() as gpus:
        for uuid in gpu_uuids:
            try:
                found[uuid] = [one.pid for one in gpus.processes(uuid)]
            except GpuError:
                continue

    return found


class _Sampler:
    """Gives each source its turn, as often as the budget allows, and writes down what they say."""

    def __init__(
        self,
        folder: RunFolder,
        clock: Clock,
        rate_hz: float,
        turns: Sequence[Turn],
        sources: Mapping[str, str],
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._period_s = 1 / rate_hz
        self._turns = deque(turns)
        self._unavailable: dict[str, str] = {}
        self._told = Telemetry(rate_hz=rate_hz, sources={**SOURCES, **sources})
        self._lines = self._late = 0
        self._cpu_s = 0.0

    def write(
        self, *, before: Mapping[str, GpuState] | None = None, after: Mapping[str, GpuState] | None = None
    ) -> None:
        """Renew ``telemetry.json``.

        Raises:
            RecordError: it cannot be written.
        """
        states = {"before": before, "after": after}
        update: dict[str, Any] = {name: dict(found) for name, found in states.items() if found is not None}
        update |= {"unavailable": dict(self._unavailable), "lines": self._lines}
        update |= {"late_lines": self._late, "cpu_s": round(self._cpu_s, 6)}
        self._told = self._told.model_copy(update=update)
        self._folder.write_json("telemetry.json", self._told.model_dump(mode="json"))

    def run(self, enough: threading.Event) -> None:
        """Sample until there is enough."""
        due_s = before_s = self._clock.now()
        credit_s = float("inf")  # the first round opens and loads: not what sampling goes on to cost
        while not enough.wait(max(0.0, due_s - self._clock.now())):
            now_s, spent_before_s = self._clock.now(), self._cpu_s
            self._late += now_s - due_s > self._period_s
            due_s = max(due_s + self._period_s, now_s)  # a sample that was missed is not made up for
            try:
                self._take_turns(now_s, credit_s)
            except RecordError:  # the run's own record will meet the same disk, and say so
                return

            self._cpu_s = thread_cpu_s()
            spent_s = 0.0 if credit_s == float("inf") else self._cpu_s - spent_before_s
            credit_s = min(credit_s, BUDGET * SAVED_S) - spent_s + BUDGET * (now_s - before_s)
            before_s = now_s

    def _take_turns(self, now_s: float, left_s: float) -> None:
        line: Line = {"at_s": round(now_s, 4)}
        known, began_s = len(self._unavailable), thread_cpu_s()
        for _ in range(len(self._turns)):
            waited_s = self._clock.now() - now_s  # a GPU's PCIe throughput takes 40 ms to ask, of no core
            if thread_cpu_s() - began_s > left_s or waited_s > self._period_s / 2:
                break

            merge(line, self._turns[0].take(now_s, self._learn))
            self._turns.rotate(-1)

        if len(line) > 1:
            self._folder.append_line("telemetry.jsonl", line)
            self._lines += 1

        if len(self._unavailable) > known:
            self.write()

    def _learn(self, column: str, why: str) -> None:
        self._unavailable.setdefault(column, why)


class _Machine:
    """The host and the cores of the slices."""

    def __init__(self, watched: Watched) -> None:
        self._cores = {one.id: one.cores for one in watched.slices if one.cores}
        self._idle_cores = watched.idle_cores
        self._before: tuple[float, dict[int, float]] | None = None

    def take(self, now_s: float, _learn: Learn) -> Line:
        busy_s = Host().busy_s()
        span_s, before = (now_s - self._before[0], self._before[1]) if self._before else (0.0, {})
        self._before = now_s, busy_s

        def active(cores: Sequence[int]) -> float | None:
            there = [core for core in cores if core in busy_s and core in before]
            worked_s = sum(busy_s[core] - before[core] for core in there)
            # the kernel counts in ticks of 10 ms, which may make a share of a short time exceed the whole
            return round(min(1.0, worked_s / (span_s * len(there))), 4) if there and span_s else None

        line: Line = {
            "host": {
                "cpu_active": active(list(busy_s)),
                "load_1min": round(psutil.getloadavg()[0], 2),
                "memory_available_mib": psutil.virtual_memory().available >> 20,
                "launcher_cpu_s": round(process_cpu_s(), 4),
                "telemetry_cpu_s": round(thread_cpu_s(), 4),
            },
            "slices": {
                name: {
                    "cpu_active": active(cores),
                    "cores_busy_s": round(sum(busy_s.get(core, 0.0) for core in cores), 2),
                }
                for name, cores in self._cores.items()
            },
        }
        if self._idle_cores:
            line["idle_cores_busy_s"] = {str(core): busy_s.get(core) for core in self._idle_cores}

        return line


class _Workers:
    """The benchmarks' processes, as long as they live."""

    def __init__(self, folder: RunFolder, living: Living) -> None:
        self._folder = folder
        self._living = living
        self._open: dict[str, OpenProcess] = {}
        self._marks: dict[str, _Mark] = {}
        self._children_due_s = 0.0
        self.booked: dict[int, int | None] = {}
        """Pid → MiB of GPU memory that the driver books to it; the devices' turns write it."""

    def __enter__(self) -> "_Workers":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        for name in list(self._open):
            self._let_go(name)

    def pids_on(self, slice_id: str) -> list[int]:
        """Of those that live there now."""
        return [pid for pid, where in self._living().values() if where == slice_id]

    def take(self, now_s: float, learn: Learn) -> Line:
        living = self._living()
        children_too = now_s >= self._children_due_s
        self._children_due_s = now_s + CHILDREN_EVERY_S if children_too else self._children_due_s
        for name, process in list(self._open.items()):
            if name not in living or living[name][0] != process.pid:
                self._let_go(name)

        workers: dict[str, dict[str, Any]] = {}
        for name, (pid, slice_id) in living.items():
            try:
                if name not in self._open:
                    self._open[name] = OpenProcess(pid)
                    self._marks[name] = _Mark(self._folder.path / name / MARK_FILE)
            except FileNotFoundError:  # it has just ended
                continue
            except OSError as error:
                learn(f"workers.{name}", f"/proc/{pid}: {error.strerror}")
                continue

            columns = self._columns(name, pid, slice_id)
            if columns is not None:
                workers[name] = columns

            if columns is not None and children_too:
                columns["children_cpu_s"] = self._open[name].children_cpu_s()
                if columns["children_cpu_s"] is None:
                    learn(f"workers.{name}.children_cpu_s", "it has ended, or this kernel tells no children")

        return {"workers": workers} if workers else {}

    def _columns(self, name: str, pid: int, slice_id: str) -> dict[str, Any] | None:
        figures = self._open[name].read()
        if figures is None:
            return None

        mark = self._marks[name].read()
        booked = {"gpu_memory_used_mib": self.booked[pid]} if pid in self.booked else {}
        return {
            "pid": pid,
            "slice": slice_id,
            "cpu_s": figures.cpu_s,
            "memory_mib": figures.memory_mib,
            "threads": figures.threads,
            "switches_voluntary": figures.switches_voluntary,
            "switches_involuntary": figures.switches_involuntary,
            "samples_completed": mark.samples_completed if mark else 0,
            "filler_samples": mark.filler_samples if mark else 0,
            **booked,
        }

    def _let_go(self, name: str) -> None:
        self._open.pop(name).close()
        self._marks.pop(name).close()


class _Mark:
    """A benchmark's progress mark, held open from its first reading on: 4 µs instead of 14."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = -1

    def read(self) -> ProgressMark | None:
        """The mark now; None as long as there is none."""
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None

        return mark_of(os.pread(self._descriptor, MARK_BYTES, 0))

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
