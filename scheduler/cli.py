"""The command line: options in, exit code out. Decides nothing; imports what a command needs when it runs."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from scheduler import __version__
from scheduler.cli_mig import mig, offer_what_was_left, shelf, tell

if TYPE_CHECKING:
    from rich.console import Console

    from scheduler.assignment import Plan
    from scheduler.mig_changes import Change
    from scheduler.result import Result
    from scheduler.slices import Machine
    from scheduler.spec import RunSpec

DURATION = "DURATION"
PLAIN_WIDTH = 120
"""Columns, where there is no terminal to ask."""


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="hetero-mig")
@click.option(
    "--main",
    metavar="NAME",
    help="The main benchmark: a workload, by name or alias (see `workloads`), or your own: FILE.py:CLASS, hf:FOLDER.",
)
@click.option(
    "--main-scenario",
    metavar="SCENARIO",
    help="Offline (default), Server, SingleStream or MultiStream, as far as the workload has them.",
)
@click.option(
    "--main-mode",
    type=click.Choice(["performance", "accuracy"]),
    help="performance (default): how fast; accuracy: each sample once, and how good the answers are.",
)
@click.option(
    "--accuracy-target",
    type=click.Choice(["auto", "99", "99.9"]),
    help="Of the reference, in %, that an accuracy run must reach (auto: 99.9 for 3d-unet and dlrm, else 99).",
)
@click.option(
    "--fidelity-samples",
    type=int,
    metavar="N",
    help="How many answers of an accuracy run are held against the same weights in fp32.",
)
@click.option("--main-duration", metavar=DURATION, help="LoadGen's min_duration for main.")
@click.option(
    "--main-slice",
    metavar="ID",
    help="The slice for main, by id, UUID or MIG profile, of which it takes the first (default: the first slice).",
)
@click.option(
    "--target-qps",
    type=float,
    metavar="QPS",
    help="Main's rate: server_target_qps, offline_expected_qps, or the streams' expected queries/s. "
    "Without it a short calibration on the slice picks it.",
)
@click.option(
    "--background",
    metavar="NAMES",
    help="Background benchmarks: NAME[,NAME…], or all, none, edge, datacenter. Main's own model is left out.",
)
@click.option(
    "--background-duration",
    metavar=f"automatic|{DURATION}",
    help="How long background issues; automatic (default): until main has ended.",
)
@click.option(
    "--on-main-end", type=click.Choice(["kill", "drain"]), help="Kill background (default), or let it finish."
)
@click.option(
    "--on-breach",
    type=click.Choice(["stop", "record"]),
    help="When a background benchmark breaks the overlap: stop at once (default), or go on; INVALID either way.",
)
@click.option(
    "--slices", metavar="WHICH", help="auto (default), mig, gpu, cpu[:N], or ID,ID… as `slices` lists them."
)
@click.option(
    "--layout",
    metavar="FILE#LABEL",
    help="Divide GPUs so for the time of the run (see `mig plan`); what was there before is restored after it.",
)
@click.option(
    "--start-timeout",
    metavar=DURATION,
    help="Longest wait for all background to issue (what NVIDIA's --start_time_buffer does).",
)
@click.option(
    "--start-buffer",
    metavar=DURATION,
    help="Pause after the last background issues (what NVIDIA's --start_time_buffer is documented as).",
)
@click.option("--end-buffer", metavar=DURATION, help="How long background must outlive main.")
@click.option("--main-timeout", metavar=DURATION, help="Longest time for main, from its launch.")
@click.option(
    "--drain-timeout", metavar=DURATION, help="Longest wait for background to finish the test in hand."
)
@click.option("--stop-grace", metavar=DURATION, help="Between asking a process to stop and killing it.")
@click.option(
    "--stall-after", metavar=DURATION, help="Background that completes nothing for this long has stalled."
)
@click.option(
    "--preset",
    type=click.Choice(["auto", "quick", "mlperf"]),
    help="mlperf: 600 s, full models, the round's counts; quick: seconds, not MLPerf-length. "
    "auto (default): mlperf on GPU slices, quick on CPU slices.",
)
@click.option(
    "--size", type=click.Choice(["auto", "full", "small"]), help="Of the models (default: as the preset)."
)
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    help="Default: fp16 on GPU, fp32 on CPU.",
)
@click.option(
    "--engine",
    type=click.Choice(["auto", "eager", "graph", "compile"]),
    help="How networks run: eager, as CUDA graphs (default on GPU), or compiled as well.",
)
@click.option(
    "--batch-size", multiple=True, metavar="[NAME=]N", help="Most samples at once; without NAME, of main."
)
@click.option(
    "--weights", multiple=True, metavar="[NAME=]PATH", help="Weights file or folder; without NAME, of main."
)
@click.option(
    "--data", multiple=True, metavar="[NAME=]DIR", help="Folder of real inputs; without NAME, of main."
)
@click.option("--seed", type=int, help="Rotates the assignment and seeds weights and inputs (default 0).")
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Run folder (default results/<utc>-…)."
)
@click.option("--json", "as_json", is_flag=True, help="result.json to stdout, everything else to stderr.")
@click.option("--dry-run", is_flag=True, help="Print the plan and start nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Only the verdict.")
@click.option("-v", "--verbose", is_flag=True, help="Plain lines for every event, also on a terminal.")
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

    context.exit(_run(options))


@root.command()
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def slices(as_json: bool) -> None:
    """List what workloads can be pinned to on this machine."""
    from scheduler import assignment, selection

    machine = _machine()
    found = selection.offered(machine)
    if as_json:
        click.echo(json.dumps([assignment.slice_as_json(one) for one in found], indent=2))
    else:
        from scheduler.report import text

        text.show_slices(found, _console())

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

        text.show_workloads(_console())


@root.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="The result to stdout as JSON.")
@click.pass_context
def validate(context: click.Context, folder: Path, as_json: bool) -> None:
    """Judge the run in FOLDER again, from the folder alone."""
    from scheduler import run
    from scheduler.record import RunFolder
    from scheduler.report import text

    recorded = RunFolder(folder)
    result = run.judge(recorded)
    if as_json:
        click.echo(result.model_dump_json(indent=2))
    else:
        text.show_result(result, _console())

    differing: list[str] = []
    if recorded.has_result():
        differing = run.differences(recorded.result(), result.model_dump(mode="json"))
    else:
        click.echo("there is no result.json: the run was cut short before its verdict", err=True)

    if differing:
        click.echo(f"in result.json these do not follow from this folder: {', '.join(differing)}", err=True)

    context.exit(0 if result.verdict == "VALID" and not differing else 1)


root.add_command(mig)


# ---------------------------------------------------------------------- the run


def _run(options: dict[str, Any]) -> int:
    console = _console(stderr=options["as_json"], quiet=options["quiet"])
    spec = _spec(options)
    nothing_left = options["dry_run"] or offer_what_was_left()
    machine = _machine()  # after that offer, which changes what is here
    if spec.layout is None:
        return _run_on(machine, spec, options, console)

    from scheduler import inspection, mig_run

    to_be, changes = mig_run.planned(spec.layout, machine)
    plan = _plan(spec, to_be)
    if options["dry_run"]:
        return _show_plan(plan, options["as_json"], console, changes)

    inspection.check_data(plan)
    if not nothing_left:
        mig_run.refuse_what_was_left(shelf(), f"--layout {spec.layout}")

    with mig_run.in_force(spec.layout, shelf(), tell) as divided:
        return _run_on(divided, spec, options, console)


def _run_on(machine: "Machine", spec: "RunSpec", options: dict[str, Any], console: "Console") -> int:
    from scheduler import clock, inspection, run
    from scheduler.record import RunFolder

    started = clock.Clock.start()
    plan = _plan(spec, machine)
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
        result = run.run(plan, spec, inspection.about(machine), started, folder, watch)

    _show_result(result, folder.path, options["as_json"], console)
    return run.exit_code(result, folder)


def _spec(options: dict[str, Any]) -> "RunSpec":
    from scheduler.spec import parse_run

    not_of_the_spec = {"output", "as_json", "dry_run", "quiet", "verbose"}
    asked = {
        name: value
        for name, value in options.items()
        if name not in not_of_the_spec and value is not None and value != ()
    }
    for option in ("batch_size", "weights", "data"):
        if option in asked:
            asked[option] = _by_name(option, asked[option], asked["main"], asked.get("background", ""))

    return parse_run(asked)


def _by_name(option: str, items: tuple[str, ...], main: str, background: str) -> dict[str, str]:
    from workloads.catalog import names_one

    references = [main, *background.split(",")]
    named: dict[str, str] = {}
    for item in items:
        before, equals, after = item.partition("=")
        name, value = (before, after) if equals and names_one(before, references) else (main, item)
        if name in named:
            raise click.UsageError(f"--{option.replace('_', '-')} is given twice for {name}")

        named[name] = value

    return named


def _machine() -> "Machine":
    from scheduler import nvml
    from scheduler.host import Host

    return nvml.read_machine(Host())


def _plan(spec: "RunSpec", machine: "Machine") -> "Plan":
    from scheduler import assignment, selection
    from scheduler.spec import loadgen_round, presets

    slices = selection.slices_on(machine, spec.slices, assignment.benchmark_count(spec))
    return assignment.assign(spec, slices, presets(), loadgen_round())


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
    console.print(f"  folder: {folder}", highlight=False, soft_wrap=True)


def _console(*, stderr: bool = False, quiet: bool = False) -> "Console":
    from scheduler.report.text import Terminal

    console = Terminal(stderr=stderr, quiet=quiet)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH

    return console


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
    except Exception:  # noqa: BLE001 - the last resort: a bug is told as one
        import traceback

        traceback.print_exc()
        click.echo("hetero-mig met a bug of its own; nothing it started is left running", err=True)
        code = 3

    sys.exit(code if isinstance(code, int) else 0)


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
