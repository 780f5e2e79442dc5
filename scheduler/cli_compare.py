"""``hetero-mig compare`` and ``hetero-mig reference``: options in, exit code out."""

import json
import re
from pathlib import Path

import click

from scheduler.cli_options import console_of, scenario_option

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


def _percent(_context: click.Context, option: click.Parameter, value: str | None) -> float | None:
    """5% or 5, as a fraction."""
    if value is None:
        return None

    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%?", value.strip())
    if found is None:
        raise click.BadParameter(f"{value!r} is not a percentage; write 5%", param=option)

    return float(found[1]) / 100


@click.command()
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@click.option(
    "--max-regression",
    metavar="PERCENT",
    callback=_percent,
    help="Exit code 1 where B's main figure is worse than A's by more than this, or a run is INVALID.",
)
@click.option(
    "--max-p99-regression",
    metavar="PERCENT",
    callback=_percent,
    help="The same for the 99th percentile of main's latency (not Offline's, which is the test's length).",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def compare(
    context: click.Context,
    a: Path,
    b: Path,
    max_regression: float | None,
    max_p99_regression: float | None,
    as_json: bool,
) -> None:
    """Hold the result in folder B against that in A: two runs, or two deratings.

    One run each says nothing of the noise between runs; `derate` does.
    """
    from scheduler.compare import compare as hold_against
    from scheduler.report import compare as report

    found = hold_against(a, b, max_regression=max_regression, max_p99_regression=max_p99_regression)
    if as_json:
        click.echo(found.model_dump_json(indent=2))
    else:
        report.show_compared(found, console_of())

    context.exit(1 if found.regressions else 0)


@click.command()
@click.argument("folder", metavar="[RUN]", type=FOLDER, required=False)
@click.option(
    "--workload", metavar="NAME", help="resnet50, bert, bert-99.9 … (default: that of RUN, or all)."
)
@scenario_option("--scenario", help="Offline, Server, SingleStream or MultiStream.")
@click.option("--system", metavar="TEXT", help="What is in the system's name: A30, A100, Triton …")
@click.option("--round", "round_", metavar="ROUND", help="v1.0 to v3.0.")
@click.option("--alone", is_flag=True, help="Also slices that were published alone only.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def reference(
    folder: Path | None,
    workload: str | None,
    scenario: str | None,
    system: str | None,
    round_: str | None,
    alone: bool,
    as_json: bool,
) -> None:
    """Show MLPerf's published results of single MIG slices, alone and as HeteroMIG's main.

    With RUN, the folder of a run or of a derating: those of its workload and scenario, and in what it differs.
    """
    from scheduler import published
    from scheduler.compare import run_in
    from scheduler.report import compare as report

    workload = _workload(workload)
    every = published.references(published.rows())
    published.check(every, workload=workload, round_=round_)
    own = None if folder is None else run_in(folder)
    if own is not None:
        workload, scenario = workload or own.result.main.workload, scenario or own.result.main.scenario

    found = published.matching(every, workload=workload, scenario=scenario, system=system, round_=round_)
    both = [one for one in found if one.hetero is not None]
    listed = found if alone or not both else both
    if as_json:
        click.echo(json.dumps(published.as_json(listed, own), indent=2))
        return

    console = console_of()
    report.show_references(listed, console, left_out=len(found) - len(listed))
    if own is not None:
        report.show_own(own, published.differences(own), console)


def _workload(asked: str | None) -> str | None:
    """By the catalogue's name; MLPerf's benchmarks (bert-99.9), and what the catalogue does not have, as they are."""
    from workloads import catalog

    if asked is None or re.search(r":|-99(\.9)?$", asked):
        return asked

    found = catalog.find(asked)
    return asked if found is None else found.name
