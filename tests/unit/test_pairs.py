"""A matrix: its order of runs, its noise floors, its cells; and how it is shown."""

import csv
import io
from collections.abc import Sequence
from math import exp, log
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from scheduler import pairs
from scheduler.pairs import MatrixResult, PairResult, PairRun
from scheduler.report import matrix as report
from scheduler.result import Result, SliceRecord

SEVEN = ("3d-unet", "bert", "dlrm", "resnet50", "rnnt", "ssd-mobilenet", "ssd-resnet34")


def came_out(run: PairRun, samples_per_s: float | None, outcome: pairs.Outcome = "VALID") -> PairResult:
    return PairResult(
        main=run.main,
        background=run.background,
        outcome=outcome,
        samples_per_s=samples_per_s,
        background_samples_per_s=None if run.background is None else 123.5,
        breaches=[] if outcome == "VALID" else ["bert on cpu1 died with exit code 1"],
        warnings=[],
        run=f"runs/{run.key}",
    )


def matrix_of(workloads: tuple[str, ...], results: dict[PairRun, PairResult], repeats: int) -> MatrixResult:
    baselines = pairs.baselines_of(workloads, results)
    slices = [
        SliceRecord(
            id=f"cpu{n}", kind="cpu", name="", uuid=None, sms=None, memory_mib=8, cores=[n], shared_with=[]
        )
        for n in range(2)
    ]
    return MatrixResult(
        verdict="VALID" if all(one.outcome == "VALID" for one in results.values()) else "INVALID",
        started_utc="2026-11-21T12:00:00+00:00",
        workloads=list(workloads),
        preset="quick",
        main_duration_s=10,
        conditions=dict.fromkeys(workloads, "small fp32 ≤16"),
        slices=slices,
        main_slice="cpu0",
        repeats=repeats,
        notes=[],
        baselines=baselines,
        cells=pairs.cells_of(workloads, baselines, results),
    )


@pytest.fixture
def seven() -> MatrixResult:
    """Every workload scatters by 0.5 %; beside dlrm each loses 7 %; one pair is INVALID, one main has no baseline."""
    draw = Random(5)
    results = {}
    for run in pairs.order(SEVEN, 3):
        rate = 1000 * exp(draw.gauss(0, 0.005)) * (0.93 if run.background == "dlrm" else 1)
        results[run] = came_out(run, rate)
        if run == PairRun("bert", "rnnt"):
            results[run] = came_out(run, None, "INVALID")
        if run.main == "ssd-resnet34" and run.background is None:
            results[run] = came_out(run, None, "could not run")

    return matrix_of(SEVEN, results, 3)


# --- the order


@given(n=st.integers(1, 8), repeats=st.integers(2, 6))
def test_every_pair_once_and_every_baseline_as_often_as_asked(n: int, repeats: int):
    names = [f"w{at}" for at in range(n)]
    runs = pairs.order(names, repeats)
    assert len(runs) == len(set(runs)) == len({run.key for run in runs}) == n * n + n * repeats
    assert {(run.main, run.background) for run in runs} == {(a, b) for a in names for b in [*names, None]}


@given(n=st.integers(2, 8), repeats=st.integers(2, 6))
def test_drift_falls_on_all_rows_and_columns_and_on_the_baselines_alike(n: int, repeats: int):
    names = [f"w{at}" for at in range(n)]
    runs = pairs.order(names, repeats)
    cells = [run for run in runs if run.background is not None]
    for rounds in range(n):
        of_this_round = cells[rounds * n : (rounds + 1) * n]
        assert {run.main for run in of_this_round} == {run.background for run in of_this_round} == set(names)

    assert all(run.background is None for run in (*runs[:n], *runs[-n:]))
    middle = (len(runs) - 1) / 2
    for main in names:
        when = [at for at, run in enumerate(runs) if run.main == main and run.background is None]
        assert sum(when) / repeats == pytest.approx(middle, abs=n + repeats)


# --- what the results say


def result_of(
    verdict: str, samples_per_s: float | None, background: Sequence[float | None] = (), **finding: str
) -> Result:
    window = {"begin_s": 1.0, "end_s": 2.0}
    alike = {
        "size": "small",
        "precision": "fp32",
        "batch_size": 1,
        "device": {},
        "window": window,
        "notes": [],
    }
    metric = {"name": "result_samples_per_second", "value": samples_per_s, "unit": "samples/s"}
    neighbour = {
        **alike, "workload": "bert", "pid": 7, "ended": "killed", "samples_completed": 9, "filler_samples": 0,
        "samples_in_main_window": 5, "filler_samples_in_main_window": 0, "longest_gap_s": 0.1,
        "longest_idle_s": 0.0, "longest_batch_s": 0.1, "loadgen_tests": 0, "loadgen_result": None,
        "loadgen_valid": None,
    }  # fmt: skip
    return Result.model_validate({
        "kind": "hetero", "verdict": verdict, "started_utc": "2026-11-21T12:00:00+00:00", "preset": "quick",
        "comparable_to_mlperf": False, "notes": [], "slices": [],
        "findings": [{"code": code, "severity": severity, "message": code} for code, severity in finding.items()],
        "main": {
            **alike, "workload": "dlrm", "scenario": "Offline", "slice": "cpu0", "loadgen_valid": True, "num_errors": 0,
            "metric": None if samples_per_s is None else metric, "latency_ms": {}, "settings": {},
        },
        "background": [
            {**neighbour, "slice": f"cpu{n}", "samples_per_s_in_main_window": rate}
            for n, rate in enumerate(background, start=1)
        ],
        "timing": {
            "launch_to_all_issuing_s": None, "start_buffer_s": 0, "buffer_overshoot_ms": None, "main_s": 1.0,
            "stop_to_all_gone_s": None,
        },
    })  # fmt: skip


def test_of_a_run_that_is_not_valid_no_figure_is_kept():
    run = PairRun("dlrm", "bert")
    valid = pairs.pair_result(
        run, result_of("VALID", 100.0, [20.0, 22.5], shared="warning", length="info"), "runs/x"
    )
    assert (valid.outcome, valid.samples_per_s, valid.background_samples_per_s) == ("VALID", 100, 42.5)
    assert (valid.warnings, valid.breaches) == (["shared"], [])
    invalid = pairs.pair_result(run, result_of("INVALID", 100.0, [20.0, None], stalled="breach"), "runs/x")
    assert (invalid.outcome, invalid.samples_per_s, invalid.background_samples_per_s) == (
        "INVALID",
        None,
        None,
    )
    assert invalid.breaches == ["stalled"]
    failed = pairs.not_run(run, "bert on cpu1 ran out of memory", "runs/x")
    assert (failed.outcome, failed.samples_per_s) == ("could not run", None)
    assert failed.breaches == ["bert on cpu1 ran out of memory"]


def test_a_run_is_told_in_words():
    assert [run.words for run in pairs.order(["null"], 2)] == [
        "null alone, time 1",
        "null beside null",
        "null alone, time 2",
    ]


def test_the_noise_floor_is_the_prediction_interval_of_one_more_run():
    logs = [log(100), log(101), log(99)]
    t, s = 4.3027, 0.0100007  # of 95 %, 2 degrees of freedom; the standard deviation of these logarithms
    floor = pairs.noise_floor(logs)
    assert floor == pytest.approx(exp(t * s * (1 + 1 / 3) ** 0.5) - 1, rel=1e-4)
    assert pairs.noise_floor([log(100)]) is None


def test_like_runs_lie_within_the_noise_floor_as_often_as_it_says():
    draw, within = Random(7), 0
    for _ in range(2000):
        alone = [draw.gauss(0, 0.01) for _ in range(3)]
        floor = pairs.noise_floor(alone)
        assert floor is not None
        within += abs(draw.gauss(0, 0.01) - sum(alone) / 3) <= log(1 + floor)

    assert within / 2000 == pytest.approx(pairs.CONFIDENCE, abs=0.015)


def test_cells_are_held_against_their_own_baseline(seven: MatrixResult):
    beside_dlrm = [seven.cell(main, "dlrm") for main in SEVEN[:-1]]
    assert all(cell.derating == pytest.approx(0.93, abs=0.02) for cell in beside_dlrm)
    assert sum(cell.within_noise is False for cell in beside_dlrm) >= 5
    others = [seven.cell(main, other) for main in SEVEN[:-1] for other in SEVEN if other != "dlrm"]
    assert sum(cell.within_noise is True for cell in others) >= 30


def test_what_did_not_hold_is_no_number(seven: MatrixResult):
    assert seven.verdict == "INVALID"
    invalid, without_baseline = seven.cell("bert", "rnnt"), seven.cell("ssd-resnet34", "bert")
    assert (invalid.run.outcome, invalid.derating, invalid.within_noise) == ("INVALID", None, None)
    assert (without_baseline.run.outcome, without_baseline.derating) == ("VALID", None)
    assert seven.baseline("ssd-resnet34").samples_per_s is None


def test_with_one_valid_baseline_the_noise_is_not_known():
    run, alone = PairRun("null", "null"), PairRun("null", None, 1)
    failed = PairRun("null", None, 2)
    results = {run: came_out(run, 90), alone: came_out(alone, 100), failed: came_out(failed, None, "INVALID")}
    cell = matrix_of(("null",), results, 2).cell("null", "null")
    assert (cell.derating, cell.within_noise) == (pytest.approx(0.9), None)


def test_the_time_left_is_that_of_the_runs_before():
    assert pairs.time_left_s([], 7) is None
    assert pairs.time_left_s([10, 20], 4) == 60


# --- how it is shown


def shown(result: MatrixResult, width: int, colour: bool = False) -> str:
    console = Console(
        width=width, file=io.StringIO(), force_terminal=colour, color_system="truecolor" if colour else None
    )
    report.show(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_seven_workloads_fit_80_columns_without_colour(seven: MatrixResult):
    lines = shown(seven, 80).splitlines()
    table = lines[lines.index(next(line for line in lines if "beside" in line and "main \\" in line)) :][:8]
    assert max(map(len, table)) <= 80
    assert table[0].split()[3:] == ["a", "b", "c", "d", "e", "f", "g"]
    row = table[2].split()
    assert row[:2] == ["b", "bert"]
    assert "INVALID" in row
    assert float(row[row.index("INVALID") - 1]) == pytest.approx(1, abs=0.03)
    assert table[7].split()[:3] == ["g", "ssd-resnet34", "no"]


def test_where_there_is_room_the_columns_have_names(seven: MatrixResult):
    assert "ssd-mobilenet ssd-resnet34" in shown(seven, 120)
    assert "48;2;" in shown(seven, 120, colour=True)
    assert "INVALID: runs/bert-beside-rnnt: bert on cpu1 died" in shown(seven, 120)


def test_the_csv_has_every_cell_and_empty_fields_for_what_was_not_measured(
    tmp_path: Path, seven: MatrixResult
):
    report.write_csv(seven, tmp_path / "matrix.csv")
    with (tmp_path / "matrix.csv").open(newline="") as file:
        lines = {(line["main"], line["background"]): line for line in csv.DictReader(file)}

    assert len(lines) == 49
    assert float(lines["bert", "dlrm"]["derating"]) == seven.cell("bert", "dlrm").derating
    assert (lines["bert", "rnnt"]["outcome"], lines["bert", "rnnt"]["derating"]) == ("INVALID", "")


def test_the_pictures_have_every_number_as_text(tmp_path: Path, seven: MatrixResult):
    report.draw(seven, (tmp_path / "matrix.svg", tmp_path / "matrix.png"))
    texts = [
        node.text or ""
        for node in ElementTree.parse(tmp_path / "matrix.svg").iter()
        if node.tag.endswith("text")
    ]
    derating = seven.cell("bert", "dlrm").derating
    assert derating is not None
    assert f"{derating:.3f}" in " ".join(texts)
    assert texts.count("INVALID") == 1
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")
