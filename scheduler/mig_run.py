"""A layout for the time of a run: worked out before anything starts, in force while it runs, undone after it."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import FrameType

from scheduler import mig, mig_plan, nvml
from scheduler.checkpoint import Shelf, left
from scheduler.errors import NoUsableSlice, Stopped
from scheduler.geometry import device_name
from scheduler.host import Host
from scheduler.mig import Told
from scheduler.mig_changes import Change, changes, changes_to
from scheduler.nvml_mig import NvmlMig
from scheduler.orphans import STOP_SIGNALS
from scheduler.slices import Machine, MigSlice


def planned(asked: str, machine: Machine) -> tuple[Machine, list[Change]]:
    """The machine as ``--layout`` will make it, and what that takes. Nothing is changed.

    The MIG devices that are to come have no UUID yet: a plan made on them shows which benchmark goes where.

    Raises:
        SpecError: it is no layout, or a GPU has no room for it.
        GpuError: the GPUs cannot be read.
    """
    if machine.gpu_error is not None:
        raise machine.gpu_error

    with nvml.open() as library:
        found = _changes(NvmlMig(library), asked)

    by_uuid = {change.gpu.uuid: change for change in found}
    gpus = tuple(
        replace(
            gpu, mig_enabled=by_uuid[gpu.uuid].to.enabled, mig_devices=_devices(by_uuid[gpu.uuid], machine)
        )
        if gpu.uuid in by_uuid
        else gpu
        for gpu in machine.gpus
    )
    return replace(machine, gpus=gpus), found


@contextmanager
def in_force(asked: str, shelf: Shelf, told: Told) -> Iterator[Machine]:
    """The machine with the layout in force; on every way out, what was there before is there again.

    A stop signal that arrives while no run is there to hear it raises Stopped, so that leaving takes place.

    Raises:
        Whatever ``mig.applied`` raises.
    """
    with _stops_raise(), nvml.open() as library:
        driver = NvmlMig(library)
        with mig.applied(driver, _changes(driver, asked), shelf, f"a run with --layout {asked}", told):
            machine = nvml.read_machine(Host())
            if machine.gpu_error is not None:
                raise machine.gpu_error

            yield machine

        told("what was there before the run is there again")


def restore_what_was_left(shelf: Shelf, told: Told) -> None:
    """Put back what was there before a run that died.

    Raises:
        Whatever ``mig.restore`` raises.
    """
    kept = shelf.waiting()
    if kept is None:
        return

    with nvml.open() as library:
        driver = NvmlMig(library)
        asked = f"restore what was there before {kept.reason}"
        mig.restore(driver, changes_to(driver.gpus(), kept.states(), asked), shelf, asked, told)


def refuse_what_was_left(shelf: Shelf, asked: str) -> None:
    """A layout cannot be applied over one that a run has left.

    Raises:
        LayoutLeft: one waits to be restored.
    """
    kept = shelf.waiting()
    if kept is not None:
        raise left(kept, shelf.path, asked)


def _changes(driver: NvmlMig, asked: str) -> list[Change]:
    gpus = driver.gpus()
    targets = mig_plan.targets(asked, gpus, gpus)
    found = changes(gpus, targets, mig.busy_devices(driver, gpus), f"--layout {asked}")
    if not any(change.to.layout for change in found):
        raise NoUsableSlice(
            asked=f"--layout {asked}",
            found="it leaves no MIG device on any GPU here",
            do="name a layout with MIG devices, or leave --layout out",
        )

    return found


def _devices(change: Change, machine: Machine) -> tuple[MigSlice, ...]:
    gpu = next(each for each in machine.gpus if each.uuid == change.gpu.uuid)
    there = {(each.profile_id, each.placement): each for each in change.gpu.instances}
    found = []
    for placed in sorted(change.to.layout, key=lambda each: each.placement):
        profile = change.geometry.of_id(placed.profile_id)
        instance = there.get((placed.profile_id, placed.placement))
        for compute in placed.compute:
            device = (
                next((each for each in instance.compute if each.placement == compute), None)
                if instance
                else None
            )
            if profile is None:
                continue

            name = device_name(profile, compute.size)
            share_mib = gpu.memory_mib * placed.placement.size // change.geometry.memory_slices
            found.append(
                MigSlice(
                    id=f"gpu{gpu.index}:gi{instance.id}:ci{device.id}"
                    if instance and device
                    else f"gpu{gpu.index}:{name}@{placed.placement.start}.{compute.start}",
                    name=name,
                    uuid=device.uuid if device and device.uuid else "MIG-(made by --layout)",
                    gpu_uuid=gpu.uuid,
                    gpu_index=gpu.index,
                    gpu_name=gpu.name,
                    gpu_instance_id=instance.id if instance else -1,
                    compute_instance_id=device.id if device else -1,
                    gi_profile_id=placed.profile_id,
                    placement_start=placed.placement.start,
                    placement_size=placed.placement.size,
                    sms=profile.sms if compute.size == profile.compute_slices else None,
                    memory_mib=profile.memory_mib or share_mib,
                    cores=gpu.cores,
                    numa_node=gpu.numa_node,
                )
            )

    return tuple(found)


@contextmanager
def _stops_raise() -> Iterator[None]:
    """Within, a stop signal raises Stopped, but for those that whoever started us wants ignored (nohup)."""

    def stop(number: int, _frame: FrameType | None) -> None:
        raise Stopped(number)

    former = {
        number: signal.signal(number, stop)
        for number in STOP_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
