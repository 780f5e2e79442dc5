"""``hetero-mig derate``: options in, exit code out."""

import json
from functools import partial
from math import isnan
from typing import TYPE_CHECKING, Any

import click

from scheduler.cli_options import console_of, plan_of, read_machine, run_options, spec_of, watching

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from scheduler.assignment import Plan
    from scheduler.derating import Derating
    from scheduler.report.series_view import SeriesView
    from scheduler.series import Series, Watching
    from scheduler.slices import Machine
    from scheduler.spec import RunSpec


def _margin(_context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    """A percentage as a fraction; click's range lets nan through."""
    if value is not None and isnan(value):
        raise click.BadParameter("nan is not a percentage; write 2", param=option)

    return None if value is None else value / 100


NOT_OF_A_DERATING = ("main_mode", "accuracy_target", "fidelity_samples", "layout")
"""Answers have no derating; and a layout that is made anew is no longer the same slice: ``mig apply`` it before."""


@click.command()
@run_options(*NOT_OF_A_DERATING)
@click.option(
    "--repeats",
    type=click.IntRange(min=1),
    metavar="N",
    help="Pairs of runs, one alone and one in company (default 8).",
)
@click.option(
    "--margin",
    type=click.FloatRange(0, 50, min_open=True),
    metavar="PERCENT",
    callback=_margin,
    help="A difference smaller than this does not matter (default 2).",
)
@click.pass_context
def derate(context: click.Context, /, repeats: int | None, margin: float | None, **options: Any) -> None:
    """Measure what company costs main: alone and beside the background, in turn, on the same slice.

    Each ratio comes with an interval and with words: "difference", "no difference found", or "too noisy to tell
    (repeat N more)". Killed or stopped, the same command goes on where it was. Exit code: 0 if all runs are VALID,
    whatever the derating; 1 if not.
    """
    from scheduler import statistics

    for option in ("main", "background"):
        if options[option] is None:
            raise click.UsageError(f"--{option} is missing: a derating is of main beside a background")

    console = console_of(stderr=options["as_json"], quiet=options["quiet"])
    machine, spec = read_machine(), spec_of(options)
    plan = plan_of(spec, machine)
    repeats = statistics.REPEATS if repeats is None else repeats
    margin = statistics.MARGIN if margin is None else margin
    if options["dry_run"]:
        _tell_plan(plan, repeats, options["as_json"], console)
        return

    found, folder = _measure(spec, plan, machine, options, console, repeats, margin)
    _show(found, folder, options["as_json"], console)
    context.exit(0 if found.verdict == "VALID" else 1)


def _measure(
    spec: "RunSpec",
    plan: "Plan",
    machine: "Machine",
    options: dict[str, Any],
    console: "Console",
    repeats: int,
    margin: float,
) -> "tuple[Derating, Path]":
    from scheduler import inspection, series
    from scheduler.derate import derate as carry_out
    from scheduler.errors import SpecError
    from scheduler.report.series_view import SeriesView

    if not plan.background:
        raise SpecError(
            asked="the derating of main in company",
            found="there is no background",
            do="name one: --background; main alone is measured by `hetero-mig baseline`",
        )

    inspection.check_data(plan)
    slices = [one.slice for one in plan.all]
    question = series.question("derate", spec.model_dump(mode="json"), slices)
    name = f"derate-{plan.main.workload}-{plan.main.settings.scenario.lower()}"
    place = series.place(options["output"], name, question)
    with series.opened(place, question) as runs:
        _show_plan(plan, repeats, console)
        console.print(f"folder: {runs.path}", markup=False, highlight=False, soft_wrap=True)
        plan_for = partial(plan_of, machine=machine)
        with SeriesView(console, plain=options["verbose"]) as view:
            shown = _shown(view, runs, console, repeats)
            return carry_out(runs, spec, plan_for, machine, shown, repeats=repeats, margin=margin), runs.path


def _shown(view: "SeriesView", runs: "Series", console: "Console", repeats: int) -> "Watching":
    """Each run in the one panel, or in lines."""
    from scheduler.report import derate as report
    from scheduler.report.series_view import Finished

    in_lines, finished = watching(console, plain=True), Finished(runs).of

    def shown(plan: Any, folder: Any, clock: Any) -> Any:
        if not view.is_live:
            console.print(f"run {folder.path.name}; pairs: {repeats}", highlight=False)
            return in_lines(plan, folder, clock)

        view.next_run(report.step(folder.path.name, repeats, finished))
        return view.run(plan, folder, clock)

    return shown


def _tell_plan(plan: "Plan", repeats: int, as_json: bool, console: "Console") -> None:
    from scheduler import assignment

    if as_json:
        click.echo(json.dumps(assignment.plan_as_json(plan), indent=2, default=str))
    else:
        _show_plan(plan, repeats, console)


def _show_plan(plan: "Plan", repeats: int, console: "Console") -> None:
    from scheduler.report import text

    text.show_plan(plan, console)
    console.print(f"{2 * repeats} runs: main alone and so, in turn", highlight=False)


def _show(found: "Derating", folder: "Path", as_json: bool, console: "Console") -> None:
    from scheduler.report import derate as report

    if as_json:
        click.echo(found.model_dump_json(indent=2))

    console.quiet = False
    report.show(found, console)
    console.print(f"  folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    if invalid := [str(folder / "runs" / run.key) for run in found.runs if run.verdict == "INVALID"]:
        console.print(
            f"  runs that are there are not measured again: remove {', '.join(invalid)} first, then give the same "
            f"command with --output {folder}",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
