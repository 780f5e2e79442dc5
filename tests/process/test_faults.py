"""The fault table: each row a way to go wrong, carried out by a real process in a real run."""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from scheduler import events, lifecycle
from scheduler.events import Action, Event
from scheduler.lifecycle import Phase
from scheduler.result import Result
from tests.process.runs import carry_out, codes, faulty_workloads


def folders_of_sockets() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("pymp-*"))


@pytest.fixture(autouse=True)
def _faulty() -> Iterator[None]:
    before = folders_of_sockets()
    with faulty_workloads():
        yield

    assert folders_of_sockets() == before  # they go with the run, not with the program


def pids(result: Result) -> list[int]:
    return [one.pid for one in result.background if one.pid is not None]


BACKGROUND_FAULTS = [
    # fault, breach, phase in which the run then is
    ("exits-0-in-load", "background-died"),
    ("killed-in-load", "background-died"),
    ("raises-in-load", "background-died"),
    ("refuses", "background-died"),
    ("out-of-memory", "background-died"),
    ("exits-0", "background-died"),
    ("exits-1", "background-died"),
    ("aborts", "background-died"),
    ("killed", "background-died"),
    ("raises", "background-died"),
]


@pytest.mark.parametrize(("fault", "breach"), BACKGROUND_FAULTS)
def test_a_background_that_goes_wrong_ends_the_run_as_invalid(tmp_path: Path, fault: str, breach: str):
    result, folder = carry_out(tmp_path / "run", background=f"fixed,faulty-{fault}", start_buffer="30s")
    assert result.verdict == "INVALID"
    assert breach in codes(result)
    assert folder.result()["verdict"] == "INVALID"
    assert result.background[0].ended == "killed"
    assert not any(psutil.pid_exists(pid) for pid in pids(result))


def test_what_a_dying_worker_said_is_in_the_finding(tmp_path: Path):
    result, _ = carry_out(tmp_path / "run", background="faulty-refuses")
    [finding] = [finding for finding in result.findings if finding.code == "background-died"]
    assert "x.safetensors has no key fc.weight" in finding.message


def test_a_background_that_hangs_in_load_runs_into_the_start_timeout(tmp_path: Path):
    result, _ = carry_out(tmp_path / "run", background="faulty-hangs-in-load", start_timeout="1s")
    assert codes(result) == ["start-timeout"]


def test_a_background_that_stalls_is_noticed(tmp_path: Path):
    result, _ = carry_out(
        tmp_path / "run", background="faulty-stalls", start_buffer="30s", stall_after="600ms"
    )
    assert codes(result) == ["background-stalled"]


def test_a_worker_that_ignores_every_request_is_killed_after_the_grace(tmp_path: Path):
    told: list[Event | Action] = []
    result, _ = carry_out(
        tmp_path / "run",
        lambda what, _story: told.append(what),
        background="faulty-ignores-every-request",
        start_buffer="30s",
        stall_after="600ms",
        stop_grace="300ms",
    )
    assert codes(result) == ["background-stalled"]
    assert events.Kill("background-1-faulty-ignores-every-request") in told
    assert not any(psutil.pid_exists(pid) for pid in pids(result))


def test_a_flood_of_output_neither_blocks_nor_throttles(tmp_path: Path):
    result, folder = carry_out(tmp_path / "run", background="faulty-floods")
    assert codes(result) == []
    log = folder.path / "background-1-faulty-floods" / "stdout.log"
    assert log.stat().st_size > 20 * 262_144


@pytest.mark.parametrize("fault", ["leaves-a-grandchild", "leaves-a-grandchild-in-its-own-session"])
def test_a_grandchild_does_not_outlive_the_run(tmp_path: Path, fault: str):
    grandchildren: list[psutil.Process] = []

    def watch(what: Event | Action, _story: lifecycle.Run) -> None:
        if isinstance(what, events.Issuing) and "faulty" in what.name:
            grandchildren.extend(
                child
                for child in psutil.Process().children(recursive=True)
                if any("time.sleep(3600)" in word for word in child.cmdline())
            )

    result, _ = carry_out(tmp_path / "run", watch, background=f"faulty-{fault}")
    assert result.verdict == "VALID"
    assert len(grandchildren) == 1
    assert not grandchildren[0].is_running()


@pytest.mark.parametrize("phase", [Phase.BUFFERING, Phase.MEASURING, Phase.DRAINING])
def test_a_background_killed_in_each_phase_is_a_breach(tmp_path: Path, phase: Phase):
    workers: dict[str, int] = {}
    killed: list[int] = []

    def watch(what: Event | Action, story: lifecycle.Run) -> None:
        if isinstance(what, events.Ready):
            workers[what.name] = what.facts["pid"]

        measuring = phase is not Phase.MEASURING or (
            isinstance(what, events.Issuing) and what.name.startswith("main")
        )
        if story.phase is phase and measuring and not killed:
            killed.append(workers["background-1-fixed"])
            os.kill(killed[0], signal.SIGKILL)

    result, _ = carry_out(
        tmp_path / "run", watch, background="fixed,fixed", main="null", start_buffer="2s", end_buffer="2s"
    )
    assert killed
    assert "background-died" in codes(result)
    assert result.background[0].ended == "died"


def test_a_background_that_is_stopped_for_most_of_the_window_is_a_breach(tmp_path: Path):
    stopped: list[int] = []

    def watch(what: Event | Action, _story: lifecycle.Run) -> None:
        if isinstance(what, events.Ready) and what.name.startswith("background"):
            stopped.append(what.facts["pid"])
        elif isinstance(what, events.Issuing) and what.name.startswith("main"):
            os.kill(stopped[0], signal.SIGSTOP)

    result, _ = carry_out(
        tmp_path / "run", watch, main="fixed", background="null", main_duration="4s", stop_grace="300ms"
    )
    assert result.verdict == "INVALID"
    assert "gap-in-window" in codes(result) or "no-samples-in-window" in codes(result)
    assert "did-not-stop-when-asked" in [finding.code for finding in result.findings]


def test_a_background_of_too_short_a_duration_is_a_breach(tmp_path: Path):
    result, _ = carry_out(
        tmp_path / "run", background="fixed", background_duration="200ms", start_buffer="30s"
    )
    assert codes(result) == ["background-finished"]
    assert result.background[0].ended == "completed"


@pytest.mark.parametrize(
    ("fault", "breach"),
    [
        ("exits-0-in-load", "main-died"),
        ("raises", "main-died"),
        ("killed", "main-died"),
        ("exits-0", "main-died"),
    ],
)
def test_a_main_that_dies_is_not_a_main_that_finished(tmp_path: Path, fault: str, breach: str):
    result, _ = carry_out(tmp_path / "run", main=f"faulty-{fault}", background="fixed")
    assert breach in codes(result)
    assert result.main.metric is None


def test_a_main_that_hangs_runs_into_the_main_timeout(tmp_path: Path):
    result, _ = carry_out(
        tmp_path / "run", main="faulty-hangs-in-load", background="fixed", main_timeout="1s"
    )
    assert codes(result) == ["main-timeout"]


def test_a_main_that_is_invalid_makes_the_run_invalid(tmp_path: Path):
    result, _ = carry_out(tmp_path / "run", main="null", background="fixed", target_qps=1000.0)
    assert "loadgen-invalid" in codes(result)


def test_drain_lets_the_background_finish_its_test(tmp_path: Path):
    result, _ = carry_out(
        tmp_path / "run", main="null", background="fixed", on_main_end="drain", drain_timeout="30s"
    )
    assert codes(result) == []
    assert result.background[0].ended == "completed"
    assert result.background[0].loadgen_result is not None
    assert result.background[0].loadgen_tests >= 1


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_ends_the_run_and_keeps_the_record(tmp_path: Path, times: int):
    asked = 0

    def watch(what: Event | Action, story: lifecycle.Run) -> None:
        nonlocal asked
        due = story.phase is Phase.BUFFERING if asked == 0 else story.phase is Phase.STOPPING
        if due and asked < times:
            asked += 1
            os.kill(os.getpid(), signal.SIGINT)

    # One Ctrl-C waits for the grace; the second shortens it.
    background = "fixed" if times == 1 else "faulty-ignores-every-request"
    result, _ = carry_out(
        tmp_path / "run",
        watch,
        background=background,
        start_buffer="30s",
        stop_grace="20s",
        stall_after="30s",
    )
    assert asked == times
    assert codes(result)[0] == "stopped"


def test_a_full_disk_ends_the_run_and_leaves_no_process(tmp_path: Path):
    from scheduler.errors import DiskFull

    full = threading.Event()

    def watch(what: Event | Action, _story: lifecycle.Run) -> None:
        if isinstance(what, events.Issuing) and not full.is_set():
            full.set()
            record = tmp_path / "run" / "events.jsonl"
            record.rename(tmp_path / "run" / "events-before.jsonl")
            record.symlink_to("/dev/full")

    with pytest.raises(DiskFull):
        carry_out(tmp_path / "run", watch, background="fixed", start_buffer="500ms")

    assert full.is_set()
    assert psutil.Process().children(recursive=True) == []
