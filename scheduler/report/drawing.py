"""Drawings as SVG that takes its colours from the page: readable on light and on dark.

Shapes are drawn in stand-in colours that nothing else has; in the SVG each becomes a CSS variable of the page.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import log10
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

INK, QUIET, GRID, SHADE, PAPER = "#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005"
"""Text and axes; what matters less; grid lines; a shaded time; the page itself."""
SERIES = tuple(f"#0b000{number}" for number in range(8))
"""One a benchmark or a curve, in their order; the page has them told apart by colour-blind readers too."""
VARIABLES = {
    INK: "--ink",
    QUIET: "--quiet",
    GRID: "--grid",
    SHADE: "--shade",
    PAPER: "--paper",
    **{stand_in: f"--series-{number}" for number, stand_in in enumerate(SERIES)},
}
WIDTH_IN = 9.2
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a $ in a workload's name is a $
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.4,
    "lines.solid_joinstyle": "round",
}
_salts = count()


def colour(number: int) -> str:
    """The stand-in of the n-th series."""
    return SERIES[number % len(SERIES)]


@dataclass
class Drawing:
    """A figure while it is drawn; ``svg`` once it is done."""

    figure: "Figure"
    axes: "list[Axes]"
    svg: str = ""


@contextmanager
def in_page_colours() -> Iterator[None]:
    """Figures that are made and turned into SVG within the ``with`` have the stand-in colours."""
    import matplotlib as mpl
    from cycler import cycler

    salt = {"svg.hashsalt": str(next(_salts))}  # so that the ids of two drawings on a page differ
    with mpl.rc_context(STYLE | salt | {"axes.prop_cycle": cycler(color=SERIES)}):
        yield


@contextmanager
def drawn(rows: int = 1, height_in: float = 3.0, *, share_x: bool = True) -> Iterator[Drawing]:
    """A figure of so many plots below one another; on leaving the ``with`` it is SVG."""
    from matplotlib.figure import Figure

    with in_page_colours():
        figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
        grid = figure.subplots(rows, 1, sharex=share_x, squeeze=False)
        drawing = Drawing(figure, [row[0] for row in grid])
        yield drawing
        drawing.svg = svg_of(figure)


def label_plainly(axis: "Axis", most: int = 7) -> None:
    """Label a logarithmic axis with plain numbers: matplotlib's own labels are formulas. Call it with all drawn.

    Args:
        most: labels that have room; whole powers of ten may be more, and within one decade matplotlib chooses.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    lowest, highest = axis.get_view_interval()
    decades = log10(highest / lowest)
    choices = ((1.0, 2.0, 5.0), (1.0, 3.0))
    subs = next((subs for subs in choices if len(subs) * decades <= most), (1.0,))
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(
        FuncFormatter(lambda value, _at: f"{value:,g}" if value < 1e6 else f"{value:,.0f}")
    )


def svg_of(figure: "Figure") -> str:
    """A figure as an ``svg`` element for a page."""
    content = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    return fit_for_a_page(content.getvalue())


def picture_of(figure: "Figure", suffix: str) -> bytes:
    """A figure as the content of a file of its own, by the file's suffix: ``.svg`` or ``.png``."""
    content = io.BytesIO()
    metadata = {"Date": None} if suffix == ".svg" else None
    figure.savefig(content, format=suffix.removeprefix("."), dpi=150, metadata=metadata)
    return content.getvalue()


def fit_for_a_page(svg: str) -> str:
    """An ``svg`` element alone, as wide as the page lets it be, in the page's colours and fonts."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style type=\"text/css\">.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<defs>\s*</defs>", "", svg)
    svg = _fitted(svg)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg).replace("xlink:href", "href")
    svg = re.sub(r"\n\s*", "\n", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")

    return svg.strip()


def _fitted(svg: str) -> str:
    """No wider than one and a half times what it was drawn for, in place of that size itself."""
    size = re.compile(r'\s(?:width|height)="([0-9.]+)pt"')
    head, rest = svg.split(">", 1)
    widest_px = max(1.5 * float(width) for width in re.findall(r'\swidth="([0-9.]+)pt"', head))
    return f'{size.sub("", head)} style="max-width:{widest_px:.0f}px">{rest}'
