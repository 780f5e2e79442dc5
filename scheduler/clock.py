"""The one door to time: a monotonic clock that every process of a run shares, and the UTC of its zero.

Linux's CLOCK_MONOTONIC is the same for all processes of a machine, so a worker's times and the
launcher's are on one axis. Order is only ever told by it; UTC is for people.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime


@dataclass(frozen=True, slots=True)
class Clock:
    """Seconds since ``zero_ns``, which was ``zero_utc``."""

    zero_ns: int
    zero_utc: str

    @classmethod
    def start(cls) -> "Clock":
        """A clock whose zero is now."""
        return cls(time.monotonic_ns(), datetime.now(UTC).isoformat(timespec="milliseconds"))

    def now(self) -> float:
        """Seconds since zero."""
        return self.at(time.monotonic_ns())

    def at(self, monotonic_ns: int) -> float:
        """Seconds since zero of a ``time.monotonic_ns()`` reading taken in any process."""
        return (monotonic_ns - self.zero_ns) / 1e9


def utc_stamp() -> str:
    """The present, for a folder's name: ``20261120T225251Z``."""
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")


def utc_now() -> str:
    """The present, for people: ``2026-11-21T12:00:00+00:00``."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def unix_now() -> float:
    """The present in s since 1970, to hold against the time stamps of others."""
    return time.time()


def process_cpu_s() -> float:
    """CPU time that this process has taken, user and system."""
    return time.process_time()


def cpu_s_of(pid: int) -> float:
    """CPU time that another process has taken, of all its threads, user and system.

    Raises:
        OSError: there is no such process, or this kernel does not tell.
    """
    return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3), whose number Linux makes so


def thread_cpu_s() -> float:
    """CPU time that the calling thread has taken, user and system."""
    return time.thread_time()


def pause(seconds: float) -> None:
    """Let time pass, where there is nothing that could be waited for."""
    time.sleep(seconds)
