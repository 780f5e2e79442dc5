"""The command line of ``hetero-mig profile``: options in, exit code out."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from scheduler.cli_mig import offer_what_was_left, shelf, tell
from scheduler.cli_options import RUN, console_of, options, read_machine, spec_of

if TYPE_CHECKING:
    from rich.console import Console

    from scheduler.profile_row import Row
    from scheduler.slices import Machine
    from scheduler.spec import RunSpec
    from scheduler.sweep import Grid

OF_A_RUN = ("slices", "size", "precision", "engine", "seed", "telemetry", "dcgm")


class Numbers(click.ParamType[tuple[float, ...]]):
    """``1,2,4``: numbers above 0, each once, in their order."""

    name = "N,N…"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self._kind = kind

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> tuple[float, ...]:
        if isinstance(value, tuple):
            return value

        try:
            found = tuple(dict.fromkeys(self._kind(word) for word in str(value).split(",")))
        except ValueError:
            found = ()

        if not found or not all(0 < number < float("inf") for number in found):
            self.fail(f"{value!r} is not a list of numbers above 0, as 1,2,4", param, context)

        return found


@click.command()
@click.argument("workloads", nargs=-1, metavar="WORKLOAD…")
@click.option("--batch-sizes", type=Numbers(int), help="Samples a request (default: as the workload has it).")
@click.option("--sequence-lengths", type=Numbers(int), help="Tokens a sample, of workloads that can choose.")
@click.option(
    "--concurrency", type=Numbers(int), help="Closed loop: so many requests outstanding (default 1)."
)
@click.option("--arrival-rate", type=Numbers(float), help="Open loop: so many requests a second, Poisson.")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    show_default=True,
    help="How long each cell is measured.",
)
@click.option(
    "--longest-warm-up",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For batch times to become steady; a cell that needs longer is measured all the same, and says so.",
)
@click.option(
    "--memory-limit",
    type=click.IntRange(min=1),
    metavar="MIB",
    help="Of CPU slices: what a cell may allocate.",
)
@click.option("--together", is_flag=True, help="The same cell on every slice at once, not one after another.")
@click.option(
    "--layout",
    multiple=True,
    metavar="FILE#LABEL",
    help="Divide GPUs so for the time of the profile; given several times, one after another.",
)
@options({name: RUN[name] for name in (*OF_A_RUN, "weights", "data")})
@click.option(
    "--output", type=click.Path(path_type=Path), metavar="DIR", help="Default results/<utc>-profile."
)
@click.option(
    "--json", "as_json", is_flag=True, help="The table to stdout as JSON, everything else to stderr."
)
@click.option("--no-pictures", is_flag=True, help="Draw none.")
@click.option("--dry-run", is_flag=True, help="List the cells and start nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Only the table.")
@click.option("-v", "--verbose", is_flag=True, help="A plain line for every cell, also on a terminal.")
@click.pass_context
def profile(context: click.Context, /, workloads: tuple[str, ...], **asked: Any) -> None:
    """Measure latency, throughput, memory, activity and power of workloads over batch sizes, loads and slices.

    \b
    hetero-mig profile resnet50 bert-base --batch-sizes 1,2,4,8
    hetero-mig profile cv_infer --batch-sizes 1,8,64 --layout 1g.18gb*7 --together

    WORKLOAD is a workload, your own (FILE.py:CLASS, hf:FOLDER), or a group: cv_infer, cv_train, nlp_infer,
    nlp_train. MIGProfiler's arguments (model_name=… workload=… gpu_i_id=…) are taken too.

    Exit code: 0 every cell is measured, or out of memory or overloaded, which are results; 1 a cell failed; 2 asked
    wrongly; 3 could not run; 130/143 stopped: the same command goes on.
    """
    context.exit(_profile(_translated(workloads, asked, _given(context)), asked))


def _given(context: click.Context) -> dict[str, tuple[str, ...]]:
    """The options on the command line, each with its values as they are written; none of a flag."""
    found = {}
    for option in context.command.params:
        name = option.name or ""
        if (
            isinstance(option, click.Option)
            and context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ):
            value = context.params[name]
            values = () if option.is_flag else value if option.multiple else (value,)
            found[max(option.opts, key=len)] = tuple(map(_written, values))

    return found


def _written(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_written, value))

    return f"{value:.15g}" if isinstance(value, float) else str(value)


def _translated(
    words: tuple[str, ...], asked: dict[str, Any], given: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """The workloads; MIGProfiler's ``key=value`` become the options that they stand for, and the command is told."""
    from scheduler import migprofiler

    if not migprofiler.is_meant(words):
        return words

    new = migprofiler.translated(words, given)
    click.echo(f"as MIGProfiler's arguments; the same is: hetero-mig profile {new.command}", err=True)
    for note in new.notes:
        click.echo(f"note: {note}", err=True)

    asked.update(new.options)
    return new.workloads


def _profile(words: tuple[str, ...], asked: dict[str, Any]) -> int:
    from scheduler import profile as composition
    from scheduler.report import profile_text

    console = console_of(stderr=asked["as_json"], quiet=asked["quiet"])
    specs, grid = _specs(words, asked), _grid(asked)
    composition.check(specs, grid)
    if asked["dry_run"]:
        for layout, machine in _planned(asked["layout"]):
            slices = composition.slices_for(specs, machine)
            steps = composition.planned(specs, slices, grid, together=asked["together"], layout=layout)
            profile_text.show_steps(steps, console)

        return 0

    rows, folder = _measured(specs, grid, asked, console)
    _show(rows, folder, console_of() if not asked["as_json"] else None)
    return 1 if any(row.status == "failed" for row in rows) else 0


def _measured(
    specs: "Sequence[RunSpec]", grid: "Grid", asked: dict[str, Any], console: "Console"
) -> "tuple[list[Row], Path]":
    from scheduler import inspection, series
    from scheduler import profile as composition
    from scheduler.clock import Clock
    from scheduler.record import disk_errors
    from scheduler.report import profile_files
    from scheduler.report.profile_text import ProfileView

    nothing_left = not asked["layout"] or offer_what_was_left()
    together = asked["together"]
    sampled = composition.Sampled(specs[0].telemetry, specs[0].dcgm)
    here = () if asked["layout"] else composition.slices_for(specs, machine := read_machine())
    question = series.question("profile", _as_question(specs, grid, asked), here)
    if here:
        composition.planned(
            specs, here, grid, together=together
        )  # what is asked wrongly is told before a folder is made

    with series.opened(series.place(asked["output"], "profile", question), question) as place:
        clock, rows = Clock.start(), list["Row"]()
        for layout, divided in _in_force(
            asked["layout"], machine if here else None, nothing_left=nothing_left
        ):
            slices = composition.slices_for(specs, divided)
            steps = composition.planned(specs, slices, grid, together=together, layout=layout)
            about = inspection.about(divided)
            with ProfileView(console, plain=asked["verbose"]) as watch:
                rows += composition.carry_out(steps, about, place, clock, watch, sampled)

        with disk_errors(place.path):
            profile_files.write(place.path, rows)
            if not asked["no_pictures"]:
                from scheduler.report import profile as pictures

                pictures.draw(place.path, rows)

        place.write_answer(composition.answer(rows, about))
        return rows, place.path


def _show(rows: "Sequence[Row]", folder: Path, console: "Console | None") -> None:
    from scheduler.report import profile_text

    if console is None:
        click.echo(json.dumps([row.model_dump() for row in rows], indent=2))
        return

    profile_text.show_table(rows, console)
    console.print(f"folder: {folder}", markup=False, highlight=False, soft_wrap=True)


# ---------------------------------------------------------------------- what is asked


def _specs(words: Sequence[str], asked: Mapping[str, Any]) -> "list[RunSpec]":
    """The run of each workload alone, with its options; groups are expanded."""
    from scheduler.sweep import GROUPS
    from workloads import catalog

    if not words:
        raise click.UsageError(
            f"name a workload, or a group: {', '.join(GROUPS)} (`hetero-mig workloads` lists them)"
        )

    names = [name for word in words for name in GROUPS.get(word.replace("-", "_").lower(), (word,))]
    fixed = {name: asked[name] for name in OF_A_RUN}
    found = {}
    for name in dict.fromkeys(names):
        own = {option: _items_of(option, asked[option], name, names) for option in ("weights", "data")}
        entry = catalog.CATALOG.get(name)
        scenario = {} if entry is None else {"main_scenario": entry.scenarios[0]}
        spec = spec_of({"main": name, **fixed, **own, **scenario}, {"main": f"profile {name}"})
        found[spec.main] = spec

    return list(found.values())


def _items_of(option: str, items: Sequence[str], name: str, names: Sequence[str]) -> tuple[str, ...]:
    """Those of ``--weights`` or ``--data`` that are this workload's."""
    from workloads.catalog import names_one

    mine = []
    for item in items:
        before, equals, _ = item.partition("=")
        if not equals or not names_one(before, names):
            if len(set(names)) > 1:
                raise click.UsageError(f"--{option} {item}: say whose, as --{option} {names[0]}={item}")

            mine.append(item)
        elif _same(before, name):
            mine.append(item)
        elif not any(_same(before, other) for other in names):
            raise click.UsageError(f"--{option} {item}: {before} is not in this profile")

    return tuple(mine)


def _same(one: str, other: str) -> bool:
    from workloads import catalog

    return catalog.find(one) == catalog.find(other)


def _grid(asked: Mapping[str, Any]) -> "Grid":
    from scheduler.sweep import Grid

    rates = asked["arrival_rate"] or ()
    return Grid(
        batch_sizes=asked["batch_sizes"] or (),
        sequence_lengths=asked["sequence_lengths"] or (),
        concurrency=asked["concurrency"] or (() if rates else (1,)),
        arrival_rates_per_s=rates,
        seconds=asked["seconds"],
        longest_warm_up_s=asked["longest_warm_up"],
        memory_limit_mib=asked["memory_limit"],
        seed=asked["seed"] or 0,
    )


def _as_question(specs: "Sequence[RunSpec]", grid: "Grid", asked: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "workloads": [spec.model_dump(mode="json") for spec in specs],
        "grid": asdict(grid),
        "layouts": list(asked["layout"]),
        "together": asked["together"],
    }


# ---------------------------------------------------------------------- on what


def _planned(layouts: Sequence[str]) -> "Iterator[tuple[str, Machine]]":
    """The machine as each layout will make it; as it is where there is none. Nothing is changed."""
    machine = read_machine()
    if not layouts:
        yield "", machine

    for layout in layouts:
        from scheduler import mig_run

        yield layout, mig_run.planned(layout, machine)[0]


def _in_force(
    layouts: Sequence[str], machine: "Machine | None", *, nothing_left: bool
) -> "Iterator[tuple[str, Machine]]":
    """The machine as it is, or with each layout in force in its turn."""
    if machine is not None:
        yield "", machine

    for layout in layouts:
        from scheduler import mig_run

        if not nothing_left:
            mig_run.refuse_what_was_left(shelf(), f"--layout {layout}")

        with mig_run.in_force(layout, shelf(), tell) as divided:
            yield layout, divided
