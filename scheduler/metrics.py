"""A running run as Prometheus sees it: served on a port, or written to a file for node-exporter, until it ends.

Everything is read from the run folder when it is asked for: the workers' progress marks, the last lines of
``telemetry.jsonl``. Names and units follow Prometheus's practice: bytes, seconds, ratios.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from scheduler import __version__
from scheduler.assignment import Assignment, Plan
from scheduler.clock import Clock
from scheduler.errors import SpecError
from scheduler.events import Action, Event
from scheduler.lifecycle import Phase, Run
from scheduler.record import RunFolder
from scheduler.slices import GpuSlice, MigSlice, Slice
from workloads.progress import read_mark

Metric = CounterMetricFamily | GaugeMetricFamily
Watch = Callable[[Event | Action, Run], None]

PREFIX = "hetero_mig"
WRITE_EVERY_S = 5.0
RATE_OVER_S = 1.0
"""The shortest time over which a rate is told."""
TAIL_BYTES = 1 << 18
MIB = float(1 << 20)

BENCHMARK_LABELS = ("benchmark", "role", "workload", "slice", "gpu", "gpu_instance", "profile")
SLICE_LABELS = ("slice", "gpu", "gpu_instance", "profile", "workload", "role")

Column = tuple[str, str, float, str]
"""Column of a telemetry line, the metric's name, what the value is multiplied by, what it is."""

WORKER: tuple[Column, ...] = (
    ("cpu_s", "worker_cpu_seconds_total", 1, "CPU time of the benchmark's process"),
    ("memory_mib", "worker_memory_bytes", MIB, "Resident memory of the benchmark's process"),
    ("gpu_memory_used_mib", "worker_gpu_memory_bytes", MIB, "GPU memory that the driver books to it"),
)
SLICE: tuple[Column, ...] = (
    ("cpu_active", "slice_cpu_active_ratio", 1, "Part of the time in which the slice's cores worked"),
    ("memory_used_mib", "slice_memory_used_bytes", MIB, "GPU memory in use on the slice"),
    ("graphics_active", "slice_graphics_active_ratio", 1, "Part of the time with a compute engine active"),
    ("sm_active", "slice_sm_active_ratio", 1, "Part of the SMs' time with a warp assigned"),
    ("sm_occupancy", "slice_sm_occupancy_ratio", 1, "Warps resident of those possible"),
    ("tensor_active", "slice_tensor_active_ratio", 1, "Part of the tensor pipe's peak"),
    ("dram_active", "slice_dram_active_ratio", 1, "Part of the memory interface's peak"),
)
GPU: tuple[Column, ...] = (
    ("power_w", "gpu_power_watts", 1, "Of the whole board"),
    ("energy_j", "gpu_energy_joules_total", 1, "Of the whole board since its driver was loaded"),
    ("temperature_c", "gpu_temperature_celsius", 1, "Of the GPU"),
    ("sm_clock_mhz", "gpu_sm_clock_hertz", 1e6, "Of the SMs"),
)


class RunMetrics(Collector):
    """What a scrape is answered with."""

    def __init__(self) -> None:
        self._run: tuple[Plan, RunFolder, Clock] | None = None
        self._phase = Phase.STARTING
        self._former: dict[str, list[tuple[float, int]]] = {}

    def following(self, plan: Plan, folder: RunFolder, clock: Clock, watch: Watch) -> Watch:
        """From now on tell of this run; the answer shows it to ``watch`` and keeps its phase."""
        self._run = plan, folder, clock

        def seen(what: Event | Action, state: Run) -> None:
            self._phase = state.phase
            watch(what, state)

        return seen

    def collect(self) -> Iterable[Metric]:
        """All metrics of the present moment; what is not available is left out."""
        info = GaugeMetricFamily(f"{PREFIX}_info", "The program", labels=["version"])
        info.add_metric([__version__], 1)
        yield info
        if self._run is None:
            return

        plan, folder, clock = self._run
        phases = GaugeMetricFamily(f"{PREFIX}_phase", "1 for the phase the run is in", labels=["phase"])
        for phase in Phase:
            phases.add_metric([phase.value], float(phase is self._phase))

        yield phases
        yield from self._progress(plan, folder, clock)
        yield from _telemetry(plan, folder)

    def _progress(self, plan: Plan, folder: RunFolder, clock: Clock) -> Iterable[Metric]:
        completed = CounterMetricFamily(
            f"{PREFIX}_samples_completed", "Samples since the benchmark's start", labels=BENCHMARK_LABELS
        )
        filler = CounterMetricFamily(
            f"{PREFIX}_filler_samples", "Computed between two LoadGen tests", labels=BENCHMARK_LABELS
        )
        rates = GaugeMetricFamily(
            f"{PREFIX}_samples_per_second", "Over the time since the scrape before", labels=BENCHMARK_LABELS
        )
        for one in plan.all:
            mark = read_mark(folder.path / one.name)
            if mark is None:
                continue

            labels = _benchmark_labels(one)
            completed.add_metric(labels, mark.samples_completed)
            filler.add_metric(labels, mark.filler_samples)
            rate = self._rate(one.name, clock.now(), mark.samples_completed)
            if rate is not None:
                rates.add_metric(labels, rate)

        return completed, filler, rates

    def _rate(self, name: str, now_s: float, samples: int) -> float | None:
        """Since the latest reading that is old enough; those before it are dropped."""
        readings = self._former.setdefault(name, [])
        while len(readings) > 1 and now_s - readings[1][0] >= RATE_OVER_S:
            readings.pop(0)

        readings.append((now_s, samples))
        began_s, before = readings[0]
        return (samples - before) / (now_s - began_s) if now_s - began_s >= RATE_OVER_S else None


def _telemetry(plan: Plan, folder: RunFolder) -> Iterable[Metric]:
    lines = folder.last_lines("telemetry.jsonl", TAIL_BYTES)
    by_slice = {one.slice.id: _slice_labels(one.slice, one) for one in plan.all}
    by_slice |= {one.id: _slice_labels(one, None) for one in plan.idle}
    by_benchmark = {one.name: _benchmark_labels(one) for one in plan.all}
    yield from _families("workers", WORKER, lines, BENCHMARK_LABELS, by_benchmark)
    yield from _families("slices", SLICE, lines, SLICE_LABELS, by_slice)
    uuids = [uuid for line in lines for uuid in line.get("gpus") or {}]
    yield from _families("gpus", GPU, lines, ("gpu",), {uuid: [uuid] for uuid in uuids})


def _families(
    part: str,
    columns: Iterable[Column],
    lines: list[dict[str, Any]],
    labels: tuple[str, ...],
    labelled: Mapping[str, list[str]],
) -> Iterable[Metric]:
    for column, name, factor, what in columns:
        counter = name.endswith("_total")
        family = (CounterMetricFamily if counter else GaugeMetricFamily)(
            f"{PREFIX}_{name.removesuffix('_total')}", what, labels=labels
        )
        for key, values in labelled.items():
            value = _latest(part, key, column, lines)
            if value is not None:
                family.add_metric(values, value * factor)

        if family.samples:
            yield family


def _latest(part: str, name: str, column: str, lines: list[dict[str, Any]]) -> float | None:
    """The last thing said of it; None where that is that it is not available."""
    for line in reversed(lines):
        found = (line.get(part) or {}).get(name) or {}
        if column in found:
            return None if found[column] is None else float(found[column])

    return None


def _benchmark_labels(one: Assignment) -> list[str]:
    return [one.name, one.role, one.workload, one.slice.id, *_device_labels(one.slice)]


def _slice_labels(one: Slice, benchmark: Assignment | None) -> list[str]:
    of_benchmark = ["", ""] if benchmark is None else [benchmark.workload, benchmark.role]
    return [one.id, *_device_labels(one), *of_benchmark]


def _device_labels(one: Slice) -> list[str]:
    """GPU UUID, GPU instance id, profile; empty where the slice has none."""
    if isinstance(one, MigSlice):
        return [one.gpu_uuid, str(one.gpu_instance_id), one.name]

    return [one.uuid if isinstance(one, GpuSlice) else "", "", ""]


# ---------------------------------------------------------------------- where it is told


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int


def address_of(text: str) -> Address:
    """From ``9401``, which listens to this machine alone, or ``0.0.0.0:9401``.

    Raises:
        SpecError: it is neither.
    """
    host, _, port = text.rpartition(":")
    if not port.isdecimal() or not 0 < int(port) < 65536:
        raise SpecError(
            asked=f"--metrics-port {text}",
            found="not a port",
            do="give a number from 1 to 65535, as 9401; with an address before it, as 0.0.0.0:9401, others may ask too",
        )

    return Address(host.strip("[]") or "127.0.0.1", int(port))


@contextmanager
def published(port: str | None, textfile: Path | None) -> Iterator[RunMetrics]:
    """Serve, write, or both, until the ``with`` is left; then the port is free and the file is gone.

    Raises:
        SpecError: the port or the file cannot be had; nothing was started.
    """
    metrics = RunMetrics()
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics)
    with ExitStack() as until_the_end:
        if port is not None:
            until_the_end.enter_context(_served(address_of(port), registry))

        if textfile is not None:
            until_the_end.enter_context(_written(textfile, registry))

        yield metrics


@contextmanager
def _served(address: Address, registry: CollectorRegistry) -> Iterator[None]:
    try:
        server, thread = start_http_server(address.port, address.host, registry)
    except (OSError, UnicodeError) as error:  # no host can be called so
        raise SpecError(
            asked=f"--metrics-port {address.host}:{address.port}",
            found=getattr(error, "strerror", None) or str(error),
            do="name another address or port, or end what listens there; nothing was started",
        ) from None

    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _written(path: Path, registry: CollectorRegistry) -> Iterator[None]:
    def refused(found: str) -> SpecError:
        return SpecError(
            asked=f"--metrics-textfile {path}",
            found=found,
            do="name a new file that ends in .prom, in a folder that can be written; nothing was started",
        )

    if path.suffix != ".prom":  # node-exporter reads no other
        raise refused("its name does not end in .prom")

    try:
        if path.exists() and PREFIX not in path.read_text(encoding="utf-8", errors="replace")[:200]:
            raise refused("that file is not of this program")

        write_to_textfile(str(path), registry)
    except OSError as error:
        raise refused(error.strerror or str(error)) from None

    enough = threading.Event()

    def write_again() -> None:
        while not enough.wait(WRITE_EVERY_S):
            try:
                write_to_textfile(str(path), registry)
            except OSError:  # whoever reads the file sees by its age that it stands still
                continue

    thread = threading.Thread(target=write_again, daemon=True, name="metrics")
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
        path.unlink(missing_ok=True)
