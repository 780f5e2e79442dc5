"""What the kernel tells of the machine and of one process: CPU time, memory, context switches, what it has started.

Read from descriptors that stay open: a reading of a process takes 6 µs, a tenth of psutil's, and never tells of
another process, however soon its pid is taken again.
"""

import os
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from scheduler.clock import cpu_s_of

_OWN, _WAITED_FOR = slice(11, 13), slice(13, 15)
"""User and system time among the fields that follow a process's name: its own, and of children that have ended."""
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_SWITCHES = re.compile(rb"voluntary_ctxt_switches:\s*(\d+)\s+nonvoluntary_ctxt_switches:\s*(\d+)")
_AVAILABLE = re.compile(rb"MemAvailable:\s*(\d+) kB")


class OpenFile:
    """A small file of the kernel's, or one that a worker writes, that stays open from its first reading on."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._descriptor = -1

    def read(self, most_bytes: int) -> bytes:
        """What it says now; empty where it cannot be read."""
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)

            return os.pread(self._descriptor, most_bytes, 0)
        except OSError:
            return b""

    def close(self) -> None:
        """Let go of it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)


@dataclass(frozen=True, slots=True)
class BusyTimes:
    """How long cores have worked since the boot, whoever's work it was, s."""

    total: float
    """Of all cores together."""
    cores: int
    """How many these are."""
    by_core: dict[int, float]
    """Of those that were asked for."""


class OpenMachine:
    """The machine as its kernel tells it under ``root``."""

    def __init__(self, root: Path = Path("/proc")) -> None:
        self._stat = OpenFile(f"{root}/stat")
        self._memory = OpenFile(f"{root}/meminfo")

    def close(self) -> None:
        """Let go of it."""
        self._stat.close()
        self._memory.close()

    def busy(self, wanted: Container[int]) -> BusyTimes | None:
        """The time in which cores were not idle, with that of each of these; None where the kernel does not tell."""
        lines = self._stat.read(1 << 16).partition(b"intr")[0].splitlines()
        if not lines:
            return None

        by_core: dict[int, float] = {}
        for line in lines[1:]:
            core = int(line[3 : line.index(b" ")])
            if core in wanted:
                by_core[core] = _worked_s(line)

        return BusyTimes(_worked_s(lines[0]), len(lines) - 1, by_core)

    def memory_available_mib(self) -> int | None:
        """MiB that could be had without swapping; None where the kernel does not tell."""
        found = _AVAILABLE.search(self._memory.read(512))
        return int(found[1]) >> 10 if found else None


def _worked_s(line: bytes) -> float:
    """Of proc(5)'s columns all but idle and iowait; the guests' time is in user's and nice's."""
    ticks = line.split()
    return _seconds(ticks[1:4]) + _seconds(ticks[6:9])


class ProcessFigures(NamedTuple):
    """One process at one moment."""

    memory_mib: float
    """Resident."""
    threads: int
    switches_voluntary: int | None
    switches_involuntary: int | None
    """Of its main thread; None where the kernel does not count them."""


class OpenProcess:
    """A process whose files in /proc are held open.

    Raises:
        OSError: there is no such process, or it is another user's.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._stat = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._status = os.open(f"/proc/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            os.close(self._stat)
            raise

    def close(self) -> None:
        """Let go of it."""
        os.close(self._stat)
        os.close(self._status)

    def cpu_s(self) -> float | None:
        """User and system, of all its threads since its start; None once it has ended."""
        try:
            return cpu_s_of(self.pid)
        except OSError:
            pass

        fields = self._fields()
        return _seconds(fields[_OWN]) if fields else None

    def figures(self) -> ProcessFigures | None:
        """Its figures now; None once it has ended."""
        fields = self._fields()
        if not fields:
            return None

        try:
            switches = _SWITCHES.search(os.pread(self._status, 8192, 0))
        except ProcessLookupError:
            return None

        return ProcessFigures(
            memory_mib=round(int(fields[21]) * _PAGE_BYTES / 2**20, 1),
            threads=int(fields[17]),
            switches_voluntary=int(switches[1]) if switches else None,
            switches_involuntary=int(switches[2]) if switches else None,
        )

    def children_cpu_s(self) -> float | None:
        """CPU time of the processes it has started, and of theirs, since its start; None once it has ended, or
        where the kernel does not tell children.

        Of those that have ended it is what was waited for.
        """
        try:
            living_s = sum(map(_cpu_of_all_s, _children(self.pid)))
            return living_s + _seconds(self._fields()[_WAITED_FOR])
        except OSError:
            return None

    def _fields(self) -> list[bytes]:
        """Of its stat; empty once it has ended."""
        try:
            fields = _fields(os.pread(self._stat, 2048, 0))
        except ProcessLookupError:
            return []

        return [] if fields[:1] in ([b"Z"], [b"X"]) else fields


def _cpu_of_all_s(pid: int) -> float:
    try:
        fields = _fields(_content(f"/proc/{pid}/stat"))
        return _seconds([*fields[_OWN], *fields[_WAITED_FOR]]) + sum(map(_cpu_of_all_s, _children(pid)))
    except (FileNotFoundError, ProcessLookupError):  # it has just ended: its parent has its time
        return 0.0


def _children(pid: int) -> list[int]:
    """Those that any of its threads has started.

    Raises:
        OSError: it has ended, or the kernel tells no children.
    """
    found: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):  # noqa: PTH208  # a third of what pathlib takes
        try:
            found += map(int, _content(f"/proc/{pid}/task/{thread}/children").split())
        except (FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            if thread == str(pid):
                raise

    return found


def _content(path: str) -> bytes:
    """Without pathlib's and the buffer's 20 µs.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, 1 << 16)
    finally:
        os.close(descriptor)


def _fields(stat: bytes) -> list[bytes]:
    """proc(5)'s fields from the third on; the name before them may hold anything."""
    return stat.rpartition(b")")[2].split()


def _seconds(ticks: Sequence[bytes]) -> float:
    return sum(map(int, ticks)) / _TICKS_PER_S
