"""What a fake GPU holds: GPU instances in memory slices, compute instances in them, MIG devices.

Refuses what the driver refuses, with pynvml's own exceptions.
"""

import uuid
from dataclasses import dataclass, field

import pynvml

from tests.boards import COMPUTE_INSTANCES, Board, Profile


@dataclass(frozen=True)
class Instance:
    """A GPU instance to be there from the start."""

    profile: str
    start: int
    compute: tuple[int, ...] = ()
    """Compute slices of each compute instance; empty for one that has them all."""
    processes: tuple[tuple[int, int | None], ...] = ()
    """As FakeGpu's; they run on its first compute instance."""


@dataclass(frozen=True, kw_only=True)
class FakeGpu:
    """One GPU of a fake machine, as it is to be built."""

    board: Board
    mig: bool = False
    instances: tuple[Instance, ...] = ()
    holes: frozenset[int] = frozenset()
    """MIG device indices that stay empty, as after a destroy."""
    cores: tuple[int, ...] = (0, 1)
    numa_node: int = 0
    processes: tuple[tuple[int, int | None], ...] = ()
    """(pid, bytes of GPU memory)."""
    foreign: bool = False
    """Another user's: counted, but refused."""


@dataclass
class ComputeInstance:
    """Some compute slices of a GPU instance."""

    id: int
    slices: int
    processes: tuple[tuple[int, int | None], ...] = ()


@dataclass
class GpuInstance:
    """Memory slices from ``start`` on, and the compute slices that go with them."""

    id: int
    profile: Profile
    start: int
    compute: list[ComputeInstance] = field(default_factory=list)

    @property
    def memory_slices(self) -> set[int]:
        """Those it occupies."""
        return set(range(self.start, self.start + self.profile.memory_slices))


@dataclass
class GpuState:
    """A fake GPU as it is now."""

    asked: FakeGpu
    index: int
    uuid: str
    instances: list[GpuInstance] = field(default_factory=list)
    mig_devices: dict[int, "MigDevice"] = field(default_factory=dict)
    """By MIG device index."""
    lost: bool = False
    energy_mj: int = 1_000_000

    @classmethod
    def of(cls, asked: FakeGpu, index: int) -> "GpuState":
        """Build it; an instance that does not fit raises what the driver would."""
        gpu = cls(asked, index, uuid_of(f"gpu{index}"))
        for wanted in asked.instances:
            instance = gpu.create_gpu_instance(asked.board.profile(wanted.profile), wanted.start)
            for slices in wanted.compute or (instance.profile.compute_slices,):
                gpu.create_compute_instance(instance, slices)

            instance.compute[0].processes = wanted.processes

        return gpu

    @property
    def board(self) -> Board:
        return self.asked.board

    @property
    def processes(self) -> tuple[tuple[int, int | None], ...]:
        """All on the GPU and on its MIG devices."""
        inside = [one.processes for instance in self.instances for one in instance.compute]
        return sum(inside, self.asked.processes)

    def create_gpu_instance(self, profile: Profile, start: int) -> GpuInstance:
        """Occupy the profile's memory slices from ``start`` on."""
        if not self.asked.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        if start not in profile.starts:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        alike = [instance for instance in self.instances if instance.profile.id == profile.id]
        taken = {piece for instance in self.instances for piece in instance.memory_slices}
        compute_slices = sum(instance.profile.compute_slices for instance in self.instances)
        new = GpuInstance(self._free_instance_id(profile), profile, start)
        if (
            taken & new.memory_slices
            or len(alike) == profile.most
            or compute_slices + profile.compute_slices > self.board.compute_slices
        ):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)

        self.instances.append(new)
        return new

    def create_compute_instance(self, instance: GpuInstance, slices: int) -> ComputeInstance:
        """Occupy compute slices of the GPU instance; the MIG device gets the lowest free index."""
        most = COMPUTE_INSTANCES[instance.profile.compute_slices]
        if slices not in most:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        used = sum(one.slices for one in instance.compute)
        alike = sum(one.slices == slices for one in instance.compute)
        if used + slices > instance.profile.compute_slices or alike == most[slices]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)

        new = ComputeInstance(min(set(range(16)) - {one.id for one in instance.compute}), slices)
        instance.compute.append(new)
        index = min(set(range(64)) - self.asked.holes - set(self.mig_devices))
        self.mig_devices[index] = MigDevice(self, instance, new)
        return new

    def _free_instance_id(self, profile: Profile) -> int:
        """Neither dense nor in order, and reused: 7g is 0, 3g and 4g count from 1, 2g from 3, 1g from 7."""
        first = {7: 0, 4: 1, 3: 1, 2: 3, 1: 7}[profile.compute_slices]
        return min(set(range(first, first + 16)) - {instance.id for instance in self.instances})


@dataclass
class MigDevice:
    """One GPU instance with one compute instance of it."""

    gpu: GpuState
    gpu_instance: GpuInstance
    compute_instance: ComputeInstance


def uuid_of(name: str) -> str:
    """``GPU-…``, the same for the same name."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, name)}"
