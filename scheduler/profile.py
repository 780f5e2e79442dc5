"""A profile: workloads over batch sizes, sequence lengths, loads and slices, one cell after another, into one table.

A series (series.py): ``runs/<step>/`` for each step, with events, telemetry and each cell's latencies; the rows of all
of them in ``result.json`` at the end. Killed at any cell, the same command goes on with the one it was at.
"""

import json
import signal
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pydantic import ValidationError

from scheduler import assignment, inspection, judging, profile_row, run, selection, sweep, telemetry
from scheduler.assignment import Assignment, slice_as_json
from scheduler.clock import Clock
from scheduler.errors import FolderDamaged, SeriesCutShort, SpecError
from scheduler.events import Event, Exited, Failed, Finished, Stop
from scheduler.profile_row import Row, Seen, latency_ms, row_of
from scheduler.record import RunFolder, is_series
from scheduler.series import Series
from scheduler.slices import Machine, MigSlice, Slice
from scheduler.spec import RunSpec, loadgen_round, presets
from scheduler.supervisor import Supervisor
from scheduler.sweep import Attempt, Begin, Cell, Grid, Outcome, Step
from scheduler.turns import Watched
from scheduler.worker import Task
from workloads import catalog

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

SCHEMA_VERSION = 1
STEP = "profile-step"
"""The kind of the manifest in a step's folder."""
LATENCIES_FILE = "latencies.npy"
"""As workloads/load_loop.py writes it."""
LOAD_WITHIN_S = 900.0
"""For a model to load, be captured or compiled, beside its warm-up."""
STALL_AFTER_S = 60.0
TORCH_FIGURES = ("torch_allocated_peak_mib", "torch_reserved_peak_mib", "device_memory_used_mib")


class Watch(Protocol):
    """Shown each step; never asked."""

    def goes_on(self, done: int, of: int) -> None:
        """So many steps are in the folder already."""

    def begins(self, step: Step, folder: RunFolder, clock: Clock) -> None:
        """This step begins."""

    def happened(self, event: Event) -> None:
        """In the step that goes on."""

    def ended(self, rows: Sequence[Row]) -> None:
        """It is over."""


class Sampled(NamedTuple):
    """How telemetry is taken."""

    rate_hz: float
    dcgm_url: str | None


def check(specs: Sequence[RunSpec], grid: Grid) -> None:
    """Whether these workloads can be taken through the grid.

    Raises:
        SpecError: no workload has samples of that length.
    """
    longest = {spec.main: catalog.entry(spec.main).longest_sequence for spec in specs}
    if grid.sequence_lengths and not any(longest.values()):
        raise SpecError(
            asked=f"--sequence-lengths for {', '.join(longest)}",
            found="none of these can choose the length of its samples",
            do="leave it out, or name one that can: bert-base, distilbert, minilm, mpnet",
        )

    for name, limit in longest.items():
        if limit is not None and max(grid.sequence_lengths, default=0) > limit:
            raise SpecError(
                asked=f"--sequence-lengths {max(grid.sequence_lengths)} for {name}",
                found=f"it has {limit} positions",
                do=f"ask for at most {limit}",
            )


def slices_for(specs: Sequence[RunSpec], machine: Machine) -> tuple[Slice, ...]:
    """The slices that ``--slices`` asks for; of CPU cores one, unless it says how many.

    Raises:
        SpecError, SliceError, GpuError: there are none such.
    """
    return selection.slices_on(machine, specs[0].slices, 1)


def planned(
    specs: Sequence[RunSpec], slices: Sequence[Slice], grid: Grid, *, together: bool, layout: str = ""
) -> list[Step]:
    """Every step of the profile of these workloads (each ``spec``'s main) on these slices.

    Raises:
        SpecError: that cannot be done on them.
    """
    if together and len(slices) == 1:
        raise SpecError(
            asked="--together",
            found=f"one slice, {slices[0].id}",
            do="leave it out, or name more slices: --slices cpu:2, or a MIG layout",
        )

    if grid.memory_limit_mib is not None and any(one.kind != "cpu" for one in slices):
        raise SpecError(
            asked="--memory-limit on a GPU",
            found="a slice of a GPU has the memory that it has",
            do="leave it out, or measure on --slices cpu",
        )

    for spec in specs:
        inspection.check_data(assignment.assign(spec, slices[:1], presets(), loadgen_round()))

    on_slices = [[_alone(spec, one) for one in slices] for spec in specs]
    lengths = {spec.main: catalog.entry(spec.main).longest_sequence for spec in specs}
    return list(sweep.steps(on_slices, grid, together=together, takes_lengths=lengths, layout=layout))


def carry_out(
    steps: Sequence[Step],
    about: Mapping[str, Any],
    series: Series,
    clock: Clock,
    watch: Watch,
    sampled: Sampled,
) -> list[Row]:
    """The rows of all steps: as they are in the folder, or measured now.

    Raises:
        SeriesCutShort: a stop signal; the same command goes on from here.
    """
    rows = {step.key: _finished(series, step.key) for step in steps}
    due = [step for step in steps if rows[step.key] is None]
    watch.goes_on(len(steps) - len(due), len(steps))
    tasks = {
        cell.assignment.name: _task(cell, _folder(series, step.key), clock)
        for step in due
        for cell in step.cells
    }
    with ExitStack() as until_the_end:
        if due:
            workers = until_the_end.enter_context(Supervisor(tasks, clock, STALL_AFTER_S))

        for step in due:
            rows[step.key] = _measured(step, about, series, workers, clock, watch, sampled)

    return [row for step in steps for row in rows[step.key] or ()]


def _task(cell: Cell, folder: Path, clock: Clock) -> Task:
    one = cell.assignment
    task = run.task_of(one, folder / one.name, clock)
    length = one.options.sequence_length
    shape = task.shape if length is None else f"{task.shape}; {length} tokens a sample"
    return replace(task, load=cell.load, shape=shape)


def _measured(
    step: Step,
    about: Mapping[str, Any],
    series: Series,
    workers: Supervisor,
    clock: Clock,
    watch: Watch,
    sampled: Sampled,
) -> list[Row]:
    """One step: launched, warmed up, measured, written down."""
    folder = series.new_run(step.key)
    folder.write_manifest(_manifest(step, about, clock))
    for name in step.names:
        folder.benchmark(name)

    watch.begins(step, folder, clock)
    watched = Watched(slices=[cell.assignment.slice for cell in step.cells])
    with telemetry.recording(folder, clock, watched, workers.living, *sampled):
        attempt = _follow(step, workers, clock, folder, watch.happened)

    if attempt.stop_reason:
        code = 128 + signal.Signals[attempt.stop_reason]
        raise SeriesCutShort(code, step.key, [f"stopped by {attempt.stop_reason}"], series.path)

    rows = _rows_of(step, attempt, folder, clock)
    folder.write_result({"schema_version": SCHEMA_VERSION, "rows": [row.model_dump() for row in rows]})
    watch.ended(rows)
    return rows


def _follow(
    step: Step, workers: Supervisor, clock: Clock, folder: RunFolder, happened: Callable[[Event], None]
) -> Attempt:
    """Perform, listen, record, decide, until nothing of the step lives."""
    attempt = Attempt(step.names, LOAD_WITHIN_S + step.cells[0].load.longest_warm_up_s)
    actions = attempt.begin(clock.now())
    while True:
        for action in actions:
            if isinstance(action, Begin):
                workers.begin(action.name)
            else:
                folder.append(action, clock.now())
                workers.perform(action)

        if attempt.over:
            return attempt

        event = workers.next_event(until=attempt.deadline)
        folder.append(event, clock.now())
        happened(event)
        actions = attempt.handle(event)


# ---------------------------------------------------------------- what was measured


def _rows_of(step: Step, attempt: Attempt, folder: RunFolder, clock: Clock) -> list[Row]:
    on = {cell.assignment.name: cell.assignment.slice for cell in step.cells}
    where = {name: (one.id, _gpu_of(one)) for name, one in on.items()}
    found = _all_figures(where, attempt.outcomes, folder, clock)
    return [
        row_of(cell, attempt.outcomes[name], len(step.cells), found[name])
        for cell, name in zip(step.cells, step.names, strict=True)
    ]


def _all_figures(
    where: Mapping[str, tuple[str, str | None]],
    outcomes: Mapping[str, Outcome],
    folder: RunFolder,
    clock: Clock,
) -> dict[str, dict[str, Any]]:
    """The figures of each cell of a step, by field of Row; ``where``: its slice's id, and its GPU's UUID."""
    lines, unavailable = folder.lines("telemetry.jsonl"), _unavailable(folder)
    measured = {name: figures(folder.path / name, one, clock) for name, one in outcomes.items()}
    samples_on: Counter[str | None] = Counter()
    for name, (_, gpu) in where.items():
        samples_on[gpu] += int(measured[name].get("samples", 0))

    for name, (slice_id, gpu) in where.items():
        found = measured[name]
        if found:
            window = float(found["begin_s"]), float(found["end_s"])
            seen = Seen(lines, unavailable, window, slice_id, gpu)
            found |= seen.figures(samples_on[gpu])
            found["unavailable"] = {**_of_torch(found), **seen.why()}

    return measured


def figures(folder: Path, outcome: Outcome, clock: Clock) -> dict[str, Any]:
    """The figures of one cell, by field of Row, from its folder and its last event; none where it was not measured."""
    if outcome.finished is None:
        return {}

    facts = outcome.finished.facts
    begin_ns, end_ns = int(facts["begin_ns"]), int(facts["end_ns"])
    samples = facts["answered"] * facts["batch_size"]
    return {
        "begin_s": clock.at(begin_ns),
        "end_s": clock.at(end_ns),
        "warm_up_s": facts["warm_up_s"],
        "warm_up_batches": facts["warm_up_batches"],
        "steady": facts["steady"],
        "requests": facts["answered"],
        "unanswered": facts["unanswered"],
        "samples": samples,
        "samples_per_s": samples * 1e9 / max(1, end_ns - begin_ns),
        **latency_ms(_latencies(folder)),
        **{f"{name}_mib": mib for name, mib in facts["memory"].items()},
    }


def _of_torch(found: Mapping[str, Any]) -> dict[str, str]:
    return {name: "torch computes on no GPU here" for name in TORCH_FIGURES if name not in found}


def _unavailable(folder: RunFolder) -> dict[str, str]:
    """What the telemetry could not ask, and why."""
    try:
        return dict(json.loads((folder.path / "telemetry.json").read_text(encoding="utf-8"))["unavailable"])
    except (OSError, ValueError, KeyError):
        return {}


def _latencies(folder: Path) -> "npt.NDArray[np.int64]":
    import numpy as np

    try:
        found: npt.NDArray[np.int64] = np.load(folder / LATENCIES_FILE)
    except (OSError, ValueError) as error:
        raise FolderDamaged(
            asked=f"{LATENCIES_FILE} of {folder}", found=str(error), do="measure it again in another --output"
        ) from error

    return found


# ---------------------------------------------------------------- what is kept


def latencies(folder: Path, row: Row) -> "npt.NDArray[np.int64]":
    """Every request of a cell of the profile in ``folder``, ``[requests, 3]`` as workloads/load_loop.py writes it.

    Raises:
        FolderDamaged: they are not there.
    """
    runs = folder / "runs"
    place = runs / row.cell / row.cell
    if row.slices_together > 1:  # and not of an attempt cut short, whose folder ends otherwise
        place = next(runs.glob(f"*-{sweep.TOGETHER}/{row.cell}"), place)

    return _latencies(place)


def read(folder: Path) -> list[Row]:
    """The rows in a profile's folder, of those steps that are finished.

    Raises:
        FolderDamaged: there are none, or they cannot be read.
    """
    found = RunFolder(folder)
    if found.has_result():
        return _rows(found)

    paths = sorted((folder / "runs").glob("*/result.json"), key=lambda path: path.stat().st_mtime_ns)
    if not paths:
        raise FolderDamaged(
            asked=f"the profile in {folder}",
            found="no cell of it is finished",
            do="name the folder of a profile",
        )

    return [row for path in paths for row in _rows(RunFolder(path.parent))]


def steps_in(folder: Path) -> list[RunFolder]:
    """The folders of the steps of a profile that are finished; of a step's folder, that one.

    Raises:
        FolderDamaged: it is of neither, or its manifest cannot be read.
    """
    if is_series(folder):
        return [RunFolder(path.parent) for path in sorted((folder / "runs").glob("*/result.json"))]

    return [RunFolder(folder)] if RunFolder(folder).manifest().get("kind") == STEP else []


def checked(step: RunFolder) -> list[tuple[Row, list[str]]]:
    """Each row of a finished step, and in what it differs from what the step's own record says.

    Raises:
        FolderDamaged: the record cannot be read.
    """
    rows, story = _rows(step), step.story()
    stopped = {what.name for _, what in story if isinstance(what, Stop)}
    try:
        manifest = step.manifest()
        where = {cell["name"]: _where(cell["slice"]) for cell in manifest["cells"]}
        outcomes = {row.cell: Outcome(stopped=row.why if row.cell in stopped else "") for row in rows}
        for _, what in story:
            if isinstance(what, Finished | Failed | Exited):
                sweep.note(outcomes[what.name], what)

        zero = manifest["clock_zero"]
        found = _all_figures(where, outcomes, step, Clock(zero["monotonic_ns"], zero["utc"]))
        again = [profile_row.again(row, outcomes[row.cell], found[row.cell]) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise FolderDamaged(
            asked=f"the record of {step.path}",
            found=f"{type(error).__name__}: {error}",
            do="name the folder of a profile, as it was left",
        ) from error

    both = zip(rows, again, strict=True)
    return [(row, judging.differences(row.model_dump(), one.model_dump())) for row, one in both]


def unlike_its_steps(folder: Path, rows: Sequence[Row]) -> list[str]:
    """Where the whole table differs from these rows of its steps: ``cell.field``; nothing where there is none yet."""
    table = RunFolder(folder)
    if not table.has_result() or not is_series(folder):
        return []

    there, told = ({row.cell: row.model_dump() for row in each} for each in (_rows(table), rows))
    return judging.differences(there, told)


def answer(rows: Sequence[Row], about: Mapping[str, Any]) -> dict[str, Any]:
    """``result.json`` of the whole profile."""
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "profile",
        **about,
        "rows": [row.model_dump() for row in rows],
    }


def _finished(series: Series, key: str) -> list[Row] | None:
    folder = RunFolder(_folder(series, key))
    return _rows(folder) if folder.has_result() else None


def _folder(series: Series, key: str) -> Path:
    return series.path / "runs" / key


def _rows(folder: RunFolder) -> list[Row]:
    try:
        return [Row.model_validate(row) for row in folder.result()["rows"]]
    except (KeyError, TypeError, ValidationError) as error:
        raise FolderDamaged(
            asked=f"the rows in {folder.path}",
            found=str(error).splitlines()[0],
            do="move that folder away: the same command as before measures it again",
        ) from error


def _manifest(step: Step, about: Mapping[str, Any], clock: Clock) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": STEP,
        "started_utc": clock.zero_utc,
        "clock_zero": {"monotonic_ns": clock.zero_ns, "utc": clock.zero_utc},
        "cells": [_cell_as_json(cell) for cell in step.cells],
        **about,
    }


def _cell_as_json(cell: Cell) -> dict[str, Any]:
    one = cell.assignment
    return {
        "name": one.name,
        "workload": one.workload,
        "slice": slice_as_json(one.slice),
        "options": asdict(one.options),
        "load": asdict(cell.load),
        "layout": cell.layout,
    }


def _alone(spec: RunSpec, slice_: Slice) -> Assignment:
    """The workload as main of a run on that slice alone."""
    return assignment.assign(spec, (slice_,), presets(), loadgen_round()).main


def _gpu_of(slice_: Slice) -> str | None:
    return slice_.gpu_uuid if isinstance(slice_, MigSlice) else slice_.uuid


def _where(slice_: Mapping[str, Any]) -> tuple[str, str | None]:
    """Of a slice as it is kept: its id, and the UUID of the GPU that it is of."""
    placement = slice_.get("placement")
    return slice_["id"], slice_["uuid"] if placement is None else placement["gpu_uuid"]
