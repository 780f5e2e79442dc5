"""The command line of ``hetero-mig mig``: options in, exit code out."""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from scheduler.cli_options import Decorator

if TYPE_CHECKING:
    from rich.console import Console

    from scheduler.checkpoint import Shelf
    from scheduler.errors import GpuError
    from scheduler.geometry import GpuMig
    from scheduler.launch_lines import Form
    from scheduler.mig_changes import Change
    from scheduler.nvml_mig import NvmlMig

LAYOUT = "LAYOUT"
LAYOUT_HELP = (
    "LAYOUT is FILE#LABEL (a file in mig-parted's format, or one that is shipped: h200-141gb#balanced), or MIG "
    "devices: 3g.71gb,2g.35gb,1g.18gb*2, or profile ids: 9,19,14,19."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def mig() -> None:
    """See, plan and change how GPUs are divided (MIG)."""


def _gpu_option(text: str = "GPUs by index or UUID, with commas; all of them by default.") -> Decorator:
    return click.option("--gpu", metavar="GPU", help=text)


_as_json: Decorator = click.option("--json", "as_json", is_flag=True, help="As JSON.")


@mig.command()
@_gpu_option()
@_as_json
def status(gpu: str | None, as_json: bool) -> None:
    """Show modes, instances, MIG devices, who uses them, and what this user may do."""
    from scheduler import capabilities, mig_plan, mig_status
    from scheduler.report import mig as report
    from scheduler.report import mig_json

    rights = capabilities.read()
    with _open() as here:
        found = mig_status.status(here.mig, mig_plan.chosen(here.gpus, gpu), rights)

    if as_json:
        click.echo(json.dumps(mig_json.status(found, rights), indent=2))
    else:
        report.show_status(found, rights, _console())

    if (left := shelf().waiting()) is not None:
        tell(
            f"\nbefore {left.reason}, {left.taken_utc}: never restored; `hetero-mig mig restore` puts it back"
        )


@mig.command()
@_gpu_option("A GPU by index or UUID, or a model by name, which need not be here: A100-80GB.")
@_as_json
def profiles(gpu: str | None, as_json: bool) -> None:
    """List the profiles of a GPU: names, ids, sizes, engines, placements; and of the GPU instances on it."""
    from scheduler import mig_plan, mig_status
    from scheduler.errors import GpuError
    from scheduler.report import mig as report
    from scheduler.report import mig_json

    gpus, now = _gpus_or_why(), []
    geometry = mig_plan.geometry(gpus, gpu)
    if not isinstance(gpus, GpuError) and mig_plan.names_gpus(gpus, gpu):
        with _open() as here:
            now = mig_status.profiles(here.mig, mig_plan.chosen(here.gpus, gpu))

    if as_json:
        click.echo(json.dumps(mig_json.profiles(geometry, now), indent=2))
    else:
        report.show_profiles(geometry, now, _console())


@mig.command(epilog=LAYOUT_HELP)
@click.argument("layout", metavar=LAYOUT)
@_gpu_option("A GPU by index or UUID, or a model by name, which need not be here: A100-80GB.")
@click.option("--from-current", is_flag=True, help="The smallest change from what is there now.")
@_as_json
@click.pass_context
def plan(context: click.Context, layout: str, gpu: str | None, from_current: bool, as_json: bool) -> None:
    """Say whether a GPU has room for LAYOUT, where everything lies and what is wasted.

    Exit code 1 where there is no room.
    """
    from scheduler import mig_plan
    from scheduler.report import mig as report
    from scheduler.report import mig_json

    if from_current:
        with _open() as here:
            changes = _changes(here, layout, gpu)

        if as_json:
            click.echo(json.dumps(mig_json.changes(changes), indent=2))
        else:
            report.show_changes(changes, _console())

        return

    found = mig_plan.plans(_gpus_or_why(), layout, gpu)
    if as_json:
        shown = [mig_json.plan(each) for each in found]
        click.echo(json.dumps(shown[0] if len(shown) == 1 else shown, indent=2))
    else:
        for each in found:
            report.show_plan(each, _console())

    context.exit(1 if any(each.why_not for each in found) else 0)


@mig.command(epilog=LAYOUT_HELP)
@click.argument("layout", metavar=LAYOUT)
@_gpu_option("Change these GPUs alone: by index or UUID, with commas.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@_as_json
def apply(layout: str, gpu: str | None, dry_run: bool, as_json: bool) -> None:
    """Bring GPUs to LAYOUT by the smallest change; all of it, or what was there before is restored.

    Instances that fit stay untouched, with the processes on them.
    """
    from scheduler import mig as doing

    with _open() as here:
        changes = _changes(here, layout, gpu)
        if not _shown(changes, dry_run, as_json):
            doing.apply(here.mig, changes, shelf(), f"apply {layout}", tell)
            _done(changes)


@mig.command("assert", epilog=LAYOUT_HELP)
@click.argument("layout", metavar=LAYOUT)
@_gpu_option("Look at these GPUs alone: by index or UUID, with commas.")
@click.option("--mode-only", is_flag=True, help="Look at MIG's mode alone.")
@click.pass_context
def assert_(context: click.Context, layout: str, gpu: str | None, mode_only: bool) -> None:
    """Exit with 0 if the GPUs are as LAYOUT says, with 1 if not, and say what differs."""
    from scheduler import mig_plan

    with _open() as here:
        targets = mig_plan.targets(layout, here.gpus, mig_plan.chosen(here.gpus, gpu))
        differing = mig_plan.differences(here.gpus, targets, mode_only)

    for line in differing:
        click.echo(line)

    if not differing:
        click.echo(f"as {layout} says: GPU {', '.join(str(g.index) for g in here.gpus if g.uuid in targets)}")

    context.exit(1 if differing else 0)


@mig.command()
@_gpu_option()
@click.option("--label", default="current", show_default=True, help="The label in the document.")
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Into a file.")
def export(gpu: str | None, label: str, output: Path | None) -> None:
    """Write what is there as a layout document, which mig-parted reads too."""
    from scheduler import layout_files, mig_plan
    from scheduler.errors import SpecError

    with _open() as here:
        chosen = mig_plan.chosen(here.gpus, gpu)
        document = mig_plan.exported(here.gpus, label, chosen)

    for line in [line for each in chosen for line in mig_plan.bare(each)]:
        tell(f"left out, {line}")

    text = layout_files.write(document.configs)
    if output is None:
        click.echo(text, nl=False)
        return

    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise SpecError(
            asked=f"--output {output}", found=str(error), do="name a file that can be written"
        ) from error


@mig.command()
@click.argument("instances", metavar="[INSTANCE]…", nargs=-1)
@_gpu_option("With --all: of these GPUs.")
@click.option("--all", "everything", is_flag=True, help="All instances.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@_as_json
def destroy(
    instances: tuple[str, ...], gpu: str | None, everything: bool, dry_run: bool, as_json: bool
) -> None:
    """Destroy instances: GPU instances (gpu0:gi7), MIG devices (gpu0:gi7:ci0, or by UUID), or --all."""
    from scheduler import mig as doing
    from scheduler import mig_plan
    from scheduler.mig_changes import changes_to

    if everything == bool(instances):
        raise click.UsageError("name instances as `mig status` lists them, or --all")

    asked = "destroy " + (" ".join(instances) or "all instances")
    with _open() as here:
        chosen = mig_plan.chosen(here.gpus, gpu)
        wanted = mig_plan.without(chosen, instances) if instances else mig_plan.emptied(chosen)
        changes = changes_to(here.gpus, wanted, asked)
        if not _shown(changes, dry_run, as_json):
            doing.apply(here.mig, changes, shelf(), asked, tell)
            _done(changes)


@mig.command("checkpoint")
@click.argument("file", type=click.Path(path_type=Path))
@_gpu_option()
def checkpoint_(file: Path, gpu: str | None) -> None:
    """Keep what is there in FILE, with every placement, for `mig restore`."""
    from scheduler import checkpoint, mig_plan

    with _open() as here:
        taken = checkpoint.take(mig_plan.chosen(here.gpus, gpu), "a checkpoint by hand")

    checkpoint.write(taken, file)
    click.echo(f"{len(taken.gpus)} GPUs in {file}")


@mig.command()
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--discard", is_flag=True, help="Give up what a run that died has left, and restore nothing.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and do nothing.")
@_as_json
def restore(file: Path | None, discard: bool, dry_run: bool, as_json: bool) -> None:
    """Put back what FILE keeps; without FILE, what was there before a run that died."""
    from scheduler import checkpoint
    from scheduler import mig as doing
    from scheduler.mig_changes import changes_to

    kept_on = shelf()
    if discard:
        if file is not None:
            raise click.UsageError("--discard is for what a run has left; it does not go with FILE")

        with kept_on.locked("give up a layout"):
            kept_on.clear()

        return

    kept = checkpoint.read(file) if file is not None else kept_on.waiting()
    if kept is None:
        click.echo("nothing waits to be restored")
        return

    asked = f"restore what was there {kept.taken_utc}"
    with _open() as here:
        changes = changes_to(here.gpus, kept.states(), asked)
        if not _shown(changes, dry_run, as_json):
            if file is None:
                doing.restore(here.mig, changes, kept_on, asked, tell)
            else:
                doing.apply(here.mig, changes, kept_on, asked, tell)

            _done(changes)


def _mode_command(name: str, enabled: bool) -> None:
    @mig.command(name, help=f"{name.capitalize()} MIG, after looking for what stands in the way.")
    @_gpu_option()
    @click.option(
        "--reset", is_flag=True, help="Reset the GPU where the mode waits for it; asks before it does."
    )
    @click.option("-y", "--yes", is_flag=True, help="Do not ask.")
    @click.pass_context
    def command(context: click.Context, gpu: str | None, reset: bool, yes: bool) -> None:
        context.exit(_switch(gpu, enabled, reset, yes))


_mode_command("enable", True)
_mode_command("disable", False)


@mig.command()
@click.argument("slice_", metavar="SLICE")
@click.argument("command", metavar="[COMMAND]…", nargs=-1, type=click.UNPROCESSED)
@click.option("--shell", "form", flag_value="shell", default=True, help="A line for a shell (default).")
@click.option("--docker", "form", flag_value="docker", help="A docker run.")
@click.option("--compose", "form", flag_value="compose", help="A Compose service.")
@click.option("--k8s", "form", flag_value="k8s", help="A Kubernetes pod.")
@click.option("--slurm", "form", flag_value="slurm", help="Slurm's gres lines and an srun.")
@click.option("--triton", "form", flag_value="triton", help="A Triton server of its own.")
@click.option("--image", metavar="IMAGE", help="The container's image.")
def env(slice_: str, command: tuple[str, ...], form: "Form", image: str | None) -> None:
    """Print the lines that put a workload on SLICE (an id of `mig status` or `slices`, or a UUID).

    COMMAND is what runs there, after --; by default, what shows the slice.
    """
    from scheduler import capabilities, mig_plan
    from scheduler.host import Host
    from scheduler.nvml import read_machine

    machine = read_machine(Host())
    if machine.gpu_error is not None:
        raise machine.gpu_error

    with _open() as here:
        rights = capabilities.read()
        click.echo(mig_plan.lines_for(machine, here.gpus, rights, slice_, form, image, command), nl=False)


# ---------------------------------------------------------------------- parts


@dataclass(frozen=True)
class _Here:
    """NVML while it is open, and the GPUs as they were then."""

    mig: "NvmlMig"
    gpus: "tuple[GpuMig, ...]"


@contextmanager
def _open() -> Iterator[_Here]:
    from scheduler import nvml
    from scheduler.nvml_mig import NvmlMig

    with nvml.open() as library:
        mig = NvmlMig(library)
        yield _Here(mig, mig.gpus())


def _gpus_or_why() -> "tuple[GpuMig, ...] | GpuError":
    from scheduler.errors import GpuError

    try:
        with _open() as here:
            return here.gpus
    except GpuError as error:
        return error


def _changes(here: _Here, layout: str, gpu: str | None) -> "list[Change]":
    from scheduler import mig as doing
    from scheduler import mig_plan
    from scheduler.mig_changes import changes

    targets = mig_plan.targets(layout, here.gpus, mig_plan.chosen(here.gpus, gpu))
    for index in mig_plan.passed_over(layout, here.gpus):
        tell(f"{layout} names GPU {index}, which is not here: passed over")

    return changes(here.gpus, targets, doing.busy_devices(here.mig, here.gpus), f"the layout {layout}")


def _shown(changes: "Sequence[Change]", dry_run: bool, as_json: bool) -> bool:
    """Show what is to be done; whether that is all."""
    from scheduler.report import mig as report
    from scheduler.report import mig_json

    if as_json:
        click.echo(json.dumps(mig_json.changes(changes), indent=2))
    elif dry_run:
        report.show_changes(changes, _console())

    return dry_run


def _done(changes: "Sequence[Change]") -> None:
    for change in changes:
        if change.is_none:
            tell(f"GPU {change.gpu.index}: is so already, nothing was done")

    tell("done")


def _switch(gpu: str | None, enabled: bool, reset: bool, yes: bool) -> int:
    from scheduler import mig_mode

    def agreed(question: str) -> bool:
        return yes or click.confirm(question, err=True)

    return mig_mode.switch(gpu, enabled, shelf(), tell, agreed if reset else None)


def tell(line: str) -> None:
    """A line for the person, on stderr. If nobody reads it any more (a pipe that was closed), what is being done goes
    on all the same: half a layout is none."""
    with suppress(OSError):
        click.echo(line, err=True)


def shelf() -> "Shelf":
    """Where this user's layouts wait to be restored."""
    from scheduler import checkpoint

    return checkpoint.Shelf(checkpoint.state_folder(os.environ))


def offer_what_was_left() -> bool:
    """If a run that died has left its layout, ask on a terminal whether to restore what was there before, and say how
    elsewhere; whether nothing is left now."""
    from scheduler import mig_run

    kept = shelf().waiting()
    if kept is None:
        return True

    tell(f"what was there {kept.taken_utc}, before {kept.reason}, was never restored")
    if sys.stdin.isatty() and sys.stderr.isatty() and click.confirm("Put it back now?", err=True):
        mig_run.restore_what_was_left(shelf(), tell)
        return True

    tell("put it back with `hetero-mig mig restore`, or give it up with `hetero-mig mig restore --discard`")
    return False


def _console() -> "Console":
    from scheduler.report.text import Terminal

    console = Terminal()
    console.width = max(console.width, 200)  # a narrow terminal breaks the lines; a cut figure would be lost
    return console
