"""The pictures of series: a tuning's search, a derating's pairs, a matrix's heat map, a profile's sweep.

Each is drawn from what the series' ``result.json`` publishes.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scheduler.report.document import Picture, shown
from scheduler.report.drawing import (
    GRID,
    INK,
    QUIET,
    SHADE,
    colour,
    drawn,
    in_page_colours,
    label_plainly,
    svg_of,
)
from scheduler.report.tune import WORDS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Answer = Mapping[str, Any]
PLAIN = "{x:,.10g}"
"""Of an axis: matplotlib's own labels have exponents."""
MARGIN_WORDS = "no difference worth telling"


def search(answer: Answer) -> Picture | None:
    """A tuning: the rate of each trial, in order, and what came of it."""
    from matplotlib.ticker import MaxNLocator

    trials: Sequence[Answer] = answer.get("trials") or []
    if not trials:
        return None

    found = {of: float(qps) for of in WORDS if (qps := (answer.get(of) or {}).get("qps")) is not None}
    highest = sorted(found, key=found.__getitem__)[-1:]
    with drawn(height_in=3.4) as drawing:
        axes = drawing.axes[0]
        for number, (of, words) in enumerate(WORDS.items()):
            mine = [one for one in trials if one["of"] == of]
            for one in mine:
                _draw_trial(axes, one, colour(number))

            axes.plot(
                [one["number"] for one in mine],
                [one["rate"] for one in mine],
                color=colour(number),
                lw=0.6,
                alpha=0.6,
            )
            if of in found:
                side = "bottom" if of in highest else "top"  # the words of rates that are near stay apart
                axes.axhline(found[of], color=colour(number), lw=1.1, ls="--")
                axes.text(1.005, found[of], f"{words}: {shown(found[of])}", ha="left", va=side, fontsize=8.5,
                          color=colour(number), transform=axes.get_yaxis_transform())  # fmt: skip

        axes.set_xlabel("trial")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("rate told to LoadGen, 1/s")
        axes.yaxis.set_major_formatter(PLAIN)
        rates = [float(one["rate"]) for one in trials]
        if max(rates) > 5 * min(rates) > 0:
            axes.set_yscale("log")
            label_plainly(axes.yaxis)

    return Picture(
        drawing.svg,
        "Full: VALID. Empty: INVALID. Large: a trial of full length, small: a screening. A cross: ended early, since "
        "too many queries waited. Grey: spoiled, and repeated. The dashed lines are the rates found.",
    )


def _draw_trial(axes: "Axes", trial: Answer, of: str) -> None:
    marker = "x" if trial.get("cut") else "o"
    size = 9 if trial.get("kind") == "confirmation" else 5.5
    of = QUIET if trial.get("spoiled") else of
    face = of if trial.get("valid") else "none"
    axes.plot([trial["number"]], [trial["rate"]], marker, ms=size, mfc=face, mec=of, mew=1.4, ls="none")


def ratios(answer: Answer) -> Picture | None:
    """A derating: each figure in company ÷ alone, with its interval."""
    told: Sequence[Answer] = answer.get("ratios") or []
    if not told:
        return None

    with drawn(height_in=0.9 + 0.42 * len(told)) as drawing:
        axes = drawing.axes[0]
        margin = float(told[0].get("margin") or 0)
        axes.axvspan(1 - margin, 1 + margin, color=SHADE, lw=0, zorder=0)
        axes.axvline(1, color=QUIET, lw=1)
        for row, one in enumerate(told):
            if one.get("interval"):
                low, high = one["interval"]
                axes.plot([low, high], [row, row], color=colour(0), lw=3, solid_capstyle="butt", alpha=0.55)

            axes.plot([one["ratio"]], [row], "o", color=colour(0), ms=7)
            axes.annotate(f"{one['ratio']:.4g}", (one["ratio"], row), xytext=(0, 7), textcoords="offset points",
                          ha="center", fontsize=8.5)  # fmt: skip

        axes.set_yticks(range(len(told)), [str(one["figure"]) for one in told])
        axes.set_ylim(len(told) - 0.4, -0.7)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(*_seen(told, margin))
        axes.set_xlabel("in company ÷ alone")

    percent = f"{100 * float(told[0].get('confidence') or 0):g} %"
    return Picture(
        drawing.svg,
        f"Bars: the interval at {percent}. Grey: within the margin, {MARGIN_WORDS}. Bars that leave "
        "the picture are in the table.",
    )


def _seen(told: Sequence[Answer], margin: float) -> tuple[float, float]:
    """All ratios and 1; of the intervals as much as leaves the ratios apart."""
    ratios_ = [1 - 2 * margin, 1 + 2 * margin, *(float(one["ratio"]) for one in told)]
    edges = [float(edge) for one in told for edge in one.get("interval") or ()]
    room = max(max(ratios_) - min(ratios_), 4 * margin)
    low = max(min([*ratios_, *edges]), min(ratios_) - room)
    high = min(max([*ratios_, *edges]), max(ratios_) + room)
    return low - 0.05 * room, high + 0.05 * room


def pairs(answer: Answer) -> Picture | None:
    """A derating: the score of every run, alone and in company, in the order they were made."""
    runs = [one for one in answer.get("runs") or [] if one.get("metric")]
    if not runs:
        return None

    with drawn(height_in=2.6) as drawing:
        axes = drawing.axes[0]
        for number, (kind, words) in enumerate(WORDS.items()):
            mine = [(at, one) for at, one in enumerate(runs) if one["kind"] == kind]
            axes.plot(
                [at // 2 + 1 for at, _one in mine], [one["metric"]["value"] for _at, one in mine],
                "o-", color=colour(number), ms=6, lw=0.8, label=words,
            )  # fmt: skip

        axes.set_xticks(range(1, len(runs) // 2 + 1))
        axes.set_xlabel("pair")
        axes.set_ylabel(runs[0]["metric"]["unit"])
        axes.yaxis.set_major_formatter(PLAIN)
        axes.legend(loc="best", ncols=2)

    caption = f"Each run's {runs[0]['metric']['name']}; those of a pair were made one after the other."
    return Picture(drawing.svg, caption)


def heat_map(answer: Answer) -> Picture | None:
    """A matrix: main's derating beside each background."""
    names: Sequence[str] = answer.get("workloads") or []
    cells: Sequence[Answer] = answer.get("cells") or []
    if not cells:
        return None

    told = [abs(one["derating"] - 1) for one in cells if one["derating"] is not None]
    span = max([0.02, *told])
    with drawn(height_in=1.3 + 0.5 * len(names)) as drawing:
        axes = drawing.axes[0]
        for one in cells:
            _draw_cell(axes, one, names.index(one["background"]), names.index(one["main"]), span)

        axes.set_xlim(-0.5, len(names) - 0.5)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
        axes.set_xlabel("background, on every other slice")
        axes.set_ylabel("main")

    return Picture(
        drawing.svg,
        "Main's throughput ÷ its baseline. The deeper the colour, the further from 1; ≈: within main's noise "
        "floor. A word in place of a number: that run is not VALID.",
    )


def _draw_cell(axes: "Axes", cell: Answer, across: int, down: int, span: float) -> None:
    from matplotlib.patches import Rectangle

    derating = cell["derating"]
    if derating is None:
        of, depth, words = GRID, 0.6, str(cell["run"]["outcome"])
    else:
        chance = bool(cell.get("within_noise"))
        of = colour(1) if derating < 1 else colour(0)
        depth = 0.0 if chance else 0.1 + 0.6 * abs(derating - 1) / span
        words = f"{'≈ ' if chance else ''}{derating:.3f}"

    axes.add_patch(Rectangle((across - 0.48, down - 0.46), 0.96, 0.92, facecolor=of, alpha=depth, lw=0))
    axes.text(across, down, words, ha="center", va="center", fontsize=9, color=INK)


def sweep(folder: Path, rows: Sequence[Answer]) -> Iterator[Picture]:
    """A profile: its own pictures, in the page's colours."""
    from scheduler.profile_row import Row
    from scheduler.report import profile

    measured = [Row.model_validate(row) for row in rows]
    if not measured:
        return

    with in_page_colours():
        for name, figure in profile.figures(folder, measured):
            yield Picture(svg_of(figure), _SWEEP[name] if name in _SWEEP else name.replace("_", " "))


_SWEEP = {
    "fb_used": "Memory used on the slice, against batch size.",
    "activity": "The graphics engine's activity, against batch size.",
    "latency": "Mean latency of a request, against batch size.",
    "latency_p99": "p99 of the latency, against batch size.",
    "throughput": "Samples a second of all requests together, against batch size.",
    "latency_cdf": "The distribution of latencies, from the raw samples.",
}
