"""What stands in the way of a mode change, and what removes it."""

from dataclasses import replace
from pathlib import Path

import pytest

from scheduler.capabilities import Right, Rights, User
from scheduler.geometry import GpuInstance, GpuMig, MemoryPlacement
from scheduler.holders import Holder, HoldersReport
from scheduler.preflight import before_mode_change

RIGHT = Right(name="mode", allowed=True, reason="CAP_SYS_ADMIN")
REFUSED = Right(name="mode", allowed=False, reason="ada is not root", do="run as root")
UNKNOWN = Right(name="mode", allowed=None, reason="no /proc/driver/nvidia", do="load the driver")
NOBODY = HoldersReport(holders=())


def held_by(command: str) -> Holder:
    return Holder(pid=40, user="ada", command=command)


def with_mode_right(mode: Right) -> Rights:
    user = User(uid=1, gids=frozenset(), sys_admin=bool(mode.allowed))
    return Rights(root=Path("/"), user=user, config=mode, monitor=mode, mode=mode)


ADMIN = with_mode_right(RIGHT)
GPU = GpuMig(
    index=3,
    uuid="GPU-1",
    name="NVIDIA H200",
    pci_device_id=0x233510DE,
    pci_address="0000:3b:00.0",
    minor=3,
    capable=True,
    enabled=False,
    pending=False,
    resetless=True,
    geometry=None,
    instances=(),
)
ENABLED = replace(GPU, enabled=True, pending=True)
INSTANCE = GpuInstance(id=1, profile_id=9, placement=MemoryPlacement(0, 4), compute=())


def test_an_idle_gpu_and_an_admin_have_nothing_in_the_way():
    assert before_mode_change(GPU, ADMIN, NOBODY, True) == ()
    assert before_mode_change(ENABLED, ADMIN, NOBODY, False) == ()


@pytest.mark.parametrize("gpu", [GPU, ENABLED])
def test_the_mode_it_is_in_needs_nothing(gpu: GpuMig):
    busy = HoldersReport(holders=(held_by("python"),))
    assert (
        before_mode_change(replace(gpu, instances=(INSTANCE,)), with_mode_right(REFUSED), busy, gpu.enabled)
        == ()
    )


def test_a_gpu_without_mig_is_told_first_and_alone():
    busy = HoldersReport(holders=(held_by("python"),))
    (obstacle,) = before_mode_change(replace(GPU, capable=False), with_mode_right(REFUSED), busy, True)
    assert obstacle.blocks
    assert "does not know MIG" in obstacle.what


@pytest.mark.parametrize(("mode", "blocks"), [(REFUSED, True), (UNKNOWN, False)])
def test_a_right_that_is_unknown_is_no_refusal(mode: Right, blocks: bool):
    (obstacle,) = before_mode_change(GPU, with_mode_right(mode), NOBODY, True)
    assert (obstacle.do, obstacle.blocks) == (mode.do, blocks)
    assert mode.reason in obstacle.what


def test_holders_are_named_with_the_command_and_the_drivers_own_do_not_block():
    persistence = held_by("nvidia-persistenced")
    report = HoldersReport(
        holders=(held_by("python t.py"), persistence), unreadable=1, blind_spots=("1 process …",)
    )
    training, daemon, spot = before_mode_change(GPU, ADMIN, report, True)
    assert "python t.py holds GPU 3 (NVIDIA H200)" in training.what
    assert training.do.startswith("kill 40")
    assert [each.blocks for each in (training, daemon, spot)] == [True, False, False]
    assert spot.what == "1 process …"


def test_instances_must_go_before_mig_is_disabled_and_not_before_it_is_enabled():
    (obstacle,) = before_mode_change(replace(ENABLED, instances=(INSTANCE,)), ADMIN, NOBODY, False)
    assert "1 GPU instance," in obstacle.what
    assert "mig destroy" in obstacle.do
    assert obstacle.blocks
    unread = replace(ENABLED, instances_error="monitor refused")
    (obstacle,) = before_mode_change(unread, ADMIN, NOBODY, False)
    assert not obstacle.blocks
    assert "monitor refused" in obstacle.what


def test_instances_that_could_not_be_read_do_not_matter_to_a_gpu_without_mig():
    assert before_mode_change(replace(GPU, instances_error="MIG is off"), ADMIN, NOBODY, True) == ()


def test_a_change_that_waits_already_is_told_with_the_reset():
    waiting = replace(GPU, name="NVIDIA A100", resetless=False, pending=True)
    (obstacle,) = before_mode_change(waiting, ADMIN, NOBODY, True)
    assert not obstacle.blocks
    assert "nvidia-smi --gpu-reset -i GPU-1" in obstacle.do


def test_a_change_that_waits_is_taken_back_without_an_idle_gpu():
    waiting = replace(GPU, pending=True)
    busy = HoldersReport(holders=(held_by("python"),))
    assert before_mode_change(waiting, ADMIN, busy, False) == ()
    (obstacle,) = before_mode_change(waiting, with_mode_right(REFUSED), busy, False)
    assert obstacle.blocks


def test_nvidia_drm_is_in_the_way_of_a_reset_alone():
    report = HoldersReport(holders=(), drm=True)
    assert before_mode_change(GPU, ADMIN, report, True) == ()
    (obstacle,) = before_mode_change(replace(GPU, resetless=False), ADMIN, report, True)
    assert "modprobe -r nvidia_drm" in obstacle.do
    assert not obstacle.blocks


def test_who_has_the_driver_open_is_a_hint():
    report = HoldersReport(holders=(), driver_clients=(held_by("nvidia-smi daemon"),))
    (obstacle,) = before_mode_change(GPU, ADMIN, report, True)
    assert "nvidia-smi daemon" in obstacle.what
    assert not obstacle.blocks
