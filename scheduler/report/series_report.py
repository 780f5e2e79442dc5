"""What a report says of a series of runs: its answer in words, pictures and tables, then the runs behind it."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scheduler import __version__
from scheduler.report import series_answer, series_pictures
from scheduler.report.document import Block, Cell, Code, Document, Section, Table, Words, shown
from scheduler.report.tables import SeriesTables

COLUMNS: Mapping[str, Mapping[str, str]] = {
    "trials": {
        **{"trial": "number", "search": "of", "kind": "kind", "rate, 1/s": "rate", "VALID": "valid"},
        **{"ended early": "cut", "completed, 1/s": "completed", "latency, ms": "latency_ms"},
        **{"window, s": "window_s", "why INVALID": "reasons", "spoiled by": "spoiled"},
        **{"in runs/": "run", "folder": "name"},
    },
    "baselines": {"workload": "workload", "alone, samples/s": "samples_per_s", "noise floor": "noise_floor"},
    "cells": {
        **{"main": "main", "background": "background", "outcome": "run.outcome", "derating": "derating"},
        **{"within noise": "within_noise", "samples/s": "run.samples_per_s", "run": "run.run"},
        **{"breaches": "run.breaches"},
    },
    "rows": {
        **{"workload": "workload", "slice": "slice", "profile": "slice_name", "at once": "slices_together"},
        **{"batch": "batch_size", "tokens": "sequence_length", "outstanding": "concurrency"},
        **{"arrivals, 1/s": "arrival_rate_per_s", "status": "status", "samples/s": "samples_per_s"},
        **{"p50, ms": "latency_p50_ms", "p90, ms": "latency_p90_ms", "p99, ms": "latency_p99_ms"},
        **{"p99.9, ms": "latency_p99_9_ms", "FB used, MiB": "device_memory_used_mib"},
        **{"graphics": "graphics_activity", "tensor": "tensor_activity", "DRAM": "dram_activity"},
        **{"power, W": "power_w", "J/sample": "energy_j_per_sample", "steady": "steady", "why": "why"},
    },
}
"""Of the tables in an answer: heading by field; what is in none of the rows has no column."""
LATENCIES = ("mean", "p50", "p90", "p95", "p99", "p999")
UNSAID = ("schema_version", "kind", "verdict", "slices", "runs", "workloads", "ratios")
"""Parts of an answer that stand elsewhere in the report."""


def report_on(series: SeriesTables) -> Document:
    """The report of a series, finished or not."""
    answer = series_answer.so_far(series) if series.answer is None else series.answer
    verdicts = set() if series.results.empty else set(series.results["verdict"])
    verdict = "UNFINISHED" if series.answer is None else _verdict(answer)
    bad = {"INVALID", "OUT OF TIME", "FAIL"} & {verdict, *verdicts}
    return Document(
        title=series_answer.title(series, answer),
        verdict=verdict,
        tone="neutral" if series.answer is None else "bad" if bad else "good",
        lead=series_answer.lead(series, answer),
        figures=[],
        sections=[*_answer(series.path, answer), *runs(series), question(series)],
        made_by=f"hetero-mig {__version__}",
    )


def _verdict(answer: Mapping[str, Any]) -> str:
    """VALID or INVALID; of a tuning how it ended; a profile has no such word."""
    return str(answer.get("verdict") or answer.get("ended") or "finished").upper()


def _answer(path: Path, answer: Mapping[str, Any]) -> Iterator[Section]:
    found = {"Ratios": series_answer.ratios(answer), "Rates": series_answer.rates(answer)}
    yield from (Section(title, [table]) for title, table in found.items() if table is not None)
    if drawings := list(_pictures(path, answer)):
        yield Section("Pictures", drawings)

    plain: list[tuple[Cell, Cell]] = []
    for name, value in answer.items():
        if name in UNSAID or (answer.get("kind") == "tune" and name in ("baseline", "hetero", "background")):
            continue

        if _is_plain(value):
            plain.append((name.replace("_", " "), value))
        elif blocks := list(_blocks(name, value)):
            yield Section(name.replace("_", " ").capitalize(), blocks)

    if plain:
        yield Section("Settings", [Table(("", ""), plain)])


def _pictures(path: Path, answer: Mapping[str, Any]) -> Iterator[Block]:
    """What is drawn of each kind of series."""
    match answer.get("kind"):
        case "tune":
            drawings = [series_pictures.search(answer)]
        case "derate":
            drawings = [series_pictures.ratios(answer), series_pictures.pairs(answer)]
        case "matrix":
            drawings = [series_pictures.heat_map(answer)]
        case "profile":
            yield from series_pictures.sweep(path, answer.get("rows") or [])
            return
        case _:
            return

    yield from (drawing for drawing in drawings if drawing is not None)


def runs(series: SeriesTables) -> Iterator[Section]:
    """A row a run, where the series is made of runs."""
    found = series.results
    if found.empty:
        return

    rows = [[_cell(value) for value in row] for row in found.itertuples(index=False)]
    where = "Each has a report of its own: hetero-mig report on its folder in runs/."
    columns = [f"{name}, ms" if name in LATENCIES else str(name) for name in found.columns]
    yield Section("Runs", [Table(columns, rows), Words(where, "quiet")])


def question(series: SeriesTables) -> Section:
    """What was asked, and on what."""
    asked = series.question.get("asked", {})
    rows = [(name, _cell(value)) for name, value in asked.items() if value not in (None, "", [], {}, ())]
    versions = [(name, _cell(value)) for name, value in dict(series.question.get("versions", {})).items()]
    return Section("What was asked", [Table(("option", ""), rows), Table(("version of", ""), versions)])


def _blocks(name: str, value: object) -> Iterator[Block]:
    """A list of records as a table, a record too; a list of words as they are."""
    if isinstance(value, Mapping) and value:
        yield Table(("", ""), [(each.replace("_", " "), _cell(one)) for each, one in value.items()])
    elif isinstance(value, Sequence) and not isinstance(value, str) and value:
        records = [one for one in value if isinstance(one, Mapping)]
        if len(records) == len(value):
            columns = COLUMNS.get(name) or {each: each for each in records[0]}
            yield _table(series_answer.readable(name, records), columns)
        elif name == "notes":
            yield from (Words(str(one)) for one in value)
        else:
            yield Code("\n".join(map(str, value)))


def _table(records: Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> Table:
    cells = {heading: [_at(one, field) for one in records] for heading, field in columns.items()}
    said = {
        heading: column for heading, column in cells.items() if any(one not in (None, "") for one in column)
    }
    return Table(list(said), list(zip(*said.values(), strict=True)))


def _at(record: Mapping[str, Any], field: str) -> Cell:
    value: Any = record
    for name in field.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None

    return _cell(value)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _cell(value: object) -> Cell:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(_cell(one))}" for name, one in value.items())

    if isinstance(value, list | tuple):
        return ", ".join(shown(_cell(one)) for one in value)

    return value if isinstance(value, str | int | float) or value is None else str(value)
