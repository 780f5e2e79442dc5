"""What this user may do with MIG, and why not: the driver's capability files.

A capability is the right to read one file. ``/proc/driver/nvidia/capabilities/…`` names the minor number M of
its device file ``/dev/nvidia-caps/nvidia-capM``, and that one counts; a file without content is the older
interface (nv_cap_enable_devfs=0), where it counts itself. CAP_SYS_ADMIN has every capability, file or not.
Source: MIG User Guide, "Device Nodes and Capabilities".
"""

import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scheduler.errors import NoPermission
from scheduler.host import Host, group_name, user_name

CAPABILITIES = "/proc/driver/nvidia/capabilities"
MINORS = "/proc/driver/nvidia-caps/mig-minors"
DEVICE_FILES = "/dev/nvidia-caps"

CAP_SYS_ADMIN = 21  # linux/capability.h

Named = Literal["config", "monitor", "mode"]
"""The rights that are not of one instance; see Right.name."""

WHOLE_USER_NAMESPACE = ["0", "0", "4294967295"]
"""/proc/self/uid_map of the initial one. The driver asks for CAP_SYS_ADMIN there; a rootless container's is none."""

CONTAINER_VARIABLES = {"config": "NVIDIA_MIG_CONFIG_DEVICES", "monitor": "NVIDIA_MIG_MONITOR_DEVICES"}
"""NVIDIA Container Toolkit; it heeds them in a container that has CAP_SYS_ADMIN alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Who asks, as the driver sees it."""

    uid: int
    gids: frozenset[int]
    sys_admin: bool
    """CAP_SYS_ADMIN in the initial user namespace."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Right:
    """Whether one thing may be done, and why."""

    name: str
    """``config`` (create and destroy instances), ``monitor`` (see the instances of others), ``mode``, or an
    instance: ``gpu0/gi1``, ``gpu0/gi1/ci0``."""
    allowed: bool | None
    """None: it cannot be told."""
    reason: str
    do: str = ""
    """What gives the right; empty where it is there."""
    file: str | None = None
    """What was looked at, without the root: ``/dev/nvidia-caps/nvidia-cap1``."""
    mismatch: str = ""
    """Where capability file and mig-minors name different device files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rights:
    """What this user may do with MIG on this machine."""

    root: Path
    user: User
    config: Right
    """Create and destroy GPU instances and compute instances."""
    monitor: Right
    """See the instances that others use."""
    mode: Right
    """Switch MIG on or off: CAP_SYS_ADMIN, whatever the capability files allow."""

    def access(self, gpu_minor: int, gi: int, ci: int | None = None) -> Right:
        """Whether this user may run on a GPU instance or, with ``ci``, on a MIG device.

        ``gpu_minor`` is N of /dev/nvidiaN, not NVML's index. A MIG device needs both of its files; the right
        is the first of them that is not given.
        """
        inside = f"gpu{gpu_minor}/gi{gi}"
        gpu_instance = _right(f"{inside}/access", f"gpu{gpu_minor}/mig/gi{gi}/access", self.root, self.user)
        if ci is None or not gpu_instance.allowed:
            return gpu_instance

        return _right(
            f"{inside}/ci{ci}/access", f"gpu{gpu_minor}/mig/gi{gi}/ci{ci}/access", self.root, self.user
        )

    def device_files(self, gpu_minor: int, gi: int, ci: int) -> tuple[str, ...]:
        """What a process on a MIG device opens: the files of its GPU, GPU instance and compute instance; empty where
        the driver does not say."""
        inside = f"gpu{gpu_minor}/gi{gi}"
        below = f"gpu{gpu_minor}/mig/gi{gi}"
        rights = (
            _right(f"{inside}/access", f"{below}/access", self.root, self.user),
            _right(f"{inside}/ci{ci}/access", f"{below}/ci{ci}/access", self.root, self.user),
        )
        files = [each.file for each in rights if each.file and each.file.startswith(DEVICE_FILES)]
        return (f"/dev/nvidia{gpu_minor}", *files) if len(files) == len(rights) else ()


def read(host_root: Path = Path("/")) -> Rights:
    """The rights of this process, from the files under ``host_root``."""
    user = _user(host_root)
    return Rights(
        root=host_root,
        user=user,
        config=_right("config", "mig/config", host_root, user),
        monitor=_right("monitor", "mig/monitor", host_root, user),
        mode=_mode(host_root, user),
    )


def lacking(name: Named, host_root: Path) -> str:
    """Of something refused, what to say of the right it takes: ``; the right config is missing: …``. Empty where
    that right is there, and the refusal has another cause."""
    right = _named(name, host_root)
    if right.allowed:
        return ""

    return f"; the right {name} {'is' if right.allowed is False else 'may be'} missing: {right.reason}"


@contextmanager
def explained(name: Named, host_root: Path) -> Iterator[None]:
    """Inside, a NoPermission also tells which right is missing, why, and what gives it."""
    try:
        yield
    except NoPermission as error:
        right = _named(name, host_root)
        raise NoPermission(
            asked=error.asked,
            found=error.found + lacking(name, host_root),
            do=right.do if right.allowed is False else error.do,
        ) from error


def _named(name: Named, host_root: Path) -> Right:
    rights = read(host_root)
    return {"config": rights.config, "monitor": rights.monitor, "mode": rights.mode}[name]


def may_read(status: os.stat_result, uid: int, gids: Collection[int]) -> bool:
    """Whether the file's mode lets this user read it. As the kernel: the owner's bits decide for the owner, even
    where the group's allow more; root reads anything."""
    if uid == 0:
        return True
    elif uid == status.st_uid:
        return bool(status.st_mode & stat.S_IRUSR)
    elif status.st_gid in gids:
        return bool(status.st_mode & stat.S_IRGRP)
    else:
        return bool(status.st_mode & stat.S_IROTH)


def _mode(root: Path, user: User) -> Right:
    """NVML's header: nvmlDeviceSetMigMode "requires root user"."""
    if unknown := _unknown(root):
        return Right(name="mode", allowed=None, reason=unknown, do="load the driver, then look again")
    elif user.sys_admin:
        return Right(name="mode", allowed=True, reason="CAP_SYS_ADMIN")
    else:
        return Right(name="mode", allowed=False, reason=_not_an_admin(user), do=_become_admin(root))


def _right(name: str, path: str, root: Path, user: User) -> Right:
    called = name.removesuffix("/access")
    shown = f"{CAPABILITIES}/{path}"
    if unknown := _unknown(root):
        return Right(name=called, allowed=None, reason=unknown, do="load an NVIDIA driver of R450 or later")

    fields = _fields(_under(root, shown))
    by_table = _minors(root).get(name)
    minor = by_table if fields is None else fields.get("DeviceFileMinor", by_table)
    if name != called and fields is None:
        return Right(
            name=called,
            allowed=None,
            reason=f"there is no {shown}: no such instance now, or a container that it was not passed to",
            do="see `hetero-mig mig status` for the instances; a container gets its own by NVIDIA_VISIBLE_DEVICES",
            file=shown,
        )

    if minor is None and fields != {}:
        reason = f"neither {shown} nor {MINORS} says which device file it is: a driver of another kind"
        return Right(name=called, allowed=None, reason=reason, do="run as root", file=shown)

    file = shown if fields == {} else f"{DEVICE_FILES}/nvidia-cap{minor}"  # {}: the older interface
    mismatch = ""
    if fields and by_table not in (None, minor):
        mismatch = f"{shown} says device minor {minor}, {MINORS} says {by_table}: they are not of one driver"

    allowed, reason, do = _readable(called, file, shown, root, user)
    if user.sys_admin:  # the driver asks for no file then
        allowed, reason, do = True, "CAP_SYS_ADMIN", ""

    return Right(name=called, allowed=allowed, reason=reason, do=do, file=file, mismatch=mismatch)


def _readable(name: str, file: str, shown: str, root: Path, user: User) -> tuple[bool, str, str]:
    """Allowed, reason, what to do, of a user whom only the file can give the right."""
    path = _under(root, file)
    try:
        status = path.stat()
    except FileNotFoundError:
        return (False, f"there is no {file}", _do_for_missing(name, shown, root))
    except OSError as error:
        return (False, f"{file} cannot be looked at: {error.strerror}", f"as root: chmod a+rx {DEVICE_FILES}")

    owner = f"{user_name(status.st_uid)}:{group_name(status.st_gid)} {status.st_mode & 0o7777:04o}"
    readable, refused = may_read(status, user.uid, user.gids), ""
    if user.uid == os.geteuid():  # then opening it also tells of access lists and of device rules
        readable, refused = _opens(path)

    if readable:
        return (True, f"may read {file} ({owner})", "")
    elif refused and may_read(status, user.uid, user.gids):
        do = f"allow the device in the container's rules (docker run --device {file}), or run outside"
        return (False, f"{file} ({owner}) does not open: {refused}", do)
    else:
        me = f"{user_name(user.uid)} (uid {user.uid})"
        return (False, f"{file} is {owner}; {me} may not read it", _do_for_mode(name, file, shown))


def _opens(path: Path) -> tuple[bool, str]:
    """Opening a capability's file does nothing else."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return (False, error.strerror or str(error))

    return (True, "")


def _do_for_mode(name: str, file: str, shown: str) -> str:
    if file == shown:
        return f"as root: chmod a+r {file}"
    elif name not in CONTAINER_VARIABLES:
        return f"as root: setfacl -m u:NAME:r {file}, or chgrp GROUP {file} && chmod g+r {file}"
    else:
        return (
            f"as root: setfacl -m u:NAME:r {file}, or chgrp GROUP {file} && chmod g+r {file}; first "
            f'echo "DeviceFileModify: 0" > {shown}, or nvidia-modprobe sets the mode back; or run as root'
        )


def _do_for_missing(name: str, shown: str, root: Path) -> str:
    outside = f"as root: nvidia-modprobe -f {shown}"
    if not Host(root).in_container():
        return outside
    elif variable := CONTAINER_VARIABLES.get(name):
        return f"start the container with --cap-add SYS_ADMIN -e {variable}=all; on the host: {outside}"
    else:
        return "start the container with NVIDIA_VISIBLE_DEVICES naming this MIG device"


def _not_an_admin(user: User) -> str:
    if user.uid == 0:
        return "root here, but without CAP_SYS_ADMIN on the machine; the driver asks for it"
    else:
        me = f"{user_name(user.uid)} (uid {user.uid})"
        return f"{me} is not root and has no CAP_SYS_ADMIN; the driver asks for it"


def _become_admin(root: Path) -> str:
    if Host(root).in_container():
        return "run outside the container as root, or start it with --cap-add SYS_ADMIN (not rootless)"
    else:
        return "run as root"


def _unknown(root: Path) -> str:
    """Why nothing can be told here; empty where the driver has capabilities."""
    if _under(root, MINORS).exists() or _under(root, CAPABILITIES).exists():
        return ""
    elif _under(root, "/proc/driver/nvidia").exists():
        hidden = "a driver older than R450, or a container that hides them"
        return f"there is neither {CAPABILITIES} nor {MINORS}: {hidden}"
    else:
        return "there is no /proc/driver/nvidia: no NVIDIA driver is loaded, or it is hidden here"


def _user(root: Path) -> User:
    text = _text(_under(root, "/proc/self/status"))
    lines = dict(re.findall(r"^(\w+):[ \t]*(.*)$", text, re.MULTILINE))
    uids, gids = lines.get("Uid", "").split(), lines.get("Gid", "").split()
    uid = int(uids[1]) if len(uids) > 1 else os.geteuid()  # real, effective, saved, file system
    gid = int(gids[1]) if len(gids) > 1 else os.getegid()
    capable = bool(int(lines.get("CapEff", "0"), 16) >> CAP_SYS_ADMIN & 1)
    uid_map = _text(_under(root, "/proc/self/uid_map")).split()
    return User(
        uid=uid,
        gids=frozenset({gid, *map(int, lines.get("Groups", "").split())}),
        sys_admin=capable and uid_map in ([], WHOLE_USER_NAMESPACE),
    )


def _fields(path: Path) -> dict[str, int] | None:
    """A capability file's numbers; none where it is not there; empty where it has no content."""
    if not path.exists():
        return None

    return {key: int(value) for key, value in re.findall(r"^(\w+):\s*(\d+)", _text(path), re.MULTILINE)}


def _minors(root: Path) -> dict[str, int]:
    """Name of a capability → minor of its device file."""
    found = re.findall(r"^(\S+)\s+(\d+)$", _text(_under(root, MINORS)), re.MULTILINE)
    return {name: int(minor) for name, minor in found}


def _under(root: Path, path: str) -> Path:
    return root / path.lstrip("/")


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
