"""The one door to this machine's Linux: cores, memory, NUMA nodes, and signs of an NVIDIA GPU.

Reads ``/proc``, ``/sys`` and ``/dev``; what cannot be read (a container often hides it) is None or empty.
"""

import grp
import importlib.metadata
import os
import platform
import pwd
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scheduler.slices import core_ranges

DISTRIBUTIONS = ("torch", "torchvision", "transformers", "mlcommons-loadgen", "nvidia-ml-py", "numpy")
"""Whose versions a result depends on."""

NVIDIA_PCI_VENDOR = "0x10de"
PCI_DISPLAY_CLASS = "0x03"

INITIAL_PID_NAMESPACE = "pid:[4026531836]"
"""PROC_PID_INIT_INO of linux/proc_ns.h: the namespace in which all processes of the machine are seen."""


@dataclass(frozen=True, slots=True)
class Host:
    """This machine, as its kernel tells it under ``root``."""

    root: Path = Path("/")

    def cores(self) -> tuple[int, ...]:
        """Cores this process may use, by the kernel's numbers, ascending."""
        return tuple(sorted(os.sched_getaffinity(0)))

    def core_count_possible(self) -> int:
        """One more than the highest core number that could ever come online: the length of a core mask."""
        cores = parse_cores(self._text("sys/devices/system/cpu/possible"))
        return max(cores) + 1 if cores else os.cpu_count() or 1

    def memory_mib(self) -> int:
        """MiB this process may use: the machine's, or its control group's limit where that is less."""
        return min([self.memory_total_mib(), *self._memory_limits_mib()])

    def memory_total_mib(self) -> int:
        """MiB of the machine."""
        found = re.search(r"^MemTotal:\s+(\d+) kB", self._text("proc/meminfo"), re.MULTILINE)
        return (
            int(found[1]) // 1024 if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
        )

    def cpu_quota_cores(self) -> float | None:
        """Cores' worth of time the control group allows (``docker --cpus``); None without a quota.

        Unlike ``cores()`` it names no core: a process with a quota of 2 may still run on all of 64.
        """
        quotas = []
        for limit in self._cgroup_values("", "cpu.max"):
            quota, _, period = limit.partition(" ")
            if quota.isdigit() and period.isdigit():
                quotas.append(int(quota) / int(period))

        return min(quotas, default=None)

    def numa_nodes(self) -> dict[int, tuple[int, ...]]:
        """Node number → its cores, ascending; empty where the kernel tells of no nodes."""
        nodes = {
            int(folder.name.removeprefix("node")): parse_cores(self._text(folder / "cpulist"))
            for folder in self.root.glob("sys/devices/system/node/node[0-9]*")
        }
        return dict(sorted(nodes.items()))

    def numa_node_of_pci(self, address: str) -> int | None:
        """NUMA node next to a PCI device (``0000:3b:00.0``); None where the firmware does not say (-1)."""
        text = self._text(f"sys/bus/pci/devices/{address}/numa_node")
        return int(text) if text.isdigit() else None

    def signs_of_nvidia(self) -> tuple[str, ...]:
        """Paths that show an NVIDIA GPU or its driver to be here: device files, /proc, PCI display devices."""
        signs = [*self.root.glob("dev/nvidia*"), *self.root.glob("proc/driver/nvidia")]
        for device in self.root.glob("sys/bus/pci/devices/*"):
            vendor, kind = self._text(device / "vendor"), self._text(device / "class")
            if vendor == NVIDIA_PCI_VENDOR and kind.startswith(PCI_DISPLAY_CLASS):
                signs.append(device)

        return tuple(sorted(str(sign) for sign in signs))

    def refused_nvidia_files(self) -> tuple[str, ...]:
        """NVIDIA's device files that this user may not open, ``path (owner:group mode)``.

        ``/dev/nvidia*`` are opened to read and write, ``/dev/nvidia-caps/*`` (MIG's rights) to read.
        """
        wanted = [(path, os.R_OK | os.W_OK) for path in self.root.glob("dev/nvidia*") if not path.is_dir()]
        wanted += [(path, os.R_OK) for path in self.root.glob("dev/nvidia-caps/*")]
        return tuple(_with_owner(path) for path, mode in sorted(wanted) if not os.access(path, mode))

    def nvidia_kernel_module(self) -> str | None:
        """Version of the NVIDIA kernel module that is loaded; None where none is."""
        found = re.search(
            r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", self._text("proc/driver/nvidia/version")
        )
        return found[1] if found else None

    def has_own_pid_namespace(self) -> bool:
        """Whether this process sees a part of the machine's processes only, under numbers of their own.

        NVML gives the machine's numbers all the same.
        """
        try:
            return str((self.root / "proc/self/ns/pid").readlink()) != INITIAL_PID_NAMESPACE
        except OSError:  # a kernel without, or a /proc that hides it
            return False

    def in_container(self) -> bool:
        """Whether this looks like a container: Docker's or Podman's mark, a container's group or namespace."""
        marked = any((self.root / mark).exists() for mark in (".dockerenv", "run/.containerenv"))
        group = self._text("proc/self/cgroup")
        return marked or self.has_own_pid_namespace() or bool(re.search(r"docker|kubepods|libpod", group))

    def describe(self) -> dict[str, Any]:
        """The host for a run's manifest, ready for JSON. Imports none of the packages it gives versions of."""
        return {
            "hostname": platform.node(),
            "os": self._os_name(),
            "kernel": platform.release(),
            "architecture": platform.machine(),
            "cpu_model": self._cpu_model(),
            "cores_online": self._text("sys/devices/system/cpu/online") or None,
            "cores_allowed": core_ranges(self.cores()),
            "cpu_quota_cores": self.cpu_quota_cores(),
            "cpu_governor": self._text("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor") or None,
            "smt": {"0": False, "1": True}.get(self._text("sys/devices/system/cpu/smt/active")),
            "memory_mib": self.memory_total_mib(),
            "memory_allowed_mib": self.memory_mib(),
            "numa_nodes": {str(node): core_ranges(cores) for node, cores in self.numa_nodes().items()},
            "python": platform.python_version(),
            "versions": {name: _version(name) for name in DISTRIBUTIONS},
        }

    def _os_name(self) -> str | None:
        found = re.search(r'^PRETTY_NAME="?([^"\n]*)"?$', self._text("etc/os-release"), re.MULTILINE)
        return found[1] if found else None

    def _cpu_model(self) -> str:
        found = re.search(r"^model name\s*:\s*(.+)$", self._text("proc/cpuinfo"), re.MULTILINE)
        return found[1].strip() if found else platform.machine()  # Arm's cpuinfo has no model name

    def _memory_limits_mib(self) -> Iterator[int]:
        limits = [
            *self._cgroup_values("", "memory.max"),
            *self._cgroup_values("memory", "memory.limit_in_bytes"),
        ]
        return (int(limit) >> 20 for limit in limits if limit.isdigit())  # "max" is no limit

    def _cgroup_values(self, controller: str, file: str) -> Iterator[str]:
        """The file's text in this process's control group and all above it; any of them may set the limit.

        ``controller`` is "" for cgroup v2. Inside a container the group's own path may not exist; its
        root is then mounted in the place of the hierarchy's.
        """
        for line in self._text("proc/self/cgroup").splitlines():
            _, controllers, path = line.split(":", 2)
            if controller not in controllers.split(","):
                continue

            group = Path(path.lstrip("/"))
            for folder in dict.fromkeys((group, *group.parents)):
                text = self._text(Path("sys/fs/cgroup", controller, folder, file))
                if text:
                    yield text

    def _text(self, path: str | Path) -> str:
        """A small file's text, stripped; empty where it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return ""


def parse_cores(text: str) -> tuple[int, ...]:
    """Core numbers of a kernel list such as ``0-3,8``, ascending: the reverse of ``core_ranges``."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))

    return tuple(sorted(cores))


def user_name(uid: int) -> str:
    """The user's name, or the number where it has none here (another machine's, in a container)."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """The group's name, or the number where it has none here."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def _with_owner(path: Path) -> str:
    try:
        status = path.stat()
        return f"{path} ({path.owner()}:{path.group()} {status.st_mode & 0o777:04o})"
    except (OSError, KeyError):  # the file is gone or hidden; its owner has no name here
        return str(path)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
