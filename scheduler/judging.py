"""The verdict on a run, from its folder alone: the evidence is gathered here, verdict.py judges it."""

import re
import signal
from dataclasses import replace
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from scheduler import activity, events, idleness, verdict
from scheduler.clock import Clock
from scheduler.columns import Line, Telemetry
from scheduler.errors import FolderDamaged, LogError
from scheduler.loadgen_log import LoadgenResult, parse
from scheduler.record import RunFolder
from scheduler.result import SCHEMA_VERSION, BenchmarkRecord, Manifest, QualityRecord, Result, first_fault
from scheduler.story import Story, until_the_next
from scheduler.verdict import Evidence
from workloads.progress import read_history, read_mark, work_in_window

Model = TypeVar("Model", bound=BaseModel)

OF_A_MAIN = "benchmark.json"
"""In the folder of a main of several: its record."""
GOES_ON = re.compile(
    r"background\.\d+\.(samples_completed|filler_samples|loadgen_tests|loadgen_valid|loadgen_result.*|window\.end_s)"
)
"""In the result of one main of several: what is told of the background up to the moment of judging."""


def judge(folder: RunFolder, main: BenchmarkRecord | None = None) -> Result:
    """The verdict on the run in ``folder``, from the folder alone.

    Args:
        main: where mains follow one another, the one that is judged (None: the first); later ones may still run.

    Raises:
        FolderDamaged: there is no manifest, or it cannot be read.
    """
    planned = read_manifest(folder)
    if main is not None:
        planned = planned.model_copy(update={"main": main})

    story: Story = folder.story()
    if planned.first_main is not None:
        story = until_the_next(story, planned.main.name)

    clock = Clock(planned.clock_zero.monotonic_ns, planned.clock_zero.utc)
    window = verdict.main_window(planned, story)
    evidence = {planned.main.name: _main_evidence(folder, planned)}
    for one in planned.background:
        evidence[one.name] = _background_evidence(folder, one.name, clock, window)

    idle = [one for one in planned.slices if one.id in planned.idle]
    noted = folder.idle()
    if planned.first_main is not None:  # what is noted at the run's end came after other mains than this one
        noted.pop("after", None)

    samples = folder.lines("telemetry.jsonl") if idle else []
    mains_cores = [core for one in planned.slices if one.id == planned.main.slice for core in one.cores]
    seen = idleness.seen(noted, samples, window, idle, mains_cores)
    return verdict.judge(planned, story, evidence, seen, _telemetry(folder, planned, window))


def read_manifest(folder: RunFolder) -> Manifest:
    """What was asked and decided in ``folder``.

    Raises:
        FolderDamaged: there is no manifest, or it is not one of this version.
    """
    found = folder.manifest()
    try:
        return Manifest.model_validate(found)
    except ValidationError as error:
        raise FolderDamaged(
            asked=f"the manifest of {folder.path}",
            found=f"{first_fault(error)} (this program reads schema version {SCHEMA_VERSION})",
            do="judge it with the version of hetero-mig that wrote it, or name another folder",
        ) from None


def understood(model: type[Model], found: object, asked: str) -> Model:
    """What a file of a folder says.

    Raises:
        FolderDamaged: it is not what this version writes there.
    """
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise FolderDamaged(
            asked=asked,
            found=first_fault(error),
            do="name the folder as it was left, to the version of hetero-mig that wrote it",
        ) from None


def judged_mains(folder: RunFolder) -> list[tuple[RunFolder, BenchmarkRecord]] | None:
    """Each main that was judged, where mains follow one another: its folder and its record. None: there is one main.

    Args:
        folder: the run's, or that of one such main.

    Raises:
        FolderDamaged: there is no manifest, or it or a record cannot be read.
    """
    own = [folder]
    if not (folder.path / OF_A_MAIN).exists():
        first = read_manifest(folder).first_main
        if first is None:
            return None

        names = [first, *(what.name for _at, what in folder.story() if isinstance(what, events.NextMain))]
        own = [RunFolder(folder.path / name) for name in names]

    return [
        (one, understood(BenchmarkRecord, one.read_json(OF_A_MAIN), f"{OF_A_MAIN} of {one.path}"))
        for one in own
        if one.has_result()
    ]


def judged_again(own: RunFolder, main: BenchmarkRecord) -> tuple[Result, list[str]]:
    """One main of several judged again, and where its own ``result.json`` differs.

    What the background has done since then is no difference.
    """
    result = judge(RunFolder(own.path.resolve().parent), main)
    return result, [where for where in unlike_recorded(own, result) if not GOES_ON.fullmatch(where)]


def unlike_recorded(folder: RunFolder, judged: Result) -> list[str]:
    """Where the folder's ``result.json`` differs from what was judged now.

    Raises:
        FolderDamaged: there is none, or it cannot be read.
    """
    return differences(folder.result(), judged.model_dump(mode="json"))


def read_result(folder: RunFolder) -> Result:
    """What was judged of the run in ``folder``.

    Raises:
        FolderDamaged: there is no result, or it is not one of this version.
    """
    return understood(Result, folder.result(), f"result.json of {folder.path}")


def exit_code(result: Result, folder: RunFolder) -> int:
    """What the program ends with: 0 VALID, 1 INVALID, 2 asked wrongly, 3 could not run, 128 + a stop signal."""
    if result.verdict == "VALID":
        return 0

    for _at, what in folder.story():
        if isinstance(what, events.StopRequested):
            return 128 + signal.Signals[what.reason]

        if isinstance(what, events.Failed):
            return 2 if what.kind == "spec" else 3

    return 1


def stopped_by(folder: RunFolder) -> int | None:
    """The stop signal that the run was told of, if any; after its last main it may be VALID all the same."""
    told = (what.reason for _at, what in folder.story() if isinstance(what, events.StopRequested))
    return next((int(signal.Signals[reason]) for reason in told), None)


def differences(recorded: object, judged: object, path: str = "") -> list[str]:
    """Where a ``result.json`` differs from what its folder says, as ``main.metric.value``."""
    if isinstance(recorded, dict) and isinstance(judged, dict):
        pairs = [(f"{path}.{key}", recorded.get(key), judged.get(key)) for key in {**recorded, **judged}]
    elif isinstance(recorded, list) and isinstance(judged, list) and len(recorded) == len(judged):
        pairs = [(f"{path}.{at}", *both) for at, both in enumerate(zip(recorded, judged, strict=True))]
    else:
        return [] if recorded == judged else [path.removeprefix(".")]

    return [found for where, one, other in pairs for found in differences(one, other, where)]


def _telemetry(
    folder: RunFolder, planned: Manifest, window: tuple[float, float] | None
) -> activity.Seen | None:
    """What the telemetry saw; None where none was asked for.

    Where mains follow one another it is judged up to the end of this one's window: the others' is not yet there.
    """
    rate_hz = float(planned.spec.get("telemetry") or 0.0)
    if not rate_hz:
        return None

    cores = {one.id: one.cores for one in planned.slices}
    try:
        told = folder.telemetry()
        found = None if told is None else Telemetry.model_validate(told)
        lines = [] if told is None else [Line.model_validate(one) for one in folder.lines("telemetry.jsonl")]
    except ValidationError as error:
        raise FolderDamaged(
            asked=f"the telemetry of {folder.path}",
            found=first_fault(error),
            do="judge it with the version of hetero-mig that wrote it",
        ) from None

    if planned.first_main is not None:
        found = None if found is None else found.model_copy(update={"after": {}})
        lines = [line for line in lines if window is not None and line.at_s <= window[1]]

    return activity.Seen(telemetry=found, rate_hz=rate_hz, lines=lines, cores=cores)


def _main_evidence(folder: RunFolder, planned: Manifest) -> Evidence:
    name = planned.main.name
    log, problem = _log(folder, name, "loadgen")
    evidence = Evidence(log=log, log_problem=problem, mark=read_mark(folder.path / name))
    if planned.accuracy is None:
        return evidence

    quality, problem = _quality(folder, name)
    return replace(evidence, quality=quality, quality_problem=problem)


def _quality(folder: RunFolder, name: str) -> tuple[QualityRecord | None, str]:
    """The worker's figures, as long as they are of the answers that are in the folder."""
    try:
        found = QualityRecord.model_validate(folder.quality(name))
    except FolderDamaged as error:
        return None, f"quality.json: {error.found}"
    except ValidationError as error:
        return None, f"quality.json, {first_fault(error)}"

    if folder.answers_sha256(name) != found.answers_sha256:
        return None, "LoadGen's accuracy log is not the one that quality.json was computed from"

    return found, ""


def _background_evidence(
    folder: RunFolder, name: str, clock: Clock, window: tuple[float, float] | None
) -> Evidence:
    here = folder.path / name
    mark = read_mark(here)
    work = None
    if window is not None and mark is not None:
        begin_ns, end_ns = (int(edge * 1e9) + clock.zero_ns for edge in window)
        work = work_in_window(read_history(here), begin_ns, end_ns, mark.batch_begin_ns)

    logs = (_log(folder, name, test)[0] for test in reversed(_tests(folder, name)))
    return Evidence(
        log=next((log for log in logs if log is not None), None),
        tests=0 if mark is None else mark.tests_completed,
        mark=mark,
        last_completion_s=clock.at(mark.last_completion_ns) if mark and mark.samples_completed else None,
        in_main_window=work,
    )


def _tests(folder: RunFolder, name: str) -> list[str]:
    """The background's tests, oldest first."""
    here = folder.path / name / "loadgen"
    numbers = sorted(int(test.name.removeprefix("test-")) for test in here.glob("test-*"))
    return [f"loadgen/test-{number:04d}" for number in numbers]


def _log(folder: RunFolder, name: str, test: str) -> tuple[LoadgenResult | None, str]:
    try:
        return parse(folder.log_lines(name, test)), ""
    except LogError as error:
        return None, error.found
