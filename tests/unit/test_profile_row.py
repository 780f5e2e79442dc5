"""A row of a profile's table: what became of the cell, and what the telemetry saw of it."""

from dataclasses import replace
from typing import Any

import pytest

from scheduler.assignment import assign
from scheduler.events import Failed, Finished
from scheduler.profile_row import Seen, row_of, status_of
from scheduler.selection import slices_on
from scheduler.slices import Machine
from scheduler.spec import loadgen_round, parse_run, presets
from scheduler.sweep import Cell, Outcome
from workloads.protocol import Load

LOAD = Load(concurrency=4, arrival_rate_per_s=None, seconds=1, longest_warm_up_s=1, seed=0)


def cell() -> Cell:
    (one,) = slices_on(Machine(cores=(0,), memory_mib=4096), "cpu", 1)
    main = assign(parse_run({"main": "resnet50"}), (one,), presets(), loadgen_round()).main
    return Cell(assignment=replace(main, name="resnet50-b16-c4-cpu0"), load=LOAD)


def finished(unanswered: int = 0) -> Outcome:
    return Outcome(finished=Finished("a", 9, 1, 9, {"unanswered": unanswered}), exit_code=0)


@pytest.mark.parametrize(
    ("outcome", "status", "says"),
    [
        (finished(), "measured", ""),
        (finished(unanswered=7), "overloaded", "7 requests were not answered"),
        (Outcome(failed=Failed("a", 1, "memory", "ran out"), exit_code=70), "out of memory", "ran out"),
        (Outcome(failed=Failed("a", 1, "spec", "no such key"), exit_code=70), "failed", "no such key"),
        (Outcome(stopped="it completed nothing for 61 s", exit_code=0), "failed", "completed nothing"),
        (Outcome(exit_code=-9), "failed", "often the kernel, out of memory"),
        (Outcome(exit_code=1), "failed", "its process ended with 1"),
    ],
)
def test_what_became_of_it(outcome: Outcome, status: str, says: str):
    assert status_of(outcome)[0] == status
    assert says in status_of(outcome)[1]


def test_a_row_without_figures_has_none_and_never_0():
    row = row_of(cell(), Outcome(failed=Failed("a", 1, "memory", "ran out"), exit_code=70), 1, {})
    assert (row.status, row.group, row.loop, row.concurrency) == ("out of memory", "cv_infer", "closed", 4)
    measured = {name: value for name, value in row if name.startswith(("latency", "samples", "power"))}
    assert set(measured.values()) == {None}


def lines(*samples: dict[str, Any]) -> list[dict[str, Any]]:
    """A line a tenth of a second, from 0."""
    return [{"at_s": number / 10, **sample} for number, sample in enumerate(samples)]


def gpu(sm: float | None, power: float | None, energy: float | None = None) -> dict[str, Any]:
    return {
        "slices": {"gpu0:gi7:ci0": {"sm_active": sm, "cpu_active": 0.5}},
        "gpus": {"GPU-1": {"power_w": power, "energy_j": energy}},
    }


def seen(found: list[dict[str, Any]], window: tuple[float, float], **unavailable: str) -> Seen:
    return Seen(found, unavailable, window, "gpu0:gi7:ci0", "GPU-1")


def test_means_are_of_the_window_alone():
    found = lines(gpu(0.9, 700), gpu(0.9, 700), gpu(0.2, 300), gpu(0.4, 500), gpu(0.9, 700))
    told = seen(found, (0.05, 0.35)).figures(100)
    assert told["sm_activity"] == pytest.approx(0.3)  # the first in it tells of the time before it too
    assert told["power_w"] == pytest.approx(400)
    assert told["energy_j_per_sample"] == pytest.approx(400 * 0.3 / 100)
    assert told["cores_activity"] == 0.5
    assert "dram_activity" not in told


def test_energy_is_the_counters_where_there_is_one():
    found = lines(gpu(0.5, 300, 1000), gpu(0.5, 300, 1060), gpu(0.5, 300, 1120))
    assert seen(found, (0.0, 0.2)).figures(10)["energy_j_per_sample"] == pytest.approx(600 * 0.2 / 10)


def test_an_activity_of_0_is_a_figure():
    assert seen(lines(*[gpu(0.0, 70.0)] * 3), (0, 1)).figures(1)["sm_activity"] == 0.0


def test_what_is_not_there_says_why():
    found = lines(*[gpu(None, None)] * 3)
    why = Seen(
        found, {"slices.gpu0:gi7:ci0.sm_active": "no GPM before Hopper"}, (0, 1), "gpu0:gi7:ci0", "GPU-1"
    ).why()
    assert why["sm_activity"] == "no GPM before Hopper"
    assert why["power_w"] == "the telemetry has no sample of it in the window"
    assert "cores_activity" not in why


def test_a_cpu_slice_has_no_activity_of_a_gpu():
    told = Seen(lines(*[{"slices": {"cpu0": {"cpu_active": 0.7}}}] * 3), {}, (0, 1), "cpu0", None)
    assert told.figures(10) == {"cores_activity": pytest.approx(0.7)}
    assert set(told.why()) == {
        *("graphics_activity", "sm_activity", "tensor_activity", "dram_activity"),
        *("power_w", "energy_j_per_sample"),
    }
    assert set(told.why().values()) == {"a CPU slice has none"}
