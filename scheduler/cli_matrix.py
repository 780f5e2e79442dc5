"""``hetero-mig matrix``: options in, exit code out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler.cli_options import (
    Decorator,
    console_of,
    read_machine,
    run_options,
    spec_of,
    watching,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from scheduler.matrix import Asked, Progress
    from scheduler.pairs import MatrixResult
    from scheduler.report.series_view import SeriesView
    from scheduler.series import Series, Watching
    from scheduler.slices import Machine

NOT_OF_A_MATRIX = (
    "main",
    "background",
    "main_scenario",
    "main_mode",
    "accuracy_target",
    "fidelity_samples",
    "target_qps",
    "background_duration",
    "on_breach",
    "layout",
)
"""The matrix sets them, or they would make its figures something else."""


def _own_options() -> Decorator:
    return click.option(
        "--workloads",
        required=True,
        metavar="NAMES",
        help="NAME[,NAME…], or all, edge, datacenter: each is main in a row and background in a column.",
    )


@click.command()
@_own_options()
@click.option(
    "--repeats",
    type=click.IntRange(min=2),
    default=3,
    show_default=True,
    metavar="N",
    help="Baselines of each workload, spread over the whole time; more lower the noise floor.",
)
@run_options(*NOT_OF_A_MATRIX)
@click.pass_context
def matrix(context: click.Context, /, workloads: str, repeats: int, **options: Any) -> None:
    """Measure each workload beside each, and alone: the derating of throughput (Offline).

    Main is on one slice, the background workload on every other. On the diagonal that is main's own model. Killed or
    stopped, the same command goes on where it was. Exit code: 0 if all runs are VALID, 1 if not, 3 if one could not
    run.
    """
    console = console_of(stderr=options["as_json"], quiet=options["quiet"])
    machine = read_machine()
    asked = _asked(workloads, repeats, options, machine)
    context.exit(
        _dry_run(asked, console) if options["dry_run"] else _measure(asked, machine, options, console)
    )


def _asked(workloads: str, repeats: int, options: dict[str, Any], machine: "Machine") -> "Asked":
    from scheduler import matrix as series_of_runs
    from scheduler import selection

    names = _names(workloads)
    for option in ("batch_size", "weights", "data"):
        for item in options[option]:
            if "=" not in item:
                raise click.UsageError(
                    f"--{option.replace('_', '-')} {item}: of which workload? Write NAME={item}"
                )

    spec = spec_of({**options, "main": names[0], "background": ",".join(names)})
    slices = selection.slices_on(machine, spec.slices, 2)
    return series_of_runs.Asked(spec=spec, workloads=names, slices=tuple(slices), repeats=repeats)


def _names(workloads: str) -> tuple[str, ...]:
    """By the catalogue's names, each once.

    Raises:
        SpecError: one is none, or is given twice.
    """
    from scheduler.errors import SpecError
    from scheduler.spec import parse_run
    from workloads.catalog import CATALOG

    asked = {"main": next(iter(CATALOG)), "background": workloads}
    names = parse_run(asked, {"background": f"--workloads {workloads}"}).background
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or not names:
        raise SpecError(
            asked=f"--workloads {workloads}",
            found=f"{', '.join(twice)} is there twice, by one name or another"
            if twice
            else "nothing to measure",
            do="name each workload once",
        )

    return names


def _dry_run(asked: "Asked", console: "Console") -> int:
    from scheduler import matrix as series_of_runs
    from scheduler import pairs
    from scheduler.report import matrix as report

    plans = series_of_runs.check(asked)
    report.show_plan(pairs.order(asked.workloads, asked.repeats), plans, console)
    return 0


def _measure(asked: "Asked", machine: "Machine", options: dict[str, Any], console: "Console") -> int:
    from scheduler import matrix as series_of_runs
    from scheduler import series
    from scheduler.report import matrix as report
    from scheduler.report.series_view import SeriesView

    series_of_runs.check(asked)
    question = series.question(
        "matrix",
        {
            "workloads": asked.workloads,
            "repeats": asked.repeats,
            **asked.spec.model_dump(mode="json", exclude={"main", "background"}),
        },
        asked.slices,
    )
    folder = series.place(options["output"], "matrix", question)
    with series.opened(folder, question) as runs:
        console.print(f"folder: {runs.path}", markup=False, highlight=False, soft_wrap=True)
        with SeriesView(console, plain=options["verbose"]) as view:
            shown, tell = _display(view, asked, runs, options, console)
            result = series_of_runs.measure(asked, runs, machine, shown, tell)

        report.write_files(result, runs.path)
        runs.write_answer(result.model_dump(mode="json"))  # last: till then the same command goes on with it
        _show(result, runs.path, options, console)

    return _exit_code(result)


def _display(
    view: "SeriesView", asked: "Asked", runs: "Series", options: dict[str, Any], console: "Console"
) -> "tuple[Watching, Callable[[Progress], None]]":
    """What shows a run, and what is told before it: the one panel, or lines."""
    from scheduler.report import matrix as report
    from scheduler.report.series_view import Finished, Step

    if not view.is_live:
        lines = report.for_single_runs(console, every_event=options["verbose"])
        return watching(lines, plain=True), lambda progress: report.show_progress(progress, console)

    finished = Finished(runs).of

    def tell(progress: "Progress") -> None:
        done = report.so_far(asked.workloads, asked.repeats, progress.number, finished, console.width)
        view.next_run(
            Step(
                number=progress.number,
                runs=progress.runs,
                words=progress.run.words,
                left_s=progress.left_s,
                so_far=done,
            )
        )

    return view.run, tell


def _show(result: "MatrixResult", folder: Path, options: dict[str, Any], console: "Console") -> None:
    from scheduler.report import matrix as report

    if options["as_json"]:
        click.echo(json.dumps(result.model_dump(mode="json"), indent=2))

    console.quiet = False
    report.show(result, console)
    console.print(
        f"  folder: {folder} (result.json, matrix.csv, matrix.svg, matrix.png)",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


def _exit_code(result: "MatrixResult") -> int:
    outcomes = {run.outcome for one in result.baselines for run in one.runs}
    outcomes |= {cell.run.outcome for cell in result.cells}
    if "could not run" in outcomes:
        return 3

    return 0 if result.verdict == "VALID" else 1
