"""Around every test a known environment; around the whole suite a look at what it left behind."""

import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pynvml
import pytest
from hypothesis import settings

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("explore", max_examples=1000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))
"""The same examples each time, so that what fails, fails for its author: HYPOTHESIS_PROFILE=explore looks for more."""

LAST_BREATH_S = 5
"""For a process that was told to end to be gone from the kernel's table."""


@pytest.fixture(autouse=True)
def _known_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the user's shell says to the program or to its tables is not said in a test."""
    for name in os.environ:
        if name.startswith("HETERO_MIG_") or name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def _nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the suite for a process, file descriptor or temporary file that is left after its last test.

    The suite has a TMPDIR of its own. That also marks, in /proc/PID/environ, what descends from it.
    """
    temporary = tmp_path_factory.mktemp("tmp")
    os.environ["XDG_STATE_HOME"] = str(
        tmp_path_factory.mktemp("state")
    )  # no test sees or moves the user's layouts
    former = os.environ.get("TMPDIR"), tempfile.tempdir
    os.environ["TMPDIR"] = tempfile.tempdir = str(temporary)
    _heed_stop_signals()
    _open_what_nvml_keeps()
    shared_memory, descriptors = _shared_memory(), _descriptors()
    try:
        yield
        gc.collect()
        left = _processes_of(temporary)
        left += [f"file in TMPDIR: {path.name}" for path in temporary.iterdir() if not _ends_with_us(path)]
        left += [f"shared memory: {name}" for name in sorted(_shared_memory() - shared_memory)]
        left += _new_descriptors(descriptors)
    finally:
        tempfile.tempdir = former[1]
        if former[0] is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = former[0]

    if left:
        pytest.fail("the suite left behind\n" + "\n".join(left), pytrace=False)


def _processes_of(temporary: Path) -> list[str]:
    children = psutil.Process().children(recursive=True)
    unreaped = [child for child in children if _status(child) == psutil.STATUS_ZOMBIE]
    adopted = [
        one for one in psutil.process_iter() if one not in children and _was_started_in(one, temporary)
    ]
    _gone, alive = psutil.wait_procs(
        [one for one in children + adopted if one not in unreaped], LAST_BREATH_S
    )
    return [f"process: {_described(one)}" for one in unreaped + alive]


def _was_started_in(one: psutil.Process, temporary: Path) -> bool:
    try:
        return one.pid != os.getpid() and one.environ().get("TMPDIR") == str(temporary)
    except psutil.Error:  # gone, or another user's
        return False


def _status(one: psutil.Process) -> str:
    try:
        return str(one.status())
    except psutil.NoSuchProcess:
        return "gone"


def _described(one: psutil.Process) -> str:
    try:
        return f"{one.pid} {one.status()} {' '.join(one.cmdline())[:200]}"
    except psutil.ZombieProcess:
        return f"{one.pid} ended, and was never reaped"
    except psutil.NoSuchProcess:
        return f"{one.pid}, gone by now"


def _ends_with_us(path: Path) -> bool:
    """torch keeps a folder for what it compiles, one a user, by design. A program that is killed before its
    forkserver is guarded leaves the folder of its socket (pymp-…); test_faults.py holds that others leave none."""
    return path.name.startswith(("torchinductor_", "pymp-"))


def _shared_memory() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("hetero-mig*")}


def _heed_stop_signals() -> None:
    """nohup ignores SIGHUP, a shell's background job SIGINT, and whom we start would inherit that."""
    for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            interrupts = number is signal.SIGINT
            signal.signal(number, signal.default_int_handler if interrupts else signal.SIG_DFL)


def _open_what_nvml_keeps() -> None:
    """The driver's library opens two events and two pipes when it is first started, and keeps them (580, H200)."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:  # no GPU here, so no test will start it
        return

    pynvml.nvmlShutdown()


def _descriptors() -> dict[int, str]:
    """What each open file descriptor of this process is open on, but for the one that lists them."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[int(entry.name)] = str(entry.readlink())
        except FileNotFoundError:
            continue

    return found


def _new_descriptors(before: dict[int, str]) -> list[str]:
    """Not one more is tolerated: torch, LoadGen, NumPy and pandas leave none open once imported.

    matplotlib keeps the fonts that it has drawn with open, each once.
    A gpu test that used CUDA in this very process is another matter: CUDA keeps its device files, pipes and
    events open until the process ends.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return []

    return [
        f"file descriptor {number}: {open_on}"
        for number, open_on in _descriptors().items()
        if number not in before and "/matplotlib/mpl-data/fonts/" not in open_on
    ]
