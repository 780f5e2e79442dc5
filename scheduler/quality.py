"""Whether the answers of an accuracy run are good enough: recorded figures and terms in, a judgement out.

MLPerf's target holds for what it was made for alone: the full model, with weights, on a data set of the size
that MLPerf's has. Any other run is judged by fidelity, by the same part of 100 %.
"""

from collections.abc import Iterable

from scheduler.result import AccuracyResult, BenchmarkRecord, Finding, QualityRecord
from scheduler.spec import AccuracyTerms
from workloads.catalog import has_random_weights


def judged(planned: BenchmarkRecord, terms: AccuracyTerms, found: QualityRecord) -> AccuracyResult:
    """The figure that counts, against its target; the other one stands beside it."""
    why = why_fidelity(planned, terms, found)
    if why or found.accuracy is None:
        target = 100 * terms.target
        return AccuracyResult(
            kind="fidelity",
            **found.fidelity.model_dump(),
            target=target,
            reached=found.fidelity.value >= target,
            why_fidelity=why,
            beside=found.accuracy,
        )

    target = terms.target * terms.mlperf_reference[found.accuracy.samples]
    return AccuracyResult(
        kind="accuracy",
        **found.accuracy.model_dump(),
        target=target,
        reached=found.accuracy.value >= target,
        beside=found.fidelity,
    )


def why_fidelity(planned: BenchmarkRecord, terms: AccuracyTerms, found: QualityRecord) -> str:
    """Why MLPerf's target does not apply; empty where it does."""
    sizes = terms.mlperf_reference
    if not sizes:
        return "no benchmark of the MLPerf round"

    scored = 0 if found.accuracy is None else found.accuracy.samples
    reasons = {
        "the small model": planned.size == "small",
        "random weights": has_random_weights(planned.workload, planned.weights),
        "inputs without labels": found.accuracy is None,
        f"{scored} labelled samples, where MLPerf's data set has {' or '.join(map(str, sizes))}": (
            found.accuracy is not None and scored not in sizes
        ),
    }
    return "; ".join(reason for reason, holds in reasons.items() if holds)


def findings(
    planned: BenchmarkRecord, terms: AccuracyTerms, found: QualityRecord | None, problem: str
) -> Iterable[Finding]:
    """What is to be said of the answers of a main benchmark that finished.

    Args:
        problem: why there is no ``found``.
    """
    if found is None:
        yield Finding(
            code="no-accuracy-result",
            severity="breach",
            message=f"{planned.name}: its answers were not judged: {problem}",
            recommendation="look into its stderr.log in the run folder; if files were changed, run again",
        )
        return

    told = judged(planned, terms, found)
    unit = f" {told.unit}" if told.unit else ""
    least = f"{told.target:.6g}{unit}"
    if told.kind == "accuracy":
        least += f", {100 * terms.target:g} % of MLPerf's reference"

    if not told.reached:
        yield Finding(
            code="accuracy-below-target",
            severity="breach",
            message=f"{planned.name}: {told.kind} ({told.metric} of {told.samples} samples) is {told.value:.6g}{unit}; "
            f"it must be {least}",
            figure=told.value,
            limit=told.target,
            recommendation=_advice(planned, told),
        )

    if told.kind == "fidelity" and told.samples > 1 and told.details.get("reference_labels") == 1:
        yield Finding(
            code="answers-alike",
            severity="warning",
            message=f"{planned.name}: the reference gives all {told.samples} samples the same label: agreement with "
            "it tells little",
            recommendation="see whether --weights are trained ones, and try more or other --data",
        )

    if told.kind == "fidelity":
        yield Finding(
            code="judged-by-fidelity",
            severity="info",
            message=f"judged by fidelity to the same weights in fp32, not by MLPerf's accuracy: {told.why_fidelity}",
            recommendation="--size full with MLPerf's --weights and the whole of its --data is judged by accuracy"
            if terms.mlperf_reference
            else "",
        )


def _advice(planned: BenchmarkRecord, told: AccuracyResult) -> str:
    if told.kind == "accuracy":
        return "see whether --weights and --data belong together, and try a wider --precision"

    if planned.precision == "fp32":
        return "predict and reference compute different things: the workload is at fault"

    random = " (random weights decide by narrow margins: trained --weights lose less)"
    why = random if has_random_weights(planned.workload, planned.weights) else ""
    return f"try a wider --precision than {planned.precision}{why}"
