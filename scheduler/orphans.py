"""Whatever kills the launcher, nothing it started outlives it.

The forkserver does not die with the launcher by itself: every worker holds a copy of the pipe whose end
would tell it. So it asks the kernel for a signal at the launcher's death and answers by killing all that
descends from it; workers ask for SIGKILL at the forkserver's death, so its own SIGKILL ends them too.
As a subreaper it inherits what a worker leaves behind, in whatever session that runs.
"""

import ctypes
import os
import re
import signal
import socket
import sys
import warnings
from pathlib import Path
from types import FrameType

import psutil

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36

LAUNCHER_DIED = signal.SIGUSR1
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_forkserver_pid: int | None = None
_socket_path: Path | None = None


def die_with_parent(death_signal: int) -> None:
    """Have the kernel send this process ``death_signal`` when the thread that forked it ends."""
    _prctl(PR_SET_PDEATHSIG, death_signal)


def die_with_forkserver() -> None:
    """For a worker: end with the forkserver, also if that is gone already."""
    die_with_parent(signal.SIGKILL)
    if _forkserver_pid is not None and os.getppid() != _forkserver_pid:
        os._exit(1)


def strays(forkserver_pid: int, workers: set[int]) -> list[psutil.Process]:
    """What descends from the forkserver and is neither in ``workers`` nor below one: left by a dead one."""
    try:
        children = psutil.Process(forkserver_pid).children()
    except psutil.NoSuchProcess:
        return []

    left = [child for child in children if child.pid not in workers]
    return left + [process for child in left for process in _below(child)]


def _below(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _end_all(_signal: int, _frame: FrameType | None) -> None:
    if os.getpid() != _forkserver_pid:  # a worker that has not set its own handlers yet
        os._exit(1)

    me = psutil.Process()
    for _attempt in range(100):  # what is killed may have forked meanwhile
        alive = [process for process in me.children(recursive=True) if _runs(process)]
        if not alive:
            break

        for process in alive:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                pass

    _remove_socket()
    os._exit(1)


def _remove_socket() -> None:
    """The launcher can no longer remove the forkserver's socket and the folder made for it."""
    if _socket_path is not None:
        try:
            _socket_path.unlink(missing_ok=True)
            _socket_path.parent.rmdir()
        except OSError:  # something else is in it
            pass


def _listening_at() -> Path | None:
    """Where the forkserver listens: its first argument is the socket's descriptor (``main(3, …)``)."""
    found = re.search(r"main\((\d+),", sys.orig_argv[-1])
    if found is None:
        return None

    with socket.socket(fileno=os.dup(int(found[1]))) as listener:
        address = listener.getsockname()

    return Path(address) if isinstance(address, str) and address.startswith("/") else None


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def guard_forkserver() -> None:
    """Make this process the guarded forkserver, deaf to the signals by which a user stops the launcher.

    A terminal, ``timeout`` or a job's manager sends those to the whole process group; the launcher answers
    them, and it needs the forkserver to do so.
    """
    global _forkserver_pid, _socket_path
    _forkserver_pid = os.getpid()
    _socket_path = _listening_at()
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)

    signal.signal(LAUNCHER_DIED, _end_all)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)  # blocked by who started it, until here
    warnings.filterwarnings(
        "ignore", message="forkserver: waitpid returned unexpected pid"
    )  # inherited strays
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    die_with_parent(LAUNCHER_DIED)
