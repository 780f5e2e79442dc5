"""A run while it goes on: a live table on a terminal, plain lines elsewhere."""

from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scheduler import events, lifecycle
from scheduler.assignment import Assignment, Plan
from scheduler.clock import Clock
from scheduler.events import Action, Event
from scheduler.lifecycle import Phase
from scheduler.record import RunFolder
from workloads.progress import read_mark

REFRESH_HZ = 2
RATE_OVER_S = 2.0
"""The rates shown are means over about this long."""


def live_on(console: Console, render: Callable[[], RenderableType], *, plain: bool) -> Live | None:
    """What redraws ``render`` while things go on; None where plain lines are wanted, or all that can be shown."""
    if plain or console.quiet or console.is_dumb_terminal or not console.is_terminal:
        return None

    return Live(get_renderable=render, console=console, refresh_per_second=REFRESH_HZ, transient=True)


def about(seconds: float) -> str:
    """A time to come, as precise as such an estimate is."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"about {seconds / size:.{int(seconds < 10 * size)}f} {unit}"

    return f"about {seconds:.0f} s"


class Redrawn:
    """A ``with`` around what ``live_on`` gave, which may be nothing."""

    _live: Live | None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()

        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()


def trouble(what: Event | Action) -> str | None:
    """The words for what every display tells, a run's or a series'; None: it is nothing of that kind."""
    match what:
        case events.Failed(name, _, _, message):
            return f"{name} failed: {message}"
        case events.Exited(name, _, code) if code:
            return f"{name} exited with {code}"
        case events.Stalled(name, at, last):
            return f"{name} has completed nothing for {at - last:.1f} s"
        case events.StopRequested(_, reason):
            return f"asked to stop: {reason}"
        case _:
            return None


class RecentRate:
    """How fast a count grows: the mean over about ``RATE_OVER_S``."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, now: float, count: int) -> float | None:
        """Per second, now that the count is this; None as long as it is the first time."""
        self._seen.append((now, count))
        while len(self._seen) > 2 and now - self._seen[1][0] > RATE_OVER_S:
            self._seen.popleft()

        then, before = self._seen[0]
        return (count - before) / (now - then) if now > then else None


class LiveView(Redrawn):
    """Shows a run's events as they are handled; a ``with`` around the run.

    Args:
        within: another display shows ``render``; nothing is shown by this one.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        clock: Clock,
        console: Console,
        *,
        plain: bool = False,
        within: bool = False,
    ) -> None:
        self._plan = plan
        self._folder = folder
        self._clock = clock
        self._console = console
        self._story: lifecycle.Run | None = None
        self._phase: Phase | None = None
        self._phase_began = 0.0
        self._main_began: float | None = None
        self._rates = {one.name: RecentRate() for one in plan.all}
        self._live = None if within else live_on(console, self.render, plain=plain)
        self._in_lines = self._live is None and not within

    def __call__(self, what: Event | Action, story: lifecycle.Run) -> None:
        """Take note of what was just handled."""
        now = self._clock.now()
        if isinstance(what, events.Issuing) and what.name == self._plan.main.name:
            self._main_began = what.first_issue_at

        if self._in_lines and isinstance(what, Event):  # what happened, before what follows from it
            self._say(now, what)

        if story.phase is not self._phase:
            self._phase, self._phase_began = story.phase, now
            if self._in_lines:
                self._line(now, f"{story.phase.value}{_left(story, now)}")

        if self._in_lines and isinstance(what, Action):
            self._say(now, what)

        self._story = story

    # ------------------------------------------------------------------ plain lines

    def _say(self, now: float, what: Event | Action) -> None:
        match what:
            case events.Launch(name):
                self._line(now, f"launch {name} on {self._slice(name)}")
            case events.Issuing(name):
                self._line(now, f"{name} issues")
            case events.Finished(name):
                self._line(now, f"{name} finished")
            case events.Kill(name):
                self._line(now, f"{name} did not stop in time: killed")
            case _:
                words = trouble(what)
                if words is not None:
                    self._line(now, words)

    def _line(self, now: float, text: str) -> None:
        self._console.print(f"[{now:8.3f} s] {text}", markup=False, highlight=False)

    def _slice(self, name: str) -> str:
        return next(f"{one.slice.id} ({one.slice.name})" for one in self._plan.all if one.name == name)

    # ------------------------------------------------------------------ the live table

    def render(self) -> Group:
        """Each benchmark's stage and rate, and how far the phase is."""
        now = self._clock.now()
        table = Table(box=None, pad_edge=False)
        for column in ("slice", "benchmark", "stage"):
            table.add_column(column, overflow="fold")

        table.add_column("samples/s", justify="right", no_wrap=True)
        table.add_column("samples", justify="right", no_wrap=True)
        for one in self._plan.all:
            table.add_row(*self._row(one, now))

        return Group(table, self._phase_line(now))

    def _row(self, one: Assignment, now: float) -> tuple[str, str, str, str, str]:
        stage = "" if self._story is None else self._story.stages[one.name].value.replace("_", " ")
        mark = read_mark(self._folder.path / one.name)
        if mark is None:
            return one.slice.id, one.name, stage, "", ""

        found = self._rates[one.name].of(now, mark.samples_completed)
        rate = "" if found is None else f"{found:,.1f}"
        return one.slice.id, one.name, stage, rate, f"{mark.samples_completed:,}"

    def _phase_line(self, now: float) -> Group | Text:
        if self._story is None:
            return Text("starting")

        begin, end = self._phase_began, self._story.deadline
        label = f"{self._story.phase.value}{_left(self._story, now)}"
        if self._story.phase is Phase.MEASURING:
            least_s = self._plan.main.settings.min_duration_ms / 1000
            begin = now if self._main_began is None else self._main_began
            end = begin + least_s
            of = f"of at least {least_s:g} s" if self._plan.accuracy is None else "of an accuracy run"
            label = (
                "measuring: main loads"
                if self._main_began is None
                else f"measuring: {now - begin:.0f} s {of}"
            )

        share = 0.0 if end is None or end <= begin else min(1.0, (now - begin) / (end - begin))
        return Group(Text(label), ProgressBar(total=1.0, completed=share, width=60))


def _left(story: lifecycle.Run, now: float) -> str:
    return "" if story.deadline is None else f", {max(0.0, story.deadline - now):.0f} s left at most"
