"""Runs from the command line."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from scheduler.result import Result
from tests.cli.program import PROGRAM, QUICK, call, start, wait_until, workers


def runs(process: psutil.Process) -> bool:
    """Alive: an orphan that init has not reaped yet holds nothing any more."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a VALID run with one background, which no test may change."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    done = call("--main", "null", "--background", "fixed", *QUICK, "--output", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture
def own_copy(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_run_ends_valid_with_exit_0_and_is_judged_the_same_again(tmp_path: Path):
    folder = tmp_path / "run"
    done = call("--main", "null", "--background", "fixed,matmul", *QUICK, "--output", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VALID" in done.stdout
    result = Result.model_validate_json((folder / "result.json").read_text())
    assert result.verdict == "VALID"
    assert all(one.samples_in_main_window > 0 for one in result.background)

    again = call("validate", str(folder), "--json")
    assert again.returncode == 0
    assert Result.model_validate_json(again.stdout) == result


def test_json_puts_the_result_alone_on_stdout(tmp_path: Path):
    done = call("--main", "null", "--background", "none", *QUICK, "--json", "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    result = Result.model_validate(json.loads(done.stdout))
    assert result.kind == "baseline"
    assert result.background == []


def test_an_invalid_main_exits_1(tmp_path: Path):
    arguments = ("--main", "null", "--background", "none", "--target-qps", "1000")
    done = call(*arguments, *QUICK, "--output", str(tmp_path / "run"))
    assert done.returncode == 1
    assert "loadgen-invalid" in done.stdout


def test_an_output_folder_that_is_taken_is_refused(tmp_path: Path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious").touch()
    done = call("--main", "null", "--background", "none", "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "holds something already" in done.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["precious"]


def test_a_tampered_folder_is_judged_by_what_it_holds(own_copy: Path):
    (own_copy / "background-1-fixed" / "completions.bin").write_bytes(b"")
    (own_copy / "background-1-fixed" / "progress.bin").write_bytes(b"")
    again = call("validate", str(own_copy))
    assert again.returncode == 1
    assert "no-samples-in-window" in again.stdout
    assert "verdict" in again.stderr
    assert "do not follow from this folder" in again.stderr


def test_a_figure_changed_by_hand_is_found(own_copy: Path):
    result = json.loads((own_copy / "result.json").read_text())
    result["main"]["metric"]["value"] *= 100
    (own_copy / "result.json").write_text(json.dumps(result))
    again = call("validate", str(own_copy))
    assert again.returncode == 1
    assert "main.metric.value" in again.stderr


DAMAGE = {
    "manifest.json": ["{}", "[]", "not json"],
    "result.json": ["{}", "["],
    "events.jsonl": [
        "{}\n{}\n",
        "\udcff",
        '{"at_handled": 1, "what": "Exited", "name": "x", "at": "y", "code": 0}\n\n',
    ],
}


@pytest.mark.parametrize(("name", "content"), [(name, one) for name, many in DAMAGE.items() for one in many])
def test_a_damaged_folder_is_told_without_a_traceback(own_copy: Path, name: str, content: str):
    (own_copy / name).write_text(content, errors="surrogateescape")
    again = call("validate", str(own_copy))
    assert again.returncode == (1 if (name, content) == ("result.json", "{}") else 3)
    assert "Traceback" not in again.stderr
    assert any(said in again.stderr for said in (f"asked: {name}", "asked: the manifest", "in result.json"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=str)
@pytest.mark.parametrize("when", ["Launch", "Issuing"])
def test_a_signal_to_the_whole_process_group_is_a_stop_like_any_other(
    tmp_path: Path, when: str, number: signal.Signals
):
    folder = tmp_path / "run"
    program = start(
        folder, "--main", "null", "--background", "matmul,fixed", *QUICK[:2], "--start-buffer", "1m"
    )
    wait_until(program, folder, when, "background-1")
    os.killpg(program.pid, number)
    assert program.wait(timeout=30) == 128 + number
    result = Result.model_validate_json((folder / "result.json").read_text())
    assert result.findings[0].code == "stopped"


def test_a_signal_that_is_ignored_from_birth_stays_ignored(tmp_path: Path):
    command = [
        "nohup",
        PROGRAM,
        "--main",
        "null",
        "--background",
        "fixed",
        *QUICK,
        "--output",
        str(tmp_path / "run"),
    ]
    program = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_until(program, tmp_path / "run", "Issuing", "background")
    program.send_signal(signal.SIGHUP)
    assert program.wait(timeout=60) == 0


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path):
    folder = tmp_path / "run"
    arguments = [PROGRAM, "--main", "null", "--background", "fixed", *QUICK, "--output", str(folder)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as program:
        assert program.stdout is not None
        program.stdout.readline()
        program.stdout.close()

    assert program.returncode == 0
    assert (folder / "result.json").exists()


@pytest.mark.parametrize("closed", [0, 1, 2])
def test_a_closed_standard_stream_is_no_matter(tmp_path: Path, closed: int):
    arguments = [
        PROGRAM,
        "--main",
        "null",
        "--background",
        "fixed",
        *QUICK,
        "--output",
        str(tmp_path / "run"),
    ]
    shell = ["sh", "-c", f'exec "$@" {closed}>&-', "sh", *arguments]
    assert subprocess.run(shell, capture_output=True, timeout=120).returncode == 0


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda x: str(x),
)
def test_a_stop_signal_ends_every_worker_and_keeps_the_record(
    tmp_path: Path, number: signal.Signals, code: int
):
    folder = tmp_path / "run"
    program = start(
        folder, "--main", "null", "--background", "fixed,fixed", *QUICK[:2], "--start-buffer", "1m"
    )
    wait_until(program, folder, "Issuing", "background-2")
    pids = workers(folder)
    program.send_signal(number)
    assert program.wait(timeout=30) == code
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    result = Result.model_validate_json((folder / "result.json").read_text())
    assert result.verdict == "INVALID"
    assert "stopped" in [finding.code for finding in result.findings]


def test_sigkill_of_the_launcher_ends_every_worker_within_a_second(tmp_path: Path):
    folder = tmp_path / "run"
    program = start(
        folder, "--main", "null", "--background", "fixed,fixed", *QUICK[:2], "--start-buffer", "1m"
    )
    wait_until(program, folder, "Issuing", "background-2")
    family = psutil.Process(program.pid).children(recursive=True)
    assert set(workers(folder)) <= {process.pid for process in family}
    program.kill()
    program.wait()
    killed_at = time.monotonic()
    while any(runs(process) for process in family):
        assert time.monotonic() - killed_at < 1.0, family

    again = call("validate", str(folder))
    assert again.returncode == 1
    assert "cut-short" in again.stdout
