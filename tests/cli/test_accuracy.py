"""Accuracy runs from the command line: valid, invalid, in company, judged again, and spoilt afterwards."""

import json
from pathlib import Path

import pytest

from scheduler.result import Result
from tests import data_sets
from tests.cli.program import call

RUN = ("--preset", "quick", "--main-mode", "accuracy", "--start-buffer", "50ms", "--end-buffer", "50ms")
ALONE = (*RUN, "--background", "none", "--slices", "cpu:1")
BROKEN = '''
import numpy as np

class Broken:
    """Its reference and its answers are of different weights."""

    def __init__(self, name, options):
        self.total_sample_count, self.notes = 16, []

    def load(self): ...
    def load_samples(self, indices): ...
    def unload_samples(self, indices): ...

    def predict(self, indices):
        return np.array([[index * 1.5, 1.0] for index in indices], np.float32)

    def reference(self, indices):
        return np.array([[index, 1.0] for index in indices], np.float32)
'''


def result_of(folder: Path) -> Result:
    return Result.model_validate_json((folder / "result.json").read_text())


def test_an_accuracy_run_in_company_is_valid_and_judged_the_same_again(tmp_path: Path):
    """Main's window is of 70 ms: in company of null, of whose tests LoadGen makes millions of queries beforehand, it
    may lie between two tests."""
    folder = tmp_path / "run"
    done = call("--main", "fixed", "--background", "matmul", *RUN, "--output", str(folder))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fidelity: equal answers 100 %, target 99: reached" in done.stdout
    result = result_of(folder)
    assert result.main.mode == "AccuracyOnly"
    assert result.main.accuracy is not None
    assert (result.main.accuracy.kind, result.main.accuracy.samples) == ("fidelity", 64)
    assert result.background[0].samples_in_main_window > 0
    again = call("validate", str(folder), "--json")
    assert again.returncode == 0
    assert Result.model_validate_json(again.stdout) == result


def lower(folder: Path) -> None:
    path = folder / "main-null" / "quality.json"
    path.write_text(path.read_text().replace('"value": 100.0', '"value": 12.0'))


def change_an_answer(folder: Path) -> None:
    path = folder / "main-null" / "loadgen" / "mlperf_log_accuracy.json"
    path.write_text(path.read_text().replace('"data" : "00', '"data" : "01', 1))


def no_figures(folder: Path) -> None:
    (folder / "main-null" / "quality.json").unlink()


def other_figures(folder: Path) -> None:
    (folder / "main-null" / "quality.json").write_text('{"accuracy": null}')


SPOILT = {
    lower: "accuracy-below-target",
    change_an_answer: "not the one that quality.json was computed from",
    no_figures: "no-accuracy-result",
    other_figures: "quality.json, fidelity: Field required",
}


def test_a_folder_changed_afterwards_is_judged_by_what_it_holds(tmp_path: Path):
    folder = tmp_path / "run"
    assert call("--main", "null", *ALONE, "--output", str(folder)).returncode == 0
    whole = {path: path.read_bytes() for path in folder.rglob("*.json")}
    for spoil, said in SPOILT.items():
        spoil(folder)
        again = call("validate", str(folder))
        assert again.returncode == 1
        assert said in again.stdout
        for path, content in whole.items():
            path.write_bytes(content)

    assert call("validate", str(folder)).returncode == 0


def test_a_model_that_computes_something_else_than_its_reference_exits_1(tmp_path: Path):
    (tmp_path / "broken.py").write_text(BROKEN)
    done = call("--main", f"{tmp_path / 'broken.py'}:Broken", *ALONE, "--output", str(tmp_path / "run"))
    assert done.returncode == 1, done.stderr
    findings = {finding.code: finding for finding in result_of(tmp_path / "run").findings}
    assert findings["accuracy-below-target"].severity == "breach"
    assert (
        "predict and reference compute different things" in findings["accuracy-below-target"].recommendation
    )


def labelled_run(folder: Path, workload: str) -> Result:
    data = data_sets.OF[workload](folder / "data")
    options = ("--data", str(data), "--fidelity-samples", "2")
    done = call("--main", workload, *ALONE, *options, "--output", str(folder / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    return result_of(folder / "run")


def test_labelled_images_are_scored_and_the_small_model_is_judged_by_fidelity(tmp_path: Path):
    told = labelled_run(tmp_path, "resnet50").main.accuracy
    assert told is not None
    assert (told.kind, told.value, told.samples) == ("fidelity", 100.0, 2)
    assert told.beside is not None
    assert (told.beside.metric, told.beside.samples) == ("top-1", 6)
    assert told.why_fidelity == (
        "the small model; random weights; 6 labelled samples, where MLPerf's data set has 50000"
    )


@pytest.mark.slow
@pytest.mark.parametrize("workload", [name for name in data_sets.OF if name != "resnet50"])
def test_every_labelled_data_set_is_read_and_scored(tmp_path: Path, workload: str):
    told = labelled_run(tmp_path, workload).main.accuracy
    assert told is not None
    assert told.beside is not None
    assert told.beside.samples > 1
    assert call("validate", str(tmp_path / "run")).returncode == 0


@pytest.mark.parametrize("workload", ["ssd-mobilenet", "bert", "dlrm", "3d-unet", "rnnt"])
def test_a_folder_of_something_else_is_refused_before_anything_starts(tmp_path: Path, workload: str):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "letter.txt").write_text("not a data set")
    done = call(
        "--main", workload, *ALONE, "--data", str(tmp_path / "data"), "--output", str(tmp_path / "run")
    )
    assert done.returncode == 2
    assert str(tmp_path / "data") in done.stderr
    assert "nothing was started" in done.stderr
    assert not (tmp_path / "run").exists()


def test_the_plan_tells_the_terms(tmp_path: Path):
    done = call("--main", "3d-unet", *ALONE, "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert plan["accuracy"]["target"] == 0.999
    assert plan["main"]["settings"]["mode"] == "AccuracyOnly"
