"""MIG's objects as values: profiles, placements, instances. NVML's words, no decision, no driver.

A GPU instance is placed in *memory slices*, a compute instance in the *compute slices* of its GPU instance:
two types, so that neither is taken for the other. An instance is known by its profile and placement; the
driver's ids are neither dense nor ordered and are used again.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, slots=True, order=True)
class MemoryPlacement:
    """Where a GPU instance lies, in memory slices."""

    start: int
    size: int

    @property
    def mask(self) -> int:
        """A bit for each memory slice it occupies."""
        return ((1 << self.size) - 1) << self.start


@dataclass(frozen=True, slots=True, order=True)
class ComputePlacement:
    """Where a compute instance lies, in the compute slices of its GPU instance. Its size is its profile:
    ``ComputePlacement(0, 2)`` is a ``2c`` at compute slice 0."""

    start: int
    size: int

    @property
    def mask(self) -> int:
        """A bit for each compute slice it occupies."""
        return ((1 << self.size) - 1) << self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """How many of each engine a GPU instance of a profile has; None where a built-in table's source does not say."""

    copy: int | None
    decoder: int | None
    encoder: int | None
    jpeg: int | None
    ofa: int | None
    """Optical flow accelerators."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInstanceProfile:
    """One kind of GPU instance that a GPU model has, as nvmlDeviceGetGpuInstanceProfileInfo tells it."""

    name: str
    """``1g.10gb``, ``1g.10gb+me``: the driver's name without its ``MIG ``."""
    id: int
    """What create, placement and capacity calls take; the same number is another profile on another GPU."""
    enum: int
    """NVML_GPU_INSTANCE_PROFILE_…: what the profile query takes."""
    compute_slices: int
    """``sliceCount``"""
    placements: tuple[MemoryPlacement, ...]
    """All it may have on an empty GPU, ascending."""
    most: int
    """``instanceCount``: how many of it fit on an empty GPU."""
    memory_mib: int | None
    """None where a built-in table's source does not say; so is ``sms``."""
    sms: int | None
    engines: Engines


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How one GPU model can be divided."""

    gpu_name: str
    """NVML's name: ``NVIDIA H200``."""
    profiles: tuple[GpuInstanceProfile, ...]
    """In the order of their ``enum``."""
    source: str
    """Where this was read: ``driver 580.65.06``, or the document the table was taken from."""

    @cached_property
    def memory_slices(self) -> int:
        """Of the whole GPU: 8, or 4 on an A30."""
        return max(place.start + place.size for each in self.profiles for place in each.placements)

    @cached_property
    def compute_slices(self) -> int:
        """Of the whole GPU: 7, or 4 on an A30."""
        return max(each.compute_slices for each in self.profiles)

    @cached_property
    def whole(self) -> GpuInstanceProfile:
        """The profile that has all the GPU has."""
        return max(self.profiles, key=lambda each: (each.compute_slices, each.memory_mib or 0))

    def named(self, name: str) -> GpuInstanceProfile | None:
        """The profile of this name (``1g.10gb+me``), or none."""
        return next((each for each in self.profiles if each.name == name), None)

    def of_id(self, profile_id: int) -> GpuInstanceProfile | None:
        """The profile of this id, or none."""
        return next((each for each in self.profiles if each.id == profile_id), None)


COMPUTE_SIZES: dict[int, tuple[int, ...]] = {
    1: (1,),
    2: (1, 2),
    3: (1, 2, 3),
    4: (1, 2, 4),
    7: (1, 2, 3, 4, 7),
}
"""Compute slices of a GPU instance → the sizes a compute instance of it may have (MIG User Guide, -lcip)."""

_COMPUTE_ALIGNMENT = {1: 1, 2: 2, 3: 4, 4: 4, 7: 7}


def compute_placements(compute_slices: int, size: int) -> tuple[ComputePlacement, ...]:
    """Where a compute instance of ``size`` may lie in a GPU instance of ``compute_slices``; empty for none.

    A 2c starts at an even compute slice, a 3c or 4c at a multiple of 4, as GPU instances do in memory slices.
    That is what the counts of -lcip (7g: 1c×7, 2c×3, 3c×2, 4c×1, 7c×1) come from. Where the driver is asked
    about a GPU instance that exists, its answer counts.
    """
    if size not in COMPUTE_SIZES.get(compute_slices, (compute_slices,)):
        return ()

    step = _COMPUTE_ALIGNMENT.get(size, size)
    return tuple(ComputePlacement(start, size) for start in range(0, compute_slices - size + 1, step))


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeProfile:
    """One kind of compute instance that an existing GPU instance can have, as the driver tells it."""

    size: int
    """``sliceCount``: ``2`` is a ``2c``."""
    id: int
    """What create and placement calls take."""
    most: int
    """How many of it fit in the empty GPU instance."""
    free: int | None
    """How many more fit now; None where the driver does not say."""
    sms: int
    placements: tuple[ComputePlacement, ...]
    """All it may have in the empty GPU instance, ascending; empty where the driver does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedInstance:
    """A GPU instance as it is to be, or to be found again: profile, placement, compute instances."""

    profile_id: int
    placement: MemoryPlacement
    compute: tuple[ComputePlacement, ...]
    """Ascending; empty for a GPU instance that nothing can run on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeInstance:
    """A compute instance that exists: with its GPU instance, a MIG device."""

    id: int
    placement: ComputePlacement
    uuid: str | None
    """Of the MIG device; None where this user may not see it."""
    mig_index: int | None = None
    """Of the MIG device on its GPU, as ``docker --gpus device=GPU:INDEX`` counts; indices have holes."""
    sms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuInstance:
    """A GPU instance that exists."""

    id: int
    profile_id: int
    placement: MemoryPlacement
    compute: tuple[ComputeInstance, ...]
    """By placement."""

    @property
    def placed(self) -> PlacedInstance:
        """It without the driver's ids."""
        return PlacedInstance(
            profile_id=self.profile_id,
            placement=self.placement,
            compute=tuple(sorted(each.placement for each in self.compute)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMig:
    """MIG on one GPU, as it was read at one moment."""

    index: int
    uuid: str
    name: str
    pci_device_id: int
    """Device and vendor: 0x233510DE is an H200. mig-parted's ``device-filter``."""
    pci_address: str
    """``0000:3b:00.0``"""
    minor: int | None
    """N of its device file /dev/nvidiaN."""
    capable: bool
    """Whether this GPU and driver know MIG at all."""
    enabled: bool
    """In force now."""
    pending: bool
    """What the mode will be after a reset of the GPU or a reboot; the same as ``enabled`` when nothing waits."""
    resetless: bool | None
    """Whether a mode change takes effect at once (NVML field 184; Hopper and newer)."""
    geometry: Geometry | None
    """None where the GPU knows no MIG."""
    instances: tuple[GpuInstance, ...]
    """By placement. Empty without MIG."""
    instances_error: str = ""
    """Why the instances could not be read (rights to MIG's monitor file); empty where they could."""
    pci_subsystem_id: int | None = None
    """The board's device and vendor, which newer ``device-filter``s may name after a colon; None if not read."""


def device_name(profile: GpuInstanceProfile, size: int) -> str:
    """A MIG device's name: ``3g.40gb``, or ``1c.3g.40gb`` where its compute instance is a part of it."""
    return profile.name if size == profile.compute_slices else f"{size}c.{profile.name}"


def layout_of(instances: Iterable[GpuInstance]) -> frozenset[PlacedInstance]:
    """What two layouts are compared by."""
    return frozenset(each.placed for each in instances)


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedInstance:
    """A GPU instance that is asked for, wherever it may lie."""

    profile: GpuInstanceProfile
    compute: tuple[ComputePlacement, ...]
    """Its compute instances, ascending."""


@dataclass(frozen=True, slots=True)
class GpuState:
    """MIG on one GPU, as it is to be: the mode, and under MIG every instance with its place."""

    enabled: bool
    layout: frozenset[PlacedInstance]


def state_of(gpu: GpuMig) -> GpuState:
    """What a GPU would have to be brought back to."""
    return GpuState(gpu.enabled, layout_of(gpu.instances))
