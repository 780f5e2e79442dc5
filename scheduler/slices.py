"""The unit one workload is pinned to: a slice. (NVIDIA's "GPU slice" is one memory slice and its SMs.)

Kinds here: a MIG device, a whole GPU, a set of CPU cores. MPS and time shares join them as two
more classes of the same shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from scheduler.errors import GpuError

SliceKind = Literal["mig", "mps", "timeslice", "gpu", "cpu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuSlice:
    """A set of CPU cores, by the kernel's numbers."""

    kind: ClassVar[SliceKind] = "cpu"
    id: str
    cores: tuple[int, ...]
    memory_mib: int
    """The host's memory: a CPU slice reserves none of it."""
    numa_node: int | None = None
    shared_with: tuple[str, ...] = ()
    """Ids of the slices that run on some of the same cores."""
    uuid: ClassVar[None] = None
    sms: ClassVar[None] = None

    @property
    def name(self) -> str:
        return f"CPU cores {core_ranges(self.cores)}"

    def environ(self) -> dict[str, str]:
        """What a process needs in its environment to be on this slice: no GPU in sight."""
        return {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSlice:
    """A whole GPU without MIG."""

    kind: ClassVar[SliceKind] = "gpu"
    id: str
    name: str
    uuid: str
    """``GPU-…``"""
    gpu_index: int
    """NVML's index; for people, never for pinning."""
    sms: int | None
    memory_mib: int
    cores: tuple[int, ...]
    numa_node: int | None = None
    shared_with: tuple[str, ...] = ()

    def environ(self) -> dict[str, str]:
        """What a process needs in its environment to see this GPU alone."""
        return {"CUDA_VISIBLE_DEVICES": self.uuid, "PYTORCH_NVML_BASED_CUDA_CHECK": "0"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MigSlice:
    """A MIG device: one GPU instance with one compute instance of it.

    Its identity over time is (gpu_uuid, gi_profile_id, placement_start): ids and even UUIDs are reused.
    """

    kind: ClassVar[SliceKind] = "mig"
    id: str
    """``gpu0:gi7:ci0``"""
    name: str
    """The profile: ``1g.10gb``, or ``1c.3g.40gb`` for a part of a GPU instance."""
    uuid: str
    """``MIG-…``, in whichever of the two formats this driver uses."""
    gpu_uuid: str
    gpu_index: int
    gpu_name: str
    gpu_instance_id: int
    compute_instance_id: int
    gi_profile_id: int | None
    placement_start: int | None
    """First memory slice of the GPU instance."""
    placement_size: int | None
    """Memory slices of the GPU instance."""
    sms: int | None
    memory_mib: int
    cores: tuple[int, ...]
    numa_node: int | None = None
    shared_with: tuple[str, ...] = ()
    """Ids of MIG devices in the same GPU instance: they share its memory."""

    def environ(self) -> dict[str, str]:
        """What a process needs in its environment to see this MIG device alone."""
        return {"CUDA_VISIBLE_DEVICES": self.uuid, "PYTORCH_NVML_BASED_CUDA_CHECK": "0"}


Slice = CpuSlice | GpuSlice | MigSlice


def slice_as_json(slice_: Slice) -> dict[str, Any]:
    """A slice as ``result.json`` and the manifest describe it."""
    told: dict[str, Any] = {
        "id": slice_.id,
        "kind": slice_.kind,
        "name": slice_.name,
        "uuid": slice_.uuid,
        "sms": slice_.sms,
        "memory_mib": slice_.memory_mib,
        "numa_node": slice_.numa_node,
        "cores": list(slice_.cores),
        "shared_with": list(slice_.shared_with),
    }
    if isinstance(slice_, MigSlice) and slice_.placement_start is not None:
        start, size = slice_.placement_start, slice_.placement_size
        told["placement"] = {"gpu_uuid": slice_.gpu_uuid, "start": start, "size": size}

    return told


def core_ranges(cores: Sequence[int]) -> str:
    """Write core numbers as the kernel does: ``0-3,8``."""
    runs: list[list[int]] = []
    for core in sorted(cores):
        if runs and core == runs[-1][-1] + 1:
            runs[-1].append(core)
        else:
            runs.append([core])

    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as NVML describes it."""

    index: int
    uuid: str
    name: str
    memory_mib: int
    sms: int | None
    mig_enabled: bool
    mig_devices: tuple[MigSlice, ...]
    """Empty without MIG. Their cores are the GPU's, not divided yet."""
    cores: tuple[int, ...]
    """Host cores near this GPU (NVML's CPU affinity); empty where the driver does not say."""
    numa_node: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What there is to pin workloads to, read once, before anything is decided."""

    cores: tuple[int, ...]
    """Cores this process may use."""
    memory_mib: int
    gpus: tuple[Gpu, ...] = ()
    gpu_error: GpuError | None = None
    """Why the GPUs could not be read; None where they could, or where there is no sign of any."""
