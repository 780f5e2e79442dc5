"""A profile's pictures: MIGProfiler's four, against batch size by slice profile, and the latencies' distribution.

A figure has one panel for each workload, sequence length and load, and one line for each slice profile. Slices that ran
the same cell at once are one line: their throughputs added, of latencies the slowest slice's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from scheduler.profile import latencies
from scheduler.profile_row import Row
from scheduler.record import write_whole
from scheduler.report.drawing import label_plainly, picture_of

PANELS_ACROSS = 3
PANEL_INCHES = (4.4, 3.3)
CDF_POINTS = 400
"""A line's points in the picture of the distribution: the slowest of the latencies is always one."""
NINES = (0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999)
MARKERS = "osD^vP*X"
STYLE: Any = {  # the stubs want each key as a literal
    "svg.fonttype": "none",
    "svg.hashsalt": "hetero-mig",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.parse_math": False,
}


class Picture(NamedTuple):
    """What one of them shows."""

    title: str
    unit: str
    value: Callable[[Row], float | None]
    of_several: Callable[[Sequence[float]], float]
    """What slices that ran at once come to."""
    why: str
    """The field of ``unavailable`` that says why there is none."""


PICTURES: Mapping[str, Picture] = {
    "fb_used": Picture(
        "Memory used on the slice",
        "MiB",
        lambda row: row.device_memory_used_mib,
        max,
        "device_memory_used_mib",
    ),
    "activity": Picture(
        "Graphics engine active",
        "part of the time",
        lambda row: row.graphics_activity,
        np.mean,
        "graphics_activity",
    ),
    "latency": Picture("Latency, mean", "ms", lambda row: row.latency_mean_ms, max, "latency_mean_ms"),
    "latency_p99": Picture("Latency, p99", "ms", lambda row: row.latency_p99_ms, max, "latency_p99_ms"),
    "throughput": Picture("Throughput", "samples/s", lambda row: row.samples_per_s, sum, "samples_per_s"),
}


class Panel(NamedTuple):
    """The rows of one workload, sequence length and load."""

    title: str
    rows: list[Row]


def draw(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Every picture into ``folder/pictures``, as SVG and as PNG."""
    place = folder / "pictures"
    place.mkdir(exist_ok=True)
    written = []
    with mpl.rc_context(STYLE):
        for name, figure in figures(folder, rows):
            for path in (place / f"{name}.svg", place / f"{name}.png"):
                write_whole(path, picture_of(figure, path.suffix))
                written.append(path)

    return written


def figures(folder: Path, rows: Sequence[Row]) -> Iterator[tuple[str, Figure]]:
    """Name and figure of each picture; ``folder`` has the latencies."""
    for name, picture in PICTURES.items():
        yield name, _against_batch_size(picture, rows)

    yield "latency_cdf", _distribution(folder, rows)


def panels(rows: Sequence[Row]) -> list[Panel]:
    """The panels, in the order of the rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        tokens = "" if row.sequence_length is None else f", {row.sequence_length} tokens"
        load = (
            f"{row.arrival_rate_per_s:.12g} requests/s"
            if row.concurrency is None
            else f"{row.concurrency} outstanding"
        )
        found.setdefault(f"{row.workload} {row.size} {row.precision}{tokens}, {load}", []).append(row)

    return [Panel(title, rows) for title, rows in found.items()]


def lines(rows: Sequence[Row]) -> dict[str, dict[int, list[Row]]]:
    """By the label of a line: the rows of each batch size, several where slices ran at once."""
    found: dict[str, dict[int, list[Row]]] = {}
    several_layouts = len({row.layout for row in rows}) > 1
    for row in rows:
        of_profile = {
            other.slice for other in rows if (other.layout, _profile(other)) == (row.layout, _profile(row))
        }
        label = _profile(row)
        if row.slices_together > 1:
            label = f"{len(of_profile)} × {label}, of {row.slices_together} at once"
        elif len(of_profile) > 1:
            label = f"{label} ({row.slice})"

        if several_layouts:
            label = f"{label}, {row.layout}"

        found.setdefault(label, {}).setdefault(row.batch_size, []).append(row)

    return found


def _profile(row: Row) -> str:
    return row.slice if row.slice_kind == "cpu" else row.slice_name


def _against_batch_size(picture: Picture, rows: Sequence[Row]) -> Figure:
    if all(picture.value(row) is None for row in rows):
        figure = Figure(figsize=(5.5, 1.6), layout="constrained")
        figure.suptitle(picture.title, fontsize=11)
        _say_why(figure.add_subplot(), rows, picture.why)
        return figure

    figure, axes = _small_multiples(f"{picture.title} ({picture.unit}) against batch size", panels(rows))
    for panel, axis in zip(panels(rows), axes, strict=True):
        drawn = False
        for (label, by_batch), marker in zip(lines(panel.rows).items(), cycle(MARKERS), strict=False):
            points = [
                (size, value) for size, of in sorted(by_batch.items()) if (value := _value(picture, of))
            ]
            if points:
                axis.plot(*zip(*points, strict=True), marker=marker, markersize=4, linewidth=1.2, label=label)
                drawn = True

        if drawn:
            sizes = sorted({row.batch_size for row in panel.rows})
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_locator(FixedLocator(sizes))
            axis.xaxis.set_minor_locator(NullLocator())
            axis.xaxis.set_major_formatter(FuncFormatter(_plain))
            axis.set_ylim(0, 1.08 * axis.get_ylim()[1])
            axis.yaxis.set_major_formatter(FuncFormatter(_plain))
            axis.set_xlabel("batch size")
            axis.legend(frameon=False, fontsize=8)
        else:
            _say_why(axis, panel.rows, picture.why)

    return figure


def _value(picture: Picture, rows: Sequence[Row]) -> float | None:
    values = [value for row in rows if (value := picture.value(row)) is not None]
    return picture.of_several(values) if len(values) == len(rows) else None


def _distribution(folder: Path, rows: Sequence[Row]) -> Figure:
    figure, axes = _small_multiples("Latency: the part of requests answered within (ms)", panels(rows))
    for panel, axis in zip(panels(rows), axes, strict=True):
        drawn = False
        for label, by_batch in lines(panel.rows).items():
            for size, of in sorted(by_batch.items()):
                taken = [found for row in of if len(found := _taken_ms(folder, row))]
                if taken:
                    axis.plot(*cdf(np.concatenate(taken)), linewidth=1.2, label=f"{label}, batch {size}")
                    drawn = True

        if drawn:
            axis.set_xscale("log")
            label_plainly(axis.xaxis, most=4)
            axis.set_yscale("function", functions=(_nines, _of_nines))
            axis.set_ylim(0, NINES[-1])
            axis.yaxis.set_major_locator(FixedLocator((0, *NINES)))
            axis.yaxis.set_major_formatter(FuncFormatter(lambda part, _at: f"{100 * part:.6g} %"))
            axis.set_xlabel("latency, ms")
            axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
        else:
            _say_why(axis, panel.rows, "")

    return figure


def cdf(taken_ms: "npt.NDArray[np.float64]") -> "tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]":
    """(latency, part of requests up to it), rising, with ever more points towards the slowest, which is the last.

    The k-th of n stands at (k - 0.5) ÷ n, so that the slowest has its place on a scale of nines.
    """
    ordered = np.sort(taken_ms)
    count = len(ordered)
    from_slowest = np.unique(np.geomspace(1, count, CDF_POINTS).astype(np.int64))
    evenly = np.unique(np.linspace(1, count, CDF_POINTS).astype(np.int64))
    ranks = np.unique(np.concatenate((count - from_slowest, evenly - 1)))
    return ordered[ranks], (ranks + 0.5) / count


def _taken_ms(folder: Path, row: Row) -> "npt.NDArray[np.float64]":
    """The latencies of the answered requests."""
    if row.samples is None:
        return np.empty(0)

    requests = latencies(folder, row)
    answered = requests[requests[:, 2] > 0]
    taken: npt.NDArray[np.float64] = (answered[:, 2] - answered[:, 0]) / 1e6
    return taken


def _nines(part: "npt.NDArray[np.float64]") -> "npt.NDArray[np.float64]":
    scaled: npt.NDArray[np.float64] = -np.log10(1 - np.clip(part, 0, 1 - 1e-9))
    return scaled


def _of_nines(scaled: "npt.NDArray[np.float64]") -> "npt.NDArray[np.float64]":
    part: npt.NDArray[np.float64] = 1 - 10.0 ** -np.asarray(scaled)
    return part


def _plain(value: float, _at: int | None) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:g}"


def _say_why(axis: Axes, rows: Sequence[Row], field: str) -> None:
    """In place of lines: that there is no such figure here, and why."""
    reasons = dict.fromkeys(row.unavailable.get(field) or row.why or row.status for row in rows)
    axis.text(
        0.5,
        0.5,
        "not available on this machine:\n" + "\n".join(list(reasons)[:2]),
        ha="center",
        va="center",
        wrap=True,
        transform=axis.transAxes,
    )
    axis.set_axis_off()
    axis.set_frame_on(False)


def _small_multiples(title: str, of: Sequence[Panel]) -> tuple[Figure, list[Axes]]:
    across = min(PANELS_ACROSS, len(of))
    down = -(-len(of) // across)
    figure = Figure(
        figsize=(max(PANEL_INCHES[0] * across, 5.5), PANEL_INCHES[1] * down + 0.3), layout="constrained"
    )
    figure.suptitle(title, fontsize=11)
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for unused in grid[len(of) :]:
        unused.set_visible(False)

    for panel, axis in zip(of, grid, strict=False):
        axis.set_title(panel.title, fontsize=9)

    return figure, list(grid[: len(of)])
