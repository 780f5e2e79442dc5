"""Real input: photographs for resnet50, good and bad."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scheduler.result import Result
from tests.cli.program import QUICK, call

RUN = ("--main", "resnet50", "--background", "none", "--slices", "cpu", *QUICK)


def photograph(path: Path, seed: int) -> None:
    """A JPEG with the size and the gradients of a photograph."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    coarse.resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)


@pytest.fixture
def album(tmp_path: Path) -> Path:
    folder = tmp_path / "album"
    (folder / "cats").mkdir(parents=True)
    for number in range(6):
        photograph(folder / "cats" / f"{number}.jpg", number)

    return folder


def test_photographs_are_what_is_measured(tmp_path: Path, album: Path):
    done = call(*RUN, "--data", str(album), "--output", str(tmp_path / "run"), "--json")
    assert done.returncode == 0, done.stderr
    result = Result.model_validate_json(done.stdout)
    assert any(str(album) in note and "6" in note for note in result.main.notes)


def broken(album: Path) -> str:
    whole = (album / "cats" / "0.jpg").read_bytes()
    (album / "cats" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    return "cut.jpg"


def empty(album: Path) -> str:
    (album / "nothing.jpg").touch()
    return "nothing.jpg"


def text(album: Path) -> str:
    (album / "letter.png").write_text("not an image")
    return "letter.png"


@pytest.mark.parametrize("spoil", [broken, empty, text])
def test_a_bad_picture_is_named_and_nothing_is_started(tmp_path: Path, album: Path, spoil: object):
    assert callable(spoil)
    name = spoil(album)
    done = call(*RUN, "--data", str(album), "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert name in done.stderr
    assert "nothing was started" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_folder_without_pictures_is_refused(tmp_path: Path):
    (tmp_path / "album").mkdir()
    done = call(*RUN, "--data", str(tmp_path / "album"), "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert not (tmp_path / "run").exists()


def test_weights_that_do_not_fit_end_with_exit_2_and_name_the_keys(tmp_path: Path):
    from safetensors.numpy import save_file

    save_file({"fc.weight": np.zeros((7, 7), dtype=np.float32)}, tmp_path / "weights.safetensors")
    done = call(*RUN, "--weights", str(tmp_path / "weights.safetensors"), "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "fc.weight" in done.stdout + done.stderr
    assert (tmp_path / "run" / "result.json").exists()
