"""The pictures of one run: timeline, rates, latencies, telemetry, slices."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scheduler.report.document import Picture
from scheduler.report.drawing import GRID, INK, PAPER, QUIET, SERIES, SHADE, colour, drawn, label_plainly
from scheduler.report.tables import PERCENTILES, RunTables
from scheduler.report.timeline import Span, phases_of, stages_of
from scheduler.slices import core_ranges

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scheduler.result import SliceRecord

Floats = npt.NDArray[np.float64]
CURVE_POINTS = 600
"""Of a curve: more than a page is wide."""
COUNTER_S = 0.5
MOST_LINES = 16
"""In one plot, before it is told that the rest is in the table."""
LABEL_CHARACTERS = 28


@dataclass(frozen=True, slots=True)
class Strip:
    """One plot of telemetry."""

    scope: str
    quantity: str
    title: str
    counter: bool = False
    """Its rate is drawn, a second."""
    scale: float = 1.0


STRIPS = (
    Strip("slice", "sm_active", "SMs active, %", scale=100),
    Strip("slice", "tensor_active", "tensor pipe, % of its peak", scale=100),
    Strip("slice", "dram_active", "memory interface, % of its peak", scale=100),
    Strip("slice", "memory_used_mib", "slice memory used, MiB"),
    Strip("gpu", "power_w", "board power, W"),
    Strip("gpu", "sm_clock_mhz", "SM clock, MHz"),
    Strip("gpu", "temperature_c", "GPU temperature, °C"),
    Strip("slice", "cpu_active", "the slice's CPU cores, % busy", scale=100),
    Strip("worker", "cpu_s", "CPU of each worker, cores", counter=True),
    Strip("worker", "memory_mib", "memory of each worker, MiB"),
    Strip("host", "cpu_active", "all CPU cores of the host, % busy", scale=100),
)


def short(name: str) -> str:
    """A name that fits beside a plot."""
    return name if len(name) <= LABEL_CHARACTERS else name[: LABEL_CHARACTERS - 1] + "…"


def colours(tables: RunTables) -> dict[str, str]:
    """The colour of each benchmark, the same in every picture."""
    return {name: colour(number) for number, name in enumerate(one.name for one in tables.each)}


def window_of(tables: RunTables) -> tuple[float, float] | None:
    """Main's measured window, s."""
    window = tables.result.main.window
    return None if window.begin_s is None or window.end_s is None else (window.begin_s, window.end_s)


def timeline(tables: RunTables) -> Picture:
    """Every benchmark's stages under the run's phases."""
    rows = tables.each
    colour_of, window = colours(tables), window_of(tables)
    until_s = _last_s(tables)
    with drawn(height_in=0.9 + 0.36 * len(rows)) as drawing:
        axes = drawing.axes[0]
        _draw_phases(axes, phases_of(tables.manifest, tables.told, window))
        for place, row in enumerate(rows):
            for span in stages_of(tables.told.benchmarks.get(row.name), row.last_completion_s, until_s):
                _draw_stage(axes, span, place, colour_of[row.name])

        if window is not None:
            axes.barh(
                0, window[1] - window[0], left=window[0], height=0.62, fill=False, edgecolor=INK, lw=1.4
            )

        axes.set_yticks(range(len(rows)), [short(f"{row.workload} · {row.slice}") for row in rows])
        axes.set_ylim(len(rows) - 0.4, -1.1)
        axes.set_xlim(0, until_s * 1.01)
        axes.set_xlabel("s since the run began")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)

    return Picture(
        drawing.svg,
        "Pale: a process loads. Medium: it warms up; main calibrates. Full colour: it issues queries. The frame "
        "is main's measured window. Grey bands are the start buffer and the end buffer.",
    )


def _draw_phases(axes: "Axes", phases: Sequence[Span]) -> None:
    for phase in phases:
        if phase.what in ("start buffer", "end buffer"):
            axes.axvspan(phase.begin_s, phase.end_s, color=SHADE, lw=0, zorder=0)

    named = {phase.what: phase for phase in phases}
    for what in ("start buffer", "main's window", "end buffer"):
        if what in named:
            middle_s = (named[what].begin_s + named[what].end_s) / 2
            axes.text(middle_s, -0.72, what, ha="center", va="center", fontsize=8.5, color=QUIET)


def _draw_stage(axes: "Axes", span: Span, row: int, of: str) -> None:
    opacity = {"load": 0.25, "prepare": 0.5, "issue": 1.0, "end": 0.25}[span.what]
    axes.barh(row, span.end_s - span.begin_s, left=span.begin_s, height=0.5, color=of, alpha=opacity, lw=0)


def rates(tables: RunTables) -> Picture:
    """Samples a second of every benchmark, one below the other."""
    rows = tables.each
    colour_of, window, until_s = colours(tables), window_of(tables), _last_s(tables)
    with drawn(len(rows), height_in=0.5 + 1.05 * len(rows)) as drawing:
        for axes, row in zip(drawing.axes, rows, strict=True):
            rate = tables.rates(row.name)
            _shade(axes, window)
            if rate.empty:
                axes.text(0.5, 0.5, "completed nothing", transform=axes.transAxes, ha="center", color=QUIET)
            else:
                edges = np.append(rate["begin_s"].to_numpy(), rate["end_s"].iloc[-1])
                filler = rate["filler_samples_per_s"].to_numpy()
                axes.stairs(rate["samples_per_s"] + filler, edges, color=colour_of[row.name], lw=1.3)
                if filler.any():
                    axes.stairs(filler, edges, color=INK, lw=0.9, ls=":")

            axes.set_title(f"{short(row.workload)} on {row.slice}, samples/s", fontsize=9.5)
            axes.set_ylim(bottom=0)
            axes.set_xlim(0, until_s * 1.01)

        drawing.axes[-1].set_xlabel("s since the run began")

    return Picture(
        drawing.svg,
        "Samples computed a second. Grey: main's measured window. Dotted: of them, the filler, which keeps a "
        "background slice at work between two LoadGen tests and is not counted.",
    )


def distribution(latency_ms: Floats) -> tuple[Floats, Floats]:
    """Latencies in order, and the % of queries that took no longer; the tail in more detail, to the slowest."""
    part = np.unique(np.concatenate((np.linspace(0, 1, CURVE_POINTS), 1 - np.geomspace(1e-6, 1, 200))))
    return np.quantile(latency_ms, part), part * 100


def latency_curve(curves: Sequence[tuple[str, Floats]]) -> Picture:
    """The part of queries that took no longer than so many ms, a curve a run."""
    with drawn(height_in=max(3.1, 0.2 * len(curves))) as drawing:
        axes = drawing.axes[0]
        wide = False
        for number, (name, latency_ms) in enumerate(curves):
            at_ms, percent = distribution(latency_ms)
            wide |= bool(at_ms[-1] > 8 * max(at_ms[0], 1e-9))
            dashes = ("-", "--", ":", "-.")[number // len(SERIES) % 4]
            axes.step(at_ms, percent, where="post", color=colour(number), ls=dashes, label=short(name))

        if len(curves) == 1:
            for name, part in PERCENTILES.items():
                at = float(np.percentile(curves[0][1], part))
                axes.plot([at], [part], "o", ms=4, color=INK)
                if name in ("p50", "p90", "p99.9"):
                    axes.annotate(name, (at, part), xytext=(6, -9), textcoords="offset points", fontsize=8)
        else:
            drawing.figure.legend(loc="outside right upper", fontsize=8)

        if wide:
            axes.set_xscale("log")
            label_plainly(axes.xaxis)

        axes.set_ylim(0, 102)
        axes.set_xlabel("latency of a query, ms" + (" (log)" if wide else ""))
        axes.set_ylabel("% of queries")

    return Picture(drawing.svg, "From the raw samples: every query counts, the slowest too.")


def latency_over_time(tables: RunTables) -> Picture:
    """Median and slowest query of each moment of main's window."""
    found = tables.latencies
    issued_s, latency_ms = found["issued_s"].to_numpy(), found["latency_ms"].to_numpy()
    bins = max(1, min(CURVE_POINTS // 3, len(found) // 4))
    edges = np.linspace(issued_s[0], max(issued_s[-1], issued_s[0] + 1e-9), bins + 1)
    parts = np.split(latency_ms, np.searchsorted(issued_s, edges[1:-1]))
    present = [number for number, part in enumerate(parts) if len(part)]
    slowest = np.array([parts[number].max() for number in present])
    median = np.array([np.median(parts[number]) for number in present])
    middle_s = (edges[:-1] + edges[1:])[present] / 2
    with drawn(height_in=2.2) as drawing:
        axes = drawing.axes[0]
        axes.plot(middle_s, slowest, color=colour(1), lw=1, label="slowest")
        axes.plot(middle_s, median, color=colour(0), label="median")
        if slowest.max() > 20 * max(float(np.median(median)), 1e-9):
            axes.set_yscale("log")
            label_plainly(axes.yaxis)
        else:
            axes.set_ylim(bottom=0)

        axes.set_xlabel("s since the run began")
        axes.set_ylabel("latency, ms")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 0.98), ncols=2)

    return Picture(drawing.svg, f"Of the queries issued in each of {bins} equal parts of main's window.")


def completion_curve(tables: RunTables) -> Picture | None:
    """Offline: when which part of main's samples was complete."""
    window = window_of(tables)
    rows = tables.completions[tables.completions["benchmark"] == tables.manifest.main.name]
    if window is None or rows.empty:
        return None

    inside = rows[(rows["at_s"] >= window[0]) & (rows["at_s"] <= window[1] + 0.01)]
    done = np.cumsum(inside["samples"].to_numpy())
    if not len(done) or not done[-1]:
        return None

    keep = np.unique(np.linspace(0, len(done) - 1, CURVE_POINTS).astype(int))
    with drawn(height_in=2.4) as drawing:
        axes = drawing.axes[0]
        since_s = np.append(0, inside["at_s"].to_numpy()[keep] - window[0])
        axes.step(since_s, np.append(0, done[keep] / done[-1] * 100), where="post", color=colour(0))
        axes.set_xlabel("s since main's one query")
        axes.set_ylabel("% of samples complete")
        axes.set_ylim(0, 102)
        axes.set_xlim(left=0)

    return Picture(
        drawing.svg, "Offline is one query: a sample's latency says when its turn came, and no more."
    )


def telemetry(tables: RunTables) -> tuple[Picture | None, list[str]]:
    """The strips for which there are figures, and the titles of the others."""
    found = tables.telemetry
    there = [
        (strip, found[(found["scope"] == strip.scope) & (found["quantity"] == strip.quantity)])
        for strip in STRIPS
    ]
    absent = [strip.title for strip, rows in there if rows.empty]
    there = [(strip, rows) for strip, rows in there if not rows.empty]
    if not there:
        return None, absent

    window, until_s, of_slice = window_of(tables), _last_s(tables), _colour_of_things(tables)
    with drawn(len(there), height_in=0.5 + 1.2 * len(there)) as drawing:
        for axes, (strip, rows) in zip(drawing.axes, there, strict=True):
            _shade(axes, window)
            for number, (thing, figures) in enumerate(rows.groupby("id", sort=True)):
                if number == MOST_LINES:
                    break

                at_s, value = figures["at_s"].to_numpy(), figures["value"].to_numpy() * strip.scale
                if strip.counter:
                    at_s, value = rate_of(at_s, value)

                keep = np.unique(np.linspace(0, max(len(at_s) - 1, 0), CURVE_POINTS).astype(int))
                if len(at_s):
                    of = of_slice.get(str(thing), colour(number))
                    axes.plot(at_s[keep], value[keep], color=of, lw=1.1)

            axes.set_title(strip.title, fontsize=9.5)
            axes.set_xlim(0, until_s * 1.01)
            axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))

        drawing.axes[-1].set_xlabel("s since the run began")

    return Picture(drawing.svg, "Colours as in the rates above. Grey: main's measured window."), absent


def rate_of(at_s: Floats, count: Floats) -> tuple[Floats, Floats]:
    """A counter's rate a second, over `COUNTER_S` at least: one of CPU time moves by 10 ms at a time."""
    if len(at_s) < 2:
        return at_s[:0], count[:0]

    edges = np.searchsorted(at_s, np.arange(at_s[0], at_s[-1], COUNTER_S))
    edges = np.unique(np.append(edges, len(at_s) - 1))
    return at_s[edges[1:]], np.diff(count[edges]) / np.diff(at_s[edges])


def slice_map(tables: RunTables) -> Picture:
    """Which slice has which memory slices of its GPU; without MIG devices, which cores of the machine."""
    if any(one.placement is not None for one in tables.manifest.slices):
        return _memory_slices(tables)

    colour_of, benchmark_on = _colour_of_things(tables), _benchmark_on(tables)
    slices = tables.manifest.slices
    cores = sorted({core for one in slices for core in one.cores})
    with drawn(height_in=0.7 + 0.34 * len(slices)) as drawing:
        axes = drawing.axes[0]
        for row, one in enumerate(slices):
            held = set(one.cores)
            for place, core in enumerate(cores):
                of = colour_of.get(one.id, QUIET) if core in held else GRID
                axes.barh(
                    row,
                    0.92,
                    left=place + 0.04,
                    height=0.72,
                    color=of,
                    alpha=1 if core in held else 0.6,
                    lw=0,
                )
                if core in held and len(cores) <= 48:
                    axes.text(place + 0.5, row, str(core), ha="center", va="center", fontsize=8, color=PAPER)

        axes.set_yticks(
            range(len(slices)), [short(f"{one.id} · {benchmark_on.get(one.id, 'idle')}") for one in slices]
        )
        axes.set_ylim(len(slices) - 0.4, -0.6)
        axes.set_xlim(0, len(cores))
        axes.set_xticks([])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel(f"CPU cores {core_ranges(tuple(cores))}")

    return Picture(drawing.svg, "The CPU cores of each slice" + _sharing(slices))


def _memory_slices(tables: RunTables) -> Picture:
    colour_of, benchmark_on = _colour_of_things(tables), _benchmark_on(tables)
    placed = [(one, one.placement) for one in tables.manifest.slices if one.placement is not None]
    gpus = list(dict.fromkeys(placement.gpu_uuid for _one, placement in placed))
    with drawn(height_in=0.6 + 0.75 * len(gpus)) as drawing:
        axes = drawing.axes[0]
        for one, placement in placed:
            row, size = gpus.index(placement.gpu_uuid), placement.size or 1
            of = colour_of.get(one.id, GRID)
            axes.barh(row, size - 0.06, left=placement.start + 0.03, height=0.8, color=of, lw=0)
            says = f"{one.name}\n{short(benchmark_on.get(one.id, 'idle'))}"
            ink = PAPER if one.id in benchmark_on else QUIET
            axes.text(placement.start + size / 2, row, says, ha="center", va="center", fontsize=8, color=ink)

        end = max(placement.start + (placement.size or 1) for _one, placement in placed)
        axes.set_yticks(range(len(gpus)), [short(uuid[:12]) for uuid in gpus])
        axes.set_ylim(len(gpus) - 0.4, -0.6)
        axes.set_xlim(0, end)
        axes.set_xticks([place + 0.5 for place in range(end)], [str(place) for place in range(end)])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("memory slices of the GPU")

    return Picture(
        drawing.svg, "Each MIG device where its GPU instance lies, a row a GPU; what is white is free."
    )


def _sharing(slices: "Sequence[SliceRecord]") -> str:
    shared = any(one.shared_with for one in slices)
    return "; a core in two rows is shared, and not isolated." if shared else "; none is shared."


def _benchmark_on(tables: RunTables) -> dict[str, str]:
    return {row.slice: row.workload for row in tables.each}


def _colour_of_things(tables: RunTables) -> dict[str, str]:
    """By benchmark and by slice: the colour of the benchmark there."""
    by_name = colours(tables)
    return by_name | {row.slice: by_name[row.name] for row in tables.each}


def _shade(axes: "Axes", window: tuple[float, float] | None) -> None:
    if window is not None:
        axes.axvspan(*window, color=SHADE, lw=0, zorder=0)


def _last_s(tables: RunTables) -> float:
    """When the last thing happened that the record tells."""
    last = [at for at, _what in tables.story[-1:]]
    last += [one.last_completion_s for one in tables.each if one.last_completion_s is not None]
    return max(last, default=1.0)
