"""The host as told by a made-up /proc, /sys and /dev, and this machine's own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scheduler.host import INITIAL_PID_NAMESPACE, Host, group_name, parse_cores, user_name
from scheduler.slices import core_ranges


class Tree:
    """A made-up root directory: calling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, path: str, text: str) -> None:
        target = self.path / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


@pytest.fixture
def root(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("text", "cores"), [("", ()), ("0", (0,)), ("0-3,8\n", (0, 1, 2, 3, 8)), ("8,0-1", (0, 1, 8))]
)
def test_parse_cores(text: str, cores: tuple[int, ...]):
    assert parse_cores(text) == cores
    assert parse_cores(core_ranges(cores)) == cores


def test_memory_without_a_limit_is_the_machines(root: Tree):
    root("proc/meminfo", "MemTotal:       8388608 kB\nMemFree: 1 kB\n")
    root("proc/self/cgroup", "0::/user.slice\n")
    root("sys/fs/cgroup/user.slice/memory.max", "max\n")
    assert Host(root.path).memory_mib() == 8192


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("0::/a/b", "sys/fs/cgroup/a/b/memory.max"),
        ("0::/a/b", "sys/fs/cgroup/a/memory.max"),  # set on a group above
        ("0::/a/b", "sys/fs/cgroup/memory.max"),  # a container's root in the place of the hierarchy's
        ("4:memory:/docker/x", "sys/fs/cgroup/memory/docker/x/memory.limit_in_bytes"),
        ("4:memory:/docker/x", "sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ],
)
def test_memory_is_what_the_control_group_leaves(root: Tree, line: str, file: str):
    root("proc/meminfo", "MemTotal:       8388608 kB\n")
    root("proc/self/cgroup", line + "\n")
    root(file, f"{2 << 30}\n")
    assert Host(root.path).memory_mib() == 2048
    assert Host(root.path).memory_total_mib() == 8192


def test_an_unlimited_group_of_cgroup_v1_limits_nothing(root: Tree):
    root("proc/meminfo", "MemTotal:       8388608 kB\n")
    root("proc/self/cgroup", "4:memory:/\n")
    root("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert Host(root.path).memory_mib() == 8192


def test_cpu_quota(root: Tree):
    root("proc/self/cgroup", "0::/a/b\n")
    root("sys/fs/cgroup/a/b/cpu.max", "max 100000\n")
    assert Host(root.path).cpu_quota_cores() is None
    root("sys/fs/cgroup/a/cpu.max", "250000 100000\n")
    assert Host(root.path).cpu_quota_cores() == 2.5


def test_numa_nodes(root: Tree):
    root("sys/devices/system/node/node10/cpulist", "\n")
    root("sys/devices/system/node/node1/cpulist", "4-7\n")
    root("sys/devices/system/node/node0/cpulist", "0-3\n")
    assert list(Host(root.path).numa_nodes().items()) == [(0, (0, 1, 2, 3)), (1, (4, 5, 6, 7)), (10, ())]


def test_numa_node_of_a_pci_device(root: Tree):
    root("sys/bus/pci/devices/0000:3b:00.0/numa_node", "1\n")
    root("sys/bus/pci/devices/0000:3c:00.0/numa_node", "-1\n")
    answers = [Host(root.path).numa_node_of_pci(f"0000:{bus}:00.0") for bus in ("3b", "3c", "3d")]
    assert answers == [1, None, None]


def test_only_nvidias_display_devices_are_a_sign(root: Tree):
    devices = {
        "0000:01:00.0": ("0x10de", "0x030200"),  # an NVIDIA GPU
        "0000:01:00.1": ("0x10de", "0x040300"),  # its sound
        "0000:02:00.0": ("0x1002", "0x030000"),  # another maker's GPU
        "0000:03:00.0": ("0x15b3", "0x020700"),  # a network card
    }
    for address, (vendor, kind) in devices.items():
        root(f"sys/bus/pci/devices/{address}/vendor", vendor + "\n")
        root(f"sys/bus/pci/devices/{address}/class", kind + "\n")

    assert Host(root.path).signs_of_nvidia() == (str(root.path / "sys/bus/pci/devices/0000:01:00.0"),)


def test_files_that_cannot_be_opened_are_named(root: Tree):
    root("dev/nvidia1", "")
    (root.path / "dev/nvidia0").symlink_to("nowhere")  # refused to root as well
    assert Host(root.path).refused_nvidia_files() == (str(root.path / "dev/nvidia0"),)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is refused to root")
def test_refused_files_are_told_with_owner_and_mode(root: Tree):
    root("dev/nvidiactl", "")
    (root.path / "dev/nvidiactl").chmod(0o440)
    (refused,) = Host(root.path).refused_nvidia_files()
    assert refused.endswith(" 0440)")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19\nGCC version: 12\n",
            "535.104.05",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release\n", "580.65.06"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  550.90  Release\n", "550.90"),
        ("", None),
    ],
)
def test_version_of_the_kernel_module(root: Tree, text: str, version: str | None):
    root("proc/driver/nvidia/version", text)
    assert Host(root.path).nvidia_kernel_module() == version


@pytest.mark.parametrize(
    ("namespace", "own"), [(INITIAL_PID_NAMESPACE, False), ("pid:[4026532281]", True), (None, False)]
)
def test_a_pid_namespace_of_its_own(root: Tree, namespace: str | None, own: bool):
    if namespace is not None:
        (root.path / "proc/self/ns").mkdir(parents=True)
        (root.path / "proc/self/ns/pid").symlink_to(namespace)

    assert Host(root.path).has_own_pid_namespace() is own
    assert Host(root.path).in_container() is own


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (".dockerenv", ""),
        ("run/.containerenv", ""),
        ("proc/self/cgroup", "4:memory:/kubepods/besteffort/pod1/0123\n"),
    ],
)
def test_signs_of_a_container(root: Tree, file: str, text: str):
    assert not Host(root.path).in_container()
    root(file, text)
    assert Host(root.path).in_container()


def test_a_number_without_a_name_stays_a_number():
    assert user_name(0) == "root"
    assert (user_name(2**31 - 7), group_name(2**31 - 7)) == ("2147483641", "2147483641")


def test_a_machine_that_tells_nothing_still_has_cores_and_memory(tmp_path: Path):
    described = Host(tmp_path).describe()
    assert described["cores_allowed"] == core_ranges(sorted(os.sched_getaffinity(0)))
    assert described["memory_mib"] > 0
    assert described["numa_nodes"] == {}
    assert described["cpu_governor"] is None
    assert described["smt"] is None


def test_this_machine():
    here = Host()
    assert here.cores() == tuple(sorted(psutil.Process().cpu_affinity()))
    assert here.memory_total_mib() == psutil.virtual_memory().total // 2**20
    assert 0 < here.memory_mib() <= here.memory_total_mib()
    assert here.core_count_possible() > max(here.cores())
    nodes = here.numa_nodes()
    assert not nodes or set(here.cores()) <= {core for cores in nodes.values() for core in cores}


def test_the_description_is_json_and_imports_no_torch():
    described = json.loads(json.dumps(Host().describe()))
    assert described["kernel"] == os.uname().release
    assert described["versions"]["mlcommons-loadgen"]
    assert described["versions"]["torch"]
    code = "import sys; from scheduler.host import Host; Host().describe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
