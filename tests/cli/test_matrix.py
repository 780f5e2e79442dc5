"""``hetero-mig matrix`` from the command line."""

import csv
from pathlib import Path

import pytest

from scheduler.pairs import MatrixResult
from tests.cli.program import QUICK, call, start, wait_until

# Without telemetry, what else this machine does meanwhile is not held against the idle slice.
ONE = ("matrix", "--workloads", "fixed", "--repeats", "2", "--slices", "cpu:2", "--telemetry", "off", *QUICK)


HEAVY = """
class Heavy:
    def __init__(self, name, options):
        self.total_sample_count, self.notes = 8, []

    def load(self):
        raise MemoryError

    def load_samples(self, indices): ...
    def unload_samples(self, indices): ...
    def predict(self, indices): ...
    reference = predict
"""


def finished(folder: Path) -> dict[str, int]:
    """When each run that came to a verdict did."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("runs/*/result.json")}


def test_a_killed_matrix_goes_on_and_repeats_no_finished_run(tmp_path: Path):
    folder = tmp_path / "matrix [of] [/b]"
    arguments = (*ONE, "--output", str(folder))
    program = start(folder, *ONE)
    wait_until(program, folder / "runs" / "fixed-beside-fixed", "Issuing", "background")
    program.kill()
    program.wait()
    before = finished(folder)
    assert list(before) == ["fixed-alone-1"]

    done = call(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[2/3] fixed beside fixed; about" in done.stdout
    assert "[1/3]" not in done.stdout
    after = finished(folder)
    assert after.keys() == {"fixed-alone-1", "fixed-beside-fixed", "fixed-alone-2"}
    assert after["fixed-alone-1"] == before["fixed-alone-1"]
    assert (folder / "runs" / "fixed-beside-fixed.cut-1").is_dir()

    result = MatrixResult.model_validate_json((folder / "result.json").read_text())
    assert result.verdict == "VALID"
    with (folder / "matrix.csv").open(newline="") as file:
        assert [float(line["derating"]) for line in csv.DictReader(file)] == [result.cells[0].derating]

    assert {"matrix.svg", "matrix.png"} <= {path.name for path in folder.iterdir()}

    again = call(*arguments, "--json")
    assert again.returncode == 0
    assert MatrixResult.model_validate_json(again.stdout) == result
    assert finished(folder) == after


def test_a_pair_that_cannot_run_is_told_and_the_others_go_on(tmp_path: Path):
    (tmp_path / "heavy.py").write_text(HEAVY)
    arguments = ("matrix", "--workloads", "heavy.py:Heavy", "--repeats", "2", "--slices", "cpu:2", *QUICK)
    done = call(*arguments, "--output", "matrix", cwd=tmp_path)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "[3/3] heavy.Heavy alone, time 2" in done.stdout
    assert "could not run: runs/heavy.Heavy-beside-heavy.Heavy" in done.stdout
    assert done.stdout.count("ran out of memory") == 3
    result = MatrixResult.model_validate_json((tmp_path / "matrix" / "result.json").read_text())
    assert (result.verdict, result.cells[0].run.outcome) == ("INVALID", "could not run")
    assert (result.cells[0].derating, result.baselines[0].samples_per_s) == (None, None)


def test_a_dry_run_lists_the_runs_and_starts_nothing(tmp_path: Path):
    done = call("matrix", "--workloads", "null,fixed", "--slices", "cpu:3", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (
        "plan (preset quick): 10 runs, main on cpu0, background on cpu1, cpu2; each measures 10 s"
        in done.stdout
    )
    lines = [line.split(maxsplit=1)[1] for line in done.stdout.splitlines() if line[:5].strip().isdigit()]
    assert lines[:4] == [
        "null alone, time 1",
        "fixed alone, time 1",
        "null beside null",
        "fixed beside fixed",
    ]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--workloads", "null,resnet51"], "there is no workload 'resnet51'"),
        (["--workloads", "resnet,resnet50"], "resnet50 is there twice"),
        (["--workloads", "none"], "nothing to measure"),
        (["--workloads", "null", "--repeats", "1"], "--repeats"),
        (["--workloads", "null,fixed", "--batch-size", "8"], "of which workload? Write NAME=8"),
        (["--workloads", "null,fixed", "--slices", "cpu:1"], "slices beside main's: 0"),
        (["--workloads", "null", "--main", "bert"], "No such option"),
    ],
)
def test_bad_input_gets_one_message_and_exit_2(tmp_path: Path, arguments: list[str], says: str):
    done = call("matrix", *arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert list(tmp_path.iterdir()) == []
