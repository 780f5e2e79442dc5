"""What a report says of one run, and of several side by side."""

import shlex
from collections.abc import Sequence
from textwrap import shorten

from scheduler import __version__
from scheduler.report import pictures
from scheduler.report.command import command_of
from scheduler.report.document import (
    Absent,
    Block,
    Cell,
    Code,
    Document,
    Figure,
    Section,
    Table,
    Words,
    shown,
)
from scheduler.report.tables import RunTables
from scheduler.result import Finding, Result
from scheduler.slices import core_ranges
from workloads.protocol import Scenario

SEVERITIES = {"breach": 0, "warning": 1, "info": 2}
LEAD_CHARACTERS = 160
MADE_BY = f"hetero-mig {__version__}"


def report_on(runs: Sequence[RunTables]) -> Document:
    """One run, or the first of several with all of them compared on top."""
    if len(runs) == 1:
        return _document(runs[0], sections_of(runs[0]))

    verdicts = {one.result.verdict for one in runs}
    sections = [comparison(runs)]
    for one in runs:
        sections += [Section(f"{one.name}: {each.title}", each.blocks) for each in sections_of(one)]

    return Document(
        title=f"{len(runs)} runs of {', '.join(dict.fromkeys(one.result.main.workload for one in runs))}",
        verdict="VALID" if verdicts == {"VALID"} else "INVALID" if verdicts == {"INVALID"} else "MIXED",
        tone="good" if verdicts == {"VALID"} else "bad",
        lead=", ".join(one.name for one in runs),
        figures=[],
        sections=sections,
        made_by=MADE_BY,
    )


def report_on_trials(trials: Sequence[RunTables]) -> Document:
    """The trials that followed one another over one background: compared, and where each is told of."""
    where = f"Each has a report of its own: hetero-mig report on its folder, as {trials[0].name}."
    verdicts = [one.result.verdict for one in trials]
    return Document(
        title=f"{len(trials)} trials of {trials[0].result.main.workload} over one background",
        verdict=f"{verdicts.count('VALID')} of {len(trials)} VALID",
        tone="neutral",
        lead="A run of a tuning: the background goes on while one trial of main follows another, each at a rate "
        "of its own.",
        figures=[],
        sections=[comparison(trials), Section("Each trial", [Words(where)])],
        made_by=MADE_BY,
    )


def _document(tables: RunTables, sections: Sequence[Section]) -> Document:
    result = tables.result
    others = "1 other" if len(result.background) == 1 else f"{len(result.background)} others"
    kind = "alone" if result.kind == "baseline" else f"beside {others}"
    return Document(
        title=f"{result.main.workload}, {result.main.scenario}, {kind}",
        verdict=result.verdict,
        tone="good" if result.verdict == "VALID" else "bad",
        lead=_lead(tables),
        figures=_figures(result),
        sections=sections,
        made_by=MADE_BY,
    )


def _lead(tables: RunTables) -> str:
    main, manifest = tables.result.main, tables.manifest
    started = tables.result.started_utc.replace("T", " ").partition(".")[0] + " UTC"
    lead = (
        f"{main.workload} ({main.size} model, {main.precision}, batch ≤ {main.batch_size}) on "
        f"{_slice_name(tables, main.slice)}, {main.scenario}, preset {manifest.preset}, started {started}."
    )
    breaches = [one.message for one in tables.result.findings if one.severity == "breach"]
    if breaches:
        more = f", and {len(breaches) - 1} more" if breaches[1:] else ""
        lead += f" INVALID: {shorten(breaches[0], LEAD_CHARACTERS, placeholder='…')}{more}."

    if tables.cut_short:
        lead += " There is no result.json: the run was cut short, or still goes on; this is judged from what there is."

    return lead + ("" if manifest.comparable_to_mlperf else " Not comparable to an MLPerf result.")


def _figures(result: Result) -> list[Figure]:
    main = result.main
    figures = []
    if main.metric is not None:
        figures.append(Figure(shown(main.metric.value), main.metric.unit, main.metric.name))

    for name, value in (("p50", main.latency_ms.p50), ("p99", main.latency_ms.p99)):
        if value is not None and main.scenario is not Scenario.OFFLINE:
            figures.append(Figure(shown(value), "ms", f"{name} latency"))

    if main.accuracy is not None:
        says = f"{main.accuracy.kind}, {main.accuracy.metric}"
        figures.append(Figure(shown(main.accuracy.value), main.accuracy.unit, says))

    if result.timing.main_s is not None:
        figures.append(Figure(shown(round(result.timing.main_s, 3)), "s", "main's measured window"))

    if result.background:
        steady = sum(one.samples_in_main_window > 0 for one in result.background)
        says = "background slices at work in it"
        figures.append(Figure(f"{steady} of {len(result.background)}", "", says))

    return figures


def sections_of(tables: RunTables) -> list[Section]:
    """Everything told of one run, verdict's reasons first."""
    return [
        findings(tables.result.findings),
        results(tables),
        Section("Timeline", [pictures.timeline(tables), _timing(tables.result)]),
        Section("Rate over time", [pictures.rates(tables)]),
        latency(tables),
        telemetry(tables),
        slices(tables),
        conditions(tables),
        reproduce(tables),
    ]


def findings(found: Sequence[Finding]) -> Section:
    """What was found when judging, breaches first."""
    if not found:
        return Section("Findings", [Words("None: nothing was found that speaks against this run.")])

    rows = [
        (one.severity, one.code, one.message, one.figure, one.limit, one.recommendation)
        for one in sorted(found, key=lambda one: SEVERITIES[one.severity])
    ]
    columns = ("severity", "code", "what was found", "figure", "limit", "what to do")
    return Section("Findings", [_without_empty_columns(columns, rows)])


def results(tables: RunTables) -> Section:
    """Main's figures and what the background did meanwhile."""
    main = tables.result.main
    metric: Cell = None if main.metric is None else f"{shown(main.metric.value)} {main.metric.unit}"
    rows: list[tuple[Cell, Cell]] = [
        (f"LoadGen's result ({main.metric.name})" if main.metric else "LoadGen's result", metric),
        ("LoadGen says", "VALID" if main.loadgen_valid else "INVALID"),
        ("errors LoadGen counted", main.num_errors),
        ("measured window, s", tables.result.timing.main_s),
    ]
    if main.accuracy is not None:
        reached = "reached" if main.accuracy.reached else "not reached"
        of = f"{main.accuracy.kind}: {main.accuracy.metric}"
        rows.append(
            (
                of,
                f"{shown(main.accuracy.value)} {main.accuracy.unit} ({reached}: {shown(main.accuracy.target)})",
            )
        )

    blocks: list[Block] = [Table(("main", main.workload), rows)]
    if tables.result.background:
        blocks.append(
            Table(
                (
                    "slice",
                    "workload",
                    "size",
                    "precision",
                    "batch ≤",
                    "samples/s",
                    "samples",
                    "longest gap, ms",
                    "idle, ms",
                    "ended",
                ),
                [
                    (
                        *(one.slice, one.workload, one.size, one.precision, one.batch_size),
                        *(one.samples_per_s_in_main_window, one.samples_in_main_window),
                        *(_ms(one.longest_gap_s), _ms(one.longest_idle_s), one.ended),
                    )
                    for one in tables.result.background
                ],
                "The background benchmarks within main's measured window.",
            )
        )

    return Section("Results", blocks)


def latency(tables: RunTables) -> Section:
    """The distribution of main's latencies, from the raw samples where there are any."""
    main = tables.result.main
    loadgen = main.latency_ms.model_dump()
    names = {"mean": "mean", "p50": "p50", "p90": "p90", "p95": "p95", "p99": "p99", "p99.9": "p999"}
    raw = tables.percentiles()
    if raw:
        rows = [(name, raw[name], loadgen[field]) for name, field in names.items()]
        why = (
            "A process's own times begin when LoadGen's query comes in and end when LoadGen has taken the answer. "
            "LoadGen's begin when the query was due and end before that."
        )
        count = f"{len(tables.latencies):,} queries"
        return Section(
            "Latency",
            [
                pictures.latency_curve([(main.workload, tables.latencies["latency_ms"].to_numpy())]),
                pictures.latency_over_time(tables),
                Table(("", f"raw samples ({count}), ms", "LoadGen, ms"), rows, why),
            ],
        )

    blocks: list[Block] = []
    if main.scenario is Scenario.OFFLINE:
        curve = pictures.completion_curve(tables)
        blocks += [curve] if curve is not None else []
    else:
        blocks.append(Absent("raw latencies", "main did not come to the end of its test"))

    if any(value is not None for value in loadgen.values()):
        blocks.append(Table(("", "LoadGen, ms"), [(name, loadgen[field]) for name, field in names.items()]))

    return Section("Latency", blocks or [Absent("latencies", "LoadGen left no result")])


def telemetry(tables: RunTables) -> Section:
    """Activity, memory, power and clocks over time, and why some of them are not there."""
    picture, absent = pictures.telemetry(tables)
    blocks: list[Block] = [] if picture is None else [picture]
    if picture is None:
        blocks.append(
            Absent("telemetry", "there is none in the folder: it was turned off, or the run is an old one")
        )
        return Section("Telemetry", blocks)

    why = tables.unavailable
    if why:
        by_reason: dict[str, list[str]] = {}
        for what, reason in why.items():
            by_reason.setdefault(reason, []).append(what)

        rows = [(reason, ", ".join(what)) for reason, what in by_reason.items()]
        blocks.append(Table(("not recorded: why", "what"), rows))
    elif absent:
        of_gpus = any(one.kind != "cpu" for one in tables.manifest.slices)
        blocks.append(
            Absent(
                "; ".join(absent), "no such figure came" if of_gpus else "no slice of this run is of a GPU"
            )
        )

    return Section("Telemetry", blocks)


def slices(tables: RunTables) -> Section:
    """Where each benchmark ran."""
    on = {row.slice: row.name for row in tables.each}
    rows = [
        (
            *(one.id, one.kind, one.name, on.get(one.id, "idle"), one.sms, one.memory_mib),
            *(core_ranges(one.cores), ", ".join(one.shared_with), one.uuid),
        )
        for one in tables.manifest.slices
    ]
    columns = (
        "slice",
        "kind",
        "name",
        "benchmark",
        "SMs",
        "memory, MiB",
        "cores",
        "shares cores with",
        "UUID",
    )
    return Section("Slices", [pictures.slice_map(tables), _without_empty_columns(columns, rows)])


def conditions(tables: RunTables) -> Section:
    """What the figures hold for."""
    manifest, result = tables.manifest, tables.result
    machine: list[tuple[Cell, Cell]] = [
        (name.replace("_", " "), _as_cell(value))
        for name, value in manifest.host.items()
        if name != "versions" and value is not None
    ]
    versions = {MADE_BY.split()[0]: __version__} if "hetero-mig" in manifest.host.get("versions", {}) else {}
    versions |= manifest.host.get("versions", {})
    driver = manifest.gpus.get("driver")
    gpu: list[tuple[Cell, Cell]] = [
        (f"{uuid}: {name.replace('_', ' ')}", _as_cell(value))
        for uuid, settings in (manifest.gpus.get("settings") or {}).items()
        for name, value in settings.items()
        if value is not None
    ]
    blocks: list[Block] = [
        Table(("machine", ""), machine + ([("driver", _as_cell(driver))] if driver else []) + gpu),
        Table(("version of", ""), [(name, str(version)) for name, version in versions.items()]),
        Table(
            ("wait", "s"),
            [(name.removesuffix("_s").replace("_", " "), s) for name, s in manifest.windows.items()],
        ),
        Table(
            ("LoadGen's setting for main", ""),
            [(name, _as_cell(value)) for name, value in result.main.settings.items()],
        ),
    ]
    notes = [(result.main.workload, note) for note in result.main.notes]
    notes += [(one.workload, note) for one in result.background for note in one.notes]
    notes += [("run", note) for note in manifest.notes]
    blocks.append(Table(("of", "note"), list(dict.fromkeys(notes))))
    return Section(
        "Conditions and versions", [block for block in blocks if not isinstance(block, Table) or block.rows]
    )


def reproduce(tables: RunTables) -> Section:
    """The command that asks for this run again."""
    blocks: list[Block] = [Code(command_of(tables.manifest.spec))]
    if tables.manifest.spec.get("target_qps") is None:
        qps = tables.calibrated_qps
        if qps is not None:
            trial = tables.manifest.first_main is not None
            whose = "The tuning chose this trial's rate" if trial else "The rate was calibrated on the slice"
            blocks.append(Words(f"{whose}. For the same load as here add --target-qps {qps:.6g}."))

    blocks.append(Words("To judge this run again, from its folder alone:"))
    blocks.append(Code(shlex.join(("hetero-mig", "validate", tables.name))))
    return Section("How to reproduce", blocks)


def comparison(runs: Sequence[RunTables]) -> Section:
    """All runs side by side, in the order they were named."""
    first = runs[0].result.main.metric
    rows: list[tuple[Cell, ...]] = []
    for one in runs:
        main = one.result.main
        value = None if main.metric is None else main.metric.value
        same = first is not None and main.metric is not None and main.metric.name == first.name
        ratio = (
            value / first.value if same and value is not None and first is not None and first.value else None
        )
        rows.append(
            (
                *(
                    one.name,
                    one.result.verdict,
                    one.result.kind,
                    main.workload,
                    str(main.scenario),
                    main.slice,
                ),
                *(one.calibrated_qps, value, "" if main.metric is None else main.metric.unit, ratio),
                *(main.latency_ms.p50, main.latency_ms.p99, main.latency_ms.p999),
                *(len(one.result.background), main.size, main.precision),
            )
        )

    columns = (
        *("run", "verdict", "kind", "main", "scenario", "slice", "target, 1/s", "result", "unit", "÷ first"),
        *("p50, ms", "p99, ms", "p99.9, ms", "background", "size", "precision"),
    )
    blocks: list[Block] = [_without_empty_columns(columns, rows)]
    curves = [(one.name, one.latencies["latency_ms"].to_numpy()) for one in runs if len(one.latencies)]
    if len(curves) > 1:
        blocks.append(pictures.latency_curve(curves))

    return Section("Comparison", blocks)


def _without_empty_columns(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    said = [place for place in range(len(columns)) if any(row[place] not in (None, "") for row in rows)]
    return Table([columns[place] for place in said], [[row[place] for place in said] for row in rows])


def _timing(result: Result) -> Table:
    rows: list[tuple[Cell, Cell]] = [
        ("launch to all issuing, s", result.timing.launch_to_all_issuing_s),
        ("start buffer, s", result.timing.start_buffer_s),
        ("from its end to main's launch, ms", result.timing.buffer_overshoot_ms),
        ("main's measured window, s", result.timing.main_s),
        ("stop to all gone, s", result.timing.stop_to_all_gone_s),
    ]
    return Table(("phase", ""), rows)


def _slice_name(tables: RunTables, slice_id: str) -> str:
    named = next((one.name for one in tables.manifest.slices if one.id == slice_id), "")
    return f"{slice_id} ({named})" if named else slice_id


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)


def _as_cell(value: object) -> Cell:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {one}" for name, one in value.items())

    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))

    return value if isinstance(value, str | int | float) or value is None else str(value)
