"""One run: pin, start the background, wait, measure main, end the background, judge."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from scheduler import lifecycle, telemetry
from scheduler.assignment import Assignment, Plan, plan_as_json, settings_as_json
from scheduler.clock import Clock
from scheduler.events import Action, Event, NextMain, NoMoreMains
from scheduler.judging import judge
from scheduler.record import RunFolder
from scheduler.result import BenchmarkRecord, ClockZero, Manifest, Result
from scheduler.slices import GpuSlice, MigSlice, Slice
from scheduler.spec import RunSpec
from scheduler.supervisor import Supervisor
from scheduler.turns import Watched
from scheduler.worker import Task
from workloads import catalog

Watch = Callable[[Event | Action, lifecycle.Run], None]
"""Told of every event and action once it is handled, with the state then; for showing, never for deciding."""

WhatFollows = Callable[[Supervisor], NextMain | NoMoreMains]
"""Asked when a main of several is gone; it lets the supervisor know the next one's task."""


def run(
    plan: Plan, spec: RunSpec, about: Mapping[str, Any], clock: Clock, folder: RunFolder, watch: Watch
) -> Result:
    """Carry out one run and write its verdict.

    Args:
        plan: which benchmark on which slice, and the waits.
        spec: what was asked; kept in the manifest.
        about: ``host`` and ``gpus``, as described when the plan was made.
        clock: its zero is the run's.
        folder: new and empty.
        watch: shown each event and action.
    """
    carry_out(plan, spec, about, clock, folder, watch)
    result = judge(folder)
    folder.write_result(result.model_dump(mode="json"))
    return result


def carry_out(
    plan: Plan,
    spec: RunSpec,
    about: Mapping[str, Any],
    clock: Clock,
    folder: RunFolder,
    watch: Watch,
    what_follows: WhatFollows | None = None,
) -> None:
    """Run what is planned, and leave everything that judging needs in the folder.

    Args:
        what_follows: where the plan's main is the first of several, who decides on the others.
    """
    more_mains = what_follows is not None
    planned = manifest(plan, spec, about, clock, more_mains=more_mains)
    folder.write_manifest(planned.model_dump(mode="json"))
    with ExitStack() as until_the_end:
        until_the_end.enter_context(telemetry.processes_noted(folder, gpus_to_be_idle(plan)))
        workers = until_the_end.enter_context(
            Supervisor(tasks(plan, folder, clock), clock, plan.windows.stall_after_s, more_mains=more_mains)
        )
        watched = Watched(slices=slices_of(plan), idle_cores=cores_to_be_idle(plan))
        until_the_end.enter_context(
            telemetry.recording(folder, clock, watched, workers.living, spec.telemetry, spec.dcgm)
        )
        story = lifecycle.Run(
            background=[one.name for one in plan.background],
            mains=[plan.main.name],
            windows=plan.windows,
            on_main_end=spec.on_main_end,
            on_breach=spec.on_breach,
            more_mains=more_mains,
        )
        follow(story, workers, clock, folder, watch, what_follows)


def follow(
    story: lifecycle.Run,
    workers: Supervisor,
    clock: Clock,
    folder: RunFolder,
    watch: Watch,
    what_follows: WhatFollows | None = None,
) -> None:
    """Perform, listen, record, decide, until nothing lives. The only loop of a run.

    Before ``what_follows`` is asked, whatever happened while the last main ran is taken in.
    """
    actions = story.begin(clock.now())
    while True:
        for action in actions:
            folder.append(action, clock.now())
            workers.perform(action)
            watch(action, story)

        if story.phase is lifecycle.Phase.OVER:
            return

        if what_follows is not None and story.asks_for_the_next_main and not workers.has_news():
            event: Event = what_follows(workers)
        else:
            event = workers.next_event(until=story.deadline)

        folder.append(event, clock.now())
        actions = story.handle(event)
        watch(event, story)


def manifest(
    plan: Plan, spec: RunSpec, about: Mapping[str, Any], clock: Clock, *, more_mains: bool = False
) -> Manifest:
    """What ``manifest.json`` holds."""
    as_json = plan_as_json(plan)
    return Manifest(
        kind="hetero" if plan.background else "baseline",
        started_utc=clock.zero_utc,
        clock_zero=ClockZero(monotonic_ns=clock.zero_ns, utc=clock.zero_utc),
        preset=plan.preset,
        comparable_to_mlperf=plan.comparable_to_mlperf,
        on_main_end=spec.on_main_end,
        on_breach=spec.on_breach,
        windows=plan.windows.model_dump(),
        accuracy=plan.accuracy,
        main=benchmark_record(plan.main),
        first_main=plan.main.name if more_mains else None,
        background=[benchmark_record(one) for one in plan.background],
        slices=as_json["slices"],
        idle=[one.id for one in plan.idle],
        notes=list(plan.notes),
        spec=spec.model_dump(mode="json"),
        host=about["host"],
        gpus=about["gpus"],
    )


def tasks(plan: Plan, folder: RunFolder, clock: Clock) -> dict[str, Task]:
    """What each worker is told, by benchmark name; their folders are made."""
    compared = 0 if plan.accuracy is None else plan.accuracy.fidelity_samples
    return {one.name: task_of(one, folder.benchmark(one.name), clock, compared) for one in plan.all}


def task_of(one: Assignment, folder: Path, clock: Clock, fidelity_samples: int = 0) -> Task:
    """What the worker of a benchmark is told."""
    entry = catalog.entry(one.workload)
    return Task(
        name=one.name,
        role=one.role,
        workload=one.workload,
        code=entry.code,
        shape=entry.sizes[one.options.size],
        trains=entry.trains,
        imports=entry.imports,
        slice=one.slice,
        options=one.options,
        settings=one.settings,
        duration_s=one.duration_s,
        fidelity_samples=fidelity_samples,
        folder=folder,
        clock=clock,
    )


def slices_of(plan: Plan) -> list[Slice]:
    """Every slice of the plan: those with a benchmark, then those left idle."""
    return [*(assigned.slice for assigned in plan.all), *plan.idle]


def gpus_of(plan: Plan) -> list[str]:
    """UUIDs of the GPUs that the plan's slices are on, each once."""
    uuids: dict[str, None] = {}
    for one in slices_of(plan):
        if isinstance(one, GpuSlice):
            uuids[one.uuid] = None
        elif isinstance(one, MigSlice):
            uuids[one.gpu_uuid] = None

    return list(uuids)


def gpus_to_be_idle(plan: Plan) -> list[str]:
    """UUIDs of the GPUs on which nothing is to compute before main starts and after it has ended."""
    main = plan.main.slice
    return [] if plan.background else [uuid for uuid in gpus_of(plan) if uuid != main.uuid]


def cores_to_be_idle(plan: Plan) -> list[int]:
    """Cores of the CPU slices that are to be idle, without those that main computes on."""
    cores = {core for one in plan.idle if one.kind == "cpu" for core in one.cores}
    return sorted(cores - set(plan.main.slice.cores))


def benchmark_record(one: Assignment) -> BenchmarkRecord:
    """A benchmark as planned."""
    return BenchmarkRecord(
        name=one.name,
        role=one.role,
        workload=one.workload,
        slice=one.slice.id,
        size=one.options.size,
        precision=one.options.precision,
        batch_size=one.options.batch_size,
        scenario=one.settings.scenario,
        settings=settings_as_json(one.settings),
        duration_s=one.duration_s,
        data=None if one.options.data is None else str(one.options.data),
        weights=None if one.options.weights is None else str(one.options.weights),
    )
