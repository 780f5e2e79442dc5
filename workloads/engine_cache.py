"""Engines kept from one run to the next: for each key a folder of what torch compiled, and engine.json beside it.

An entry is made where it lies, since what is compiled holds its own paths; engine.json is written last, by rename, and
tells each file's digest. A folder without it was left by a builder that died: whoever has its lock next removes it. One
lock file a key (flock, which the kernel takes from the dead): a builder holds it alone, users share it, and what is in
use is never removed. Imports no torch.
"""

import fcntl
import json
import os
import random
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT_VARIABLE = "HETERO_MIG_CACHE"
MAX_BYTES = 20 * 2**30
"""Where nothing else was asked for."""
PATIENCE_S = 600.0
"""For another builder of the same engine; after that it is built without being kept."""
DAMAGED_AFTER_S = 5.0
"""An entry that has its record for so long and is not to be had: it is damaged, and somebody uses it all the same."""
LOOK_AGAIN_S = 0.02, 0.06
RECORD, LIMIT, LOCKS = "engine.json", "limit.json", "locks"

Facts = Mapping[str, str | int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What engine.json says."""

    facts: dict[str, str | int]
    """All that the key is made of."""
    built_utc: str
    build_s: float
    batch_sizes: tuple[int, ...]
    """What was computed before it was kept; a run adds others as it meets them."""
    files: dict[str, str]
    """SHA-256 by path in the folder, of what the builder left."""
    calibrations: dict[str, Any] = field(default_factory=dict)
    """What runs of it found on their slices, by way of timing (kept_times.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One entry, as a list shows it."""

    key: str
    engine: Engine | None
    """None: half-written."""
    size_bytes: int
    used_s: float
    """Of the last use, in seconds since the epoch."""
    in_use: bool


class NotKept(Exception):
    """The cache cannot be used; says why."""


class Lease:
    """One key's folder, held until closed or until the process ends.

    ``engine`` is None while the folder, empty at first, is to be filled; ``keep`` ends that.
    """

    def __init__(self, key: str, folder: Path, facts: Facts, engine: Engine | None, lock: int) -> None:
        self.key = key
        self.folder = folder
        self.engine = engine
        self._facts = facts
        self._lock = lock

    def keep(self, *, build_s: float, batch_sizes: tuple[int, ...], built_utc: str) -> Engine:
        """Say that the folder is complete; from now on others may use it.

        Raises:
            NotKept: that cannot be written.
        """
        with _written_to(self.folder):
            files = {name: _digest(self.folder / name) for name in _files(self.folder)}
            engine = Engine(
                facts=dict(self._facts),
                built_utc=built_utc,
                build_s=build_s,
                batch_sizes=batch_sizes,
                files=files,
            )
            self._write(engine)
            fcntl.flock(self._lock, fcntl.LOCK_SH)

        self.engine = engine
        return engine

    def add(self, batch_sizes: tuple[int, ...]) -> None:
        """Say that these were computed too; what they added is torch's own to check.

        Raises:
            NotKept: that cannot be written.
        """
        assert self.engine is not None, "keep() first"
        if not set(batch_sizes) <= set(self.engine.batch_sizes):
            with _written_to(self.folder):
                last = self._last(self.engine)
                sizes = tuple(sorted({*last.batch_sizes, *batch_sizes}))
                self.engine = replace(last, batch_sizes=sizes)
                self._write(self.engine)

    def keep_calibration(self, way: str, found: Mapping[str, Any]) -> None:
        """Keep what was found for one way of timing, in place of what there was. Of several users that keep something
        at the same moment one may not be heard.

        Raises:
            NotKept: that cannot be written.
        """
        assert self.engine is not None, "keep() first"
        with _written_to(self.folder):
            last = self._last(self.engine)
            self.engine = replace(last, calibrations={**last.calibrations, way: dict(found)})
            self._write(self.engine)

    def close(self) -> None:
        """Let go of it: it may be removed."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _last(self, known: Engine) -> Engine:
        """The record as another user of the engine may have left it since."""
        return _record(self.folder) or known

    def _write(self, engine: Engine) -> None:
        _write_json(self.folder / RECORD, asdict(engine))

    def __enter__(self) -> "Lease":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()


class EngineCache:
    """The store in one folder, which is made when it is first written to."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @classmethod
    def of_user(cls, environ: Mapping[str, str] = os.environ) -> "EngineCache":
        """``$HETERO_MIG_CACHE``, else ``$XDG_CACHE_HOME/hetero-mig``, else ``~/.cache/hetero-mig``."""
        named = environ.get(ROOT_VARIABLE)
        if named:
            return cls(Path(named).absolute() / "engines")

        home = environ.get("XDG_CACHE_HOME")
        return cls((Path(home) if home else Path.home() / ".cache") / "hetero-mig" / "engines")

    @property
    def max_bytes(self) -> int:
        """As ``limit`` was told last."""
        try:
            found = json.loads((self.root / LIMIT).read_bytes())["max_bytes"]
        except (OSError, ValueError, KeyError, TypeError):
            return MAX_BYTES

        return found if isinstance(found, int) else MAX_BYTES

    def limit(self, max_bytes: int) -> None:
        """Keep at most so much from now on, what was used last before the rest.

        Raises:
            NotKept: the cache cannot be written to.
        """
        with _written_to(self.root):
            _make(self.root)
            _write_json(self.root / LIMIT, {"max_bytes": max_bytes})
            self.evict()

    # ------------------------------------------------------------------ one entry

    def lease(self, facts: Facts, *, patience_s: float = PATIENCE_S) -> Lease:
        """The engine of these facts: to be used if it is there and whole, else to be built by the caller alone.

        Waits while another builds it.

        Raises:
            NotKept: the cache cannot be written to, the other builder took longer than ``patience_s``, or the entry is
                damaged and others use it.
        """
        key = key_of(facts)
        began = whole_at = time.monotonic()
        with _written_to(self.root):
            _make(self.root / LOCKS)
            lock = os.open(self.root / LOCKS / key, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with ExitStack() as on_failure:
                on_failure.callback(os.close, lock)
                while (found := self._leased(key, facts, lock)) is None:
                    now = time.monotonic()
                    if not (self.root / key / RECORD).is_file():  # being built: a builder has removed it
                        whole_at = now
                    elif now - whole_at >= min(DAMAGED_AFTER_S, patience_s):
                        raise NotKept(f"{key} is damaged, and in use by another process")

                    if now - began >= patience_s:
                        raise NotKept(f"another process has been building {key} for {patience_s:g} s")

                    time.sleep(random.uniform(*LOOK_AGAIN_S))

                on_failure.pop_all()
                return found

    def _leased(self, key: str, facts: Facts, lock: int) -> Lease | None:
        """Its lease, if the lock is to be had now."""
        folder = self.root / key
        if (folder / RECORD).is_file() and _locked(lock, fcntl.LOCK_SH):
            engine = read(folder, facts)
            if engine is not None:
                os.utime(folder / RECORD)
                return Lease(key, folder, facts, engine, lock)

            fcntl.flock(lock, fcntl.LOCK_UN)

        if not _locked(lock, fcntl.LOCK_EX):
            return None

        if read(folder, facts) is not None:  # built since
            fcntl.flock(lock, fcntl.LOCK_UN)
            return None

        _remove(folder)
        folder.mkdir(mode=0o700)  # and not there still: what could not be removed is nobody's engine
        return Lease(key, folder, facts, None, lock)

    # ------------------------------------------------------------------ all of them

    def kept(self) -> list[Kept]:
        """What is there, the last used first."""
        found: list[Kept] = []
        for folder in self._folders():
            try:
                used_s = (folder / RECORD).stat().st_mtime
            except OSError:
                used_s = 0.0

            with _alone(self.root / LOCKS / folder.name) as alone:
                in_use = not alone

            found.append(
                Kept(
                    key=folder.name,
                    engine=_record(folder),
                    size_bytes=size_bytes(folder),
                    used_s=used_s,
                    in_use=in_use,
                )
            )

        return sorted(found, key=lambda one: (-one.used_s, one.key))

    def evict(self) -> list[str]:
        """Remove what dead builders left and, until the limit is kept, what was used longest ago; never what is in
        use. Gives the keys removed."""
        kept = self.kept()
        total = sum(one.size_bytes for one in kept)
        removed: list[str] = []
        for one in reversed(kept):
            fits = total <= self.max_bytes and one.engine is not None
            if not fits and self.remove(one.key):
                total -= one.size_bytes
                removed.append(one.key)

        return removed

    def remove(self, key: str) -> bool:
        """Remove one entry, unless it is in use; whether it is gone."""
        with _alone(self.root / LOCKS / key) as alone:
            if alone:
                _remove(self.root / key)

            return alone and not (self.root / key).exists()

    def _folders(self) -> Iterator[Path]:
        try:
            yield from sorted(one for one in self.root.iterdir() if one.is_dir() and one.name != LOCKS)
        except OSError:
            return


@contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Whether this key's lock, for the time of the ``with``, is this process's alone."""
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:  # a cache that may only be read: nothing can be removed there
        yield False
        return

    try:
        yield _locked(lock, fcntl.LOCK_EX)
    finally:
        os.close(lock)


@contextmanager
def _written_to(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NotKept(f"{root} cannot be written to ({error.strerror or error})") from error


def key_of(facts: Facts) -> str:
    """The folder's name: what it is in words, and a digest of all facts."""
    words = "-".join(str(facts[name]) for name in ("workload", "size", "precision", "engine"))
    text = json.dumps(dict(facts), sort_keys=True)
    return f"{words.replace(':', '-')}-{sha256(text.encode()).hexdigest()[:16]}"


def read(folder: Path, facts: Facts) -> Engine | None:
    """The engine of these facts in ``folder``, if all of it is as its builder left it."""
    engine = _record(folder)
    if engine is None or engine.facts != dict(facts):
        return None

    try:
        whole = all(_digest(folder / name) == digest for name, digest in engine.files.items())
    except OSError:
        return None

    return engine if whole else None


def _record(folder: Path) -> Engine | None:
    try:
        found = json.loads((folder / RECORD).read_bytes())
        engine = Engine(**{**found, "batch_sizes": tuple(found["batch_sizes"])})
        dicts = isinstance(engine.files, dict) and isinstance(engine.calibrations, dict)
        whole = dicts and key_of(engine.facts) == folder.name
    except (OSError, ValueError, KeyError, TypeError):
        return None

    return engine if whole and isinstance(engine.build_s, int | float) else None


def size_bytes(folder: Path) -> int:
    """Of all files in it."""
    return sum(_size(folder / name) for name in _files(folder))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # torch has replaced it meanwhile
        return 0


def _files(folder: Path) -> list[str]:
    """Paths of the regular files in it, engine.json left out."""
    found = (
        Path(where, name).relative_to(folder).as_posix()
        for where, _, names in os.walk(folder)
        for name in names
    )
    return sorted(name for name in found if name != RECORD and (folder / name).is_file())


def _digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def _write_json(path: Path, content: object) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def _make(folder: Path) -> None:
    """For this user alone, and what is above it too where that is missing: what is compiled there will be run."""
    for each in (*reversed(folder.parents), folder):
        if not each.exists():
            each.mkdir(mode=0o700, exist_ok=True)


def _remove(folder: Path) -> None:
    """The record first, so that a removal cut short leaves nothing that is taken for whole."""
    with suppress(OSError):  # then the rest is not removed either, or no longer fits the record
        (folder / RECORD).unlink()

    shutil.rmtree(folder, ignore_errors=True)


def _locked(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False

    return True
