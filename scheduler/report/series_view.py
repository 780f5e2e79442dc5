"""A series of runs on a terminal while it goes on: what came out so far, the present run, how long the rest takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.text import Text

from scheduler import lifecycle
from scheduler.assignment import Plan
from scheduler.clock import Clock
from scheduler.events import Action, Event
from scheduler.record import RunFolder
from scheduler.report.live import LiveView, Redrawn, about, live_on, trouble
from scheduler.result import Result
from scheduler.run import Watch
from scheduler.series import Series

BAR = 60

FinishedRun = Callable[[str], tuple[Result, float] | None]
"""The run of a key: what was judged of it, and how long it lasted, s; None where it did not come to a verdict."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Before a run."""

    number: int
    """Of ``runs``, from 1."""
    runs: int
    words: str
    left_s: float | None
    """For what is left, this run included; None: not known."""
    so_far: RenderableType | None = None
    """What came out of the runs before it."""


class SeriesView(Redrawn):
    """One panel for all runs of a series; a ``with`` around them. ``is_live`` is False where lines are wanted."""

    def __init__(self, console: Console, *, plain: bool = False) -> None:
        self._console = console
        self._clock = Clock.start()
        self._step: Step | None = None
        self._began_s = 0.0
        self._run: LiveView | None = None
        self._live = live_on(console, self.render, plain=plain)

    @property
    def is_live(self) -> bool:
        return self._live is not None

    def next_run(self, step: Step) -> None:
        """This run begins."""
        self._step, self._began_s = step, self._clock.now()

    @contextmanager
    def run(self, plan: Plan, folder: RunFolder, clock: Clock) -> Iterator[Watch]:
        """A run while it goes on, within the panel; what goes wrong in it stays above."""
        self._run = shown = LiveView(plan, folder, clock, self._console, within=True)

        def watch(what: Event | Action, story: lifecycle.Run) -> None:
            shown(what, story)
            self._tell(folder.path.name, what)

        try:
            yield watch
        finally:
            self._run = None

    def _tell(self, run: str, what: Event | Action) -> None:
        words = trouble(what)
        if words is not None:
            self._line(f"{run}: {words}")

    def _line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def render(self) -> Group:
        """The panel as it is now."""
        step, run = self._step, self._run
        if step is None:  # of a series that is answered already, this is all there is
            return Group()

        left = ""
        if step.left_s is not None:
            left = f", {about(max(0.0, step.left_s - (self._clock.now() - self._began_s)))} left"

        parts: list[RenderableType] = [] if step.so_far is None else [step.so_far, Text()]
        parts += [] if run is None else [run.render(), Text()]
        parts.append(Text(f"run {step.number} of {step.runs}: {step.words}{left}"))
        parts.append(ProgressBar(total=step.runs, completed=step.number - 1, width=BAR))
        return Group(*parts)


class Finished:
    """The runs of a series that came to a verdict, each read once."""

    def __init__(self, runs: Series) -> None:
        self._runs = runs
        self._known: dict[str, tuple[Result, float]] = {}

    def of(self, key: str) -> tuple[Result, float] | None:
        """A ``FinishedRun``.

        Raises:
            FolderDamaged: it did, and what it left cannot be read.
        """
        if key not in self._known:
            done = self._runs.finished(key)
            if done is None:
                return None

            folder, result = done
            self._known[key] = result, max((at for at, _what in folder.story()), default=0.0)

        return self._known[key]
