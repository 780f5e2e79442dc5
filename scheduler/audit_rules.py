"""MLPerf's compliance tests: what LoadGen is told in each, and whether what it logged passes. Pure.

Judged as MLPerf's scripts do (mlcommons/inference, compliance/TEST01, TEST04, TEST05: run_verification.py,
verify_accuracy.py, verify_performance.py; of round v2.0 compliance/nvidia/TEST04-A), and beyond them:

- TEST01 compares every element of every logged answer, where verify_accuracy.py compares the first alone, and
  every answer to the accuracy run's, where it compares a later one to an earlier one of the same test.
- TEST04 says by how much a test was too fast also where LoadGen calls the test INVALID for ending early, as the
  test of a SUT that keeps its answers does.
- Every run's verdict counts, so in company the background's too.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isnan

from scheduler.loadgen_log import LoadgenResult
from scheduler.result import Result
from scheduler.spec import AuditTest, LoadgenRound
from workloads.protocol import LoadgenSettings, Precision, Scenario

PERFORMANCE, ACCURACY = "performance", "accuracy"
"""Keys of the runs that a test is held against; a test's own are called as MLPerf calls it."""
ACCURACY_LOG_RNG_SEED = 720381539243781796
"""Of every TEST01/<model>/audit.config."""
SAME_INDEX = 3
"""Of TEST04's audit.config: which of the loaded samples is issued again and again."""

THRESHOLDS: Mapping[AuditTest, float] = {"TEST01": 0.10, "TEST04": 0.10, "TEST05": 0.05}
"""How far the test's score may be from the reference's: either way, upwards, downwards."""
SHORT_LATENCY_MS = {Scenario.SINGLE_STREAM: 0.2, Scenario.MULTI_STREAM: 1.6}
SHORT_LATENCY_THRESHOLD = 0.20
"""In place of these where a stream's reference latency is no longer than that."""

TOLERANCE: Mapping[Precision, float] = {"fp32": 2**-13, "tf32": 2**-7, "fp16": 2**-7}
COARSE_TOLERANCE = 2**-4
"""Of an answer's largest element, how far its floating-point elements may be off: batches of other sizes are summed
in another order. This project's: 16 units in the last place of tf32, fp16 and bf16 (the last for all that is
coarser, too), and in fp32 a thousand. Integers (labels, tokens) must be the same."""

_FLOATS = {"float16": "e", "float32": "f", "float64": "d"}
_INTEGER_BYTES = {f"{sign}int{8 * size}": size for sign in ("", "u") for size in (1, 2, 4, 8)}
_OFFICIAL = {"int64": "q", "int32": "i", "float32": "f"}
"""What verify_accuracy.py knows beside bytes."""
_ENDED_EARLY = "the minimum duration was not met"


# ---------------------------------------------------------------------- what LoadGen is told


def steps(test: AuditTest, round_: LoadgenRound) -> tuple[str, ...]:
    """The runs of an audit, by key, in their order."""
    if test == "TEST01":
        return (PERFORMANCE, ACCURACY, test)

    if test == "TEST04" and _two_parts(round_):
        return (PERFORMANCE, "TEST04-A", "TEST04-B")

    return (PERFORMANCE, test)


def reference_of(key: str) -> str:
    """The run whose score a test's score is held against."""
    return "TEST04-A" if key == "TEST04-B" else PERFORMANCE


def _two_parts(round_: LoadgenRound) -> bool:
    """Up to v2.0 TEST04 is two tests, held against each other."""
    return round_.round == "v2.0"


def settings_of(key: str, settings: LoadgenSettings, round_: LoadgenRound, workload: str) -> LoadgenSettings:
    """The settings of one test of an audit, made from those of the performance run."""
    if key == "TEST01":
        return replace(
            settings,
            accuracy_log_rng_seed=ACCURACY_LOG_RNG_SEED,
            accuracy_log_sampling_target=round_.of(workload).test01_samples,
        )

    if key == "TEST04-A":
        return replace(settings, performance_issue_unique=True)

    if key in ("TEST04", "TEST04-B"):
        index = min(SAME_INDEX, settings.performance_sample_count - 1)
        return replace(settings, performance_issue_same=True, performance_issue_same_index=index)

    seeds = round_.test05
    if key != "TEST05" or seeds is None:
        raise ValueError(f"round {round_.round} has no test {key}")

    if seeds.by == "seeds":
        return replace(
            settings,
            qsl_rng_seed=seeds.qsl_rng_seed,
            sample_index_rng_seed=seeds.sample_index_rng_seed,
            schedule_rng_seed=seeds.schedule_rng_seed,
        )

    return replace(
        settings,
        test05=True,
        test05_qsl_rng_seed=seeds.qsl_rng_seed,
        test05_sample_index_rng_seed=seeds.sample_index_rng_seed,
        test05_schedule_rng_seed=seeds.schedule_rng_seed,
    )


def audit_config(key: str, round_: LoadgenRound, workload: str) -> str:
    """What the round's ``audit.config`` says, for the record: LoadGen is told the same through its settings."""
    values: dict[str, int] = {"mode": 2}
    if key == "TEST01":
        values |= {
            "accuracy_log_rng_seed": ACCURACY_LOG_RNG_SEED,
            "accuracy_log_sampling_target": round_.of(workload).test01_samples,
        }
    elif key == "TEST04-A":
        values |= {"performance_issue_unique": 1}
    elif key in ("TEST04", "TEST04-B"):
        values |= {
            "performance_issue_unique": 0,
            "performance_issue_same": 1,
            "performance_issue_same_index": SAME_INDEX,
        }
    elif round_.test05 is not None:
        seeds = round_.test05.model_dump(exclude={"by"})
        values |= seeds if round_.test05.by == "seeds" else {"test05": 1}

    return "".join(f"*.*.{name} = {value}\n" for name, value in values.items())


# ---------------------------------------------------------------------- what is held against what


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    what: str
    passed: bool
    decides: bool = True
    """False: told beside the others, and not part of the verdict."""
    message: str
    figure: float | None = None
    limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One run of an audit, or one held against it."""

    result: Result
    log: LoadgenResult | None
    """None: LoadGen left no result."""


@dataclass(slots=True, kw_only=True)
class Comparison:
    """TEST01's logged answers beside the accuracy run's."""

    dtype: str
    reference_samples: int
    entries: int = 0
    """Answers logged by the test; a sample may be among them several times."""
    matched: int = 0
    """Of them, to samples that the accuracy run answered too."""
    missing: int = 0
    first_differs: int = 0
    """Of those matched, by verify_accuracy.py's measure."""
    differs: int = 0
    """By this project's."""
    examples: list[str] = field(default_factory=list)
    """Of what differs, the first few."""


def compare(
    reference: Mapping[int, bytes], entries: Iterable[tuple[int, bytes]], dtype: str, precision: Precision
) -> Comparison:
    """Hold the answers that a performance test logged against the accuracy run's.

    Args:
        reference: answers by sample index.
        entries: sample index and answer, as often as they were logged.
        dtype: numpy's word for what an answer's bytes are.
        precision: that the answers were computed in.
    """
    found = Comparison(dtype=dtype, reference_samples=len(reference))
    for index, answer in entries:
        found.entries += 1
        if index not in reference:
            found.missing += 1
            continue

        found.matched += 1
        expected = reference[index]
        found.first_differs += not _same_first(expected, answer, dtype)
        difference = _difference(expected, answer, dtype, TOLERANCE.get(precision, COARSE_TOLERANCE))
        if difference:
            found.differs += 1
            if len(found.examples) < 3:
                found.examples.append(f"sample {index}: {difference}")

    return found


def _same_first(expected: bytes, answer: bytes, dtype: str) -> bool:
    form = _OFFICIAL.get(dtype, "b")
    size = struct.calcsize("<" + form)
    if len(expected) < size or len(answer) < size:
        return len(expected) == len(answer)

    return bool(struct.unpack_from("<" + form, expected)[0] == struct.unpack_from("<" + form, answer)[0])


def _difference(expected: bytes, answer: bytes, dtype: str, tolerance: float) -> str:
    """Where two answers differ; empty where they do not."""
    if expected == answer:
        return ""

    if len(expected) != len(answer):
        return f"{len(answer)} bytes where the accuracy run has {len(expected)}"

    form = _FLOATS.get(dtype)
    if form is None:
        size = _INTEGER_BYTES.get(dtype, 1)
        byte = next(at for at, pair in enumerate(zip(expected, answer, strict=True)) if pair[0] != pair[1])
        return f"element {byte // size} of {len(answer) // size} differs"

    count = len(expected) // struct.calcsize(form)
    wanted, given = (struct.unpack(f"<{count}{form}", each) for each in (expected, answer))
    largest = max((abs(one) for one in wanted if abs(one) != float("inf") and not isnan(one)), default=0.0)
    for place, (one, other) in enumerate(zip(wanted, given, strict=True)):
        both_nan = isnan(one) and isnan(other)
        if not (one == other or both_nan or abs(one - other) <= tolerance * largest):
            return f"element {place} of {count} is {other:.7g} where the accuracy run has {one:.7g}"

    return ""


# ---------------------------------------------------------------------- the judgement


def checks(
    test: AuditTest, round_: LoadgenRound, ran: Mapping[str, Ran], comparison: Comparison | None
) -> list[Check]:
    """Everything that an audit looks at.

    Args:
        ran: by key, one for each of ``steps``; without the last of them there is no more to judge than what ran.
        comparison: of TEST01.
    """
    keys = steps(test, round_)
    if keys[-1] not in ran:
        return [_valid(key, one) for key, one in ran.items() if key != ACCURACY]

    found = [_performance(test, keys[-1], ran[reference_of(keys[-1])], ran[keys[-1]])]
    if comparison is not None:
        found += [*_answers(comparison, ran[ACCURACY])]

    timed = [key for key in keys if key != ACCURACY]
    found += [_valid(key, ran[key]) for key in timed]
    return [*found, *(check for key in timed for check in _conditions(key, ran[key]))]


def passed(found: Sequence[Check]) -> bool:
    """Whether the audit is passed."""
    return all(check.passed for check in found if check.decides)


def _valid(key: str, ran: Ran) -> Check:
    reasons = [finding.message for finding in ran.result.findings if finding.severity == "breach"]
    # TEST04-A issues each loaded sample once: a fast SUT is through before the minimum duration, which MLPerf's
    # script of the round lets pass.
    may_end_early = key.startswith("TEST04-") and ran.log is not None and not ran.log.num_errors
    if may_end_early and ran.log is not None and _ENDED_EARLY in ran.log.invalid_reasons:
        reasons = [
            finding.message
            for finding in ran.result.findings
            if finding.severity == "breach" and finding.code != "loadgen-invalid"
        ]

    return Check(
        what=f"{key} run",
        passed=not reasons,
        message="; ".join(reasons) or "VALID",
    )


def _conditions(key: str, ran: Ran) -> Iterator[Check]:
    """What was not as it should be around a run: it may be why two scores differ."""
    warnings = [finding.message for finding in ran.result.findings if finding.severity == "warning"]
    if warnings:
        yield Check(
            what=f"conditions of the {key} run", passed=False, decides=False, message="; ".join(warnings)
        )


def _answers(comparison: Comparison, accuracy: Ran) -> Iterator[Check]:
    came_to_end = accuracy.result.main.loadgen_valid
    yield Check(
        what=f"{ACCURACY} run",
        passed=came_to_end,
        message="each sample was answered once" if came_to_end else "it did not come to its end",
    )
    same = comparison.matched and not comparison.missing and not comparison.differs
    words = f"{comparison.entries} answers logged ({comparison.dtype or 'bytes'})"
    if same:
        words += ", every element as in the accuracy run"
    else:
        words += f": {comparison.differs} differ from the accuracy run's, {comparison.missing} are of samples it lacks"
        words += "".join(f"; {example}" for example in comparison.examples)

    yield Check(
        what="every element of every answer",
        passed=bool(same),
        message=words,
        figure=comparison.differs,
        limit=0,
    )
    official = official_accuracy(comparison)
    words = f"{comparison.first_differs} of {comparison.matched} differ"
    if same and not official:
        words += (
            "; verify_accuracy.py fails: it asks for equal floating-point numbers. MLPerf then looks at the "
        )
        words += "accuracy of what was logged (baseline_accuracy.txt), which is not made here"

    yield Check(
        what="MLPerf's own: first elements",
        passed=official,
        decides=False,
        message=words,
        figure=comparison.first_differs,
        limit=0,
    )


def official_accuracy(comparison: Comparison) -> bool:
    """What verify_accuracy.py finds."""
    return comparison.matched > 0 and not comparison.first_differs


def _performance(test: AuditTest, key: str, reference: Ran, tested: Ran) -> Check:
    first, second = _score(reference), _score(tested)
    what = f"performance of {key}"
    if first is None or second is None:
        lacking = reference_of(key) if first is None else key
        return Check(what=what, passed=False, message=f"LoadGen left no score of the {lacking} run")

    problem = _not_alike(reference, tested)
    if problem:
        return Check(what=what, passed=False, message=problem)

    ratio = second.value / first.value
    speed, allowed = ratio if first.rises else 1 / ratio, threshold(test, first)
    words = f"{second.value:.6g} {second.unit}, that of the {reference_of(key)} run {first.value:.6g}: "
    words += f"{speed:.3f} times as fast"
    if test == "TEST04":
        good, limit = speed < 1 + allowed, 1 + allowed
        why = "one sample again and again is answered faster than many, as if answers were kept"
    elif test == "TEST05":
        limit = 1 - allowed if first.rises else 1 / (1 + allowed)
        good, why = speed > limit, "it is slower with other seeds than with the round's"
    else:
        good, limit = 1 - allowed <= ratio <= 1 + allowed, 1 + allowed
        why = f"MLPerf allows ±{100 * allowed:g} %"

    words += "" if good else f"; {why}"
    return Check(what=what, passed=good, message=words, figure=round(speed, 6), limit=round(limit, 6))


@dataclass(frozen=True, slots=True)
class Score:
    """LoadGen's score of one test."""

    value: float
    unit: str
    scenario: Scenario
    raw: float
    """As LoadGen logs it: latencies in ns."""

    @property
    def rises(self) -> bool:
        """Whether more is better."""
        return self.unit == "samples/s"


def _score(ran: Ran) -> Score | None:
    log = ran.log
    if log is None or log.metric is None:
        return None

    return Score(log.metric.value, log.metric.unit, log.scenario, log.figures[log.metric.name])


def threshold(test: AuditTest, reference: Score) -> float:
    """How far the test's score may be from the reference's, as a part of it."""
    if not reference.rises and reference.value <= SHORT_LATENCY_MS.get(reference.scenario, 0.0):
        return SHORT_LATENCY_THRESHOLD

    return THRESHOLDS[test]


def _not_alike(reference: Ran, tested: Ran) -> str:
    first, second = reference.log, tested.log
    if first is None or second is None or first.scenario is not second.scenario:
        return "test and reference are of different scenarios"

    key = "target_latency_ns"
    if first.scenario is Scenario.SERVER and first.settings.get(key) != second.settings.get(key):
        return "test and reference have different Server latency limits"

    return ""


# ---------------------------------------------------------------------- as MLPerf's scripts tell it


def verify_accuracy(comparison: Comparison) -> str:
    """``verify_accuracy.txt``, by verify_accuracy.py's measure and in its words."""
    told = {
        "num_acc_log_entries": comparison.reference_samples,
        "num_acc_log_duplicate_keys": 0,
        "num_acc_log_data_mismatch": 0,
        "num_perf_log_entries": comparison.entries,
        "num_perf_log_qsl_idx_match": comparison.matched,
        "num_perf_log_data_mismatch": comparison.first_differs,
        "num_missing_qsl_idxs": comparison.missing,
    }
    lines = ["Verifying accuracy. This might take a while..."]
    lines += ["Reading accuracy mode results...", "Reading performance mode results..."]
    lines += [f"{name} = {value}" for name, value in told.items()]
    return "\n".join([*lines, "TEST PASS" if official_accuracy(comparison) else "TEST FAIL", ""]) + "\n"


def verify_performance(test: AuditTest, key: str, reference: Ran, tested: Ran) -> str:
    """``verify_performance.txt``, in verify_performance.py's words."""
    lines = ["Verifying performance."]
    two_parts = key == "TEST04-B"
    for ran, which in ((reference, "Reference"), (tested, "Test")):
        if not two_parts and (ran.log is None or not ran.log.valid):
            return "\n".join([*lines, f"TEST FAIL: {which} results are invalid"]) + "\n"

    first, second = _score(reference), _score(tested)
    if first is None or second is None:
        return "\n".join([*lines, "TEST FAIL: Test score invalid"]) + "\n"

    names = ("TEST04-A score", "TEST04-B score") if two_parts else ("reference score", "test score")
    lines += [f"{name} = {score.raw}" for name, score in zip(names, (first, second), strict=True)]
    good = _performance(test, key, reference, tested).passed
    return "\n".join([*lines, "TEST PASS" if good else "TEST FAIL: Test score invalid"]) + "\n"
