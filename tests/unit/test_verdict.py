"""One test a finding, each from the smallest facts that cause it."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scheduler import verdict
from scheduler.events import (
    Action,
    Drain,
    Event,
    Exited,
    Finished,
    Issuing,
    Kill,
    Launch,
    NextMain,
    Ready,
    Stop,
    StopRequested,
)
from scheduler.events import DeadlinePassed as Deadline
from scheduler.loadgen_log import LoadgenResult, parse
from scheduler.result import BenchmarkRecord, Manifest, Result, SliceRecord
from scheduler.story import until_the_next
from scheduler.verdict import Evidence, judge
from workloads.progress import ProgressMark, WindowWork
from workloads.protocol import Scenario

GOLDEN = Path(__file__).parent.parent / "golden"
_LOG = parse((GOLDEN / "offline.txt").read_text().splitlines())
VALID_LOG = replace(_LOG, settings={**_LOG.settings, "min_duration_ms": 600_000})
Told = tuple[float, Event | Action]

# One background, one main: main's window is 6 s to 16 s.
STORY: list[Told] = [
    (0.0, Launch("back")),
    (1.0, Ready("back", 1.0, {"pid": 7, "device": {"kind": "cpu"}, "notes": ["random weights"]})),
    (2.0, Issuing("back", 2.0, 2.0)),
    (4.0, Deadline(4.0)),
    (4.1, Launch("main")),
    (5.0, Ready("main", 5.0, {"pid": 8, "device": {"kind": "cpu"}})),
    (6.0, Issuing("main", 6.0, 6.0)),
    (16.0, Finished("main", 16.0, 6.0, 16.0)),
    (16.1, Exited("main", 16.1, 0)),
    (17.0, Deadline(17.0)),
    (17.0, Stop("back")),
    (17.5, Exited("back", 17.5, 0)),
]
MARK = ProgressMark(1000, 17_400_000_000, 10, 2_000_000_000, 3, 2, 17_390_000_000, 1010, 10_000_000)
WORK = WindowWork(600, 6, 0.02, 0.001, 0.015, 6_010_000_000, 15_990_000_000)
EVIDENCE = {
    "main": Evidence(log=VALID_LOG, tests=1),
    "back": Evidence(tests=2, mark=MARK, last_completion_s=17.4, in_main_window=WORK),
}


def benchmark(name: str, role: Any, slice_id: str) -> BenchmarkRecord:
    return BenchmarkRecord(
        name=name,
        role=role,
        workload="null",
        slice=slice_id,
        size="small",
        precision="fp32",
        batch_size=4,
        scenario=Scenario.OFFLINE,
        settings={},
    )


def cpu(number: int, shared_with: list[str]) -> SliceRecord:
    return SliceRecord(
        id=f"cpu{number}",
        kind="cpu",
        name="",
        uuid=None,
        sms=None,
        memory_mib=1,
        cores=[number],
        shared_with=shared_with,
    )


MANIFEST = Manifest(
    kind="hetero",
    started_utc="2026-11-20T00:00:00Z",
    clock_zero={"monotonic_ns": 0, "utc": ""},
    preset="mlperf",
    comparable_to_mlperf=True,
    on_main_end="kill",
    on_breach="stop",
    windows={
        "start_timeout_s": 60,
        "start_buffer_s": 2,
        "end_buffer_s": 1,
        "main_timeout_s": 60,
        "stop_grace_s": 5,
        "stall_after_s": 3,
        "drain_timeout_s": 60,
    },
    main=benchmark("main", "main", "cpu0"),
    background=[benchmark("back", "background", "cpu1")],
    slices=[cpu(0, []), cpu(1, [])],
    idle=[],
    notes=[],
    spec={},
    host={},
    gpus={},
)


def codes(result: Result) -> list[str]:
    return [finding.code for finding in result.findings]


def without(story: list[Told], *kinds: type) -> list[Told]:
    return [told for told in story if not isinstance(told[1], kinds)]


def with_log(**changes: Any) -> dict[str, Evidence]:
    return {**EVIDENCE, "main": Evidence(log=replace(VALID_LOG, **changes), tests=1)}


def with_work(**changes: Any) -> dict[str, Evidence]:
    return {**EVIDENCE, "back": replace(EVIDENCE["back"], in_main_window=replace(WORK, **changes))}


def test_a_run_as_it_should_be_is_valid_and_tells_its_figures():
    result = judge(MANIFEST, STORY, EVIDENCE)
    assert (result.verdict, result.findings) == ("VALID", [])
    [back] = result.background
    assert (back.pid, back.ended, back.samples_in_main_window) == (7, "killed", 600)
    assert back.samples_per_s_in_main_window == pytest.approx(60.0)
    assert (back.window.begin_s, back.window.end_s) == (2.0, 17.4)
    assert back.notes == ["random weights"]
    timing = result.timing
    assert timing.launch_to_all_issuing_s == 2.0
    assert timing.buffer_overshoot_ms == pytest.approx(100.0)
    assert timing.main_s == 10.0
    assert timing.stop_to_all_gone_s == 0.5
    assert result.main.metric is not None
    assert result.main.metric.value == VALID_LOG.metric.value if VALID_LOG.metric else False


def test_what_the_state_machine_noted_is_a_breach():
    story = [*STORY[:7], (8.0, Exited("back", 8.0, -9)), (8.0, Stop("main")), (8.2, Exited("main", 8.2, 0))]
    result = judge(MANIFEST, story, EVIDENCE)
    assert result.verdict == "INVALID"
    assert codes(result) == ["background-died"]
    assert result.background[0].ended == "died"


def test_a_record_that_ends_in_the_middle_is_cut_short():
    assert codes(judge(MANIFEST, STORY[:7], EVIDENCE)) == ["cut-short"]


def test_loadgens_invalid_is_a_breach_with_its_reasons():
    result = judge(MANIFEST, STORY, with_log(valid=False, invalid_reasons=("too short",)))
    assert codes(result) == ["loadgen-invalid"]
    assert "too short" in result.findings[0].message
    assert "--target-qps" in result.findings[0].recommendation
    assert not result.main.loadgen_valid


@pytest.mark.parametrize(
    ("scenario", "met", "advice"),
    [
        (Scenario.SERVER, {"result_min_duration_met": True}, "lower --target-qps"),
        (Scenario.SERVER, {"result_min_duration_met": False}, "longer --main-duration"),
        (Scenario.SINGLE_STREAM, {}, "longer --main-duration"),
    ],
)
def test_the_advice_fits_the_scenario(scenario: Scenario, met: dict[str, bool], advice: str):
    manifest = MANIFEST.model_copy(update={"main": MANIFEST.main.model_copy(update={"scenario": scenario})})
    result = judge(manifest, STORY, with_log(valid=False, met=met))
    assert advice in result.findings[0].recommendation


def test_loadgens_errors_are_a_breach_though_it_says_valid():
    result = judge(MANIFEST, STORY, with_log(num_errors=2, errors=("ran out of queries",)))
    assert codes(result) == ["loadgen-errors"]
    assert result.main.num_errors == 2
    assert not result.main.loadgen_valid


def test_a_main_that_finished_without_a_result_is_a_breach():
    result = judge(MANIFEST, STORY, {**EVIDENCE, "main": Evidence(log_problem="no log")})
    assert codes(result) == ["no-loadgen-result"]
    assert result.main.num_errors is None


def test_a_background_that_issues_only_after_main_began_is_a_breach():
    late = [
        (at, Issuing("back", 6.5, 6.5) if what == Issuing("back", 2.0, 2.0) else what) for at, what in STORY
    ]
    assert "not-issuing-before-main" in codes(judge(MANIFEST, late, EVIDENCE))


def test_a_start_buffer_cut_short_is_a_breach():
    late = [
        (at, Issuing("back", 2.0, 4.5) if what == Issuing("back", 2.0, 2.0) else what) for at, what in STORY
    ]
    assert codes(judge(MANIFEST, late, EVIDENCE)) == ["start-buffer-cut-short"]


def test_a_background_gone_before_mains_last_completion_is_a_breach():
    gone = [
        (at, Exited("back", 15.0, 0) if isinstance(what, Exited) and what.name == "back" else what)
        for at, what in STORY
    ]
    assert "ended-before-main" in codes(judge(MANIFEST, gone, EVIDENCE))


@pytest.mark.parametrize("work", [None, replace(WORK, samples=0)])
def test_a_background_without_a_sample_in_the_window_is_a_breach(work: WindowWork | None):
    evidence = {**EVIDENCE, "back": replace(EVIDENCE["back"], in_main_window=work)}
    assert codes(judge(MANIFEST, STORY, evidence)) == ["no-samples-in-window"]


def test_a_long_gap_is_a_breach_unless_one_batch_takes_that_long():
    assert codes(judge(MANIFEST, STORY, with_work(longest_gap_s=3.5))) == ["gap-in-window"]
    few = replace(MARK, batches=5)  # in 15.4 s
    slow = replace(EVIDENCE["back"], mark=few, in_main_window=replace(WORK, longest_gap_s=3.5))
    assert codes(judge(MANIFEST, STORY, {**EVIDENCE, "back": slow})) == []


def test_a_batch_that_hangs_does_not_excuse_its_own_gap():
    assert codes(judge(MANIFEST, STORY, with_work(longest_gap_s=3.5, longest_batch_s=3.4))) == [
        "gap-in-window"
    ]


def test_an_idle_slice_is_a_warning_above_100_ms_or_one_batch():
    result = judge(MANIFEST, STORY, with_work(longest_idle_s=0.11))
    assert (result.verdict, codes(result)) == ("VALID", ["idle-in-window"])
    assert codes(judge(MANIFEST, STORY, with_work(longest_idle_s=0.11, longest_batch_s=0.2))) == []


def test_a_record_that_cannot_be_true_is_a_breach():
    twice = [*STORY, (18.0, Exited("back", 18.0, 0))]
    assert codes(judge(MANIFEST, twice, EVIDENCE)) == ["record-contradicts-itself"]


def test_shared_cores_are_a_warning():
    manifest = MANIFEST.model_copy(update={"slices": [cpu(0, ["cpu1"]), cpu(1, ["cpu0"])]})
    result = judge(manifest, STORY, EVIDENCE)
    assert (result.verdict, codes(result)) == ("VALID", ["shared-cores"])


def test_a_run_that_is_not_mlperf_length_says_so():
    manifest = MANIFEST.model_copy(update={"comparable_to_mlperf": False, "preset": "quick"})
    assert codes(judge(manifest, STORY, EVIDENCE)) == ["not-mlperf-length"]


def test_loadgens_shorter_duration_is_not_comparable_whatever_was_planned():
    settings = {**VALID_LOG.settings, "min_duration_ms": 210_000}
    result = judge(MANIFEST, STORY, with_log(settings=settings))
    assert not result.comparable_to_mlperf
    assert "210 s" in result.findings[0].message


def test_foreign_processes_are_a_warning():
    manifest = MANIFEST.model_copy(update={"gpus": {"foreign_processes": {"GPU-1": [77]}}})
    result = judge(manifest, STORY, EVIDENCE)
    assert (result.verdict, codes(result)) == ("VALID", ["foreign-process"])


def test_an_empty_folder_is_invalid_and_nothing_is_made_up():
    result = judge(MANIFEST, [], {})
    assert codes(result) == ["cut-short"]
    assert result.main.metric is None
    assert result.timing.launch_to_all_issuing_s is None
    assert (result.background[0].ended, result.background[0].pid) == ("not started", None)


def test_a_drained_background_has_completed():
    manifest = MANIFEST.model_copy(update={"on_main_end": "drain"})
    story: list[Told] = [
        *STORY[:10],
        (17.0, Drain("back")),
        (18.0, Finished("back", 18.0, 2.0, 18.0)),
        (18.0, Stop("back")),
        (18.1, Exited("back", 18.1, 0)),
    ]
    result = judge(manifest, story, EVIDENCE)
    assert (result.verdict, result.background[0].ended) == ("VALID", "completed")


def test_a_kill_is_told_as_one():
    story = [*without(STORY, Exited)[:-1], (17.0, Stop("back")), (22.0, Deadline(22.0)), (22.0, Kill("back"))]
    story += [(22.1, Exited("main", 22.1, 0)), (22.2, Exited("back", 22.2, -9))]
    result = judge(MANIFEST, story, EVIDENCE)
    assert result.background[0].ended == "killed"
    assert "did-not-stop-when-asked" in codes(result)


def test_every_breach_of_the_state_machine_has_advice():
    source = (Path(verdict.__file__).parent / "lifecycle.py").read_text()
    [listed] = re.findall(r"BreachCode = Literal\[(.*?)\]", source, re.DOTALL)
    assert set(re.findall(r'"([a-z-]+)"', listed)) == set(verdict.ADVICE)


def test_a_log_is_the_whole_evidence_of_main():
    assert isinstance(VALID_LOG, LoadgenResult)
    assert judge(MANIFEST, STORY, EVIDENCE).main.settings == dict(VALID_LOG.settings)


def test_without_mains_window_nothing_is_proven_whatever_its_log_says():
    finished = [what for _at, what in STORY if isinstance(what, Finished) and what.name == "main"]
    story = [(at, Finished("main", what.at) if what is finished[0] else what) for at, what in STORY]
    result = judge(MANIFEST, story, EVIDENCE)
    assert (result.verdict, codes(result)) == ("INVALID", ["no-window"])


# ---------------------------------------------------------------------- mains that follow one another

FOLLOWED: list[Told] = [
    *STORY[:9],
    (16.2, NextMain("second", 16.2)),
    (16.2, Launch("second")),
    (18.0, Ready("second", 18.0)),
    (19.0, Issuing("second", 19.0, 19.0)),
    (29.0, Finished("second", 29.0, 19.0, 29.0)),
    (29.1, Exited("second", 29.1, 0)),
]
OF_FIRST = MANIFEST.model_copy(update={"first_main": "main"})
OF_SECOND = OF_FIRST.model_copy(update={"main": benchmark("second", "main", "cpu0")})


def of_second(story: list[Told]) -> Result:
    evidence = {**EVIDENCE, "second": EVIDENCE["main"]}
    return judge(OF_SECOND, until_the_next(story, "second"), evidence)


def test_each_of_several_mains_is_judged_by_its_own_window():
    first = judge(OF_FIRST, until_the_next(FOLLOWED, "main"), EVIDENCE)
    assert (first.verdict, first.findings) == ("VALID", [])
    assert (first.main.window.begin_s, first.main.window.end_s) == (6.0, 16.0)

    second = of_second(FOLLOWED)
    assert (second.verdict, second.findings) == ("VALID", [])
    assert (second.main.window.begin_s, second.main.window.end_s) == (19.0, 29.0)
    assert second.background[0].ended == "running"


def test_what_another_main_did_is_not_held_against_it():
    badly: list[Told] = [(16.1, Exited("main", 16.1, 1)) if told == STORY[8] else told for told in FOLLOWED]
    assert codes(judge(OF_FIRST, until_the_next(badly, "main"), EVIDENCE)) == ["main-exit"]
    assert codes(of_second(badly)) == []


def test_a_background_that_died_before_the_main_was_gone_breaches_its_overlap():
    died = (28.0, Exited("back", 28.0, -9))
    result = of_second([*FOLLOWED[:-2], died, *FOLLOWED[-2:]])
    assert result.verdict == "INVALID"
    assert "background-died" in codes(result)


def test_of_several_mains_one_that_was_cut_short_is_invalid():
    assert codes(of_second(FOLLOWED[:-2])) == ["cut-short"]


def test_a_main_at_which_the_run_was_stopped_tells_the_stop_and_its_end():
    stopped: list[Told] = [
        *FOLLOWED[:-2],
        (20.0, StopRequested(20.0, "SIGINT")),
        (20.0, Stop("back")),
        (20.1, Exited("second", 20.1, 0)),
        (20.2, Exited("back", 20.2, 0)),
    ]
    assert codes(of_second(stopped)) == ["stopped"]
