"""What is on the GPUs now: instances, who uses them and may use them, what is free, and which profiles still fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scheduler import gpu_tables, placement
from scheduler.capabilities import Right, Rights
from scheduler.geometry import ComputeProfile, Geometry, GpuInstance, GpuMig
from scheduler.holders import Holder, HoldersReport, describe, holders
from scheduler.mig import pids_on
from scheduler.nvml_mig import NvmlMig
from scheduler.placement import Room


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuStatus:
    """MIG on one GPU, and who is on it."""

    gpu: GpuMig
    geometry: Geometry | None
    """The driver's, or the built-in table; None where the GPU knows no MIG."""
    processes: Mapping[str, tuple[Holder, ...]]
    """By UUID of a MIG device or, without MIG, of the GPU."""
    access: Mapping[tuple[int, int], Right]
    """Ids of a GPU instance and a compute instance of it → whether this user may run on that MIG device."""
    held_by: HoldersReport | None
    """Where a mode change waits: who holds the GPU."""

    @property
    def room(self) -> Room | None:
        """What is free and what is wasted, under MIG."""
        if self.geometry is None or not self.gpu.enabled or self.gpu.instances_error:
            return None

        return placement.room_left(self.geometry, [each.placed for each in self.gpu.instances])


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuProfiles:
    """What further instances a GPU can take now."""

    gpu: GpuMig
    free: Mapping[int, int]
    """Profile id → how many more GPU instances of it fit; empty where the driver does not say."""
    compute: tuple[tuple[GpuInstance, tuple[ComputeProfile, ...]], ...]
    """Each GPU instance that is there, with the compute instances that it can have."""


def status(mig: NvmlMig, gpus: Sequence[GpuMig], rights: Rights) -> list[GpuStatus]:
    """What is on these GPUs."""
    return [
        GpuStatus(
            gpu=gpu,
            geometry=gpu.geometry or (gpu_tables.of_gpu(gpu.name) if gpu.capable else None),
            processes=_processes(mig, gpu),
            access=_access(gpu, rights),
            held_by=holders(gpu.minor) if gpu.enabled != gpu.pending and gpu.minor is not None else None,
        )
        for gpu in gpus
    ]


def profiles(mig: NvmlMig, gpus: Sequence[GpuMig]) -> list[GpuProfiles]:
    """What further instances these GPUs can take now."""
    return [
        GpuProfiles(
            gpu=gpu,
            free=mig.free(gpu.uuid),
            compute=tuple((each, mig.compute_profiles(gpu.uuid, each.id)) for each in gpu.instances),
        )
        for gpu in gpus
        if gpu.capable
    ]


def _access(gpu: GpuMig, rights: Rights) -> dict[tuple[int, int], Right]:
    if gpu.minor is None:
        return {}

    return {
        (instance.id, each.id): rights.access(gpu.minor, instance.id, each.id)
        for instance in gpu.instances
        for each in instance.compute
    }


def _processes(mig: NvmlMig, gpu: GpuMig) -> dict[str, tuple[Holder, ...]]:
    devices = [each.uuid for instance in gpu.instances for each in instance.compute if each.uuid]
    found = {}
    for uuid in devices if gpu.enabled else [gpu.uuid]:
        if pids := pids_on(mig, uuid):
            found[uuid] = describe(pids)

    return found
