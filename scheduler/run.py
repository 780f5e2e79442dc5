"""One run: pin, start the background, wait, measure main, end the background, judge."""

import signal
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from typing import Any

from pydantic import ValidationError

from scheduler import events, lifecycle, telemetry, verdict
from scheduler.assignment import Assignment, Plan, plan_as_json
from scheduler.clock import Clock
from scheduler.errors import FolderDamaged, LogError
from scheduler.events import Action, Event
from scheduler.loadgen_log import LoadgenResult, parse
from scheduler.record import RunFolder
from scheduler.result import SCHEMA_VERSION, BenchmarkRecord, ClockZero, Manifest, QualityRecord, Result
from scheduler.slices import GpuSlice, MigSlice
from scheduler.spec import RunSpec
from scheduler.supervisor import Supervisor
from scheduler.verdict import Evidence
from scheduler.worker import Task
from workloads import catalog
from workloads.progress import read_history, read_mark, work_in_window

Watch = Callable[[Event | Action, lifecycle.Run], None]
"""Told of every event and action once it is handled, with the state then; for showing, never for deciding."""


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
    folder.write_manifest(manifest(plan, spec, about, clock).model_dump(mode="json"))
    with ExitStack() as until_the_end:
        until_the_end.enter_context(telemetry.recording(folder, clock, gpus_of(plan)))
        workers = until_the_end.enter_context(
            Supervisor(tasks(plan, folder, clock), clock, plan.windows.stall_after_s)
        )
        story = lifecycle.Run(
            background=[one.name for one in plan.background],
            mains=[plan.main.name],
            windows=plan.windows,
            on_main_end=spec.on_main_end,
            on_breach=spec.on_breach,
        )
        follow(story, workers, clock, folder, watch)

    result = judge(folder)
    folder.write_result(result.model_dump(mode="json"))
    return result


def follow(story: lifecycle.Run, workers: Supervisor, clock: Clock, folder: RunFolder, watch: Watch) -> None:
    """Perform, listen, record, decide, until nothing lives. The only loop of a run."""
    actions = story.begin(clock.now())
    while True:
        for action in actions:
            folder.append(action, clock.now())
            workers.perform(action)
            watch(action, story)

        if story.phase is lifecycle.Phase.OVER:
            return

        event = workers.next_event(until=story.deadline)
        folder.append(event, clock.now())
        actions = story.handle(event)
        watch(event, story)


def judge(folder: RunFolder) -> Result:
    """The verdict on the run in ``folder``, from the folder alone.

    Raises:
        FolderDamaged: there is no manifest, or it cannot be read.
    """
    planned = read_manifest(folder)
    story = folder.story()
    clock = Clock(planned.clock_zero.monotonic_ns, planned.clock_zero.utc)
    window = verdict.main_window(planned, story)
    evidence = {planned.main.name: _main_evidence(folder, planned)}
    for one in planned.background:
        evidence[one.name] = _background_evidence(folder, one.name, clock, window)

    return verdict.judge(planned, story, evidence)


def read_manifest(folder: RunFolder) -> Manifest:
    """What was asked and decided in ``folder``.

    Raises:
        FolderDamaged: there is no manifest, or it is not one of this version.
    """
    found = folder.manifest()
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FolderDamaged(
            asked=f"the manifest of {folder.path}",
            found=f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']} (this program reads schema version "
            f"{SCHEMA_VERSION})",
            do="judge it with the version of hetero-mig that wrote it, or name another folder",
        ) from None


def manifest(plan: Plan, spec: RunSpec, about: Mapping[str, Any], clock: Clock) -> Manifest:
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
        main=_benchmark_record(plan.main),
        background=[_benchmark_record(one) for one in plan.background],
        slices=as_json["slices"],
        idle=[one.id for one in plan.idle],
        notes=list(plan.notes),
        spec=spec.model_dump(mode="json"),
        host=about["host"],
        gpus=about["gpus"],
    )


def tasks(plan: Plan, folder: RunFolder, clock: Clock) -> dict[str, Task]:
    """What each worker is told, by benchmark name; their folders are made."""
    return {
        one.name: Task(
            name=one.name,
            role=one.role,
            workload=one.workload,
            code=catalog.entry(one.workload).code,
            imports=catalog.entry(one.workload).imports,
            slice=one.slice,
            options=one.options,
            settings=one.settings,
            duration_s=one.duration_s,
            fidelity_samples=0 if plan.accuracy is None else plan.accuracy.fidelity_samples,
            folder=folder.benchmark(one.name),
            clock=clock,
        )
        for one in plan.all
    }


def exit_code(result: Result, folder: RunFolder) -> int:
    """What the program ends with: 0 VALID, 1 INVALID, 2 asked wrongly, 3 could not run, 128 + a stop signal."""
    if result.verdict == "VALID":
        return 0

    for _at, what in folder.story():
        if isinstance(what, events.StopRequested):
            return 128 + signal.Signals[what.reason]

        if isinstance(what, events.Failed):
            return 2 if what.kind == "spec" else 3

    return 1


def differences(recorded: object, judged: object, path: str = "") -> list[str]:
    """Where a ``result.json`` differs from what its folder says, as ``main.metric.value``."""
    if isinstance(recorded, dict) and isinstance(judged, dict):
        pairs = [(f"{path}.{key}", recorded.get(key), judged.get(key)) for key in {**recorded, **judged}]
    elif isinstance(recorded, list) and isinstance(judged, list) and len(recorded) == len(judged):
        pairs = [(f"{path}.{at}", *both) for at, both in enumerate(zip(recorded, judged, strict=True))]
    else:
        return [] if recorded == judged else [path.removeprefix(".")]

    return [found for where, one, other in pairs for found in differences(one, other, where)]


def gpus_of(plan: Plan) -> list[str]:
    """UUIDs of the GPUs that the plan's slices are on, each once."""
    uuids: dict[str, None] = {}
    for one in (*(assigned.slice for assigned in plan.all), *plan.idle):
        if isinstance(one, GpuSlice):
            uuids[one.uuid] = None
        elif isinstance(one, MigSlice):
            uuids[one.gpu_uuid] = None

    return list(uuids)


def _benchmark_record(one: Assignment) -> BenchmarkRecord:
    return BenchmarkRecord(
        name=one.name,
        role=one.role,
        workload=one.workload,
        slice=one.slice.id,
        size=one.options.size,
        precision=one.options.precision,
        batch_size=one.options.batch_size,
        scenario=one.settings.scenario,
        settings=asdict(one.settings),
        duration_s=one.duration_s,
        data=None if one.options.data is None else str(one.options.data),
        weights=None if one.options.weights is None else str(one.options.weights),
    )


def _main_evidence(folder: RunFolder, planned: Manifest) -> Evidence:
    name = planned.main.name
    log, problem = _log(folder, name, "loadgen")
    evidence = Evidence(log=log, log_problem=problem, mark=read_mark(folder.path / name))
    if planned.accuracy is None:
        return evidence

    quality, problem = _quality(folder, name)
    return replace(evidence, quality=quality, quality_problem=problem)


def _quality(folder: RunFolder, name: str) -> tuple[QualityRecord | None, str]:
    """The worker's figures, as long as they are of the answers that are in the folder."""
    try:
        found = QualityRecord.model_validate(folder.quality(name))
    except FolderDamaged as error:
        return None, f"quality.json: {error.found}"
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        return None, f"quality.json, {'.'.join(map(str, first['loc']))}: {first['msg']}"

    if folder.answers_sha256(name) != found.answers_sha256:
        return None, "LoadGen's accuracy log is not the one that quality.json was computed from"

    return found, ""


def _background_evidence(
    folder: RunFolder, name: str, clock: Clock, window: tuple[float, float] | None
) -> Evidence:
    here = folder.path / name
    mark = read_mark(here)
    work = None
    if window is not None and mark is not None:
        begin_ns, end_ns = (int(edge * 1e9) + clock.zero_ns for edge in window)
        work = work_in_window(read_history(here), begin_ns, end_ns, mark.batch_begin_ns)

    logs = (_log(folder, name, test)[0] for test in reversed(_tests(folder, name)))
    return Evidence(
        log=next((log for log in logs if log is not None), None),
        tests=0 if mark is None else mark.tests_completed,
        mark=mark,
        last_completion_s=clock.at(mark.last_completion_ns) if mark and mark.samples_completed else None,
        in_main_window=work,
    )


def _tests(folder: RunFolder, name: str) -> list[str]:
    """The background's tests, oldest first."""
    here = folder.path / name / "loadgen"
    numbers = sorted(int(test.name.removeprefix("test-")) for test in here.glob("test-*"))
    return [f"loadgen/test-{number:04d}" for number in numbers]


def _log(folder: RunFolder, name: str, test: str) -> tuple[LoadgenResult | None, str]:
    try:
        return parse(folder.log_lines(name, test)), ""
    except LogError as error:
        return None, error.found
