"""Two results side by side on a terminal, and published ones; both fit 80 columns."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from scheduler.comparison import Compared, Row
from scheduler.conditions import Difference, Measured
from scheduler.published import Reference, geometric_mean
from scheduler.report.text import plain


def show_compared(found: Compared, console: Console) -> None:
    """Figures, conditions that differ, and what got worse than allowed."""
    for name, folder, verdict in zip("AB", (found.a, found.b), found.verdicts, strict=True):
        colour = "green" if verdict == "VALID" else "red"
        console.print(f"{name}  [{colour}]{verdict}[/]  {escape(folder)}", highlight=False, soft_wrap=True)

    table = Table(box=None, padding=(0, 1, 0, 1))
    for column in ("", "A", "B", "B against A"):
        table.add_column(column, justify="right" if column else "left", overflow="fold")

    for row in found.rows:
        name = f"{row.figure} {row.unit}".replace("result_samples_per_second samples/s", "samples/s")
        table.add_row(name.strip(), _figure(row.a), _figure(row.b), _change(row))

    console.print(table)
    if found.conditions:
        rows = [(one.name, one.a, one.b) for one in found.conditions]
        _show_differences("  conditions that differ", "A", "B", rows, console)
    else:
        console.print("  no condition differs", highlight=False)

    for why in found.regressions:
        console.print(f"  [red]regression[/]: {why}", highlight=False, soft_wrap=True)


def show_references(found: Sequence[Reference], console: Console, left_out: int = 0) -> None:
    """Published slices, alone and as HeteroMIG's main; by round and system."""
    if not found:
        console.print("MLPerf has published no single MIG slice like that", highlight=False)

    for (round_, organisation, where), group in groupby(found, key=_place):
        many = list(group)
        table = Table(
            title=f"MLPerf {round_}, {organisation}: {where}",
            title_justify="left",
            box=None,
            padding=(0, 1, 0, 1),
        )
        for column in ("benchmark", "scenario", "alone", "company", "ratio", "p99 ms", ""):
            table.add_column(
                column, justify="left" if column in ("benchmark", "scenario") else "right", no_wrap=True
            )

        for one in many:
            table.add_row(*_cells(one))

        console.print(table)
        for scenario in ("Offline", "Server"):
            paired = [one for one in many if one.either.scenario == scenario and one.derating is not None]
            mean = geometric_mean(paired)
            if mean is not None and len(paired) > 1:
                console.print(f"   geometric mean of the {scenario} ratios: {mean:.3f}", highlight=False)

    if any(one.hetero is not None and one.either.scenario == "Server" for one in found):
        console.print(
            "  Server: the rate is the submitter's choice; at equal rates only p99 shows the company",
            highlight=False,
            soft_wrap=True,
        )

    if left_out:
        console.print(f"  {left_out} more were published alone only: --alone lists them", highlight=False)


def show_own(own: Measured, differences: Sequence[Difference], console: Console) -> None:
    """A run of one's own, and in what it differs from the published ones."""
    main, metric = own.result.main, own.result.main.metric
    figure = "no figure" if metric is None else f"{plain(metric.value)} {metric.unit}"
    p99 = main.latency_ms.p99
    latency = "" if p99 is None or main.scenario == "Offline" else f", p99 {plain(p99)} ms"
    console.print(
        f"yours: {own.result.verdict} {own.result.kind} run of {main.workload}, {main.scenario}, on {main.slice}: "
        f"{figure}{latency}",
        highlight=False,
        soft_wrap=True,
    )
    rows = [(one.name, one.one, one.other) for one in differences]
    _show_differences("  not comparable with the above; these differ", "yours", "published", rows, console)


def _show_differences(
    title: str, one: str, other: str, rows: Sequence[tuple[str, str, str]], console: Console
) -> None:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 1))
    for column in ("", one, other):
        table.add_column(column, overflow="fold")

    for row in rows:
        table.add_row(*map(escape, row))

    console.print(table)


def _place(one: Reference) -> tuple[str, str, str]:
    row = one.either
    return row.round, row.organisation, row.system.where + (", Triton" if row.system.triton else "")


def _cells(one: Reference) -> list[str]:
    alone, company = one.alone, one.hetero
    p99 = [f"{each.p99_ms:.2f}" for each in (alone, company) if each is not None]
    return [
        one.benchmarks[0]
        + "".join(f", {name.removeprefix(one.either.workload)}" for name in one.benchmarks[1:]),
        one.either.scenario.value,
        "" if alone is None else _figure(alone.score[0]),
        "" if company is None else _figure(company.score[0]),
        "" if one.derating is None else f"{one.derating:.3f}",
        "" if one.either.scenario == "Offline" else " → ".join(p99),
        one.either.score[1],
    ]


def _figure(value: float | None) -> str:
    return "–" if value is None else plain(value)


def _change(row: Row) -> str:
    return "–" if row.change is None else f"{row.change:+.2%}"
