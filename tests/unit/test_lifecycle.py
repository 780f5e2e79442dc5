"""Little stories of events (as h11's tests are), one for each rule of the state machine."""

import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from scheduler.events import (
    Action,
    BenchmarkEvent,
    DeadlinePassed,
    Drain,
    Event,
    Exited,
    Failed,
    Finished,
    Issuing,
    Kill,
    Launch,
    Ready,
    Stalled,
    Stop,
    StopRequested,
)
from scheduler.lifecycle import (
    FAULTS,
    REAP_TIMEOUT_S,
    STAGES,
    WAITS,
    BreachCode,
    IllegalEvent,
    Phase,
    Run,
    Stage,
    Wait,
)
from scheduler.spec import Windows

ROOT = Path(__file__).parent.parent.parent
WINDOWS = Windows(
    start_timeout_s=100,
    start_buffer_s=10,
    end_buffer_s=7,
    main_timeout_s=1000,
    stop_grace_s=3,
    stall_after_s=5,
    drain_timeout_s=50,
)

STANDARD: list[Event] = [
    Ready("a", 1),
    Ready("b", 2),
    Issuing("a", 3, 2.9),
    Issuing("b", 5, 4.9),
    DeadlinePassed(15),
    Ready("main", 20),
    Issuing("main", 21, 20.9),
    Finished("main", 30, 20.9, 29.9),
    Exited("main", 31, 0),
    DeadlinePassed(37),
]
"""The whole of a valid run with two backgrounds, up to STOPPING; at 4 both issue, but for b."""

BEFORE = {"starting": 3, "buffering": 4, "measuring": 7, "draining": 8}
"""How many events of STANDARD lie before the middle of each phase (a issues in all of them)."""


def a_run(
    *, background: tuple[str, ...] = ("a", "b"), mains: tuple[str, ...] = ("main",), **policy: Any
) -> Run:
    return Run(background=background, mains=mains, windows=WINDOWS, **policy)


def told(run: Run, *events: Event) -> list[Action]:
    """Tell the run these events; the actions of the last."""
    actions: list[Action] = []
    for event in events:
        actions = run.handle(event)

    return actions


def reached(phase: str, **policy: Any) -> Run:
    run = a_run(**policy)
    run.begin(0)
    told(run, *STANDARD[: BEFORE[phase]])
    assert run.phase == phase
    return run


def codes(run: Run) -> list[tuple[str, str | None]]:
    return [(breach.code, breach.name) for breach in run.breaches]


def test_a_valid_run_from_launch_to_over():
    run = a_run()
    assert (run.phase, run.deadline) == (Phase.STARTING, None)
    assert run.begin(0) == [Launch("a"), Launch("b")]
    assert (run.phase, run.deadline) == (Phase.STARTING, 100)
    assert told(run, Ready("a", 1), Ready("b", 2), Issuing("a", 3, 2.9)) == []
    assert run.stages == {"a": Stage.ISSUING, "b": Stage.READY, "main": Stage.NOT_STARTED}

    assert told(run, Issuing("b", 5, 4.9)) == []
    assert (run.phase, run.deadline) == (Phase.BUFFERING, 15)

    assert told(run, DeadlinePassed(15.01)) == [Launch("main")]
    assert (run.phase, run.deadline) == (Phase.MEASURING, 1015.01)

    assert told(run, Ready("main", 20), Issuing("main", 21, 20.9), Finished("main", 30)) == []
    assert (run.phase, run.deadline) == (Phase.DRAINING, 37)

    assert told(run, Exited("main", 31, 0)) == []
    assert told(run, DeadlinePassed(37)) == [Stop("a"), Stop("b")]
    assert (run.phase, run.deadline) == (Phase.STOPPING, 40)

    assert told(run, Exited("b", 37.1, 0), Exited("a", 37.2, 0)) == []
    assert (run.phase, run.deadline) == (Phase.OVER, None)
    assert run.breaches == ()
    assert set(run.stages.values()) == {Stage.GONE}


def test_a_baseline_waits_for_no_background_at_either_end():
    run = a_run(background=())
    assert run.begin(2) == [Launch("main")]
    assert (run.phase, run.deadline) == (Phase.MEASURING, 1002)

    assert told(run, Ready("main", 3), Issuing("main", 4, 4), Finished("main", 9)) == [Stop("main")]
    assert (run.phase, run.deadline) == (Phase.STOPPING, 12)
    told(run, Exited("main", 9.1, 0))
    assert (run.phase, run.breaches) == (Phase.OVER, ())


def test_the_start_buffer_counts_from_the_last_to_issue_though_told_out_of_order():
    run = a_run()
    run.begin(0)
    told(run, Ready("a", 1), Ready("b", 2), Issuing("b", 6, 5.9), Issuing("a", 5.5, 5.4))
    assert run.deadline == 16


def test_start_timeout_names_who_does_not_issue():
    run = reached("starting")
    assert told(run, DeadlinePassed(100)) == [Stop("a"), Stop("b")]
    assert run.phase is Phase.STOPPING
    (breach,) = run.breaches
    assert (breach.code, breach.name, breach.at) == ("start-timeout", "b", 100)
    assert breach.message == "ready at the deadline of 100 s"


def test_main_timeout():
    run = reached("measuring")
    assert told(run, DeadlinePassed(1015)) == [Stop("a"), Stop("b"), Stop("main")]
    assert (run.phase, codes(run)) == (Phase.STOPPING, [("main-timeout", "main")])


@pytest.mark.parametrize("on_breach", ["stop", "record"])
@pytest.mark.parametrize("code", [0, 1, -11])
def test_main_dead_is_not_main_finished(on_breach: str, code: int):
    run = reached("measuring", on_breach=on_breach)
    assert told(run, Exited("main", 25, code)) == [Stop("a"), Stop("b")]
    assert (run.phase, codes(run)) == (Phase.STOPPING, [("main-died", "main")])
    words = "ended by signal 11" if code < 0 else f"exited with code {code}"
    assert run.breaches[0].message == f"{words} while issuing, the run measuring"


def test_main_may_die_while_loading():
    run = a_run(background=())
    run.begin(0)
    assert told(run, Exited("main", 1, 1)) == []
    assert (run.phase, codes(run)) == (Phase.OVER, [("main-died", "main")])


def test_a_main_that_loadgen_gave_no_query_has_finished():
    run = a_run(background=())
    run.begin(0)
    told(run, Ready("main", 1), Finished("main", 2), Exited("main", 3, 0))
    assert (run.phase, run.breaches) == (Phase.OVER, ())


def test_a_stalled_main_is_noted_once_and_goes_on():
    run = reached("measuring")
    assert told(run, Stalled("main", 28, 22), Stalled("main", 29, 22)) == []
    assert (run.phase, codes(run)) == (Phase.MEASURING, [("main-stalled", "main")])
    assert "completed nothing for 6.0 s" in run.breaches[0].message


@pytest.mark.parametrize("phase", ["draining", "stopping", "killing"])
@pytest.mark.parametrize(
    ("code", "expected"), [(0, []), (1, [("main-exit", "main")]), (-6, [("main-exit", "main")])]
)
def test_mains_exit_code_after_finishing_counts(phase: str, code: int, expected: list[Any]):
    run = reached("draining")
    told(
        run,
        *{
            "draining": [],
            "stopping": [DeadlinePassed(37)],
            "killing": [DeadlinePassed(37), DeadlinePassed(40)],
        }[phase],
    )
    before = run.phase
    told(run, Exited("main", 41, code))
    assert (run.phase, codes(run)) == (before, expected)


DEEDS: dict[str, tuple[list[Event], str]] = {
    "dies": ([Exited("a", 33, -9)], "background-died"),
    "exits 0 early": ([Exited("a", 33, 0)], "background-died"),
    "finishes": ([Finished("a", 33)], "background-finished"),
    "stalls": ([Stalled("a", 33, 25)], "background-stalled"),
}


@pytest.mark.parametrize("phase", list(BEFORE))
@pytest.mark.parametrize("deed", list(DEEDS))
def test_a_breach_by_background_stops_the_run(phase: str, deed: str):
    run = reached(phase)
    living = [name for name, stage in run.stages.items() if stage is not Stage.NOT_STARTED]
    events, code = DEEDS[deed]
    actions = told(run, *events)
    assert actions == [Stop(name) for name in living if run.stages[name] is not Stage.GONE]
    assert (run.phase, run.deadline) == (Phase.STOPPING, 36)
    assert codes(run) == [(code, "a")]
    assert run.breaches[0].message.endswith(f"the run {phase}")


@pytest.mark.parametrize("phase", list(BEFORE))
@pytest.mark.parametrize("deed", list(DEEDS))
def test_a_breach_by_background_is_only_noted_if_asked(phase: str, deed: str):
    run = reached(phase, on_breach="record")
    deadline = run.deadline
    events, code = DEEDS[deed]
    assert told(run, *events) == []
    assert (run.phase, run.deadline) == (phase, deadline)
    assert codes(run) == [(code, "a")]

    later = [event if not isinstance(event, DeadlinePassed) else None for event in STANDARD[BEFORE[phase] :]]
    for event in later:
        run.handle(event or DeadlinePassed(run.deadline or 0))

    assert run.phase is Phase.STOPPING
    assert codes(run) == [(code, "a")]


@pytest.mark.parametrize("on_breach", ["stop", "record"])
@pytest.mark.parametrize(
    ("end", "code"), [(Exited("b", 4, 0), "background-died"), (Finished("b", 4), "background-finished")]
)
def test_a_background_that_can_never_issue_stops_the_run_in_either_policy(
    on_breach: str, end: Event, code: str
):
    run = reached("starting", on_breach=on_breach)
    told(run, end)
    assert (run.phase, codes(run)) == (Phase.STOPPING, [(code, "b")])


def test_one_normal_end_is_one_breach():
    run = reached("measuring", on_breach="record")
    told(run, Finished("a", 25), Exited("a", 26, 0))
    assert codes(run) == [("background-finished", "a")]


def test_an_error_after_an_early_finish_is_a_second_breach():
    run = reached("measuring", on_breach="record")
    told(run, Finished("a", 25), Exited("a", 26, 1))
    assert codes(run) == [("background-finished", "a"), ("background-died", "a")]


def test_a_stall_is_noted_once_for_each_benchmark():
    run = reached("measuring", on_breach="record")
    told(run, Stalled("a", 25, 19), Stalled("b", 25, 19), Stalled("a", 35, 29), Exited("b", 36, 1))
    assert codes(run) == [("background-stalled", "a"), ("background-stalled", "b"), ("background-died", "b")]


def draining(**policy: Any) -> Run:
    run = reached("draining", on_main_end="drain", **policy)
    assert told(run, DeadlinePassed(37)) == [Drain("a"), Drain("b")]
    assert (run.phase, run.deadline) == (Phase.DRAINING, 87)
    return run


def test_drained_backgrounds_may_finish():
    run = draining()
    assert told(run, Exited("main", 38, 0), Finished("a", 40), Exited("a", 41, 0)) == []
    assert run.phase is Phase.DRAINING

    assert told(run, Finished("b", 50)) == [Stop("b")]
    told(run, Exited("b", 51, 0))
    assert (run.phase, run.breaches) == (Phase.OVER, ())


@pytest.mark.parametrize(
    ("events", "code"),
    [
        ([Exited("a", 40, 0)], "background-died"),
        ([Exited("a", 40, 1)], "background-died"),
        ([Finished("a", 39), Exited("a", 40, 1)], "background-died"),
        ([Stalled("a", 40, 30)], "background-stalled"),
    ],
)
def test_drained_backgrounds_may_not_die_or_stall(events: list[Event], code: str):
    run = draining()
    told(run, *events)
    assert (run.phase, codes(run)) == (Phase.STOPPING, [(code, "a")])


def test_drain_timeout():
    run = draining()
    assert told(run, Finished("a", 40), DeadlinePassed(87)) == [Stop("a"), Stop("b"), Stop("main")]
    assert codes(run) == [("drain-timeout", "b")]


def test_drain_is_told_only_to_those_that_issue():
    run = reached("draining", on_main_end="drain", on_breach="record")
    assert told(run, Exited("a", 33, 1), DeadlinePassed(37)) == [Drain("b")]


def test_nobody_left_to_drain():
    run = reached("draining", on_main_end="drain", on_breach="record")
    assert told(run, Exited("a", 33, 1), Finished("b", 34), DeadlinePassed(37)) == [Stop("b"), Stop("main")]


def test_whoever_does_not_stop_is_killed_and_then_given_up():
    run = reached("measuring")
    told(run, Exited("a", 25, -9), Exited("main", 26, 0))
    assert told(run, DeadlinePassed(28)) == [Kill("b")]
    assert (run.phase, run.deadline) == (Phase.STOPPING, 28 + REAP_TIMEOUT_S)

    assert told(run, DeadlinePassed(33)) == []
    assert (run.phase, run.deadline) == (Phase.OVER, None)
    assert codes(run) == [("background-died", "a"), ("would-not-stop", "b")]
    assert run.breaches[1].message == "issuing at the deadline of 5 s"


def test_killed_is_gone():
    run = reached("measuring")
    told(run, Exited("main", 26, 1), DeadlinePassed(29), Exited("a", 29.1, -9), Exited("b", 29.2, -9))
    assert (run.phase, codes(run)) == (Phase.OVER, [("main-died", "main")])


@pytest.mark.parametrize("phase", list(BEFORE))
def test_the_first_stop_request_asks_the_second_insists_the_third_is_nothing(phase: str):
    run = reached(phase)
    living = [name for name, stage in run.stages.items() if stage is not Stage.NOT_STARTED]
    assert told(run, StopRequested(35, "SIGINT")) == [Stop(name) for name in living]
    assert (run.phase, run.deadline) == (Phase.STOPPING, 38)
    assert codes(run) == [("stopped", None)]
    assert run.breaches[0].message == "stop requested: SIGINT"

    assert told(run, StopRequested(36, "SIGINT")) == [Kill(name) for name in living]
    assert run.deadline == 36 + REAP_TIMEOUT_S
    assert told(run, StopRequested(36.5, "SIGINT")) == []
    told(run, *(Exited(name, 37, 0) for name in living))
    assert told(run, StopRequested(37, "SIGINT")) == []
    assert (run.phase, codes(run)) == (Phase.OVER, [("stopped", None)])


def test_one_stop_request_while_the_run_ends_by_itself_asks_for_nothing_new():
    run = reached("draining")
    told(run, DeadlinePassed(37))
    assert told(run, StopRequested(38, "SIGTERM")) == []
    assert told(run, StopRequested(38.5, "SIGTERM")) == [Kill("a"), Kill("b"), Kill("main")]
    assert run.breaches == ()


def test_late_messages_are_legal_while_stopping():
    run = reached("starting")
    assert told(run, StopRequested(4, "SIGINT"), Issuing("b", 4.1, 4), Stalled("a", 4.2, 0)) == []
    assert told(run, Finished("a", 4.3), Failed("b", 4.4, "bug", "x"), Exited("b", 4.5, 1)) == []
    assert run.stages == {"a": Stage.FINISHED, "b": Stage.GONE, "main": Stage.NOT_STARTED}
    assert codes(run) == [("stopped", None)]


def test_failed_explains_the_exit_that_follows():
    run = reached("measuring")
    why = Failed("a", 24, "memory", "CUDA out of memory", "Traceback …")
    assert told(run, why, Failed("a", 24.5, "bug", "again")) == []
    assert run.phase is Phase.MEASURING
    assert run.failures == {"a": why}

    told(run, Exited("a", 25, 1))
    expected = "exited with code 1 while issuing, the run measuring: CUDA out of memory"
    assert run.breaches[0].message == expected


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Ready("a", 8), "a is issuing"),
        (Issuing("a", 8, 8), "a is issuing"),
        (Ready("main", 8), "main is not_started"),
        (Stalled("main", 8, 8), "main is not_started"),
        (Finished("nobody", 8), "nobody is no benchmark of this run"),
        (DeadlinePassed(14.9), "the deadline is 15"),
    ],
)
def test_an_illegal_event_raises_and_changes_nothing(event: Event, reason: str):
    run = reached("buffering")
    before = copy.deepcopy(vars(run))
    with pytest.raises(IllegalEvent, match=reason) as caught:
        run.handle(event)

    assert vars(run) == before
    assert caught.value.event is event
    assert caught.value.name == getattr(event, "name", None)
    assert caught.value.phase is Phase.BUFFERING
    assert caught.value.stage == run.stages.get(getattr(event, "name", ""))
    assert "before it: Ready a at 1 s → Ready b at 2 s → Issuing a at 3 s → Issuing b" in str(caught.value)


def test_what_is_gone_says_nothing_more():
    run = reached("measuring")
    told(run, Exited("a", 25, 1))
    for event in (Ready("a", 26), Finished("a", 26), Failed("a", 26, "bug", ""), Exited("a", 26, 1)):
        with pytest.raises(IllegalEvent, match="a is gone"):
            run.handle(event)


def test_nothing_happens_before_begin_and_begin_happens_once():
    run = a_run()
    with pytest.raises(IllegalEvent, match=re.escape("the run has not begun (before it: nothing)")):
        run.handle(StopRequested(0, "SIGINT"))

    run.begin(0)
    with pytest.raises(RuntimeError, match="has begun"):
        run.begin(1)


@pytest.mark.parametrize(("background", "mains"), [(("a",), ()), (("a",), ("a",)), (("a", "a"), ("main",))])
def test_each_benchmark_has_a_name_and_there_is_a_main(background: tuple[str, ...], mains: tuple[str, ...]):
    with pytest.raises(ValueError, match="a run needs a main"):
        a_run(background=background, mains=mains)


def test_the_tables_are_whole():
    assert set(STAGES) == set(Stage)
    assert set(WAITS) == set(Wait)
    events = {event for moves in STAGES.values() for event in moves}
    assert events == {*get_args(BenchmarkEvent), Launch}
    named = {row.deadline for row in WAITS.values() if isinstance(row.deadline, str)}
    assert named == set(Windows.model_fields) - {"stall_after_s"}  # the supervisor's: it tells Stalled
    late = {row.late for row in WAITS.values() if row.late is not None}
    assert {fault.code for fault in FAULTS.values()} | late | {"stopped"} == set(get_args(BreachCode))


def test_the_page_of_states_is_drawn_from_the_tables():
    drawing = [sys.executable, str(ROOT / "scripts" / "draw-states")]
    drawn = subprocess.run(drawing, capture_output=True, text=True, check=True).stdout
    page = (ROOT / "docs" / "states.md").read_text()
    between = re.search(r"<!-- drawn by .*? -->\n\n(.*)\n<!-- end of .*? -->", page, re.DOTALL)
    assert between is not None
    assert between[1] == drawn, "run scripts/draw-states --write"
