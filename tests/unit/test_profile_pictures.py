"""A profile's pictures and files, from its rows."""

import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console

from scheduler.events import Finished
from scheduler.profile import latencies
from scheduler.profile_row import Row, latency_ms, row_of
from scheduler.report import profile as pictures
from scheduler.report import profile_files
from scheduler.report.profile_text import show_table
from scheduler.slices import MigSlice
from scheduler.sweep import Cell, Outcome
from tests.unit.test_profile_row import cell

RAW = "latencies.npy"


def on_mig(number: int, batch_size: int, together: int = 1) -> Row:
    """A measured cell on a MIG device."""
    slice_ = MigSlice(
        id=f"gpu0:gi{number}:ci0",
        name="1g.18gb",
        uuid=f"MIG-{number}",
        gpu_uuid="GPU-1",
        gpu_index=0,
        gpu_name="H200",
        gpu_instance_id=number,
        compute_instance_id=0,
        gi_profile_id=19,
        placement_start=number,
        placement_size=1,
        sms=16,
        memory_mib=16384,
        cores=(0,),
    )
    base = cell().assignment
    options = replace(base.options, batch_size=batch_size)
    one = replace(base, slice=slice_, options=options, name=f"b{batch_size}-gi{number}")
    outcome = Outcome(finished=Finished("a", 9, 1, 9, {"unanswered": 0}), exit_code=0)
    figures = {
        "samples": 1,
        "samples_per_s": 100.0 * batch_size,
        "latency_mean_ms": 10.0 * number,
        "latency_p99_ms": 20.0 * number,
        "device_memory_used_mib": 500.0 + batch_size,
        "graphics_activity": 0.5,
    }
    return row_of(Cell(assignment=one, load=cell().load), outcome, together, dict(figures))


def keep(folder: Path, row: Row, taken_ms: list[float]) -> None:
    """Its raw latencies, where a profile has them."""
    place = folder / "runs" / row.cell / row.cell
    place.mkdir(parents=True)
    done = (np.array(taken_ms) * 1e6).astype(np.int64) + 1
    np.save(place / RAW, np.stack((np.ones_like(done), np.ones_like(done), done), axis=1))


def test_all_pictures_are_drawn_and_what_is_unavailable_says_so(tmp_path: Path):
    rows = [row_of(cell(), Outcome(finished=Finished("a", 9, 1, 9, {"unanswered": 0}), exit_code=0), 1, {})]
    rows = [
        rows[0].model_copy(
            update={
                "samples": 3,
                "samples_per_s": 5.0,
                "latency_mean_ms": 2.0,
                "latency_p99_ms": 3.0,
                "unavailable": {"graphics_activity": "a CPU slice <has> none"},
            }
        )
    ]
    keep(tmp_path, rows[0], [1, 2, 3])
    drawn = pictures.draw(tmp_path, rows)
    assert {path.name for path in drawn} == {
        f"{name}.{kind}" for name in (*pictures.PICTURES, "latency_cdf") for kind in ("svg", "png")
    }
    activity = (tmp_path / "pictures" / "activity.svg").read_text()
    assert "not available on this machine" in activity
    assert "&lt;has&gt;" in activity
    assert "not available" not in (tmp_path / "pictures" / "throughput.svg").read_text()


def test_slices_at_once_are_one_line_and_alone_each_its_own():
    alone = [on_mig(1, 8), on_mig(2, 8)]
    assert list(pictures.lines(alone)) == ["1g.18gb (gpu0:gi1:ci0)", "1g.18gb (gpu0:gi2:ci0)"]
    together = [on_mig(number, size, together=2) for number in (1, 2) for size in (8, 16)]
    (label,) = pictures.lines(together)
    assert label == "2 × 1g.18gb, of 2 at once"
    by_batch = pictures.lines(together)[label]
    figure = next(figure for name, figure in pictures.figures(Path(), together) if name == "throughput")
    (line,) = figure.axes[0].lines
    assert line.get_xydata().tolist() == [[8, 1600], [16, 3200]]
    assert sorted(by_batch) == [8, 16]


def test_an_attempt_cut_short_is_not_taken_for_the_cell(tmp_path: Path):
    several = on_mig(1, 1, together=7)
    for step, taken_ms in (("a-together.cut-1", 1.0), ("a-together", 2.0), ("a-together.cut-2", 3.0)):
        place = tmp_path / "runs" / step / several.cell
        place.mkdir(parents=True)
        np.save(place / RAW, np.array([[1, 1, 1 + round(taken_ms * 1e6)]]))

    assert latencies(tmp_path, several).tolist() == [[1, 1, 2_000_001]]


def test_one_slow_sample_is_the_end_of_its_distribution():
    taken = np.full(1000, 1.0)
    taken[500] = 80.0
    latency, part = pictures.cdf(taken)
    assert (latency[-1], part[-1]) == (80.0, 0.9995)
    assert latency[-2] == 1.0
    assert (np.diff(part) > 0).all()
    requests = np.stack((np.zeros(1000), np.zeros(1000), taken * 1e6), axis=1).astype(np.int64)
    assert (latency_ms(requests)["latency_p99_9_ms"] or 0) > 1


def test_the_files_hold_every_row_and_column(tmp_path: Path):
    rows = [on_mig(1, 8), on_mig(1, 16)]
    written = profile_files.write(tmp_path, rows)
    assert {"profile.csv", "profile.json"} <= {path.name for path in written}
    table = pd.read_csv(tmp_path / "profile.csv")
    assert list(table.columns) == list(Row.model_fields)
    assert table["samples_per_s"].tolist() == [800.0, 1600.0]
    assert table["power_w"].isna().all()
    assert [Row.model_validate(row) for row in json.loads((tmp_path / "profile.json").read_text())] == rows


def test_the_table_fits_80_columns_whatever_it_holds():
    figures = {
        "sm_activity": 0.53,
        "energy_j_per_sample": 0.01234,
        "samples_per_s": 3_160_494.0,
        "latency_p50_ms": 12_345.678,
        "latency_p99_ms": 1234.5678,
        "latency_p99_9_ms": 0.0123456,
        "requests": 2000,
        "device_memory_used_mib": 141_312.5,
    }
    rows = [
        on_mig(number, 256).model_copy(update={**figures, "sequence_length": 64 * number})
        for number in (1, 2)
    ]
    out_of_memory = dict.fromkeys(figures) | {"status": "out of memory", "why": "too little"}
    few = {"requests": 50, "steady": False, "warm_up_s": 30.0}
    rows += [rows[0].model_copy(update=out_of_memory), rows[0].model_copy(update=few)]
    said = io.StringIO()
    show_table(rows, Console(file=said, width=80))
    lines = said.getvalue().splitlines()
    table = [line for line in lines if line.startswith(("slice", "gpu0"))]
    assert all(len(line) <= 80 for line in table)
    assert "3,160,494 12,346 1,235 0.01235 141,312" in table[1].replace("  ", " ")
    assert "out of memory" in table[3]
    assert table[4].count("–") == 2  # p99 and p99.9 of 50 requests
    assert "not steady after 30.0 s" in said.getvalue()


def test_latencies_over_several_powers_of_ten_have_labels_that_stay_apart(tmp_path: Path):
    row = on_mig(1, 1)
    keep(tmp_path, row, list(np.geomspace(0.0007, 0.6, 500)))
    others = [row.model_copy(update={"workload": f"other-{number}"}) for number in range(2)]
    figure = next(one for name, one in pictures.figures(tmp_path, [row, *others]) if name == "latency_cdf")
    figure.draw_without_rendering()
    axis = figure.axes[0].xaxis
    low, high = axis.get_view_interval()
    places = [
        label.get_window_extent()
        for at, label in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
        if low <= at <= high
    ]
    assert len(places) >= 2
    assert all(one.x1 + 4 < other.x0 for one, other in pairwise(places))
