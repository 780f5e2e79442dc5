"""What stands in the way of a MIG mode change, found before it is tried. Decides on values; reads nothing."""

from collections.abc import Iterator
from dataclasses import dataclass

from scheduler.capabilities import Right, Rights
from scheduler.geometry import GpuMig
from scheduler.holders import HoldersReport, how_to_stop, must_stop


@dataclass(frozen=True, slots=True)
class Obstacle:
    """One thing in the way, and what removes it."""

    what: str
    do: str
    blocks: bool = True
    """False for what may be in the way, or delays the change: to be told, not a reason to refuse."""


def before_mode_change(
    gpu: GpuMig, rights: Rights, holders_report: HoldersReport, enabled: bool
) -> tuple[Obstacle, ...]:
    """What is in the way of switching MIG on (``enabled``) or off on one GPU.

    Empty where nothing is, also where the GPU is in that mode already and no other waits.
    """
    if not gpu.capable:
        do = "choose a GPU that knows MIG (A30, A100, H100 and newer)"
        return (Obstacle(f"{_called(gpu)} or its driver does not know MIG", do),)
    elif gpu.enabled == gpu.pending == enabled:
        return ()
    elif gpu.enabled == enabled:  # the change that waits is taken back: nothing takes effect on the GPU
        return tuple(_rights(rights.mode))
    else:
        return (
            *_rights(rights.mode),
            *_pending(gpu, enabled),
            *(() if enabled else _instances(gpu)),
            *_holders(gpu, holders_report),
        )


def _rights(mode: Right) -> Iterator[Obstacle]:
    if not mode.allowed:
        refused = mode.allowed is False
        what = (
            "no right to change the mode" if refused else "whether this user may change the mode is unknown"
        )
        yield Obstacle(f"{what}: {mode.reason}", mode.do, blocks=refused)


def _pending(gpu: GpuMig, enabled: bool) -> Iterator[Obstacle]:
    if gpu.pending == enabled:
        mode = "enabled" if enabled else "disabled"
        yield Obstacle(
            f"{_called(gpu)} is to be {mode} already and waits for a reset",
            f"stop what holds it, then: sudo nvidia-smi --gpu-reset -i {gpu.uuid}; or reboot",
            blocks=False,
        )


def _instances(gpu: GpuMig) -> Iterator[Obstacle]:
    if gpu.instances:
        number = len(gpu.instances)
        what = f"{_called(gpu)} has {number} GPU instance{'s' * (number > 1)}, which would be lost"
        yield Obstacle(what, "destroy them first: hetero-mig mig destroy")
    elif gpu.instances_error:
        yield Obstacle(
            f"whether {_called(gpu)} has GPU instances could not be read: {gpu.instances_error}",
            "run as root",
            blocks=False,
        )


def _holders(gpu: GpuMig, report: HoldersReport) -> Iterator[Obstacle]:
    for holder in report.holders:
        yield Obstacle(f"{holder} holds {_called(gpu)}", how_to_stop(holder), blocks=must_stop(holder))

    for client in report.driver_clients:
        what = f"{client} has the driver open, but no GPU"
        yield Obstacle(what, f"if the GPU is said to be in use: {how_to_stop(client)}", blocks=False)

    for spot in report.blind_spots:
        yield Obstacle(spot, "if the GPU is said to be in use, look there", blocks=False)

    if report.drm and not gpu.resetless:
        yield Obstacle(
            "the kernel module nvidia_drm is loaded, and a reset is refused while it is in use",
            "sudo modprobe -r nvidia_drm; sudo modprobe nvidia_drm afterwards",
            blocks=False,
        )


def _called(gpu: GpuMig) -> str:
    return f"GPU {gpu.index} ({gpu.name})"
