"""A run in the Trace Event Format, which ui.perfetto.dev and chrome://tracing open.

A benchmark is a process of the trace. Its threads are its stages, its batches (each history record, 10 ms or
more), and main's queries. Times are µs on the run's clock. Format: Google's "Trace Event Format", of
catapult's documentation (JSON object format; phases X, b, e, C, i and M).
"""

from collections.abc import Iterator
from typing import Any

from scheduler.events import Action
from scheduler.report.tables import RunTables
from scheduler.report.timeline import SAYS, phases_of, stages_of

MOST_BATCHES = 20_000
"""Of one benchmark; of more, neighbours are told as one."""
MOST_QUERIES = 20_000
"""Of more, the slowest are told."""
MOST_SAMPLES = 2_000
"""Of one figure of the telemetry; of more, each n-th."""
STAGES, BATCHES, QUERIES = 1, 2, 3
"""Threads of a benchmark."""


def trace_of(tables: RunTables) -> dict[str, Any]:
    """The whole trace, ready for JSON."""
    queries = len(tables.latencies)
    left_out = f"the {MOST_QUERIES:,} slowest of {queries:,}" if queries > MOST_QUERIES else "all"
    return {
        "displayTimeUnit": "ms",
        "otherData": {
            "run": tables.name,
            "verdict": tables.result.verdict,
            "clock zero, UTC": tables.manifest.clock_zero.utc,
            "queries of main": left_out,
        },
        "traceEvents": [*_run(tables), *_benchmarks(tables), *_telemetry(tables)],
    }


def _run(tables: RunTables) -> Iterator[dict[str, Any]]:
    yield _named("process_name", 0, 0, "run")
    yield _named("process_sort_index", 0, 0, 0)
    window = tables.result.main.window
    edges = None if window.begin_s is None or window.end_s is None else (window.begin_s, window.end_s)
    for phase in phases_of(tables.manifest, tables.told, edges):
        yield _complete(phase.what, "phase", 0, STAGES, phase.begin_s, phase.end_s)

    for at_s, what in tables.story:
        words = " ".join((type(what).__name__, getattr(what, "name", ""))).strip()
        category = "action" if isinstance(what, Action) else "event"
        at = {"pid": 0, "tid": BATCHES, "ts": _us(getattr(what, "at", at_s))}
        yield {"name": words, "cat": category, "ph": "i", "s": "t", **at}

    yield _named("thread_name", 0, STAGES, "phases")
    yield _named("thread_name", 0, BATCHES, "events and actions")


def _benchmarks(tables: RunTables) -> Iterator[dict[str, Any]]:
    until_s = max([at for at, _what in tables.story[-1:]], default=0.0)
    for pid, row in enumerate(tables.each, start=1):
        yield _named("process_name", pid, 0, f"{row.role}: {row.workload} on {row.slice}")
        yield _named("process_sort_index", pid, 0, pid)
        yield _named("thread_name", pid, STAGES, "stages")
        yield _named("thread_name", pid, BATCHES, "batches")
        for span in stages_of(tables.told.benchmarks.get(row.name), row.last_completion_s, until_s):
            yield _complete(SAYS[span.what], "stage", pid, STAGES, span.begin_s, span.end_s)

        yield from _batches(tables, row.name, pid)
        rate = tables.rates(row.name)
        for at_s, samples_per_s in zip(rate["begin_s"], rate["samples_per_s"], strict=True):
            yield _counter("samples/s", pid, at_s, {"samples/s": round(samples_per_s, 3)})

    yield from _queries(tables)


def _batches(tables: RunTables, name: str, pid: int) -> Iterator[dict[str, Any]]:
    rate = tables.rates(name, MOST_BATCHES)
    for begin_s, end_s, samples, filler in zip(
        *(rate[column] for column in ("begin_s", "end_s", "samples_per_s", "filler_samples_per_s")),
        strict=True,
    ):
        lasted_s = end_s - begin_s
        counts = {"samples": round(samples * lasted_s), "filler_samples": round(filler * lasted_s)}
        says = f"{counts['samples'] or counts['filler_samples']} samples"
        category = "batches" if counts["samples"] else "filler"
        yield _complete(says, category, pid, BATCHES, begin_s, end_s) | {"args": counts}


def _queries(tables: RunTables) -> Iterator[dict[str, Any]]:
    """Main's: asynchronous, as several may be under way at once."""
    found = tables.latencies.nlargest(MOST_QUERIES, "latency_ms").sort_values("issued_s")
    for number, (at_s, latency_ms) in enumerate(zip(found["issued_s"], found["latency_ms"], strict=True)):
        common = {"name": "query", "cat": "query", "id": number, "pid": 1, "tid": QUERIES}
        yield common | {"ph": "b", "ts": _us(at_s), "args": {"latency_ms": round(latency_ms, 6)}}
        yield common | {"ph": "e", "ts": _us(at_s + latency_ms / 1e3)}


def _telemetry(tables: RunTables) -> Iterator[dict[str, Any]]:
    pids = {row.name: pid for pid, row in enumerate(tables.each, start=1)}
    pids |= {row.slice: pids[row.name] for row in tables.each}
    for (scope, thing, quantity), figures in tables.telemetry.groupby(["scope", "id", "quantity"]):
        name = f"{quantity} ({scope} {thing})" if scope == "gpu" else str(quantity)
        some = figures.iloc[:: 1 + len(figures) // MOST_SAMPLES]
        for at_s, value in zip(some["at_s"], some["value"], strict=True):
            yield _counter(name, pids.get(str(thing), 0), at_s, {str(quantity): value})


def _complete(name: str, category: str, pid: int, tid: int, begin_s: float, end_s: float) -> dict[str, Any]:
    lasted_us = max(0.0, round((end_s - begin_s) * 1e6, 3))
    return {
        "name": name,
        "cat": category,
        "ph": "X",
        "pid": pid,
        "tid": tid,
        "ts": _us(begin_s),
        "dur": lasted_us,
    }


def _counter(name: str, pid: int, at_s: float, value: dict[str, float]) -> dict[str, Any]:
    return {"name": name, "ph": "C", "pid": pid, "tid": 0, "ts": _us(at_s), "args": value}


def _named(what: str, pid: int, tid: int, name: str | int) -> dict[str, Any]:
    key = "sort_index" if what.endswith("sort_index") else "name"
    return {"name": what, "ph": "M", "pid": pid, "tid": tid, "args": {key: name}}


def _us(seconds: float) -> float:
    return round(float(seconds) * 1e6, 3)
