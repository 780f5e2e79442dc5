"""The state machine of a run: events in, actions out; no clock, no process, no sleep.

Read it from the top; what a run may do is in tables, the code below them only applies them.

1. ``STAGES``: each benchmark is in one **stage**, and an event may or may not happen in it.
2. ``FAULTS``: what a benchmark must not do, in which waits, and the code of the breach it then is.
3. ``WAITS``: the run is always in one **wait**: it waits for a **cause** to hold, never past a deadline.
   A **phase** is one wait or two (MEASURING: main, then what follows it; DRAINING: outlive main, then drain;
   STOPPING: ask, then kill).

An event is first refused (``IllegalEvent``, nothing changes) or taken: it moves its benchmark's stage and may
be a breach. Then ``_settle`` follows the first cause of the present wait that holds, until none does.

Example: what may happen when a background benchmark dies while main measures? The event is ``Exited`` in
stage ISSUING, so its stage becomes GONE. The row ("background", DIES) of ``FAULTS`` makes it a breach,
``background-died``. The row MAIN of ``WAITS`` has the cause OVERLAP_BROKEN: if ``on_breach`` is "stop" it
holds, the run enters GRACE and tells Stop to all that live; if it is "record" main goes on being measured.
Either way the breach stays, and makes the run INVALID.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from typing import Literal, NamedTuple

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
    NextMain,
    NoMoreMains,
    Ready,
    Stalled,
    Stop,
    StopRequested,
)
from scheduler.spec import Windows

REAP_TIMEOUT_S = 5.0
"""From SIGKILL to giving up: only a process held by the kernel lives longer."""

STORY_LENGTH = 8
"""The last events an ``IllegalEvent`` tells."""


# ---------------------------------------------------------------- 1. one benchmark


class Stage(StrEnum):
    """How far one benchmark has come."""

    NOT_STARTED = auto()
    LOADING = auto()
    READY = auto()
    ISSUING = auto()
    FINISHED = auto()
    GONE = auto()


# Failed moves nothing: it says why the Exited that follows will come.
# READY –Finished→ FINISHED: LoadGen may return without one query.
# fmt: off
STAGES: Mapping[Stage, Mapping[type[BenchmarkEvent] | type[Launch], Stage]] = {
    Stage.NOT_STARTED: {Launch: Stage.LOADING},
    Stage.LOADING: {Ready: Stage.READY, Failed: Stage.LOADING, Exited: Stage.GONE},
    Stage.READY: {Issuing: Stage.ISSUING, Finished: Stage.FINISHED, Failed: Stage.READY, Exited: Stage.GONE},
    Stage.ISSUING: {Finished: Stage.FINISHED, Stalled: Stage.ISSUING, Failed: Stage.ISSUING,
                    Exited: Stage.GONE},
    Stage.FINISHED: {Failed: Stage.FINISHED, Exited: Stage.GONE},
    Stage.GONE: {},
}
# fmt: on


# ---------------------------------------------------------------- 2. what must not happen


class Deed(StrEnum):
    """What a benchmark does that may be a breach."""

    FINISHES = "finishes"
    STALLS = "stalls"
    DIES = "exits before it has finished"
    EXITS_IN_ERROR = "exits with a code other than 0 after it has finished"


class Wait(StrEnum):
    """What the run is waiting for; the rows of ``WAITS``."""

    ALL_ISSUE = auto()
    START_BUFFER = auto()
    MAIN = auto()
    NEXT_MAIN = auto()
    END_BUFFER = auto()
    DRAIN = auto()
    GRACE = auto()
    REAP = auto()
    NOTHING = auto()


# fmt: off
BreachCode = Literal[
    "background-finished", "background-stalled", "background-died", "main-stalled", "main-died", "main-exit",
    "start-timeout", "main-timeout", "drain-timeout", "would-not-stop", "stopped",
]
# fmt: on


BEFORE_DRAIN = (Wait.ALL_ISSUE, Wait.START_BUFFER, Wait.MAIN, Wait.NEXT_MAIN, Wait.END_BUFFER)
BEFORE_STOPPING = (*BEFORE_DRAIN, Wait.DRAIN)
EVERYWHERE = tuple(Wait)


class Fault(NamedTuple):
    """What a deed is a breach of, and in which waits it is one."""

    code: BreachCode
    waits: tuple[Wait, ...]


FAULTS: Mapping[tuple[Literal["background", "main"], Deed], Fault] = {
    ("background", Deed.FINISHES): Fault("background-finished", BEFORE_DRAIN),  # the drain asks for it
    ("background", Deed.STALLS): Fault("background-stalled", BEFORE_STOPPING),
    ("background", Deed.DIES): Fault("background-died", BEFORE_STOPPING),
    ("background", Deed.EXITS_IN_ERROR): Fault("background-died", BEFORE_STOPPING),
    ("main", Deed.STALLS): Fault("main-stalled", BEFORE_STOPPING),  # main_timeout_s ends it
    ("main", Deed.DIES): Fault("main-died", BEFORE_STOPPING),
    ("main", Deed.EXITS_IN_ERROR): Fault("main-exit", EVERYWHERE),  # its result is not to be trusted
}


# ---------------------------------------------------------------- 3. the run


class Phase(StrEnum):
    """How far the run has come."""

    STARTING = auto()
    BUFFERING = auto()
    MEASURING = auto()
    DRAINING = auto()
    STOPPING = auto()
    OVER = auto()


class Cause(Enum):
    """Why a wait ends: in words, and as a question to the run."""

    def __init__(self, words: str, holds: Callable[["Run"], bool]) -> None:
        self.words = words
        self.holds = holds

    # fmt: off
    DEADLINE = "the deadline passes", lambda run: run.deadline_passed
    TO_BE_DRAINED = ("the deadline passes, on_main_end is drain",
                     lambda run: run.deadline_passed and run.on_main_end == "drain")
    STOP_REQUESTED = "a stop is requested", lambda run: run.stop_requests > 0
    STOP_INSISTED = "a stop is requested a second time", lambda run: run.stop_requests > 1
    OVERLAP_BROKEN = ("a background benchmark is in breach, on_breach is stop",
        lambda run: run.on_breach == "stop" and any(b.name in run.background for b in run.breaches))
    NO_BACKGROUND = "there is no background", lambda run: not run.background
    ALL_HAVE_ISSUED = "each background benchmark has issued", lambda run: not background_to_issue(run)
    ONE_NEVER_WILL = ("a background benchmark ends and never issued, whatever on_breach is",
        lambda run: any(run.stages[one] in (Stage.FINISHED, Stage.GONE) for one in background_to_issue(run)))
    MAIN_LOST = ("main is gone and never finished",
                 lambda run: any(run.has_been(name, Stage.GONE) and not run.has_been(name, Stage.FINISHED)
                                 for name in run.mains))
    MAINS_FINISHED = ("the last main finishes",
                      lambda run: not run.more_mains
                      and all(run.has_been(name, Stage.FINISHED) for name in run.mains))
    NEXT_MAIN = ("main has finished and is gone, another follows",
                 lambda run: any(run.stages[name] is Stage.NOT_STARTED for name in main_at_hand(run)))
    MAIN_GONE = ("main has finished and is gone, more mains may follow",
                 lambda run: run.more_mains and not main_at_hand(run))
    NO_MORE_MAINS = "no more mains follow", lambda run: not run.more_mains
    NONE_TO_DRAIN = "no background benchmark issues any more", lambda run: not background_issuing(run)
    ALL_GONE = "all are gone", lambda run: not all_that_live(run)
    # fmt: on


def background_to_issue(run: "Run") -> list[str]:
    return [name for name in run.background if not run.has_been(name, Stage.ISSUING)]


def background_issuing(run: "Run") -> list[str]:
    return [name for name in run.background if run.stages[name] is Stage.ISSUING]


def main_at_hand(run: "Run") -> list[str]:
    """The main that runs, or is the next to; none once the last is gone."""
    return [name for name in run.mains if run.stages[name] is not Stage.GONE][:1]


def all_that_live(run: "Run") -> list[str]:
    return [name for name, stage in run.stages.items() if stage not in (Stage.NOT_STARTED, Stage.GONE)]


def nobody(_run: "Run") -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Row:
    """One row of ``WAITS``."""

    phase: Phase
    tells: type[Launch] | type[Drain] | type[Stop] | type[Kill] | None
    """Told on entry to each of ``awaited``."""
    awaited: Callable[["Run"], Sequence[str]]
    """Whom the wait is for."""
    deadline: str | float | None
    """A field of ``Windows``, or seconds; counted from the entry."""
    late: BreachCode | None
    """What those still awaited are in breach of when the deadline passes."""
    moves: Mapping[Cause, Wait]
    """Where to, by cause; the first that holds is taken."""


ANYTIME = {Cause.STOP_REQUESTED: Wait.GRACE, Cause.OVERLAP_BROKEN: Wait.GRACE}

# fmt: off
WAITS: Mapping[Wait, Row] = {
    #                     phase             tells   awaited              deadline           late
    Wait.ALL_ISSUE:    Row(Phase.STARTING,  Launch, background_to_issue, "start_timeout_s", "start-timeout",
        ANYTIME | {Cause.ONE_NEVER_WILL: Wait.GRACE, Cause.ALL_HAVE_ISSUED: Wait.START_BUFFER,
                   Cause.DEADLINE: Wait.GRACE}),
    Wait.START_BUFFER: Row(Phase.BUFFERING, None,   nobody,              "start_buffer_s",  None,
        ANYTIME | {Cause.NO_BACKGROUND: Wait.MAIN, Cause.DEADLINE: Wait.MAIN}),
    Wait.MAIN:         Row(Phase.MEASURING, Launch, main_at_hand,        "main_timeout_s",  "main-timeout",
        ANYTIME | {Cause.MAIN_LOST: Wait.GRACE, Cause.MAINS_FINISHED: Wait.END_BUFFER,
                   Cause.NEXT_MAIN: Wait.MAIN, Cause.MAIN_GONE: Wait.NEXT_MAIN, Cause.DEADLINE: Wait.GRACE}),
    Wait.NEXT_MAIN:    Row(Phase.MEASURING, None,   nobody,              "main_timeout_s",  None,
        ANYTIME | {Cause.NEXT_MAIN: Wait.MAIN, Cause.NO_MORE_MAINS: Wait.END_BUFFER,
                   Cause.DEADLINE: Wait.END_BUFFER}),
    Wait.END_BUFFER:   Row(Phase.DRAINING,  None,   nobody,              "end_buffer_s",    None,
        ANYTIME | {Cause.NO_BACKGROUND: Wait.GRACE, Cause.TO_BE_DRAINED: Wait.DRAIN,
                   Cause.DEADLINE: Wait.GRACE}),
    Wait.DRAIN:        Row(Phase.DRAINING,  Drain,  background_issuing,  "drain_timeout_s", "drain-timeout",
        ANYTIME | {Cause.NONE_TO_DRAIN: Wait.GRACE, Cause.DEADLINE: Wait.GRACE}),
    Wait.GRACE:        Row(Phase.STOPPING,  Stop,   all_that_live,       "stop_grace_s",    None,
        {Cause.ALL_GONE: Wait.NOTHING, Cause.STOP_INSISTED: Wait.REAP, Cause.DEADLINE: Wait.REAP}),
    Wait.REAP:         Row(Phase.STOPPING,  Kill,   all_that_live,       REAP_TIMEOUT_S,    "would-not-stop",
        {Cause.ALL_GONE: Wait.NOTHING, Cause.DEADLINE: Wait.NOTHING}),
    Wait.NOTHING:      Row(Phase.OVER,      None,   nobody,              None,              None, {}),
}
# fmt: on


# ---------------------------------------------------------------- the machine


@dataclass(frozen=True, slots=True)
class Breach:
    """One thing that went wrong, as a fact; the verdict judges it."""

    code: BreachCode
    name: str | None
    """The benchmark's; None if it concerns the run."""
    at: float
    message: str


class IllegalEvent(Exception):
    """An event that cannot have happened: a bug in the harness, not the user's error. Nothing has changed."""

    def __init__(self, run: "Run", event: Event, reason: str) -> None:
        self.event = event
        self.name: str | None = getattr(event, "name", None)
        self.stage = run.stages.get(self.name) if self.name is not None else None
        self.phase = run.phase
        self.story = run.story
        before = " → ".join(_told(earlier) for earlier in self.story) or "nothing"
        super().__init__(f"{_told(event)} in phase {self.phase}: {reason} (before it: {before})")


class Run:
    """One run: backgrounds, then mains one after another over them, then the end of all.

    With ``more_mains`` the mains are not known beforehand: whenever the last one is gone the run waits for the
    word which is next (``NextMain``), or that none is (``NoMoreMains``).

    Attributes are replaced, never changed in place: ``copy.copy`` of a run is a snapshot of it.

    Raises:
        ValueError: no main, or two benchmarks of one name.
    """

    def __init__(
        self,
        *,
        background: Sequence[str],
        mains: Sequence[str],
        windows: Windows,
        on_main_end: Literal["kill", "drain"] = "kill",
        on_breach: Literal["stop", "record"] = "stop",
        more_mains: bool = False,
    ) -> None:
        names = (*background, *mains)
        if not mains or len(set(names)) < len(names):
            raise ValueError(f"a run needs a main and a name for each benchmark, not {names}")

        self.background = tuple(background)
        self.mains = tuple(mains)
        self.windows = windows
        self.on_main_end = on_main_end
        self.on_breach = on_breach
        self.more_mains = more_mains
        self.deadline: float | None = None
        """Seconds on the run's clock; None: nothing is waited for."""
        self.deadline_passed = False
        self.stop_requests = 0
        self.breaches: tuple[Breach, ...] = ()
        self.failures: Mapping[str, Failed] = {}
        """What a benchmark said of why it would die, by name; the first if it said several."""
        self.story: tuple[Event, ...] = ()
        self._wait: Wait | None = None
        self._paths: Mapping[str, tuple[Stage, ...]] = dict.fromkeys(names, (Stage.NOT_STARTED,))
        self._now = 0.0

    @property
    def phase(self) -> Phase:
        return Phase.STARTING if self._wait is None else WAITS[self._wait].phase

    @property
    def asks_for_the_next_main(self) -> bool:
        """Whether the run waits for NextMain or NoMoreMains."""
        return self._wait is Wait.NEXT_MAIN

    @property
    def stages(self) -> Mapping[str, Stage]:
        return {name: path[-1] for name, path in self._paths.items()}

    def has_been(self, name: str, stage: Stage) -> bool:
        return stage in self._paths[name]

    def begin(self, at: float) -> list[Action]:
        """Start the run (once); ``at`` in seconds on its clock."""
        if self._wait is not None:
            raise RuntimeError(f"the run has begun, it is {self.phase}")

        self._now = at
        return self._enter(Wait.ALL_ISSUE)

    def handle(self, event: Event) -> list[Action]:
        """Take one event; what is to be done now, in this order.

        Raises:
            IllegalEvent: it cannot happen now; nothing has changed.
        """
        wait = self._legal(event)
        # Pipes interleave: an event may be told after a later one. Waits count from the latest time known.
        self._now = max(self._now, event.at)
        self.story = (*self.story, event)[-STORY_LENGTH:]
        match event:
            case DeadlinePassed():
                row = WAITS[wait]
                for name in row.awaited(self):
                    if row.late is not None:
                        message = f"{self.stages[name]} at the deadline of {self._seconds(row):g} s"
                        self._note(row.late, name, event.at, message)

                self.deadline_passed = True
            case StopRequested():
                if wait in BEFORE_STOPPING:
                    self._note("stopped", None, event.at, f"stop requested: {event.reason}")

                self.stop_requests = min(self.stop_requests + 1, 2)
            case NextMain(name):
                self.mains = (*self.mains, name)
                self._paths = {**self._paths, name: (Stage.NOT_STARTED,)}
            case NoMoreMains():
                self.more_mains = False
            case _:
                self._take(event, wait)

        return self._settle(wait)

    def _legal(self, event: Event) -> Wait:
        """The present wait, if the event can happen in it (else IllegalEvent)."""
        if self._wait is None:
            raise IllegalEvent(self, event, "the run has not begun")

        if isinstance(event, DeadlinePassed):
            if self.deadline is None or event.at < self.deadline:
                raise IllegalEvent(self, event, f"the deadline is {self.deadline}")
        elif isinstance(event, NextMain | NoMoreMains):
            if self._wait is not Wait.NEXT_MAIN or getattr(event, "name", None) in self._paths:
                raise IllegalEvent(self, event, "no next main was asked for, or not one of that name")
        elif not isinstance(event, StopRequested):
            stage = self.stages.get(event.name)
            if stage is None or self.phase is Phase.OVER or type(event) not in STAGES[stage]:
                raise IllegalEvent(self, event, f"{event.name} is {stage or 'no benchmark of this run'}")

        return self._wait

    def _take(self, event: BenchmarkEvent, wait: Wait) -> None:
        stage = self.stages[event.name]
        if isinstance(event, Failed) and event.name not in self.failures:
            self.failures = {**self.failures, event.name: event}

        deed = _deed(event, stage)
        fault = FAULTS.get(("main" if event.name in self.mains else "background", deed)) if deed else None
        if fault is not None and wait in fault.waits:
            self._note(fault.code, event.name, event.at, self._words(event, stage))

        self._move(event.name, STAGES[stage][type(event)])

    def _move(self, name: str, stage: Stage) -> None:
        if stage is not self._paths[name][-1]:
            self._paths = {**self._paths, name: (*self._paths[name], stage)}

    def _settle(self, wait: Wait) -> list[Action]:
        """Leave by the first cause that holds, and so on until none does."""
        for cause, to in WAITS[wait].moves.items():
            if cause.holds(self):
                return self._enter(to)

        return []

    def _enter(self, wait: Wait) -> list[Action]:
        row = WAITS[wait]
        seconds = self._seconds(row)
        self._wait = wait
        self.deadline = None if seconds is None else self._now + seconds
        self.deadline_passed = False
        told = [] if row.tells is None else [row.tells(name) for name in row.awaited(self)]
        for action in told:
            if isinstance(action, Launch):
                self._move(action.name, STAGES[Stage.NOT_STARTED][Launch])

        return [*told, *self._settle(wait)]

    def _seconds(self, row: Row) -> float | None:
        return getattr(self.windows, row.deadline) if isinstance(row.deadline, str) else row.deadline

    def _note(self, code: BreachCode, name: str | None, at: float, message: str) -> None:
        """Keep a breach; each code is kept once for each benchmark."""
        if not any((kept.code, kept.name) == (code, name) for kept in self.breaches):
            self.breaches = (*self.breaches, Breach(code, name, at, message))

    def _words(self, event: BenchmarkEvent, stage: Stage) -> str:
        match event:
            case Exited(name, _, code):
                ending = f"ended by signal {-code}" if code < 0 else f"exited with code {code}"
                failure = self.failures.get(name)
                why = f": {failure.message}" if failure else ""
                return f"{ending} while {stage}, the run {self.phase}{why}"
            case Stalled():
                return (
                    f"completed nothing for {event.at - event.last_completion_at:.1f} s, the run {self.phase}"
                )
            case _:
                return f"{type(event).__name__.lower()} unasked, the run {self.phase}"


def _deed(event: BenchmarkEvent, stage: Stage) -> Deed | None:
    match event:
        case Finished():
            return Deed.FINISHES
        case Stalled():
            return Deed.STALLS
        case Exited(code=code) if stage is Stage.FINISHED:
            return Deed.EXITS_IN_ERROR if code != 0 else None
        case Exited():
            return Deed.DIES
        case _:
            return None


def _told(event: Event) -> str:
    return f"{type(event).__name__} {getattr(event, 'name', 'of the run')} at {event.at:g} s"
