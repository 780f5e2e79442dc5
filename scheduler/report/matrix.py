"""A matrix on a terminal, as CSV and as a picture."""

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scheduler import pairs
from scheduler.assignment import Plan
from scheduler.matrix import Progress
from scheduler.pairs import Cell, MatrixResult, PairResult, PairRun
from scheduler.record import write_whole
from scheduler.report.drawing import picture_of
from scheduler.report.live import about
from scheduler.report.series_view import FinishedRun
from scheduler.report.text import Terminal, plain, say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEAST_SPAN = 0.05
"""The colours reach at least this far from 1: what is smaller is no drama."""
ROOM = 7
"""Columns of a cell: ``≈ 0.998``."""
DARKEST, LIGHTEST = (179, 88, 6), (84, 39, 136)
"""On a terminal: the ends of ColorBrewer's PuOr, which people of any colour vision tell apart; slower, faster."""
PICTURE_COLOURS = "PuOr"
SHORT = {"INVALID": "INVALID", "could not run": "failed"}


def for_single_runs(console: Console, *, every_event: bool) -> Console:
    """Where the matrix's runs are told line by line: nowhere, unless it is asked for."""
    return console if every_event else Terminal(quiet=True)


def show_plan(runs: Sequence[PairRun], plans: Sequence[Plan], console: Console) -> None:
    """What would be run, in this order."""
    first = plans[0]
    others = [one.slice.id for one in plans[-1].background] or [one.id for one in first.idle]
    console.print(
        f"plan (preset {first.preset}): {len(runs)} runs, main on {first.main.slice.id}, background on "
        f"{', '.join(others)}; each measures {first.main.settings.min_duration_ms / 1000:g} s",
        highlight=False,
        soft_wrap=True,
    )
    for number, run in enumerate(runs, start=1):
        console.print(f"  {number:>3}  {run.words}", highlight=False)

    for note in dict.fromkeys(note for plan in plans for note in plan.notes):
        say(f"note: {note}", console, under=6)


def show_progress(progress: Progress, console: Console) -> None:
    """Which run comes now, and how long the rest takes."""
    left = "" if progress.left_s is None else f"; {about(progress.left_s)} left"
    console.print(
        f"[{progress.number:>{len(str(progress.runs))}}/{progress.runs}] {progress.run.words}{left}",
        markup=False,
        highlight=False,
    )


# --- on a terminal ----------------------------------------------------------------------------------


def show(result: MatrixResult, console: Console) -> None:
    """The heat map, what it was measured against, and what is not VALID."""
    colour = "green" if result.verdict == "VALID" else "red"
    console.print()
    console.print(
        f"[bold {colour}]{result.verdict}[/] matrix of {len(result.workloads)} workloads, Offline: throughput of main "
        "÷ its baseline",
        highlight=False,
        soft_wrap=True,
    )
    others = [one.id for one in result.slices if one.id != result.main_slice]
    console.print(
        f"  main (rows) on {result.main_slice}; background (columns) on {', '.join(others)}; "
        f"{result.main_duration_s:g} s each, preset {result.preset}",
        highlight=False,
        soft_wrap=True,
    )
    span = _span(result.cells)
    cells = {(cell.main, cell.background): _shown(cell, span) for cell in result.cells}
    console.print(_heat_map(result.workloads, cells, console.width))
    console.print(
        f"  ≈ within the noise floor: {result.confidence:.0%} of main's runs alone are ({result.repeats} baselines)",
        highlight=False,
    )
    if any(one.noise_floor is None for one in result.baselines):
        console.print("  ? the noise floor is not known: fewer than two baselines are VALID", highlight=False)

    console.print(_baselines(result))
    _show_failures(result, console)
    for note in result.notes:
        say(f"  note: {note}", console)


def so_far(
    workloads: Sequence[str], repeats: int, before: int, finished: FinishedRun, width: int
) -> Table | None:
    """The heat map of the runs before that one of the order, from 1; None where so many columns are too narrow."""
    if 2 + max(map(len, workloads)) + len(workloads) * (ROOM + 1) + 2 > width:
        return None

    runs = pairs.order(workloads, repeats)
    found: dict[PairRun, PairResult] = {}
    for run in runs:
        done = finished(run.key)
        folder = f"runs/{run.key}"
        found[run] = pairs.pair_result(run, done[0], folder) if done else pairs.not_run(run, "", folder)

    to_come = [run for run in runs[before - 1 :] if finished(run.key) is None]
    cells = pairs.cells_of(workloads, pairs.baselines_of(workloads, found), found)
    span = _span(cells)
    shown = {(cell.main, cell.background): _shown(cell, span) for cell in cells}
    shown |= {(run.main, run.background): Text("·") for run in to_come if run.background is not None}
    return _heat_map(workloads, shown, width)


def _heat_map(names: Sequence[str], cells: Mapping[tuple[str, str], Text], width: int) -> Table:
    heads = list(names)
    if 2 + max(map(len, names)) + sum(max(len(name), ROOM) + 1 for name in names) > width:
        heads = [chr(ord("a") + at % 26) for at in range(len(names))]

    rows = [name if head == name else f"{head} {name}" for head, name in zip(heads, names, strict=True)]
    table = Table(box=None, padding=(0, 0, 0, 1))
    table.add_column("main \\ beside", no_wrap=True)
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True, min_width=ROOM)

    for row, main in zip(rows, names, strict=True):
        table.add_row(row, *(cells[main, background] for background in names))

    return table


def _shown(cell: Cell, span: float) -> Text:
    if cell.derating is None:
        return Text(_words(cell), style="reverse")

    shade = _shade(_coloured_as(cell), span)
    return Text(_words(cell), style="" if cell.within_noise else f"white on rgb({shade})")


def _words(cell: Cell) -> str:
    if cell.derating is None:
        return SHORT.get(cell.run.outcome, "no base")

    return {True: "≈ ", False: "", None: "? "}[cell.within_noise] + f"{cell.derating:.3f}"


def _shade(derating: float, span: float) -> str:
    """From dark grey at 1 to the colour of its end: white letters are readable on all of it."""
    part = min(1.0, abs(derating - 1) / span)
    end = DARKEST if derating < 1 else LIGHTEST
    return ",".join(str(round(40 + part * (part_of - 40))) for part_of in end)


def _span(cells: Sequence[Cell]) -> float:
    """How far the colours reach from 1, both ways."""
    return max([LEAST_SPAN, *(abs(cell.derating - 1) for cell in cells if cell.derating is not None)])


def _baselines(result: MatrixResult) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 1))
    table.add_column("alone", overflow="fold")
    for name in ("samples/s", "noise floor", "VALID runs"):
        table.add_column(name, justify="right", no_wrap=True)

    table.add_column("conditions", overflow="fold")
    for one in result.baselines:
        valid = sum(run.outcome == "VALID" for run in one.runs)
        table.add_row(
            one.workload,
            "none VALID" if one.samples_per_s is None else plain(one.samples_per_s),
            floor(one.noise_floor),
            f"{valid} of {len(one.runs)}",
            result.conditions[one.workload],
        )

    return table


def floor(noise: float | None) -> str:
    """A noise floor: ±1.2%; None is unknown."""
    if noise is None:
        return "unknown"

    return f"±{noise:.1%}" if noise < 1 else "over ±100%"


def _show_failures(result: MatrixResult, console: Console) -> None:
    runs = [run for one in result.baselines for run in one.runs] + [cell.run for cell in result.cells]
    for run in runs:
        if run.outcome != "VALID":
            console.print(
                f"  {run.outcome}: {run.run}: {'; '.join(run.breaches) or 'no metric'}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )


# --- as files ---------------------------------------------------------------------------------------


def write_files(result: MatrixResult, folder: Path) -> None:
    """``matrix.csv``, ``matrix.svg`` and ``matrix.png``.

    Raises:
        DiskFull, RecordError: they cannot be written.
    """
    write_csv(result, folder / "matrix.csv")
    draw(result, (folder / "matrix.svg", folder / "matrix.png"))


def write_csv(result: MatrixResult, path: Path) -> None:
    """A line a cell; what was not measured is empty."""
    text = io.StringIO(newline="")
    lines = csv.writer(text)
    lines.writerow(
        ["main", "background", "outcome", "derating", "within_noise", "samples_per_s", "baseline_samples_per_s",
         "noise_floor", "background_samples_per_s", "run"]
    )  # fmt: skip
    for cell in result.cells:
        baseline = result.baseline(cell.main)
        values: list[Any] = [
            cell.main, cell.background, cell.run.outcome, cell.derating, cell.within_noise,
            cell.run.samples_per_s, baseline.samples_per_s, baseline.noise_floor,
            cell.run.background_samples_per_s, cell.run.run,
        ]  # fmt: skip
        lines.writerow(["" if value is None else value for value in values])

    write_whole(path, text.getvalue().encode())


def draw(result: MatrixResult, paths: Sequence[Path]) -> None:
    """The heat map as pictures, on a ground of their own: they look the same on a light and a dark page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    n = len(result.workloads)
    with ExitStack() as until_drawn:
        until_drawn.enter_context(
            mpl.rc_context(
                {"font.size": 9, "svg.fonttype": "none", "text.parse_math": False, "hatch.linewidth": 0.6}
            )
        )
        figure = Figure(figsize=(2.6 + 0.85 * n, 1.9 + 0.6 * n), facecolor="white", layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw_cells(result, axes)
        axes.set_title(
            f"Throughput of main ÷ its baseline, Offline\n{result.main_slice}, {result.main_duration_s:g} s, preset "
            f"{result.preset}; ≈ within main's noise floor",
            fontsize=9,
        )
        for path in paths:
            write_whole(path, picture_of(figure, path.suffix))


def _coloured_as(cell: Cell) -> float:
    """What is no number has no colour, and what chance explains that of no change."""
    if cell.derating is None:
        return float("nan")

    return 1.0 if cell.within_noise else cell.derating


def _draw_cells(result: MatrixResult, axes: "Axes") -> None:
    from matplotlib.patches import Rectangle

    names = result.workloads
    span = _span(result.cells)
    colours = [[_coloured_as(result.cell(main, background)) for background in names] for main in names]
    image = axes.imshow(colours, cmap=PICTURE_COLOURS, vmin=1 - span, vmax=1 + span, aspect="auto")
    for at, main in enumerate(names):
        for across, background in enumerate(names):
            cell = result.cell(main, background)
            if cell.derating is None:
                axes.add_patch(
                    Rectangle((across - 0.5, at - 0.5), 1, 1, facecolor="0.9", edgecolor="0.55", hatch="////")
                )

            far = cell.derating is not None and abs(colours[at][across] - 1) > 0.6 * span
            axes.text(across, at, _words(cell), ha="center", va="center", color="white" if far else "black")

    floors = {one.workload: floor(one.noise_floor) for one in result.baselines}
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{name}\n{floors[name]}" for name in names])
    axes.set_xlabel("background, on every other slice")
    axes.set_ylabel("main, and its noise floor")
    axes.figure.colorbar(image, ax=axes, label="derating", shrink=0.9)
