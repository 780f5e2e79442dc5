"""Who holds a GPU: the processes that have its device file open, and the command that ends each.

A change of MIG's mode needs a GPU that nobody holds, and NVML names compute processes alone; monitors, display
servers and daemons show in ``/proc/PID/fd``. Nothing is ended here.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scheduler.host import Host, user_name

UnitKind = Literal[
    "service", "user service", "Kubernetes container", "docker", "podman", "nerdctl", "Slurm job"
]

NVIDIA_FILE = re.compile(r"/dev/nvidia\S*")

CONTAINER_GROUPS: tuple[tuple[str, UnitKind], ...] = (
    (r"kubepods.*?\b([0-9a-f]{64})\b", "Kubernetes container"),
    (r"\bdocker[-/]([0-9a-f]{64})\b", "docker"),
    (r"\blibpod-([0-9a-f]{64})\b", "podman"),
    (r"\bnerdctl-([0-9a-f]{64})\b", "nerdctl"),
)
"""How the control groups of each one's containers are named, under systemd and without."""


@dataclass(frozen=True, slots=True)
class Unit:
    """What started a process and can stop it: a systemd service, a container, a Slurm job."""

    kind: UnitKind
    name: str
    """``nvidia-dcgm.service``; the first 12 digits of a container's id; a job's number."""

    def __str__(self) -> str:
        return self.name if self.kind.endswith("service") else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that has a GPU open."""

    pid: int
    user: str
    """Empty where the process is not visible."""
    command: str
    """With its arguments; in brackets where it tells none."""
    unit: Unit | None = None
    files: tuple[str, ...] = ()
    """NVIDIA's device files it has open: those of /dev/nvidia-caps tell which instances."""

    @property
    def service(self) -> str | None:
        """The system service it belongs to: ``nvidia-dcgm.service``."""
        return self.unit.name if self.unit is not None and self.unit.kind == "service" else None

    @property
    def name(self) -> str:
        """The program: ``nv-hostengine``."""
        return self.command.split(" ")[0].rpartition("/")[2].strip("[]")

    @property
    def visible(self) -> bool:
        return bool(self.user)

    def __str__(self) -> str:
        command = self.command if len(self.command) <= 80 else f"{self.command[:79]}…"
        within = f", {self.unit}" if self.unit else ""
        return (
            f"pid {self.pid} ({self.user}{within}): {command}"
            if self.visible
            else f"pid {self.pid} {command}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldersReport:
    """Who holds one GPU, and how far one could see."""

    holders: tuple[Holder, ...]
    """By pid."""
    unreadable: int = 0
    """Processes of others, whose open files this user may not list."""
    blind_spots: tuple[str, ...] = ()
    """Why there may be more holders than were seen, each a sentence."""
    driver_clients: tuple[Holder, ...] = ()
    """A hint where nobody holds the GPU: who has the driver open (nvidiactl, nvidia-uvm), but no GPU."""
    drm: bool = False
    """The kernel module nvidia_drm is loaded: a hold without a process, which refuses a reset (mig-parted#181)."""


def holders(minor: int, root: Path = Path("/"), *, device_file: str | None = None) -> HoldersReport:
    """The processes that have /dev/nvidia<minor> open or mapped, but not this one.

    ``device_file`` takes its place: any absolute path. Processes that end meanwhile are left out.
    """
    wanted = device_file or f"/dev/nvidia{minor}"
    found, clients, unreadable = [], [], 0
    me = _own_pid(root)
    for pid in _pids(root):
        if pid == me:
            continue

        files = _device_files(root / "proc" / str(pid), wanted)
        if files is None:
            unreadable += bool(_text(root / "proc" / str(pid) / "cmdline"))  # kernel threads have none
        elif wanted in files:
            found.append(_holder(root, pid, files))
        elif not _gpus(files) and any(
            name.startswith(("/dev/nvidiactl", "/dev/nvidia-uvm")) for name in files
        ):
            clients.append(_holder(root, pid, files))

    return HoldersReport(
        holders=tuple(found),
        unreadable=unreadable,
        blind_spots=tuple(_blind_spots(root, unreadable)),
        driver_clients=() if found else tuple(clients),
        drm=(root / "sys/module/nvidia_drm").exists(),
    )


def describe(pids: Iterable[int], root: Path = Path("/")) -> tuple[Holder, ...]:
    """The processes that NVML names by pid, in that order.

    In a container NVML may give the machine's pids, which are nobody's here, or somebody else's: there, a
    process that has no file of NVIDIA's open is not taken for the one meant.
    """
    return tuple(_described(root, pid) for pid in pids)


def must_stop(holder: Holder) -> bool:
    """Whether a mode change waits for its end; not for the driver's own daemons, which mig-parted leaves, too."""
    return not any(re.search(pattern, _identity(holder)) for pattern, _ in LEFT_RUNNING)


def how_to_stop(holder: Holder) -> str:
    """The command that ends it, or why to leave it running. For a person to run; nothing is run here."""
    if not holder.visible:
        return (
            f"where the GPU's driver runs, outside this container: ps -p {holder.pid}, and stop what it shows"
        )

    for pattern, text in LEFT_RUNNING:
        if re.search(pattern, _identity(holder)):
            return text

    if holder.unit is not None and holder.unit.kind not in ("service", "user service"):
        return _stop_unit(holder, holder.unit)

    for pattern, text in KNOWN:
        if re.search(pattern, _identity(holder)):
            return text.format(service=holder.service or "")

    return (
        f"kill {holder.pid} (it is {holder.user}'s {holder.name})"
        if holder.unit is None
        else _stop_unit(holder, holder.unit)
    )


LEFT_RUNNING = (
    (
        r"^nvidia-persistenced\b",
        "leave nvidia-persistenced running; only if a reset of the GPU is refused: sudo nvidia-smi -pm 0, and "
        "sudo nvidia-smi -pm 1 after it",
    ),
    (
        r"^(nvidia-fabricmanager|nv-fabricmanager)\b",
        "do not stop nvidia-fabricmanager: on an NVSwitch machine no CUDA program starts without it",
    ),
)
"""Of the driver: pattern of program or service → what to say. Source: mig-parted's hooks.sh, which stops neither."""

KNOWN = (
    (r"^(nvidia-)?dcgm\.service$", "sudo systemctl stop {service}"),
    (r"^nv-hostengine$", "sudo nv-hostengine --term"),
    (r"^nvsm", "sudo systemctl stop nvsm.service (its nvsm-* services stop with it)"),
    (
        r"^(gdm|gdm3|sddm|lightdm|display-manager)\.service$|"
        r"^(Xorg|X|Xwayland|gnome-shell|gdm-x-session|gdm-wayland-session|sddm|lightdm|kwin_wayland)$",
        "sudo systemctl stop display-manager.service (ends the graphical sessions)",
    ),
    (
        r"^nvidia-cuda-mps-(server|control)$",
        "echo quit | nvidia-cuda-mps-control (as the user who started it)",
    ),
    (r"^kubelet\.service$", "sudo systemctl stop kubelet.service (drain the node first)"),
)
"""Program or service → the command. Source: MIG User Guide, "Deployment Considerations"; mig-parted's hooks.sh."""

GPU_OPERATOR_LABELS = {
    "dcgm-exporter": "dcgm-exporter",
    "nvidia-device-plugin": "device-plugin",
    "gpu-feature-discovery": "gpu-feature-discovery",
    "nv-hostengine": "dcgm",
}
"""Program → its switch among the GPU operator's node labels, nvidia.com/gpu.deploy.…"""


def _identity(holder: Holder) -> str:
    """What a holder is known by: its service's name, else its program's."""
    return holder.service or holder.name


def _stop_unit(holder: Holder, unit: Unit) -> str:
    match unit.kind:
        case "service":
            return f"sudo systemctl stop {unit.name}"
        case "user service":
            return f"systemctl --user stop {unit.name} (as {holder.user})"
        case "docker" | "podman" | "nerdctl":
            return f"{unit.kind} stop {unit.name}"
        case "Slurm job":
            return f"scancel {unit.name}"
        case "Kubernetes container":
            return _stop_pod(holder, unit)


def _stop_pod(holder: Holder, unit: Unit) -> str:
    """Kubernetes starts a container again that is merely stopped."""
    if label := GPU_OPERATOR_LABELS.get(holder.name):
        return (
            f"kubectl label node NODE nvidia.com/gpu.deploy.{label}=false --overwrite (=true afterwards); "
            f"without the GPU operator, delete its DaemonSet"
        )
    else:
        return f"crictl ps --id {unit.name} names its pod: kubectl delete pod POD"


def _described(root: Path, pid: int) -> Holder:
    folder = root / "proc" / str(pid)
    files = _device_files(folder, "")
    foreign = files == () and Host(root).has_own_pid_namespace()
    if not folder.exists() or foreign:
        return Holder(pid=pid, user="", command="(not visible here: ended, or a pid of the host)")
    else:
        return _holder(root, pid, files or ())


def _holder(root: Path, pid: int, files: tuple[str, ...]) -> Holder:
    folder = root / "proc" / str(pid)
    words = _text(folder / "cmdline").rstrip("\0").split("\0")
    command = " ".join(words).strip() or f"[{_text(folder / 'comm').strip() or '?'}]"
    uid = re.search(r"^Uid:\s+\d+\s+(\d+)", _text(folder / "status"), re.MULTILINE)
    return Holder(
        pid=pid,
        user=user_name(int(uid[1])) if uid else "?",  # it ended since
        command=command,
        unit=unit_of(_text(folder / "cgroup")),
        files=files,
    )


def unit_of(cgroup: str) -> Unit | None:
    """What a process belongs to, by its /proc/PID/cgroup; None for a login session or a plain process."""
    for pattern, kind in CONTAINER_GROUPS:
        if found := re.search(pattern, cgroup):
            return Unit(kind, next(filter(None, found.groups()))[:12])

    if found := re.search(r"/job_(\d+)\b", cgroup):
        return Unit("Slurm job", found[1])
    elif found := re.search(r"/user@\d+\.service/(?:.*/)?([^/\n]+\.service)(?:/|$)", cgroup, re.MULTILINE):
        return Unit("user service", found[1])
    elif found := re.search(r":/(?!user\.slice)(?:.*/)?([^/\n]+\.service)(?:/|$)", cgroup, re.MULTILINE):
        return Unit("service", found[1])
    else:
        return None


def _device_files(folder: Path, wanted: str) -> tuple[str, ...] | None:
    """NVIDIA's device files, and ``wanted``, that a process has open or mapped; None where it may not be seen.

    Root without CAP_SYS_PTRACE may list the links of others, but not follow them.
    """
    try:
        links = [_target(link) for link in (folder / "fd").iterdir()]
    except PermissionError:
        return None
    except OSError:  # it ended
        return ()

    mapped = re.findall(r"\s(/\S.*?)(?: \(deleted\))?$", _text(folder / "maps"), re.MULTILINE)
    files = {name for name in (*links, *mapped) if name == wanted or NVIDIA_FILE.fullmatch(name)}
    return tuple(sorted(files))


def _target(link: Path) -> str:
    try:
        return str(link.readlink()).removesuffix(" (deleted)")
    except FileNotFoundError:  # closed meanwhile
        return ""


def _gpus(files: Iterable[str]) -> list[str]:
    return [name for name in files if re.fullmatch(r"/dev/nvidia\d+", name)]


def _blind_spots(root: Path, unreadable: int) -> Iterator[str]:
    if unreadable:
        counted = "1 process" if unreadable == 1 else f"{unreadable} processes"
        as_root = re.search(r"^Uid:\s+\d+\s+0\s", _text(root / "proc/self/status"), re.MULTILINE)
        more = (
            "with more rights than this one; root needs CAP_SYS_PTRACE"
            if as_root
            else "of other users; run as root"
        )
        yield f"{counted} could not be looked into: {more}"

    if not (root / "proc/1").exists():
        yield "/proc hides the processes of others (hidepid); run as root"

    if Host(root).has_own_pid_namespace():
        yield "this is a container with pids of its own: the processes of the machine are not visible here"


def _pids(root: Path) -> list[int]:
    try:
        return sorted(int(each.name) for each in (root / "proc").iterdir() if each.name.isdigit())
    except OSError:
        return []


def _own_pid(root: Path) -> int | None:
    try:
        return int((root / "proc/self").readlink().name)
    except (OSError, ValueError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
