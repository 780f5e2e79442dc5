"""The turns of GPUs and their slices: NVML for all that it tells, GPM or a dcgm-exporter for activity."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from scheduler.activity import strangers
from scheduler.clock import Clock, unix_now
from scheduler.columns import ACTIVITY, PCIE, GpuState
from scheduler.errors import GpuError
from scheduler.slices import CpuSlice, GpuSlice, MigSlice
from scheduler.turns import Learn, Line, Slowly, Turn, Watched

if TYPE_CHECKING:
    from scheduler.dcgm import DcgmExporter
    from scheduler.nvml import Nvml
    from scheduler.nvml_gpm import Gpm

PidsOn = Callable[[str], list[int]]
"""Slice id → the pids of the benchmarks that live there now."""

POWER_COLUMNS = ("power_w", "energy_j")
GPU_COLUMNS = (
    *("sm_clock_mhz", "memory_clock_mhz", "temperature_c"),
    *("utilisation_percent", "memory_used_mib", "throttle_reasons"),
)
"""Of ``nvml.GpuSample``, both."""
COUNTED = ("throttled_s", "ecc_corrected", "ecc_uncorrected")
"""Of ``nvml_counters.GpuCounters``."""
COUNTED_EVERY_S = 5.0
"""They and PCIe take most of a board's time."""


@dataclass(slots=True)
class Gpus:
    """What there is to ask; nothing, where no slice is on a GPU."""

    powers: list[Turn] = field(default_factory=list)
    """Few columns, that a window of 3 s is to have twice; one a board."""
    turns: list[Turn] = field(default_factory=list)
    """The rest."""
    sources: dict[str, str] = field(default_factory=dict)
    states: Callable[[], dict[str, GpuState]] = dict
    """By UUID: how each is set up now, what it has counted, who computes on it."""


@contextmanager
def opened(
    watched: Watched, clock: Clock, pids_on: PidsOn, booked: dict[int, int | None], dcgm_url: str | None
) -> Iterator[Gpus]:
    """The turns of the GPUs that the watched slices are on.

    Args:
        booked: written into: pid → MiB of GPU memory.

    Raises:
        GpuError: there are such, and NVML does not start.
    """
    devices = [one for one in watched.slices if not isinstance(one, CpuSlice)]
    if not devices:
        yield Gpus()
        return

    with ExitStack() as until_the_end:
        nvml = until_the_end.enter_context(opened_nvml())
        yield of(nvml, devices, clock, pids_on, booked, dcgm_url, until_the_end)


@contextmanager
def opened_nvml() -> Iterator["Nvml"]:
    """NVML, loaded only where there is something to ask it."""
    from scheduler import nvml

    with nvml.open() as library:
        yield library


def of(
    nvml: "Nvml",
    devices: Sequence[GpuSlice | MigSlice],
    clock: Clock,
    pids_on: PidsOn,
    booked: dict[int, int | None],
    dcgm_url: str | None,
    until_the_end: ExitStack,
) -> Gpus:
    """The turns of these slices and of their GPUs: two a GPU and one a GPU instance."""
    from scheduler import nvml_gpm

    uuids = list(dict.fromkeys(_gpu_uuid(one) for one in devices))
    gpm = until_the_end.enter_context(nvml_gpm.opened(nvml, clock.now))
    source: _Source = _FromGpm(gpm, {uuid: gpm.why_not(uuid) for uuid in uuids})
    told = "NVML's GPM" if not any(source.lacking.values()) else "none: see unavailable"
    if dcgm_url is not None:
        from scheduler import dcgm

        exporter = until_the_end.enter_context(dcgm.watching(dcgm_url, clock.now, unix_now))
        source, told = _FromDcgm(exporter), f"dcgm-exporter at {dcgm_url}"

    groups: dict[tuple[str, int | None], list[GpuSlice | MigSlice]] = {}
    for one in devices:
        instance = one.gpu_instance_id if isinstance(one, MigSlice) else None
        groups.setdefault((_gpu_uuid(one), instance), []).append(one)

    powers: list[Turn] = [_Power(nvml, uuid) for uuid in uuids]
    turns: list[Turn] = [_Board(nvml, uuid) for uuid in uuids]
    turns += [_Instance(nvml, key, slices, source, pids_on, booked) for key, slices in groups.items()]
    sources = {"gpus": "NVML", "slices": "/proc/stat and NVML", "activity": told}
    return Gpus(powers, turns, sources, lambda: _states(nvml, uuids))


class _Power:
    """What one whole GPU draws, and has drawn."""

    def __init__(self, nvml: "Nvml", uuid: str) -> None:
        self._nvml = nvml
        self._uuid = uuid

    def take(self, _now_s: float, learn: Learn) -> Line:
        try:
            sample = self._nvml.sample(self._uuid, POWER_COLUMNS)
        except GpuError as error:
            learn(f"gpus.{self._uuid}", error.found)
            return {}

        for column, reason in sample.unavailable.items():
            learn(f"gpus.{self._uuid}.{column}", reason)

        return {"gpus": {self._uuid: {column: getattr(sample, column) for column in POWER_COLUMNS}}}


class _Board:
    """One whole GPU: what else its slices share."""

    def __init__(self, nvml: "Nvml", uuid: str) -> None:
        self._nvml = nvml
        self._uuid = uuid
        self._slowly = Slowly(COUNTED_EVERY_S)

    def take(self, now_s: float, learn: Learn) -> Line:
        try:
            sample = self._nvml.sample(self._uuid, GPU_COLUMNS)
            counted, why = self._slow_columns() if self._slowly.due(now_s) else ({}, {})
        except GpuError as error:
            learn(f"gpus.{self._uuid}", error.found)
            return {}

        for column, reason in (sample.unavailable | why).items():
            learn(f"gpus.{self._uuid}.{column}", reason)

        return {"gpus": {self._uuid: {column: getattr(sample, column) for column in GPU_COLUMNS} | counted}}

    def _slow_columns(self) -> tuple[dict[str, Any], dict[str, str]]:
        """Counters, and PCIe, which takes 40 ms to ask; and why of them is None what is."""
        from scheduler import nvml_counters

        counted = nvml_counters.counters(self._nvml, self._uuid)
        sent, received, refusal = nvml_counters.pcie_mib_s(self._nvml, self._uuid)
        columns = {name: getattr(counted, name) for name in COUNTED}
        why = counted.unavailable | (dict.fromkeys(PCIE, refusal) if refusal else {})
        return columns | dict(zip(PCIE, (sent, received), strict=True)), why


class _Instance:
    """The slices in one GPU instance, or on one GPU without MIG."""

    def __init__(
        self,
        nvml: "Nvml",
        key: tuple[str, int | None],
        slices: Sequence[GpuSlice | MigSlice],
        source: "_Source",
        pids_on: PidsOn,
        booked: dict[int, int | None],
    ) -> None:
        self._nvml = nvml
        self._key = key
        self._slices = slices
        self._source = source
        self._pids_on = pids_on
        self._booked = booked
        self._slowly = Slowly()

    def take(self, now_s: float, learn: Learn) -> Line:
        activity, why_none = self._source.activity(*self._key)
        slow_too = self._slowly.due(now_s)
        found: dict[str, dict[str, Any]] = {}
        for one in self._slices:
            why = dict(why_none)
            columns = {**activity, **self._memory(one, why)}
            columns |= self._processes(one, why) if slow_too else {}
            for column, reason in why.items():
                learn(f"slices.{one.id}.{column}", reason)

            found[one.id] = columns

        return {"slices": found}

    def _memory(self, one: GpuSlice | MigSlice, why: dict[str, str]) -> dict[str, Any]:
        from scheduler import nvml_counters

        try:
            used_mib, refusal = nvml_counters.memory_used_mib(self._nvml, one.uuid)
        except GpuError as error:
            used_mib, refusal = None, error.found

        if refusal:
            why["memory_used_mib"] = refusal

        return {"memory_used_mib": used_mib}

    def _processes(self, one: GpuSlice | MigSlice, why: dict[str, str]) -> dict[str, Any]:
        ours = set(self._pids_on(one.id))  # before and after: one of ours may end, or come, in between
        try:
            processes = self._nvml.processes(one.uuid)
        except GpuError as error:
            why |= dict.fromkeys(("processes", "foreign_pids"), error.found)
            return {"processes": None, "foreign_pids": None}

        self._booked.update({process.pid: process.used_memory_mib for process in processes})
        pids = {process.pid for process in processes}
        ours |= set(self._pids_on(one.id))
        return {"processes": len(pids), "foreign_pids": strangers(pids, ours)}


class _FromGpm:
    """Activity from NVML itself."""

    def __init__(self, gpm: "Gpm", lacking: Mapping[str, str]) -> None:
        self._gpm = gpm
        self.lacking = lacking
        """GPU UUID → why it has no GPM; empty where it has."""

    def activity(
        self, gpu_uuid: str, gpu_instance_id: int | None
    ) -> tuple[Mapping[str, float | None], Mapping[str, str]]:
        why = self.lacking[gpu_uuid]
        if not why:
            try:
                found = self._gpm.activity(gpu_uuid, gpu_instance_id)
            except GpuError as error:
                why = error.found
            else:
                return ({}, {}) if found is None else (found.columns, found.unavailable)

        columns = (*ACTIVITY, *PCIE)
        return dict.fromkeys(columns), dict.fromkeys(columns, why)


class _FromDcgm:
    """Activity from a running dcgm-exporter: of each of its answers once."""

    def __init__(self, exporter: "DcgmExporter") -> None:
        self._exporter = exporter
        self._told: dict[tuple[str, int | None], int] = {}
        self.lacking: Mapping[str, str] = {}

    def activity(
        self, gpu_uuid: str, gpu_instance_id: int | None
    ) -> tuple[Mapping[str, float | None], Mapping[str, str]]:
        answers, key = self._exporter.answers, (gpu_uuid, gpu_instance_id)
        columns, why = self._exporter.activity(gpu_uuid, gpu_instance_id)
        said_before = self._told.get(key) == answers
        self._told[key] = answers
        anything = any(value is not None for value in columns.values())
        return ({}, {}) if said_before and anything else (columns, why)


_Source = _FromGpm | _FromDcgm


def _gpu_uuid(one: GpuSlice | MigSlice) -> str:
    return one.gpu_uuid if isinstance(one, MigSlice) else one.uuid


def _states(nvml: "Nvml", uuids: Sequence[str]) -> dict[str, GpuState]:
    states: dict[str, GpuState] = {}
    for uuid in uuids:
        try:
            states[uuid] = _state(nvml, uuid)
        except GpuError:  # it is lost: its turns have told so
            continue

    return states


def _state(nvml: "Nvml", uuid: str) -> GpuState:
    from scheduler import nvml_counters

    settings = nvml.settings(uuid)
    counted = nvml_counters.counters(nvml, uuid)
    try:
        pids = tuple(one.pid for one in nvml.processes(uuid))
    except GpuError:
        pids = None

    return GpuState(
        name=settings.name,
        sm_clock_max_mhz=settings.sm_clock_max_mhz,
        memory_clock_max_mhz=settings.memory_clock_max_mhz,
        sm_clock_asked_mhz=nvml_counters.asked_sm_clock_mhz(nvml, uuid),
        power_limit_w=settings.power_limit_w,
        ecc_enabled=settings.ecc_enabled,
        ecc_corrected=counted.ecc_corrected,
        ecc_uncorrected=counted.ecc_uncorrected,
        processes=pids,
    )
