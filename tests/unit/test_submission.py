"""What stands against submitting runs, and what a submission's own files say."""

import re
from pathlib import Path
from typing import Any

import pytest

from scheduler import submission, submission_text
from scheduler.record import RunFolder
from scheduler.result import AccuracyResult, Finding, QualityFigure
from scheduler.spec import AccuracyTerms, loadgen_round
from scheduler.submission import Benchmark, Made, refusals
from scheduler.submission_rules import ACCURACY_PATTERNS
from scheduler.verdict import judge
from tests.unit.test_verdict import EVIDENCE, MANIFEST, STORY
from workloads.accuracy_log import AccuracyLog
from workloads.protocol import Scenario

V2, V6 = loadgen_round("v2.0"), loadgen_round("v6.1")
JUDGED = judge(MANIFEST, STORY, EVIDENCE)
TERMS = AccuracyTerms(
    target=0.99, fidelity_samples=64, mlperf_metric="top-1 %", mlperf_reference={50_000: 76.46}
)
MAIN = {"workload": "resnet50", "size": "full", "weights": "resnet50.pth", "precision": "fp16"}
TOP_1 = AccuracyResult(
    kind="accuracy", metric="top-1", value=76.1, unit="%", samples=50_000, target=75.7, reached=True
)


def made(
    folder: str, *, accuracy: bool = False, breach: str = "", told: AccuracyResult = TOP_1, **changed: Any
) -> Made:
    """A run that is submittable but for what is changed of its main benchmark or of its manifest."""
    of_main = {
        key: changed.pop(key) for key in list(changed) if key in ("size", "weights", "precision", "slice")
    }
    manifest = MANIFEST.model_copy(
        update={
            "main": MANIFEST.main.model_copy(update=MAIN | of_main),
            "accuracy": TERMS if accuracy else None,
            "background": [],
            "spec": {"round": "v6.1", "seed": 0},
            **changed,
        }
    )
    findings = [Finding(code=breach, severity="breach", message=f"what {breach} tells")] if breach else []
    main = JUDGED.main.model_copy(update={"accuracy": told if accuracy else None})
    return Made(
        folder=RunFolder(Path(folder)),
        manifest=manifest,
        result=JUDGED.model_copy(update={"findings": findings, "main": main}),
    )


def answer(test: str, **changed: Any) -> tuple[Path, dict[str, Any]]:
    told = {"test": test, "verdict": "PASS", "round": "v6.1", "runs": {"performance": "/runs/performance"}}
    return Path("/audits") / test, told | changed


def benchmark(**changed: Any) -> Benchmark:
    good: dict[str, Any] = {
        "workload": "resnet50",
        "scenario": Scenario.OFFLINE,
        "performance": [made("/runs/performance")],
        "accuracy": [made("/runs/accuracy", accuracy=True)],
        "audits": {test: answer(test) for test in ("TEST01", "TEST04")},
    }
    return Benchmark(**(good | changed))


def test_nothing_stands_against_what_is_as_the_round_wants_it():
    assert list(refusals(benchmark(), V6, "closed")) == []
    assert list(refusals(benchmark(audits={}), V6, "open")) == []


FIDELITY = TOP_1.model_copy(update={"kind": "fidelity", "why_fidelity": "random weights"})


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"performance": []}, "no performance run was named"),
        ({"accuracy": []}, "no accuracy run was named"),
        ({"performance": [made("/runs/performance"), made("/runs/other")]}, "more than one performance run"),
        ({"performance": [made("/runs/performance", preset="quick")]}, "preset quick, not mlperf"),
        (
            {"performance": [made("/runs/performance", spec={"round": "v4.1"})]},
            "seeds and counts of round v4.1",
        ),
        ({"performance": [made("/runs/performance", spec={})]}, "seeds and counts of round v2.0"),
        (
            {"performance": [made("/runs/performance", spec={"round": "v6.1", "seed": 3})]},
            "its seeds were moved by --seed 3",
        ),
        (
            {"performance": [made("/runs/performance", background=MANIFEST.background)]},
            "made beside null, and round v6.1 has no HeteroMIG",
        ),
        (
            {"performance": [made("/runs/performance", breach="loadgen-invalid")]},
            "what loadgen-invalid tells",
        ),
        (
            {"performance": [made("/runs/performance", precision="int8")]},
            "int8 needs its calibration described",
        ),
        ({"performance": [made("/runs/performance", size="small")]}, "the small model"),
        ({"performance": [made("/runs/performance", weights=None)]}, "random weights"),
        (
            {"accuracy": [made("/runs/accuracy", accuracy=True, told=FIDELITY)]},
            "judged by fidelity, not by accuracy",
        ),
        (
            {"accuracy": [made("/runs/accuracy", accuracy=True, precision="fp32")]},
            "the performance run had precision fp16, the accuracy run fp32",
        ),
        ({"audits": {"TEST01": answer("TEST01")}}, "no TEST04 was named"),
        ({"audits": {"TEST01": answer("TEST01", verdict="FAIL"), "TEST04": answer("TEST04")}}, "TEST01 in"),
        (
            {"audits": {"TEST01": answer("TEST01", round="v4.1"), "TEST04": answer("TEST04")}},
            "is of round v4.1",
        ),
        (
            {
                "audits": {
                    "TEST01": answer("TEST01", runs={"performance": "/else"}),
                    "TEST04": answer("TEST04"),
                }
            },
            "was held against another performance run, /else; make it against the one that is submitted: `hetero-mig "
            "audit TEST01 --main resnet50 --main-scenario Offline --round v6.1 --performance-run /runs/performance "
            "--accuracy-run /runs/accuracy`",
        ),
        (
            {
                "audits": {
                    "TEST01": answer(
                        "TEST01", runs={"performance": "/runs/performance", "accuracy": "/else"}
                    ),
                    "TEST04": answer("TEST04"),
                }
            },
            "TEST01 in /audits/TEST01 was held against another accuracy run, /else",
        ),
        ({"workload": "suts.Honest"}, "suts.Honest Offline: a model of your own"),
        ({"workload": "rnnt"}, "rnnt Offline: round v6.1 has no such benchmark at 99 %"),
    ],
)
def test_each_reason_is_told(changed: dict[str, Any], why: str):
    reasons = [one.why for one in refusals(benchmark(**changed), V6, "closed")]
    assert any(why in reason for reason in reasons), reasons


def test_only_model_and_weights_do_not_matter_in_a_rehearsal():
    runs = [made("/runs/performance", size="small", weights=None, preset="quick")]
    told = {
        one.why.partition(": ")[2]: one.by_what_it_is
        for one in refusals(benchmark(performance=runs), V6, "open")
    }
    assert told.pop("preset quick, not mlperf: too short, and of too few samples") is False
    assert {why for why, of_model in told.items() if of_model} >= {"the small model", "random weights"}


def test_a_background_is_submittable_where_the_round_had_heteromig():
    company = [made("/runs/performance", background=MANIFEST.background, spec={"round": "v2.0"})]
    told = [one.why for one in refusals(benchmark(performance=company), V2, "open")]
    assert not any("HeteroMIG" in why for why in told)


# ---------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    ("workload", "figure", "metric"),
    [
        ("resnet50", QualityFigure(metric="top-1", value=76.014, unit="%", samples=50_000), "top-1"),
        (
            "bert",
            QualityFigure(metric="F1", value=90.87, unit="%", samples=10_833, details={"exact_match": 83.5}),
            "F1",
        ),
        ("dlrm", QualityFigure(metric="AUC", value=80.25, unit="%", samples=330_067), "AUC"),
        ("3d-unet", QualityFigure(metric="DICE", value=0.8617, unit="", samples=43), "mean DICE"),
        ("rnnt", QualityFigure(metric="1-WER", value=92.5, unit="%", samples=2513), "100 − WER"),
        ("ssd-resnet34", QualityFigure(metric="mAP", value=20.0, unit="%", samples=5000), "mAP"),
    ],
)
def test_the_accuracy_line_is_one_that_the_checker_finds(workload: str, figure: QualityFigure, metric: str):
    found = re.match(ACCURACY_PATTERNS[metric], submission_text.accuracy_line(workload, figure))
    assert found is not None
    assert float(found[1]) == pytest.approx(figure.value)


def test_a_fidelity_is_never_an_accuracy():
    line = submission_text.fidelity_line(TOP_1)
    assert "fidelity" in line
    assert not any(re.match(pattern, line) for pattern in ACCURACY_PATTERNS.values())
    assert submission_text.fidelity_line(None) == "no accuracy"


def test_user_conf_tells_the_rate_as_loadgen_takes_it():
    effective = {"single_stream_expected_latency_ns": 2_500_000, "server_target_qps": 120.5}
    assert submission_text.user_conf("bert", Scenario.SINGLE_STREAM, effective) == (
        "bert.SingleStream.target_latency = 2.5\n"
    )
    assert submission_text.user_conf("*", Scenario.SERVER, effective) == "*.Server.target_qps = 120.5\n"


def test_of_the_machine_only_what_is_known_is_said():
    manifest = MANIFEST.model_copy(
        update={
            "host": {
                "cpu_model": "CPU",
                "cores_online": "0-3,8",
                "memory_mib": 4096,
                "versions": {"torch": "2"},
            }
        }
    )
    told = submission_text.system_of("closed", "ORG", "SYS", manifest, "edge")
    assert (told["host_processor_core_count"], told["host_memory_capacity"]) == (5, "4 GiB")
    assert (told["accelerators_per_node"], told["cooling"], told["host_storage_type"]) == (0, "", "")


def test_every_entry_of_an_accuracy_log_is_read_samples_answered_twice_too(tmp_path: Path):
    lines = [
        f'{{ "seq_id" : {n}, "qsl_idx" : {index}, "data" : "{data}" }}'
        for n, (index, data) in enumerate([(4, "0A"), (2, "0B"), (4, "0C")])
    ]
    (tmp_path / "log.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
    found = AccuracyLog(tmp_path / "log.json")
    assert list(found.every()) == [(4, b"\x0a"), (2, b"\x0b"), (4, b"\x0c")]
    assert found[4] == b"\x0a"


def test_a_folder_of_another_question_is_no_part_of_a_submission(tmp_path: Path):
    (tmp_path / "series.json").write_text("{}")
    (tmp_path / "result.json").write_text('{"kind": "derate"}')
    with pytest.raises(submission.FolderDamaged, match="derate"):
        submission.gathered([tmp_path])


def test_a_run_that_is_named_is_the_one_submitted_and_else_those_of_the_audits(tmp_path: Path):
    for name in ("one", "01/runs/performance", "04/runs/performance"):
        RunFolder.create(tmp_path / name).write_manifest(MANIFEST.model_dump(mode="json"))

    for test in ("01", "04"):
        audit = RunFolder(tmp_path / test)
        audit.write_json("series.json", {})
        told = {"test": f"TEST{test}", "verdict": "PASS", "round": "v6.1"}
        audit.write_result({"kind": "audit", "runs": {"performance": "runs/performance"}, **told})
        (audit.path / "mlperf" / "compliance").mkdir(parents=True)

    audits = [tmp_path / "01", tmp_path / "04"]
    [of_audits] = submission.gathered(audits)
    assert len(of_audits.performance) == 2
    [named] = submission.gathered([*audits, tmp_path / "one"])
    assert [one.folder.path for one in named.performance] == [tmp_path / "one"]
    assert set(named.audits) == {"TEST01", "TEST04"}
