"""``hetero-mig profile``: a table of cells that are really measured, gone on with after a kill."""

import json
import shutil
import signal
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from scheduler.cli import root
from scheduler.errors import HeteroMigError
from scheduler.profile_row import Row
from tests.cli.machine import Machine
from tests.cli.program import call, looks, start

DRAWN = ("--seconds", "0.2", "--longest-warm-up", "2", "--slices", "cpu")
SHORT = (*DRAWN, "--no-pictures")


def table(folder: Path) -> list[Row]:
    """What is in ``result.json``."""
    return [Row.model_validate(row) for row in json.loads((folder / "result.json").read_text())["rows"]]


def raw(folder: Path, row: Row) -> Any:
    """The requests of a cell."""
    return np.load(folder / "runs" / row.cell / row.cell / "latencies.npy")


def test_a_profile_from_cells_to_table_and_pictures(tmp_path: Path):
    command = (
        "profile",
        "fixed",
        *DRAWN,
        "--batch-sizes",
        "1,4",
        "--concurrency",
        "2",
        "--arrival-rate",
        "50",
    )
    done = call(*command, "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "out"
    rows = table(folder)
    assert [row.cell for row in rows] == [
        *("fixed-b1-c2-cpu0", "fixed-b4-c2-cpu0", "fixed-b1-r50-cpu0", "fixed-b4-r50-cpu0")
    ]
    for row in rows:
        came, _, answered = raw(folder, row).T
        taken_ms = (answered - came) / 1e6
        assert (row.status, row.requests) == ("measured", len(taken_ms))
        assert row.samples == row.batch_size * len(taken_ms)
        assert row.latency_p99_9_ms == np.percentile(taken_ms, 99.9)
        assert row.latency_mean_ms == taken_ms.mean()
        assert row.begin_s is not None
        assert row.end_s is not None
        assert row.samples_per_s == pytest.approx(row.samples / (row.end_s - row.begin_s))
        assert row.unavailable["sm_activity"] == "a CPU slice has none"
        assert row.sm_activity is None

    assert (rows[0].samples_per_s or 0) == pytest.approx(1000, rel=0.3)  # 1 ms a sample
    assert {path.suffix for path in (folder / "pictures").iterdir()} == {".svg", ".png"}
    assert len((folder / "profile.csv").read_text().splitlines()) == 5
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if line.startswith("cpu0"))

    again = call(*command, "--output", "out", "--json", cwd=tmp_path)  # nothing is measured twice
    assert [Row.model_validate(row) for row in json.loads(again.stdout)] == rows
    assert "4 of 4 steps are there already" in again.stderr

    validated = call("validate", "out", cwd=tmp_path)
    assert (validated.returncode, validated.stdout.split("\n", 1)[0]) == (0, "fixed-b1-c2-cpu0: measured")
    assert "4 rows held against their record, 4 as it says" in validated.stderr
    step = folder / "runs" / rows[0].cell
    kept = (step / "result.json").read_text()
    (step / "result.json").write_text(kept.replace(str(rows[0].latency_p99_ms), "1.0"))
    for place in ("out", f"out/runs/{rows[0].cell}"):
        spoilt = call("validate", place, cwd=tmp_path)
        assert spoilt.returncode == 1
        told = f"{rows[0].cell}: these do not follow from its record: latency_p99_ms"
        assert spoilt.stderr.startswith(told), spoilt.stderr
        assert (f"not that of runs/: {rows[0].cell}.latency_p99_ms" in spoilt.stderr) == (place == "out")

    (step / "result.json").write_text(kept)
    (folder / "result.json").unlink()
    (folder / "profile.csv").unlink()
    (folder / "profile.csv").symlink_to("/dev/full")
    full = call(*command, "--output", "out", cwd=tmp_path)
    assert full.returncode == 3
    assert "no space is left there" in full.stderr


def test_killed_at_a_cell_it_goes_on_with_that_cell(tmp_path: Path):
    folder = tmp_path / "out"
    command = ("profile", "null", *SHORT, "--batch-sizes", "1,2,4")
    sockets = set(Path(tempfile.gettempdir()).glob("pymp-*"))
    program = start(folder, *command)
    second = folder / "runs" / "null-b2-c1-cpu0" / "events.jsonl"
    for _ in looks(program):
        if second.exists():
            break

    program.kill()
    program.wait()
    for left in set(Path(tempfile.gettempdir()).glob("pymp-*")) - sockets:
        shutil.rmtree(left)  # multiprocessing's, which a killed program cannot remove

    first = folder / "runs" / "null-b1-c1-cpu0" / "result.json"
    before = first.read_bytes()
    assert not (folder / "result.json").exists()

    done = call(*command, "--output", str(folder))
    assert done.returncode == 0, done.stderr
    assert "1 of 3 steps are there already" in done.stdout
    assert first.read_bytes() == before
    assert (folder / "runs" / "null-b2-c1-cpu0.cut-1").is_dir()
    assert [row.batch_size for row in table(folder)] == [1, 2, 4]


def test_a_stop_ends_it_and_says_how_to_go_on(tmp_path: Path):
    folder = tmp_path / "out"
    program = start(folder, "profile", "null", *SHORT, "--seconds", "30")
    events = folder / "runs" / "null-b1024-c1-cpu0" / "events.jsonl"
    for _ in looks(program):
        if events.exists() and "Issuing" in events.read_text():
            break

    program.send_signal(signal.SIGINT)
    assert program.wait(timeout=30) == 130
    assert not (events.parent / "result.json").exists()


def test_out_of_memory_is_a_row_and_the_others_go_on(tmp_path: Path):
    command = ("profile", "fixed", *SHORT, "--batch-sizes", "20000000,1", "--memory-limit", "64")
    done = call(*command, "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    large, small = table(tmp_path / "out")
    assert large.status == "out of memory"
    assert "(64 MiB)" in large.why
    assert large.samples_per_s is None
    assert small.status == "measured"
    assert "out of memory" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_together_slices_begin_at_once_and_each_row_says_so(tmp_path: Path):
    command = ("profile", "fixed", *SHORT, "--slices", "cpu:2", "--together", "--batch-sizes", "1")
    done = call(*command, "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, other = table(tmp_path / "out")
    assert (one.slice, other.slice) == ("cpu0", "cpu1")
    assert (one.slices_together, other.slices_together) == (2, 2)
    overlap = min(one.end_s or 0, other.end_s or 0) - max(one.begin_s or 0, other.begin_s or 0)
    assert overlap > 0.1


@pytest.mark.slow  # three workers import torch, each for itself, to ask CUDA
def test_each_layout_is_made_in_its_turn_and_undone(tmp_path: Path):
    machine = Machine(tmp_path, ("H200", [("7g.141gb", 0)]))
    layouts = ("--layout", "1g.18gb*2", "--layout", "3g.71gb")
    out = tmp_path / "out"
    done = machine.call("profile", "null", *layouts, "--seconds", "0.1", "--output", str(out))
    assert machine.layout() == [("7g.141gb", 0)]
    rows = table(out)
    assert [(row.layout, row.slice_name) for row in rows] == [
        *[("1g.18gb*2", "1g.18gb")] * 2,
        ("3g.71gb", "3g.71gb"),
    ]
    assert {row.status for row in rows} == {"failed"}  # the workers find that there is no such GPU
    assert "CUDA shows 0 devices" in rows[0].why
    assert done.returncode == 1


def test_migprofilers_command_is_understood_and_the_new_one_told(tmp_path: Path):
    done = call("profile", "model_name=resnet50", "workload=cv_infer", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "hetero-mig profile resnet50 --batch-sizes 1,2,4,8,16,32 --seconds 60" in done.stderr
    assert "6 steps" in done.stdout
    assert list(tmp_path.iterdir()) == []


BAD = [
    (["null", "--batch-sizes", "0"], "not a list of numbers above 0"),
    (["null", "--seconds", "0"], "x>0"),
    (["nul"], "asked: profile nul\nfound: there is no workload 'nul'"),
    (["null", "--sequence-lengths", "32"], "can choose the length"),
    (["bert-base", "--sequence-lengths", "1024"], "512 positions"),
    (["null", "--together", "--slices", "cpu"], "one slice, cpu0"),
    (["null", "fixed", "--data", "here"], "say whose"),
    (["null", "--weights", "bert=here"], "bert is not in this profile"),
    (["workload=cv_guess"], "no such workload"),
    ([], "name a workload, or a group"),
]


@pytest.mark.parametrize(
    ("words", "says"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_is_refused_before_anything_is_made(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(root, ["profile", *words])
    if isinstance(done.exception, HeteroMigError):
        assert done.exception.exit_code == 2
        assert says in str(done.exception)
    else:
        assert (done.exit_code, says in done.output) == (2, True), done.output

    assert list(tmp_path.iterdir()) == []
