"""The program on a machine with fake GPUs that outlives its processes: MIG's state is in a file, as it is on a board.

``python -m tests.cli.machine FILE ARGUMENT…`` calls the program; NVML is the fake behind its C interface.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests import boards
from tests.fake_library import loaded
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance

ROOT = Path(__file__).parent.parent.parent


class Machine:
    """Fake GPUs by the file that holds their state, and a place for the user's state."""

    def __init__(self, folder: Path, *gpus: tuple[str, Sequence[tuple[str, int]] | None]) -> None:
        """``gpus``: (name of a board in tests/boards.py, its instances or None for MIG disabled)."""
        self.file = folder / "gpus.json"
        self.state = folder / "state"
        described = []
        for board, instances in gpus:
            whole = [(name, start, None) for name, start in instances or ()]
            described.append({"board": board, "mig": instances is not None, "instances": whole})

        self.file.write_text(json.dumps(described))

    def call(
        self, *arguments: str, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Call the program, with more in its environment, and wait for its end."""
        return subprocess.run(
            self._command(arguments),
            capture_output=True,
            text=True,
            env=self._environ() | dict(environ or {}),
            cwd=ROOT,
            timeout=120,
        )

    def call_on_terminal(self, typed: str, *arguments: str) -> tuple[int, str]:
        """Call it where its input and its errors are a terminal, at which this is typed; exit code and stdout."""
        terminal, end = os.openpty()
        try:
            os.write(terminal, typed.encode())
            done = subprocess.run(
                self._command(arguments),
                stdin=end,
                stdout=subprocess.PIPE,
                stderr=end,
                text=True,
                env=self._environ(),
                cwd=ROOT,
                timeout=120,
            )
        finally:
            os.close(end)
            os.close(terminal)

        return done.returncode, done.stdout

    def start(self, *arguments: str, stderr: int = subprocess.DEVNULL) -> subprocess.Popen[bytes]:
        """Start it in its own session."""
        return subprocess.Popen(
            self._command(arguments),
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=self._environ(),
            cwd=ROOT,
            start_new_session=True,
        )

    def layout(self, gpu: int = 0) -> list[tuple[str, int]]:
        """(profile, start) of each GPU instance now, by start."""
        found = json.loads(self.file.read_text())[gpu]["instances"]
        return sorted(((name, start) for name, start, _ in found), key=lambda each: each[1])

    def mig(self, gpu: int = 0) -> bool:
        """Whether MIG is enabled now."""
        return bool(json.loads(self.file.read_text())[gpu]["mig"])

    def _command(self, arguments: Sequence[str]) -> list[str]:
        return [sys.executable, "-m", "tests.cli.machine", str(self.file), *arguments]

    def _environ(self) -> dict[str, str]:
        return os.environ | {"XDG_STATE_HOME": str(self.state)}


class _Kept(FakeGpus):
    """Fake GPUs that write what they are to a file whenever they are asked something."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._written = ""
        super().__init__(*(_gpu(each) for each in json.loads(file.read_text())), failing=self._write)

    def _write(self, _name: str) -> None:
        described = [
            {
                "board": next(name for name, board in vars(boards).items() if board is gpu.board),
                "mig": gpu.mig,
                "instances": [
                    (each.profile.name, each.start, [(one.start, one.slices) for one in each.compute])
                    for each in gpu.instances
                ],
            }
            for gpu in self._gpus
        ]
        text = json.dumps(described)
        if text != self._written:
            part = self._file.with_suffix(".part")
            part.write_text(text)
            part.replace(self._file)
            self._written = text


def _gpu(described: dict[str, Any]) -> FakeGpu:
    return FakeGpu(
        board=getattr(boards, described["board"]),
        mig=described["mig"],
        instances=tuple(
            Instance(name, start, tuple((at, slices) for at, slices in compute or ()), bare=compute == [])
            for name, start, compute in described["instances"]
        ),
    )


def main() -> None:
    """Call the program on the machine in the file."""
    from scheduler import cli

    file = Path(sys.argv[1])
    sys.argv = ["hetero-mig", *sys.argv[2:]]
    with loaded(_Kept(file)):
        cli.main()


if __name__ == "__main__":
    main()
