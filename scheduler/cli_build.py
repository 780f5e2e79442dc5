"""`hetero-mig build`: engines prepared ahead of runs, and what is kept of them."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from scheduler.cli_options import RUN, console_of, options, read_machine, spec_of

if TYPE_CHECKING:
    from scheduler.assignment import Plan
    from workloads.engine_cache import EngineCache

UNITS = {
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}
TAKEN = ("slices", "preset", "size", "precision", "engine", "batch_size", "main_scenario")
"""Options of a run that an engine depends on."""


class Bytes(click.ParamType[int]):
    """``20GiB``: a number and its unit."""

    name = "SIZE"

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> int:
        found = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})", str(value).strip())
        if found is None:
            self.fail(
                f"{value!r} is no size; write a number and its unit, as 20GiB or 500MB", parameter, context
            )

        return int(float(found[1]) * UNITS[found[2]])


@click.command()
@click.option("--workloads", metavar="NAMES", help="NAME[,NAME…], or all, edge, datacenter.")
@options({name: RUN[name] for name in TAKEN})
@click.option("--max-size", type=Bytes(), help="Keep at most so much, from now on: as 20GiB (the default).")
@click.option("--list", "lists", is_flag=True, help="What is kept.")
@click.option("--clear", is_flag=True, help="Remove what is kept (of --workloads, if given) and not in use.")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
@click.pass_context
def build(
    context: click.Context,
    /,
    workloads: str | None,
    max_size: int | None,
    lists: bool,
    clear: bool,
    as_json: bool,
    **asked: Any,
) -> None:
    """Prepare workloads for slices ahead of runs, so that these start in seconds.

    \b
    hetero-mig build --workloads datacenter --slices mig
    hetero-mig build --list

    What torch compiles is kept under $HETERO_MIG_CACHE (default ~/.cache/hetero-mig) for each workload, size,
    precision, engine and batch size, by kind of slice, and by version of the code and of torch. A run uses it
    if it is there, and otherwise keeps what it builds itself. --main-scenario Server prepares every power of two
    up to the batch size.
    """
    from scheduler.errors import SpecError
    from workloads.engine_cache import EngineCache, NotKept

    given = [name for name in asked if asked[name]]
    if (lists or clear) and given:
        raise click.UsageError(
            f"--{given[0].replace('_', '-')} is for building; it does not go with --list or --clear"
        )

    cache = EngineCache.of_user()
    try:
        if max_size is not None:
            cache.limit(max_size)
    except NotKept as refusal:
        raise SpecError(
            asked="--max-size", found=str(refusal), do="name another folder by HETERO_MIG_CACHE"
        ) from None

    if clear:
        _clear(cache, names_of(workloads) if workloads else None)
    elif lists:
        _list(cache, as_json)
    elif workloads is not None:
        context.exit(_build(names_of(workloads), asked, as_json))
    elif max_size is None:
        raise click.UsageError("--workloads NAMES says what is to be built; or ask for --list or --clear")


def names_of(words: str) -> list[str]:
    """The catalogue's names of a list, each once; macros are expanded.

    Raises:
        SpecError: one is no workload.
    """
    from scheduler.spec import parse_run
    from workloads.catalog import MACROS

    names: dict[str, None] = {}
    for word in words.split(","):
        name = word.strip()
        typed = {"main": f"--workloads {words}"}
        named = MACROS.get(name.lower()) or [parse_run({"main": name}, typed).main]
        names.update(dict.fromkeys(named))

    return list(names)


def _build(names: list[str], asked: Mapping[str, Any], as_json: bool) -> int:
    from scheduler import build as building
    from scheduler.clock import Clock
    from scheduler.report import engines
    from workloads.engine_cache import EngineCache

    wanted = building.jobs([plan for name in names for plan in _plans(name, names, asked)])
    console = console_of(stderr=as_json)
    engines.show_jobs(wanted, EngineCache.of_user(), console)
    outcomes = building.build(wanted, Clock.start(), lambda outcome: engines.show_outcome(outcome, console))
    if as_json:
        click.echo(json.dumps([engines.outcome_as_json(one) for one in outcomes], indent=2))

    failed = [one for one in outcomes if one.failure]
    return 0 if not failed else 2 if all(one.asked_wrongly for one in failed) else 3


def _plans(name: str, names: list[str], asked: Mapping[str, Any]) -> list["Plan"]:
    """The workload alone on each slice asked for."""
    from scheduler import assignment, selection
    from scheduler.spec import loadgen_round, presets

    sizes = tuple(
        item for item in asked["batch_size"] if "=" not in item or item.partition("=")[0] in (name,)
    )
    strangers = [item for item in asked["batch_size"] if "=" in item and item.partition("=")[0] not in names]
    if strangers:
        raise click.UsageError(f"--batch-size {strangers[0]}: built are {', '.join(names)}")

    spec = spec_of({**asked, "main": name, "batch_size": sizes})
    slices = selection.slices_on(read_machine(), spec.slices, 1)
    return [assignment.assign(spec, [one], presets(), loadgen_round(spec.round)) for one in slices]


def _list(cache: "EngineCache", as_json: bool) -> None:
    from scheduler.report import engines

    kept = cache.kept()
    if as_json:
        click.echo(json.dumps([asdict(one) for one in kept], indent=2))
    else:
        engines.show_kept(kept, cache, console_of())


def _clear(cache: "EngineCache", names: list[str] | None) -> None:
    chosen = [
        one for one in cache.kept() if names is None or (one.engine and one.engine.facts["workload"] in names)
    ]
    removed = [one.key for one in chosen if cache.remove(one.key)]
    click.echo(f"removed {len(removed)} of {len(chosen)} from {cache.root}")
    for one in chosen:
        if one.key not in removed:
            click.echo(f"in use, and kept: {one.key}")
