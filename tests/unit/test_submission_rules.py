"""The rules of a submission tree: a good tree of each round passes, and each thing wrong with it is found."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from scheduler import submission_rules
from scheduler.spec import LoadgenRound, RoundName, loadgen_round
from scheduler.submission_layout import FIELDS, FIELDS_SINCE_V4, Place
from scheduler.submission_rules import MEASUREMENT_FIELDS
from workloads.protocol import Scenario

Tree = dict[str, str]


def log(round_: LoadgenRound, scenario: Scenario, mode: str = "PerformanceOnly", **changed: Any) -> str:
    """A detail log with what the rules look at."""
    seeds = round_.test05 if changed.pop("test05", False) and round_.test05 is not None else round_
    said: dict[str, Any] = {
        "loadgen_version": "6.0.17",
        "effective_scenario": scenario.value,
        "effective_test_mode": mode,
        "effective_min_duration_ms": 600_000,
        "effective_performance_sample_count": 1024,
        "effective_target_latency_ns": 15_000_000,
        "effective_qsl_rng_seed": seeds.qsl_rng_seed,
        "effective_sample_index_rng_seed": seeds.sample_index_rng_seed,
        "effective_schedule_rng_seed": seeds.schedule_rng_seed,
        "generated_samples_per_query": 24576 if scenario is Scenario.OFFLINE else 1,
        "power_end": "now",
        "result_validity": "VALID",
        "num_errors": 0,
    }
    return "\n".join(
        f":::MLLOG {json.dumps({'key': key, 'value': value, 'metadata': {}})}"
        for key, value in (said | changed).items()
    )


def tree(name: RoundName = "v6.1", scenarios: tuple[Scenario, ...] = (), system_type: str = "edge") -> Tree:
    """A good tree of resnet50."""
    round_, files = loadgen_round(name), Tree()
    required = round_.of("resnet50").required["edge" if system_type == "edge" else "datacenter"]
    for scenario in scenarios or required:
        place = Place(
            round=name, division="closed", submitter="ORG", system="SYS", model="resnet", scenario=scenario
        )
        run = f"{place.results}/performance/run_1"
        files |= {
            f"{run}/mlperf_log_summary.txt": "VALID",
            f"{run}/mlperf_log_detail.txt": log(round_, scenario),
            f"{place.results}/accuracy/mlperf_log_summary.txt": "none",
            f"{place.results}/accuracy/mlperf_log_detail.txt": log(round_, scenario, "AccuracyOnly"),
            f"{place.results}/accuracy/mlperf_log_accuracy.json": "[\n]\n",
            f"{place.results}/accuracy/accuracy.txt": "accuracy=76.014%, good=38007, total=50000\nhash=0a1b\n",
            f"{place.measurements}/user.conf": "resnet50.Offline.target_qps = 1\n",
            f"{place.measurements}/README.md": "how\n",
            place.description: json.dumps(dict.fromkeys(MEASUREMENT_FIELDS, "fp32")),
            place.code: "what\n",
            place.calibration: "none\n",
        }
        if name != "v6.1":
            files[f"{place.measurements}/mlperf.conf"] = "*.*.qsl_rng_seed = 1\n"

        for test in submission_rules.tests_of(round_, "resnet50"):
            at = f"{place.compliance}/{test}"
            files |= {
                f"{at}/performance/run_1/mlperf_log_summary.txt": "VALID",
                f"{at}/performance/run_1/mlperf_log_detail.txt": log(
                    round_, scenario, test05=test == "TEST05"
                ),
                f"{at}/verify_performance.txt": "TEST PASS\n",
            }
            if test == "TEST01":
                files[f"{at}/verify_accuracy.txt"] = "TEST PASS\n"
                files[f"{at}/accuracy/mlperf_log_accuracy.json"] = "[\n]\n"

    system = dict.fromkeys((*FIELDS, *FIELDS_SINCE_V4), "something") | {
        "submitter": "ORG",
        "division": "closed",
        "status": "available",
        "system_type": system_type,
    }
    return files | {"closed/ORG/systems/SYS.json": json.dumps(system)}


def problems(files: Tree, name: RoundName = "v6.1", *, rehearsal: bool = False) -> list[str]:
    return submission_rules.problems(files, loadgen_round(name), rehearsal=rehearsal)


@pytest.mark.parametrize("name", ["v2.0", "v4.1", "v6.1"])
def test_a_good_tree_passes(name: RoundName):
    assert problems(tree(name), name) == []


@pytest.mark.parametrize("name", ["v2.0", "v4.1"])
def test_a_good_datacenter_tree_passes(name: RoundName):
    assert problems(tree(name, system_type="datacenter"), name) == []


def test_the_trees_are_laid_out_as_each_rounds_checker_reads_them():
    flat, old = tree("v6.1"), tree("v4.1")
    at = "closed/ORG/results/SYS/resnet/Offline"
    assert {
        f"{at}/measurements.json",
        f"{at}/user.conf",
        f"{at}/TEST04/verify_performance.txt",
    } <= flat.keys()
    assert {
        "closed/ORG/measurements/SYS/resnet/Offline/SYS_hetero-mig_Offline.json",
        "closed/ORG/measurements/SYS/resnet/Offline/mlperf.conf",
        "closed/ORG/compliance/SYS/resnet/Offline/TEST05/verify_performance.txt",
        "closed/ORG/code/resnet/hetero-mig/README.md",
    } <= old.keys()
    assert {path.split("/")[6] for path in tree("v2.0") if "/compliance/" in path} == {
        *("TEST01", "TEST04-A", "TEST04-B", "TEST05")
    }
    assert problems(flat, "v4.1")
    assert problems(old, "v6.1")


# ---------------------------------------------------------------------- what is wrong is found

OFFLINE = "closed/ORG/results/SYS/resnet/Offline"
DETAIL = f"{OFFLINE}/performance/run_1/mlperf_log_detail.txt"
SYSTEM = "closed/ORG/systems/SYS.json"
Change = Callable[[Tree], object]


def logged(path: str = DETAIL, mode: str = "PerformanceOnly", **changed: Any) -> Change:
    return lambda files: files.update({path: log(loadgen_round("v6.1"), Scenario.OFFLINE, mode, **changed)})


def without(path: str) -> Change:
    return lambda files: files.pop(path)


def said(path: str, text: str) -> Change:
    return lambda files: files.update({path: text})


def told(path: str, **fields: object) -> Change:
    return lambda files: files.update({path: json.dumps(json.loads(files[path]) | fields)})


def without_all(part: str) -> Change:
    return lambda files: [files.pop(path) for path in list(files) if part in path]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (without(DETAIL), f"{DETAIL}: missing"),
        (said(DETAIL, log(loadgen_round("v6.1"), Scenario.OFFLINE)[:300]), "the log ends before"),
        (said(f"{OFFLINE}/performance/run_1/notes.txt", "x"), "notes.txt: not one of the files"),
        (logged(result_validity="INVALID"), "LoadGen says INVALID"),
        (logged(num_errors=2), "LoadGen counted 2 errors"),
        (
            logged(effective_min_duration_ms=10_000),
            "a minimum duration of 10 s, where the round asks for 600 s",
        ),
        (
            logged(effective_performance_sample_count=256),
            "256 samples were loaded, where the round asks for 1024",
        ),
        (logged(generated_samples_per_query=1000), "a query of 1000 samples, where the round asks for 24576"),
        (logged(effective_qsl_rng_seed=1), "qsl_rng_seed is 1, not the round's 2085463073848966840"),
        (logged(effective_sample_index_rng_seed=1), "sample_index_rng_seed is 1"),
        (logged(effective_schedule_rng_seed=1), "schedule_rng_seed is 1"),
        (logged(effective_scenario="SingleStream"), "the test is of SingleStream"),
        (logged(effective_test_mode="AccuracyOnly"), "mode is AccuracyOnly"),
        (without(f"{OFFLINE}/accuracy/accuracy.txt"), "accuracy.txt: missing"),
        (said(f"{OFFLINE}/accuracy/accuracy.txt", "accuracy=76.014%\n"), "no hash="),
        (said(f"{OFFLINE}/accuracy/accuracy.txt", "top1: 76\nhash=1\n"), "no line that the checker takes"),
        (
            said(f"{OFFLINE}/accuracy/accuracy.txt", "accuracy=75.6%\nhash=1\n"),
            "75.6, where 75.6954 is asked",
        ),
        (said(f"{OFFLINE}/accuracy/mlperf_log_accuracy.json", "x" * 10240), "not truncated"),
        (logged(f"{OFFLINE}/accuracy/mlperf_log_detail.txt"), "not an accuracy run without errors"),
        (without(f"{OFFLINE}/user.conf"), "user.conf: missing"),
        (said(f"{OFFLINE}/README.md", ""), "README.md: empty"),
        (without(f"{OFFLINE}/measurements.json"), "measurements.json: missing"),
        (told(f"{OFFLINE}/measurements.json", retraining=""), "retraining says nothing"),
        (without("closed/ORG/src/resnet/README.md"), "src/resnet/README.md: missing"),
        (without("closed/ORG/documentation/calibration.md"), "calibration.md: missing"),
        (without(f"{OFFLINE}/TEST01/verify_accuracy.txt"), "TEST01/verify_accuracy.txt: no TEST PASS"),
        (
            said(f"{OFFLINE}/TEST04/verify_performance.txt", "TEST FAIL"),
            "TEST04/verify_performance.txt: no TEST PASS",
        ),
        (
            without(f"{OFFLINE}/TEST01/accuracy/mlperf_log_accuracy.json"),
            "TEST01/accuracy/mlperf_log_accuracy.json",
        ),
        (without_all("Offline/TEST04/"), f"{OFFLINE}/TEST04: missing; round v6.1 asks for it"),
        (
            logged(f"{OFFLINE}/TEST04/performance/run_1/mlperf_log_detail.txt", num_errors=1),
            "counted 1 errors",
        ),
        (without_all("/SingleStream/"), "SingleStream is missing, which edge systems must have"),
        (without(SYSTEM), f"{SYSTEM}: missing"),
        (said(SYSTEM, "["), "not a JSON object"),
        (told(SYSTEM, submitter="OTHER"), "submitter is 'OTHER', the folder says 'ORG'"),
        (told(SYSTEM, division="open"), "division is 'open'"),
        (told(SYSTEM, status="soon"), "status is 'soon'"),
        (told(SYSTEM, system_type="laptop"), "system_type is 'laptop'"),
        (told(SYSTEM, system_type="datacenter"), "round v6.1 has no resnet on datacenter systems"),
        (told(SYSTEM, host_storage_type=""), "host_storage_type says nothing"),
        (said(SYSTEM, "{}"), "no field cooling"),
        (said("NOT-FOR-SUBMISSION.md", "x"), "the tree is marked so"),
        (without_all("results"), "no results"),
    ],
)
def test_what_is_wrong_is_found(change: Change, found: str):
    files = tree()
    change(files)
    assert any(found in problem for problem in problems(files)), problems(files)


def test_bert_at_99_9_is_for_datacenters_until_the_edge_has_it():
    def there_is_none(name: RoundName, system_type: str) -> bool:
        files = {path.replace("/resnet/", "/bert-99.9/"): text for path, text in tree(name).items()}
        told(SYSTEM, system_type=system_type)(files)
        found = f"round {name} has no bert-99.9 on {system_type} systems"
        return any(found in problem for problem in problems(files, name))

    assert [there_is_none("v2.0", "edge"), there_is_none("v2.0", "datacenter")] == [True, False]
    assert [there_is_none("v4.1", "edge"), there_is_none("v6.1", "edge")] == [True, False]


def test_a_server_limit_longer_than_the_rounds_is_found():
    files = tree("v4.1", system_type="datacenter")
    at = "closed/ORG/results/SYS/resnet/Server/performance/run_1/mlperf_log_detail.txt"
    files[at] = log(loadgen_round("v4.1"), Scenario.SERVER, effective_target_latency_ns=16_000_000)
    assert problems(files, "v4.1") == [f"{at}: a latency limit of 16 ms, where the round has 15 ms"]


def test_test05_with_the_rounds_own_seeds_is_none():
    files = tree("v2.0")
    at = "closed/ORG/compliance/SYS/resnet/Offline/TEST05/performance/run_1/mlperf_log_detail.txt"
    files[at] = log(loadgen_round("v2.0"), Scenario.OFFLINE)
    assert len(problems(files, "v2.0")) == 3


def test_a_model_that_the_round_does_not_have_is_for_the_open_division():
    files = {path.replace("/resnet/", "/mine/"): text for path, text in tree().items()}
    assert any("has no mine in the closed division" in problem for problem in problems(files))
    opened = {
        path.replace("closed/", "open/"): text.replace('"closed"', '"open"') for path, text in files.items()
    }
    assert problems(opened) == []


def test_a_rehearsal_is_marked_and_its_accuracy_is_not_looked_at():
    files = tree(scenarios=(Scenario.OFFLINE,))
    files[f"{OFFLINE}/accuracy/accuracy.txt"] = "no accuracy\nhash=1\n"
    logged(effective_performance_sample_count=256)(files)
    assert problems(files, rehearsal=True) == ["NOT-FOR-SUBMISSION.md: missing, the tree is a rehearsal"]
    files["NOT-FOR-SUBMISSION.md"] = "it shows the form"
    assert problems(files, rehearsal=True) == []
    assert len(problems(files)) == 5
