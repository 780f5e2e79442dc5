"""What a profile goes through: which cells there are, in which order, and how one step of it is carried out. Pure.

A **cell** is one workload on one slice under one load. A **step** is what runs at one time: one cell, or with
``--together`` the same cell on every slice.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import product

from scheduler.assignment import Assignment
from scheduler.events import (
    Action,
    DeadlinePassed,
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
from scheduler.slices import MigSlice, Slice
from workloads.protocol import Load

GROUPS: Mapping[str, tuple[str, ...]] = {
    "cv_infer": ("resnet50", "vision-transformer", "swin-transformer"),
    "cv_train": ("resnet50:train", "vision-transformer:train", "swin-transformer:train"),
    "nlp_infer": ("bert-base", "distilbert", "minilm", "mpnet"),
    "nlp_train": ("bert:train",),
}
"""MIGProfiler's workloads."""
TOGETHER = "together"
"""In place of a slice, in the key of a step of several."""
STOP_GRACE_S = 5.0
LONGEST_WORD = 80
"""Of a workload's name in a folder's."""
REAP_TIMEOUT_S = 5.0
"""From SIGKILL to giving up: only a process held by the kernel lives longer."""


def group_of(workload: str) -> str:
    """MIGProfiler's name for this kind of workload, or ``other``."""
    return next((group for group, names in GROUPS.items() if workload in names), "other")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is varied, and what holds for all of it."""

    batch_sizes: tuple[int, ...] = ()
    """Empty: as the workload has it on that kind of slice."""
    sequence_lengths: tuple[int, ...] = ()
    """Empty: as the workload has it. One that cannot choose has one cell for all of them."""
    concurrency: tuple[int, ...] = (1,)
    arrival_rates_per_s: tuple[float, ...] = ()
    seconds: float = 10.0
    longest_warm_up_s: float = 30.0
    memory_limit_mib: int | None = None
    seed: int = 0

    @property
    def loads(self) -> tuple[Load, ...]:
        """Closed loops first."""
        pairs: list[tuple[int | None, float | None]] = [(clients, None) for clients in self.concurrency]
        pairs += [(None, rate) for rate in self.arrival_rates_per_s]
        return tuple(
            Load(
                concurrency=clients,
                arrival_rate_per_s=rate,
                seconds=self.seconds,
                longest_warm_up_s=self.longest_warm_up_s,
                seed=self.seed,
                memory_limit_mib=self.memory_limit_mib,
            )
            for clients, rate in pairs
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One workload on one slice under one load."""

    assignment: Assignment
    """Its ``name`` is the cell's."""
    load: Load
    layout: str = ""
    """The ``--layout`` that its slice is of; empty: what was there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What runs at one time."""

    key: str
    """Its folder's name."""
    cells: tuple[Cell, ...]

    @property
    def names(self) -> list[str]:
        return [cell.assignment.name for cell in self.cells]


def steps(
    workloads: Sequence[Sequence[Assignment]],
    grid: Grid,
    *,
    together: bool,
    takes_lengths: Mapping[str, int | None],
    layout: str = "",
) -> Iterator[Step]:
    """Every step, workload by workload, in the order of the options; the last to change is the slice.

    Args:
        workloads: for each workload, what it is on each slice, with its default batch size.
        takes_lengths: by workload, the longest sequence it can be asked for; None: it has no choice.
    """
    for on_slices in workloads:
        lengths: tuple[int | None, ...] = grid.sequence_lengths
        if not lengths or takes_lengths[on_slices[0].workload] is None:
            lengths = (None,)

        sizes: tuple[int | None, ...] = grid.batch_sizes or (None,)
        for length, load, size in product(lengths, grid.loads, sizes):
            cells = tuple(_cell(one, size, length, load, layout) for one in on_slices)
            if together:
                key = _name(cells[0].assignment, load, layout, TOGETHER)
                yield Step(key=key, cells=cells)
            else:
                yield from (Step(key=cell.assignment.name, cells=(cell,)) for cell in cells)


def _cell(one: Assignment, size: int | None, length: int | None, load: Load, layout: str) -> Cell:
    options = replace(
        one.options,
        batch_size=one.options.batch_size if size is None else size,
        sequence_length=length,
        memory_mib=load.memory_limit_mib or one.options.memory_mib,
    )
    there = replace(one, options=options)
    name = _name(there, load, layout, _place(one.slice))
    return Cell(assignment=replace(there, name=name), load=load, layout=layout)


def _place(slice_: Slice) -> str:
    """A slice's name that is the same whenever its layout is made: ids of GPU instances are not."""
    if isinstance(slice_, MigSlice) and slice_.placement_start is not None:
        where = f"{slice_.placement_start}.{slice_.compute_instance_id}"
        return f"gpu{slice_.gpu_index}-{slice_.name}-{where}"

    return slice_.id


def _name(one: Assignment, load: Load, layout: str, where: str) -> str:
    words = [layout] if layout else []
    words += [_word(one.workload), f"b{one.options.batch_size}"]
    if one.options.sequence_length is not None:
        words.append(f"s{one.options.sequence_length}")

    words.append(
        f"c{load.concurrency}" if load.arrival_rate_per_s is None else _rate(load.arrival_rate_per_s)
    )
    return _plain("-".join([*words, where]))


def _rate(per_s: float) -> str:
    """With all its digits: two rates that differ have two names."""
    return "r" + repr(float(per_s)).removesuffix(".0")


def _word(workload: str) -> str:
    """The workload's name as it may stand in a folder's; a digest keeps apart those that would come to the same."""
    plain = _plain(workload)
    if plain == workload.replace(":", "-") and len(plain) <= LONGEST_WORD:
        return plain

    return f"{plain[-LONGEST_WORD:]}-{sha256(workload.encode()).hexdigest()[:6]}"


def _plain(text: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", text)


# ---------------------------------------------------------------- one step, while it runs


@dataclass(frozen=True, slots=True)
class Begin:
    """Tell the cell's worker, which is warm, to measure."""

    name: str


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What became of one cell."""

    ready: Ready | None = None
    finished: Finished | None = None
    failed: Failed | None = None
    stopped: str = ""
    """Why it was told to stop; empty: it was not."""
    exit_code: int | None = None


def note(outcome: Outcome, what: Finished | Failed | Exited) -> None:
    """Take note in a cell's outcome of how it ended."""
    match what:
        case Finished():
            outcome.finished = what
        case Failed():
            outcome.failed = what
        case Exited():
            outcome.exit_code = what.code


class Attempt:
    """One step's state: events in, actions out.

    Its cells are launched at once, warm up each for itself, and begin to measure when all that live are warm. One that
    fails, stalls or is not warm in time ends alone.
    """

    def __init__(self, names: Sequence[str], warm_within_s: float) -> None:
        self.outcomes = {name: Outcome() for name in names}
        self.stop_reason = ""
        """The signal that asked the whole profile to end."""
        self._warm_within_s = warm_within_s
        self._warm_by = 0.0
        self._warm: set[str] = set()
        self._begun = False
        self._asked: dict[str, float] = {}
        """Who was told to stop, and until when its end is waited for."""
        self._killed: set[str] = set()
        self._given_up = False

    @property
    def alive(self) -> list[str]:
        """Those whose process has not ended."""
        return [name for name, outcome in self.outcomes.items() if outcome.exit_code is None]

    @property
    def over(self) -> bool:
        """Nothing lives, or what lives cannot be ended."""
        return self._given_up or not self.alive

    @property
    def deadline(self) -> float | None:
        """When to look again, though nothing has happened; None: not before something has."""
        times = [self._asked[name] for name in self.alive if name in self._asked]
        return min([self._warm_by, *times] if self._cold() else times, default=None)

    def begin(self, now: float) -> list[Action | Begin]:
        """Launch every cell."""
        self._warm_by = now + self._warm_within_s
        return [Launch(name) for name in self.outcomes]

    def handle(self, event: Event) -> list[Action | Begin]:
        """Take note of what happened; what is to be done then."""
        actions: list[Action | Begin] = []
        match event:
            case Ready(name):
                self.outcomes[name].ready = event
            case Issuing(name):
                self._warm.add(name)
            case Finished(name) | Failed(name) | Exited(name):
                note(self.outcomes[name], event)
            case Stalled(name, at, last):
                actions += self._stop([name], at, f"it completed nothing for {at - last:.0f} s")
            case StopRequested(at, reason):
                self.stop_reason = self.stop_reason or reason
                actions += self._stop(self.alive, at, reason)
            case DeadlinePassed(at):
                actions += self._too_late(at)

        if not self._begun and self.alive and self._warm.issuperset(self.alive):
            self._begun = True
            actions += [Begin(name) for name in self.alive]

        return actions

    def _cold(self) -> list[str]:
        """Those that are neither warm nor asked to stop."""
        return [name for name in self.alive if name not in self._warm and name not in self._asked]

    def _stop(self, names: Sequence[str], now: float, why: str) -> list[Action | Begin]:
        new = [name for name in names if name not in self._asked]
        for name in new:
            self.outcomes[name].stopped = why
            self._asked[name] = now + STOP_GRACE_S

        return [Stop(name) for name in new]

    def _too_late(self, now: float) -> list[Action | Begin]:
        actions: list[Action | Begin] = []
        for name in self.alive:
            if self._asked.get(name, now + 1) > now:
                continue

            self._given_up = self._given_up or name in self._killed
            self._killed.add(name)
            self._asked[name] = now + REAP_TIMEOUT_S
            actions.append(Kill(name))

        if now >= self._warm_by:
            actions += self._stop(self._cold(), now, f"it was not warm within {self._warm_within_s:g} s")

        return actions
