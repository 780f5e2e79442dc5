"""The run folder: written as things happen, so that it survives every crash, and read back to judge.

manifest.json          first: what was asked and decided, on what machine, and the clock's zero
events.jsonl           one event or action a line, flushed at once
telemetry.jsonl        samples of host, workers, slices and GPUs; telemetry.json: how, and what is unavailable
<benchmark>/           its stdout.log, stderr.log, progress.bin, completions.bin, loadgen/…
result.json            last, by rename: a folder without it is of a run that was cut short
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from scheduler import events
from scheduler.errors import DiskFull, FolderDamaged, FolderTaken, NoRun, RecordError
from scheduler.events import Action, Event

_KINDS = {
    kind.__name__: kind
    for kind in (
        *(events.Ready, events.Issuing, events.Finished, events.Failed, events.Exited, events.Stalled),
        *(events.StopRequested, events.DeadlinePassed, events.NextMain, events.NoMoreMains),
        *(events.Launch, events.Drain, events.Stop, events.Kill),
    )
}


class RunFolder:
    """One run's folder, new or old."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # ------------------------------------------------------------------ writing

    @classmethod
    def create(cls, path: Path) -> "RunFolder":
        """Make the folder.

        Raises:
            FolderTaken: it exists and is not empty.
            DiskFull, RecordError: it cannot be made.
        """
        with disk_errors(path):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise FolderTaken(
                    asked=f"a new run in {path}",
                    found="that folder holds something already" if path.is_dir() else "that is a file",
                    do="name another --output, or move it away",
                )

            path.mkdir(parents=True, exist_ok=True)

        return cls(path.resolve())

    @classmethod
    def create_new(cls, parent: Path, name: str) -> "RunFolder":
        """Make a folder of that name, or of that name with a number, where two runs begin in one second."""
        for number in count(1):
            path = parent / (name if number == 1 else f"{name}-{number}")
            with disk_errors(path):
                try:
                    path.mkdir(parents=True)
                except FileExistsError:
                    continue

                return cls(path.resolve())

        raise AssertionError("count() has no end")

    def write_manifest(self, manifest: dict[str, Any]) -> None:
        """Write what was asked and decided; before anything starts."""
        self.write_json("manifest.json", manifest)

    def benchmark(self, name: str) -> Path:
        """The benchmark's own folder, made if it is not there."""
        folder = self.path / name
        with disk_errors(folder):
            folder.mkdir(exist_ok=True)

        return folder

    def append(self, what: Event | Action, at: float) -> None:
        """Add one line to the story; on return it is the kernel's to keep."""
        line = {"at_handled": round(at, 6), "what": type(what).__name__, **asdict(what)}
        self.append_line("events.jsonl", line)

    def drop_line_cut_off(self, name: str) -> None:
        """Take away what a kill left of a last line, before more lines are added to that file."""
        path = self.path / name
        with disk_errors(self.path):
            if not path.exists() or path.stat().st_size == 0:
                return

            with path.open("rb+") as file:
                file.seek(-1, os.SEEK_END)
                if file.read() != b"\n":
                    file.seek(0)
                    file.truncate(file.read().rfind(b"\n") + 1)

    def append_line(self, name: str, line: dict[str, Any]) -> None:
        """Add one JSON line to a file of the folder."""
        with disk_errors(self.path), (self.path / name).open("ab", buffering=0) as file:
            file.write(json.dumps(line, default=str).encode() + b"\n")

    @contextmanager
    def appending(self, name: str) -> Iterator[Callable[[dict[str, Any]], None]]:
        """Adds JSON lines to a file that stays open until the ``with`` is left: for what is written often.

        Raises:
            DiskFull, RecordError: the file cannot be opened; the same from each call, where it cannot be written.
        """
        encode = json.JSONEncoder(default=str).encode
        with disk_errors(self.path):
            file = (self.path / name).open("ab", buffering=0)

        def append(line: dict[str, Any]) -> None:
            with disk_errors(self.path):
                file.write(encode(line).encode() + b"\n")

        with file:
            yield append

    def write_result(self, result: dict[str, Any]) -> None:
        """Write the verdict; the last thing of a run."""
        self.write_json("result.json", result)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a file of the folder, by rename: it is there whole, or as it was before."""
        write_whole(self.path / name, json.dumps(content, indent=2, default=str).encode() + b"\n")

    # ------------------------------------------------------------------ reading

    def manifest(self) -> dict[str, Any]:
        """What was asked and decided.

        Raises:
            NoRun: there is none.
            FolderDamaged: it cannot be read.
        """
        try:
            return self._read("manifest.json")
        except FolderDamaged as error:
            if not isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                raise

        series = is_series(self.path)
        raise NoRun(
            asked=f"the run in {self.path}",
            found="it is a series of runs, not one run"
            if series
            else "there is no manifest.json: it is no run",
            do="name one of the folders in its runs/ folder" if series else "name the folder of a run",
        )

    def has_result(self) -> bool:
        """Whether the run came to its verdict."""
        return (self.path / "result.json").exists()

    def result(self) -> dict[str, Any]:
        """The verdict as it was written.

        Raises:
            FolderDamaged: there is none: the run was cut short.
        """
        return self._read("result.json")

    def read_json(self, name: str) -> dict[str, Any]:
        """A file that ``write_json`` wrote.

        Raises:
            FolderDamaged: there is none, or it cannot be read.
        """
        return self._read(name)

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content: dict[str, Any] = json.loads((self.path / name).read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise _damaged(self.path / name, "there is no such file") from error
        except (OSError, ValueError) as error:
            raise _damaged(self.path / name, str(error)) from error

        if not isinstance(content, dict):
            raise _damaged(self.path / name, "it is not an object")

        return content

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What ``append_line`` wrote into a file; none where there is no file. A last line cut off is left out.

        Raises:
            FolderDamaged: it cannot be read, or an earlier line is no object.
        """
        path = self.path / name
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(path, str(error)) from error

        found: list[dict[str, Any]] = []
        lines = text.splitlines()
        for number, line in enumerate(lines, start=1):
            try:
                found.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                if number == len(lines):
                    break

                raise _damaged(path, f"line {number} is not an object: {error}") from error

        return found

    def last_lines(self, name: str, most_bytes: int) -> list[dict[str, Any]]:
        """The last whole lines of a file that is being written, in order; none where there is no file."""
        try:
            with (self.path / name).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - most_bytes))
                begun_before = file.tell() > 0
                pieces = file.read().split(b"\n")
        except OSError:
            return []

        whole = pieces[1 if begun_before else 0 : -1]
        return [dict(json.loads(line)) for line in whole]

    def telemetry(self) -> dict[str, Any] | None:
        """What ``telemetry.json`` holds; None where there is none.

        Raises:
            FolderDamaged: it cannot be read.
        """
        return self._read("telemetry.json") if (self.path / "telemetry.json").exists() else None

    def idle(self) -> dict[str, Any]:
        """Who computed where nothing was to, before main and after it; empty where nothing was noted.

        Raises:
            FolderDamaged: it cannot be read.
        """
        return self._read("idle.json") if (self.path / "idle.json").exists() else {}

    def story(self) -> list[tuple[float, Event | Action]]:
        """Every event and action with the time it was handled, in order; a last line cut off is left out.

        Raises:
            FolderDamaged: it cannot be read, or an earlier line is not an event.
        """
        path = self.path / "events.jsonl"
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise _damaged(path, str(error)) from error

        told: list[tuple[float, Event | Action]] = []
        for number, line in enumerate(lines, start=1):
            try:
                told.append(_told(line))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                if number == len(lines):
                    break

                raise _damaged(path, f"line {number} is not an event: {error}") from error

        return told

    def log_lines(self, benchmark: str, test: str = "loadgen") -> list[str]:
        """The lines of a LoadGen detail log, or none where there is no log."""
        path = self.path / benchmark / test / "mlperf_log_detail.txt"
        try:
            return path.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def quality(self, benchmark: str) -> dict[str, Any]:
        """How good a benchmark's answers are, as its worker wrote it.

        Raises:
            FolderDamaged: there is none, or it cannot be read.
        """
        return self._read(f"{benchmark}/quality.json")

    def effective(self, benchmark: str) -> dict[str, Any]:
        """LoadGen's settings as its worker set them, and the answers' dtype.

        Raises:
            FolderDamaged: there are none, or they cannot be read.
        """
        told = self._read(f"{benchmark}/loadgen_settings.json").get("effective")
        if not isinstance(told, dict):
            raise _damaged(self.path / benchmark / "loadgen_settings.json", "it has no effective settings")

        return told

    def calibration(self, benchmark: str) -> dict[str, Any]:
        """What a main benchmark's calibration measured and picked; empty where the worker left none.

        Raises:
            FolderDamaged: it cannot be read.
        """
        name = f"{benchmark}/loadgen_settings.json"
        told = self._read(name).get("calibration") if (self.path / name).exists() else None
        return told if isinstance(told, dict) else {}

    def answers_sha256(self, benchmark: str) -> str | None:
        """The digest of LoadGen's accuracy log; None where there is none."""
        try:
            with (self.path / benchmark / "loadgen" / "mlperf_log_accuracy.json").open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError:
            return None


def _told(line: str) -> tuple[float, Event | Action]:
    fields = json.loads(line)
    at, kind = float(fields.pop("at_handled")), _KINDS[fields.pop("what")]
    for name in ("at", "begin", "end", "first_issue_at", "last_completion_at"):
        if fields.get(name) is not None:
            fields[name] = float(fields[name])

    return at, kind(**fields)


def is_series(path: Path) -> bool:
    """Whether the folder holds several runs that answer one question (series.py)."""
    return (path / "series.json").exists()


def _damaged(path: Path, found: str) -> FolderDamaged:
    return FolderDamaged(
        asked=f"{path.name} of {path.parent}", found=found, do="name the folder of a run, as it was left"
    )


def write_whole(path: Path, content: bytes) -> None:
    """Write a file by rename: it is there whole, or as it was before.

    Raises:
        DiskFull, RecordError: it cannot be written.
    """
    with disk_errors(path.parent):
        if path.exists() and not path.is_file():  # /dev/stdout, a pipe: nothing can take its name
            path.write_bytes(content)
            return

        there = path.resolve()  # a link goes on to be one
        draft = there.with_name(f".{there.name}.draft")
        with draft.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

        draft.rename(there)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Tell what goes wrong with the disk as DiskFull or RecordError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                asked=f"the record of this run in {path}",
                found="no space is left there",
                do="free some space or name another --output; what was written so far is kept",
            ) from error

        raise RecordError(
            asked=f"the record of this run in {path}",
            found=f"{error.strerror} ({error.filename or path})",
            do="name an --output that can be written",
        ) from error
