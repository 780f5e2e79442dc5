"""What a report says of a folder, and what a page does with whatever a run is called."""

import base64
import hashlib
import json
import re
import shlex
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.cli import root
from scheduler.cli_options import spec_of
from scheduler.errors import SpecError
from scheduler.events import Launch, NextMain
from scheduler.record import RunFolder
from scheduler.report import files, markdown, page, pictures
from scheduler.report.command import command_of
from scheduler.report.document import Picture, Table, shown
from scheduler.report.run_report import comparison
from scheduler.report.tables import load, load_series
from scheduler.report.timeline import phases_of, stages_of
from scheduler.report.trace import MOST_QUERIES, trace_of
from scheduler.result import Manifest, Placement
from scheduler.spec import RunSpec, parse_run
from scheduler.story import read_story
from scheduler.verdict import judge
from tests.unit.test_verdict import EVIDENCE, MANIFEST, STORY, Told
from workloads.progress import Progress
from workloads.protocol import Scenario
from workloads.queries import Queries

EVIL = "<script>alert('$x$')</script>|`*_"
S = 1_000_000_000
SERVER = MANIFEST.model_copy(update={"main": MANIFEST.main.model_copy(update={"scenario": Scenario.SERVER})})


def folder(
    path: Path, manifest: Manifest = MANIFEST, story: list[Told] = STORY, latencies_ms: Any = None
) -> Path:
    """A run folder as a run would have left it: main's window is 6 s to 16 s."""
    run = RunFolder.create(path)
    run.write_manifest(manifest.model_dump(mode="json"))
    for at, what in story:
        run.append(what, at)

    for name, since_s in ((manifest.main.name, 6), (manifest.background[0].name, 2)):
        with Progress(run.benchmark(name)) as progress:
            for tenth in range(100):
                begin_ns = since_s * S + tenth * S // 10
                progress.completed(begin_ns, begin_ns + S // 10, 6, filler=name == "back" and tenth % 20 == 9)

    if latencies_ms is not None:
        queries = Queries()
        for number, latency_ms in enumerate(latencies_ms):
            issued_ns = 6 * S + number * 9 * S // len(latencies_ms)
            queries.issued_ns.append(issued_ns)
            queries.completed_ns.append(issued_ns + round(latency_ms * 1e6))

        queries.write(path / manifest.main.name)

    for tenth in range(170):
        run.append_line(
            "telemetry.jsonl",
            {
                "at_s": tenth / 10,
                "host": {"cpu_active": 0.5, "load_1min": None},
                "slices": {"cpu0": {"cpu_active": 0.9, "cores_busy_s": tenth / 20}},
                "workers": {"back": {"cpu_s": tenth / 10, "memory_mib": 300}},
            },
        )

    result = judge(manifest, story, EVIDENCE)
    run.write_result(result.model_dump(mode="json"))
    return path


class Page(HTMLParser):
    """What a browser would take for an element, for an address, and for text."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link"):
            self.open.append(tag)

        self.addresses += [
            value or "" for name, value in attrs if name in ("href", "src", "srcset", "action")
        ]
        assert not [name for name, _value in attrs if name.startswith("on")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self.open and self.open[-1] == "script" else self.text).append(data)


def test_a_page_and_its_markdown_are_whole_load_nothing_and_take_names_for_text(tmp_path: Path):
    called = {"workload": EVIL, "slice": "cpu0"}
    evil = SERVER.model_copy(
        update={
            "main": SERVER.main.model_copy(update=called),
            "notes": [EVIL],
            "spec": {"main": EVIL, "background": [EVIL]},
            "host": {"hostname": EVIL, "versions": {EVIL: EVIL}},
        }
    )
    path = folder(tmp_path / "run", evil, latencies_ms=np.arange(1, 101))
    RunFolder(path).write_json("telemetry.json", {"unavailable": {"gpus.GPU-1.power_w": "not supported"}})
    document = files.document_of([path])
    assert [section.title for section in document.sections] == [
        *("Findings", "Results", "Timeline", "Rate over time", "Latency", "Telemetry", "Slices"),
        *("Conditions and versions", "How to reproduce"),
    ]
    content = page.render(document)
    seen = Page(content)
    assert seen.open == []
    assert {address for address in seen.addresses if not address.startswith("#")} == {"data:,"}
    assert not re.search(r"\bhttps?:|url\((?!#)|@import", content)
    [script] = seen.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in content
    assert any(EVIL in text for text in seen.text)
    assert sum(text.startswith("<script>alert") for text in seen.text) >= 3  # of the pictures too

    text = markdown.render(document)
    assert "<script>" not in text.replace("\\<script\\>", "").replace(f"    {command_of(evil.spec)}", "")
    [row] = [line for line in text.splitlines() if line.startswith("| main |")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 3
    assert "| not supported | gpus.GPU-1.power\\_w |" in text


def test_a_long_run_makes_no_large_page(tmp_path: Path):
    latencies_ms = np.random.default_rng(1).exponential(5, 200_000)
    content = page.render(files.document_of([folder(tmp_path / "run", SERVER, latencies_ms=latencies_ms)]))
    assert len(content) < 500_000
    assert "mathdefault" not in content  # the latencies are on a logarithmic axis, whose labels are plain


def test_what_was_not_recorded_is_said_with_the_reason(tmp_path: Path):
    path = folder(tmp_path / "run", SERVER)
    (path / "telemetry.jsonl").unlink()
    content = markdown.render(files.document_of([path]))
    assert "telemetry: not recorded: there is none in the folder" in content
    assert "raw latencies: not recorded: main did not come to the end of its test" in content


def test_a_run_that_was_cut_short_is_told_as_far_as_it_came(tmp_path: Path):
    path = folder(tmp_path / "run", story=STORY[:8])
    (path / "result.json").unlink()
    document = files.document_of([path])
    assert document.verdict == "INVALID"
    assert "There is no result.json" in document.lead


def test_percentiles_are_numpys_and_one_slow_query_shows_in_the_tail(tmp_path: Path):
    latencies_ms = np.full(999, 2.0)
    latencies_ms[500] = 400.0
    found = load(folder(tmp_path / "run", SERVER, latencies_ms=latencies_ms))
    told = found.percentiles()
    for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99), ("p99.9", 99.9)):
        assert told[name] == np.percentile(found.latencies["latency_ms"].to_numpy(), percent)

    assert told["mean"] == pytest.approx(latencies_ms.mean())
    assert told["p99"] == 2.0
    assert told["p99.9"] > 2.0
    at_ms, percent_of = pictures.distribution(found.latencies["latency_ms"].to_numpy())
    assert (at_ms[-1], percent_of[-1]) == (400.0, 100.0)
    assert (at_ms[percent_of < 99.8] == 2.0).all()


@pytest.mark.parametrize("bins", [1, 7, 100, 5000])
def test_rates_over_time_add_up_to_what_was_completed(tmp_path: Path, bins: int):
    found = load(folder(tmp_path / "run"))
    for one in found.each:
        rate = found.rates(one.name, bins)
        lasted_s = rate["end_s"] - rate["begin_s"]
        assert (rate["samples_per_s"] * lasted_s).sum() == pytest.approx(one.samples)
        assert (rate["filler_samples_per_s"] * lasted_s).sum() == pytest.approx(one.filler_samples)
        assert (lasted_s > 0).all()

    assert found.each[1].filler_samples == 30


def test_tables_for_a_notebook(tmp_path: Path):
    found = load(folder(tmp_path / "run", SERVER, latencies_ms=[1.0, 2.0]))
    assert list(found.benchmarks["name"]) == ["main", "back"]
    assert list(found.benchmarks["launched_s"]) == [4.1, 0.0]
    assert list(found.events["what"][:3]) == ["Launch", "Ready", "Issuing"]
    assert list(found.latencies["latency_ms"]) == [1.0, 2.0]
    busy = found.telemetry[
        (found.telemetry["scope"] == "slice") & (found.telemetry["quantity"] == "cpu_active")
    ]
    assert set(busy["value"]) == {0.9}
    assert "load_1min" not in set(found.telemetry["quantity"])  # null: not measured, so no row
    assert set(found.completions["benchmark"]) == {"main", "back"}


def test_stages_and_phases_of_a_run():
    told = read_story(STORY)
    assert [
        (span.what, span.begin_s, span.end_s) for span in stages_of(told.benchmarks["main"], 16.0, 99)
    ] == [
        *(("load", 4.1, 5.0), ("prepare", 5.0, 6.0), ("issue", 6.0, 16.0), ("end", 16.0, 16.1)),
    ]
    phases = phases_of(MANIFEST, told, (6.0, 16.0))
    assert [(span.what, span.begin_s, span.end_s) for span in phases] == [
        *(("start", 0.0, 2.0), ("start buffer", 2.0, 4.1), ("main starts", 4.1, 6.0)),
        *(("main's window", 6.0, 16.0), ("end buffer", 16.0, 17.0), ("stop", 17.0, 17.5)),
    ]


@given(st.integers(0, len(STORY)))
def test_however_far_it_came_its_stages_follow_one_another(length: int):
    told = read_story(STORY[:length])
    for one in told.benchmarks.values():
        spans = stages_of(one, None, 20.0)
        assert all(span.begin_s <= span.end_s for span in spans)
        assert all(a.end_s == b.begin_s for a, b in pairwise(spans))

    phases_of(MANIFEST, told, None)


def test_mig_devices_are_drawn_where_they_lie(tmp_path: Path):
    slices = [
        one.model_copy(
            update={"kind": "mig", "name": name, "placement": Placement(gpu_uuid="GPU-1", start=at, size=4)}
        )
        for one, name, at in zip(MANIFEST.slices, ("3g.71gb", "4g.71gb"), (4, 0), strict=True)
    ]
    found = load(folder(tmp_path / "run", MANIFEST.model_copy(update={"slices": slices})))
    drawing = pictures.slice_map(found)
    assert "3g.71gb" in drawing.svg
    assert "memory slices" in drawing.svg


REQUIRED = {
    "X": {"name", "cat", "ph", "ts", "dur", "pid", "tid"},
    "b": {"name", "cat", "ph", "ts", "id", "pid", "tid"},
    "e": {"name", "cat", "ph", "ts", "id", "pid", "tid"},
    "C": {"name", "ph", "ts", "pid", "args"},
    "i": {"name", "ph", "ts", "pid", "tid", "s"},
    "M": {"name", "ph", "pid", "args"},
}
"""By phase of the Trace Event Format."""


def test_a_trace_has_what_its_format_asks_for_and_is_bounded(tmp_path: Path):
    latencies_ms = np.full(MOST_QUERIES + 500, 0.5)
    latencies_ms[77] = 90.0
    told = trace_of(load(folder(tmp_path / "run", SERVER, latencies_ms=latencies_ms)))
    written = json.loads(json.dumps(told, allow_nan=False))
    by_phase: dict[str, list[dict[str, Any]]] = {phase: [] for phase in REQUIRED}
    for event in written["traceEvents"]:
        assert REQUIRED[event["ph"]] <= set(event)
        by_phase[event["ph"]].append(event)

    assert all(event["dur"] >= 0 for event in by_phase["X"])
    assert all(isinstance(value, int | float) for event in by_phase["C"] for value in event["args"].values())
    assert len(by_phase["b"]) == len(by_phase["e"]) == MOST_QUERIES
    assert {event["id"] for event in by_phase["b"]} == {event["id"] for event in by_phase["e"]}
    assert max(event["args"]["latency_ms"] for event in by_phase["b"]) == 90.0
    names = {
        event["pid"]: event["args"]["name"] for event in by_phase["M"] if event["name"] == "process_name"
    }
    assert names == {0: "run", 1: "main: null on cpu0", 2: "background: null on cpu1"}
    issuing = next(event for event in by_phase["X"] if (event["pid"], event["name"]) == (1, "issues"))
    assert (issuing["ts"], issuing["dur"]) == (6e6, 10e6)


@pytest.mark.parametrize(
    "asked",
    [
        {"main": "resnet50"},
        {"main": "bert", "main_scenario": "Server", "background": "datacenter", "target_qps": "12.5"},
        {
            "main": "null",
            "main_duration": "300ms",
            "start_buffer": "1500ms",
            "stop_grace": "90s",
            "seed": "7",
        },
        {
            "main": "resnet50",
            "batch_size": {"resnet50": 4, "bert": 2},
            "background": "bert",
            "slices": "cpu:2",
        },
        {"main": "bert", "main_mode": "accuracy", "accuracy_target": "99.9", "background_duration": "10m"},
        {"main": "null", "telemetry": "off", "main_duration": "1234567.5s", "target_qps": "0.00001"},
        {"main": "null", "telemetry": "2hz", "main_duration": "0.25ms"},
        {"main": "null", "telemetry": "3s"},
    ],
)
def test_the_command_asks_for_the_same_run(asked: dict[str, Any]):
    spec = parse_run(asked)
    program, *words = shlex.split(command_of(spec.model_dump(mode="json")))
    assert program == "hetero-mig"
    context = root.make_context(program, words)
    assert spec_of(context.params) == spec


def test_a_series_without_an_answer_says_how_to_go_on(tmp_path: Path):
    place = RunFolder.create(tmp_path / "series")
    asked = {"command": "derate", "asked": {"main": EVIL}, "versions": {"torch": "2"}}
    place.write_json("series.json", {"schema_version": 1, "question": asked})
    (place.path / "runs").mkdir()
    folder(place.path / "runs" / "hetero-1")
    found = load_series(place.path)
    assert list(found.results["key"]) == ["hetero-1"]
    document = files.document_of([place.path])
    assert document.verdict == "UNFINISHED"
    assert "goes on from there" in document.lead
    assert Page(page.render(document)).open == []


def test_a_report_of_the_folder_one_stands_in_calls_it_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder(tmp_path / "my run"))
    files.write_report([Path()], None)
    assert "    hetero-mig validate 'my run'" in Path("report.md").read_text()


def test_the_html_file_is_not_called_as_the_markdown_one_beside_it(tmp_path: Path):
    with pytest.raises(SpecError, match="Markdown"):
        files.write_report([folder(tmp_path / "run")], tmp_path / "report.md")

    assert not (tmp_path / "report.md").exists()


def test_trials_over_one_background_are_told_of_one_by_one(tmp_path: Path):
    """A run of a tuning: its folder alone would be taken for a run of its first trial."""
    path = folder(tmp_path / "hetero-1", MANIFEST.model_copy(update={"first_main": "main"}))
    result = RunFolder(path).result()
    (path / "result.json").unlink()
    run = RunFolder(path)
    run.append(NextMain("second", 17.6), 17.6)
    run.append(Launch("second"), 17.7)
    run.append_line("telemetry.jsonl", {"at_s": 17.65, "workers": {"second": {"cpu_s": 1.0}}})
    for name, verdict in (("main", "VALID"), ("second", "INVALID")):
        trial = RunFolder(run.benchmark(name))
        trial.write_json(
            "benchmark.json", MANIFEST.main.model_copy(update={"name": name}).model_dump(mode="json")
        )
        trial.write_result(result | {"verdict": verdict})

    document = files.document_of([path])
    assert document.verdict == "1 of 2 VALID"
    [table] = [block for block in document.sections[0].blocks if isinstance(block, Table)]
    assert [tuple(row[:2]) for row in table.rows] == [
        ("hetero-1/main", "VALID"),
        ("hetero-1/second", "INVALID"),
    ]

    first, second = load(path / "main"), load(path / "second")
    assert (first.result.verdict, second.result.verdict) == ("VALID", "INVALID")
    assert [one.name for one in second.each] == ["second", "back"]
    assert first.each[0].samples == 600
    assert first.each[0].exited_s == 16.1
    assert second.each[0].launched_s == 17.7
    assert first.telemetry["at_s"].max() < 17.5
    assert set(second.telemetry["id"][second.telemetry["scope"] == "worker"]) == {"back", "second"}
    assert files.document_of([path / "second"]).verdict == "INVALID"
    assert "end buffer" not in {span.what for span in phases_of(first.manifest, first.told, (6.0, 16.0))}


def test_several_runs_are_compared(tmp_path: Path):
    paths = [folder(tmp_path / name, SERVER, latencies_ms=[1.0, 2.0, 3.0]) for name in ("one", "two")]
    table, picture = comparison([load(path) for path in paths]).blocks
    assert isinstance(table, Table)
    assert [tuple(row[:2]) for row in table.rows] == [("one", "VALID"), ("two", "VALID")]
    assert [row[table.columns.index("÷ first")] for row in table.rows] == [1.0, 1.0]
    assert isinstance(picture, Picture)
    assert "two" in picture.svg


METRIC = {"name": "result_samples_per_second", "value": 900.0, "unit": "samples/s"}
ANSWERS: dict[str, dict[str, Any]] = {
    "derate": {
        "verdict": "VALID",
        "ratios": [
            {"figure": EVIL, "ratio": 0.9, "interval": [0.001, 180.0], "margin": 0.02, "words": EVIL},
            {"figure": "latency p99", "ratio": 1.2, "interval": None, "margin": 0.02, "words": "one pair"},
        ],
        "runs": [{"kind": kind, "metric": METRIC} for kind in ("baseline", "hetero", "baseline")],
    },
    "tune": {
        **{"ended": "found", "workload": EVIL, "slice": "cpu0", "scenario": "Server", "preset": "quick"},
        **{"baseline": {"qps": 100.0}, "hetero": None, "derating": None},
        "trials": [
            {"number": 1, "of": "baseline", "kind": "screening", "rate": 10.0, "valid": True, "spoiled": []},
            {
                "number": 2,
                "of": "baseline",
                "kind": "confirmation",
                "rate": 990.0,
                "valid": False,
                "cut": True,
            },
        ],
    },
    "matrix": {
        **{"verdict": "INVALID", "workloads": [EVIL, "b"], "main_slice": "cpu0", "preset": "quick"},
        "cells": [
            {
                "main": EVIL,
                "background": "b",
                "derating": 0.8,
                "within_noise": False,
                "run": {"outcome": "VALID"},
            },
            {
                "main": "b",
                "background": EVIL,
                "derating": None,
                "within_noise": None,
                "run": {"outcome": "INVALID"},
            },
        ],
    },
    "profile": {
        "rows": [
            {
                **{"cell": "null-b1", "workload": EVIL, "group": "other", "layout": "", "slice": "cpu0"},
                **{"slice_kind": "cpu", "slice_name": EVIL, "sms": None, "slice_memory_mib": 1, "seed": 0},
                **{
                    "slices_together": 1,
                    "size": "small",
                    "precision": "fp32",
                    "engine": "auto",
                    "batch_size": 1,
                },
                **{"sequence_length": None, "loop": "closed", "concurrency": 1, "arrival_rate_per_s": None},
                **{"seconds": 1.0, "status": "out of memory", "why": EVIL},
            }
        ]
    },
}
"""As ``result.json`` publishes them, as far as a report needs it."""


@pytest.mark.parametrize("kind", ANSWERS)
def test_each_kind_of_series_has_its_pictures(tmp_path: Path, kind: str):
    place = RunFolder.create(tmp_path / "series")
    place.write_json("series.json", {"schema_version": 1, "question": {"command": kind, "asked": {}}})
    place.write_result({"kind": kind, **ANSWERS[kind]})
    document = files.document_of([place.path])
    drawn = [block for section in document.sections for block in section.blocks if isinstance(block, Picture)]
    assert len(drawn) == {"derate": 2, "tune": 1, "matrix": 1, "profile": 6}[kind]
    seen = Page(page.render(document))
    assert (seen.open, len(seen.scripts)) == ([], 1)
    assert "mathdefault" not in "".join(one.svg for one in drawn)
    assert (
        document.verdict
        == {"derate": "VALID", "tune": "FOUND", "matrix": "INVALID", "profile": "FINISHED"}[kind]
    )


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (1234567.0, "1,234,567"),
        (0.0014232, "0.0014232"),
        (True, "yes"),
        ("a", "a"),
    ],
)
def test_figures_are_plain(cell: Any, text: str):
    assert shown(cell) == text


def test_every_option_of_a_run_is_one_of_the_command_line():
    """So that the command of a report can be given as it stands."""
    options = {parameter.name for parameter in root.params}
    assert set(RunSpec.model_fields) <= options
