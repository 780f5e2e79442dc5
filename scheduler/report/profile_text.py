"""A profile on a terminal: the cells that are to be measured, how far it is, and the table."""

from collections import deque
from collections.abc import Sequence

from rich.console import Console, Group
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scheduler import events
from scheduler.clock import Clock
from scheduler.events import Event
from scheduler.profile_row import Row
from scheduler.record import RunFolder
from scheduler.report.live import RecentRate, Redrawn, live_on
from scheduler.sweep import Step
from workloads.progress import read_mark

STEPS_OF_THE_MEAN = 8
"""The time left is told by that many of the last steps."""
WIDE = 100
"""Columns from which on the table has the mean too."""


class ProfileView(Redrawn):
    """Shows steps as they begin and end; a ``with`` around them."""

    def __init__(self, console: Console, *, plain: bool = False) -> None:
        self._console = console
        self._done = self._of = 0
        self._took_s: deque[float] = deque(maxlen=STEPS_OF_THE_MEAN)
        self._step: tuple[Step, RunFolder, Clock] | None = None
        self._began_s = 0.0
        self._stages: dict[str, str] = {}
        self._rates: dict[str, RecentRate] = {}
        self._live = live_on(console, self._render, plain=plain)

    def goes_on(self, done: int, of: int) -> None:
        """So many steps are in the folder already."""
        self._done, self._of = done, of
        if done:
            self._console.print(f"{done} of {of} steps are there already", highlight=False)

    def begins(self, step: Step, folder: RunFolder, clock: Clock) -> None:
        """This step begins."""
        self._step, self._began_s = (step, folder, clock), clock.now()
        self._stages = dict.fromkeys(step.names, "loading")
        self._rates = {name: RecentRate() for name in step.names}

    def happened(self, event: Event) -> None:
        """In the step that goes on."""
        match event:
            case events.Ready(name):
                self._stages[name] = "warming up"
            case events.Issuing(name):
                self._stages[name] = "measuring"
            case events.Finished(name) | events.Failed(name):
                self._stages[name] = "ending"
            case _:
                pass

    def ended(self, rows: Sequence[Row]) -> None:
        """It is over."""
        assert self._step is not None
        self._took_s.append(self._step[2].now() - self._began_s)
        self._done += 1
        if self._live is None:
            for row in rows:
                self._console.print(
                    f"[{self._done}/{self._of}{self._left()}] {row.cell}: {_in_a_line(row)}",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )

        self._step = None

    def _left(self) -> str:
        left = self._of - self._done
        if not left or not self._took_s:
            return ""

        return f", {_duration(left * sum(self._took_s) / len(self._took_s))} left"

    def _render(self) -> Group:
        if self._step is None and self._done == self._of:
            return Group()

        bar = ProgressBar(total=self._of, completed=self._done, width=40)
        head = Text(f"{self._done} of {self._of} steps{self._left()}")
        if self._step is None:
            return Group(head, bar)

        step, folder, clock = self._step
        lines = [Text(self._cell(name, folder, clock)) for name in step.names]
        return Group(*lines, head, bar)

    def _cell(self, name: str, folder: RunFolder, clock: Clock) -> str:
        mark, now = read_mark(folder.path / name), clock.now()
        if mark is None:
            return f"{name}: {self._stages[name]}"

        found = self._rates[name].of(now, mark.samples_completed + mark.filler_samples)
        rate = "" if found is None else f", {found:,.1f} samples/s"
        return f"{name}: {self._stages[name]}{rate}"


def show_steps(steps: Sequence[Step], console: Console) -> None:
    """What is to be measured, and how long that is at least."""
    table = Table(box=None, pad_edge=False)
    for column in ("workload", "slice", "size", "precision"):
        table.add_column(column)

    for column in ("batch", "tokens", "load"):
        table.add_column(column, justify="right")

    for step in steps:
        for cell in step.cells:
            options = cell.assignment.options
            table.add_row(
                cell.assignment.workload,
                cell.assignment.slice.id,
                options.size,
                options.precision,
                str(options.batch_size),
                "" if options.sequence_length is None else str(options.sequence_length),
                _load(cell.load.concurrency, cell.load.arrival_rate_per_s),
            )

    console.print(table)
    least_s = sum(step.cells[0].load.seconds for step in steps)
    console.print(
        f"{len(steps)} steps, {_duration(least_s)} and their loading and warming up", highlight=False
    )


def show_table(rows: Sequence[Row], console: Console) -> None:
    """A table a workload; columns that hold nothing are left out. Fits 80 columns."""
    for workload in dict.fromkeys(row.workload for row in rows):
        _show_workload([row for row in rows if row.workload == workload], console)


def _show_workload(rows: Sequence[Row], console: Console) -> None:
    first = rows[0]
    together = f", {first.slices_together} slices at once" if first.slices_together > 1 else ""
    same, columns = _columns(rows)
    if console.width < WIDE:
        columns.pop("mean ms")

    words = [first.size, first.precision, *same, f"{first.seconds:g} s a cell{together}"]
    console.print(f"\n[bold]{escape(first.workload)}[/] ({escape(', '.join(words))})", highlight=False)
    table = Table(box=None, padding=(0, 1, 0, 0))
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    for name in shown:
        table.add_column(name, justify="left" if name == "slice" else "right", no_wrap=name != "slice")

    for cells in zip(*shown.values(), strict=True):
        table.add_row(*cells)

    console.print(table)
    for row in rows:
        if (told := _told(row)) is not None:
            console.print(f"  {row.cell}: {told}", markup=False, highlight=False, soft_wrap=True)

    units = {
        "p50": "ms of one request of `batch` samples",
        "MiB": _whose_memory(rows),
        "SM": "part of the time",
        "J": "the GPU's, a sample",
    }
    legend = "; ".join(f"{name}: {words}" for name, words in units.items() if name in shown)
    if legend:
        console.print(f"  {legend}", highlight=False)


def _columns(rows: Sequence[Row]) -> tuple[list[str], dict[str, list[str]]]:
    """What holds for every row, in words, and a cell for each row of every column that does not."""
    varied = {
        "tokens": ["" if row.sequence_length is None else str(row.sequence_length) for row in rows],
        "load": [_load(row.concurrency, row.arrival_rate_per_s) for row in rows],
    }
    same = {name: cells[0] for name, cells in varied.items() if len(set(cells)) == 1}
    words = [f"{same['tokens']} tokens"] if same.get("tokens") else []
    if "load" in same:
        words.append(same["load"] if rows[0].concurrency is None else f"{same['load']} outstanding")

    return words, {
        "slice": [_where(row) for row in rows],
        "batch": [str(row.batch_size) for row in rows],
        **{name: cells for name, cells in varied.items() if name not in same},
        "samples/s": [_rate(row) for row in rows],
        "mean ms": [_figure(row.latency_mean_ms) for row in rows],
        "p50": [_figure(row.latency_p50_ms) for row in rows],
        "p99": [_percentile(row, row.latency_p99_ms, 100) for row in rows],
        "p99.9": [_percentile(row, row.latency_p99_9_ms, 1000) for row in rows],
        "MiB": [_figure(_memory(row)) for row in rows],
        "SM": ["" if row.sm_activity is None else f"{row.sm_activity:.2f}" for row in rows],
        "J": [_figure(row.energy_j_per_sample) for row in rows],
    }


def _told(row: Row) -> str | None:
    """What the table does not say of it."""
    if row.why:
        return None if row.status == "out of memory" else f"{row.status}: {row.why}"

    if row.steady is False:
        return f"batch times were not steady after {row.warm_up_s or 0:.1f} s of warming up"

    return None


def _rate(row: Row) -> str:
    colour = "red" if row.status == "failed" else "yellow"
    return f"[{colour}]{row.status}[/]" if row.samples_per_s is None else _figure(row.samples_per_s)


def _percentile(row: Row, value: float | None, of: int) -> str:
    """A dash where there were too few requests to tell one in so many."""
    return "–" if value is not None and (row.requests or 0) < of else _figure(value)


def _where(row: Row) -> str:
    return f"{row.slice} {row.slice_name}" if row.slice_kind == "mig" else row.slice


def _memory(row: Row) -> float | None:
    return row.host_memory_peak_mib if row.device_memory_used_mib is None else row.device_memory_used_mib


def _whose_memory(rows: Sequence[Row]) -> str:
    on_gpu = any(row.device_memory_used_mib is not None for row in rows)
    return "used on the slice" if on_gpu else "the process's peak"


def _load(clients: int | None, rate_per_s: float | None) -> str:
    return f"{rate_per_s:.12g}/s" if clients is None else f"{clients}"


def _in_a_line(row: Row) -> str:
    if row.samples_per_s is None:
        return row.status if row.status == "out of memory" else f"{row.status}: {row.why}"

    latency = {"p50": _figure(row.latency_p50_ms), "p99": _percentile(row, row.latency_p99_ms, 100)}
    told = [
        f"{_figure(row.samples_per_s)} samples/s",
        *(f"{name} {ms} ms" for name, ms in latency.items() if ms),
    ]
    return ", ".join(told) + (f" ({row.status})" if row.why else "")


def _figure(value: float | None) -> str:
    """About four digits, never an exponent."""
    if value is None:
        return ""

    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes = whole // 3600, whole % 3600 // 60
    if hours:
        return f"{hours} h {minutes:02d} min"

    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"
