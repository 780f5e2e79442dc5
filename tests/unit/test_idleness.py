"""A baseline is one only if main was alone: what is seen on the other slices, and what follows from it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from scheduler import telemetry
from scheduler.assignment import Plan, assign
from scheduler.host import Host
from scheduler.idleness import BUSY_LIMIT, Seen, findings, seen
from scheduler.nvml import read_machine
from scheduler.record import RunFolder
from scheduler.result import SliceRecord
from scheduler.run import cores_to_be_idle, gpus_to_be_idle
from scheduler.selection import slices_on
from scheduler.slices import Machine
from scheduler.spec import loadgen_round, parse_run, presets
from tests.boards import H100
from tests.fake_library import loaded
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance
from tests.process.runs import planned
from tests.unit.test_verdict import cpu


def codes(places: Sequence[Seen]) -> list[tuple[str, str]]:
    return [(one.code, one.severity) for one in findings(places)]


def test_a_quiet_machine_has_no_findings():
    assert codes([Seen(name="GPU-1"), Seen(name="cpu1", busy=BUSY_LIMIT), Seen(name="cpu2")]) == []


@pytest.mark.parametrize(
    "one",
    [
        Seen(name="GPU-1", before=(7,)),
        Seen(name="GPU-1", after=(7,)),
        Seen(name="GPU-1", before=None, after=(7,)),
    ],
)
def test_a_process_on_an_idle_gpu_before_or_after_is_a_breach(one: Seen):
    assert ("slice-not-idle", "breach") in codes([one])
    assert "pids 7" in next(iter(findings([one]))).message


def test_cores_at_work_are_a_breach():
    [one] = findings([Seen(name="cpu1", busy=0.97)])
    assert (one.code, one.severity, one.figure, one.limit) == ("slice-not-idle", "breach", 0.97, BUSY_LIMIT)
    assert "97%" in one.message


def test_a_driver_that_does_not_tell_is_a_warning():
    assert codes([Seen(name="GPU-1", before=None, after=None)]) == [("idle-not-verified", "warning")]


def sample(at: float, **busy_s: float) -> dict[str, Any]:
    return {"at_s": at, "idle_cores_busy_s": {core.removeprefix("core"): s for core, s in busy_s.items()}}


def four_cores(number: int, *cores: int) -> SliceRecord:
    return cpu(number, []).model_copy(update={"cores": list(cores)})


def test_only_mains_window_counts_and_only_cores_that_are_not_mains():
    samples = [
        sample(1, core1=0, core2=0),  # main still loads, and the launcher with it
        sample(2, core1=5, core2=5),
        sample(4, core1=5.2, core2=5.4),
        sample(9, core1=99, core2=99),
        {"at_s": 3.0},
    ]
    [one] = seen({}, samples, (1.5, 4.5), [four_cores(1, 0, 1, 2)])  # core 0 is main's as well
    assert one.busy == pytest.approx((0.2 + 0.4) / 2 / 2)


@pytest.mark.parametrize("window", [(0.0, 1.5), (5.0, 6.0), (0.9, 1.6)])
@pytest.mark.parametrize("telemetry_on", [True, False])
def test_too_short_a_window_tells_nothing_of_cores_and_that_is_told(
    window: tuple[float, float], telemetry_on: bool
):
    samples = [sample(1, core1=0), sample(1.5, core1=0.5), sample(2, core1=1)] if telemetry_on else []
    beside, on_mains = four_cores(1, 0, 1), four_cores(2, 0)
    places = seen({}, samples, window, [beside, on_mains], mains_cores=[0])
    assert places == [Seen(name="cpu1", untold=True)]
    [one] = findings(places)
    assert (one.code, one.severity, one.limit) == ("idle-not-verified", "warning", 2)
    assert "the cores of cpu1 were idle is not known" in one.message


def test_without_a_window_there_is_no_baseline_to_verify():
    assert seen({}, [], None, [four_cores(1, 1)], mains_cores=[0]) == []


def test_cores_that_are_all_mains_have_no_figure():
    [one] = seen({}, [sample(1), sample(3)], (0, 4), [four_cores(1, 0)])
    assert one.busy is None


def test_what_the_driver_told_is_read_back_by_gpu():
    told = {"before": {"GPU-1": [7], "GPU-2": None}, "after": {"GPU-1": [], "GPU-2": []}}
    assert seen(told, [], None, []) == [
        Seen(name="GPU-1", before=(7,), after=()),
        Seen(name="GPU-2", before=None, after=()),
    ]


def test_while_a_run_goes_on_who_was_there_before_it_counts_already():
    assert seen({"before": {"GPU-1": [7]}}, [], None, []) == [Seen(name="GPU-1", before=(7,))]


def test_where_nothing_is_to_compute():
    _spec, beside = planned(main="null", background="fixed")
    assert (gpus_to_be_idle(beside), cores_to_be_idle(beside)) == ([], [])
    alone = _alone(Machine(cores=(0, 1), memory_mib=4096), "cpu:2")
    assert (gpus_to_be_idle(alone), cores_to_be_idle(alone)) == ([], [1])


def _alone(machine: Machine, slices: str) -> Plan:
    spec = parse_run({"main": "null"})
    return assign(spec, slices_on(machine, slices, 1), presets(), loadgen_round())


def test_without_gpus_nobody_is_asked_and_nothing_written(tmp_path: Path):
    with telemetry.processes_noted(RunFolder(tmp_path), []):
        pass

    assert list(tmp_path.iterdir()) == []


def test_gpus_are_asked_before_and_after(tmp_path: Path):
    used = FakeGpu(
        board=H100, mig=True, instances=(Instance("1g.10gb", 0), Instance("1g.10gb", 1, processes=((7, 1),)))
    )
    fakes = FakeGpus(used, FakeGpu(board=H100), FakeGpu(board=H100))
    with loaded(fakes):
        machine = read_machine(Host())
        under_mig, whole = _alone(machine, "mig"), _alone(machine, "gpu1,gpu2")
        assert gpus_to_be_idle(under_mig) == [machine.gpus[0].uuid]
        assert gpus_to_be_idle(whole) == [machine.gpus[2].uuid]
        folder, uuids = RunFolder(tmp_path), [machine.gpus[0].uuid, "GPU-fallen-off-the-bus"]
        with telemetry.processes_noted(folder, uuids):
            assert folder.idle() == {"before": {uuids[0]: [7], uuids[1]: None}}

    assert folder.idle() == {when: {uuids[0]: [7], uuids[1]: None} for when in ("before", "after")}
    places = seen(folder.idle(), [], None, [])
    assert codes(places) == [("slice-not-idle", "breach"), ("idle-not-verified", "warning")]
