"""Runs that answer one question together, in one folder, so that a kill at any moment loses one run at most.

series.json     first: the question, and on what it is asked
runs/<key>/     one run folder a key; an attempt that was cut short is kept beside it, as <key>.cut-1, and one that
                was measured again as <key>.former-1
result.json     last, by rename: the answer

Whoever asks the same question again goes on with the folder: runs that came to a verdict are not repeated.
"""

import fcntl
import json
import os
import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Literal, get_args

from scheduler import __version__, inspection, judging, run
from scheduler.assignment import Plan, slice_as_json
from scheduler.clock import Clock, utc_stamp
from scheduler.errors import FolderBusy, FolderTaken, SeriesCutShort, Stopped
from scheduler.host import Host
from scheduler.judging import differences
from scheduler.record import RunFolder, disk_errors
from scheduler.result import Result
from scheduler.run import Watch
from scheduler.slices import Machine, Slice
from scheduler.spec import RunSpec

SCHEMA_VERSION = 1
CAME_TO_A_VERDICT = (0, 1)
"""Exit codes of a run that is not repeated; one that was stopped, or could not run, is."""
Aside = Literal["cut", "former"]
ASIDE = re.compile(rf"\.({'|'.join(get_args(Aside))})-\d+$")
"""How the folder's name of a run that was moved aside ends."""


Watching = Callable[[Plan, RunFolder, Clock], AbstractContextManager[Watch]]
"""Shows one run while it goes on."""


class Series:
    """One folder of runs, new or gone on with. Made by ``opened`` alone, which holds its lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own = RunFolder(path)

    def run(
        self,
        key: str,
        plan: Plan,
        spec: RunSpec,
        machine: Machine,
        watching: Watching,
        *,
        will_do: Callable[[Result], bool] = lambda _: True,
    ) -> Result:
        """The result of the run of that key: as it is in the folder already, or of a run carried out now.

        Args:
            will_do: whether a result that is in the folder is taken; else it is moved aside and measured again, once.

        Raises:
            SeriesCutShort: the run was stopped, or could not run; the same command goes on from here.
        """
        done = self.finished(key)
        if done is not None and will_do(done[1]):
            return done[1]

        folder, clock = self.new_run(key, "cut" if done is None else "former"), Clock.start()
        with self.heeding_stops(key, folder), watching(plan, folder, clock) as watch:
            result = run.run(plan, spec, inspection.about(machine), clock, folder, watch)

        code = judging.exit_code(result, folder)
        if code not in CAME_TO_A_VERDICT:
            told, advice = breaches(result)
            raise SeriesCutShort(code, key, told, self.path, advice)

        return result

    @contextmanager
    def heeding_stops(self, key: str, folder: RunFolder) -> Iterator[None]:
        """Around a run of the series: a stop signal in it, however late, ends the series with it.

        Raises:
            SeriesCutShort: there was one; what the run left is kept.
        """
        try:
            yield
        except Stopped as error:
            raise SeriesCutShort(error.exit_code, key, [error.found], self.path) from None

        number = judging.stopped_by(folder)
        if number is not None:
            told = f"stopped by {signal.Signals(number).name}"
            raise SeriesCutShort(128 + number, key, [told], self.path)

    def finished(self, key: str) -> tuple[RunFolder, Result] | None:
        """The run of that key, if it came to a verdict; None: it is to be run, in ``new_run(key)``.

        Raises:
            FolderDamaged: it did, and what it left cannot be read.
        """
        folder = RunFolder(self.path / "runs" / key)
        result = verdict_in(folder)
        return None if result is None else (folder, result)

    def new_run(self, key: str, before: Aside = "cut") -> RunFolder:
        """An empty folder for the run of that key; what was there before is moved aside, named by that word."""
        runs = self.path / "runs"
        with disk_errors(self.path):
            runs.mkdir(exist_ok=True)
            if (runs / key).exists():
                aside = next(path for n in count(1) if not (path := runs / f"{key}.{before}-{n}").exists())
                (runs / key).rename(aside)

        return RunFolder.create(runs / key)

    def append_line(self, name: str, line: dict[str, Any]) -> None:
        """Add one JSON line to a file of the series; on return it is the kernel's to keep."""
        self._own.drop_line_cut_off(name)
        self._own.append_line(name, line)

    def lines(self, name: str) -> list[dict[str, Any]]:
        """What ``append_line`` wrote; a last line that was cut off is left out."""
        return self._own.lines(name)

    def answer(self) -> dict[str, Any] | None:
        """``result.json``; None while there is none."""
        return self._own.result() if self._own.has_result() else None

    def write_answer(self, answer: dict[str, Any]) -> None:
        """Write the answer; the last thing of a series."""
        self._own.write_result(answer)


@contextmanager
def opened(path: Path, question: Mapping[str, Any]) -> Iterator[Series]:
    """The series in that folder, made if it is not there, with nobody else at it.

    Args:
        question: what is asked, ready for JSON: the command, its options, the slices, the versions. All that
            must be the same for two runs to belong together.

    Raises:
        FolderTaken: the folder holds something else, or the answer to another question.
        FolderBusy: another process is at it.
        DiskFull, RecordError: it cannot be made or written.
    """
    asked = json.loads(json.dumps(question, default=str))
    with disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderBusy(
                asked=f"to go on with {path}",
                found="another hetero-mig is at it",
                do="wait until it has ended, or name another --output",
            ) from None

        _claim(path, asked)
        yield Series(path.resolve())
    finally:
        os.close(descriptor)


def verdict_in(folder: RunFolder) -> Result | None:
    """The result of a run that is not made again; None: there is none, or it was stopped or could not run.

    Raises:
        FolderDamaged: there is one, and it cannot be read.
    """
    if not folder.has_result():
        return None

    result = judging.read_result(folder)
    return result if judging.exit_code(result, folder) in CAME_TO_A_VERDICT else None


def breaches(result: Result, leave_out: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """What is wrong, and what to do about it; findings of some codes left out."""
    found = [one for one in result.findings if one.severity == "breach" and one.code not in leave_out]
    return [one.message for one in found], [one.recommendation for one in found]


def question(command: str, asked: Mapping[str, Any], slices: Sequence[Slice]) -> dict[str, Any]:
    """What must be the same for runs to belong together: the command, its options, the slices, the versions."""
    return {
        "command": command,
        "asked": dict(asked),
        "slices": [slice_as_json(one) for one in slices],
        "versions": {"hetero-mig": __version__, **Host().describe()["versions"]},
    }


def place(output: Path | None, name: str, question: Mapping[str, Any]) -> Path:
    """Where the series is kept: ``output``, else the newest in ``results/`` to go on with, else a new folder there."""
    if output is not None:
        return output

    parent = Path("results")
    return to_go_on_with(parent, question) or RunFolder.create_new(parent, f"{utc_stamp()}-{name}").path


def to_go_on_with(parent: Path, question: Mapping[str, Any]) -> Path | None:
    """The newest folder in ``parent`` that asks the same and has no answer yet."""
    asked = json.loads(json.dumps(question, default=str))
    candidates = sorted(parent.glob("*/series.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in candidates:
        folder = RunFolder(path.parent)
        if not folder.has_result() and asked_of(folder.path) == asked:
            return folder.path

    return None


def _claim(path: Path, asked: dict[str, Any]) -> None:
    """Write the question where there is none; else make sure that it is the same."""
    there = asked_of(path)
    if there is None:
        others = [entry.name for entry in path.iterdir() if entry.name not in (".lock", ".series.json.draft")]
        if others:
            raise FolderTaken(
                asked=f"a new series of runs in {path}",
                found=f"that folder holds something already: {', '.join(sorted(others)[:3])}",
                do="name another --output, or move it away",
            )

        RunFolder(path).write_json("series.json", {"schema_version": SCHEMA_VERSION, "question": asked})
    elif there != asked:
        raise FolderTaken(
            asked=f"to go on with {path}",
            found=f"it asks something else: {', '.join(differences(there, asked)[:5])} differ",
            do="name another --output; to go on, give the command as it was, on the same machine and versions",
        )


def asked_of(path: Path) -> dict[str, Any] | None:
    """The question of the series in ``path``: None where there is none, empty where it cannot be read."""
    try:
        found = json.loads((path / "series.json").read_text(encoding="utf-8"))
        question: dict[str, Any] = found["question"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        return {}

    return question
