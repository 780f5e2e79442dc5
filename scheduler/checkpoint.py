"""Layouts kept on disk: what MIG looked like, so that it can be made so again, also by the next process.

A checkpoint names every instance by profile and placement. It is the machine's own record, not a
layout document: it holds what mig-parted's format cannot say (placements, GPU instances without a compute instance).
"""

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from scheduler.clock import utc_now
from scheduler.errors import LayoutLeft, LayoutsLocked, SpecError
from scheduler.geometry import ComputePlacement, GpuMig, GpuState, MemoryPlacement, PlacedInstance
from scheduler.mig_changes import refuse_unseen


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Place(_Strict):
    start: int
    size: int


class _Instance(_Strict):
    profile: str
    """For people; what counts is the id."""
    profile_id: int
    placement: _Place
    compute: tuple[_Place, ...]


class _Gpu(_Strict):
    uuid: str
    name: str
    mig_enabled: bool
    instances: tuple[_Instance, ...]


class Checkpoint(_Strict):
    """MIG on some GPUs at one moment; ``model_dump_json`` is the file."""

    kind: Literal["hetero-mig checkpoint"] = "hetero-mig checkpoint"
    version: Literal[1] = 1
    taken_utc: str
    reason: str
    gpus: tuple[_Gpu, ...]

    def states(self) -> dict[str, GpuState]:
        """By GPU UUID, what was there."""
        return {
            gpu.uuid: GpuState(
                gpu.mig_enabled,
                frozenset(
                    PlacedInstance(
                        profile_id=one.profile_id,
                        placement=MemoryPlacement(one.placement.start, one.placement.size),
                        compute=tuple(
                            sorted(ComputePlacement(each.start, each.size) for each in one.compute)
                        ),
                    )
                    for one in gpu.instances
                ),
            )
            for gpu in self.gpus
        }


def take(gpus: Sequence[GpuMig], reason: str) -> Checkpoint:
    """What these GPUs are now.

    Raises:
        NoPermission: the instances of one cannot be read; a restore would destroy them.
    """
    for gpu in gpus:
        refuse_unseen(gpu, f"a checkpoint of GPU {gpu.index}")

    return Checkpoint(
        taken_utc=utc_now(),
        reason=reason,
        gpus=tuple(
            _Gpu(
                uuid=gpu.uuid,
                name=gpu.name,
                mig_enabled=gpu.enabled,
                instances=tuple(_record(gpu, one.placed) for one in gpu.instances),
            )
            for gpu in gpus
        ),
    )


def write(checkpoint: Checkpoint, path: Path) -> None:
    """Put it on disk, whole or not at all.

    Raises:
        SpecError: the file cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("w", encoding="utf-8") as file:
            file.write(checkpoint.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())

        part.replace(path)
    except OSError as error:
        raise SpecError(
            asked=f"a checkpoint in {path}",
            found=str(error),
            do="name a file in a folder that can be written; nothing was changed",
        ) from error


def read(path: Path) -> Checkpoint:
    """A checkpoint from its file.

    Raises:
        SpecError: there is none, or it is not one.
    """
    do = "name a file that `hetero-mig mig checkpoint FILE` wrote"
    try:
        return Checkpoint.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise SpecError(asked=f"the checkpoint {path}", found=f"{where}: {first['msg']}", do=do) from None
    except (OSError, ValueError) as error:
        raise SpecError(asked=f"the checkpoint {path}", found=str(error), do=do) from None


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where this user's programs keep their state (XDG Base Directory).

    A user without a home (a container's, of any number) has none that can be written: ``Shelf.locked`` says so.
    """
    base = environ.get("XDG_STATE_HOME", "")
    try:
        home = Path.home()
    except RuntimeError:
        home = Path("/nonexistent")  # what passwd(5) has for such users

    return (Path(base) if base.startswith("/") else home / ".local" / "state") / "hetero-mig"


@dataclass(frozen=True, slots=True)
class Shelf:
    """The folder where a layout waits to be restored: at most one, and one process at a time may change layouts."""

    folder: Path

    @property
    def path(self) -> Path:
        """The checkpoint that waits."""
        return self.folder / "before.json"

    @contextmanager
    def locked(self, asked: str) -> Iterator[None]:
        """Alone in changing layouts. The lock is the kernel's: it ends with the process, however that ends.

        Raises:
            LayoutsLocked: another process is at it.
            SpecError: the folder cannot be made.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise SpecError(
                asked=asked,
                found=f"no place to keep what is there before: {error}",
                do="make that folder writable, or name another by XDG_STATE_HOME",
            ) from error

        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise LayoutsLocked(
                asked=asked,
                found=f"another hetero-mig is changing layouts (it holds {self.folder / 'lock'})",
                do="wait until it has ended, then try again",
            ) from error
        else:
            yield
        finally:
            os.close(descriptor)

    def waiting(self) -> Checkpoint | None:
        """What a process that died has left to be restored; None if there is nothing, or its process still lives.

        Raises:
            LayoutLeft: the file is damaged.
        """
        if not os.path.exists(self.path):  # noqa: PTH110  Path's raises where this user may not look
            return None

        try:
            with self.locked("see whether a layout waits"):
                return self._read() if self.path.exists() else None
        except LayoutsLocked:
            return None

    def put(self, checkpoint: Checkpoint) -> None:
        """Let it wait, until ``clear``. The lock must be held.

        Raises:
            LayoutLeft: another one waits already.
        """
        if self.path.exists():
            raise left(self._read(), self.path, asked=checkpoint.reason)

        write(checkpoint, self.path)

    def _read(self) -> Checkpoint:
        try:
            return read(self.path)
        except SpecError as error:
            raise LayoutLeft(
                asked="see what waits to be restored",
                found=f"{self.path} cannot be read: {error.found}",
                do="see what is there (hetero-mig mig status), put it right, and give that file up: "
                "hetero-mig mig restore --discard",
            ) from None

    def clear(self) -> None:
        """It is restored, or nobody wants it any more."""
        self.path.unlink(missing_ok=True)


def left(checkpoint: Checkpoint, path: Path, asked: str) -> LayoutLeft:
    """The error for a layout that still waits to be restored."""
    return LayoutLeft(
        asked=asked,
        found=f"a layout taken {checkpoint.taken_utc} before {checkpoint.reason} was never restored ({path})",
        do="put it back with `hetero-mig mig restore`, or give it up with `hetero-mig mig restore --discard`",
    )


def _record(gpu: GpuMig, placed: PlacedInstance) -> _Instance:
    profile = gpu.geometry.of_id(placed.profile_id) if gpu.geometry else None
    return _Instance(
        profile=profile.name if profile else f"profile {placed.profile_id}",
        profile_id=placed.profile_id,
        placement=_Place(start=placed.placement.start, size=placed.placement.size),
        compute=tuple(_Place(start=each.start, size=each.size) for each in placed.compute),
    )
