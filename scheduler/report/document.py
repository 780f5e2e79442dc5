"""What a report says, before it is HTML or Markdown: sections of words, tables and pictures.

All text is plain text; whoever renders it escapes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Cell = str | int | float | None
"""None: there is no such figure."""


@dataclass(frozen=True, slots=True)
class Words:
    """A paragraph."""

    text: str
    tone: Literal["plain", "quiet"] = "plain"


@dataclass(frozen=True, slots=True)
class Absent:
    """Something a reader would look for here, that was not recorded."""

    what: str
    why: str


@dataclass(frozen=True, slots=True)
class Code:
    """A command to copy."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under headings; sortable where the page can."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawing."""

    svg: str
    caption: str
    """Said where the drawing cannot be shown, too."""


Block = Words | Absent | Code | Table | Picture


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of the summary at the top."""

    value: str
    unit: str
    says: str


@dataclass(frozen=True, slots=True)
class Document:
    """A report."""

    title: str
    verdict: str
    """VALID, INVALID, or what else is to be said first."""
    tone: Literal["good", "bad", "neutral"]
    lead: str
    """One sentence: what was measured, where, how."""
    figures: Sequence[Figure]
    sections: Sequence[Section]
    made_by: str


def shown(cell: Cell) -> str:
    """A cell as text: about five digits, never an exponent; a dash for what is not there."""
    match cell:
        case None:
            return "–"
        case bool():
            return "yes" if cell else "no"
        case int():
            return f"{cell:,}"
        case float():
            return _plain(cell)
        case _:
            return cell


def _plain(value: float) -> str:
    if value != value:  # NaN
        return "–"

    if abs(value) >= 10_000 or (value == int(value) and abs(value) < 1e15):
        return f"{value:,.0f}"

    return f"{value:.5g}" if abs(value) >= 1e-4 else f"{value:.7f}"
