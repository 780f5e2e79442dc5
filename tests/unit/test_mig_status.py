"""What ``mig status``, ``mig profiles`` and ``mig env`` find and show, and what a layout asks of GPUs as they are."""

import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from scheduler import capabilities, mig_plan, mig_run, mig_status, nvml
from scheduler.capabilities import Rights
from scheduler.errors import NoPermission, NoUsableSlice
from scheduler.host import Host
from scheduler.layout import GpuTarget
from scheduler.mig_changes import changes
from scheduler.nvml_mig import NvmlMig
from scheduler.report import mig as report
from scheduler.report import mig_json
from tests.boards import A100_80, H200
from tests.fake_library import loaded
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance

EMPTY = FakeGpu(board=H200, mig=True)
DIVIDED = FakeGpu(board=H200, mig=True, instances=(Instance("3g.71gb", 4, (2,)), Instance("1g.18gb", 0)))


@contextmanager
def opened(fake: FakeGpus) -> Iterator[NvmlMig]:
    with nvml.open(fake) as library:
        yield NvmlMig(library)


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def rights_of_a_plain_user(root: Path, *, may_run_on: str) -> Rights:
    """A driver's capability files under ``root``; this user may read the device files of one instance's."""
    names = {"config": 1, "monitor": 2} | {
        f"gpu0/{each}/access": minor for minor, each in enumerate(("gi1", "gi1/ci0", "gi7", "gi7/ci0"), 10)
    }
    files = {
        "proc/driver/nvidia-caps/mig-minors": "".join(f"{name} {minor}\n" for name, minor in names.items()),
        "proc/self/status": "Uid:\t7\t7\t7\t7\nCapEff:\t0000000000000000\n",
    }
    for name, minor in names.items():
        path = name.replace("gpu0/", "gpu0/mig/") if name.startswith("gpu") else f"mig/{name}"
        files[f"proc/driver/nvidia/capabilities/{path}"] = f"DeviceFileMinor: {minor}\n"
        if name.startswith(f"gpu0/{may_run_on}"):
            files[f"dev/nvidia-caps/nvidia-cap{minor}"] = ""

    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        (root / path).chmod(0o444)

    return capabilities.read(root)


# ---------------------------------------------------------------------- status


def test_who_may_run_on_which_mig_device_is_told_with_what_gives_the_right(tmp_path: Path, console: Console):
    with opened(FakeGpus(DIVIDED)) as driver:
        gpus = driver.gpus()
        one, other = (each.id for each in gpus[0].instances)
        rights = rights_of_a_plain_user(tmp_path, may_run_on=f"gi{other}")
        found = mig_status.status(driver, gpus, rights)

    report.show_status(found, rights, console)
    assert f"run on gpu0:gi{other}:ci0: yes\n" in shown(console)
    assert f"run on gpu0:gi{one}:ci0: no, there is no /dev/nvidia-caps/nvidia-cap" in shown(console)
    assert "create and destroy instances: no, there is no /dev/nvidia-caps/nvidia-cap1" in shown(console)

    told = {
        each["id"]: each["compute_instances"][0]["access"]
        for each in mig_json.status(found, rights)["gpus"][0]["gpu_instances"]
    }
    assert (told[one]["allowed"], told[other]["allowed"]) == (False, True)
    assert "nvidia-modprobe" in told[one]["do"]


@pytest.mark.parametrize("mig", [True, False])
def test_who_runs_is_named_by_mig_device_or_by_gpu(mig: bool, console: Console):
    fake = FakeGpus(DIVIDED if mig else FakeGpu(board=H200))
    with opened(fake) as driver:
        gpu = driver.gpus()[0]
        uuid = gpu.instances[0].compute[0].uuid if mig else gpu.uuid
        assert uuid is not None
        fake.run(uuid, os.getpid())
        rights = capabilities.read()
        found = mig_status.status(driver, driver.gpus(), rights)

    report.show_status(found, rights, console)
    where = f"gpu0:gi{gpu.instances[0].id}:ci0  used by " if mig else "in use by "
    [line] = [each for each in shown(console).splitlines() if where in each]
    assert f"pid {os.getpid()}" in line
    told = mig_json.status(found, rights)["gpus"][0]
    processes = told["gpu_instances"][0]["compute_instances"][0]["processes"] if mig else told["processes"]
    assert [each["pid"] for each in processes] == [os.getpid()]


def test_a_pending_mode_says_what_it_waits_for(console: Console):
    with opened(FakeGpus(FakeGpu(board=A100_80))) as driver:
        driver.set_mode(driver.gpus()[0].uuid, True)
        rights = capabilities.read()
        found = mig_status.status(driver, driver.gpus(), rights)

    report.show_status(found, rights, console)
    assert (
        "MIG disabled\n  to be enabled: waits for a reset of the GPU while nothing uses it, or a reboot"
        in (shown(console))
    )
    waits = mig_json.status(found, rights)["gpus"][0]["mig_mode"]
    assert (waits["current"], waits["pending"]) == (False, True)
    assert "reset" in waits["waits"]["for"]
    assert isinstance(waits["waits"]["held_by"], list)  # it was looked for


def test_a_mode_that_waits_is_something_to_change_back():
    with opened(FakeGpus(FakeGpu(board=A100_80))) as driver:
        driver.set_mode(driver.gpus()[0].uuid, True)
        gpus = driver.gpus()
        [change] = changes(gpus, {gpus[0].uuid: GpuTarget(mig_enabled=False, devices={})}, (), "a change")
        assert (change.steps, change.switches_mode, change.is_none) == ((), True, False)


def test_a_document_changes_the_chosen_gpus_alone():
    with opened(FakeGpus(EMPTY, DIVIDED)) as driver:
        gpus = driver.gpus()
        assert set(mig_plan.targets("h200-141gb#balanced", gpus, gpus)) == {gpu.uuid for gpu in gpus}
        assert set(mig_plan.targets("h200-141gb#balanced", gpus, gpus[1:])) == {gpus[1].uuid}


def test_a_run_wants_a_layout_with_mig_devices():
    fake = FakeGpus(DIVIDED)
    with loaded(fake) as library, pytest.raises(NoUsableSlice, match="leaves no MIG device"):
        mig_run.planned("h200-141gb#all-disabled", nvml.read_machine(Host(), library))


def test_instances_that_cannot_be_read_are_no_empty_gpu(tmp_path: Path, console: Console):
    with opened(FakeGpus(DIVIDED, privileged=False)) as driver:
        gpus = driver.gpus()
        rights = rights_of_a_plain_user(tmp_path, may_run_on="none")
        report.show_status(mig_status.status(driver, gpus, rights), rights, console)
        for ask in (
            lambda: mig_plan.exported(gpus, "current"),
            lambda: changes(gpus, mig_plan.targets("7g.141gb", gpus, gpus), (), "a change"),
        ):
            with pytest.raises(NoPermission, match="NO_PERMISSION"):
                ask()

    assert "instances: NVML answers NO_PERMISSION" in shown(console)
    assert "free:" not in shown(console)


def test_a_change_as_json_says_what_stays_and_what_is_done():
    with opened(FakeGpus(DIVIDED)) as driver:
        gpus = driver.gpus()
        targets = mig_plan.targets("2c.3g.71gb,1g.18gb*2", gpus, gpus)
        [told] = mig_json.changes(changes(gpus, targets, (), "a change"))

    assert {each["profile"] for each in told["stays"]} == {"3g.71gb", "1g.18gb"}
    assert [step.split(" at ")[0] for step in told["steps"]] == [
        "create GPU instance 1g.18gb",
        "create MIG device 1g.18gb",
    ]
    assert len(told["target"]) == 3


# ---------------------------------------------------------------------- profiles


def test_what_is_free_is_told_for_each_gpu(console: Console):
    """Two boards of one model differ in what is free."""
    with opened(FakeGpus(EMPTY, DIVIDED)) as driver:
        gpus = driver.gpus()
        both = mig_status.profiles(driver, gpus)
        [second] = mig_status.profiles(driver, mig_plan.chosen(gpus, "1"))

    assert (both[0].free[14], both[1].free[14], second.free[14]) == (3, 1, 1)
    assert gpus[0].geometry is not None
    report.show_profiles(gpus[0].geometry, both, console)
    assert "free/total on GPU 0 1" in shown(console)
    assert "3/3 1/3" in shown(console)


def test_the_compute_profiles_of_the_instances_that_are_there(console: Console):
    with opened(FakeGpus(DIVIDED)) as driver:
        gpu = driver.gpus()[0]
        now = mig_status.profiles(driver, [gpu])

    assert gpu.geometry is not None
    told = json.loads(json.dumps(mig_json.profiles(gpu.geometry, now)))
    instance = next(each for each in told["gpus"][0]["gpu_instances"] if each["profile_id"] == 9)
    assert [
        (each["name"], each["id"], each["free"], each["most"]) for each in instance["compute_profiles"]
    ] == [
        ("1c.3g.71gb", 0, 1, 3),
        ("2c.3g.71gb", 1, 0, 1),
        ("3g.71gb", 2, 0, 1),
    ]
    assert [each["start"] for each in instance["compute_profiles"][0]["placements"]] == [0, 1, 2]

    report.show_profiles(gpu.geometry, now, console)
    line = next(each for each in shown(console).splitlines() if "1c.3g.71gb" in each)
    assert line.split() == [f"gpu0:gi{instance['id']}", "1c.3g.71gb", "0", "1/3", "16", "1", "0", "1", "2"]


def test_a_model_that_is_not_here_has_totals_alone(console: Console):
    report.show_profiles(mig_plan.geometry((), "A30"), (), console)
    assert "–/4" in shown(console)
    assert "compute instance  id" not in shown(console)


# ---------------------------------------------------------------------- the lines for one slice


def test_slurm_gets_the_device_files_of_the_slice_and_docker_its_index(tmp_path: Path):
    fake = FakeGpus(DIVIDED)
    with opened(fake) as driver:
        gpus, machine = driver.gpus(), nvml.read_machine(Host(), fake)
        gi = next(each.id for each in gpus[0].instances if each.profile_id == 19)
        rights = rights_of_a_plain_user(tmp_path, may_run_on="none")
        slurm = mig_plan.lines_for(machine, gpus, rights, f"gpu0:gi{gi}:ci0", "slurm", None, ("sleep", "1"))
        docker = mig_plan.lines_for(machine, gpus, rights, f"gpu0:gi{gi}:ci0", "docker", "mine:1")

    first = {1: 10, 7: 12}[gi]
    files = f"/dev/nvidia0,/dev/nvidia-caps/nvidia-cap{first},/dev/nvidia-caps/nvidia-cap{first + 1}"
    assert f"MultipleFiles={files}\n" in slurm
    assert slurm.endswith(f"srun --gres=gpu:gpu0_gi{gi}_ci0:1 sleep 1\n")
    assert '"device=0:1"' in docker  # the second MIG device
    assert "mine:1" in docker
