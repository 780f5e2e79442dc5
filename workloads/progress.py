"""How far a benchmark is: written by its worker as it completes batches, read by the launcher.

Imports neither torch nor numpy nor LoadGen. All times are ``time.monotonic_ns()``: CLOCK_MONOTONIC, which
on Linux is one clock for all processes of a machine.

``progress.bin``, the mark, is one page in shared memory that outlives the worker: native 64-bit unsigned
words, in the order of `Word`. Each word is stored whole; a reader may see one word newer than another.

``completions.bin``, the history, is appended to once in `RECORD_EVERY_NS` at most, and before a completion
that comes later than that after the one before; each record is six native 64-bit unsigned words, the fields
of `Record`. A record that was cut short by the process's end is
not read. A batch's end is the moment LoadGen had taken its completions.
"""

import errno
import mmap
import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, overload

MARK_FILE, HISTORY_FILE = "progress.bin", "completions.bin"
PAGE_BYTES = 4096
RECORD_EVERY_NS = 10_000_000
FORMAT = 0x4845_5445_524F_0001
"""In the first word once the page is ready; the last digit is the format's version."""


class Word(IntEnum):
    """Where each figure stands in the page."""

    FORMAT = 0
    SAMPLES_COMPLETED = 1
    LAST_COMPLETION_NS = 2
    FILLER_SAMPLES = 3
    FIRST_ISSUE_NS = 4
    TESTS_STARTED = 5
    TESTS_COMPLETED = 6
    BATCH_BEGIN_NS = 7
    BATCHES = 8
    LONGEST_BATCH_NS = 9


# Plain module names: an enum member costs 30 ns more at every use, and these are used for every query.
_SAMPLES, _LAST, _FILLER, _BATCH_BEGIN = (
    int(Word.SAMPLES_COMPLETED),
    int(Word.LAST_COMPLETION_NS),
    int(Word.FILLER_SAMPLES),
    int(Word.BATCH_BEGIN_NS),
)
_RECORD = struct.Struct("=6Q")
_PAGE = struct.Struct(f"={len(Word)}Q")
MARK_BYTES = _PAGE.size


class Record(NamedTuple):
    """What was completed since the record before."""

    t_ns: int
    """The last completion."""
    samples: int
    """Completed since the start, filler not counted."""
    filler_samples: int
    """Predicted between two LoadGen tests to keep the slice at work, since the start."""
    longest_gap_ns: int
    """Between two consecutive completions of any kind."""
    longest_idle_ns: int
    """From the end of a batch to the begin of the next."""
    longest_batch_ns: int


class Progress:
    """The worker's side. One thread at a time calls it.

    Raises:
        OSError: a file cannot be made or the disk is full; never a bus error later, since the page's blocks
            are allocated at once.
    """

    def __init__(self, folder: Path) -> None:
        self._history = os.open(
            folder / HISTORY_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o644
        )
        self._page = _allocated_page(folder / MARK_FILE)
        self._words = memoryview(self._page).cast("Q")
        self._samples = self._filler = self._batches = 0
        self._last_ns = self._recorded_ns = 0
        self._gap_ns = self._idle_ns = self._batch_ns = 0
        self._words[Word.FORMAT] = FORMAT

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def first_issue(self, at_ns: int) -> None:
        """LoadGen's first IssueQuery; later calls change nothing."""
        if not self._words[Word.FIRST_ISSUE_NS]:
            self._words[Word.FIRST_ISSUE_NS] = at_ns

    def test_started(self) -> None:
        """A LoadGen test (not one of the calibration) begins."""
        self._words[Word.TESTS_STARTED] += 1

    def test_completed(self) -> None:
        """LoadGen returned from it."""
        self._words[Word.TESTS_COMPLETED] += 1

    def began(self, begin_ns: int) -> None:
        """A batch begins: what comes until its completion is work, not idleness."""
        self._words[_BATCH_BEGIN] = begin_ns

    def completed(self, begin_ns: int, end_ns: int, samples: int, filler: bool) -> None:
        """A batch of that many samples ran from ``begin_ns`` to ``end_ns``.

        Raises:
            OSError: the history cannot be written.
        """
        last_ns = self._last_ns
        if last_ns:
            if end_ns - last_ns >= RECORD_EVERY_NS and last_ns != self._recorded_ns:
                self._record()  # so that what came before a long gap is told as before it

            if end_ns - last_ns > self._gap_ns:
                self._gap_ns = end_ns - last_ns

            if begin_ns - last_ns > self._idle_ns:
                self._idle_ns = begin_ns - last_ns

        if end_ns - begin_ns > self._batch_ns:
            self._batch_ns = end_ns - begin_ns

        self._batches += 1
        if filler:
            self._filler += samples
            self._words[_FILLER] = self._filler
        else:
            self._samples += samples
            self._words[_SAMPLES] = self._samples

        self._words[_LAST] = self._last_ns = end_ns
        if end_ns - self._recorded_ns >= RECORD_EVERY_NS:
            self._record()

    def close(self) -> None:
        """Write what is not yet in the history, and let go of both files."""
        if self._last_ns != self._recorded_ns:
            self._record()

        self._words.release()
        self._page.close()
        os.close(self._history)

    def _record(self) -> None:
        words = self._words
        words[Word.BATCHES] = self._batches
        if self._batch_ns > words[Word.LONGEST_BATCH_NS]:
            words[Word.LONGEST_BATCH_NS] = self._batch_ns

        record = _RECORD.pack(
            self._last_ns, self._samples, self._filler, self._gap_ns, self._idle_ns, self._batch_ns
        )
        if os.write(self._history, record) != len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), HISTORY_FILE)

        self._recorded_ns = self._last_ns
        self._gap_ns = self._idle_ns = self._batch_ns = 0


def _allocated_page(path: Path) -> mmap.mmap:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, PAGE_BYTES)
        return mmap.mmap(descriptor, PAGE_BYTES)
    finally:
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class ProgressMark:
    """The page as it stood at one moment."""

    samples_completed: int
    last_completion_ns: int
    """Of any kind, filler too; 0 before the first."""
    filler_samples: int
    first_issue_ns: int
    """0 before LoadGen's first IssueQuery (calibration not counted)."""
    tests_started: int
    tests_completed: int
    batch_begin_ns: int
    """Of the batch begun last; it is still in hand where this is later than ``last_completion_ns``."""
    batches: int
    """Of any kind; up to 10 ms old, as is ``longest_batch_ns``."""
    longest_batch_ns: int

    @property
    def in_test(self) -> bool:
        """LoadGen is running a test."""
        return self.tests_started > self.tests_completed


def read_mark(folder: Path) -> ProgressMark | None:
    """The mark in a benchmark's folder; None as long as there is none."""
    try:
        with (folder / MARK_FILE).open("rb") as file:
            return mark_of(file.read(MARK_BYTES))
    except FileNotFoundError:
        return None


def mark_of(page: bytes) -> ProgressMark | None:
    """What the first ``MARK_BYTES`` of a mark's page say; None as long as it is not ready."""
    if len(page) < MARK_BYTES:
        return None

    format_word, *words = _PAGE.unpack(page)
    return ProgressMark(*words) if format_word == FORMAT else None


class History(Sequence[Record]):
    """The records of a benchmark's folder, oldest first; unpacked as they are asked for.

    A worker that was killed left its last few milliseconds in the mark alone: they make the last record,
    with gap, idleness and batch no longer than the time since the record before.
    """

    def __init__(self, data: bytes, mark: ProgressMark | None) -> None:
        self._data = data
        self._whole = len(data) // _RECORD.size
        self._unrecorded: tuple[Record, ...] = ()
        self.batch_begin_ns = mark.batch_begin_ns if mark is not None else 0
        if mark is not None and self._whole and mark.last_completion_ns > self._unpack(self._whole - 1).t_ns:
            since_ns = mark.last_completion_ns - self._unpack(self._whole - 1).t_ns
            self._unrecorded = (
                Record(
                    mark.last_completion_ns,
                    mark.samples_completed,
                    mark.filler_samples,
                    since_ns,
                    since_ns,
                    since_ns,
                ),
            )

    def __len__(self) -> int:
        return self._whole + len(self._unrecorded)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]

        position = range(len(self))[index]
        return self._unpack(position) if position < self._whole else self._unrecorded[0]

    def _unpack(self, position: int) -> Record:
        return Record(*_RECORD.unpack_from(self._data, position * _RECORD.size))


def read_history(folder: Path) -> History:
    """The history in a benchmark's folder; empty as long as there is none."""
    try:
        data = (folder / HISTORY_FILE).read_bytes()
    except FileNotFoundError:
        data = b""

    return History(data, read_mark(folder))


@dataclass(frozen=True, slots=True)
class WindowWork:
    """What a benchmark did in a window of time."""

    samples: int
    filler_samples: int
    longest_gap_s: float
    """Without any completion, filler's too; the window's begin and end bound the first and the last gap."""
    longest_idle_s: float
    """With no batch in hand."""
    longest_batch_s: float
    """Of the batches that completed in the window or were in hand at its end, unclipped."""
    first_completion_ns: int | None
    last_completion_ns: int | None
    """Inside the window, to one record."""


def work_in_window(
    records: Sequence[Record], begin_ns: int, end_ns: int, batch_begin_ns: int = 0
) -> WindowWork:
    """What was completed after ``begin_ns`` and up to ``end_ns``.

    Counts and times are to one record: one that contains the window's begin counts whole, one that contains
    its end does not. Gap and idleness are never understated, and overstated by 10 ms at
    most. Where the records end inside the window, ``batch_begin_ns`` (of the mark) says from when on a batch
    was in hand that never completed.
    """
    first = bisect_right(records, begin_ns, key=lambda record: record.t_ns)
    before = records[first - 1] if first else None
    samples, filler = (before.samples, before.filler_samples) if before is not None else (0, 0)
    first_ns = last_ns = None
    gap_ns = idle_ns = batch_ns = 0
    since_ns = begin_ns  # up to here the window is accounted for
    for position in range(first, len(records)):
        record = records[position] if position else _with_nothing_before(records[0], begin_ns)
        span_ns = min(record.t_ns, end_ns) - since_ns
        gap_ns = max(gap_ns, min(record.longest_gap_ns, span_ns))
        # A batch that long is the record's last: it was no longer idle from that batch's begin.
        work_ns = record.longest_batch_ns if record.longest_batch_ns >= RECORD_EVERY_NS else 0
        idle_span_ns = min(record.t_ns - work_ns, end_ns) - since_ns
        idle_ns = max(idle_ns, min(record.longest_idle_ns, idle_span_ns))
        batch_ns = max(batch_ns, record.longest_batch_ns)
        if record.t_ns > end_ns:
            break

        samples, filler = record.samples, record.filler_samples
        first_ns = record.t_ns if first_ns is None else first_ns
        since_ns = last_ns = record.t_ns
    else:
        in_hand = batch_begin_ns > (records[-1].t_ns if records else 0)
        gap_ns = max(gap_ns, end_ns - since_ns)
        idle_ns = max(idle_ns, (min(batch_begin_ns, end_ns) if in_hand else end_ns) - since_ns)
        batch_ns = max(batch_ns, end_ns - batch_begin_ns if in_hand else 0)

    return WindowWork(
        samples=samples - (before.samples if before is not None else 0),
        filler_samples=filler - (before.filler_samples if before is not None else 0),
        longest_gap_s=gap_ns / 1e9,
        longest_idle_s=idle_ns / 1e9,
        longest_batch_s=batch_ns / 1e9,
        first_completion_ns=first_ns,
        last_completion_ns=last_ns,
    )


def _with_nothing_before(record: Record, begin_ns: int) -> Record:
    """The history's first record, which is one batch: what led up to it is its own gap and idleness."""
    idle_ns = max(0, record.t_ns - record.longest_batch_ns - begin_ns)
    return record._replace(longest_gap_ns=record.t_ns, longest_idle_ns=idle_ns)
