"""The temporary folders of `hetero-mig build`: gone with it, or with the next one where it was killed."""

import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.build import folder_of_jobs

BUILDER = """
from scheduler.build import folder_of_jobs
with folder_of_jobs() as folder:
    (folder / "stderr.log").touch()
    print(folder, flush=True)
    input()
"""


@pytest.fixture(autouse=True)
def _temporary_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)


def builder() -> "tuple[subprocess.Popen[str], Path]":
    command = [sys.executable, "-c", BUILDER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_builder_left_goes_with_the_next_and_a_living_ones_stays(tmp_path: Path) -> None:
    (killed, left), (living, in_use) = builder(), builder()
    with killed, living:
        killed.kill()
        killed.wait()
        assert left.exists()
        with folder_of_jobs() as ours:
            assert sorted(tmp_path.iterdir()) == sorted([in_use, ours])

        assert list(tmp_path.iterdir()) == [in_use]
        living.communicate("\n")

    assert list(tmp_path.iterdir()) == []


def test_a_link_to_another_folder_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.mkdir()
    (target / "file").touch()
    (tmp_path / "hetero-mig-build-link").symlink_to(target)
    with folder_of_jobs():
        assert (target / "file").exists()
