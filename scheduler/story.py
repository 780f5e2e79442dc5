"""The record's events and actions, sorted by benchmark."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from scheduler import events
from scheduler.events import Action, Event

Story = Sequence[tuple[float, Event | Action]]
"""Each with the time it was handled, s; in order."""


@dataclass(slots=True)
class BenchmarkStory:
    """What the events tell of one benchmark."""

    ready: events.Ready | None = None
    issuing: events.Issuing | None = None
    finished: events.Finished | None = None
    failed: events.Failed | None = None
    exited: events.Exited | None = None
    launched_at: float | None = None
    asked_to_end: bool = False
    killed: bool = False
    still_runs: bool = False
    """Launched and not gone when the story ends, as other mains are to follow."""


@dataclass(slots=True)
class RunStory:
    """What the events tell of the run."""

    benchmarks: dict[str, BenchmarkStory] = field(default_factory=dict)
    first_stop_at: float | None = None
    last_exit_at: float | None = None


def until_the_next(story: Story, name: str) -> Story:
    """Where mains follow one another: the story of that one, up to the word on what follows it."""
    gone = False
    for number, (_at, what) in enumerate(story):
        gone |= isinstance(what, events.Exited) and what.name == name
        if gone and isinstance(what, events.NextMain | events.NoMoreMains):
            return story[:number]

    return story


def read_story(story: Story, *, mains_follow: bool = False) -> RunStory:
    """Sort events and actions by benchmark.

    Args:
        mains_follow: the story may be one of several mains', and end where the next begins.
    """
    run = RunStory()
    for at, what in story:
        if isinstance(what, events.StopRequested | events.DeadlinePassed | events.NoMoreMains):
            continue

        one = run.benchmarks.setdefault(what.name, BenchmarkStory())
        match what:
            case events.Launch():
                one.launched_at = at
            case events.Stop() | events.Kill():
                one.asked_to_end = True
                one.killed |= isinstance(what, events.Kill)
                run.first_stop_at = at if run.first_stop_at is None else run.first_stop_at
            case events.Ready():
                one.ready = what
            case events.Issuing():
                one.issuing = what
            case events.Finished():
                one.finished = what
            case events.Failed():
                one.failed = what
            case events.Exited():
                one.exited = what
                run.last_exit_at = at

    if mains_follow:
        for one in run.benchmarks.values():
            one.still_runs = one.exited is None and not one.asked_to_end

    return run
