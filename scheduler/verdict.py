"""Facts in, findings out: whether a run is VALID, and why not.

VALID only if LoadGen says so of the main benchmark, and every background benchmark issued before main
started, kept completing queries through main's whole measured window, and ended after it. The facts are
what the run folder holds, so that a run is judged again by the same code as it was at its end.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from scheduler import activity, idleness, lifecycle, quality
from scheduler.events import Event
from scheduler.loadgen_log import LoadgenResult
from scheduler.result import (
    BackgroundResult,
    BenchmarkRecord,
    Finding,
    Latencies,
    MainResult,
    Manifest,
    Metric,
    QualityRecord,
    Result,
    Timing,
    TokensResult,
    Window,
)
from scheduler.spec import Windows
from scheduler.story import BenchmarkStory, RunStory, Story, read_story
from workloads.progress import ProgressMark, WindowWork

IDLE_LIMIT_S = 0.1
"""A background benchmark's slice may be without work this long, or one batch, whichever is longer."""

GAP_LIMIT_S, GAP_LIMIT_BATCHES = 2.0, 5
"""It may complete nothing for this long, or for so many of its batches' mean time, whichever is longer: by the
whole run's mean, so that a batch that hangs cannot excuse itself."""
MLPERF_MIN_DURATION_MS = 600_000

ADVICE = {
    "start-timeout": "look into its stderr.log; if loading is slow, raise --start-timeout",
    "background-died": "look into its stderr.log in the run folder",
    "background-finished": "leave --background-duration at automatic, or make it longer",
    "background-stalled": "look into its stderr.log; if one batch takes this long, raise --stall-after",
    "main-died": "look into its stderr.log in the run folder",
    "main-stalled": "look into its stderr.log; if one batch takes this long, raise --stall-after",
    "main-exit": "its process ended badly after the test; look into its stderr.log",
    "main-timeout": "raise --main-timeout or shorten --main-duration",
    "drain-timeout": "raise --drain-timeout, or end background with --on-main-end kill",
    "stopped": "run again without stopping it",
    "would-not-stop": "the kernel holds the process (often a GPU driver call); look at dmesg",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one benchmark's own files say."""

    log: LoadgenResult | None = None
    """Of the main benchmark's test, or of the last test that a background benchmark finished."""
    log_problem: str = ""
    """Why there is no ``log``."""
    tests: int = 0
    """LoadGen tests finished."""
    mark: ProgressMark | None = None
    last_completion_s: float | None = None
    in_main_window: WindowWork | None = None
    quality: QualityRecord | None = None
    """Of main's answers, in accuracy mode."""
    quality_problem: str = ""
    """Why there is no ``quality``."""


def main_window(manifest: Manifest, story: Story) -> tuple[float, float] | None:
    """Main's measured window, s; None if main did not complete."""
    main = read_story(story).benchmarks.get(manifest.main.name)
    if main is None or main.finished is None or main.finished.begin is None or main.finished.end is None:
        return None

    return main.finished.begin, main.finished.end


def judge(
    manifest: Manifest,
    story: Story,
    evidence: Mapping[str, Evidence],
    idle: Sequence[idleness.Seen] = (),
    telemetry: activity.Seen | None = None,
) -> Result:
    """The verdict on one run, from what its folder holds."""
    run = read_story(story, mains_follow=manifest.first_main is not None)
    window = main_window(manifest, story)
    main = run.benchmarks.get(manifest.main.name, BenchmarkStory())
    main_evidence = evidence.get(manifest.main.name, Evidence())

    findings = [*_of_lifecycle(manifest, story), *_of_main(manifest, main, main_evidence)]
    for planned in manifest.background:
        one = run.benchmarks.get(planned.name, BenchmarkStory())
        if window is not None:
            findings += _of_overlap(manifest, planned, one, evidence.get(planned.name, Evidence()), window)

        if one.killed:
            findings.append(_killed(planned))

    if window is None and not any(finding.severity == "breach" for finding in findings):
        told = f"{manifest.main.name}: the record tells of no window in which it was measured"
        findings.append(
            Finding(code="no-window", severity="breach", message=told, recommendation="run again")
        )

    findings += idleness.findings(idle)
    findings += [] if telemetry is None else activity.findings(telemetry, window)
    shortfall = _mlperf_shortfall(manifest, main_evidence)
    findings += _of_conditions(manifest, shortfall)
    breached = any(finding.severity == "breach" for finding in findings)
    return Result(
        kind=manifest.kind,
        verdict="INVALID" if breached else "VALID",
        started_utc=manifest.started_utc,
        preset=manifest.preset,
        comparable_to_mlperf=not shortfall,
        notes=manifest.notes,
        findings=findings,
        main=_main_result(manifest, main, main_evidence, window),
        background=[
            _background_result(
                planned,
                run.benchmarks.get(planned.name, BenchmarkStory()),
                evidence.get(planned.name, Evidence()),
                window,
            )
            for planned in manifest.background
        ],
        timing=_timing(manifest, run, window),
        slices=manifest.slices,
    )


# ---------------------------------------------------------------------- findings


def _of_lifecycle(manifest: Manifest, story: Story) -> Iterable[Finding]:
    """What the state machine noted; it is run again over the recorded events."""
    replay = lifecycle.Run(
        background=[planned.name for planned in manifest.background],
        mains=[manifest.first_main or manifest.main.name],
        windows=Windows.model_validate(manifest.windows),
        on_main_end=manifest.on_main_end,
        on_breach=manifest.on_breach,
        more_mains=manifest.first_main is not None,
    )
    replay.begin(0.0)
    try:
        for what in (what for _at, what in story if isinstance(what, Event)):
            replay.handle(what)
    except lifecycle.IllegalEvent as error:
        yield Finding(
            code="record-contradicts-itself",
            severity="breach",
            message=f"events.jsonl tells what cannot have happened: {error}",
            recommendation="the folder was changed after the run, or this is a bug of the harness: report it",
        )
        return

    other_mains = {*replay.mains} - {manifest.main.name}
    for breach in (each for each in replay.breaches if each.name not in other_mains):
        yield Finding(
            code=breach.code,
            severity="breach",
            message=f"{breach.message} (at {breach.at:.3f} s)",
            figure=round(breach.at, 6),
            recommendation=ADVICE[breach.code],
        )

    if replay.phase is not lifecycle.Phase.OVER and not replay.asks_for_the_next_main:
        yield Finding(
            code="cut-short",
            severity="breach",
            message=f"the record ends while {replay.phase}: the launcher was killed or could not go on",
            recommendation="run again",
        )


def _of_main(manifest: Manifest, main: BenchmarkStory, evidence: Evidence) -> Iterable[Finding]:
    name = manifest.main.name
    log = evidence.log
    if log is None:
        if main.finished is not None:
            yield Finding(
                code="no-loadgen-result",
                severity="breach",
                message=f"{name}: LoadGen left no result: {evidence.log_problem}",
                recommendation="look into its stderr.log in the run folder",
            )

        return

    if not log.valid:
        yield Finding(
            code="loadgen-invalid",
            severity="breach",
            message=f"{name}: LoadGen says INVALID: {'; '.join(log.invalid_reasons) or 'it gives no reason'}",
            recommendation=_loadgen_advice(manifest.main, log),
        )

    if log.num_errors:
        yield Finding(
            code="loadgen-errors",
            severity="breach",
            message=f"{name}: LoadGen counted {log.num_errors} errors: {'; '.join(log.errors[:3])}",
            figure=log.num_errors,
            limit=0,
            recommendation=_loadgen_advice(manifest.main, log),
        )

    if manifest.accuracy is not None and main.finished is not None:
        found, problem = evidence.quality, evidence.quality_problem
        yield from quality.findings(manifest.main, manifest.accuracy, found, problem)


def _loadgen_advice(planned: BenchmarkRecord, log: LoadgenResult) -> str:
    if planned.scenario == "Server":
        met = log.met.get("result_min_duration_met", True) or log.num_errors  # cut: too many queries waited
        return "lower --target-qps" if met else "give a longer --main-duration"

    if planned.scenario == "Offline" or log.num_errors:
        return "raise --target-qps, or leave it out: the slice was faster than that, so the queries ran out"

    return "give a longer --main-duration"


def _of_overlap(
    manifest: Manifest,
    planned: BenchmarkRecord,
    one: BenchmarkStory,
    evidence: Evidence,
    window: tuple[float, float],
) -> Iterable[Finding]:
    begin, end = window
    if one.issuing is None or one.issuing.at >= begin:
        yield Finding(
            code="not-issuing-before-main",
            severity="breach",
            message=f"{planned.name} did not issue before main's window began at {begin:.3f} s",
            figure=None if one.issuing is None else round(one.issuing.at, 6),
            limit=round(begin, 6),
            recommendation="look into its stderr.log in the run folder",
        )
        return

    buffer_s = begin - one.issuing.first_issue_at
    if buffer_s < manifest.windows["start_buffer_s"]:
        yield Finding(
            code="start-buffer-cut-short",
            severity="breach",
            message=f"{planned.name} had issued for only {buffer_s:.3f} s when main began",
            figure=round(buffer_s, 6),
            limit=manifest.windows["start_buffer_s"],
            recommendation="report this: the harness should have waited",
        )

    gone_at = one.exited.at if one.exited is not None else None
    if gone_at is not None and gone_at < end:
        yield Finding(
            code="ended-before-main",
            severity="breach",
            message=f"{planned.name} was gone {end - gone_at:.3f} s before main's last completion",
            figure=round(gone_at, 6),
            limit=round(end, 6),
            recommendation=ADVICE["background-died"],
        )

    yield from _of_work(planned, evidence, in_accuracy_mode=manifest.accuracy is not None)


def _killed(planned: BenchmarkRecord) -> Finding:
    return Finding(
        code="did-not-stop-when-asked",
        severity="warning",
        message=f"{planned.name} did not end within the grace and was killed",
        recommendation="its stderr.log may say why; where one batch takes that long, raise --stop-grace",
    )


def _of_work(planned: BenchmarkRecord, evidence: Evidence, *, in_accuracy_mode: bool) -> Iterable[Finding]:
    work, mark = evidence.in_main_window, evidence.mark
    # An accuracy run lasts as long as its samples do, which may be less than a batch beside it: it has company
    # all the same where that batch was in hand throughout.
    at_work = in_accuracy_mode and work is not None and work.longest_idle_s <= IDLE_LIMIT_S
    longer = "take more --fidelity-samples" if in_accuracy_mode else "give a longer --main-duration"
    if work is None or mark is None or (work.samples == 0 and not at_work):
        yield Finding(
            code="no-samples-in-window",
            severity="breach",
            message=f"{planned.name} completed no sample in main's window",
            figure=0,
            limit=1,
            recommendation=f"{longer}, or a smaller --size or --batch-size for it",
        )
        return

    issuing_s = (mark.last_completion_ns - mark.first_issue_ns) / 1e9
    gap_limit_s = max(GAP_LIMIT_S, GAP_LIMIT_BATCHES * issuing_s / max(1, mark.batches))
    if work.longest_gap_s > gap_limit_s:
        yield Finding(
            code="gap-in-window",
            severity="breach",
            message=f"{planned.name} completed nothing for {work.longest_gap_s:.3f} s of main's window",
            figure=round(work.longest_gap_s, 6),
            limit=round(gap_limit_s, 6),
            recommendation="it hung, or the host had no time for it: look into its stderr.log and telemetry.jsonl",
        )

    idle_limit_s = max(IDLE_LIMIT_S, work.longest_batch_s)
    if work.longest_idle_s > idle_limit_s:
        yield Finding(
            code="idle-in-window",
            severity="warning",
            message=f"{planned.name} left its slice idle for {work.longest_idle_s:.3f} s of main's window",
            figure=round(work.longest_idle_s, 6),
            limit=round(idle_limit_s, 6),
            recommendation="the host is short of CPU time; give the slices more cores",
        )


def _mlperf_shortfall(manifest: Manifest, evidence: Evidence) -> str:
    """Why the run is not comparable to MLPerf's, by what was planned and by what LoadGen then ran with."""
    if not manifest.comparable_to_mlperf:
        told = [note for note in manifest.notes if note.startswith("not comparable")]
        return told[0].partition(": ")[2] if told else f"preset {manifest.preset}"

    if manifest.accuracy is not None:
        found = evidence.quality
        return quality.why_fidelity(manifest.main, manifest.accuracy, found) if found else "not judged"

    planned = manifest.main.settings.get("performance_sample_count", 0)
    loaded = None if evidence.log is None else evidence.log.settings.get("performance_sample_count")
    if loaded is not None and loaded < planned:
        return f"{loaded} samples were used, where the round's are {planned}"

    ran_ms = None if evidence.log is None else evidence.log.settings.get("min_duration_ms")
    if ran_ms is not None and ran_ms < MLPERF_MIN_DURATION_MS:
        return f"LoadGen ran with a minimum duration of {ran_ms / 1000:g} s"

    return ""


def _of_conditions(manifest: Manifest, shortfall: str) -> Iterable[Finding]:
    shared = [one.id for one in manifest.slices if one.kind == "cpu" and one.shared_with]
    if shared:
        yield Finding(
            code="shared-cores",
            severity="warning",
            message=f"slices {', '.join(shared)} share CPU cores: they are not isolated from each other",
            recommendation="take a machine with a core a slice, or fewer background benchmarks",
        )

    foreign = manifest.gpus.get("foreign_processes") or {}
    for uuid, pids in foreign.items():
        yield Finding(
            code="foreign-process",
            severity="warning",
            message=f"before the run, other processes were on {uuid}: pids {', '.join(map(str, pids))}",
            recommendation="end them: what they do is in these figures",
        )

    if shortfall and manifest.accuracy is None:
        yield Finding(
            code="not-mlperf-length",
            severity="info",
            message=f"not comparable to an MLPerf result: {shortfall}",
            recommendation="--preset mlperf takes the round's durations and counts, with full models",
        )


# ---------------------------------------------------------------------- results


def _main_result(
    manifest: Manifest, main: BenchmarkStory, evidence: Evidence, window: tuple[float, float] | None
) -> MainResult:
    planned, log, terms, found = manifest.main, evidence.log, manifest.accuracy, evidence.quality
    return MainResult(
        workload=planned.workload,
        size=planned.size,
        precision=planned.precision,
        batch_size=_batch_size(planned, main),
        scenario=planned.scenario,
        mode="PerformanceOnly" if terms is None else "AccuracyOnly",
        slice=planned.slice,
        device=_device(main),
        loadgen_valid=log is not None and log.valid and not log.num_errors,
        num_errors=None if log is None else log.num_errors,
        metric=_metric(log),
        latency_ms=Latencies()
        if log is None or log.latency_ms is None
        else Latencies(**asdict(log.latency_ms)),
        tokens=None if log is None or log.tokens is None else TokensResult.model_validate(asdict(log.tokens)),
        accuracy=None if terms is None or found is None else quality.judged(planned, terms, found),
        window=Window(begin_s=_at(window, 0), end_s=_at(window, 1)),
        settings={} if log is None else dict(log.settings),
        notes=_notes(main),
    )


def _background_result(
    planned: BenchmarkRecord, one: BenchmarkStory, evidence: Evidence, window: tuple[float, float] | None
) -> BackgroundResult:
    work, mark = evidence.in_main_window, evidence.mark
    window_s = None if window is None else window[1] - window[0]
    return BackgroundResult(
        workload=planned.workload,
        size=planned.size,
        precision=planned.precision,
        batch_size=planned.batch_size,
        slice=planned.slice,
        device=_device(one),
        pid=None if one.ready is None else one.ready.facts.get("pid"),
        ended=_ended(one),
        window=Window(
            begin_s=None if one.issuing is None else one.issuing.first_issue_at,
            end_s=evidence.last_completion_s,
        ),
        samples_completed=0 if mark is None else mark.samples_completed,
        filler_samples=0 if mark is None else mark.filler_samples,
        samples_in_main_window=0 if work is None else work.samples,
        samples_per_s_in_main_window=work.samples / window_s if work is not None and window_s else None,
        filler_samples_in_main_window=0 if work is None else work.filler_samples,
        longest_gap_s=None if work is None else work.longest_gap_s,
        longest_idle_s=None if work is None else work.longest_idle_s,
        longest_batch_s=None if work is None else work.longest_batch_s,
        loadgen_tests=evidence.tests,
        loadgen_result=_metric(evidence.log),
        loadgen_valid=None if evidence.log is None else evidence.log.loadgen_valid,
        notes=_notes(one),
    )


def _timing(manifest: Manifest, run: RunStory, window: tuple[float, float] | None) -> Timing:
    background = [run.benchmarks.get(one.name, BenchmarkStory()) for one in manifest.background]
    launches = [one.launched_at for one in background if one.launched_at is not None]
    issuing = [one.issuing.at for one in background if one.issuing is not None]
    main = run.benchmarks.get(manifest.main.name, BenchmarkStory())
    all_issuing_at = max(issuing) if background and len(issuing) == len(background) else None
    overshoot_s = None
    if all_issuing_at is not None and main.launched_at is not None:
        overshoot_s = main.launched_at - all_issuing_at - manifest.windows["start_buffer_s"]

    stopped = run.first_stop_at is not None and run.last_exit_at is not None
    return Timing(
        launch_to_all_issuing_s=_rounded(
            all_issuing_at - min(launches) if all_issuing_at is not None else None
        ),
        start_buffer_s=manifest.windows["start_buffer_s"] if background else 0.0,
        buffer_overshoot_ms=_rounded(None if overshoot_s is None else overshoot_s * 1000),
        main_s=_rounded(None if window is None else window[1] - window[0]),
        stop_to_all_gone_s=_rounded((run.last_exit_at or 0) - (run.first_stop_at or 0) if stopped else None),
    )


def _batch_size(planned: BenchmarkRecord, one: BenchmarkStory) -> int:
    """The largest batch that could run: by what the worker says it ran with, else as planned."""
    told = None if one.finished is None else one.finished.facts.get("batch_size")
    return told if isinstance(told, int) else planned.batch_size


def _ended(one: BenchmarkStory) -> Literal["killed", "completed", "died", "running", "not started"]:
    if one.launched_at is None:
        return "not started"
    if one.finished is not None:
        return "completed"
    if one.still_runs:
        return "running"

    return "killed" if one.asked_to_end else "died"


def _device(one: BenchmarkStory) -> dict[str, Any]:
    return {} if one.ready is None else dict(one.ready.facts.get("device", {}))


def _notes(one: BenchmarkStory) -> list[str]:
    told = (what.facts.get("notes", []) for what in (one.ready, one.finished) if what is not None)
    return [note for notes in told for note in notes]


def _metric(log: LoadgenResult | None) -> Metric | None:
    return None if log is None or log.metric is None else Metric.model_validate(asdict(log.metric))


def _at(window: tuple[float, float] | None, edge: int) -> float | None:
    return None if window is None else round(window[edge], 6)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
