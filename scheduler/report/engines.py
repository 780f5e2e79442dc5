"""Engines on a terminal: which are to be built, how that went, which are kept."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from scheduler.build import Job, Outcome
from workloads.engine_cache import EngineCache, Kept

MIB = 2**20


def show_jobs(jobs: Sequence[Job], cache: EngineCache, console: Console) -> None:
    """What is about to be built."""
    slices = {job.one.slice.id for job in jobs}
    console.print(
        f"{len(jobs)} to prepare on {len(slices)} slice{'s' * (len(slices) != 1)}, kept in {cache.root}",
        highlight=False,
        soft_wrap=True,
    )


def show_outcome(outcome: Outcome, console: Console) -> None:
    """How one went, once it has."""
    one = outcome.job.one
    options = one.options
    what = f"{one.workload} {options.size} {options.precision} {options.engine} ≤{options.batch_size} on {one.slice.id}"
    if outcome.failure:
        console.print(f"  {what}: FAILED: {outcome.failure}", highlight=False, markup=False, soft_wrap=True)
        return

    engine = outcome.engine
    sizes = ", ".join(str(size) for size in engine["batch_sizes"]) or "none"
    how = "was warm" if engine["how"] == "warm" else engine["how"]
    console.print(
        f"  {what}: {how}, ready in {engine['took_s']:.1f} s; batches of {sizes}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def outcome_as_json(outcome: Outcome) -> dict[str, Any]:
    """One outcome as ``build --json`` lists it."""
    one = outcome.job.one
    options = one.options
    return {
        "workload": one.workload,
        "slice": one.slice.id,
        "size": options.size,
        "precision": options.precision,
        "engine": options.engine,
        "batch_size": options.batch_size,
        "failure": outcome.failure or None,
        **({} if outcome.failure else {"built": outcome.engine}),
    }


def show_kept(kept: Sequence[Kept], cache: EngineCache, console: Console) -> None:
    """All entries, the last used first."""
    table = Table(box=None, pad_edge=False)
    for column in ("workload", "made for", "batches", "device"):
        table.add_column(column)

    for column in ("built in", "MiB", "last used"):
        table.add_column(column, justify="right", no_wrap=True)

    for one in kept:
        used = f"{datetime.fromtimestamp(one.used_s, UTC):%Y-%m-%d %H:%M}" if one.used_s else ""
        used = "in use" if one.in_use else used
        mib = f"{one.size_bytes / MIB:.1f}"
        if one.engine is None:
            state = "being built" if one.in_use else "half-written"
            table.add_row(one.key.rpartition("-")[0], state, "", "", "", mib, used)
            continue

        facts = one.engine.facts
        units = f"{facts['sms']} SMs" if "sms" in facts else f"threads: {facts['threads']}"
        table.add_row(
            str(facts["workload"]),
            f"{facts['size']} {facts['precision']} {facts['engine']} ≤{facts['batch_size']}",
            " ".join(str(size) for size in one.engine.batch_sizes),
            f"{str(facts['device']).partition(' flags')[0]}, {units}",
            f"{one.engine.build_s:.1f} s",
            mib,
            used,
        )

    if kept:
        console.print(table)

    total = sum(one.size_bytes for one in kept) / MIB
    console.print(
        f"{len(kept)} kept, {total:.1f} MiB of at most {cache.max_bytes / MIB:,.0f} MiB, in {cache.root}",
        highlight=False,
        soft_wrap=True,
    )
