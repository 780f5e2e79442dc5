"""The words of sampling: what is watched, a source's turn, and the line that the turns make together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scheduler.slices import Slice

Line = dict[str, Any]
"""A line of ``telemetry.jsonl``, or what one turn adds to it; columns.py has its schema."""

SLOW_EVERY_S = 1.0
"""For columns that change slowly, or cost more than the rest: in the other lines they are not."""

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
    """Says yes once in ``SLOW_EVERY_S`` at most."""

    def __init__(self) -> None:
        self._due_s = float("-inf")

    def due(self, now_s: float) -> bool:
        """Whether it is time again; then it is not for a while."""
        if now_s < self._due_s:
            return False

        self._due_s = now_s + SLOW_EVERY_S
        return True


def merge(line: Line, said: Line) -> None:
    """Add what one turn said. Two turns may tell of one slice: its cores, its device."""
    for part, found in said.items():
        if part == "slices":
            for name, columns in found.items():
                line.setdefault(part, {}).setdefault(name, {}).update(columns)
        else:
            line.setdefault(part, {}).update(found)
