"""What is to become of each GPU, from what is there and what is asked: MIG's mode and the steps of its diff. Pure."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from scheduler import layout, placement, reshape
from scheduler.errors import NoPermission, NotSupported, SpecError
from scheduler.geometry import Geometry, GpuInstance, GpuMig, GpuState, WantedInstance, device_name, layout_of
from scheduler.gpu_tables import of_gpu
from scheduler.layout import GpuTarget
from scheduler.reshape import CreateCompute, CreateGpu, DestroyGpu, Step


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of one GPU."""

    gpu: GpuMig
    geometry: Geometry
    to: GpuState
    steps: tuple[Step, ...]
    """From the layout that is there, once the mode is right."""

    @property
    def switches_mode(self) -> bool:
        return self.gpu.enabled != self.to.enabled or self.gpu.pending != self.to.enabled

    @property
    def is_none(self) -> bool:
        """Everything is as it is to be already."""
        return not self.steps and not self.switches_mode


def changes(
    gpus: Sequence[GpuMig], targets: Mapping[str, GpuTarget], busy: Collection[str], asked: str
) -> list[Change]:
    """The smallest change of each GPU that gives it its target.

    Args:
        gpus: as they are.
        targets: by GPU UUID, mode and MIG devices.
        busy: UUIDs of the MIG devices on which something runs; these are kept if it is possible.
        asked: for the error.

    Raises:
        SpecError: a target cannot be placed, or names no profile of its GPU.
        NotSupported: a GPU with a target knows no MIG.
        NoPermission: its instances cannot be read.
    """
    found = []
    for gpu in gpus:
        if gpu.uuid not in targets:
            continue

        target = targets[gpu.uuid]
        if not gpu.capable and not target.mig_enabled:
            continue

        geometry = geometry_of(gpu, asked)
        wanted = layout.instances_of(target.devices, geometry) if target.mig_enabled else ()
        to = reshape.target(geometry, gpu.instances, wanted, busy)
        if to is None:
            raise not_placeable(geometry, wanted, asked)

        there = layout_of(gpu.instances)
        found.append(Change(gpu, geometry, GpuState(target.mig_enabled, to), tuple(reshape.steps(there, to))))

    return found


def changes_to(gpus: Sequence[GpuMig], states: Mapping[str, GpuState], asked: str) -> list[Change]:
    """What leads back to these exact states.

    Raises:
        SpecError: one of the GPUs is not here.
    """
    here = {gpu.uuid: gpu for gpu in gpus}
    for uuid in states:
        if uuid not in here:
            raise SpecError(
                asked=asked,
                found=f"{uuid} is not on this machine",
                do=f"restore on the machine that the checkpoint is of (here: {', '.join(here) or 'no GPU'})",
            )

    return [
        Change(
            here[uuid],
            geometry_of(here[uuid], asked),
            to,
            tuple(reshape.steps(layout_of(here[uuid].instances), to.layout)),
        )
        for uuid, to in states.items()
        if here[uuid].capable
    ]


def geometry_of(gpu: GpuMig, asked: str) -> Geometry:
    """How a GPU can be divided: as its driver says, or by the built-in table where the driver does not.

    Raises:
        NotSupported: the GPU knows no MIG.
        NoPermission: its instances cannot be read.
    """
    geometry = gpu.geometry or of_gpu(gpu.name)
    if not gpu.capable or geometry is None:
        raise NotSupported(
            asked=asked,
            found=f"GPU {gpu.index} ({gpu.name}) knows no MIG",
            do="name GPUs that do: hetero-mig mig status",
        )

    refuse_unseen(gpu, asked)
    return geometry


def refuse_unseen(gpu: GpuMig, asked: str) -> None:
    """No instance seen is not the same as none there.

    Raises:
        NoPermission, NotSupported: the instances of this GPU cannot be read.
    """
    if gpu.instances_error:
        refused = "NO_PERMISSION" in gpu.instances_error
        do = "run as root, or see the rights: hetero-mig mig status" if refused else "update the driver"
        raise (NoPermission if refused else NotSupported)(asked=asked, found=gpu.instances_error, do=do)


def not_placeable(geometry: Geometry, wanted: Sequence[WantedInstance], asked: str) -> SpecError:
    """The error for a layout that a GPU has no room for, with the nearest ones that it has room for."""
    profiles = [each.profile for each in wanted]
    near = [layout.text_of(each) for each in placement.nearest(geometry, profiles)]
    return SpecError(
        asked=asked,
        found=f"{geometry.gpu_name} has no room for it: {placement.why_not(geometry, profiles)}",
        do=f"take one of the nearest that it has room for: {'; '.join(near)}",
    )


# ---------------------------------------------------------------------- words


def words(step: Step, geometry: Geometry | None) -> str:
    """A step for people: ``create GPU instance 3g.40gb at memory slice 4``."""
    profile = geometry.of_id(step.profile_id) if geometry else None
    name = profile.name if profile else f"of profile {step.profile_id}"
    where = f"at memory slice {step.placement.start}"
    if isinstance(step, CreateGpu):
        return f"create GPU instance {name} {where}"

    if isinstance(step, DestroyGpu):
        return f"destroy GPU instance {name} {where}"

    device = device_name(profile, step.compute.size) if profile else f"{step.compute.size}c of {name}"
    verb = "create" if isinstance(step, CreateCompute) else "destroy"
    return f"{verb} MIG device {device} {where}" + (
        f", compute slice {step.compute.start}"
        if profile and step.compute.size != profile.compute_slices
        else ""
    )


def mode_word(enabled: bool) -> str:
    """A MIG mode for people."""
    return "enabled" if enabled else "disabled"


def description(gpu: GpuMig) -> str:
    """What is on a GPU, in a line: ``3g.40gb at 4, 1g.10gb at 3 (no compute instance)``."""
    if not gpu.enabled:
        return "no MIG"

    return ", ".join(_instance_words(gpu, each) for each in gpu.instances) or "no GPU instance"


def _instance_words(gpu: GpuMig, instance: GpuInstance) -> str:
    profile = gpu.geometry.of_id(instance.profile_id) if gpu.geometry else None
    if profile is None:
        return f"profile {instance.profile_id} at {instance.placement.start}"

    sizes = [each.placement.size for each in instance.compute]
    if sizes == [profile.compute_slices]:
        inside = ""
    else:
        inside = f" ({' + '.join(f'{size}c' for size in sizes) or 'no compute instance'})"

    return f"{profile.name} at {instance.placement.start}{inside}"
