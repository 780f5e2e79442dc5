"""MIG's rights as told by made-up capability files, and may_read as told by the kernel."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from scheduler import capabilities
from scheduler.capabilities import CAP_SYS_ADMIN, Right, Rights, may_read

SOMEBODY = os.geteuid() + 1
"""Not the user who runs the tests, so that the modes decide and not the kernel."""
OTHER_GROUP = max(*os.getgroups(), os.getegid(), 1) + 1
CONFIG = "/dev/nvidia-caps/nvidia-cap1"


class Machine:
    """A made-up root directory with an R580 driver's files; the device files are plain ones."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.be(uid=SOMEBODY, gid=OTHER_GROUP)
        self("proc/driver/nvidia/version", "NVRM version: …")
        self(
            "proc/driver/nvidia-caps/mig-minors",
            "config 1\nmonitor 2\ngpu0/gi1/access 12\ngpu0/gi1/ci0/access 13\n",
        )
        self.capability("mig/config", minor=1, mode=0o400)
        self.capability("mig/monitor", minor=2, mode=0o444)

    def __call__(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)  # its mode may keep it from being written
        target.write_text(text)
        return target

    def be(self, *, uid: int, gid: int = 0, groups: tuple[int, ...] = (), sys_admin: bool = False) -> None:
        """Who this process is."""
        caps = 1 << CAP_SYS_ADMIN if sys_admin else 0
        ids = f"Uid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{gid}\t{gid}\t{gid}\t{gid}\n"
        names = " ".join(map(str, groups))
        self("proc/self/status", f"Name:\tx\n{ids}Groups:\t{names} \nCapEff:\t{caps:016x}\n")

    def capability(self, path: str, *, minor: int, mode: int) -> None:
        text = f"DeviceFileMinor: {minor}\nDeviceFileMode: {mode}\nDeviceFileModify: 1\n"
        self(f"proc/driver/nvidia/capabilities/{path}", text)
        self.device(minor).chmod(mode)

    def device(self, minor: int) -> Path:
        return self(f"dev/nvidia-caps/nvidia-cap{minor}", "")

    def remove(self, path: str) -> None:
        (self.root / path).unlink()

    def rights(self) -> Rights:
        return capabilities.read(self.root)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_plain_user_may_monitor_but_not_configure(machine: Machine):
    rights = machine.rights()
    assert rights.monitor.allowed is True
    assert rights.monitor.do == ""
    assert rights.config.allowed is False
    assert rights.config.file == CONFIG
    assert "0400" in rights.config.reason
    assert str(SOMEBODY) in rights.config.reason
    assert f"setfacl -m u:NAME:r {CONFIG}" in rights.config.do
    assert "DeviceFileModify: 0" in rights.config.do  # else nvidia-modprobe takes the right away again


def test_the_mode_is_for_an_admin_whatever_the_files_allow(machine: Machine):
    machine.capability("mig/config", minor=1, mode=0o444)
    rights = machine.rights()
    assert (rights.config.allowed, rights.mode.allowed) == (True, False)
    assert rights.mode.do == "run as root"


def test_a_group_may_configure(machine: Machine):
    machine.capability("mig/config", minor=1, mode=0o440)
    assert machine.rights().config.allowed is False
    machine.be(uid=SOMEBODY, gid=OTHER_GROUP, groups=(OTHER_GROUP, os.getegid()))
    assert machine.rights().config.allowed is True


def test_an_admin_needs_no_file(machine: Machine):
    machine.be(uid=0, sys_admin=True)
    machine.remove("dev/nvidia-caps/nvidia-cap1")
    rights = machine.rights()
    assert [each.allowed for each in (rights.config, rights.monitor, rights.mode)] == [True] * 3
    assert "CAP_SYS_ADMIN" in rights.config.reason


def test_root_of_a_container_may_lack_cap_sys_admin(machine: Machine):
    machine.be(uid=0)
    machine(".dockerenv", "")
    rights = machine.rights()
    assert rights.config.allowed is True  # its file was passed in
    assert rights.mode.allowed is False
    assert "CAP_SYS_ADMIN" in rights.mode.reason
    assert "--cap-add SYS_ADMIN" in rights.mode.do


def test_root_of_a_rootless_container_is_no_admin(machine: Machine):
    machine.be(uid=0, sys_admin=True)
    machine("proc/self/uid_map", "         0       1000          1\n")
    assert machine.rights().mode.allowed is False
    machine("proc/self/uid_map", "         0          0 4294967295\n")
    assert machine.rights().mode.allowed is True


@pytest.mark.parametrize(
    ("which", "minor", "variable"),
    [("config", 1, "NVIDIA_MIG_CONFIG_DEVICES=all"), ("monitor", 2, "NVIDIA_MIG_MONITOR_DEVICES=all")],
)
def test_a_container_is_given_the_device_file_by_a_variable(
    machine: Machine, which: str, minor: int, variable: str
):
    machine.remove(f"dev/nvidia-caps/nvidia-cap{minor}")
    machine.remove(f"proc/driver/nvidia/capabilities/mig/{which}")  # masked there; mig-minors is not
    right: Right = getattr(machine.rights(), which)
    assert right.allowed is False
    assert right.reason == f"there is no /dev/nvidia-caps/nvidia-cap{minor}"
    assert variable not in right.do  # this is no container
    assert f"nvidia-modprobe -f /proc/driver/nvidia/capabilities/mig/{which}" in right.do
    machine(".dockerenv", "")
    assert variable in getattr(machine.rights(), which).do


def test_without_a_driver_nothing_is_known(tmp_path: Path):
    rights = capabilities.read(tmp_path)
    answers = (rights.config, rights.monitor, rights.mode, rights.access(0, 1, 0))
    assert {each.allowed for each in answers} == {None}
    assert all("no NVIDIA driver is loaded" in each.reason for each in answers)


def test_an_old_driver_is_told_from_none(tmp_path: Path):
    (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
    rights = capabilities.read(tmp_path)
    assert rights.config.allowed is None
    assert "older than R450" in rights.config.reason


def test_a_driver_that_names_no_device_file(machine: Machine):
    machine("proc/driver/nvidia-caps/mig-minors", "")
    machine.remove("proc/driver/nvidia/capabilities/mig/config")
    assert machine.rights().config.allowed is None


def test_files_of_two_drivers_are_seen(machine: Machine):
    assert machine.rights().config.mismatch == ""
    machine.capability("mig/config", minor=7, mode=0o400)
    right = machine.rights().config
    assert right.file == "/dev/nvidia-caps/nvidia-cap7"
    assert "minor 7" in right.mismatch
    assert "says 1" in right.mismatch


@pytest.mark.parametrize(("mode", "allowed"), [(0o444, True), (0o400, False)])
def test_the_older_interface_is_the_capability_file_itself(machine: Machine, mode: int, allowed: bool):
    machine("proc/driver/nvidia/capabilities/mig/config", "").chmod(mode)
    right = machine.rights().config
    assert right.file == "/proc/driver/nvidia/capabilities/mig/config"
    assert right.allowed is allowed
    assert bool(right.do) is not allowed


def test_a_mig_device_needs_both_of_its_files(machine: Machine):
    machine.capability("gpu0/mig/gi1/access", minor=12, mode=0o444)
    machine.capability("gpu0/mig/gi1/ci0/access", minor=13, mode=0o400)
    rights = machine.rights()
    assert rights.access(0, 1).allowed is True
    whole = rights.access(0, 1, 0)
    assert (whole.name, whole.allowed, whole.file) == ("gpu0/gi1/ci0", False, "/dev/nvidia-caps/nvidia-cap13")

    machine.device(12).chmod(0o400)
    machine.device(13).chmod(0o444)
    whole = rights.access(0, 1, 0)
    assert (whole.name, whole.allowed, whole.file) == ("gpu0/gi1", False, "/dev/nvidia-caps/nvidia-cap12")

    machine.device(12).chmod(0o444)
    assert rights.access(0, 1, 0).allowed is True


def test_the_device_files_of_a_mig_device_are_named_whoever_asks(machine: Machine):
    machine.capability("gpu0/mig/gi1/access", minor=12, mode=0o400)
    assert machine.rights().device_files(0, 1, 0) == ()
    machine.capability("gpu0/mig/gi1/ci0/access", minor=13, mode=0o400)
    files = ("/dev/nvidia0", "/dev/nvidia-caps/nvidia-cap12", "/dev/nvidia-caps/nvidia-cap13")
    assert machine.rights().device_files(0, 1, 0) == files


def test_an_instance_that_is_not_there(machine: Machine):
    right = machine.rights().access(0, 1)
    assert right.allowed is None
    assert "no such instance" in right.reason


def test_a_device_file_that_the_mode_allows_may_still_not_open(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
):
    """As where a container's device rules refuse it. A socket stands for it: nobody can open one."""
    machine.be(uid=os.geteuid(), gid=os.getegid())
    machine.remove("dev/nvidia-caps/nvidia-cap1")
    monkeypatch.chdir(machine.root / "dev/nvidia-caps")
    with socket.socket(socket.AF_UNIX) as unopenable:
        unopenable.bind("nvidia-cap1")
        right = machine.rights().config

    assert right.allowed is False
    assert "does not open" in right.reason
    assert f"--device {CONFIG}" in right.do


def test_the_process_itself_is_asked_of_the_kernel(machine: Machine):
    machine.be(uid=os.geteuid(), gid=os.getegid())
    machine.capability("mig/config", minor=1, mode=0o400)
    assert machine.rights().config.allowed is True


def test_may_read_is_what_the_kernel_says_of_this_user(tmp_path: Path):
    file = tmp_path / "file"
    file.touch()
    for mode in range(0o1000):
        file.chmod(mode)
        mine = may_read(file.stat(), os.geteuid(), {os.getegid(), *os.getgroups()})
        assert mine is os.access(file, os.R_OK), f"{mode:04o}"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_may_read_is_what_the_kernel_says_of_others(tmp_path: Path):
    tmp_path.chmod(0o755)
    me, group, extra, other = 54321, 54322, 54323, 54324
    for uid in (me, other):
        for gid in (group, extra, other):
            for mode in (0o000, 0o004, 0o040, 0o044, 0o400, 0o404, 0o440, 0o444):
                file = tmp_path / f"{uid}-{gid}-{mode:03o}"
                file.touch()
                os.chown(file, uid, gid)
                file.chmod(mode)

    script = "for name in *; do (: < $name) 2> /dev/null && echo $name; done; :"
    told = subprocess.run(
        ["/bin/sh", "-c", script],
        cwd=tmp_path,
        user=me,
        group=group,
        extra_groups=[extra],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.split()
    ours = {file.name for file in tmp_path.iterdir() if may_read(file.stat(), me, {group, extra})}
    assert ours == set(told)
    assert 0 < len(ours) < 48


def test_this_machine_answers():
    rights = capabilities.read()
    assert rights.user.uid == os.geteuid()
    assert rights.user.gids >= set(os.getgroups())
    for right in (rights.config, rights.monitor, rights.mode, rights.access(0, 1, 0)):
        assert right.reason
        assert right.allowed or right.do
