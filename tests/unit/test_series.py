"""A series of runs: gone on with after a kill, never mixed with another, one process at a time."""

import fcntl
import json
import os
from pathlib import Path

import pytest

from scheduler import series
from scheduler.errors import FolderBusy, FolderDamaged, FolderTaken, NoRun, SeriesCutShort
from scheduler.record import RunFolder
from scheduler.report.tables import load, load_series

QUESTION = {"command": "derate", "asked": {"main": "null", "repeats": 3}, "slices": ["cpu0"]}


def test_a_new_folder_holds_the_question_first(tmp_path: Path):
    with series.opened(tmp_path / "one", QUESTION) as new:
        told = json.loads((new.path / "series.json").read_text())
        assert told == {"schema_version": series.SCHEMA_VERSION, "question": QUESTION}
        assert new.answer() is None


def test_the_same_question_goes_on_and_another_is_refused(tmp_path: Path):
    with series.opened(tmp_path, QUESTION) as first:
        first.append_line("trials.jsonl", {"trial": 1})

    with series.opened(tmp_path, QUESTION) as again:
        assert again.lines("trials.jsonl") == [{"trial": 1}]

    other = {**QUESTION, "asked": {"main": "null", "repeats": 4}}
    with pytest.raises(FolderTaken, match=r"asked\.repeats differ"), series.opened(tmp_path, other):
        pass


def test_a_folder_with_something_else_in_it_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(FolderTaken, match=r"thesis\.txt"), series.opened(tmp_path, QUESTION):
        pass

    assert not (tmp_path / "series.json").exists()


def test_a_draft_that_a_kill_left_is_no_hindrance(tmp_path: Path):
    (tmp_path / ".series.json.draft").write_text('{"schema_')
    with series.opened(tmp_path, QUESTION) as new:
        assert new.lines("trials.jsonl") == []


def test_a_damaged_question_is_nobodys(tmp_path: Path):
    (tmp_path / "series.json").write_text("{")
    with pytest.raises(FolderTaken), series.opened(tmp_path, QUESTION):
        pass


def test_one_process_at_a_time(tmp_path: Path):
    with series.opened(tmp_path, QUESTION), pytest.raises(FolderBusy), series.opened(tmp_path, QUESTION):
        pass

    with series.opened(tmp_path, QUESTION):
        pass


def test_the_lock_ends_with_whoever_holds_it(tmp_path: Path):
    pid = os.fork()
    if pid == 0:  # a process that dies at it
        descriptor = os.open(tmp_path / ".lock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os._exit(9)

    os.waitpid(pid, 0)
    with series.opened(tmp_path, QUESTION):
        pass


def test_an_attempt_cut_short_is_kept_beside_the_new_one(tmp_path: Path):
    with series.opened(tmp_path, QUESTION) as runs:
        for attempt in range(3):
            folder = runs.new_run("base-1")
            (folder.path / "attempt").write_text(str(attempt))
            assert runs.finished("base-1") is None

    there = {path.name: (path / "attempt").read_text() for path in (tmp_path / "runs").iterdir()}
    assert there == {"base-1": "2", "base-1.cut-1": "0", "base-1.cut-2": "1"}


def test_a_run_that_was_measured_again_is_kept_under_another_word(tmp_path: Path):
    with series.opened(tmp_path, QUESTION) as runs:
        for word in ("cut", "former", "cut"):
            runs.new_run("base-1", word)

    assert {path.name for path in (tmp_path / "runs").iterdir()} == {
        "base-1",
        "base-1.former-1",
        "base-1.cut-1",
    }


def test_a_damaged_result_is_told_and_not_run_again(tmp_path: Path):
    with series.opened(tmp_path, QUESTION) as runs:
        (runs.new_run("base-1").path / "result.json").write_text("{}")
        with pytest.raises(FolderDamaged, match=r"result\.json of .*base-1"):
            runs.finished("base-1")


def test_the_newest_without_an_answer_is_gone_on_with(tmp_path: Path):
    assert series.to_go_on_with(tmp_path, QUESTION) is None
    for number, name in enumerate(["old", "answered", "other"]):
        question = QUESTION if name != "other" else {**QUESTION, "slices": ["cpu1"]}
        with series.opened(tmp_path / name, question) as one:
            if name == "answered":
                one.write_answer({"verdict": "no difference found"})

        os.utime(tmp_path / name / "series.json", ns=(number, number))

    assert series.to_go_on_with(tmp_path, QUESTION) == tmp_path / "old"


def test_a_line_that_a_kill_cut_off_is_no_line_and_spoils_none(tmp_path: Path):
    with series.opened(tmp_path, QUESTION) as one:
        one.append_line("trials.jsonl", {"trial": 1})
        with (tmp_path / "trials.jsonl").open("a") as file:
            file.write('{"trial": ')

        assert one.lines("trials.jsonl") == [{"trial": 1}]
        one.append_line("trials.jsonl", {"trial": 2})
        assert one.lines("trials.jsonl") == [{"trial": 1}, {"trial": 2}]


def test_a_line_in_the_middle_that_is_none_is_told(tmp_path: Path):
    with series.opened(tmp_path, QUESTION) as one:
        (tmp_path / "trials.jsonl").write_text('{"trial": 1}\n7\n{"trial": 3}\n')
        with pytest.raises(FolderDamaged, match="line 2"):
            one.lines("trials.jsonl")


def test_a_series_cut_short_says_first_what_was_in_its_way():
    advice = ["end what else runs on this machine", "", "end what else runs on this machine"]
    cut = SeriesCutShort(3, "baseline-1", ["main was not alone"], Path("here"), advice)
    assert cut.do.startswith("end what else runs on this machine; the same command goes on from here")
    assert SeriesCutShort(3, "baseline-1", [], Path("here")).do.startswith("give the same command again")


def test_a_series_is_no_run_and_a_run_no_series(tmp_path: Path):
    with series.opened(tmp_path / "series", QUESTION):
        pass

    with pytest.raises(NoRun, match="read it with load_series"):
        load(tmp_path / "series")

    with pytest.raises(NoRun, match="it is a series of runs"):
        RunFolder(tmp_path / "series").manifest()

    with pytest.raises(NoRun, match="one run is read with load"):
        load_series(tmp_path)
