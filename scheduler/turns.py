"""The words of sampling: what is watched, a source's turn, and the line that the turns make together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scheduler.slices import Slice

Line = dict[str, Any]
"""A line of ``telemetry.jsonl``, or what one turn adds to it; columns.py has its schema."""

SLOW_EVERY_S = 0.95
"""Once a second, less what a line may be early: for columns that change slowly, or cost more than the rest. In the
other lines they are not."""

Learn = Callable[[str, str], None]
"""Told ``slices.gpu0.sm_active`` and why it is not available; only the first time counts."""

Living = Callable[[], Mapping[str, tuple[int, str]]]
"""Benchmark → its pid and the id of its slice, of those that live now."""


class Turn(Protocol):
    """A source of figures."""

    def take(self, now_s: float, learn: Learn, /) -> Line:
        """What it says now; raises nothing that the source does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What is sampled beside the host."""

    slices: Sequence[Slice] = ()
    idle_cores: Sequence[int] = ()


class Slowly:
    """Says yes once in so long at most."""

    def __init__(self, every_s: float = SLOW_EVERY_S) -> None:
        self._every_s = every_s
        self._due_s = float("-inf")

    def due(self, now_s: float) -> bool:
        """Whether it is time again; then it is not for a while."""
        if now_s < self._due_s:
            return False

        self._due_s = now_s + self._every_s
        return True


def merge(line: Line, said: Line) -> None:
    """Add what one turn said. Two turns may tell of one slice: its cores, its device; or of one GPU."""
    for part, found in said.items():
        if part in ("slices", "gpus"):
            for name, columns in found.items():
                line.setdefault(part, {}).setdefault(name, {}).update(columns)
        else:
            line.setdefault(part, {}).update(found)
