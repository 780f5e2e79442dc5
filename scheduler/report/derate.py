"""A derating on a terminal; fits 80 columns."""

from rich.console import Console
from rich.table import Table

from scheduler.derating import Derating, Ratio
from scheduler.report.text import plain, show_finding

_COLOUR = {"difference": "yellow", "no difference found": "green", "too noisy to tell": "magenta"}


def show(found: Derating, console: Console) -> None:
    """What was compared, each ratio with its interval and its words, and the findings."""
    main = found.main
    colour = "green" if found.verdict == "VALID" else "red"
    console.print(f"\n[bold {colour}]{found.verdict}[/] derating of {main.workload}, {main.scenario}")
    rate = "" if main.target_qps is None else f", target_qps {plain(main.target_qps)} in every run"
    lasting = "" if main.min_duration_s is None else f", {main.min_duration_s:g} s or more a run"
    console.print(
        f"  {main.workload} on {main.slice}: {main.size}, {main.precision}, batch ≤ {main.batch_size}{lasting}{rate}",
        highlight=False,
        soft_wrap=True,
    )
    if found.background:
        company = ", ".join(f"{workload} on {where}" for where, workload in found.background.items())
        console.print(f"  beside {company}", highlight=False, soft_wrap=True)

    if found.ratios:
        console.print(_table(found))
    else:
        console.print("  nothing is compared", highlight=False)

    for finding in found.findings:
        show_finding(finding, console)


def _table(found: Derating) -> Table:
    one = found.ratios[0]
    pairs = "1 pair" if found.pairs == 1 else f"{found.pairs} pairs"
    table = Table(
        title=f"  {pairs}; intervals at {one.confidence:.0%}; what is within {one.margin * 100:g} % does not matter",
        title_justify="left",
        box=None,
        padding=(0, 1, 0, 1),
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
            "" if ratio.interval is None else "–".join(map(_bound, ratio.interval)),
            f"[{_COLOUR[ratio.decision]}]{ratio.words}[/]{_which_way(ratio)}",
        )

    return table


def _bound(value: float) -> str:
    """Of two or three noisy pairs the interval may reach anywhere."""
    return f"{value:.3f}" if value < 1000 else "over 1000"


def _name(ratio: Ratio) -> str:
    if not ratio.figure.startswith("latency "):
        return ratio.unit if ratio.figure == "throughput" else f"score {ratio.unit}"

    return f"{ratio.figure.removeprefix('latency ').replace('p999', 'p99.9')} {ratio.unit}"


def _which_way(ratio: Ratio) -> str:
    if ratio.decision != "difference":
        return ""

    worse = (ratio.ratio < 1) == (ratio.better == "more")
    return f", {abs(ratio.ratio - 1):.1%} {'worse' if worse else 'better'}"
