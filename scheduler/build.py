"""Engines prepared ahead of runs: each workload once for each kind of slice, as many at a time as there are slices."""

import fcntl
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scheduler import run
from scheduler.assignment import Assignment, Plan
from scheduler.clock import Clock
from scheduler.errors import SpecError, Stopped
from scheduler.events import Exited, Failed, Launch, Ready, StopRequested
from scheduler.record import RunFolder
from scheduler.supervisor import Supervisor
from scheduler.worker import Task
from workloads import catalog

FOLDERS = "hetero-mig-build-"
"""What folders of jobs begin with, in the folder for temporary files."""
NO_STALLS_S = 1e9
"""Nothing is issued here that could stall."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One workload to be made ready on one slice, for all of its kind."""

    name: str
    plan: Plan

    @property
    def one(self) -> Assignment:
        return self.plan.main


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job."""

    job: Job
    engine: dict[str, Any]
    """As the worker told it: how, key, batch_sizes, took_s, refusal where it is not kept; empty where there is none."""
    failure: str = ""
    asked_wrongly: bool = False


Told = Callable[[Outcome], None]


def jobs(plans: Sequence[Plan]) -> list[Job]:
    """One job for all plans whose engine is the same, spread over their slices.

    Args:
        plans: each of one workload on one slice, alone.

    Raises:
        SpecError: a workload of which nothing is compiled as asked.
    """
    alike: dict[object, list[Plan]] = {}
    for plan in plans:
        one = plan.main
        _compiles_something(one)
        kind = (one.slice.kind, one.slice.name if one.slice.kind != "cpu" else "", one.slice.sms)
        alike.setdefault((one.workload, one.options, kind), []).append(plan)

    jobs_on: Counter[str] = Counter()
    chosen: list[Job] = []
    for same in alike.values():
        plan = min(same, key=lambda plan: jobs_on[plan.main.slice.id])
        jobs_on[plan.main.slice.id] += 1
        chosen.append(Job(name=f"build-{len(chosen) + 1}", plan=plan))

    return chosen


def build(wanted: Sequence[Job], clock: Clock, told: Told) -> list[Outcome]:
    """Carry out the jobs, each in a process on its slice; a failure of one does not end the others.

    Raises:
        Stopped: a stop signal arrived; what was half built is nobody's, and removed later.
    """
    with folder_of_jobs() as folder:
        tasks = {job.name: _task(job, folder, clock) for job in wanted}
        with Supervisor(tasks, clock, NO_STALLS_S) as workers:
            return _all_of(wanted, workers, told)


@contextmanager
def folder_of_jobs() -> Iterator[Path]:
    """For what the jobs' processes leave, while they run. What builders left that were killed goes with it."""
    for left in Path(tempfile.gettempdir()).glob(f"{FOLDERS}*"):
        with suppress(OSError), _alone_in(left, fcntl.LOCK_EX | fcntl.LOCK_NB):  # else it is in use
            is_filled = any(left.iterdir())  # an empty one may be about to be locked
            if is_filled and left.stat().st_uid == os.getuid():
                shutil.rmtree(left, ignore_errors=True)

    with tempfile.TemporaryDirectory(prefix=FOLDERS) as folder, _alone_in(Path(folder), fcntl.LOCK_EX):
        yield Path(folder)


@contextmanager
def _alone_in(folder: Path, operation: int) -> Iterator[None]:
    """With the folder's lock; OSError where another process has it, or it is no folder."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, operation)
        yield
    finally:
        os.close(lock)


def _all_of(wanted: Sequence[Job], workers: Supervisor, told: Told) -> list[Outcome]:
    waiting, running = list(wanted), dict[str, Job]()
    outcomes: dict[str, Outcome] = {}
    while waiting or running:
        for job in list(waiting):
            if job.one.slice.id not in {other.one.slice.id for other in running.values()}:
                waiting.remove(job)
                running[job.name] = job
                workers.perform(Launch(job.name))

        event = workers.next_event(None)
        if isinstance(event, StopRequested):
            raise Stopped(signal.Signals[event.reason])

        if isinstance(event, Ready | Failed | Exited):  # the first of them tells how it went
            outcomes.setdefault(event.name, _outcome(running[event.name], event))

        if isinstance(event, Exited):
            del running[event.name]
            told(outcomes[event.name])

    return [outcomes[job.name] for job in wanted]


def _outcome(job: Job, event: Ready | Failed | Exited) -> Outcome:
    match event:
        case Ready(_, _, facts):
            refusal = facts["engine"].get("refusal")
            return Outcome(job=job, engine=facts["engine"], failure=f"not kept: {refusal}" if refusal else "")
        case Failed(_, _, kind, message):
            return Outcome(job=job, engine={}, failure=message, asked_wrongly=kind == "spec")
        case Exited(_, _, code):
            return Outcome(job=job, engine={}, failure=f"its process ended with exit code {code}")


def _task(job: Job, folder: Path, clock: Clock) -> Task:
    [task] = run.tasks(job.plan, RunFolder.create(folder / job.name), clock).values()
    return replace(task, name=job.name, role="build")


def _compiles_something(one: Assignment) -> None:
    known = catalog.entry(one.workload)
    if one.options.device == "cpu" and one.options.engine != "compile":
        raise SpecError(
            asked=f"an engine of {one.workload} on CPU slices, --engine {one.options.engine}",
            found="networks run eagerly there: nothing is compiled that could be kept",
            do="ask for --engine compile",
        )

    if not known.imports or known.trains:
        raise SpecError(
            asked=f"an engine of {one.workload}",
            found="training steps run eagerly, whatever the engine" if known.trains else "it has no network",
            do="leave it out",
        )
