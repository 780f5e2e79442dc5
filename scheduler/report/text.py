"""Plan, verdict and lists as tables on a terminal."""

import io
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from scheduler.assignment import Plan
from scheduler.result import AccuracyResult, Finding, Result, Timing, TokensResult
from scheduler.slices import Slice, core_ranges
from workloads.catalog import MACROS, listed


class Terminal(Console):
    """Where a person reads; if nobody does any more (``| head``), the run goes on without a word."""

    def __init__(self, *, stderr: bool = False, quiet: bool = False) -> None:
        if isinstance(sys.stdout, io.TextIOWrapper):  # in LC_ALL=C a sign becomes a ?, and the rest is shown
            sys.stdout.reconfigure(errors="replace")

        super().__init__(stderr=stderr, quiet=quiet)

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


_SIGN = {"breach": "[red]breach[/]", "warning": "[yellow]warning[/]", "info": "info"}


def show_plan(plan: Plan, console: Console) -> None:
    """Which benchmark runs on which slice, and under which conditions."""
    table = Table(title=f"plan (preset {plan.preset})", title_justify="left", box=None, pad_edge=False)
    for column in ("benchmark", "slice", "", "cores", "size", "precision", "batch", "scenario"):
        table.add_column(column, overflow="fold", no_wrap=column in ("size", "precision", "batch"))

    for one in plan.all:
        table.add_row(
            one.name,
            one.slice.id,
            one.slice.name if one.slice.kind != "cpu" else "",
            core_ranges(one.slice.cores),
            one.options.size,
            one.options.precision,
            str(one.options.batch_size),
            one.settings.scenario.value + (", accuracy" if one.settings.mode == "AccuracyOnly" else ""),
        )

    for idle in plan.idle:
        table.add_row("(idle)", idle.id, idle.name, core_ranges(idle.cores), "", "", "", "")

    console.print(table)
    for note in plan.notes:
        say(f"note: {note}", console, under=6)


def show_result(result: Result, console: Console) -> None:
    """The verdict, the figures behind it, and what to do about the findings."""
    main = result.main
    console.print()
    colour = "green" if result.verdict == "VALID" else "red"
    console.print(f"[bold {colour}]{result.verdict}[/] {result.kind} run of {main.workload}, {main.scenario}")
    if main.metric is not None:
        say(
            f"  main  {main.workload} on {main.slice}: {plain(main.metric.value)} {main.metric.unit} "
            f"({main.metric.name}; {main.size}, {main.precision}, batch ≤ {main.batch_size})",
            console,
        )

    if main.accuracy is not None:
        _show_accuracy(main.accuracy, console)

    if main.tokens is not None:
        _show_tokens(main.tokens, console)

    latency = main.latency_ms
    if latency.p50 is not None:
        shown = (("mean", latency.mean), ("p50", latency.p50), ("p90", latency.p90), ("p99", latency.p99))
        words = ", ".join(f"{name} {plain(value)}" for name, value in shown if value is not None)
        say(f"        latency ms: {words}", console)

    if result.background:
        console.print(Padding(_background_table(result), (0, 0, 0, 2), expand=False))

    _show_timing(result.timing, console)
    for finding in result.findings:
        show_finding(finding, console)

    _show_notes(result, console)


def _show_timing(timing: Timing, console: Console) -> None:
    words = [] if timing.main_s is None else [f"window {timing.main_s:.3f} s"]
    if timing.launch_to_all_issuing_s is not None:
        words.append(f"launch to all issuing {timing.launch_to_all_issuing_s:.3f} s")
        words.append(f"start buffer {timing.start_buffer_s:g} s")

    if words:
        say(f"  {', '.join(words)}", console)


def _show_tokens(told: TokensResult, console: Console) -> None:
    words = [] if told.tokens_per_s is None else [f"{plain(told.tokens_per_s)} tokens/s"]
    for name, latency in (("TTFT", told.ttft_ms), ("TPOT", told.tpot_ms)):
        if latency is not None and latency.p50 is not None and latency.p99 is not None:
            words.append(f"{name} ms: p50 {plain(latency.p50)}, p99 {plain(latency.p99)}")

    say(f"        {'; '.join(words)}", console)


def _show_accuracy(told: AccuracyResult, console: Console) -> None:
    reached = "reached" if told.reached else "NOT reached"
    say(
        f"        {told.kind}: {told.metric} {plain(told.value)} {told.unit}, target {plain(told.target)}: {reached} "
        f"({told.samples:,} samples)",
        console,
    )
    if told.beside is not None:
        other = "fidelity" if told.kind == "accuracy" else "accuracy"
        say(
            f"        {other}, told beside it: {told.beside.metric} {plain(told.beside.value)} {told.beside.unit} "
            f"({told.beside.samples:,} samples)",
            console,
        )


def show_finding(finding: Finding, console: Console) -> None:
    """One finding and what to do about it."""
    line = Text.from_markup(f"  {_SIGN[finding.severity]} {finding.code}: ").append(finding.message)
    say(line.append(f"; {finding.recommendation}" if finding.recommendation else ""), console, under=10)


def _background_table(result: Result) -> Table:
    """Words fold where the terminal is narrow, figures never."""
    table = Table(
        title="background, in main's window (gap, idle: the longest, ms)",
        title_justify="left",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    for column in ("slice", "workload", "conditions"):
        table.add_column(column, overflow="fold")

    for column in ("samples/s", "samples", "gap", "idle"):
        table.add_column(column, justify="right", no_wrap=True)

    table.add_column("ended", overflow="fold")
    for one in result.background:
        rate = one.samples_per_s_in_main_window
        table.add_row(
            one.slice,
            one.workload,
            f"{one.size} {one.precision} ≤{one.batch_size}",
            "" if rate is None else plain(rate),
            f"{one.samples_in_main_window:,}",
            "" if one.longest_gap_s is None else f"{one.longest_gap_s * 1000:,.0f}",
            "" if one.longest_idle_s is None else f"{one.longest_idle_s * 1000:,.0f}",
            one.ended,
        )

    return table


def _show_notes(result: Result, console: Console) -> None:
    seen: dict[str, list[str]] = {}
    for workload, notes in (
        (result.main.workload, result.main.notes),
        *((one.workload, one.notes) for one in result.background),
    ):
        for note in notes:
            of = seen.setdefault(note, [])
            if workload not in of:
                of.append(workload)

    for note, of in seen.items():
        say(f"  note ({', '.join(of)}): {note}", console)


def say(line: str | Text, console: Console, under: int = 8) -> None:
    """A line of words: on a terminal folded between them, elsewhere whole, for whoever searches it.

    Args:
        under: the column at which what is folded goes on.
    """
    words = Text(line) if isinstance(line, str) else line
    if not console.is_terminal:
        console.print(words, soft_wrap=True)
        return

    folded = Table.grid()
    folded.add_column(width=under, no_wrap=True)
    folded.add_column(overflow="fold")
    folded.add_row(words[:under], words[under:])
    console.print(folded)


def plain(value: float) -> str:
    """About five digits, never an exponent: 1,583,650; 34.64; 0.001423."""
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.5g}"


def show_slices(slices: Sequence[Slice], console: Console) -> None:
    """What workloads can be pinned to on this machine."""
    table = Table(box=None, pad_edge=False)
    for column in ("id", "kind", "name", "uuid", "SMs", "memory MiB", "NUMA", "cores", "shared with"):
        table.add_column(column, overflow="fold", no_wrap=column in ("SMs", "memory MiB", "NUMA"))

    for one in slices:
        table.add_row(
            one.id,
            one.kind,
            one.name,
            one.uuid or "",
            "" if one.sms is None else str(one.sms),
            str(one.memory_mib),
            "" if one.numa_node is None else str(one.numa_node),
            core_ranges(one.cores),
            " ".join(one.shared_with),
        )

    console.print(table)


def show_workloads(console: Console) -> None:
    """The catalogue."""
    table = Table(box=None, pad_edge=False)
    for column in ("name", "aliases", "size", "parameters", "GFLOP/sample", "as main", "8 bits", "what"):
        table.add_column(column, overflow="fold")

    entries, problems = listed()
    for entry in entries:
        for size, words in entry.sizes.items():
            first = size == "full"
            table.add_row(
                entry.name if first else "",
                ", ".join(entry.aliases) if first else "",
                size,
                f"{entry.parameters[size]:,}" if entry.parameters else "",
                f"{entry.flops_per_sample[size] / 1e9:,.4g}" if entry.flops_per_sample else "",
                ", ".join(entry.scenarios) if first else "",
                " ".join(one for one in entry.precisions if one in ("fp8", "int8")) if first else "",
                words,
            )

    console.print(table)
    for name, members in MACROS.items():
        console.print(f"--background {name}: {', '.join(members) or 'nothing'}", highlight=False)

    console.print("your own: FILE.py:CLASS, hf:FOLDER (docs/own-model.md)", highlight=False)
    for problem in problems:
        console.print(f"not usable: {problem}", markup=False, highlight=False, soft_wrap=True)
