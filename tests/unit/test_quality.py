"""By what an accuracy run is judged, from the terms of the plan to the verdict."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scheduler import quality
from scheduler.assignment import Plan, assign
from scheduler.errors import SpecError
from scheduler.loadgen_log import parse
from scheduler.result import BenchmarkRecord, FidelityFigure, QualityFigure, QualityRecord, Result
from scheduler.selection import slices_on
from scheduler.slices import Machine
from scheduler.spec import AccuracyTerms, loadgen_round, parse_run, presets
from scheduler.verdict import Evidence, judge
from tests.unit.test_verdict import EVIDENCE, GOLDEN, MANIFEST, STORY, WORK, codes
from workloads import catalog

LOG = parse((GOLDEN / "accuracy.txt").read_text().splitlines())
TERMS = AccuracyTerms(
    target=0.99, fidelity_samples=64, mlperf_metric="top-1 %", mlperf_reference={50_000: 76.46}
)
FULL = MANIFEST.main.model_copy(
    update={"workload": "resnet50", "size": "full", "weights": "resnet50.pth", "precision": "fp16"}
)
FIDELITY = FidelityFigure(metric="top-1 agreement", value=99.5, samples=64)


def top1(value: float, samples: int = 50_000) -> QualityFigure:
    return QualityFigure(metric="top-1", value=value, unit="%", samples=samples)


def record(accuracy: QualityFigure | None = None, fidelity: FidelityFigure = FIDELITY) -> QualityRecord:
    return QualityRecord(
        accuracy=accuracy, fidelity=fidelity, library=50_000, answered=50_000, answers_sha256="0"
    )


def plan(**asked: Any) -> Plan:
    slices = slices_on(Machine(cores=(0, 1), memory_mib=4096), "cpu:1", 1)
    return assign(parse_run({"main_mode": "accuracy", **asked}), slices, presets(), loadgen_round())


def verdict(
    found: QualityRecord | None, problem: str = "", planned: BenchmarkRecord = FULL, **changed: Any
) -> Result:
    manifest = MANIFEST.model_copy(update={"main": planned, "accuracy": TERMS, **changed})
    main = Evidence(log=LOG, tests=1, quality=found, quality_problem=problem)
    return judge(manifest, STORY, {**EVIDENCE, "main": main})


# ---------------------------------------------------------------------- the plan


@pytest.mark.parametrize(
    ("asked", "target"),
    [
        ({"main": "resnet50"}, 0.99),
        ({"main": "bert"}, 0.99),
        ({"main": "dlrm"}, 0.999),
        ({"main": "3d-unet"}, 0.999),
        ({"main": "3d-unet", "accuracy_target": "99"}, 0.99),
        ({"main": "bert", "accuracy_target": "99.9"}, 0.999),
    ],
)
def test_the_target_is_heteromigs_or_what_is_asked(asked: dict[str, Any], target: float):
    terms = plan(**asked).accuracy
    assert terms is not None
    assert terms.target == target


@pytest.mark.parametrize(
    ("asked", "issued", "compared"),
    [
        ({"main": "resnet50"}, 64, 64),
        ({"main": "3d-unet"}, 4, 4),
        ({"main": "resnet50", "fidelity_samples": 3}, 3, 3),
        ({"main": "resnet50", "preset": "mlperf"}, None, 1024),
        ({"main": "resnet50", "preset": "mlperf", "fidelity_samples": 3}, None, 3),
    ],
)
def test_how_many_samples(asked: dict[str, Any], issued: int | None, compared: int):
    decided = plan(**asked)
    assert decided.accuracy is not None
    assert decided.accuracy.fidelity_samples == compared
    assert decided.main.settings.mode == "AccuracyOnly"
    assert decided.main.settings.accuracy_sample_count == issued


def test_mlperfs_references_go_by_the_size_of_the_data_set():
    references = {name: plan(main=name).accuracy for name in ("resnet50", "3d-unet", "ssd-resnet34", "null")}
    assert {name: terms and terms.mlperf_reference for name, terms in references.items()} == {
        "resnet50": {50_000: 76.46},
        "3d-unet": {42: 0.86331, 43: 0.8617},
        "ssd-resnet34": {4952: 20.0},
        "null": {},
    }


def test_a_performance_run_has_no_terms_and_takes_no_accuracy_options():
    decided = plan(main="resnet50", main_mode="performance")
    assert decided.accuracy is None
    assert decided.main.settings.mode == "PerformanceOnly"
    for option in ({"accuracy_target": "99"}, {"fidelity_samples": 5}):
        with pytest.raises(SpecError, match="for --main-mode accuracy"):
            plan(main="resnet50", main_mode="performance", **option)


def test_an_accuracy_run_has_no_duration():
    with pytest.raises(SpecError, match="leave --main-duration out"):
        plan(main="resnet50", main_duration="10s")


def test_what_trains_has_no_answers_to_judge():
    with pytest.raises(SpecError, match="its answers are losses"):
        plan(main="resnet50:train")


def test_why_it_is_not_comparable_is_said_beforehand():
    assert (
        "not comparable to MLPerf: the small model; random weights; synthetic inputs, which have no labels"
        in (plan(main="resnet50").notes)
    )


@pytest.mark.parametrize(
    ("workload", "weights", "random"),
    [
        ("resnet50", None, True),
        ("resnet50", "resnet50.pth", False),
        ("llama", None, True),
        ("null", None, False),
        ("hf-tiny", None, False),
        ("my_workload.MyWorkload", None, False),
    ],
)
def test_weights_are_called_random_only_where_that_is_known(workload: str, weights: str | None, random: bool):
    assert catalog.has_random_weights(workload, weights) == random
    low = record(fidelity=FIDELITY.model_copy(update={"value": 90.0}))
    planned = FULL.model_copy(update={"workload": workload, "weights": weights})
    findings = quality.findings(planned, TERMS, low, "")
    assert any("random weights" in f"{one.message} {one.recommendation}" for one in findings) == random


def test_an_own_models_plan_says_nothing_of_its_weights(tmp_path: Path):
    config = {"architectures": ["BertForMaskedLM"], "model_type": "bert", "vocab_size": 99}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert any("random weights" in note for note in plan(main="resnet50").notes)
    assert not any("random weights" in note for note in plan(main=f"hf:{tmp_path}").notes)


# ---------------------------------------------------------------------- which figure counts


def test_with_all_that_mlperf_has_accuracy_counts():
    told = quality.judged(FULL, TERMS, record(top1(75.7)))
    assert (told.kind, told.metric, told.value, told.reached) == ("accuracy", "top-1", 75.7, True)
    assert told.target == pytest.approx(75.6954)
    assert told.why_fidelity == ""
    assert told.beside == FIDELITY


@pytest.mark.parametrize(
    ("planned", "terms", "accuracy", "why"),
    [
        ({"size": "small"}, {}, top1(76), "the small model"),
        ({"weights": None}, {}, top1(76), "random weights"),
        ({}, {}, None, "inputs without labels"),
        ({}, {}, top1(76, 500), "500 labelled samples, where MLPerf's data set has 50000"),
        ({}, {"mlperf_reference": {}}, top1(76), "no benchmark of the MLPerf round"),
    ],
)
def test_anything_less_is_judged_by_fidelity(
    planned: dict[str, Any], terms: dict[str, Any], accuracy: QualityFigure | None, why: str
):
    told = quality.judged(FULL.model_copy(update=planned), TERMS.model_copy(update=terms), record(accuracy))
    assert (told.kind, told.value, told.target, told.reached) == ("fidelity", 99.5, 99.0, True)
    assert told.why_fidelity == why
    assert told.beside == accuracy


# ---------------------------------------------------------------------- the verdict


def test_answers_that_are_good_enough_are_valid_and_told():
    result = verdict(record(top1(76.0)))
    assert (result.verdict, result.findings) == ("VALID", [])
    assert result.comparable_to_mlperf
    assert result.main.mode == "AccuracyOnly"
    assert result.main.metric is None
    assert result.main.accuracy is not None
    assert result.main.accuracy.kind == "accuracy"


def test_accuracy_below_mlperfs_target_is_invalid():
    result = verdict(record(top1(75.69)))
    assert result.verdict == "INVALID"
    assert codes(result) == ["accuracy-below-target"]
    assert (result.findings[0].figure, result.findings[0].limit) == (75.69, pytest.approx(75.6954))
    assert "must be 75.6954 %, 99 % of MLPerf's reference" in result.findings[0].message


def test_fidelity_below_the_target_is_invalid_and_never_called_accuracy():
    low = FIDELITY.model_copy(update={"value": 98.9})
    result = verdict(record(fidelity=low), planned=FULL.model_copy(update={"weights": None}))
    assert result.verdict == "INVALID"
    assert codes(result) == ["accuracy-below-target", "judged-by-fidelity"]
    assert "fidelity (top-1 agreement of 64 samples) is 98.9 %; it must be 99 %" in result.findings[0].message
    assert "random weights decide by narrow margins" in result.findings[0].recommendation
    assert not result.comparable_to_mlperf


@pytest.mark.parametrize(
    ("samples", "labels", "warned"), [(64, 1.0, True), (64, 2.0, False), (1, 1.0, False)]
)
def test_agreement_with_one_label_for_all_is_warned_of(samples: int, labels: float, warned: bool):
    alike = FidelityFigure(
        metric="top-1 agreement", value=100.0, samples=samples, details={"reference_labels": labels}
    )
    result = verdict(record(fidelity=alike), planned=FULL.model_copy(update={"weights": None}))
    assert result.verdict == "VALID"
    assert codes(result) == (["answers-alike"] if warned else []) + ["judged-by-fidelity"]


def test_at_exactly_the_target_it_is_reached():
    assert verdict(record(fidelity=FIDELITY.model_copy(update={"value": 99.0}))).verdict == "VALID"


def test_not_a_number_reaches_nothing():
    assert verdict(record(top1(float("nan")))).verdict == "INVALID"


def test_without_figures_there_is_no_verdict_of_valid():
    result = verdict(None, "quality.json: No such file")
    assert codes(result) == ["no-accuracy-result"]
    assert "No such file" in result.findings[0].message
    assert result.main.accuracy is None


@pytest.mark.parametrize(("idle_s", "found"), [(0.0, []), (0.5, ["no-samples-in-window"])])
def test_a_short_run_has_company_where_a_batch_was_in_hand_throughout(idle_s: float, found: list[str]):
    manifest = MANIFEST.model_copy(update={"main": FULL, "accuracy": TERMS})
    work = replace(WORK, samples=0, longest_idle_s=idle_s, longest_gap_s=0.01)
    evidence = {
        "main": Evidence(log=LOG, tests=1, quality=record(top1(76.0))),
        "back": replace(EVIDENCE["back"], in_main_window=work),
    }
    assert codes(judge(manifest, STORY, evidence)) == found


def test_what_the_worker_writes_is_what_the_launcher_reads(tmp_path: Path):
    from dataclasses import asdict

    from workloads.fidelity import Fidelity
    from workloads.labelled import Score
    from workloads.quality import Quality

    written = Quality(
        accuracy=Score(metric="top-1", value=50.0, unit="%", samples=2, details={"good": 1.0}),
        fidelity=Fidelity(metric="top-1 agreement", value=100.0, samples=2),
        library=2,
        answered=2,
        answers_sha256="0",
    )
    both = (written, replace(written, accuracy=None))
    for one in both:
        assert QualityRecord.model_validate(json.loads(json.dumps(asdict(one)))).library == 2
