"""A document as Markdown, for an issue or a wiki: the words and the tables; of pictures what they show."""

import re
from collections.abc import Iterator

from scheduler.report.document import (
    Absent,
    Block,
    Code,
    Document,
    Picture,
    Table,
    Words,
    shown,
)


def render(document: Document) -> str:
    """The whole file."""
    return "\n".join(_lines(document)) + "\n"


def _lines(document: Document) -> Iterator[str]:
    yield f"# {_plain(document.verdict)}: {_plain(document.title)}"
    yield f"\n{_plain(document.lead)}\n"
    for one in document.figures:
        yield f"- **{_plain(f'{one.value} {one.unit}'.strip())}** {_plain(one.says)}"

    for section in document.sections:
        yield f"\n## {_plain(section.title)}"
        for block in section.blocks:
            yield f"\n{_block(block)}"

    yield f"\nMade by {_plain(document.made_by)}."


def _block(block: Block) -> str:
    match block:
        case Words():
            return _plain(block.text)
        case Absent():
            return f"{_plain(block.what)}: not recorded: {_plain(block.why)}."
        case Code():
            return "\n".join(f"    {line}" for line in block.text.splitlines())
        case Picture():
            return f"*(A picture in the HTML report.)* {_plain(block.caption)}"
        case Table():
            rows = [block.columns, ["---"] * len(block.columns)]
            rows += [[shown(cell) for cell in row] for row in block.rows]
            lines = [
                "| " + " | ".join(cell if place == 1 else _plain(cell) for cell in row) + " |"
                for place, row in enumerate(rows)
            ]
            return "\n".join(lines + ([f"\n{_plain(block.caption)}"] if block.caption else []))


def _plain(text: str) -> str:
    """Text that Markdown, and the HTML it allows, take for nothing but text."""
    return re.sub(r"([\\\\`*_\[\]<>|#&~])", r"\\\1", " ".join(text.split()))
