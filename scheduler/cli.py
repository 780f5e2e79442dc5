"""The command line: options in, exit code out. Decides nothing; imports what a command needs when it runs."""

import errno
import json
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from scheduler import __version__
from scheduler.cli_audit import audit
from scheduler.cli_build import build
from scheduler.cli_compare import compare, reference
from scheduler.cli_derate import derate
from scheduler.cli_export import export
from scheduler.cli_matrix import matrix
from scheduler.cli_mig import mig, offer_what_was_left, shelf, tell
from scheduler.cli_options import (
    METRICS,
    console_of,
    metrics_of,
    plan_of,
    read_machine,
    run_options,
    spec_of,
)
from scheduler.cli_options import options as options_of
from scheduler.cli_predecessor import predecessor
from scheduler.cli_profile import profile
from scheduler.cli_report import report
from scheduler.cli_tune import tune

if TYPE_CHECKING:
    from rich.console import Console

    from scheduler.assignment import Plan
    from scheduler.mig_changes import Change
    from scheduler.record import RunFolder
    from scheduler.result import BenchmarkRecord, Result
    from scheduler.slices import Machine
    from scheduler.spec import RunSpec


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="hetero-mig")
@run_options()
@options_of(METRICS)
@click.pass_context
def root(context: click.Context, /, **options: Any) -> None:
    """Measure how a workload performs on its slice of a GPU while others run on the other slices.

    \b
    hetero-mig --main resnet50 --background datacenter

    Durations carry their unit: 90s, 10m, 600000ms. Exit code: 0 VALID, 1 INVALID, 2 asked wrongly,
    3 could not run, 130/143 stopped.
    """
    if context.invoked_subcommand is not None:
        given = [
            name for name in options if context.get_parameter_source(name) is not ParameterSource.DEFAULT
        ]
        if given:
            option = "--json" if given[0] == "as_json" else "--" + given[0].replace("_", "-")
            raise click.UsageError(
                f"{option} is for a run; it does not go with `{context.invoked_subcommand}`"
            )

        return

    if options["main"] is None:
        click.echo(context.get_help())
        context.exit(2)

    with metrics_of(options) as metrics:
        context.exit(_run({**options, "metrics": metrics}))


@root.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def slices(as_json: bool) -> None:
    """List what workloads can be pinned to on this machine."""
    from scheduler import assignment, selection

    machine = read_machine()
    found = selection.offered(machine)
    if as_json:
        click.echo(json.dumps([assignment.slice_as_json(one) for one in found], indent=2))
    else:
        from scheduler.report import text

        text.show_slices(found, console_of())

    if machine.gpu_error is not None:
        click.echo(f"\nNo GPU slices:\n{machine.gpu_error}", err=True)


@root.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def workloads(as_json: bool) -> None:
    """List the workloads: parameters, FLOPs a sample, sizes, scenarios."""
    if as_json:
        from workloads.catalog import listed

        entries = []
        for entry in listed()[0]:
            fields = asdict(entry)
            fields["batch_size"] = {f"{device} {size}": n for (device, size), n in entry.batch_size.items()}
            entries.append(fields)

        click.echo(json.dumps(entries, indent=2))
    else:
        from scheduler.report import text

        text.show_workloads(console_of())


@root.command()
@run_options("background", "background_duration", "on_main_end")
@click.pass_context
def baseline(context: click.Context, /, **options: Any) -> None:
    """Measure main alone on its slice, with every other slice verified idle.

    The same as a run with --background none: same settings, same record, same verdict and exit codes.
    """
    if options["main"] is None:
        raise click.UsageError("--main is missing: name the workload to measure")

    context.exit(_run({**options, "background": "none"}))


@root.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="The result to stdout as JSON.")
@click.pass_context
def validate(context: click.Context, folder: Path, as_json: bool) -> None:
    """Judge the run in FOLDER again, from the folder alone.

    In a run of a tuning each trial is judged (in a trial's folder: that one), in the folder of a tuning, derating,
    matrix or audit each of its runs; the exit code is then 0 if all are as their result.json says. A profile has no
    verdict: each of its rows is held against the cell's own record.
    """
    from scheduler import judging
    from scheduler.record import RunFolder, is_series
    from scheduler.report import text

    if _is_of_a_profile(folder):
        context.exit(_validate_profile(folder, as_json))

    if is_series(folder):
        context.exit(_validate_series(folder, as_json))

    recorded = RunFolder(folder)
    trials = judging.judged_mains(recorded)
    if trials is not None:
        context.exit(_validate_trials(trials, as_json))

    result = judging.judge(recorded)
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    else:
        text.show_result(result, console_of())

    differing: list[str] = []
    if recorded.has_result():
        differing = judging.unlike_recorded(recorded, result)
    else:
        click.echo("there is no result.json: the run was cut short before its verdict", err=True)

    if differing:
        click.echo(f"in result.json these do not follow from this folder: {', '.join(differing)}", err=True)

    context.exit(0 if result.verdict == "VALID" and not differing else 1)


root.add_command(mig)
root.add_command(tune)
root.add_command(derate)
root.add_command(compare)
root.add_command(reference)
root.add_command(profile)
root.add_command(audit)
root.add_command(export)
root.add_command(build)
root.add_command(predecessor)
root.add_command(matrix)
root.add_command(report)


def _validate_series(folder: Path, as_json: bool) -> int:
    from scheduler import judging
    from scheduler.record import RunFolder

    runs = sorted(path for path in (folder / "runs").glob("*") if (path / "manifest.json").exists())
    told: dict[str, Any] = {}
    bad = 0
    for recorded in map(RunFolder, runs):
        key = recorded.path.name
        mains = judging.judged_mains(recorded)
        if mains is None and not recorded.has_result():
            click.echo(f"{key}: cut short, not judged", err=True)
            continue

        judged = (
            {key: (result := judging.judge(recorded), judging.unlike_recorded(recorded, result))}
            if mains is None
            else {f"{key}/{record.name}": judging.judged_again(own, record) for own, record in mains}
        )
        for name, (result, differing) in judged.items():
            told[name] = result.model_dump(mode="json")
            bad += bool(differing)
            if not as_json:
                click.echo(f"{name}: {result.verdict}")

            if differing:
                where = ", ".join(differing)
                click.echo(f"{name}: in result.json these do not follow from this folder: {where}", err=True)

    if as_json:
        click.echo(json.dumps(told, indent=2))

    click.echo(f"{len(told)} judged again, {len(told) - bad} as their result.json says", err=True)
    return 1 if bad or not told else 0


def _is_of_a_profile(folder: Path) -> bool:
    from scheduler import profile as profiles
    from scheduler import series
    from scheduler.record import RunFolder

    asked = series.asked_of(folder)
    if asked is not None:
        return asked.get("command") == "profile"

    step = RunFolder(folder)
    return (folder / "manifest.json").exists() and step.manifest().get("kind") == profiles.STEP


def _validate_profile(folder: Path, as_json: bool) -> int:
    from scheduler import profile as profiles

    told = [one for step in profiles.steps_in(folder) for one in profiles.checked(step)]
    unlike = profiles.unlike_its_steps(folder, [row for row, _ in told])
    if as_json:
        click.echo(json.dumps({row.cell: differing for row, differing in told}, indent=2))

    for row, differing in told:
        if not as_json:
            click.echo(f"{row.cell}: {row.status}")

        if differing:
            click.echo(f"{row.cell}: these do not follow from its record: {', '.join(differing)}", err=True)

    if unlike:
        click.echo(f"the table in result.json is not that of runs/: {', '.join(unlike)}", err=True)

    bad = sum(bool(differing) for _, differing in told)
    click.echo(f"{len(told)} rows held against their record, {len(told) - bad} as it says", err=True)
    return 1 if bad or unlike or not told else 0


def _validate_trials(trials: "Sequence[tuple[RunFolder, BenchmarkRecord]]", as_json: bool) -> int:
    from scheduler import judging

    judged = [(record.name, *judging.judged_again(own, record)) for own, record in trials]
    if as_json:
        click.echo(json.dumps([result.model_dump(mode="json") for _, result, _ in judged], indent=2))

    for name, result, differing in judged:
        breaches = ", ".join(finding.code for finding in result.findings if finding.severity == "breach")
        if not as_json:
            click.echo(f"{name}: {result.verdict}{f' ({breaches})' if breaches else ''}")

        if differing:
            told = ", ".join(differing)
            click.echo(f"{name}: in result.json these do not follow from this folder: {told}", err=True)

    bad = sum(bool(differing) for _, _, differing in judged)
    click.echo(f"{len(judged)} trials judged again, {len(judged) - bad} as their result.json says", err=True)
    return 1 if bad or not judged else 0


# ---------------------------------------------------------------------- the run


def _run(options: dict[str, Any]) -> int:
    console = console_of(stderr=options["as_json"], quiet=options["quiet"])
    spec = spec_of(options)
    nothing_left = options["dry_run"] or offer_what_was_left()
    machine = read_machine()  # after that offer, which changes what is here
    if spec.layout is None:
        return _run_on(machine, spec, options, console)

    from scheduler import inspection, mig_run

    to_be, changes = mig_run.planned(spec.layout, machine)
    plan = plan_of(spec, to_be)
    if options["dry_run"]:
        return _show_plan(plan, options["as_json"], console, changes)

    inspection.check_data(plan)
    if not nothing_left:
        mig_run.refuse_what_was_left(shelf(), f"--layout {spec.layout}")

    with mig_run.in_force(spec.layout, shelf(), tell) as divided:
        return _run_on(divided, spec, options, console)


def _run_on(machine: "Machine", spec: "RunSpec", options: dict[str, Any], console: "Console") -> int:
    from scheduler import clock, inspection, judging, run
    from scheduler.record import RunFolder

    started = clock.Clock.start()
    plan = plan_of(spec, machine)
    if options["dry_run"]:
        return _show_plan(plan, options["as_json"], console)

    inspection.check_data(plan)
    name = f"{clock.utc_stamp()}-{plan.main.workload}-{plan.main.settings.scenario.lower()}"
    folder = (
        RunFolder.create(options["output"])
        if options["output"]
        else RunFolder.create_new(Path("results"), name)
    )
    _banner(plan, console)

    from scheduler.report.live import LiveView

    with LiveView(plan, folder, started, console, plain=options["verbose"]) as watch:
        metrics = options.get("metrics")
        seen = watch if metrics is None else metrics.following(plan, folder, started, watch)
        result = run.run(plan, spec, inspection.about(machine), started, folder, seen)

    _show_result(result, folder.path, options["as_json"], console)
    return judging.exit_code(result, folder)


def _banner(plan: "Plan", console: "Console") -> None:
    from scheduler.report import text

    text.show_plan(plan, console)


def _show_plan(plan: "Plan", as_json: bool, console: "Console", changes: "Sequence[Change]" = ()) -> int:
    from scheduler import assignment

    if as_json:
        click.echo(json.dumps(assignment.plan_as_json(plan), indent=2, default=str))
        return 0

    if changes:
        from scheduler.report import mig as report

        report.show_changes(changes, console)

    _banner(plan, console)
    return 0


def _show_result(result: "Result", folder: Path, as_json: bool, console: "Console") -> None:
    from scheduler.report import text

    if as_json:
        click.echo(result.model_dump_json(indent=2))

    console.quiet = False
    text.show_result(result, console)
    console.print(f"  folder: {folder}", markup=False, highlight=False, soft_wrap=True)


def main() -> None:
    """The console command ``hetero-mig``."""
    from scheduler.errors import HeteroMigError

    _have_standard_streams()
    try:
        code = root.main(prog_name="hetero-mig", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = 2
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except HeteroMigError as error:
        click.echo(str(error), err=True)
        code = error.exit_code
    except (
        SystemExit,
        BrokenPipeError,
    ):  # click's, when whoever read our output is gone: no verdict was told
        code = 3
    except Exception as error:  # noqa: BLE001 - the last resort: a bug is told as one
        _tell_the_unexpected(error)
        code = 3

    sys.exit(code if isinstance(code, int) else 0)


def _tell_the_unexpected(error: Exception) -> None:
    if (
        isinstance(error, OSError) and error.errno == errno.ENOSPC
    ):  # records tell of their own disk: errors.DiskFull
        found = f"no space is left where that goes ({error.filename or 'standard output'})"
        click.echo(f"asked: to write out the answer\nfound: {found}\ndo:    free some space there", err=True)
        return

    traceback.print_exception(error)
    click.echo("hetero-mig met a bug of its own; nothing it started is left running", err=True)


def _have_standard_streams() -> None:
    """A daemon's parent may have closed them; then what is opened next would be taken for them."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(
                os.open(os.devnull, os.O_RDWR), True
            )  # the lowest number that is free: this one
            setattr(sys, name, os.fdopen(descriptor, mode, encoding="utf-8"))


if __name__ == "__main__":
    main()
