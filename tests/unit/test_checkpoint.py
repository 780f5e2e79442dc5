"""Layouts kept on disk: what was there, in a file and back."""

from pathlib import Path

import pytest

from scheduler import checkpoint, nvml
from scheduler.errors import SpecError
from scheduler.geometry import state_of
from scheduler.nvml_mig import NvmlMig
from tests.boards import A100_80, H200
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance


def test_a_checkpoint_survives_its_file(tmp_path: Path):
    fake = FakeGpus(
        FakeGpu(
            board=A100_80,
            mig=True,
            instances=(Instance("4g.40gb", 0, (2, 1)), Instance("1g.20gb", 6, bare=True)),
        ),
        FakeGpu(board=H200),
    )
    with nvml.open(fake) as library:
        driver = NvmlMig(library)
        taken = checkpoint.take(driver.gpus(), "by hand")
        checkpoint.write(taken, tmp_path / "file.json")
        assert checkpoint.read(tmp_path / "file.json") == taken
        assert taken.states() == {gpu.uuid: state_of(gpu) for gpu in driver.gpus()}


@pytest.mark.parametrize("text", ["", "{", "{}", '{"kind": "another"}', "[1]"])
def test_what_is_no_checkpoint_is_refused(text: str, tmp_path: Path):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(SpecError, match="the checkpoint"):
        checkpoint.read(path)
