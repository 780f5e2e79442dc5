"""One of MLPerf's compliance tests: a performance run, what the test wants beside it, the test, the verification.

Each is a run as any other, alone or in company, with its own verdict. What MLPerf's own scripts expect is left
beside the runs:

mlperf/results/         accuracy/ and performance/run_1/: their ``--results_dir``
mlperf/TEST01_logs/     LoadGen's logs of the test and the audit.config that stands for it: ``--compliance_dir``
mlperf/compliance/      TEST01/ with verify_*.txt, accuracy/ and performance/run_1/: what a submission holds
"""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from scheduler import audit_rules, judging
from scheduler.assignment import Plan
from scheduler.audit_rules import ACCURACY, PERFORMANCE, Check, Comparison, Ran
from scheduler.errors import FolderDamaged, LogError, SpecError
from scheduler.loadgen_log import parse
from scheduler.record import RunFolder, disk_errors
from scheduler.result import Manifest, Result
from scheduler.series import Series, Watching
from scheduler.slices import Machine
from scheduler.spec import AuditTest, LoadgenRound, RunSpec, loadgen_round
from workloads.protocol import Scenario, WorkloadError

SCHEMA_VERSION = 1
LOGS = ("mlperf_log_summary.txt", "mlperf_log_detail.txt")
ACCURACY_LOG = "mlperf_log_accuracy.json"
HOW = "LoadGen's settings; its audit.config, written beside the logs, was not read"
"""LoadGen 6.0.17 takes neither ``test05`` nor seeds from an audit.config, so every test is told one way."""

PlanOf = Callable[[RunSpec], Plan]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """An audit as asked for."""

    test: AuditTest
    spec: RunSpec
    """Of the performance run."""
    machine: Machine
    given: Mapping[str, Path]
    """Runs that were made already, by key."""


def audit(asked: Asked, plan_of: PlanOf, runs: Series, watching: Watching) -> dict[str, Any]:
    """Carry the audit out, as far as it is not yet, and write its answer; the answer.

    Raises:
        SpecError: a run that was given is not of what is asked.
        SeriesCutShort: a run was stopped, or could not run.
        FolderDamaged: a run's folder lacks what judging needs.
    """
    round_ = loadgen_round(asked.spec.round)
    given = given_runs(asked, plan_of)
    folders: dict[str, RunFolder] = {}
    for key in audit_rules.steps(asked.test, round_):
        plan, spec = _accuracy(asked.spec, plan_of) if key == ACCURACY else (plan_of(asked.spec), asked.spec)
        if key not in (PERFORMANCE, ACCURACY):
            plan = test_plan(key, plan, folders[PERFORMANCE], round_)

        if key in given:
            folders[key] = given[key]
        else:
            runs.run(key, plan, spec, asked.machine, watching, will_do=partial(_is_ground, key))
            folders[key] = RunFolder(runs.path / "runs" / key)

        if key == PERFORMANCE and _ran(folders[key]).result.verdict == "INVALID":
            break  # nothing can be held against it

    answer = judged(asked, folders, round_, runs.path)
    runs.write_answer(answer)
    return answer


def _is_ground(key: str, result: Result) -> bool:
    """Whether a test can be held against this run; of a test's own run, its being INVALID is what the test found."""
    if key == PERFORMANCE:
        return result.verdict == "VALID"

    return key != ACCURACY or result.main.loadgen_valid


def _accuracy(performance: RunSpec, plan_of: PlanOf) -> tuple[Plan, RunSpec]:
    own = {"main_mode": ACCURACY, "main_duration": None, "main_min_query_count": None, "target_qps": None}
    spec = performance.model_copy(update=own)
    plan = plan_of(spec)
    # MLPerf-length: the whole library. Else what a performance test of LoadGen 6 loads: the first of the library.
    settings = plan.main.settings
    few = None if settings.accuracy_sample_count is None else settings.performance_sample_count
    settings = replace(settings, accuracy_sample_count=few)
    return replace(plan, main=replace(plan.main, settings=settings)), spec


def test_plan(key: str, plan: Plan, performance: RunFolder, round_: LoadgenRound) -> Plan:
    """The performance run's plan with the rate, batch size and batch times it ran with, and the test's settings."""
    effective = performance.effective(plan.main.name)
    settings = replace(
        plan.main.settings,
        target_qps=_rate(effective),
        batch_times_ns=_batch_times(performance.calibration(plan.main.name), effective["batch_size"]),
    )
    main = replace(
        plan.main,
        options=replace(plan.main.options, batch_size=effective["batch_size"]),
        settings=audit_rules.settings_of(key, settings, round_, plan.main.workload),
    )
    why = f"not comparable to MLPerf: it is {key}, a compliance test of round {round_.round}"
    notes = (note for note in plan.notes if not note.startswith("not comparable"))
    return replace(plan, main=main, comparable_to_mlperf=False, notes=(why, *notes))


def _batch_times(calibration: Mapping[str, Any], largest: int) -> tuple[tuple[int, int, int, int], ...]:
    """As the performance run measured them, so that a test neither measures nor decides anew."""
    return tuple(
        (one["batch_size"], one["median_ns"], one["mean_ns"], one["batches"])
        for one in calibration.get("batch_times", [])
        if one["batch_size"] <= largest
    )


def _rate(effective: Mapping[str, Any]) -> float:
    rates = {
        Scenario.OFFLINE: effective["offline_expected_qps"],
        Scenario.SERVER: effective["server_target_qps"],
        Scenario.SINGLE_STREAM: 1e9 / effective["single_stream_expected_latency_ns"],
        Scenario.MULTI_STREAM: 1e9 / effective["multi_stream_expected_latency_ns"],
    }
    return float(rates[Scenario(effective["scenario"])])


# ---------------------------------------------------------------------- runs that were made already


def given_runs(asked: Asked, plan_of: PlanOf) -> dict[str, RunFolder]:
    """The runs that were made already, by key.

    Raises:
        SpecError: one is not of what is asked, or no part of the test.
        FolderDamaged: one cannot be read.
    """
    found: dict[str, RunFolder] = {}
    for key, path in asked.given.items():
        if key not in audit_rules.steps(asked.test, loadgen_round(asked.spec.round)):
            raise SpecError(
                asked=f"--{key}-run {path}",
                found=f"{asked.test} has no {key} run",
                do="leave the option out",
            )

        plan = _accuracy(asked.spec, plan_of)[0] if key == ACCURACY else plan_of(asked.spec)
        found[key] = _given(key, path, plan)

    return found


def _given(key: str, path: Path, plan: Plan) -> RunFolder:
    folder = RunFolder(path)
    made = judging.read_manifest(folder)
    differing = [
        f"{what} {was or 'none'}, not {asked or 'none'}"
        for what, was, asked in _pairs(key, made, plan)
        if was != asked
    ]
    if differing or not folder.has_result():
        raise SpecError(
            asked=f"--{key}-run {path}",
            found="; ".join(differing) or "the run was cut short before its verdict",
            do="ask with the options that the run was made with, or leave the option out: it is then made anew",
        )

    return folder


def _pairs(key: str, made: Manifest, plan: Plan) -> list[tuple[str, object, object]]:
    """What must be the same, as it was and as it is asked."""
    main, options = plan.main, plan.main.options
    pairs: list[tuple[str, object, object]] = [
        ("workload", made.main.workload, main.workload),
        ("scenario", made.main.scenario, main.settings.scenario),
        ("mode", made.main.settings["mode"], main.settings.mode),
        ("slice", made.main.slice, main.slice.id),
        ("size", made.main.size, options.size),
        ("precision", made.main.precision, options.precision),
        ("batch size", made.main.batch_size, options.batch_size),
        ("weights", made.main.weights, None if options.weights is None else str(options.weights)),
        ("data", made.main.data, None if options.data is None else str(options.data)),
        (
            "background",
            [(one.workload, one.slice, one.size, one.precision) for one in made.background],
            [
                (one.workload, one.slice.id, one.options.size, one.options.precision)
                for one in plan.background
            ],
        ),
    ]
    names = ["qsl_rng_seed", "performance_sample_count"]
    if key == PERFORMANCE:
        names += ["sample_index_rng_seed", "schedule_rng_seed", "min_duration_ms", "min_query_count"]
    else:
        names += ["accuracy_sample_count"]

    return pairs + [(name, made.main.settings.get(name), getattr(main.settings, name)) for name in names]


# ---------------------------------------------------------------------- the verification


def judged(
    asked: Asked, folders: Mapping[str, RunFolder], round_: LoadgenRound, path: Path
) -> dict[str, Any]:
    """The answer, from the runs' folders; what MLPerf's scripts expect is left in ``path``."""
    ran = {key: _ran(folder) for key, folder in folders.items()}
    comparison = _comparison(folders) if asked.test == "TEST01" and asked.test in folders else None
    checks = audit_rules.checks(asked.test, round_, ran, comparison)
    leave(asked.test, round_, folders, ran, comparison, path / "mlperf")
    main = ran[PERFORMANCE].result.main
    return {
        "schema_version": SCHEMA_VERSION,
        "kind": "audit",
        "test": asked.test,
        "round": round_.round,
        "verdict": "PASS" if audit_rules.passed(checks) else "FAIL",
        "main": {
            "workload": main.workload,
            "size": main.size,
            "precision": main.precision,
            "scenario": main.scenario,
            "slice": main.slice,
        },
        "background": [one.workload for one in ran[PERFORMANCE].result.background],
        "demanded": asked.test in round_.of(main.workload).audits,
        "told_by": HOW,
        "checks": [asdict(check) for check in checks],
        "runs": {key: _path_from(path, folder.path) for key, folder in folders.items()},
    }


def _path_from(path: Path, run_folder: Path) -> str:
    return str(run_folder.relative_to(path) if run_folder.is_relative_to(path) else run_folder.resolve())


def _ran(folder: RunFolder) -> Ran:
    result = judging.read_result(folder)
    try:
        log = parse(folder.log_lines(_main(folder)))
    except LogError:
        log = None

    return Ran(result=result, log=log)


def _main(folder: RunFolder) -> str:
    return judging.read_manifest(folder).main.name


def _comparison(folders: Mapping[str, RunFolder]) -> Comparison:
    from workloads.accuracy_log import AccuracyLog

    reference, test = folders[ACCURACY], folders["TEST01"]
    dtype = str(test.effective(_main(test)).get("answer_dtype", ""))
    precision = judging.read_manifest(test).main.precision
    try:
        answers = AccuracyLog(_logs(reference) / ACCURACY_LOG)
        logged = AccuracyLog(_logs(test) / ACCURACY_LOG)
        return audit_rules.compare(answers, logged.every(), dtype, precision)
    except WorkloadError as error:
        raise FolderDamaged(
            asked="the answers of TEST01 and of its accuracy run",
            found=str(error),
            do="name the folders of runs as they were left, or give the command anew with another --output",
        ) from error


def _logs(folder: RunFolder) -> Path:
    return folder.path / _main(folder) / "loadgen"


# ---------------------------------------------------------------------- what MLPerf's scripts expect


def leave(
    test: AuditTest,
    round_: LoadgenRound,
    folders: Mapping[str, RunFolder],
    ran: Mapping[str, Ran],
    comparison: Comparison | None,
    path: Path,
) -> None:
    """Lay the logs out as MLPerf's scripts expect and leave them; what lay there is replaced.

    Raises:
        DiskFull, RecordError: it cannot be written.
    """
    with disk_errors(path):
        if path.exists():
            shutil.rmtree(path)

        _copy(_logs(folders[PERFORMANCE]), path / "results" / PERFORMANCE / "run_1", LOGS)
        if ACCURACY in folders:
            _copy(_logs(folders[ACCURACY]), path / "results" / ACCURACY, (*LOGS, ACCURACY_LOG))

        for key in folders.keys() - {PERFORMANCE, ACCURACY}:
            logs, out = _logs(folders[key]), path / "compliance" / key
            with_answers = comparison is not None
            _copy(logs, path / f"{key}_logs", (*LOGS, ACCURACY_LOG) if with_answers else LOGS)
            told = audit_rules.audit_config(key, round_, ran[key].result.main.workload)
            (path / f"{key}_logs" / "audit.config").write_text(told, encoding="utf-8")
            _copy(logs, out / PERFORMANCE / "run_1", LOGS)
            if comparison is not None:
                _copy(logs, out / ACCURACY, (ACCURACY_LOG,))
                (out / "verify_accuracy.txt").write_text(audit_rules.verify_accuracy(comparison), "utf-8")

            _leave_performance(test, key, ran, out.parent)


def _leave_performance(test: AuditTest, key: str, ran: Mapping[str, Ran], compliance: Path) -> None:
    if key == "TEST04-A":
        return  # of the two together, written with TEST04-B

    # MLPerf's script of the round leaves the verification of TEST04's two parts with the first.
    where = compliance / (audit_rules.reference_of(key) if key == "TEST04-B" else key)
    where.mkdir(parents=True, exist_ok=True)
    told = audit_rules.verify_performance(test, key, ran[audit_rules.reference_of(key)], ran[key])
    (where / "verify_performance.txt").write_text(told, encoding="utf-8")


def _copy(logs: Path, to: Path, names: tuple[str, ...]) -> None:
    to.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (logs / name).exists():
            shutil.copyfile(logs / name, to / name)


def checks_of(answer: Mapping[str, Any]) -> list[Check]:
    """The checks of an answer that was written."""
    return [Check(**one) for one in answer["checks"]]
