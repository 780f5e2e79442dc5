"""One row of a profile's table: what one cell was, and what was measured of it. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict

from scheduler.sweep import Cell, Outcome, group_of

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99_9": 99.9}
Status = Literal["measured", "overloaded", "out of memory", "failed"]


class Row(BaseModel):
    """One cell. A figure that is not there is None, and ``unavailable`` says why."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: str
    """Its name, and its folder below ``runs/``."""
    workload: str
    group: str
    """cv_infer, cv_train, nlp_infer, nlp_train, or other."""
    layout: str
    """Of ``--layout``; empty where there was none."""
    slice: str
    slice_kind: str
    slice_name: str
    """A MIG device's profile."""
    sms: int | None
    slice_memory_mib: int
    slices_together: int
    """1: alone; more: so many slices ran the same cell at once."""
    size: str
    precision: str
    engine: str
    """As asked; the notes say which it became."""
    batch_size: int
    sequence_length: int | None
    """None: as the workload has it."""
    loop: Literal["closed", "open"]
    concurrency: int | None
    arrival_rate_per_s: float | None
    seconds: float
    seed: int

    status: Status
    """overloaded: requests of an open loop were not answered in twice the time they came in."""
    why: str = ""
    warm_up_s: float | None = None
    warm_up_batches: int | None = None
    steady: bool | None = None
    """False: batch times still differed when the warm-up was as long as it may be."""
    begin_s: float | None = None
    """On the step's clock; the measured window."""
    end_s: float | None = None
    requests: int | None = None
    """Answered."""
    unanswered: int | None = None
    samples: int | None = None
    samples_per_s: float | None = None
    latency_mean_ms: float | None = None
    latency_std_ms: float | None = None
    """Of the population (ddof 0)."""
    latency_p50_ms: float | None = None
    latency_p90_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_p99_ms: float | None = None
    latency_p99_9_ms: float | None = None
    latency_max_ms: float | None = None
    torch_allocated_peak_mib: float | None = None
    torch_reserved_peak_mib: float | None = None
    device_memory_used_mib: float | None = None
    """FB used: as CUDA tells it at the window's end."""
    host_memory_mib: float | None = None
    host_memory_peak_mib: float | None = None
    graphics_activity: float | None = None
    """0 to 1, as are those below; means over the window."""
    sm_activity: float | None = None
    tensor_activity: float | None = None
    dram_activity: float | None = None
    cores_activity: float | None = None
    """Of the slice's host cores, whoever's work it was."""
    power_w: float | None = None
    """The whole GPU's: under MIG no slice has its own."""
    energy_j_per_sample: float | None = None
    """The whole GPU's energy in the window, by all samples of this step on it."""
    unavailable: dict[str, str] = {}
    notes: list[str] = []


ACTIVITIES = {
    "graphics_activity": "graphics_active",
    "sm_activity": "sm_active",
    "tensor_activity": "tensor_active",
    "dram_activity": "dram_active",
    "cores_activity": "cpu_active",
}
"""Fields by the telemetry's columns (docs/run-folder.md)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What the telemetry saw of one cell."""

    lines: Sequence[Mapping[str, Any]]
    unavailable: Mapping[str, str]
    window: tuple[float, float]
    slice: str
    gpu: str | None
    """UUID; None of a CPU slice."""

    def figures(self, samples: int) -> dict[str, float]:
        """What there is of activity, power and energy; ``samples``: of all cells on that GPU."""
        found = {
            field: mean
            for field, column in ACTIVITIES.items()
            if (mean := self._mean("slices", column)) is not None
        }
        power_w = self._mean("gpus", "power_w")
        if power_w is None:
            return found

        watts = self._energy_w() or power_w
        begin_s, end_s = self.window
        energy = {"energy_j_per_sample": watts * (end_s - begin_s) / samples} if samples else {}
        return found | {"power_w": power_w} | energy

    def why(self) -> dict[str, str]:
        """Why a figure is not there, for each that is not."""
        found, no_gpu = self.figures(1), "a CPU slice has none" if self.gpu is None else ""
        columns = {field: f"slices.{self.slice}.{column}" for field, column in ACTIVITIES.items()}
        columns |= dict.fromkeys(("power_w", "energy_j_per_sample"), f"gpus.{self.gpu}.power_w")
        return {
            field: (field != "cores_activity" and no_gpu)
            or self.unavailable.get(column, "the telemetry has no sample of it in the window")
            for field, column in columns.items()
            if field not in found
        }

    def _values(self, part: str, column: str) -> list[tuple[float, float]]:
        """(time, value) of each sample in the window."""
        name = self.slice if part == "slices" else self.gpu
        begin_s, end_s = self.window
        found = []
        for line in self.lines:
            value = (line.get(part, {}).get(name) or {}).get(column)
            if value is not None and begin_s <= line.get("at_s", -1.0) <= end_s:
                found.append((float(line["at_s"]), float(value)))

        return found

    def _mean(self, part: str, column: str) -> float | None:
        """Without the first sample: it tells of the time before it, which was before the window too."""
        values = [value for _, value in self._values(part, column)][1:]
        return sum(values) / len(values) if values else None

    def _energy_w(self) -> float | None:
        """The mean power by the energy counter, from the first to the last sample in the window."""
        values = self._values("gpus", "energy_j")
        if len(values) < 2:
            return None

        (first_s, first_j), (last_s, last_j) = values[0], values[-1]
        return (last_j - first_j) / (last_s - first_s)


def latency_ms(requests: "npt.NDArray[np.int64]") -> dict[str, float | None]:
    """Mean, population standard deviation and percentiles (numpy's, linear) of the raw latencies, every one of them.

    A request that was not answered counts as endless: a figure that it makes so is None.
    """
    import numpy as np

    if not len(requests):
        return {}

    taken = np.where(requests[:, 2] > 0, (requests[:, 2] - requests[:, 0]) / 1e6, np.inf)
    with np.errstate(invalid="ignore"):
        told = {"mean": taken.mean(), "std": taken.std(), "max": taken.max()}
        told |= dict(zip(PERCENTILES, np.percentile(taken, list(PERCENTILES.values())), strict=True))

    return {f"latency_{name}_ms": float(ms) if math.isfinite(ms) else None for name, ms in told.items()}


def status_of(outcome: Outcome) -> tuple[Status, str]:
    """What became of a cell, and in words what went wrong."""
    failed, finished, code = outcome.failed, outcome.finished, outcome.exit_code
    if failed is not None:
        return ("out of memory" if failed.kind == "memory" else "failed"), failed.message

    if outcome.stopped:
        return "failed", outcome.stopped

    if finished is None:
        killed = "; SIGKILL is often the kernel, out of memory: see dmesg" if code == -9 else ""
        return "failed", f"its process ended with {code} before it was through{killed}"

    unanswered = int(finished.facts["unanswered"])
    if unanswered:
        return "overloaded", (
            f"{unanswered} requests were not answered in twice the time they came in: the arrival rate is more than "
            "the slice can take"
        )

    return "measured", ""


def row_of(cell: Cell, outcome: Outcome, together: int, figures: dict[str, object]) -> Row:
    """The row of a cell; ``figures``: what was measured, by field."""
    one, load = cell.assignment, cell.load
    status, why = status_of(outcome)
    facts = outcome.finished.facts if outcome.finished is not None else {}
    return Row.model_validate(
        {
            "cell": one.name,
            "workload": one.workload,
            "group": group_of(one.workload),
            "layout": cell.layout,
            "slice": one.slice.id,
            "slice_kind": one.slice.kind,
            "slice_name": one.slice.name,
            "sms": one.slice.sms,
            "slice_memory_mib": one.slice.memory_mib,
            "slices_together": together,
            "size": one.options.size,
            "precision": one.options.precision,
            "engine": one.options.engine,
            "batch_size": one.options.batch_size,
            "sequence_length": one.options.sequence_length,
            "loop": "open" if load.concurrency is None else "closed",
            "concurrency": load.concurrency,
            "arrival_rate_per_s": load.arrival_rate_per_s,
            "seconds": load.seconds,
            "seed": load.seed,
            "status": status,
            "why": why,
            "notes": facts.get("notes", []),
            **figures,
        }
    )


def again(row: Row, outcome: Outcome, figures: dict[str, object]) -> Row:
    """That row, with what became of the cell and all that was measured told anew."""
    asked = {name: getattr(row, name) for name, field in Row.model_fields.items() if field.is_required()}
    status, why = status_of(outcome)
    facts = outcome.finished.facts if outcome.finished is not None else {}
    return Row.model_validate(
        {**asked, "status": status, "why": why, "notes": facts.get("notes", []), **figures}
    )
