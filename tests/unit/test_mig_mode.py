"""Switching MIG on where that waits for a reset, with a stand-in for nvidia-smi on the PATH: no board is reset."""

from pathlib import Path

import pytest

from scheduler import capabilities, mig_mode, nvml
from scheduler.checkpoint import Shelf
from scheduler.nvml_mig import NvmlMig
from tests.boards import A100_80, T4
from tests.fake_library import loaded
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu

pytestmark = pytest.mark.skipif(
    capabilities.read().mode.allowed is False,
    reason="this machine has a driver, and this user may not switch MIG's mode: that is told before anything else",
)


class Switch:
    """Enables MIG on a machine with a T4 and an A100, and keeps what a person is told and asked."""

    def __init__(self, folder: Path, answer: bool | None) -> None:
        self._folder, self._answer = folder, answer
        self.told: list[str] = []
        self.questions: list[str] = []
        self.resets = folder / "resets"
        self.fake = FakeGpus(FakeGpu(board=T4), FakeGpu(board=A100_80))
        self.fake.failing = self._reset_if_asked

    def nvidia_smi(self, script: str) -> None:
        path = self._folder / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def run(self) -> int:
        agreed = self._agreed if self._answer is not None else None
        with loaded(self.fake):
            return mig_mode.switch(None, True, Shelf(self._folder / "state"), self.told.append, agreed)

    @property
    def mode(self) -> tuple[bool, bool]:
        with loaded(self.fake), nvml.open() as library:
            gpu = NvmlMig(library).gpus()[1]
            return gpu.enabled, gpu.pending

    def _agreed(self, question: str) -> bool:
        self.questions.append(question)
        return bool(self._answer)

    def _reset_if_asked(self, _name: str) -> None:
        """The stand-in leaves a file where it would reset the GPU."""
        if self.resets.exists():
            self.resets.unlink()
            self.fake.reset(1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The PATH's only folder with an nvidia-smi."""
    monkeypatch.setenv("PATH", f"{tmp_path}")
    return tmp_path


def test_the_gpu_is_reset_once_a_person_agrees(folder: Path):
    switch = Switch(folder, answer=True)
    switch.nvidia_smi(f'echo "$@" > {folder}/arguments; : > {switch.resets}')
    assert switch.run() == 0
    assert switch.mode == (True, True)
    assert len(switch.questions) == 1
    assert "Whatever runs on it is lost" in switch.questions[0]
    flag, word, uuid = (folder / "arguments").read_text().split()
    assert (flag, word) == ("--gpu-reset", "-i")
    assert uuid in switch.questions[0]
    assert any("no instance, so nothing can use it yet" in line for line in switch.told)


@pytest.mark.parametrize("answer", [False, None])
def test_without_a_yes_nothing_is_reset_and_the_mode_stays_pending(answer: bool | None, folder: Path):
    switch = Switch(folder, answer)
    switch.nvidia_smi(f": > {switch.resets}")
    assert switch.run() == 3
    assert switch.mode == (False, True)
    assert "will be enabled after a reset" in switch.told[-1]


def test_a_reset_that_fails_says_what_nvidia_smi_says(folder: Path):
    switch = Switch(folder, answer=True)
    switch.nvidia_smi("echo GPU Reset could not run because the GPU is in use; exit 6")
    assert switch.run() == 3
    assert (
        "MIG is still disabled; nvidia-smi ended with 6 and says: GPU Reset could not run" in switch.told[-1]
    )


def test_without_nvidia_smi_there_is_no_reset(folder: Path):
    switch = Switch(folder, answer=True)
    assert switch.run() == 3
    assert "no nvidia-smi on the PATH" in switch.told[-1]
