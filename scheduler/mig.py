"""Bring the MIG of some GPUs from what it is to what is asked, or leave it as it was: never in between.

What to do is decided in ``mig_changes``; here it is done, one step at a time, each read back. If a step
fails, the diff back to what was there before is done in the same way.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from scheduler import checkpoint, clock, reshape
from scheduler.checkpoint import Shelf
from scheduler.errors import (
    DevicesInUse,
    GpuError,
    HeteroMigError,
    InstanceInUse,
    LayoutBetween,
    LayoutUnchanged,
    ModePending,
    NotAsAsked,
)
from scheduler.geometry import GpuInstance, GpuMig, GpuState, layout_of, state_of
from scheduler.holders import Holder, describe
from scheduler.mig_changes import Change, description, mode_word, refuse_unseen, words
from scheduler.nvml_mig import NvmlMig
from scheduler.reshape import CreateCompute, CreateGpu, DestroyCompute, DestroyGpu, Layout, Step
from scheduler.waiting import SignalsWaiting

RESTORE_ATTEMPTS = 3
"""A failure on the way back may be a passing one (IN_USE by a monitor that looks at the instance)."""

Told = Callable[[str], None]
"""Given a line of words for each thing that is done."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to go on trying to destroy what is in use: a process that has ended holds on for a moment."""

    tries: int = 20
    every_s: float = 0.25


def busy_devices(mig: NvmlMig, gpus: Sequence[GpuMig]) -> dict[str, tuple[int, ...]]:
    """The MIG devices on which something runs, by UUID, with its pids; as far as this user may see."""
    found = {}
    for gpu in gpus:
        for device in (each.uuid for instance in gpu.instances for each in instance.compute):
            if device and (pids := pids_on(mig, device)):
                found[device] = pids

    return found


def apply(
    mig: NvmlMig,
    wanted: Sequence[Change],
    shelf: Shelf,
    asked: str,
    told: Told = lambda _line: None,
    patience: Patience = Patience(),
) -> None:
    """Do the changes, all of them or none. Stop signals wait until it is one or the other.

    Raises:
        LayoutsLocked, LayoutLeft: another process changes layouts, or has left one.
        DevicesInUse: something runs on what would have to go; nothing was changed.
        LayoutUnchanged: a step failed, a mode did not take effect, or what is there is no longer what the changes
            were worked out from; all is as before.
        LayoutBetween: a step failed, and so did the way back; what was there before waits on the shelf.
    """
    with SignalsWaiting(), shelf.locked(asked), _kept(mig, wanted, shelf, asked):
        _all_or_nothing(mig, wanted, asked, told, patience)


def restore(
    mig: NvmlMig,
    wanted: Sequence[Change],
    shelf: Shelf,
    asked: str,
    told: Told = lambda _line: None,
    patience: Patience = Patience(),
) -> None:
    """Do the changes that lead back to what waits on the shelf, and clear it. Raises what ``apply`` raises."""
    with SignalsWaiting(), shelf.locked(asked):
        _refuse_if_changed(mig, wanted, asked)
        _refuse_if_in_use(mig, wanted, asked)
        _all_or_nothing(mig, wanted, asked, told, patience)
        shelf.clear()


@contextmanager
def applied(
    mig: NvmlMig,
    wanted: Sequence[Change],
    shelf: Shelf,
    asked: str,
    told: Told = lambda _line: None,
    patience: Patience = Patience(),
) -> Iterator[None]:
    """The changes are in force inside, and undone on every way out.

    What was there before is on disk meanwhile, for the next process to restore if this one is killed.

    Raises:
        LayoutBetween: on leaving, what was there before could not be put back; it waits on the shelf.
        And whatever ``apply`` raises.
    """
    # A signal that came while the layout was made is delivered inside: there, it undoes it.
    with SignalsWaiting() as waiting, shelf.locked(asked), _kept(mig, wanted, shelf, asked):
        _all_or_nothing(mig, wanted, asked, told, patience)
        try:
            with waiting.heard():
                yield
        finally:
            before = {change.gpu.uuid: state_of(change.gpu) for change in wanted}
            _bring_back(mig, before, None, f"put back what was there before {asked}", told, patience)
            shelf.clear()


@contextmanager
def _kept(mig: NvmlMig, wanted: Sequence[Change], shelf: Shelf, asked: str) -> Iterator[None]:
    """What is there now waits on the shelf, until it is known to be there again, or the change to be whole."""
    _refuse_if_changed(mig, wanted, asked)
    _refuse_if_in_use(mig, wanted, asked)
    shelf.put(checkpoint.take([change.gpu for change in wanted], asked))
    try:
        yield
    except LayoutUnchanged:
        shelf.clear()
        raise

    shelf.clear()


def _all_or_nothing(
    mig: NvmlMig, wanted: Sequence[Change], asked: str, told: Told, patience: Patience
) -> None:
    before = {change.gpu.uuid: state_of(change.gpu) for change in wanted}
    try:
        for change in wanted:
            _bring(mig, change.gpu.uuid, change.to, told, patience)
    except HeteroMigError as error:
        undone = _bring_back(mig, before, error, asked, told, patience)
        outcome = "what was there before is there again" if undone else "nothing was changed"
        raise LayoutUnchanged(
            asked=asked, found=f"{error.asked}: {error.found}; {outcome}", do=error.do
        ) from error


def set_mode(mig: NvmlMig, uuid: str, enabled: bool, told: Told = lambda _line: None) -> GpuMig:
    """Ask for a MIG mode, and tell what came of it by reading back.

    Raises:
        ModePending: it waits for a reset of the GPU or a reboot; it still does when this is raised.
        GpuError: the driver refuses.
    """
    word = "enable" if enabled else "disable"
    before = mig.gpu(uuid)
    told(f"GPU {before.index}: {word} MIG")
    answer = mig.set_mode(uuid, enabled)
    found = mig.gpu(uuid)
    if found.enabled == enabled and found.pending == enabled:
        return found

    if found.pending == enabled:
        raise ModePending(
            asked=f"{word} MIG on GPU {found.index}",
            found=f"MIG is still {mode_word(found.enabled)}, and will be {mode_word(enabled)} after a reset "
            f"(NVML answers {answer})",
            do=f"reset the GPU while nothing uses it (hetero-mig mig {word} --gpu {found.index} --reset), or reboot; "
            "in a virtual machine with a passed-through GPU, reboot it",
        )

    raise NotAsAsked(
        asked=f"{word} MIG on GPU {found.index}",
        found=f"the driver took it and answers {answer}, but MIG is {mode_word(found.enabled)} and nothing is pending",
        do="end what uses the GPU (hetero-mig mig status names it), then try again",
    )


def _bring(mig: NvmlMig, uuid: str, to: GpuState, told: Told, patience: Patience) -> int:
    """Mode and instances of one GPU, from whatever they are; how much there was to do. Instances go before MIG does."""
    gpu = _read(mig, uuid)
    switch = (gpu.enabled, gpu.pending) != (to.enabled, to.enabled)
    if switch and to.enabled:
        gpu = set_mode(mig, uuid, True, told)

    there = layout_of(gpu.instances)
    steps = reshape.steps(there, to.layout)
    for step in steps:
        told(f"GPU {gpu.index}: {words(step, gpu.geometry)}")
        there = _do(mig, uuid, step, there, patience)

    if switch and not to.enabled:
        set_mode(mig, uuid, False, told)

    return len(steps) + switch


def _bring_back(
    mig: NvmlMig,
    before: Mapping[str, GpuState],
    why: HeteroMigError | None,
    asked: str,
    told: Told,
    patience: Patience,
) -> int:
    """Every GPU as it was; how much there was to do for it.

    Raises:
        LayoutBetween: it cannot be done.
    """
    done = 0
    failures: dict[str, HeteroMigError] = {}
    for uuid, state in before.items():
        for _attempt in range(RESTORE_ATTEMPTS):
            try:
                done += _bring(mig, uuid, state, told, patience)
            except HeteroMigError as error:
                failures[uuid] = error
            else:
                failures.pop(uuid, None)
                break

    if failures:
        first = next(iter(failures.values()))
        cause = f"{why.asked}: {why.found}; then, " if why else ""
        raise LayoutBetween(
            asked=asked,
            found=f"{cause}on the way back, {first.asked}: {first.found}. "
            f"The layout of {', '.join(failures)} may be neither the one asked for nor the one before",
            do=f"{first.do}; then put back what was there: hetero-mig mig restore",
        ) from first

    return done


def _do(mig: NvmlMig, uuid: str, step: Step, there: Layout, patience: Patience) -> Layout:
    """One step, read back."""
    wanted = reshape.after(there, step)
    gpu = _read(mig, uuid)
    if isinstance(step, CreateGpu):
        mig.create_gpu_instance(uuid, step.profile_id, step.placement)
    elif isinstance(step, CreateCompute):
        mig.create_compute_instance(uuid, _instance(gpu, step).id, step.compute)
    else:
        _destroy(mig, gpu, step, patience)

    found = _read(mig, uuid)
    if layout_of(found.instances) != wanted:
        raise NotAsAsked(
            asked=f"{words(step, gpu.geometry)} on GPU {gpu.index}",
            found=f"the driver did not refuse, but now there is {description(found)}",
            do="see that nothing else changes MIG at the same time (nvidia-mig-manager, another administrator)",
        )

    return wanted


def _read(mig: NvmlMig, uuid: str) -> GpuMig:
    """A GPU as it is.

    Raises:
        NoPermission: its instances cannot be seen; no instance seen is not the same as none there.
    """
    gpu = mig.gpu(uuid)
    refuse_unseen(gpu, f"read the instances of GPU {gpu.index}")
    return gpu


def _destroy(mig: NvmlMig, gpu: GpuMig, step: DestroyCompute | DestroyGpu, patience: Patience) -> None:
    instance = _instance(gpu, step)
    device = None
    if isinstance(step, DestroyCompute):
        device = next(each for each in instance.compute if each.placement == step.compute)

    uuid = device.uuid if device else gpu.uuid
    for attempt in range(patience.tries):
        try:
            if device is None:
                mig.destroy_gpu_instance(gpu.uuid, instance.id)
            else:
                mig.destroy_compute_instance(gpu.uuid, instance.id, device.id)
        except InstanceInUse as error:
            if attempt + 1 < patience.tries:
                clock.pause(patience.every_s)
                continue

            raise InstanceInUse(
                asked=f"{words(step, gpu.geometry)} on GPU {gpu.index}",
                found=f"{error.found}, for {patience.tries * patience.every_s:g} s; "
                + ("" if device else "the GPU is ")
                + _who(describe(pids_on(mig, uuid) if uuid else ())),
                do="end them, then try again",
            ) from error
        else:
            return


def _refuse_if_changed(mig: NvmlMig, wanted: Sequence[Change], asked: str) -> None:
    """The changes were worked out before the lock was had: another process may have changed the GPUs since."""
    for change in wanted:
        then = change.gpu
        try:
            now = _read(mig, then.uuid)
        except HeteroMigError as error:
            raise LayoutUnchanged(
                asked=asked, found=f"{error.asked}: {error.found}; nothing was changed", do=error.do
            ) from error

        if (state_of(then), then.pending) != (state_of(now), now.pending):
            raise LayoutUnchanged(
                asked=asked,
                found=f"GPU {now.index} was changed meanwhile, by something else: then {description(then)}; "
                f"now {description(now)}",
                do="try again; nothing was changed by this",
            )


def _refuse_if_in_use(mig: NvmlMig, wanted: Sequence[Change], asked: str) -> None:
    """Before anything is touched: what would have to go must be idle."""
    for change in wanted:
        going = [step for step in change.steps if isinstance(step, DestroyCompute)]
        busy = busy_devices(mig, [change.gpu])
        for step in going:
            device = next(
                each for each in _instance(change.gpu, step).compute if each.placement == step.compute
            )
            if device.uuid in busy:
                raise DevicesInUse(
                    asked=asked,
                    found=f"it would have to {words(step, change.geometry)} on GPU {change.gpu.index} ({device.uuid}), "
                    + _who(describe(busy[device.uuid])),
                    do="end them, then try again; nothing was changed",
                )


def _instance(gpu: GpuMig, step: Step) -> GpuInstance:
    for each in gpu.instances:
        if (each.profile_id, each.placement) == (step.profile_id, step.placement):
            return each

    raise NotAsAsked(
        asked=f"{words(step, gpu.geometry)} on GPU {gpu.index}",
        found=f"that GPU instance is not there; there is {description(gpu)}",
        do="see that nothing else changes MIG at the same time",
    )


def pids_on(mig: NvmlMig, uuid: str) -> tuple[int, ...]:
    """Who computes on a GPU or a MIG device; none where the driver does not tell this user."""
    try:
        return tuple(process.pid for process in mig.processes(uuid))
    except GpuError:
        return ()


def _who(holders: Sequence[Holder]) -> str:
    if not holders:
        return "used by processes that NVML does not name to this user, if by any"

    return "used by " + ", ".join(map(str, holders))
