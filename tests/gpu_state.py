"""What a fake GPU holds: GPU instances in memory slices, compute instances in them, MIG devices, processes.

Refuses what the driver refuses, with pynvml's own exceptions.
"""

import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, product

import pynvml

from tests.boards import COMPUTE_INSTANCES, COMPUTE_STEP, Board, Profile


@dataclass(frozen=True)
class Instance:
    """A GPU instance to be there from the start."""

    profile: str
    start: int
    compute: tuple[int | tuple[int, int], ...] = ()
    """Compute slices of each compute instance, or its (start, slices); empty for one that has them all."""
    processes: tuple[tuple[int, int | None], ...] = ()
    """As FakeGpu's; they run on its first compute instance."""
    bare: bool = False
    """Without any compute instance."""


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
    held: bool = False
    """A service (nvidia-dcgm, a display manager) holds the GPU: no mode change takes effect."""


@dataclass
class Process:
    """A process that uses a GPU or a compute instance."""

    pid: int
    used: int | None
    """Bytes of GPU memory."""
    leaves_after: int | None = None
    """It has ended by the time that so many requests were refused for its sake."""


@dataclass
class ComputeInstance:
    """Compute slices of a GPU instance."""

    id: int
    start: int
    slices: int
    gpu_instance: "GpuInstance"
    processes: list[Process] = field(default_factory=list)
    gone: bool = False

    @property
    def compute_slices(self) -> set[int]:
        """Those it occupies."""
        return set(range(self.start, self.start + self.slices))


@dataclass
class GpuInstance:
    """Memory slices from ``start`` on, and the compute slices that go with them."""

    id: int
    profile: Profile
    start: int
    gpu: "GpuState"
    compute: list[ComputeInstance] = field(default_factory=list)
    gone: bool = False

    @property
    def memory_slices(self) -> set[int]:
        """Those it occupies."""
        return set(range(self.start, self.start + self.profile.memory_slices))

    def compute_starts(self, slices: int) -> tuple[int, ...]:
        """Where a compute instance of so many slices may start; empty where there is none of that size."""
        whole = self.profile.compute_slices
        if slices not in COMPUTE_INSTANCES[whole]:
            return ()

        return tuple(range(0, whole - slices + 1, COMPUTE_STEP[slices]))

    def free_compute_starts(self, slices: int) -> tuple[int, ...]:
        """Those of them that are free now."""
        taken = {piece for one in self.compute for piece in one.compute_slices}
        return tuple(
            start for start in self.compute_starts(slices) if not taken & set(range(start, start + slices))
        )


@dataclass
class MigDevice:
    """One GPU instance with one compute instance of it."""

    gpu: "GpuState"
    gpu_instance: GpuInstance
    compute_instance: ComputeInstance
    generation: int
    """Which creation on this GPU it comes from, counted from 0."""

    @property
    def gone(self) -> bool:
        return self.compute_instance.gone


@dataclass
class GpuState:
    """A fake GPU as it is now."""

    asked: FakeGpu
    index: int
    uuid: str
    mig: bool
    pending: bool
    held: bool
    own_processes: list[Process]
    instances: list[GpuInstance] = field(default_factory=list)
    mig_devices: dict[int, MigDevice] = field(default_factory=dict)
    """By MIG device index."""
    lost: bool = False
    gone: bool = False
    energy_mj: int = 1_000_000
    _generations: Iterator[int] = field(default_factory=count)

    @classmethod
    def of(cls, asked: FakeGpu, index: int) -> "GpuState":
        """Build it; an instance that does not fit raises what the driver would."""
        own = [Process(pid, used) for pid, used in asked.processes]
        gpu = cls(asked, index, uuid_of(f"gpu{index}"), asked.mig, asked.mig, asked.held, own)
        for wanted in asked.instances:
            instance = gpu.create_gpu_instance(asked.board.profile(wanted.profile), wanted.start)
            whole = () if wanted.bare else (instance.profile.compute_slices,)
            for start, slices in _arranged(instance, wanted.compute or whole):
                gpu.create_compute_instance(instance, slices, start)

            if wanted.processes:
                instance.compute[0].processes = [Process(pid, used) for pid, used in wanted.processes]

        return gpu

    @property
    def board(self) -> Board:
        return self.asked.board

    @property
    def processes(self) -> list[Process]:
        """All on the GPU and on its MIG devices."""
        inside = [process for one in self.instances for each in one.compute for process in each.processes]
        return self.own_processes + inside

    def free_starts(self, profile: Profile, beside: tuple[int, ...] = ()) -> tuple[int, ...]:
        """Memory slices at which this profile fits now, beside as many more of it at the starts given."""
        taken = {piece for instance in self.instances for piece in instance.memory_slices}
        taken |= {piece for start in beside for piece in range(start, start + profile.memory_slices)}
        present = [*(instance.profile for instance in self.instances), *[profile] * len(beside)]
        whole = max(self.board.profiles, key=lambda one: (one.compute_slices, one.memory_mib))
        with_it = [*present, profile]
        if (
            sum(one.id == profile.id for one in with_it) > profile.most
            or sum(one.compute_slices for one in with_it) > self.board.compute_slices
            or sum(one.engines[3] for one in with_it) > whole.engines[3]
            or sum(one.engines[4] for one in with_it) > whole.engines[4]
        ):
            return ()

        return tuple(
            start for start in profile.starts if not taken & set(range(start, start + profile.memory_slices))
        )

    def capacity(self, profile: Profile) -> int:
        """How many more of this profile fit."""
        placed: tuple[int, ...] = ()
        while free := self.free_starts(profile, placed):
            placed += (free[0],)

        return len(placed)

    def create_gpu_instance(self, profile: Profile, start: int | None = None) -> GpuInstance:
        """Occupy the profile's memory slices from ``start`` on; without it, from the highest that is free."""
        if not self.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        if start is not None and start not in profile.starts:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        free = self.free_starts(profile)
        if not free or (start is not None and start not in free):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)

        start = free[-1] if start is None else start
        new = GpuInstance(self._free_instance_id(profile), profile, start, self)
        self.instances.append(new)
        return new

    def create_compute_instance(
        self, instance: GpuInstance, slices: int, start: int | None = None
    ) -> ComputeInstance:
        """Occupy compute slices of the GPU instance, without ``start`` the lowest that are free.

        The MIG device gets the lowest free index.
        """
        starts = instance.compute_starts(slices)
        if not starts:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        if start is not None and start not in starts:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        free = instance.free_compute_starts(slices)
        if not free or (start is not None and start not in free):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES)

        lowest_id = min(set(range(16)) - {one.id for one in instance.compute})
        new = ComputeInstance(lowest_id, free[0] if start is None else start, slices, instance)
        instance.compute.append(new)
        index = min(set(range(64)) - self.asked.holes - set(self.mig_devices))
        self.mig_devices[index] = MigDevice(self, instance, new, next(self._generations))
        return new

    def destroy_compute_instance(self, compute: ComputeInstance) -> None:
        """Free its slices, unless a process uses it."""
        self._refuse_in_use(compute.processes)
        compute.gone = True
        compute.gpu_instance.compute.remove(compute)
        self.mig_devices = {
            index: device
            for index, device in self.mig_devices.items()
            if device.compute_instance is not compute
        }

    def destroy_gpu_instance(self, instance: GpuInstance) -> None:
        """Free its slices, unless it has compute instances."""
        if instance.compute:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_IN_USE)

        instance.gone = True
        self.instances.remove(instance)

    def set_mode(self, mig: bool) -> int:
        """Ask for a mode; the activation status. IN_USE is raised where instances are in the way of disabling.

        An idle GPU of Hopper or later takes the mode up at once, one of Ampere at its next reset.
        """
        if self.mig and not mig and self.instances:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_IN_USE)

        if mig == self.mig:
            self.pending = mig
            return int(pynvml.NVML_SUCCESS)

        self.pending = mig if not self.board.resetless else self.pending
        try:
            self._refuse_in_use(self.processes)
        except pynvml.NVMLError as error:
            return int(error.value)

        if self.held:
            return int(pynvml.NVML_ERROR_IN_USE)

        if not self.board.resetless:
            return int(pynvml.NVML_ERROR_RESET_REQUIRED)

        self.mig = self.pending = mig
        return int(pynvml.NVML_SUCCESS)

    def reset(self) -> None:
        """A GPU reset: what is pending comes into force, no instance survives."""
        self._refuse_in_use(self.processes)
        if self.held:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_IN_USE)

        for instance in self.instances:
            instance.gone = True
            for compute in instance.compute:
                compute.gone = True

        self.instances, self.mig_devices = [], {}
        self.mig = self.pending

    def _refuse_in_use(self, processes: list[Process]) -> None:
        """IN_USE while a process is there; one that is to leave comes nearer to that."""
        if not processes:
            return

        for process in processes:
            if process.leaves_after is not None:
                process.leaves_after -= 1
                if process.leaves_after <= 0:
                    self.end(process.pid)

        raise pynvml.NVMLError(pynvml.NVML_ERROR_IN_USE)

    def end(self, pid: int) -> None:
        """The process is gone, from all that it used."""
        for place in (self, *(each for one in self.instances for each in one.compute)):
            if isinstance(place, GpuState):
                place.own_processes = [one for one in place.own_processes if one.pid != pid]
            else:
                place.processes = [one for one in place.processes if one.pid != pid]

    def _free_instance_id(self, profile: Profile) -> int:
        """Neither dense nor in order, and reused: 7g is 0, 3g and 4g count from 1, 2g from 3, 1g from 7."""
        first = {7: 0, 4: 1, 3: 1, 2: 3, 1: 7}[profile.compute_slices]
        return min(set(range(first, first + 16)) - {instance.id for instance in self.instances})


def _arranged(instance: GpuInstance, wanted: tuple[int | tuple[int, int], ...]) -> list[tuple[int, int]]:
    """(start, slices) for each compute instance wanted, chosen so that all fit where that can be.

    Where they do not, each at its first start: creating them is then refused as the driver would.
    """
    choices = []
    for one in wanted:
        slices = one if isinstance(one, int) else one[1]
        starts = instance.compute_starts(slices) if isinstance(one, int) else (one[0],)
        choices.append([(start, slices) for start in starts or (0,)])

    for chosen in product(*choices):
        taken = [piece for start, slices in chosen for piece in range(start, start + slices)]
        if len(taken) == len(set(taken)):
            return list(chosen)

    return [one[0] for one in choices]


def uuid_of(name: str) -> str:
    """``GPU-…``, the same for the same name."""
    return f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, name)}"
