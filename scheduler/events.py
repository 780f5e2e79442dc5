"""What happened (events) and what is to be done (actions): the two vocabularies of a run.

Every time is in seconds on the run's one monotonic clock (``clock.py``).
"""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Ready:
    """The benchmark stands on its slice and its model is loaded; warm-up and calibration follow."""

    name: str
    at: float
    facts: dict[str, Any] = field(default_factory=dict)
    """What the worker found: its pid, the device CUDA reports, load time, notes."""


@dataclass(frozen=True, slots=True)
class Issuing:
    """LoadGen has called IssueQuery and the first batch of that test has completed."""

    name: str
    at: float
    first_issue_at: float


@dataclass(frozen=True, slots=True)
class Finished:
    """LoadGen's (last) test returned. What it says is in its own logs."""

    name: str
    at: float
    begin: float | None = None
    """First query issued, of the measured window; None if LoadGen returned without one."""
    end: float | None = None
    """Last completion."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Notes of LoadGen's driver, and the batch size it ran with."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The worker says why it is about to die; ``Exited`` follows."""

    name: str
    at: float
    kind: Literal["spec", "memory", "device", "disk", "bug"]
    message: str
    detail: str = ""
    """Traceback, where there is one."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The process is gone and reaped. Its pipe was read to the end before this is told."""

    name: str
    at: float
    code: int
    """As multiprocessing has it: negative for a signal."""


@dataclass(frozen=True, slots=True)
class Stalled:
    """An issuing benchmark has completed nothing for longer than ``stall_after_s``."""

    name: str
    at: float
    last_completion_at: float


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The user (or the system) asked the run to end: a signal's name."""

    at: float
    reason: str


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The phase's deadline is here."""

    at: float


@dataclass(frozen=True, slots=True)
class NextMain:
    """Whoever asks has decided on another main benchmark, over the same background; it has a new name."""

    name: str
    at: float


@dataclass(frozen=True, slots=True)
class NoMoreMains:
    """Whoever asks has decided that the last main benchmark was the last."""

    at: float


BenchmarkEvent = Ready | Issuing | Finished | Failed | Exited | Stalled
Event = BenchmarkEvent | StopRequested | DeadlinePassed | NextMain | NoMoreMains


@dataclass(frozen=True, slots=True)
class Launch:
    """Start the benchmark's process."""

    name: str


@dataclass(frozen=True, slots=True)
class Drain:
    """Ask a background benchmark to finish the test in hand and end."""

    name: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the process to end at once."""

    name: str


@dataclass(frozen=True, slots=True)
class Kill:
    """End the process and its group with SIGKILL."""

    name: str


Action = Launch | Drain | Stop | Kill
