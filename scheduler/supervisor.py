"""The benchmarks' processes: started, listened to, ended and reaped. The only place that kills.

Workers are forked from one forkserver that has imported torch and the models already. None of them, and
nothing they leave behind, outlives ``with Supervisor(...)``.
"""

import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from types import FrameType, TracebackType

import psutil

from scheduler import orphans, worker
from scheduler.clock import Clock
from scheduler.errors import DidNotStart, Stopped, WouldNotStop
from scheduler.events import (
    Action,
    DeadlinePassed,
    Drain,
    Event,
    Exited,
    Finished,
    Issuing,
    Kill,
    Launch,
    Stalled,
    Stop,
    StopRequested,
)
from scheduler.worker import Task
from workloads.progress import ProgressMark, read_mark

LONGEST_LISTEN_S = 3600.0
"""poll() takes at most 24.8 days; the loop looks again."""
STALL_CHECK, LONGEST_STALL_CHECK_S = 0.1, 3.0
"""How often it is looked: by what part of ``stall_after_s``. Each look takes some 0.8 ms of a core."""
EXIT_GRACE_S = 2.0
"""On the way out after an error: between asking and killing."""
REAP_TIMEOUT_S = 10.0


class _Interrupted(Exception):
    """A stop signal arrived while the launcher waited for a worker's birth."""


@dataclass(slots=True)
class Worker:
    """One living (or just ended) process."""

    task: Task
    process: ForkServerProcess
    pipe: Connection
    pid: int
    issuing: bool = False
    silent: bool = False
    """Its pipe has ended."""
    stall_told_at: float | None = None
    """The last completion that the latest Stalled was about."""


class Supervisor:
    """Performs the state machine's actions and tells it what happened, one event at a time.

    A stop signal that comes too late to be told raises Stopped when the ``with`` is left.

    Args:
        tasks: what may be launched, by benchmark name.
        clock: the run's.
        stall_after_s: an issuing benchmark that completes nothing for longer is told as Stalled; a
            benchmark whose one batch takes long is given five times its longest batch.
        more_mains: others like main will follow it, so that what it imports is worth importing beforehand.
    """

    def __init__(
        self, tasks: Mapping[str, Task], clock: Clock, stall_after_s: float, *, more_mains: bool = False
    ) -> None:
        self._tasks = dict(tasks)
        self._more_mains = more_mains
        self._clock = clock
        self._stall_after_s = stall_after_s
        self._alive: dict[str, Worker] = {}
        self._told: deque[Event] = deque()
        self._context = multiprocessing.get_context("forkserver")
        self._born_in_peace = True
        self._sweep_due = False
        self._interrupted = False
        self._stop_told = False

    # ------------------------------------------------------------------ entering and leaving

    def __enter__(self) -> "Supervisor":
        self._wakeup_read, self._wakeup_write = os.pipe()
        for end in (self._wakeup_read, self._wakeup_write):
            os.set_blocking(end, False)

        self._former_wakeup = signal.set_wakeup_fd(self._wakeup_write, warn_on_full_buffer=False)
        self._former_handlers = {number: signal.signal(number, self._on_signal) for number in _heeded()}
        self._sockets: str | None = None
        try:
            self._make_folder_of_sockets()
            start_forkserver(
                [task for task in self._tasks.values() for _ in range(2 if self._is_to_follow(task) else 1)]
            )
        except OSError as error:
            self._remove_folder_of_sockets()
            self._let_go_of_signals()
            raise DidNotStart(
                asked="a forkserver for the workers",
                found=f"{error} (its socket is made in {tempfile.gettempdir()})",
                do="name another folder by TMPDIR: writable, and with a path of at most 75 characters",
            ) from error

        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        try:
            self._end_all()
        finally:
            stop_forkserver(patient=not self._alive and not self._interrupted)
            self._remove_folder_of_sockets()
            unheard = self._let_go_of_signals()

        if unheard is not None and not self._stop_told:
            raise Stopped(unheard)

    def _make_folder_of_sockets(self) -> None:
        """multiprocessing's own would last as long as the program, and a kill between two runs would leave it."""
        ours: dict[str, str | None] = multiprocessing.current_process()._config  # type: ignore[attr-defined]  # private
        self._former_sockets = ours.get("tempdir")
        self._sockets = ours["tempdir"] = tempfile.mkdtemp(prefix="pymp-")

    def _remove_folder_of_sockets(self) -> None:
        if self._sockets is not None:
            shutil.rmtree(self._sockets, ignore_errors=True)
            multiprocessing.current_process()._config["tempdir"] = self._former_sockets  # type: ignore[attr-defined]  # private

    def _let_go_of_signals(self) -> int | None:
        """Give the signals back to whoever heard them before; a stop that came when nobody listened any more."""
        for number, handler in self._former_handlers.items():
            signal.signal(number, handler)

        signal.set_wakeup_fd(self._former_wakeup)
        self._hear_signals()
        os.close(self._wakeup_read)
        os.close(self._wakeup_write)
        stops = [signal.Signals[one.reason] for one in self._told if isinstance(one, StopRequested)]
        return stops[0] if stops else None

    # ------------------------------------------------------------------ acting

    def know(self, task: Task) -> None:
        """Take a task that was not known at the start; it may be launched from now on."""
        self._tasks[task.name] = task

    def _is_to_follow(self, task: Task) -> bool:
        return self._more_mains and task.role == "main"

    def perform(self, action: Action) -> None:
        """Carry out one action of the state machine; acting on a benchmark already gone does nothing."""
        match action:
            case Launch(name):
                self._launch(self._tasks[name])
            case Drain(name):
                self._say(name, worker.DRAIN)
            case Stop(name):
                self._say(name, worker.STOP)
            case Kill(name):
                if name in self._alive:
                    self._kill_group(self._alive[name])

    def living(self) -> dict[str, tuple[int, str]]:
        """Benchmark → its process's pid and the id of its slice, of those that live; any thread may ask."""
        return {name: (one.pid, one.task.slice.id) for name, one in list(self._alive.items())}

    def begin(self, name: str) -> None:
        """Tell a profile's worker, which is warm, to measure; one already gone is told nothing."""
        self._say(name, worker.BEGIN)

    def _launch(self, task: Task) -> None:
        if self._interrupted:  # the others of this batch: to be stopped before they were born
            self._told.append(Exited(task.name, self._clock.now(), -signal.SIGTERM))
            return

        ours = None
        try:
            ours, theirs = self._context.Pipe()
            process = self._context.Process(target=worker.main, args=(task, theirs), name=task.name)
            with theirs, _without_main_module(), self._interruptible():
                process.start()
        except _Interrupted:
            self._interrupted = True
            if ours is not None:
                ours.close()  # should it be forked after all, it sees that nobody is there, and ends

            self._hear_signals()
            self._told.append(Exited(task.name, self._clock.now(), -signal.SIGTERM))
            return
        except (OSError, EOFError) as error:
            raise DidNotStart(
                asked=f"a process for {task.name}",
                found=f"the forkserver could not fork it: {error or type(error).__name__}",
                do="was the forkserver killed? Else look at the limits of open files, processes and memory "
                "(ulimit -n, ulimit -u, cgroup pids.max), then run again",
            ) from error

        assert process.pid is not None  # start() has returned
        self._alive[task.name] = Worker(task, process, ours, process.pid)

    def _say(self, name: str, word: str) -> None:
        if name not in self._alive:
            return

        try:
            self._alive[name].pipe.send(word)
        except OSError:  # it is ending; its exit will be told
            pass

    # ------------------------------------------------------------------ listening

    def has_news(self) -> bool:
        """Whether something has happened already that ``next_event`` would tell at once."""
        self._listen(0)
        return bool(self._told)

    def next_event(self, until: float | None) -> Event:
        """The next thing that happened, or DeadlinePassed at ``until`` (s, run's clock; None: no deadline)."""
        while True:
            if self._told:
                event = self._told.popleft()
                self._stop_told |= isinstance(event, StopRequested)
                return event

            now = self._clock.now()
            if until is not None and now >= until:
                return DeadlinePassed(now)

            self._look_for_stalls(now)
            if self._told:
                continue

            if self._sweep_due:  # not before the exit is told: reading the process table takes its time
                self._sweep()

            check_s = min(STALL_CHECK * self._stall_after_s, LONGEST_STALL_CHECK_S)
            patience = check_s if any(one.issuing for one in self._alive.values()) else None
            left = None if until is None else until - now
            timeout = min((limit for limit in (patience, left) if limit is not None), default=None)
            self._listen(timeout)

    def _listen(self, timeout: float | None) -> None:
        by_pipe = {one.pipe: one for one in self._alive.values() if not one.silent}
        by_sentinel = {one.process.sentinel: one for one in self._alive.values()}
        timeout = LONGEST_LISTEN_S if timeout is None else min(timeout, LONGEST_LISTEN_S)
        ready = wait([self._wakeup_read, *by_pipe, *by_sentinel], timeout)
        if self._wakeup_read in ready:
            self._hear_signals()

        for one in (by_pipe[item] for item in ready if isinstance(item, Connection)):
            self._hear(one)

        for one in (by_sentinel[item] for item in ready if isinstance(item, int) and item in by_sentinel):
            self._bury(one)

    def _hear_signals(self) -> None:
        try:
            numbers = os.read(self._wakeup_read, 64)
        except BlockingIOError:
            return

        self._told += [
            StopRequested(self._clock.now(), signal.Signals(number).name)
            for number in numbers
            if number in orphans.STOP_SIGNALS
        ]

    def _hear(self, one: Worker) -> bool:
        """Take one message; False at the pipe's end."""
        try:
            event: Event = one.pipe.recv()
        except (EOFError, OSError):  # closed, or cut off within a message: the sentinel will tell
            one.silent = True
            return False

        if isinstance(event, Issuing):
            one.issuing = True
        elif isinstance(event, Finished):
            one.issuing = False

        self._told.append(event)
        return True

    def _bury(self, one: Worker) -> None:
        """Reap a process that has ended. Its pipe is read to the end before the exit is told."""
        while one.pipe.poll() and self._hear(one):
            pass

        one.process.join()
        code = one.process.exitcode
        one.pipe.close()
        one.process.close()
        del self._alive[one.task.name]
        try:
            os.killpg(one.pid, signal.SIGKILL)  # whatever it left in its process group
        except (ProcessLookupError, PermissionError):
            pass

        self._sweep_due = True
        self._told.append(Exited(one.task.name, self._clock.now(), -signal.SIGKILL if code is None else code))

    def _look_for_stalls(self, now: float) -> None:
        for one in self._alive.values():
            mark = read_mark(one.task.folder) if one.issuing else None
            if mark is None:
                continue

            idle = mark.batch_begin_ns < mark.last_completion_ns
            if one.task.role == "main" and idle:  # nothing was asked of it: a Server at a low rate
                continue

            last = self._clock.at(mark.last_completion_ns)
            if now - last > self._stall_limit_s(mark) and one.stall_told_at != last:
                one.stall_told_at = last
                self._told.append(Stalled(one.task.name, now, last))

    def _stall_limit_s(self, mark: ProgressMark) -> float:
        longest_batch_s: float = mark.longest_batch_ns / 1e9
        return max(self._stall_after_s, 5 * longest_batch_s)

    # ------------------------------------------------------------------ ending

    def _end_all(self) -> None:
        """Ask, wait, kill, reap: for whatever still lives when the ``with`` is left (normally nothing)."""
        for name in list(self._alive):
            self._say(name, worker.STOP)

        self._await_exits(EXIT_GRACE_S)
        for one in self._alive.values():
            self._kill_group(one)

        self._await_exits(REAP_TIMEOUT_S)
        psutil.wait_procs(self._sweep(), timeout=REAP_TIMEOUT_S)  # the forkserver reaps them while it lives
        if self._alive:
            left = ", ".join(f"{name} (pid {one.pid})" for name, one in self._alive.items())
            raise WouldNotStop(
                asked=f"an end of {left}",
                found=f"still there {REAP_TIMEOUT_S:g} s after SIGKILL",
                do="the kernel holds it (often a hung GPU driver call): look at dmesg; the slice is not free",
            )

    def _await_exits(self, limit_s: float) -> None:
        end = self._clock.now() + limit_s
        while self._alive and (left := end - self._clock.now()) > 0:
            self._listen(left)

    def _kill_group(self, one: Worker) -> None:
        """SIGKILL to the worker, its session's process group, and whatever it moved elsewhere."""
        below = _descendants(one.pid)
        try:
            os.killpg(one.pid, signal.SIGKILL)
        except ProcessLookupError:  # not yet its own session's leader, or gone
            try:
                os.kill(one.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass

        _kill(below)

    def _sweep(self) -> list[psutil.Process]:
        """Kill what dead workers left in other sessions: the forkserver, a subreaper, has inherited it."""
        self._sweep_due = False
        pid = _forkserver_pid()
        left = [] if pid is None else orphans.strays(pid, {one.pid for one in self._alive.values()})
        _kill(left)
        return left

    # ------------------------------------------------------------------ signals

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        """The wake-up pipe carries the number; here only a wait for a worker's birth is cut short."""
        if not self._born_in_peace:
            raise _Interrupted

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        self._born_in_peace = False
        try:
            yield
        finally:
            self._born_in_peace = True


def start_forkserver(tasks: Iterable[Task]) -> None:
    """Start the forkserver, which goes on to import what several of the tasks need.

    What one alone needs it imports itself, on its own cores, while the others load.
    """
    users = Counter(module for task in tasks for module in task.imports)
    shared = [module for module, count in users.items() if count > 1]
    first, last = "scheduler.preload", "scheduler.preloaded"
    ours = ("scheduler.worker", "workloads.loadgen", "workloads.progress")
    multiprocessing.get_context("forkserver").set_forkserver_preload([first, *ours, *shared, last])
    resource_tracker.ensure_running()  # first: to start it multiprocessing unblocks these signals itself
    # Until it is guarded, it must not hear what is meant for the launcher.
    former = signal.pthread_sigmask(signal.SIG_BLOCK, orphans.STOP_SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _heeded() -> list[signal.Signals]:
    """The stop signals, but for those that whoever started us has set to be ignored (nohup)."""
    return [number for number in orphans.STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def stop_forkserver(*, patient: bool = True) -> None:
    """End the forkserver and multiprocessing's resource tracker, and wait for both.

    Without patience it is killed: where a worker would not die, or one may yet be forked whose birth was
    interrupted, that holds the pipe whose end the forkserver waits for.
    """
    pid = _forkserver_pid()
    if pid is None:
        return

    if not patient:
        os.kill(pid, signal.SIGKILL)

    # multiprocessing ends both only at interpreter exit; a run ends them, so that nothing outlives it.
    forkserver._forkserver._stop()  # type: ignore[attr-defined]  # not in typeshed: private
    resource_tracker._resource_tracker._stop()  # type: ignore[attr-defined]  # likewise


def _forkserver_pid() -> int | None:
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # private
    return pid


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Keep multiprocessing from running the launcher's main script again in each worker (50 ms each)."""
    module = sys.modules["__main__"]
    names = ("__file__", "__spec__")
    hidden: dict[str, object] = {name: module.__dict__.pop(name) for name in names if name in module.__dict__}
    module.__dict__["__spec__"] = None
    try:
        yield
    finally:
        module.__dict__.update(hidden)


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(processes: Sequence[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            pass
