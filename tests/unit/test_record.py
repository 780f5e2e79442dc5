"""The run folder, written and read back."""

from pathlib import Path

import pytest

from scheduler.errors import DiskFull, FolderDamaged, FolderTaken, NoRun, RecordError
from scheduler.events import Exited, Failed, Finished, Issuing, Kill, Launch, Ready, Stalled, StopRequested
from scheduler.record import RunFolder

TOLD = [
    Launch("a"),
    Ready("a", 0.5, {"pid": 3, "notes": ["x"]}),
    Issuing("a", 1.0, 0.9),
    Stalled("a", 5.0, 1.0),
    Failed("a", 5.1, "bug", "it broke", "Traceback …"),
    Finished("a", 6.0, 0.9, 5.9, {"notes": []}),
    StopRequested(6.1, "SIGINT"),
    Kill("a"),
    Exited("a", 7.0, -9),
]


def test_the_story_reads_back_as_it_was_told(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run")
    for number, what in enumerate(TOLD):
        folder.append(what, float(number))

    assert folder.story() == [(float(number), what) for number, what in enumerate(TOLD)]


@pytest.mark.parametrize("cut", range(2, 40, 7))
def test_a_last_line_cut_off_in_writing_is_left_out(tmp_path: Path, cut: int):
    folder = RunFolder.create(tmp_path / "run")
    for what in TOLD:
        folder.append(what, 1.0)

    events = folder.path / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-cut])
    assert [what for _at, what in folder.story()] == TOLD[:-1]


def test_a_folder_that_holds_something_is_refused_and_left_alone(tmp_path: Path):
    (tmp_path / "precious").touch()
    with pytest.raises(FolderTaken):
        RunFolder.create(tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(RecordError, match="--output"):
        RunFolder.create(tmp_path / "file" / "run")


def test_a_full_disk_is_told_as_such(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run")
    (folder.path / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskFull, match="no space"):
        folder.append(TOLD[0], 0.0)


def test_the_result_appears_whole_or_not_at_all(tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run")
    assert not folder.has_result()
    with pytest.raises(FolderDamaged):
        folder.result()

    folder.write_result({"verdict": "VALID"})
    assert folder.result() == {"verdict": "VALID"}
    assert [path.name for path in folder.path.iterdir()] == ["result.json"]


def test_a_folder_without_a_manifest_is_damaged(tmp_path: Path):
    with pytest.raises(FolderDamaged, match=r"manifest\.json"):
        RunFolder(tmp_path).manifest()


def test_a_folder_that_may_not_be_read_is_damaged_and_no_folder_of_something_else(tmp_path: Path):
    run = RunFolder(tmp_path)
    (tmp_path / "manifest.json").symlink_to("manifest.json")  # a loop: nobody can open it, not even root
    with pytest.raises(FolderDamaged) as refused:
        run.manifest()

    assert not isinstance(refused.value, NoRun)


def test_no_log_is_no_lines(tmp_path: Path):
    assert RunFolder(tmp_path).log_lines("a") == []
