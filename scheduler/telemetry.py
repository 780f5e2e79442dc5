"""Samples of the machine while a run lasts: ``telemetry.jsonl``, one JSON line each, and ``telemetry.json``.

A thread of the launcher takes them, never a worker, and spends hardly more than ``BUDGET``: the harness is to be
quieter than what it measures. The machine and the workers are in every line that can be paid for. Asking a GPU takes
some 5 ms of a core (seen on an H200): the devices take turns, as often as can be paid for; one that has waited too long
is asked all the same, and what that costs the lines go without. The columns are in columns.py; what the machine does
not tell is None, with the reason once in ``telemetry.json``.

Of slices that are to be idle it is also told who computes there: ``idle.json``, for GPUs before and after the run,
and in each line of ``telemetry.jsonl`` how long the CPU cores have worked.
"""

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from typing import Any

from scheduler.clock import Clock, process_cpu_s, thread_cpu_s
from scheduler.columns import GpuState, Telemetry
from scheduler.errors import GpuError, RecordError
from scheduler.proc import BusyTimes, OpenFile, OpenMachine, OpenProcess
from scheduler.record import RunFolder
from scheduler.telemetry_gpus import Gpus, opened, opened_nvml
from scheduler.turns import Learn, Line, Living, Slowly, Turn, Watched, merge
from workloads.progress import MARK_BYTES, MARK_FILE, mark_of

BUDGET, SAVED_S = 0.0085, 1.0
"""Of a core, for sampling, and for how long it may be saved up. With the supervisor's own work the launcher stays
under 1 %."""
DEVICES_SHARE = 0.5
"""Of the budget, where there are devices: theirs, beside what the rest of a line leaves."""
UNPAID_EVERY_S, POWER_EVERY_S = 0.7, 1.4
"""As often one of the devices has its turn, and one of the boards tells its power, even if it is not paid for: 3 s of a
run with one board need its power twice."""
LEAST_LINES = 0.5
"""Of what lines may take, when the devices' turns cost more than their own part."""

SOURCES = {"host": "/proc/stat and /proc/meminfo", "workers": "/proc and progress.bin"}


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
        machine = until_the_end.enter_context(closing(_Machine(watched)))
        workers = until_the_end.enter_context(closing(_Workers(folder, living)))
        gpus = until_the_end.enter_context(opened(watched, clock, workers.pids_on, workers.booked, dcgm_url))
        append = until_the_end.enter_context(folder.appending("telemetry.jsonl"))
        sampler = _Sampler(folder, append, clock, rate_hz, [machine, workers], gpus)
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


class Account:
    """CPU time for one kind of turns: earned as time passes, saved up for ``SAVED_S`` at most, overdrawn by the turn
    that was begun.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self.left_s = 0.0

    def earn(self, span_s: float, beside_s: float = 0.0) -> float:
        """Take what this time brings, and something beside; what could not be saved up is given back."""
        earned_s = self.left_s + BUDGET * self._share * span_s + beside_s
        self.left_s = min(earned_s, BUDGET * self._share * SAVED_S)
        return earned_s - self.left_s

    def spend(self, cpu_s: float) -> None:
        """Take it off, whether it is there or not."""
        self.left_s -= cpu_s

    def lend(self, other: "Account", most_s: float) -> None:
        """Pay what the other has overdrawn, up to so much."""
        lent_s = min(max(0.0, -other.left_s), most_s)
        self.left_s -= lent_s
        other.left_s += lent_s


@dataclass(slots=True)
class _Waiting:
    turn: Turn
    longest_s: float
    since_s: float = -math.inf

    def patience_over(self, now_s: float) -> bool:
        return now_s - self.since_s >= self.longest_s


class Devices:
    """Gives the devices their turns, whoever waits longest first: as long as these are paid for, and one that has
    waited too long whether it is or not.

    Args:
        cpu_s: tells the CPU time that was taken so far.
    """

    def __init__(self, gpus: Gpus, clock: Clock, cpu_s: Callable[[], float] = thread_cpu_s) -> None:
        self._waiting = [_Waiting(one, POWER_EVERY_S * len(gpus.powers)) for one in gpus.powers]
        self._waiting += [_Waiting(one, UNPAID_EVERY_S * len(gpus.turns)) for one in gpus.turns]
        self._clock = clock
        self._cpu_s = cpu_s
        self.share = DEVICES_SHARE if self._waiting else 0.0
        self.account = Account(self.share)

    def pay(self, for_lines: Account, span_s: float) -> None:
        """Give both accounts what this time brings: what lines leave is the devices', and what these have overdrawn the
        lines bear, as long as `LEAST_LINES` of theirs is left."""
        self.account.earn(span_s, for_lines.earn(span_s))
        for_lines.lend(self.account, (1 - LEAST_LINES) * BUDGET * (1 - self.share) * span_s)

    def ask(self, line: Line, now_s: float, learn: Learn, longest_s: float, *, free: bool = False) -> float:
        """Add to the line what those say that have their turn; gives the CPU time that took.

        Args:
            longest_s: no further one is asked this long after ``now_s``.
            free: nothing is spent, however many are asked.
        """
        began_s, spent_s = self._cpu_s() if self._waiting else 0.0, 0.0
        for number in range(len(self._waiting)):
            one = max(self._waiting, key=lambda each: (each.patience_over(now_s), now_s - each.since_s))
            paid = free or spent_s < self.account.left_s or one.patience_over(now_s)
            waited_s = self._clock.now() - now_s  # a GPU's PCIe throughput takes 40 ms to ask, of no core
            if not paid or (number and waited_s > longest_s):
                break

            merge(line, one.turn.take(now_s, learn))
            one.since_s = now_s
            spent_s = self._cpu_s() - began_s

        if not free:
            self.account.spend(spent_s)

        return spent_s


class _Sampler:
    """Writes a line as often as it was asked to, and gives each device its turn as often as the budget allows."""

    def __init__(
        self,
        folder: RunFolder,
        append: Callable[[Line], None],
        clock: Clock,
        rate_hz: float,
        always: Sequence[Turn],
        gpus: Gpus,
    ) -> None:
        self._folder = folder
        self._append = append
        self._clock = clock
        self._period_s = 1 / rate_hz
        self._always = always
        self._devices = Devices(gpus, clock)
        self._for_lines = Account(1 - self._devices.share)
        self._unavailable: dict[str, str] = {}
        self._told = Telemetry(rate_hz=rate_hz, sources={**SOURCES, **gpus.sources})
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
        while not enough.wait(max(0.0, due_s - self._clock.now())):
            now_s = self._clock.now()
            self._late += now_s - due_s > self._period_s
            due_s = max(due_s + self._period_s, now_s)  # a sample that was missed is not made up for
            self._devices.pay(self._for_lines, now_s - before_s)
            before_s = now_s
            try:
                self._sample(now_s)
            except RecordError:  # the run's own record will meet the same disk, and say so
                return

    def _sample(self, now_s: float) -> None:
        line: Line = {"at_s": round(now_s, 4)}
        known = len(self._unavailable)
        first = not self._cpu_s  # it opens and loads, which is not what sampling goes on to cost: it is free
        if first or self._for_lines.left_s > 0:
            for turn in self._always:
                merge(line, turn.take(now_s, self._learn))

        devices_s = self._devices.ask(line, now_s, self._learn, self._period_s / 2, free=first)
        if len(line) > 1:
            self._append(line)
            self._lines += 1

        if len(self._unavailable) > known:
            self.write()

        cpu_s = thread_cpu_s()
        if not first:
            self._for_lines.spend(cpu_s - self._cpu_s - devices_s)

        self._cpu_s = cpu_s

    def _learn(self, column: str, why: str) -> None:
        self._unavailable.setdefault(column, why)


class _Machine:
    """The host and the cores of the slices."""

    def __init__(self, watched: Watched) -> None:
        self._kernel = OpenMachine()
        self._cores = {one.id: one.cores for one in watched.slices if one.cores}
        self._idle_cores = watched.idle_cores
        self._wanted = frozenset(self._idle_cores).union(*self._cores.values())
        self._slowly = Slowly()
        self._before: tuple[float, BusyTimes] | None = None

    def close(self) -> None:
        """Let go of the kernel's files."""
        self._kernel.close()

    def take(self, now_s: float, learn: Learn) -> Line:
        host: dict[str, float | int | None] = {"cpu_active": None}
        line: Line = {"host": host}
        busy = self._kernel.busy(self._wanted)
        if busy is None:
            learn("host.cpu_active", "the kernel does not tell how long its cores have worked")
        else:
            line |= self._of_cores(now_s, busy, host)

        host["launcher_cpu_s"] = round(process_cpu_s(), 4)
        host["telemetry_cpu_s"] = round(thread_cpu_s(), 4)
        if self._slowly.due(now_s):
            host["load_1min"] = round(os.getloadavg()[0], 2)
            host["memory_available_mib"] = self._kernel.memory_available_mib()

        return line

    def _of_cores(self, now_s: float, busy: BusyTimes, host: dict[str, float | int | None]) -> Line:
        before_s, before = self._before or (now_s, busy)
        self._before, span_s = (now_s, busy), now_s - before_s
        host["cpu_active"] = _share(busy.total - before.total, span_s * busy.cores)
        slices: dict[str, dict[str, float | None]] = {}
        for name, cores in self._cores.items():
            there = [core for core in cores if core in busy.by_core and core in before.by_core]
            worked_s = sum([busy.by_core[core] for core in there])
            since_s = worked_s - sum([before.by_core[core] for core in there])
            slices[name] = {
                "cpu_active": _share(since_s, span_s * len(there)),
                "cores_busy_s": round(worked_s, 2) if there else None,
            }

        if not self._idle_cores:
            return {"slices": slices}

        return {
            "slices": slices,
            "idle_cores_busy_s": {str(one): busy.by_core.get(one) for one in self._idle_cores},
        }


def _share(worked_s: float, span_s: float) -> float | None:
    """The kernel counts in ticks of 10 ms, which may make a share of a short time exceed the whole."""
    return round(min(1.0, worked_s / span_s), 4) if span_s else None


class _Workers:
    """The benchmarks' processes, as long as they live."""

    def __init__(self, folder: RunFolder, living: Living) -> None:
        self._folder = folder
        self._living = living
        self._open: dict[str, tuple[OpenProcess, OpenFile]] = {}
        """With the progress mark."""
        self._slowly = Slowly()
        self.booked: dict[int, int | None] = {}
        """Pid → MiB of GPU memory that the driver books to it; the devices' turns write it."""

    def close(self) -> None:
        """Let go of all of them."""
        for name in list(self._open):
            self._let_go(name)

    def pids_on(self, slice_id: str) -> list[int]:
        """Of those that live there now."""
        return [pid for pid, where in self._living().values() if where == slice_id]

    def take(self, now_s: float, learn: Learn) -> Line:
        living = self._living()
        for name, (process, _mark) in list(self._open.items()):
            if name not in living or living[name][0] != process.pid:
                self._let_go(name)

        slow_too = self._slowly.due(now_s)
        workers: dict[str, dict[str, Any]] = {}
        for name, (pid, slice_id) in living.items():
            new = name not in self._open
            try:
                if new:
                    mark = OpenFile(str(self._folder.path / name / MARK_FILE))
                    self._open[name] = OpenProcess(pid), mark
            except FileNotFoundError:  # it has just ended
                continue
            except OSError as error:
                learn(f"workers.{name}", f"/proc/{pid}: {error.strerror}")
                continue

            columns = self._columns(name, slice_id)
            if columns is not None:
                workers[name] = columns
                columns |= self._slow_columns(name, learn) if slow_too or new else {}

        return {"workers": workers} if workers else {}

    def _columns(self, name: str, slice_id: str) -> dict[str, Any] | None:
        process, mark_file = self._open[name]
        cpu_s = process.cpu_s()
        if cpu_s is None:
            return None

        mark = mark_of(mark_file.read(MARK_BYTES))
        columns = {
            "pid": process.pid,
            "slice": slice_id,
            "cpu_s": round(cpu_s, 4),
            "samples_completed": mark.samples_completed if mark else 0,
            "filler_samples": mark.filler_samples if mark else 0,
        }
        if process.pid in self.booked:
            columns["gpu_memory_used_mib"] = self.booked[process.pid]

        return columns

    def _slow_columns(self, name: str, learn: Learn) -> dict[str, Any]:
        process, _mark = self._open[name]
        figures = process.figures()
        children_cpu_s = process.children_cpu_s()
        if children_cpu_s is None:
            learn(f"workers.{name}.children_cpu_s", "it has ended, or this kernel tells no children")

        if figures is not None and figures.switches_voluntary is None:
            for column in ("switches_voluntary", "switches_involuntary"):
                learn(f"workers.{name}.{column}", "this kernel does not count them")

        return {**(figures._asdict() if figures else {}), "children_cpu_s": children_cpu_s}

    def _let_go(self, name: str) -> None:
        for one in self._open.pop(name):
            one.close()
