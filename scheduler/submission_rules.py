"""What a submission to an MLPerf round must hold: its checker's rules, stated anew. Pure.

From tools/submission/submission-checker.py of mlcommons/inference at rounds v2.0 and v4.1, and from the package
submission_checker that took its place (structure_check, performance_check, accuracy_check, compliance_check,
system_check, measurements_checks), as far as they bear on the benchmarks that this program has. Stricter in two
things: LoadGen's errors always count, and TEST05's logs must be of its seeds.

Not looked at here, and the checker does: power, network and preview submissions, model_mapping.json, weights
beyond their names.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from scheduler.errors import LogError
from scheduler.loadgen_log import LoadgenResult, parse
from scheduler.spec import LoadgenRound, RoundName, SystemType
from scheduler.submission_layout import (
    ACCURACY,
    ACCURACY_TEXT,
    DETAIL,
    FIELDS,
    FIELDS_SINCE_V4,
    MOST_ACCURACY_LOG_BYTES,
    REHEARSAL,
    SUMMARY,
    TOLD_FIELDS,
    Place,
    Target,
    measurement_files,
)
from workloads.protocol import Scenario

PERFORMANCE_FILES = (SUMMARY, DETAIL)
ACCURACY_FILES = (SUMMARY, DETAIL, ACCURACY, ACCURACY_TEXT)
TOLERATED = (ACCURACY, "mlperf_log_trace.json")
"""In performance/run_1, beside its two files."""
STATUS = ("available", "preview", "rdi")
MEASUREMENT_FIELDS = (
    "input_data_types",
    "retraining",
    "starting_weights_filename",
    "weight_data_types",
    "weight_transformations",
)
ACCURACY_PATTERNS = {
    "top-1": r"^accuracy=([\d\.]+).*",
    "AUC": r"^AUC=([\d\.]+).*",
    "mAP": r"^mAP=([\d\.]+).*",
    "F1": r"^{[\"\']exact_match[\"\']\:\s*[\d\.]+,\s*[\"\']f1[\"\']\:\s*([\d\.]+)}",
    "100 − WER": r"Word Error Rate\:.*, accuracy=([0-9\.]+)%",
    "mean DICE": r"Accuracy\:\s*mean\s*=\s*([\d\.]+).*",
}
"""By the round's name of the metric; the checker's own expressions."""
_HASH = re.compile(r"^hash=[\w\d]+$", re.MULTILINE)
Files = Mapping[str, str]
"""Text by path below the tree's root, with ``/``."""


def tests_of(round_: LoadgenRound, workload: str) -> tuple[str, ...]:
    """Folders of the compliance tests that the round asks of a workload."""
    two = ("TEST04-A", "TEST04-B") if round_.round == "v2.0" else ("TEST04",)
    audits = round_.of(workload).audits
    return tuple(name for test in audits for name in (two if test == "TEST04" else (test,)))


def benchmark_of(round_: LoadgenRound, model: str) -> tuple[str, Target] | None:
    """The workload and accuracy target that the round calls so."""
    for workload, entry in round_.workloads.items():
        for target, name in entry.submitted_as.items():
            if name == model:
                return workload, target

    return None


# ---------------------------------------------------------------------- the whole tree


def problems(files: Files, round_: LoadgenRound, *, rehearsal: bool = False) -> list[str]:
    """Everything in a tree that the round's checker would not take, with the path; empty where it is as it must be.

    Args:
        rehearsal: the tree is one that shows its form alone: its accuracy and how many samples were loaded are not
            looked at, and it may be of some scenarios only.
    """
    found: list[str] = []
    if (REHEARSAL in files) != rehearsal:
        found.append(
            f"{REHEARSAL}: " + ("missing, the tree is a rehearsal" if rehearsal else "the tree is marked so")
        )

    places = _places(files, round_.round)
    if not places:
        found.append("no results: DIVISION/SUBMITTER/results/SYSTEM/MODEL/SCENARIO/… is wanted")

    for place in places:
        found += _of_benchmark(files, round_, place, rehearsal=rehearsal)

    for description, of_system in _by_system(places).items():
        found += _of_system(files, round_, description, of_system, rehearsal=rehearsal)

    return found


def _places(files: Files, round_: RoundName) -> list[Place]:
    found: dict[Place, None] = {}
    for path in files:
        parts = path.split("/")
        if len(parts) < 8 or parts[2] != "results":
            continue

        division, submitter, _results, system, model, scenario = parts[:6]
        if division in ("closed", "open") and scenario in list(Scenario):
            place = Place(
                round=round_,
                division="closed" if division == "closed" else "open",
                submitter=submitter,
                system=system,
                model=model,
                scenario=Scenario(scenario),
            )
            found[place] = None

    return list(found)


def _by_system(places: Sequence[Place]) -> dict[str, list[Place]]:
    systems: dict[str, list[Place]] = {}
    for place in places:
        systems.setdefault(place.system_description, []).append(place)

    return systems


# ---------------------------------------------------------------------- a system


def _of_system(
    files: Files, round_: LoadgenRound, path: str, places: Sequence[Place], *, rehearsal: bool
) -> Iterator[str]:
    if path not in files:
        yield f"{path}: missing"
        return

    told = _object(files[path])
    if told is None:
        yield f"{path}: not a JSON object"
        return

    place = places[0]
    yield from _of_fields(path, told, round_.round)
    for field, wanted in (("submitter", place.submitter), ("division", place.division)):
        if str(told.get(field, "")).lower() != wanted.lower():
            yield f"{path}: {field} is {told.get(field)!r}, the folder says {wanted!r}"

    if told.get("status") not in STATUS:
        yield f"{path}: status is {told.get('status')!r}; there are {', '.join(STATUS)}"

    kind = told.get("system_type")
    if kind not in ("datacenter", "edge"):
        yield f"{path}: system_type is {kind!r}; there are datacenter and edge"
    elif place.division == "closed" and not rehearsal:
        yield from _of_scenarios(round_, "datacenter" if kind == "datacenter" else "edge", places)


def _of_fields(path: str, told: Mapping[str, object], round_: RoundName) -> Iterator[str]:
    has_accelerators = str(told.get("accelerators_per_node", "")) not in ("", "0")
    since = () if round_ == "v2.0" else FIELDS_SINCE_V4
    for field in (*FIELDS, *since):
        if field not in told:
            yield f"{path}: no field {field}"
        elif (
            field in TOLD_FIELDS
            and str(told[field]) == ""
            and (has_accelerators or "accelerator" not in field)
        ):
            yield f"{path}: {field} says nothing"


def _of_scenarios(round_: LoadgenRound, kind: SystemType, places: Sequence[Place]) -> Iterator[str]:
    by_model: dict[str, set[Scenario]] = {}
    for place in places:
        by_model.setdefault(place.model, set()).add(place.scenario)

    for model, scenarios in by_model.items():
        benchmark = benchmark_of(round_, model)
        required = () if benchmark is None else _required(round_, kind, *benchmark)
        where = f"{places[0].base}/results/{places[0].system}/{model}"
        if not required:
            yield f"{where}: round {round_.round} has no {model} on {kind} systems"

        for scenario in required:
            if scenario not in scenarios:
                yield f"{where}: {scenario} is missing, which {kind} systems must have"


def _required(round_: LoadgenRound, kind: SystemType, workload: str, target: Target) -> tuple[Scenario, ...]:
    entry = round_.of(workload)
    return () if kind == "edge" and target in entry.datacenter_only else entry.required.get(kind, ())


# ---------------------------------------------------------------------- a benchmark


def _of_benchmark(files: Files, round_: LoadgenRound, place: Place, *, rehearsal: bool) -> Iterator[str]:
    benchmark = benchmark_of(round_, place.model)
    if benchmark is None and place.division == "closed":
        yield f"{place.results}: round {round_.round} has no {place.model} in the closed division"

    workload = None if benchmark is None else benchmark[0]
    run = f"{place.results}/performance/run_1"
    yield from _of_performance(files, round_, run, place, workload, rehearsal=rehearsal)
    yield from _of_accuracy(files, round_, place, benchmark, rehearsal=rehearsal)
    yield from _of_measurements(files, place)
    if workload is not None and place.division == "closed":
        yield from _of_compliance(files, round_, place, workload, rehearsal=rehearsal)


def _of_performance(
    files: Files, round_: LoadgenRound, folder: str, place: Place, workload: str | None, *, rehearsal: bool
) -> Iterator[str]:
    yield from _exactly(files, folder, PERFORMANCE_FILES, TOLERATED)
    log = _log(files, f"{folder}/{DETAIL}")
    if isinstance(log, str):
        yield log
        return

    where = f"{folder}/{DETAIL}"
    yield from _of_any_test(where, log, place)
    # The seeds of TEST05 are others, and the samples of TEST04-A few.
    if "/TEST05/" not in folder:
        yield from _of_seeds(where, log, round_)
    elif round_.test05 is not None:
        yield from _of_seeds(where, log, round_.test05.model_dump())

    if "/TEST04-" in folder:
        return

    if not log.valid:
        yield f"{where}: LoadGen says INVALID: {'; '.join(log.invalid_reasons)}"

    if log.settings.get("min_duration_ms", 0) < round_.min_duration_ms:
        yield (
            f"{where}: a minimum duration of {log.settings.get('min_duration_ms', 0) / 1000:g} s, "
            f"where the round asks for {round_.min_duration_ms / 1000:g} s"
        )

    if workload is not None and place.division == "closed":
        yield from _of_counts(where, log, round_, workload, rehearsal=rehearsal)


def _of_any_test(where: str, log: LoadgenResult, place: Place) -> Iterator[str]:
    if log.num_errors:
        yield f"{where}: LoadGen counted {log.num_errors} errors: {'; '.join(log.errors[:3])}"

    if log.scenario is not place.scenario:
        yield f"{where}: the test is of {log.scenario}"

    if log.mode != "PerformanceOnly":
        yield f"{where}: the test's mode is {log.mode}"


def _of_seeds(where: str, log: LoadgenResult, wanted: LoadgenRound | Mapping[str, object]) -> Iterator[str]:
    for seed in ("qsl_rng_seed", "sample_index_rng_seed", "schedule_rng_seed"):
        right = wanted.get(seed) if isinstance(wanted, Mapping) else getattr(wanted, seed)
        if log.settings.get(seed) != right:
            yield f"{where}: {seed} is {log.settings.get(seed)}, not the round's {right}"


def _of_counts(
    where: str, log: LoadgenResult, round_: LoadgenRound, workload: str, *, rehearsal: bool
) -> Iterator[str]:
    entry, settings = round_.of(workload), log.settings
    if not rehearsal and settings.get("performance_sample_count", 0) < entry.performance_sample_count:
        yield (
            f"{where}: {settings.get('performance_sample_count', 0)} samples were loaded, "
            f"where the round asks for {entry.performance_sample_count}"
        )

    if log.scenario is Scenario.OFFLINE:
        least = round_.least_queries(workload, Scenario.OFFLINE)
        if (log.samples_per_query or 0) < least:
            yield f"{where}: a query of {log.samples_per_query or 0} samples, where the round asks for {least}"

    limit_ms = entry.server_target_latency_ms
    if log.scenario is Scenario.SERVER and limit_ms is not None:
        ns = settings.get("target_latency_ns", 0)
        if ns > limit_ms * 1_000_000:
            yield f"{where}: a latency limit of {ns / 1e6:g} ms, where the round has {limit_ms} ms"


def _of_accuracy(
    files: Files, round_: LoadgenRound, place: Place, benchmark: tuple[str, Target] | None, *, rehearsal: bool
) -> Iterator[str]:
    folder = f"{place.results}/accuracy"
    yield from _exactly(files, folder, ACCURACY_FILES, TOLERATED)
    log = _log(files, f"{folder}/{DETAIL}")
    if isinstance(log, str):
        yield log
    elif log.num_errors or log.mode != "AccuracyOnly":
        yield f"{folder}/{DETAIL}: not an accuracy run without errors: {log.mode}, {log.num_errors} errors"

    if len(files.get(f"{folder}/{ACCURACY}", "").encode()) >= MOST_ACCURACY_LOG_BYTES:
        yield f"{folder}/{ACCURACY}: not truncated"

    told = files.get(f"{folder}/{ACCURACY_TEXT}", "")
    if not _HASH.search(told):
        yield f"{folder}/{ACCURACY_TEXT}: no hash= of the accuracy log as it was"

    if benchmark is not None and not rehearsal:
        yield from _of_accuracy_value(f"{folder}/{ACCURACY_TEXT}", told, round_, benchmark, place)


def _of_accuracy_value(
    where: str, told: str, round_: LoadgenRound, benchmark: tuple[str, Target], place: Place
) -> Iterator[str]:
    workload, target = benchmark
    official = round_.of(workload).accuracy
    if official is None:
        return

    pattern = ACCURACY_PATTERNS[official.metric.removesuffix(" %")]
    values = [float(found[1]) for line in told.splitlines() if (found := re.match(pattern, line))]
    least = official.reference * {"99": 0.99, "99.9": 0.999}[target]
    if not values:
        yield f"{where}: no line that the checker takes for {official.metric}"
    elif place.division == "closed" and values[-1] < least:
        yield f"{where}: {official.metric} {values[-1]:g}, where {least:g} is asked for"


def _of_measurements(files: Files, place: Place) -> Iterator[str]:
    for name in measurement_files(place.round):
        path = f"{place.measurements}/{name}"
        if not files.get(path):
            yield f"{path}: {'empty' if path in files else 'missing'}"

    told = _object(files.get(place.description, ""))
    if told is None:
        yield f"{place.description}: missing, or not a JSON object"
    else:
        for field in MEASUREMENT_FIELDS:
            if not told.get(field):
                yield f"{place.description}: {field} says nothing"

    for path in (place.code, place.calibration):
        if path not in files:
            yield f"{path}: missing"


def _of_compliance(
    files: Files, round_: LoadgenRound, place: Place, workload: str, *, rehearsal: bool
) -> Iterator[str]:
    for test in tests_of(round_, workload):
        folder = f"{place.compliance}/{test}"
        if not any(path.startswith(f"{folder}/") for path in files):
            yield f"{folder}: missing; round {round_.round} asks for it"
            continue

        run = f"{folder}/performance/run_1"
        yield from _of_performance(files, round_, run, place, workload, rehearsal=rehearsal)
        verified = ["verify_accuracy.txt"] if test == "TEST01" else []
        verified += (
            [] if test == "TEST04-B" else ["verify_performance.txt"]
        )  # of both parts, beside the first
        for name in verified:
            if "TEST PASS" not in files.get(f"{folder}/{name}", "").splitlines():
                yield f"{folder}/{name}: no TEST PASS"

        if test == "TEST01" and f"{folder}/accuracy/{ACCURACY}" not in files:
            yield f"{folder}/accuracy/{ACCURACY}: missing"


# ---------------------------------------------------------------------- files


def _exactly(files: Files, folder: str, wanted: Sequence[str], tolerated: Sequence[str]) -> Iterator[str]:
    there = {path.removeprefix(f"{folder}/") for path in files if path.startswith(f"{folder}/")}
    for name in wanted:
        if name not in there:
            yield f"{folder}/{name}: missing"

    for name in sorted(there - {*wanted, *tolerated}):
        yield f"{folder}/{name}: not one of the files that belong there"


def _log(files: Files, path: str) -> LoadgenResult | str:
    """What LoadGen logged, or what is wrong with it."""
    try:
        return parse(files.get(path, "").splitlines())
    except LogError as error:
        return f"{path}: {error.found}"


def _object(text: str) -> dict[str, object] | None:
    try:
        told = json.loads(text)
    except ValueError:
        return None

    return told if isinstance(told, dict) else None
