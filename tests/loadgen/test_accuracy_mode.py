"""LoadGen's AccuracyOnly through the harness, and how good the answers are: all in one process beside this one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import data_sets
from workloads.accuracy_log import AccuracyLog
from workloads.loadgen import read_detail

ROOT = Path(__file__).parent.parent.parent
MODELS = tuple(data_sets.OF)
SAMPLES = {"ssd-resnet34": 2, "3d-unet": 1}
"""Of the models that take long; eight of the others."""

LAST_LAYER = ("bert",)
"""Where any other layer would do nothing: with transformers' initialisation the small network's spans hang on
its embeddings."""

METRICS = {
    "resnet50": "top-1",
    "ssd-resnet34": "mAP",
    "ssd-mobilenet": "mAP",
    "bert": "F1",
    "dlrm": "AUC",
    "3d-unet": "DICE",
    "rnnt": "1-WER",
}
ON_NULL = {
    "Offline": {"workload": "null"},
    "SingleStream": {"workload": "null"},
    "MultiStream": {"workload": "fixed", "samples": 13},
    "Server": {"workload": "fixed", "samples": 100},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder a run."""
    folder = tmp_path_factory.mktemp("accuracy")
    jobs: dict[str, Any] = {
        scenario: {"scenario": scenario, "performance_sample_count": 300, "batch_size": 8, **job}
        for scenario, job in ON_NULL.items()
    }
    for name in MODELS:
        few = {"workload": name, "samples": SAMPLES.get(name, 8)}
        jobs[name] = few
        jobs[f"{name}-disturbed"] = few | {"disturbed": 1.0 if name in LAST_LAYER else 0.5}
        data = data_sets.OF[name](folder / f"{name}-data")
        jobs[f"{name}-labelled"] = {
            "workload": name,
            "samples": 1,
            "fidelity_samples": 1,
            "data": str(data),
        }

    jobs["bert-bf16"] = {"workload": "bert", "samples": 8, "precision": "bf16"}
    command = [sys.executable, "-m", "tests.loadgen.accuracy", str(folder), json.dumps(jobs)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr + "".join(
        each.read_text() for each in folder.glob("*/error.txt")
    )
    return folder


def quality(folder: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / run / "quality.json").read_text())
    return found


@pytest.mark.parametrize("scenario", ON_NULL)
def test_every_sample_is_asked_for_and_answered(folder: Path, scenario: str):
    answers = AccuracyLog(folder / scenario / "loadgen" / "mlperf_log_accuracy.json")
    count = ON_NULL[scenario].get("samples", 1024)
    assert sorted(answers) == list(range(count))
    expected = [index if scenario in ("MultiStream", "Server") else 0 for index in range(count)]
    assert [int.from_bytes(answers[index], "little") for index in range(count)] == expected
    log = read_detail(folder / scenario / "loadgen")
    assert log["effective_test_mode"] == "AccuracyOnly"
    assert "power_end" in log


def test_loadgen_loads_the_library_in_parts(folder: Path):
    log = (folder / "Offline" / "loadgen" / "mlperf_log_detail.txt").read_text().splitlines()
    loaded = [json.loads(line[9:])["value"] for line in log if '"loaded_qsl_set"' in line]
    assert [len(part) for part in loaded] == [300, 300, 300, 124]
    assert sorted(index for part in loaded for index in part) == list(range(1024))


def test_multi_streams_last_query_is_filled_up_and_counted_once(folder: Path):
    answers = AccuracyLog(folder / "MultiStream" / "loadgen" / "mlperf_log_accuracy.json")
    assert (len(answers), answers.entries) == (13, 16)


def test_nothing_is_calibrated_and_issuing_is_told_once(folder: Path):
    result = json.loads((folder / "Server" / "result.json").read_text())
    assert result["measured"]["calibration"] is None
    assert result["issuing"] == 1
    assert not (folder / "Server" / "calibration").exists()
    assert result["measured"]["notes"] == [
        "accuracy run: the first 100 of the library's 1024 samples, each once"
    ]


@pytest.mark.parametrize("name", MODELS)
def test_in_fp32_a_model_is_its_own_reference(folder: Path, name: str):
    found = quality(folder, name)
    assert found["fidelity"]["value"] >= 99.9
    assert found["fidelity"]["samples"] == found["answered"] == SAMPLES.get(name, 8)
    assert found["accuracy"] is None


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_one_layer_disturbed_falls_below_the_target(folder: Path, name: str):
    assert quality(folder, f"{name}-disturbed")["fidelity"]["value"] < 99


def test_in_bf16_a_model_is_near_its_reference(folder: Path):
    found = quality(folder, "bert-bf16")["fidelity"]
    assert found["value"] > 80
    assert 1e-4 < found["details"]["mean_relative_error"] < 0.05


@pytest.mark.parametrize("name", MODELS)
def test_labelled_data_is_asked_for_whole_and_scored(folder: Path, name: str):
    found = quality(folder, f"{name}-labelled")
    assert found["answered"] == found["library"] == found["accuracy"]["samples"] > 1
    assert found["accuracy"]["metric"] == METRICS[name]
    assert found["fidelity"]["samples"] == 1
    assert found["fidelity"]["value"] >= 99.9
