"""The state machine walked exhaustively, and driven by worlds of workers that hypothesis makes up."""

import copy
import heapq
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count, product
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.events import (
    Action,
    DeadlinePassed,
    Drain,
    Event,
    Exited,
    Failed,
    Finished,
    Issuing,
    Kill,
    Launch,
    NextMain,
    NoMoreMains,
    Ready,
    Stalled,
    Stop,
    StopRequested,
)
from scheduler.lifecycle import REAP_TIMEOUT_S, IllegalEvent, Phase, Run, Stage
from scheduler.spec import Windows

AT_ONCE = Windows(
    start_timeout_s=0,
    start_buffer_s=0,
    end_buffer_s=0,
    main_timeout_s=0,
    stop_grace_s=0,
    stall_after_s=1,
    drain_timeout_s=0,
)
# Backgrounds, mains known at the start, and mains that are named while it goes on.
CASTS: list[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = [
    (("a", "b"), ("main",), ()),
    (("a",), ("first", "second"), ()),
    ((), ("main",), ()),
    (("a",), ("first",), ("second",)),
    ((), ("first",), ("second", "third")),
]
MORE_CASTS = [
    *CASTS,
    (("a", "b", "c"), ("first", "second"), ()),
    (("a", "b"), ("first",), ("second", "third")),
]
PHASES = list(Phase)
BASELINE_PHASES = {Phase.MEASURING, Phase.STOPPING, Phase.OVER}

# Written out anew, not read from STAGES: what the table must say.
POSSIBLE: dict[Stage, set[type[Event]]] = {
    Stage.NOT_STARTED: set(),
    Stage.LOADING: {Ready, Failed, Exited},
    Stage.READY: {Issuing, Finished, Failed, Exited},
    Stage.ISSUING: {Finished, Stalled, Failed, Exited},
    Stage.FINISHED: {Failed, Exited},
    Stage.GONE: set(),
}


# ---------------------------------------------------------------- every event in every reachable state


def every_event(run: Run, to_be_named: tuple[str, ...]) -> Iterator[Event]:
    for name in (*run.background, *run.mains, "nobody"):
        yield from (Ready(name, 0), Issuing(name, 0, 0), Finished(name, 0), Stalled(name, 0, 0))
        yield from (Failed(name, 0, "bug", "why"), Exited(name, 0, 0), Exited(name, 0, 1))

    yield from (NextMain(name, 0) for name in (*run.mains, *to_be_named))
    yield NoMoreMains(0)
    yield StopRequested(0, "SIGINT")
    yield DeadlinePassed(-1)
    yield DeadlinePassed(0 if run.deadline is None else run.deadline)


def is_possible(run: Run, event: Event) -> bool:
    match event:
        case StopRequested():
            return True
        case DeadlinePassed(at):
            return run.deadline is not None and at >= run.deadline
        case NextMain(name):
            return asks(run) and name not in run.stages
        case NoMoreMains():
            return asks(run)
        case _:
            stage = run.stages.get(event.name, Stage.NOT_STARTED)
            return run.phase is not Phase.OVER and type(event) in POSSIBLE[stage]


def asks(run: Run) -> bool:
    """For a next main: one may follow, and none is there."""
    gone = all(run.stages[name] is Stage.GONE for name in run.mains)
    return run.phase is Phase.MEASURING and run.more_mains and gone


def is_refused(run: Run, event: Event) -> bool:
    try:  # pytest.raises costs more than all else in the walk
        run.handle(event)
    except IllegalEvent:
        return True

    return False


def state_of(run: Run) -> tuple[Any, ...]:
    """All of a run that decides what it will do; times, story and messages do not."""
    kept = vars(run)
    stops_for_it = run.on_breach == "stop" and run.phase not in (Phase.STOPPING, Phase.OVER)
    in_breach = stops_for_it and any(breach.name in run.background for breach in run.breaches)
    gave_up = any(breach.code == "would-not-stop" for breach in run.breaches)
    return kept["_wait"], tuple(kept["_paths"].items()), run.more_mains, run.stop_requests, in_breach, gave_up


def check(run: Run) -> None:
    stages = run.stages
    assert (run.deadline is None) == (run.phase is Phase.OVER)
    assert run.asks_for_the_next_main == asks(run)
    launched_mains = [name for name in run.mains if stages[name] is not Stage.NOT_STARTED]
    if run.phase is Phase.MEASURING and run.on_breach == "stop":
        assert all(stages[name] is Stage.ISSUING for name in run.background)

    if run.phase in (Phase.STARTING, Phase.BUFFERING):
        assert launched_mains == []

    if run.phase in (Phase.MEASURING, Phase.DRAINING):
        assert all(stages[name] in (Stage.FINISHED, Stage.GONE) for name in launched_mains[:-1])

    if run.phase is Phase.OVER and not any(breach.code == "would-not-stop" for breach in run.breaches):
        assert set(stages.values()) <= {Stage.NOT_STARTED, Stage.GONE}


def check_step(before: Run, after: Run, actions: list[Action]) -> None:
    assert PHASES.index(before.phase) <= PHASES.index(after.phase)
    assert after.breaches[: len(before.breaches)] == before.breaches
    for action in actions:
        match action:
            case Launch(name):
                assert before.stages.get(name, Stage.NOT_STARTED) is Stage.NOT_STARTED
                assert after.stages[name] is Stage.LOADING
                others = [other for other in after.mains if other != name]
                assert all(after.stages[other] in (Stage.NOT_STARTED, Stage.GONE) for other in others)
            case Drain(name):
                assert after.on_main_end == "drain"
                assert (after.phase, after.stages[name]) == (Phase.DRAINING, Stage.ISSUING)
            case Stop(name):
                assert before.phase is not Phase.STOPPING
                assert after.phase is Phase.STOPPING
                assert after.stages[name] not in (Stage.NOT_STARTED, Stage.GONE)
            case Kill(name):
                assert before.phase is after.phase is Phase.STOPPING
                assert after.stages[name] not in (Stage.NOT_STARTED, Stage.GONE)


@pytest.mark.parametrize("on_breach", ["stop", "record"])
@pytest.mark.parametrize("on_main_end", ["kill", "drain"])
@pytest.mark.parametrize(("background", "mains", "to_be_named"), CASTS)
def test_every_event_in_every_reachable_state(
    background: tuple[str, ...],
    mains: tuple[str, ...],
    to_be_named: tuple[str, ...],
    on_main_end: Literal["kill", "drain"],
    on_breach: Literal["stop", "record"],
):
    start = Run(
        background=background,
        mains=mains,
        windows=AT_ONCE,
        on_main_end=on_main_end,
        on_breach=on_breach,
        more_mains=bool(to_be_named),
    )
    start.begin(0)
    reached = {state_of(start): start}
    come_from: dict[tuple[Any, ...], set[tuple[Any, ...]]] = defaultdict(set)
    to_walk = [start]
    while to_walk:
        run = to_walk.pop()
        check(run)
        for event in every_event(run, to_be_named):
            after = copy.copy(run)
            if not is_possible(run, event):
                assert is_refused(after, event)
                assert vars(after) == vars(run)
                continue

            check_step(run, after, after.handle(event))
            state = state_of(after)
            come_from[state].add(state_of(run))
            if state not in reached:
                reached[state] = after
                to_walk.append(after)

    assert {run.phase for run in reached.values()} == (set(Phase) if background else BASELINE_PHASES)
    assert reaching_over(reached, come_from) == set(reached)
    for run in reached.values():
        ends_by_its_deadlines_alone(copy.copy(run))


def reaching_over(reached: dict[Any, Run], come_from: dict[Any, set[Any]]) -> set[Any]:
    ending = {state for state, run in reached.items() if run.phase is Phase.OVER}
    to_walk = list(ending)
    while to_walk:
        for state in come_from[to_walk.pop()] - ending:
            ending.add(state)
            to_walk.append(state)

    return ending


def ends_by_its_deadlines_alone(run: Run) -> None:
    """Should every worker fall silent for ever, the run ends all the same, within seven waits."""
    for _ in range(7):
        if run.deadline is not None:
            run.handle(DeadlinePassed(run.deadline))

    assert run.phase is Phase.OVER


# ---------------------------------------------------------------- worlds made up


@dataclass(frozen=True, slots=True, kw_only=True)
class Manners:
    """How one worker behaves; all in seconds, None: never."""

    loads: float
    issues: float
    """After it is ready."""
    finishes: float | None
    """After it issues."""
    stalls: float | None = None
    dies: float | None = None
    """After its launch."""
    obeys: float | None = 0.1
    """A stop request."""
    drains: float = 1.0
    code: int = 0
    """Of its exit after it has finished."""


@dataclass
class World:
    """Workers that behave as told, on simulated time; keeps the facts that the run is judged by."""

    run: Run
    manners: dict[str, Manners]
    to_be_named: list[str] = field(default_factory=list)
    now: float = 0.0
    launched: dict[str, float] = field(default_factory=dict)
    issued: dict[str, float] = field(default_factory=dict)
    finished: dict[str, float] = field(default_factory=dict)
    lost: dict[str, float] = field(default_factory=dict)
    """When a benchmark first finished, stalled or exited."""
    gone: set[str] = field(default_factory=set)
    to_come: list[tuple[float, int, Event]] = field(default_factory=list)
    order: Iterator[int] = field(default_factory=count)

    def expect(self, event: Event) -> None:
        heapq.heappush(self.to_come, (event.at, next(self.order), event))

    def perform(self, action: Action) -> None:
        name, its, now = action.name, self.manners[action.name], self.now
        match action:
            case Launch():
                self.launched[name] = now
                ready, issues = now + its.loads, now + its.loads + its.issues
                self.expect(Ready(name, ready))
                self.expect(Issuing(name, issues, issues))
                if its.finishes is not None:
                    self.expect(Finished(name, issues + its.finishes))

                if its.stalls is not None:
                    self.expect(Stalled(name, issues + its.stalls, issues))

                if its.dies is not None:
                    self.expect(Failed(name, now + its.dies, "bug", "why"))
                    self.expect(Exited(name, now + its.dies, 1))
            case Drain():
                self.expect(Finished(name, now + its.drains))
            case Stop() if its.obeys is not None:
                self.expect(Exited(name, now + its.obeys, its.code if name in self.finished else 0))
            case Kill():
                self.expect(Exited(name, now, -9))

    def happens(self, event: Event) -> bool:
        """Whether the event still comes, as the worker stands."""
        if isinstance(event, StopRequested | DeadlinePassed | NextMain | NoMoreMains):
            return True

        name = event.name
        if name in self.gone:
            return False

        match event:
            case Issuing():
                self.issued[name] = event.at
            case Finished():
                if name in self.finished:
                    return False

                self.finished[name] = event.at
                self.lost.setdefault(name, event.at)
                self.expect(Exited(name, event.at + 0.5, self.manners[name].code))
            case Stalled():
                if name in self.finished:
                    return False

                self.lost.setdefault(name, event.at)
            case Exited():
                self.gone.add(name)
                self.lost.setdefault(name, event.at)

        return True

    def word(self) -> Event:
        """What is said when a next main is asked for."""
        return NextMain(self.to_be_named.pop(0), self.now) if self.to_be_named else NoMoreMains(self.now)

    def play(self) -> None:
        actions = self.run.begin(0)
        while self.run.phase is not Phase.OVER:
            check(self.run)
            for action in actions:
                self.perform(action)

            event: Event = DeadlinePassed(self.run.deadline or 0)
            if self.run.asks_for_the_next_main:
                event = self.word()
            elif self.to_come and self.to_come[0][0] <= event.at:
                event = heapq.heappop(self.to_come)[2]

            actions = []
            if self.happens(event):
                self.now = event.at
                before = copy.copy(self.run)
                actions = self.run.handle(event)
                check_step(before, self.run, actions)

        check(self.run)


def times(most: float) -> st.SearchStrategy[float]:
    return st.floats(0.001, most, allow_nan=False).map(lambda value: round(value, 3))


WINDOWS = st.builds(
    Windows,
    start_timeout_s=times(50),
    start_buffer_s=times(20),
    end_buffer_s=times(20),
    main_timeout_s=times(50),
    stop_grace_s=times(5),
    stall_after_s=st.just(1.0),
    drain_timeout_s=times(20),
)
ANY_MANNERS = st.builds(
    Manners,
    loads=times(30),
    issues=times(5),
    finishes=st.none() | times(60),
    stalls=st.none() | st.none() | times(60),
    dies=st.none() | st.none() | times(60),
    obeys=st.none() | times(4),
    drains=times(15),
    code=st.sampled_from([0, 0, 1]),
)
POLICIES = [
    {"on_main_end": end, "on_breach": breach}
    for end, breach in product(["kill", "drain"], ["stop", "record"])
]


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_in_any_world_the_run_ends_in_time_and_no_breach_means_the_overlap_held(data: st.DataObject):
    windows = data.draw(WINDOWS)
    background, mains, to_be_named = data.draw(st.sampled_from(MORE_CASTS))
    manners = {name: data.draw(ANY_MANNERS) for name in (*background, *mains, *to_be_named)}
    policy: dict[str, Any] = data.draw(st.sampled_from(POLICIES))
    run = Run(background=background, mains=mains, windows=windows, more_mains=bool(to_be_named), **policy)
    world = World(run, manners, list(to_be_named))
    for at in data.draw(st.lists(times(100), max_size=3)) if data.draw(st.booleans()) else []:
        world.expect(StopRequested(at, "SIGINT"))

    world.play()

    longest = windows.start_timeout_s + windows.start_buffer_s + windows.main_timeout_s * len(run.mains)
    longest += windows.end_buffer_s + windows.drain_timeout_s + windows.stop_grace_s + REAP_TIMEOUT_S
    assert world.now <= longest + 1e-6
    assert world.gone == set(world.launched)
    assert {breach.name for breach in run.breaches} <= {None, *background, *run.mains}
    if run.breaches:
        return

    buffered = max((world.issued[name] for name in background), default=0) + windows.start_buffer_s
    assert background == () or world.launched[mains[0]] >= buffered - 1e-6
    assert run.mains == (*mains, *to_be_named)
    outlived = world.finished[run.mains[-1]] + windows.end_buffer_s
    assert all(world.lost[name] >= outlived - 1e-6 for name in background)
    assert all(manners[name].code == 0 or name not in world.finished for name in run.mains)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_where_nobody_misbehaves_there_is_no_breach(data: st.DataObject):
    windows = Windows(
        start_timeout_s=40,
        start_buffer_s=5,
        end_buffer_s=5,
        main_timeout_s=120,
        stop_grace_s=5,
        stall_after_s=1,
        drain_timeout_s=20,
    )
    background, mains, to_be_named = data.draw(st.sampled_from(MORE_CASTS))
    good = st.builds(
        Manners, loads=times(30), issues=times(5), finishes=st.none(), obeys=times(4), drains=times(15)
    )
    manners = {name: data.draw(good) for name in background}
    good_main = st.builds(Manners, loads=times(30), issues=times(5), finishes=times(60), obeys=times(4))
    manners |= {name: data.draw(good_main) for name in (*mains, *to_be_named)}
    policy: dict[str, Any] = data.draw(st.sampled_from(POLICIES))
    run = Run(background=background, mains=mains, windows=windows, more_mains=bool(to_be_named), **policy)
    world = World(run, manners, list(to_be_named))

    world.play()

    assert run.breaches == ()
    assert world.gone == {*background, *mains, *to_be_named}
    drained = {name for name in background if name in world.finished}
    assert drained == (set(background) if policy["on_main_end"] == "drain" else set())
