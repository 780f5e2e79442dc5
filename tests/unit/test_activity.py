"""What telemetry makes of a run's conditions: one test a finding, each from the smallest facts that cause it."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.activity import Seen, findings, strangers
from scheduler.columns import GpuColumns, GpuState, HostColumns, Line, SliceColumns, Telemetry, WorkerColumns
from scheduler.result import Finding

WINDOW = (10.0, 20.0)
GPU = "GPU-1"
CORES = {"cpu0": (0,), "cpu1": (1,), "gpu0": ()}
STATE = GpuState(
    name="H200",
    sm_clock_max_mhz=1980,
    memory_clock_max_mhz=3201,
    sm_clock_asked_mhz=None,
    power_limit_w=700.0,
    ecc_enabled=True,
    ecc_corrected=3,
    ecc_uncorrected=0,
    processes=(),
)
BOARD = GpuColumns(
    power_w=412.0,
    energy_j=1.0,
    sm_clock_mhz=1755,
    memory_clock_mhz=3201,
    temperature_c=61,
    utilisation_percent=None,
    memory_used_mib=20,
    throttle_reasons=(),
    throttled_s={"sw_power_cap": 5.0, "hw_thermal_slowdown": 0.0},
    ecc_corrected=3,
    ecc_uncorrected=0,
)
HOST = HostColumns(
    cpu_active=0.5, load_1min=2.0, memory_available_mib=1, launcher_cpu_s=0.1, telemetry_cpu_s=0.1
)


def worker(slice_id: str, cpu_s: float) -> WorkerColumns:
    return WorkerColumns(
        pid=7,
        slice=slice_id,
        cpu_s=cpu_s,
        memory_mib=1.0,
        threads=1,
        switches_voluntary=0,
        switches_involuntary=0,
        samples_completed=0,
        filler_samples=0,
    )


def quiet() -> list[Line]:
    """A line a second: each worker has its core to itself, the GPU runs free."""
    return [
        Line(
            at_s=float(at),
            host=HOST,
            workers={"main": worker("cpu0", at * 0.9), "back": worker("cpu1", at * 1.0)},
            slices={
                "cpu0": SliceColumns(cpu_active=0.9, cores_busy_s=at * 0.93),
                "cpu1": SliceColumns(cpu_active=1.0, cores_busy_s=at * 1.0),
                "gpu0": SliceColumns(graphics_active=1.0, sm_active=0.0, processes=1, foreign_pids=()),
            },
            gpus={GPU: BOARD},
        )
        for at in range(25)
    ]


def seen(lines: list[Line], *, after: dict[str, Any] | None = None) -> Seen:
    told = Telemetry(
        rate_hz=10, sources={}, before={GPU: STATE}, after={GPU: STATE.model_copy(update=after or {})}
    )
    return Seen(telemetry=told, rate_hz=10, lines=lines, cores=CORES)


def changed(lines: list[Line], part: str, name: str, **columns: Any) -> list[Line]:
    """The same, with other columns of one thing in every line."""
    return [
        line.model_copy(
            update={part: {**getattr(line, part), name: getattr(line, part)[name].model_copy(update=columns)}}
        )
        for line in lines
    ]


def only(found: Any) -> Finding:
    [finding] = found
    assert finding.recommendation
    return finding


def test_a_quiet_run_has_none():
    assert list(findings(seen(quiet()), WINDOW)) == []
    assert list(findings(seen(quiet()), None)) == []


def test_throttling_is_told_by_the_drivers_counters_where_it_has_them():
    lines = [
        line.model_copy(
            update={
                "gpus": {GPU: BOARD.model_copy(update={"throttled_s": {"sw_power_cap": line.at_s * 0.25}})}
            }
        )
        for line in quiet()
    ]
    finding = only(findings(seen(lines), WINDOW))
    assert (finding.code, finding.severity, finding.figure) == ("throttled", "warning", 0.25)
    assert "sw_power_cap 25%" in finding.message


def test_else_by_the_samples_and_an_idle_gpu_is_not_throttled():
    words = ("gpu_idle", "applications_clocks_setting")
    assert (
        list(findings(seen(changed(quiet(), "gpus", GPU, throttled_s=None, throttle_reasons=words)), WINDOW))
        == []
    )
    hot = changed(quiet(), "gpus", GPU, throttled_s=None, throttle_reasons=("hw_thermal_slowdown",))
    free = changed(hot, "gpus", GPU, throttle_reasons=())
    finding = only(findings(seen(free[:15] + hot[15:]), WINDOW))
    assert finding.figure == pytest.approx(6 / 11, abs=1e-4)
    assert "hw_thermal_slowdown 55%" in finding.message


def test_settings_changed_while_the_run_lasted():
    finding = only(findings(seen(quiet(), after={"power_limit_w": 500.0, "sm_clock_max_mhz": 1500}), WINDOW))
    assert finding.code == "clocks-changed"
    assert "700.0 → 500.0 W" in finding.message
    assert "1980 → 1500 MHz" in finding.message


def test_uncorrected_memory_errors_are_a_breach_and_corrected_ones_are_not():
    finding = only(findings(seen(quiet(), after={"ecc_uncorrected": 2}), None))
    assert (finding.code, finding.severity, finding.figure) == ("ecc-error", "breach", 2)
    finding = only(findings(seen(quiet(), after={"ecc_corrected": 4}), None))
    assert (finding.code, finding.severity, finding.figure) == ("ecc-error", "warning", 1)


def test_a_memory_error_is_told_of_a_run_that_was_killed_too():
    killed = seen(changed(quiet(), "gpus", GPU, ecc_uncorrected=1))
    assert killed.telemetry is not None
    without_end = replace(killed, telemetry=killed.telemetry.model_copy(update={"after": {}}))
    assert only(findings(without_end, None)).severity == "breach"


def test_foreign_processes_during_and_after_the_run():
    finding = only(findings(seen(changed(quiet(), "slices", "gpu0", foreign_pids=(4711, 12))), None))
    assert (finding.code, finding.severity) == ("foreign-process", "warning")
    assert finding.message == "while the run lasted, other processes were on gpu0: pids 12, 4711"
    finding = only(findings(seen(quiet(), after={"processes": (99,)}), None))
    assert finding.message == f"after the run, other processes were on {GPU}: pids 99"


def test_host_load_is_what_the_workers_did_not_take():
    busy = [
        line.model_copy(
            update={"slices": {**line.slices, "cpu0": SliceColumns(cores_busy_s=line.at_s * 1.15)}}
        )
        for line in quiet()
    ]
    finding = only(findings(seen(busy), WINDOW))
    assert (finding.code, finding.figure) == ("host-load", 0.25)
    assert "cpu0" in finding.message


def test_what_workers_have_started_is_theirs():
    """An own model with loader processes is not a busy host; of a worker not read twice nothing is claimed."""
    forked = [
        line.model_copy(
            update={
                "slices": {**line.slices, "cpu0": SliceColumns(cores_busy_s=line.at_s * 1.15)},
                "workers": {
                    **line.workers,
                    "main": worker("cpu0", line.at_s * 0.9).model_copy(
                        update={"children_cpu_s": line.at_s * 0.2 if line.at_s % 2 else None}
                    ),
                },
            }
        )
        for line in quiet()
    ]
    assert list(findings(seen(forked), WINDOW)) == []
    short = (forked[0].at_s, forked[0].at_s + 1.5)  # they are told once a second: here once
    first, second, *_ = [line for line in forked if short[0] <= line.at_s <= short[1]]
    assert [bool(line.workers["main"].children_cpu_s) for line in (first, second)].count(True) == 1
    assert list(findings(seen([first, second]), short)) == []
    once = [
        line if line.at_s == 12 else line.model_copy(update={"workers": {"back": line.workers["back"]}})
        for line in quiet()
    ]
    assert list(findings(seen(once), WINDOW)) == []


def test_slices_that_share_their_cores_are_judged_together():
    shared = replace(seen(quiet()), cores={"cpu0": (0, 1), "cpu1": (0, 1)})
    lines = changed(changed(quiet(), "slices", "cpu0"), "slices", "cpu1")
    both = [
        line.model_copy(
            update={
                "slices": {name: SliceColumns(cores_busy_s=line.at_s * 1.95) for name in ("cpu0", "cpu1")}
            }
        )
        for line in lines
    ]
    assert list(findings(replace(shared, lines=both), WINDOW)) == []
    overlapping = replace(shared, cores={"cpu0": (0, 1), "cpu1": (1,)}, lines=both)
    assert list(findings(overlapping, WINDOW)) == []  # cannot be told apart, so nothing is claimed


def test_a_ratio_outside_0_to_1_is_flagged():
    finding = only(findings(seen(changed(quiet(), "slices", "gpu0", sm_active=6.874)), WINDOW))
    assert (finding.code, finding.figure) == ("activity-out-of-range", 6.874)
    assert "sm_active (such as 6.874)" in finding.message


def test_a_gap_and_no_telemetry_at_all():
    gap = [line for line in quiet() if not 12 < line.at_s < 16]
    finding = only(findings(seen(gap), WINDOW))
    assert (finding.code, finding.figure, finding.limit) == ("telemetry-gap", 4.0, 2.0)
    slow = replace(seen(gap), rate_hz=0.5)  # a sample in 2 s was asked for
    assert list(findings(slow, WINDOW)) == []
    finding = only(findings(Seen(telemetry=None, rate_hz=10, cores=CORES), WINDOW))
    assert (finding.code, finding.figure) == ("telemetry-gap", 10.0)


PIDS = st.sets(st.integers(1, 50), max_size=6)


@given(listed=PIDS, ours=PIDS)
def test_strangers_are_listed_and_are_not_ours(listed: set[int], ours: set[int]):
    found = strangers(listed, ours)
    assert set(found) <= listed - (ours if ours & listed else set())
    assert list(found) == sorted(found)
    if ours & listed:
        assert set(found) == listed - ours
    else:  # the pids of another namespace: as many as we have may be ours
        assert len(found) == max(0, len(listed) - len(ours))
