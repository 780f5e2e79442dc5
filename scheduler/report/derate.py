"""A derating on a terminal; fits 80 columns."""

from collections.abc import Sequence
from itertools import zip_longest
from statistics import fmean

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from scheduler.derate import keys
from scheduler.derating import Derating, Ratio
from scheduler.report.series_view import FinishedRun, Step
from scheduler.report.text import plain, say, show_finding
from scheduler.result import Metric

LAST_SHOWN = 8
"""Pairs, while more of them are measured."""
_COLOUR = {"difference": "yellow", "no difference found": "green", "too noisy to tell": "magenta"}


def show(found: Derating, console: Console) -> None:
    """What was compared, each ratio with its interval and its words, and the findings."""
    main = found.main
    colour = "green" if found.verdict == "VALID" else "red"
    console.print(f"\n[bold {colour}]{found.verdict}[/] derating of {main.workload}, {main.scenario}")
    rate = "" if main.target_qps is None else f", target_qps {plain(main.target_qps)} in every run"
    lasting = "" if main.min_duration_s is None else f", {main.min_duration_s:g} s or more a run"
    say(
        f"  {main.workload} on {main.slice}: {main.size}, {main.precision}, batch ≤ {main.batch_size}{lasting}{rate}",
        console,
        under=4,
    )
    if found.background:
        company = ", ".join(f"{workload} on {where}" for where, workload in found.background.items())
        say(f"  beside {company}", console, under=4)

    if found.ratios:
        console.print(Padding(_table(found), (0, 0, 0, 1), expand=False))
    else:
        console.print("  nothing is compared", highlight=False)

    for finding in found.findings:
        show_finding(finding, console)


def step(key: str, repeats: int, finished: FinishedRun) -> Step:
    """Before the run of that key: which it is, the last pairs so far, and how long the rest takes."""
    order = [each for number in range(1, repeats + 1) for each in keys(number)]
    done = [finished(each) for each in order]
    at = order.index(key)
    lasted_s = [each[1] for each in done if each is not None]
    return Step(
        number=at + 1,
        runs=len(order),
        words=f"pair {at // 2 + 1} of {repeats}, main {'in company' if at % 2 else 'alone'}",
        left_s=fmean(lasted_s) * (len(order) - at) if lasted_s else None,
        so_far=_pairs([None if each is None else each[0].main.metric for each in done[:at]]) if at else None,
    )


def _pairs(metrics: Sequence[Metric | None]) -> Table:
    """The last pairs of what was measured alone, in company, alone, …"""
    unit = next((one.unit for one in metrics if one is not None), "")
    table = Table(box=None, pad_edge=False)
    for column in ("pair", f"alone {unit}", f"company {unit}", "ratio"):
        table.add_column(column, justify="right", no_wrap=True)

    for number, (alone, company) in list(enumerate(zip_longest(metrics[::2], metrics[1::2]), 1))[
        -LAST_SHOWN:
    ]:
        ratio = f"{company.value / alone.value:.3f}" if alone and company and alone.value else ""
        table.add_row(
            str(number), *("" if one is None else plain(one.value) for one in (alone, company)), ratio
        )

    return table


def _table(found: Derating) -> Table:
    one = found.ratios[0]
    pairs = "1 pair" if found.pairs == 1 else f"{found.pairs} pairs"
    table = Table(
        title=f" {pairs}; intervals at {one.confidence:.0%}; what is within {one.margin * 100:g} % does not matter",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for column in ("alone", "company", "ratio", "interval"):
        table.add_column(column, justify="right", no_wrap=True)

    table.add_column("")
    for ratio in found.ratios:
        table.add_row(
            _name(ratio),
            plain(ratio.baseline),
            plain(ratio.hetero),
            f"{ratio.ratio:.3f}",
            reach(ratio.interval),
            f"[{_COLOUR[ratio.decision]}]{_short(ratio)}[/]{which_way(ratio.decision, ratio.ratio, ratio.better)}",
        )

    return table


def reach(interval: Sequence[float] | None) -> str:
    """0.943–0.958; of two or three noisy pairs it may reach anywhere; empty for None."""
    return "–".join(f"{bound:.3f}" if bound < 1000 else "over 1000" for bound in interval or ())


def which_way(decision: str, ratio: float, better: str) -> str:
    """What follows the words for a difference: by how much it is worse or better."""
    if decision != "difference":
        return ""

    worse = (ratio < 1) == (better == "more")
    return f", {abs(ratio - 1):.1%} {'worse' if worse else 'better'}"


def _short(ratio: Ratio) -> str:
    """The words, so that the row fits: too noisy, repeat 3 more."""
    return ratio.words.replace(" to tell (", ", ").removesuffix(")")


def _name(ratio: Ratio) -> str:
    if not ratio.figure.startswith("latency "):
        return ratio.unit if ratio.figure == "throughput" else f"score {ratio.unit}"

    return f"{ratio.figure.removeprefix('latency ').replace('p999', 'p99.9')} {ratio.unit}"
