"""A document as one HTML file: nothing is loaded from anywhere, and what came from a run stays text."""

import base64
import hashlib
from collections.abc import Iterator
from html import escape

from scheduler.report.document import (
    Absent,
    Block,
    Cell,
    Code,
    Document,
    Picture,
    Section,
    Table,
    Words,
    shown,
)

STYLE = """
:root { color-scheme: light dark; --sans: system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif;
  --paper: #ffffff; --raised: #f6f7f9; --ink: #1b1f24; --quiet: #5c6570; --grid: #d8dde3; --shade: #e4e8ee;
  --good: #0a7d4b; --bad: #b42318; --warn: #8a5a00; --link: #0b5cad;
  --series-0: #0072b2; --series-1: #c2410c; --series-2: #00875f; --series-3: #b0508a;
  --series-4: #9a6b00; --series-5: #2b8fc9; --series-6: #6d4fc4; --series-7: #5f6b76; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171b; --raised: #1d2126; --ink: #e8ebef; --quiet: #a1abb6; --grid: #363d46; --shade: #2a3038;
  --good: #4cc38a; --bad: #ff8a7a; --warn: #f0b849; --link: #77b7ff;
  --series-0: #4db2ff; --series-1: #ff8f57; --series-2: #3dd6a3; --series-3: #f0a3c8;
  --series-4: #f2c14e; --series-5: #8fd0ff; --series-6: #b8a3ff; --series-7: #b3bdc7; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.5rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 var(--sans); }
h1 { font-size: 1.35rem; margin: .2rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2.4rem 0 .6rem; padding-bottom: .25rem; border-bottom: 1px solid var(--grid);
  overflow-wrap: anywhere; }
p { margin: .5rem 0; max-width: 50rem; overflow-wrap: anywhere; }
.verdict { display: inline-block; padding: .15rem .7rem; border-radius: .3rem; font-weight: 700;
  letter-spacing: .04em; border: 2px solid currentColor; }
.good { color: var(--good); } .bad { color: var(--bad); } .neutral { color: var(--link); }
.quiet, figcaption, caption { color: var(--quiet); font-size: .9em; }
.figures { display: flex; flex-wrap: wrap; gap: .7rem; margin: 1rem 0; }
.figures div { background: var(--raised); border-radius: .4rem; padding: .6rem .9rem; }
.figures b { font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.figures span { display: block; color: var(--quiet); font-size: .85em; overflow-wrap: anywhere; }
nav { margin: 1rem 0; font-size: .92em; } nav a { margin-right: .9rem; white-space: nowrap; }
a { color: var(--link); }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .9em; min-width: 18rem; }
caption { text-align: left; caption-side: bottom; padding-top: .35rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .9rem .3rem 0; border-bottom: 1px solid var(--grid);
  overflow-wrap: break-word; max-width: 26rem; }
td.long { min-width: 20rem; } td.name { white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; white-space: nowrap; }
th button::after { content: " ↕"; color: var(--quiet); font-weight: 400; }
th[aria-sort="ascending"] button::after { content: " ↑"; } th[aria-sort="descending"] button::after { content: " ↓"; }
tr.breach td:first-child { color: var(--bad); font-weight: 700; }
tr.warning td:first-child { color: var(--warn); font-weight: 700; }
figure { margin: .8rem 0; } figure svg { min-width: 30rem; } figcaption { max-width: 50rem; }
svg { display: block; width: 100%; height: auto; font-family: var(--sans); }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
pre { background: var(--raised); padding: .7rem .9rem; border-radius: .4rem; white-space: pre-wrap;
  overflow-wrap: anywhere; user-select: all; font-size: .9em; }
footer { margin-top: 3rem; color: var(--quiet); font-size: .85em; }
@media print { nav { display: none; } th button::after { content: ""; } }
"""
SCRIPT = """
for (const heading of document.querySelectorAll("th button")) heading.addEventListener("click", () => {
  const cell = heading.parentElement, row = cell.parentElement, body = row.closest("table").tBodies[0];
  const down = cell.getAttribute("aria-sort") === "ascending", place = cell.cellIndex;
  for (const other of row.cells) other.removeAttribute("aria-sort");
  cell.setAttribute("aria-sort", down ? "descending" : "ascending");
  const key = (one) => { const its = one.cells[place]; return its.dataset.n ?? its.textContent; };
  const order = (a, b) => { const [x, y] = [key(a), key(b)], [m, n] = [Number(x), Number(y)];
    if (x === "" || y === "") return (x === "") - (y === "");
    return (Number.isNaN(m) || Number.isNaN(n) ? x.localeCompare(y) : m - n) * (down ? -1 : 1); };
  body.append(...[...body.rows].sort(order));
});
"""
SHORT_CHARACTERS, LONG_CHARACTERS = 32, 90
"""Of a cell. A word with fewer is not broken at its hyphens; a text with more gets room, not a narrow column."""
_PLAIN_ROWS = 2
"""A table with no more rows is not worth sorting."""


def render(document: Document) -> str:
    """The whole file."""
    allowed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'; img-src data:"
    return "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(document.verdict)}: {escape(document.title)}</title>",
            f"<style>{STYLE}</style>\n</head>\n<body>",
            *_body(document),
            f"<script>{SCRIPT}</script>\n</body>\n</html>\n",
        )
    )


def _body(document: Document) -> Iterator[str]:
    yield f'<header><span class="verdict {document.tone}">{escape(document.verdict)}</span>'
    yield f"<h1>{escape(document.title)}</h1>\n<p>{escape(document.lead)}</p>"
    if document.figures:
        yield '<div class="figures">'
        for one in document.figures:
            yield f"<div><b>{escape(one.value)}</b> {escape(one.unit)}<span>{escape(one.says)}</span></div>"

        yield "</div>"

    yield "<nav>"
    for number, section in enumerate(document.sections):
        yield f'<a href="#s{number}">{escape(section.title)}</a>'

    yield "</nav></header>\n<main>"
    for number, section in enumerate(document.sections):
        yield from _section(number, section)

    yield f"</main>\n<footer>Made by {escape(document.made_by)}. This file loads nothing from anywhere.</footer>"


def _section(number: int, section: Section) -> Iterator[str]:
    yield f'<section id="s{number}">\n<h2>{escape(section.title)}</h2>'
    for block in section.blocks:
        yield _block(block)

    yield "</section>"


def _block(block: Block) -> str:
    match block:
        case Words():
            return f'<p class="{block.tone}">{escape(block.text)}</p>'
        case Absent():
            return f'<p class="quiet">{escape(block.what)}: not recorded: {escape(block.why)}.</p>'
        case Code():
            return f"<pre>{escape(block.text)}</pre>"
        case Picture():
            caption = escape(block.caption)
            return f'<figure><div class="wide">{block.svg}</div><figcaption>{caption}</figcaption></figure>'
        case Table():
            return "\n".join(_table(block))


def _table(table: Table) -> Iterator[str]:
    numeric = [_is_numeric([row[place] for row in table.rows]) for place in range(len(table.columns))]
    sortable = len(table.rows) > _PLAIN_ROWS and len(table.columns) > 2
    yield '<div class="wide"><table>'
    if table.caption:
        yield f"<caption>{escape(table.caption)}</caption>"

    yield "<thead><tr>"
    for name, is_number in zip(table.columns, numeric, strict=True):
        heading = f'<button type="button">{escape(name)}</button>' if sortable and name else escape(name)
        yield f'<th{_class(is_number)} scope="col">{heading}</th>'

    yield "</tr></thead>\n<tbody>"
    for row in table.rows:
        severity = row[0] if row and row[0] in ("breach", "warning") else ""
        cells = "".join(_cell(cell, is_number) for cell, is_number in zip(row, numeric, strict=True))
        yield f'<tr class="{severity}">{cells}</tr>' if severity else f"<tr>{cells}</tr>"

    yield "</tbody></table></div>"


def _cell(cell: Cell, is_number: bool) -> str:
    exact = f' data-n="{cell!r}"' if isinstance(cell, int | float) and not isinstance(cell, bool) else ""
    empty = ' data-n=""' if cell is None else ""
    said = shown(cell)
    kind = _class(is_number)
    if isinstance(cell, str) and " " in said and len(said) > LONG_CHARACTERS:
        kind = ' class="long"'
    elif isinstance(cell, str) and " " not in said and len(said) < SHORT_CHARACTERS:
        kind = ' class="name"'

    return f"<td{kind}{exact}{empty}>{escape(said)}</td>"


def _class(is_number: bool) -> str:
    return ' class="n"' if is_number else ""


def _is_numeric(cells: list[Cell]) -> bool:
    said = [cell for cell in cells if cell not in (None, "")]
    return bool(said) and all(isinstance(cell, int | float) and not isinstance(cell, bool) for cell in said)
