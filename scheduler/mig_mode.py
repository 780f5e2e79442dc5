"""Switch MIG on or off: look for what stands in the way, ask for the mode, tell the truth of what came of it."""

import subprocess
from collections.abc import Callable

from scheduler import capabilities, mig, mig_plan, nvml, preflight
from scheduler.checkpoint import Shelf
from scheduler.errors import HeteroMigError, LayoutUnchanged, ModePending, NotFound, NotSupported
from scheduler.geometry import GpuMig
from scheduler.holders import HoldersReport, holders
from scheduler.mig_changes import mode_word
from scheduler.nvml_mig import NvmlMig
from scheduler.preflight import Obstacle
from scheduler.waiting import SignalsWaiting

RESET = ("nvidia-smi", "--gpu-reset", "-i")
"""NVML has no call for it. It wants a GPU that nobody holds, this process neither: NVML is closed before."""
RESET_TIMEOUT_S = 300.0

Agreed = Callable[[str], bool]
"""Asks a person a question; False for no."""


def switch(asked: str | None, enabled: bool, shelf: Shelf, told: mig.Told, agreed: Agreed | None) -> int:
    """Switch the GPUs that ``--gpu`` names, one after the other; the exit code: 0 if all are so now.

    Nothing is killed. A GPU is reset only where the mode waits for that, and ``agreed`` says yes; None: never.

    Raises:
        SpecError, GpuError, LayoutsLocked: nothing was done.
    """
    with shelf.locked("enable MIG" if enabled else "disable MIG"):
        with nvml.open() as library:
            gpus = mig_plan.chosen(NvmlMig(library).gpus(), asked)

        if not any(gpu.capable for gpu in gpus):
            raise NotSupported(
                asked=f"{'enable' if enabled else 'disable'} MIG",
                found=", ".join(f"GPU {gpu.index} ({gpu.name}) knows no MIG" for gpu in gpus)
                or "no GPU here",
                do="choose a GPU that knows MIG (A30, A100, H100 and newer), with a driver that does",
            )

        code = 0
        for gpu in gpus:
            if not gpu.capable and asked is None:
                continue

            try:
                _switch(gpu, enabled, told, agreed)
            except HeteroMigError as error:
                told(str(error))
                code = error.exit_code

        return code


def _switch(gpu: GpuMig, enabled: bool, told: mig.Told, agreed: Agreed | None) -> None:
    report = holders(gpu.minor) if gpu.minor is not None else HoldersReport(holders=())
    obstacles = preflight.before_mode_change(gpu, capabilities.read(), report, enabled)
    for each in obstacles:
        told(f"GPU {gpu.index}: {each.what}\n       {each.do}")

    blocking = [each for each in obstacles if each.blocks]
    if blocking:
        raise _in_the_way(gpu, enabled, blocking)

    if gpu.enabled == enabled and gpu.pending == enabled:
        told(f"GPU {gpu.index}: MIG is {mode_word(enabled)} already")
        return

    try:
        with nvml.open() as library, SignalsWaiting():
            mig.set_mode(NvmlMig(library), gpu.uuid, enabled, told)
    except ModePending:
        if agreed is None or not agreed(
            f"Reset GPU {gpu.index} ({gpu.uuid}) now? Whatever runs on it is lost."
        ):
            raise

        _reset(gpu, enabled, told)

    told(f"GPU {gpu.index}: MIG is {mode_word(enabled)}")
    if enabled:
        told(
            f"       it has no instance, so nothing can use it yet: hetero-mig mig apply LAYOUT --gpu {gpu.index}"
        )


def _reset(gpu: GpuMig, enabled: bool, told: mig.Told) -> None:
    """Reset a GPU, and see what that did to its mode.

    Raises:
        LayoutUnchanged: the mode is as before.
        NotFound: there is no nvidia-smi to reset it with.
    """
    asked = f"reset GPU {gpu.index}"
    told(f"GPU {gpu.index}: reset")
    command = [*RESET, gpu.uuid]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RESET_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise NotFound(
            asked=asked,
            found="there is no nvidia-smi on the PATH to do it with",
            do="install the driver's tools, or reboot",
        ) from error
    except subprocess.TimeoutExpired as error:
        raise LayoutUnchanged(
            asked=asked,
            found=f"nvidia-smi did not end within {RESET_TIMEOUT_S:g} s",
            do="see dmesg for what the driver says, then reboot",
        ) from error

    with nvml.open() as library:
        found = NvmlMig(library).gpu(gpu.uuid)

    if done.returncode != 0 or found.enabled != enabled:
        said = " ".join((done.stdout + done.stderr).split()) or "nothing"
        raise LayoutUnchanged(
            asked=asked,
            found=f"MIG is still {mode_word(found.enabled)}; nvidia-smi ended with {done.returncode} and says: {said}",
            do="end what uses the GPU (hetero-mig mig status names it), or reboot",
        )


def _in_the_way(gpu: GpuMig, enabled: bool, blocking: list[Obstacle]) -> LayoutUnchanged:
    return LayoutUnchanged(
        asked=f"{'enable' if enabled else 'disable'} MIG on GPU {gpu.index}",
        found="; ".join(each.what for each in blocking) + "; nothing was changed",
        do="; ".join(each.do for each in blocking),
    )
