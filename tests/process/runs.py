"""Whole runs in this process, on CPU slices, with workers that may be faulty."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scheduler import lifecycle, run
from scheduler.assignment import Plan, assign, benchmark_count
from scheduler.clock import Clock
from scheduler.events import Action, Event
from scheduler.record import RunFolder
from scheduler.result import Result
from scheduler.selection import slices_on
from scheduler.slices import Machine
from scheduler.spec import RunSpec, loadgen_round, parse_run, presets
from workloads import catalog
from workloads.catalog import ALL_SCENARIOS, Entry

FAULTS = (
    *("exits-0-in-load", "killed-in-load", "hangs-in-load", "refuses", "raises-in-load", "out-of-memory"),
    *("exits-0", "exits-1", "aborts", "killed", "raises", "stalls", "ignores-every-request", "floods"),
    *("leaves-a-grandchild", "leaves-a-grandchild-in-its-own-session"),
)
QUICK = {
    "preset": "quick",
    "main_duration": "300ms",
    "start_buffer": "50ms",
    "end_buffer": "50ms",
    "stop_grace": "1s",
    "start_timeout": "20s",
}


def entry(fault: str) -> Entry:
    """The catalogue entry of a faulty workload."""
    return Entry(
        name=f"faulty-{fault}",
        scenarios=ALL_SCENARIOS,
        code="tests.process.faulty:Faulty",
        task="goes wrong",
        sizes={"full": "", "small": ""},
        parameters={"full": 0, "small": 0},
        flops_per_sample={"full": 0, "small": 0},
        batch_size={("cpu", "full"): 1, ("cpu", "small"): 1},
    )


@contextmanager
def faulty_workloads() -> Iterator[None]:
    """Have the faulty workloads in the catalogue."""
    added = {f"faulty-{fault}": entry(fault) for fault in FAULTS}
    catalog.CATALOG.update(added)
    try:
        yield
    finally:
        for name in added:
            del catalog.CATALOG[name]


def planned(**asked: Any) -> tuple[RunSpec, Plan]:
    """The plan of a quick run on the first two cores of this machine."""
    spec = parse_run({"main": "null", **QUICK, **asked})
    machine = Machine(cores=(0, 1), memory_mib=4096)
    settings = loadgen_round()
    faulty = {name: settings.workloads["null"] for name in catalog.CATALOG if name.startswith("faulty-")}
    settings = settings.model_copy(update={"workloads": {**settings.workloads, **faulty}})
    slices = slices_on(machine, "cpu", benchmark_count(spec))
    return spec, assign(spec, slices, presets(), settings)


def carry_out(
    folder: Path, watch: Callable[[Event | Action, lifecycle.Run], None] = lambda *_: None, **asked: Any
) -> tuple[Result, RunFolder]:
    """One run, from plan to verdict."""
    spec, plan = planned(**asked)
    recorded = RunFolder.create(folder)
    result = run.run(plan, spec, {"host": {}, "gpus": {}}, Clock.start(), recorded, watch)
    return result, recorded


def codes(result: Result) -> list[str]:
    """The breaches found."""
    return [finding.code for finding in result.findings if finding.severity == "breach"]
