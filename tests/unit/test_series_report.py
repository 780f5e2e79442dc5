"""What a report says of a series: how far it is, and its answer as a person would tell it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from scheduler.derating import answer
from scheduler.events import StopRequested
from scheduler.record import RunFolder
from scheduler.report import files, markdown, series_pictures
from scheduler.report.document import Cell, Document, Picture, Table
from scheduler.report.tables import load_series
from scheduler.tuning import Outcome
from tests.unit.test_derating import pairs
from tests.unit.test_report_files import SERVER, folder
from tests.unit.test_tuning import trial
from tests.unit.test_verdict import STORY
from workloads.protocol import Scenario


def series(path: Path, command: str, **asked: Any) -> RunFolder:
    place = RunFolder.create(path)
    place.write_json("series.json", {"schema_version": 1, "question": {"command": command, "asked": asked}})
    (path / "runs").mkdir()
    return place


def reported(path: Path, command: str, told: Mapping[str, Any]) -> Document:
    series(path, command).write_result({"kind": command, **told})
    return files.document_of([path])


def table_of(document: Document, title: str) -> Table:
    [table] = [
        block
        for section in document.sections
        for block in section.blocks
        if section.title == title and isinstance(block, Table)
    ]
    return table


def rows(document: Document, title: str) -> list[tuple[Cell, ...]]:
    return [tuple(row) for row in table_of(document, title).rows]


def test_a_run_that_was_stopped_is_none_of_those_that_are_done(tmp_path: Path):
    place = series(tmp_path / "matrix", "matrix", workloads=["null", "fixed"], repeats=3)
    folder(place.path / "runs" / "null-alone-1")
    stopped = folder(
        place.path / "runs" / "fixed-alone-1", story=[*STORY[:7], (7.0, StopRequested(7.0, "SIGTERM"))]
    )
    assert RunFolder(stopped).result()["verdict"] == "INVALID"
    assert list(load_series(place.path).runs) == ["null-alone-1"]
    assert files.document_of([place.path]).lead.startswith("1 of 10 runs are done; there is no answer yet.")


def test_an_unfinished_tuning_shows_its_trials_and_the_search_so_far(tmp_path: Path):
    terms = {"confirm": 2, "tolerance": 0.01, "screening_s": 60, "baseline_qps": None}
    place = series(tmp_path / "tuning", "tune", **terms)
    RunFolder.create(place.path / "runs" / "baseline-1").write_manifest(SERVER.model_dump(mode="json"))
    seen = (trial(800.0, kind="screening"), trial(1000.0, kind="screening", valid=False), trial(900.0))
    for one in seen:
        told = one.model_copy(update={"of": "baseline", "run": "baseline-1"})
        place.append_line("trials.jsonl", told.model_dump(mode="json"))

    document = files.document_of([place.path])
    assert document.verdict == "UNFINISHED"
    assert document.lead.startswith("3 trials judged; there is no answer yet. So far: null on cpu0")
    [alone] = rows(document, "Rates")
    assert alone[4:] == (900.0, 1000.0, "2 short, 1 full", "the search goes on")
    assert [row[1:4] for row in rows(document, "Trials")] == [
        *(("alone", "screening", 800.0), ("alone", "screening", 1000.0), ("alone", "confirmation", 900.0)),
    ]
    assert any(isinstance(block, Picture) for section in document.sections for block in section.blocks)


def test_a_derating_is_told_with_its_workloads_figures_and_intervals(tmp_path: Path):
    found = answer(pairs([0.9, 1.1, 0.95, 1.04], scenario=Scenario.SERVER), repeats=4)
    document = reported(tmp_path / "derating", "derate", found.model_dump(mode="json"))
    assert document.title == "derate of null, Server: derating"
    assert "null on cpu0" in document.lead
    assert "beside fixed on cpu1, 4 pairs" in document.lead
    assert "throughput 0.994 (0.765–1.293), too noisy to tell (repeat 249 more)" in document.lead
    assert document.sections[0].title == "Ratios"
    assert [(row[0], *row[4:6]) for row in rows(document, "Ratios")] == [
        ("throughput", 0.994, "0.765–1.293"),
        *((f"latency {name}", 1.006, "0.773–1.307") for name in ("p50", "p90", "p99", "p99.9")),
    ]

    wild = answer(pairs([0.2, 5.0]), repeats=2).model_dump(mode="json")
    assert rows(reported(tmp_path / "wild", "derate", wild), "Ratios")[0][5] == "0.000–over 1000"

    slower = answer(pairs([0.950, 0.953, 0.947, 0.951]), repeats=4).model_dump(mode="json")
    assert rows(reported(tmp_path / "slower", "derate", slower), "Ratios")[0][6] == "difference, 5.0% worse"


def test_noise_floors_have_their_unit(tmp_path: Path):
    floors = {"null": 660.05, "fixed": 0.26113, "bert": None}
    told = {
        **{
            "verdict": "VALID",
            "workloads": list(floors),
            "main_slice": "cpu0",
            "preset": "quick",
            "cells": [],
        },
        "baselines": [
            {"workload": name, "samples_per_s": 5.0, "noise_floor": floor} for name, floor in floors.items()
        ],
    }
    document = reported(tmp_path / "matrix", "matrix", told)
    assert [row[2] for row in rows(document, "Baselines")] == ["over ±100%", "±26.1%", "unknown"]


def tuned(baseline: Outcome, hetero: Outcome) -> dict[str, Any]:
    return {
        **{"ended": "found", "workload": "null", "slice": "cpu0", "scenario": "Server", "preset": "quick"},
        **{"background": ["fixed"], "derating": 0.99, "trials": [trial(90.0).model_dump(mode="json")]},
        **{"baseline": baseline.model_dump(mode="json"), "hetero": hetero.model_dump(mode="json")},
    }


def test_what_a_tuning_found_is_told_in_words(tmp_path: Path):
    given = Outcome(qps=100.0, given=True, why="given, not measured")
    metric = {"name": "result_x", "value": 98.5, "unit": "samples/s"}
    found = Outcome(qps=99.0, why="close", metric=metric, screening_trials=4, full_length_trials=2, low=99.0)
    document = reported(tmp_path / "tuning", "tune", tuned(given, found))
    assert document.lead == (
        "null on cpu0 beside fixed, Server, preset quick: alone 100/s; in company 99/s; derating 0.99."
    )
    assert rows(document, "Rates") == [
        ("alone", 100.0, None, None, None, None, None, "given, not measured"),
        ("in company", 99.0, "98.5 samples/s", None, 99.0, None, "4 short, 2 full", "close"),
    ]
    assert "result_x" not in markdown.render(document).replace("\\", "")


@pytest.mark.parametrize(("alone", "company"), [(90.0, 90.0), (90.0, 90.1), (90.1, 90.0)])
def test_the_words_of_two_rates_that_are_near_stay_apart(alone: float, company: float):
    drawing = series_pictures.search(tuned(Outcome(qps=alone, why=""), Outcome(qps=company, why="")))
    assert drawing is not None
    places = re.findall(r'<text[^>]*? y="([\d.]+)"[^>]*>(?:alone|in company): ', drawing.svg)
    assert len(places) == 2, drawing.svg[-3000:]
    assert abs(float(places[0]) - float(places[1])) >= 8.5
