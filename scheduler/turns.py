"""The words of sampling: what is watched, a source's turn, and the line that the turns make together."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from scheduler.slices import Slice

Line = dict[str, Any]
"""A line of ``telemetry.jsonl``, or what one turn adds to it; columns.py has its schema."""

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


def merge(line: Line, said: Line) -> None:
    """Add what one turn said. Two turns may tell of one slice: its cores, its device."""
    for part, found in said.items():
        if part == "slices":
            for name, columns in found.items():
                line.setdefault(part, {}).setdefault(name, {}).update(columns)
        else:
            line.setdefault(part, {}).update(found)
