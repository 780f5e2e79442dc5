"""The progress mark and the history: exact where they say so, and never flattering where they round."""

import multiprocessing
import os
import resource
import signal
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.progress import (
    HISTORY_FILE,
    MARK_FILE,
    PAGE_BYTES,
    RECORD_EVERY_NS,
    History,
    Progress,
    WindowWork,
    read_history,
    read_mark,
    work_in_window,
)

START_NS = 10**12
MS = 10**6
LONG = (10 * MS, 60 * MS)
"""A batch this long is a record of its own."""
SHORT = (1000, 4 * MS)


@dataclass(frozen=True)
class Batch:
    begin_ns: int
    end_ns: int
    samples: int
    filler: bool


@st.composite
def histories(draw: st.DrawFn, lengths_ns: tuple[int, int]) -> tuple[list[Batch], int, int]:
    """Batches one after another with idle times between, and a window somewhere about them."""
    batches, now_ns = [], START_NS
    for _ in range(draw(st.integers(1, 12))):
        begin_ns = now_ns + draw(st.one_of(st.just(0), st.integers(0, 3 * MS), st.integers(0, 150 * MS)))
        now_ns = begin_ns + draw(st.integers(*lengths_ns))
        batches.append(Batch(begin_ns, now_ns, draw(st.integers(1, 64)), draw(st.booleans())))

    begin_ns = draw(st.integers(START_NS - 50 * MS, now_ns + 50 * MS))
    return batches, begin_ns, begin_ns + draw(st.integers(1, now_ns - START_NS + 100 * MS))


def write(folder: Path, batches: list[Batch], *, in_hand_ns: int | None = None) -> History:
    with Progress(folder) as progress:
        for batch in batches:
            progress.began(batch.begin_ns)
            progress.completed(batch.begin_ns, batch.end_ns, batch.samples, batch.filler)

        if in_hand_ns is not None:
            progress.began(in_hand_ns)

    return read_history(folder)


def exact(batches: list[Batch], begin_ns: int, end_ns: int) -> WindowWork:
    """The same from the batches themselves, with nothing rounded."""

    def longest(intervals: list[tuple[int, int]]) -> float:
        return max(0, *(min(end, end_ns) - max(begin, begin_ns) for begin, end in intervals)) / 1e9

    inside = [batch for batch in batches if begin_ns < batch.end_ns <= end_ns]
    ends = [0, *(batch.end_ns for batch in batches), 2 * end_ns]
    begins = [*(batch.begin_ns for batch in batches), 2 * end_ns]
    return WindowWork(
        samples=sum(batch.samples for batch in inside if not batch.filler),
        filler_samples=sum(batch.samples for batch in inside if batch.filler),
        longest_gap_s=longest(list(pairwise(ends))),
        longest_idle_s=longest(list(zip(ends, begins, strict=False))),
        longest_batch_s=max(
            (b.end_ns - b.begin_ns for b in batches if b.end_ns > begin_ns and b.begin_ns < end_ns), default=0
        )
        / 1e9,
        first_completion_ns=inside[0].end_ns if inside else None,
        last_completion_ns=inside[-1].end_ns if inside else None,
    )


@settings(max_examples=50, deadline=None)
@given(histories(LONG))
def test_batches_of_10_ms_and_more_are_told_exactly(drawn: tuple[list[Batch], int, int]) -> None:
    batches, begin_ns, end_ns = drawn
    with tempfile.TemporaryDirectory() as folder:
        told = work_in_window(write(Path(folder), batches), begin_ns, end_ns)

    true = exact(batches, begin_ns, end_ns)
    assert told.samples == true.samples
    assert told.filler_samples == true.filler_samples
    assert told.longest_gap_s == true.longest_gap_s
    assert told.longest_idle_s == true.longest_idle_s
    assert (told.first_completion_ns, told.last_completion_ns) == (
        true.first_completion_ns,
        true.last_completion_ns,
    )


@settings(max_examples=50, deadline=None)
@given(histories(SHORT))
def test_shorter_batches_are_told_to_one_record(drawn: tuple[list[Batch], int, int]) -> None:
    batches, begin_ns, end_ns = drawn
    with tempfile.TemporaryDirectory() as folder:
        told = work_in_window(write(Path(folder), batches), begin_ns, end_ns)

    true, record_s = exact(batches, begin_ns, end_ns), RECORD_EVERY_NS / 1e9
    assert true.longest_gap_s <= told.longest_gap_s <= true.longest_gap_s + record_s
    assert true.longest_idle_s <= told.longest_idle_s <= true.longest_idle_s + record_s
    assert true.longest_batch_s <= told.longest_batch_s or not told.longest_batch_s
    least = exact(batches, begin_ns, max(begin_ns, end_ns - 2 * RECORD_EVERY_NS))
    most = exact(batches, begin_ns - 2 * RECORD_EVERY_NS, end_ns)
    assert least.samples <= told.samples <= most.samples
    assert least.filler_samples <= told.filler_samples <= most.filler_samples


@settings(max_examples=50, deadline=None)
@given(histories(LONG), st.integers(0, 200 * MS))
def test_a_batch_in_hand_at_the_end_is_work(drawn: tuple[list[Batch], int, int], idle_ns: int) -> None:
    batches, begin_ns, end_ns = drawn
    in_hand_ns = batches[-1].end_ns + 1 + idle_ns
    with tempfile.TemporaryDirectory() as folder:
        history = write(Path(folder), batches, in_hand_ns=in_hand_ns)
        told = work_in_window(history, begin_ns, end_ns, history.batch_begin_ns)

    never_ends = Batch(in_hand_ns, 3 * end_ns, 1, False)
    true = exact([*batches, never_ends], begin_ns, end_ns)
    assert told.longest_idle_s == true.longest_idle_s
    assert told.longest_gap_s == true.longest_gap_s


def test_the_counts_of_all_windows_add_up(tmp_path: Path) -> None:
    batches = [Batch(START_NS + i * MS, START_NS + i * MS + MS, i % 7, i % 3 == 0) for i in range(500)]
    history = write(tmp_path, batches)
    edges = [START_NS - 1, START_NS + 33 * MS, START_NS + 34 * MS, START_NS + 301 * MS, START_NS + 900 * MS]
    windows = [work_in_window(history, begin, end) for begin, end in pairwise(edges)]
    assert sum(one.samples for one in windows) == sum(b.samples for b in batches if not b.filler)
    assert sum(one.filler_samples for one in windows) == sum(b.samples for b in batches if b.filler)


def test_at_most_one_record_in_10_ms(tmp_path: Path) -> None:
    batches = [Batch(START_NS + i * 1000, START_NS + i * 1000 + 900, 1, False) for i in range(100_000)]
    history = write(tmp_path, batches)
    assert 10 <= len(history) <= 12
    assert history[-1].samples == 100_000
    assert read_mark(tmp_path) is not None
    assert [record.t_ns for record in history] == sorted(record.t_ns for record in history)


def test_a_record_cut_short_is_not_read(tmp_path: Path) -> None:
    batches = [Batch(START_NS + i * 20 * MS, START_NS + i * 20 * MS + 20 * MS, 5, False) for i in range(4)]
    whole = write(tmp_path, batches)
    path = tmp_path / HISTORY_FILE
    path.write_bytes(path.read_bytes()[:-1])
    (tmp_path / MARK_FILE).unlink()
    assert list(read_history(tmp_path)) == list(whole)[:3]


def test_nothing_yet(tmp_path: Path) -> None:
    assert read_mark(tmp_path) is None
    assert len(read_history(tmp_path)) == 0
    (tmp_path / MARK_FILE).write_bytes(b"")  # made, not yet allocated
    assert read_mark(tmp_path) is None
    work = work_in_window([], START_NS, START_NS + 10**9)
    assert (work.samples, work.longest_gap_s, work.longest_idle_s) == (0, 1.0, 1.0)
    assert (work.first_completion_ns, work.last_completion_ns) == (None, None)


def test_the_mark_says_where_the_benchmark_is(tmp_path: Path) -> None:
    with Progress(tmp_path) as progress:
        progress.test_started()
        progress.first_issue(START_NS)
        progress.first_issue(START_NS + MS)
        progress.began(START_NS + 2)
        mark = read_mark(tmp_path)
        assert mark is not None
        assert mark.in_test
        assert (mark.first_issue_ns, mark.batch_begin_ns) == (START_NS, START_NS + 2)
        progress.completed(START_NS + 2, START_NS + 12 * MS, 8, filler=False)
        progress.completed(START_NS + 12 * MS, START_NS + 13 * MS, 3, filler=True)
        progress.test_completed()
        mark = read_mark(tmp_path)

    assert mark is not None
    assert not mark.in_test
    assert (mark.samples_completed, mark.filler_samples) == (8, 3)
    assert mark.last_completion_ns == START_NS + 13 * MS
    assert mark.longest_batch_ns == 12 * MS - 2
    assert (tmp_path / MARK_FILE).stat().st_size == PAGE_BYTES


def killed_while_working(folder: Path) -> None:
    progress = Progress(folder)
    for i in range(1005):
        progress.began(START_NS + i * MS)
        progress.completed(START_NS + i * MS, START_NS + (i + 1) * MS, 2, filler=False)

    os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_leaves_every_completion(tmp_path: Path) -> None:
    worker = multiprocessing.get_context("fork").Process(target=killed_while_working, args=(tmp_path,))
    worker.start()
    worker.join()
    assert worker.exitcode == -signal.SIGKILL
    worker.close()
    history = read_history(tmp_path)
    assert (tmp_path / HISTORY_FILE).stat().st_size == (len(history) - 1) * 48  # the rest is in the mark
    work = work_in_window(history, START_NS, START_NS + 1005 * MS)
    assert work.samples == 2010
    assert work.last_completion_ns == START_NS + 1005 * MS
    assert work.longest_gap_s <= 0.010


def run_out_of_disk(folder: Path, page_fits: bool) -> None:
    """What a full disk refuses, a limit on file size refuses as well, with another number."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limit = PAGE_BYTES if page_fits else PAGE_BYTES // 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        with Progress(folder) as progress:
            for i in range(1000):
                progress.completed(START_NS + i * 20 * MS, START_NS + i * 20 * MS + 20 * MS, 1, filler=False)
    except OSError:
        os._exit(7 if page_fits == ((folder / MARK_FILE).stat().st_size == PAGE_BYTES) else 8)

    os._exit(9)


@pytest.mark.parametrize("page_fits", [False, True])
def test_a_file_that_cannot_grow_is_an_error_and_no_bus_error(tmp_path: Path, page_fits: bool) -> None:
    worker = multiprocessing.get_context("fork").Process(target=run_out_of_disk, args=(tmp_path, page_fits))
    worker.start()
    worker.join()
    assert worker.exitcode == 7
    worker.close()
