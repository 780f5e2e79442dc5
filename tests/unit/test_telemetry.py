"""The turns of sampling, on this machine and on fake GPUs, and the budget they have."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import nvml, telemetry, telemetry_gpus
from scheduler.assignment import assign
from scheduler.clock import Clock
from scheduler.columns import ACTIVITY, Line, Telemetry
from scheduler.errors import SpecError
from scheduler.host import Host
from scheduler.proc import BusyTimes, OpenMachine, OpenProcess
from scheduler.record import RunFolder
from scheduler.slices import CpuSlice, GpuSlice, MigSlice
from scheduler.spec import loadgen_round, parse_run, presets
from scheduler.turns import Learn, Watched, merge
from tests.boards import A100_80, H200
from tests.exporter import EXPOSITION, MIG_GPU, answers, serving
from tests.fake_library import loaded
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance

WORKER = 4321
CPU = CpuSlice(id="cpu0", cores=(min(os.sched_getaffinity(0)),), memory_mib=1024)


class ByHand(Clock):
    """The clock of a fake machine's GPM, which a test moves on."""

    machine: ClassVar[FakeGpus]

    @classmethod
    def of(cls, machine: FakeGpus) -> "ByHand":
        cls.machine = machine
        return cls(0, "")

    def now(self) -> float:
        return self.machine.gpm_now_s


def mig_machine(**processes: int) -> FakeGpus:
    running = tuple((pid, 1 << 30) for pid in processes.values())
    return FakeGpus(
        FakeGpu(
            board=H200,
            mig=True,
            instances=(Instance("1g.18gb", 0, processes=running), Instance("1g.18gb", 1)),
        )
    )


def slices_of(machine: FakeGpus) -> list[MigSlice]:
    with nvml.open(machine, Host()) as opened:
        return [replace(device, cores=CPU.cores) for device in opened.gpus()[0].mig_devices]


def sampled(machine: FakeGpus, slices: list[Any], now_s: list[float]) -> tuple[list[Line], dict[str, str]]:
    """What the turns of these slices say at these moments, and what is not available."""
    told: dict[str, str] = {}
    lines = []
    clock = ByHand.of(machine)
    with loaded(machine) as library, nvml.open(library, Host()) as opened, ExitStack() as until_the_end:
        gpus = telemetry_gpus.of(
            opened,
            slices,
            clock,
            lambda slice_id: [WORKER] if slice_id == slices[0].id else [],
            {},
            None,
            until_the_end,
        )
        for moment in now_s:
            line: dict[str, Any] = {"at_s": moment}
            machine.gpm_now_s = moment
            for turn in (*gpus.powers, *gpus.turns):
                merge(line, turn.take(moment, lambda column, why: told.setdefault(column, why)))

            lines.append(Line.model_validate(line))

    return lines, told


def test_each_mig_slice_has_its_memory_its_activity_and_its_processes():
    machine = mig_machine(worker=WORKER, stranger=99)
    first, second = slices_of(machine)
    (early, between, late), told = sampled(machine, [first, second], [1.0, 1.5, 6.5])
    assert early.slices[first.id].graphics_active is None  # one sample says nothing yet
    columns = late.slices[first.id]
    assert (columns.memory_used_mib, columns.graphics_active, columns.dram_active) == (20, 0.5, 0.5)
    assert (columns.processes, columns.foreign_pids) == (2, (99,))
    assert late.slices[second.id].processes == 0
    board = late.gpus[first.gpu_uuid]
    assert board.power_w == 312.345
    assert board.throttled_s is not None
    often, seldom = between.gpus[first.gpu_uuid], between.slices[first.id]
    assert (often.power_w, often.throttled_s, often.pcie_tx_mib_s) == (312.345, None, None)
    assert (seldom.memory_used_mib, seldom.foreign_pids) == (20, None)  # that is asked once a second
    assert board.utilisation_percent is None
    assert told[f"gpus.{first.gpu_uuid}.utilisation_percent"] == "NVML answers NOT_SUPPORTED"
    assert told[f"slices.{first.id}.sm_occupancy"] == "GPM answers NOT_SUPPORTED"


def test_a_slice_on_ampere_has_no_activity_and_says_why():
    machine = FakeGpus(FakeGpu(board=A100_80))
    with nvml.open(machine, Host()) as opened:
        [gpu] = opened.gpus()

    one = GpuSlice(id="gpu0", name=gpu.name, uuid=gpu.uuid, gpu_index=0, sms=108, memory_mib=1, cores=())
    [line], told = sampled(machine, [one], [1.0])
    columns = line.slices["gpu0"]
    assert columns.memory_used_mib == 20
    assert all(getattr(columns, column) is None for column in ACTIVITY)
    assert all("--dcgm" in told[f"slices.gpu0.{column}"] for column in ACTIVITY)
    assert line.gpus[gpu.uuid].pcie_tx_mib_s == 2.0


def test_a_gpu_that_is_lost_is_told_once_and_the_rest_goes_on():
    machine = mig_machine(worker=WORKER)
    first, second = slices_of(machine)
    machine.lose(0)
    with pytest.raises(nvml.GpuError):
        sampled(machine, [first, second], [1.0])  # it is told before the run: GPM is asked for

    machine = mig_machine(worker=WORKER)
    with loaded(machine) as library, nvml.open(library, Host()) as opened, ExitStack() as until_the_end:
        gpus = telemetry_gpus.of(opened, [first], Clock(0, ""), lambda _: [], {}, None, until_the_end)
        machine.lose(0)
        told: dict[str, str] = {}
        turns = [*gpus.powers, *gpus.turns]
        lines = [turn.take(1.0, lambda column, why: told.setdefault(column, why)) for turn in turns]
        assert gpus.states() == {}

    assert "GPU_IS_LOST" in told[f"gpus.{first.gpu_uuid}"]
    assert lines[:2] == [{}, {}]
    assert lines[2]["slices"][first.id]["memory_used_mib"] is None


def device_columns(run: RunFolder, slice_id: str) -> list[dict[str, Any]]:
    """Of each line so far."""
    return [line.get("slices", {}).get(slice_id, {}) for line in run.lines("telemetry.jsonl")]


def lines_since(found: list[dict[str, Any]], column: str) -> int:
    """How many lines tell of the device, from the first on that has the column."""
    having = [column in one for one in found if one]
    return len(having) - having.index(True) if True in having else 0


def test_a_run_on_a_gpu_is_recorded_with_its_state_before_and_after(tmp_path: Path):
    machine = FakeGpus(FakeGpu(board=A100_80, mig=True, instances=(Instance("1g.10gb", 0),)))
    [device] = slices_of(machine)
    machine.run(device.uuid, pid=99)
    text = EXPOSITION.replace(MIG_GPU, device.gpu_uuid).replace(
        'GPU_I_ID="7"', f'GPU_I_ID="{device.gpu_instance_id}"'
    )
    run = RunFolder.create(tmp_path / "run")
    with loaded(machine), serving(answers(text)) as url:
        watched = Watched(slices=[device])
        with telemetry.recording(run, Clock.start(), watched, dict, 50, dcgm_url=url):
            while lines_since(device_columns(run, device.id), "graphics_active") < 4:
                os.sched_yield()

            machine.ecc_uncorrected = 1

    told = Telemetry.model_validate(run.telemetry())
    before, after = told.before[device.gpu_uuid], told.after[device.gpu_uuid]
    assert (before.processes, before.ecc_uncorrected, after.ecc_uncorrected) == ((99,), 0, 1)
    assert before.sm_clock_asked_mhz == 1410
    assert told.sources["activity"] == f"dcgm-exporter at {url}"
    assert "does not export it" in told.unavailable[f"slices.{device.id}.sm_active"]
    lines = [Line.model_validate(one) for one in run.lines("telemetry.jsonl")]
    seen = [line.slices[device.id] for line in lines if device.id in line.slices]
    assert 0.982 in [one.graphics_active for one in seen]
    assert len([one for one in seen if one.graphics_active is not None]) == 1  # of one answer once
    assert (99,) in [one.foreign_pids for one in seen]
    assert any(device.gpu_uuid in line.gpus for line in lines)


def recorded(
    folder: Path, living: Mapping[str, tuple[int, str]], least: int, rate_hz: float
) -> tuple[list[Line], Telemetry]:
    run = RunFolder.create(folder)
    with telemetry.recording(run, Clock.start(), Watched(slices=[CPU]), lambda: living, rate_hz):
        while len(run.lines("telemetry.jsonl")) < least:
            os.sched_yield()

    return [Line.model_validate(one) for one in run.lines("telemetry.jsonl")], Telemetry.model_validate(
        run.telemetry()
    )


def test_host_cores_and_workers_are_sampled_until_the_end(tmp_path: Path):
    lines, told = recorded(tmp_path / "run", {"main": (os.getpid(), "cpu0")}, 3, 50)
    assert (told.rate_hz, told.lines, told.unavailable) == (50, len(lines), {})
    assert told.cpu_s > 0
    workers = [line.workers["main"] for line in lines if line.workers]
    assert workers[-1].pid == os.getpid()
    assert workers[-1].cpu_s >= workers[0].cpu_s > 0
    assert workers[0].memory_mib is not None
    assert workers[0].memory_mib > 10
    assert None in [one.memory_mib for one in workers[1:]]  # that is asked once a second
    slices = [line.slices["cpu0"] for line in lines if "cpu0" in line.slices]
    assert slices[0].cpu_active is None  # there is no time before it
    assert slices[-1].cores_busy_s is not None
    assert [line.at_s for line in lines] == sorted({line.at_s for line in lines})


def test_a_worker_that_is_gone_has_no_figures(tmp_path: Path):
    lines, told = recorded(tmp_path / "run", {"main": (2**22 + 1, "cpu0")}, 2, 50)
    assert all(not line.workers for line in lines)
    assert told.unavailable == {}


def test_sampling_keeps_to_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(telemetry, "BUDGET", 0.0)
    lines, told = recorded(tmp_path / "run", {}, 1, 100)
    assert len(lines) == 1  # the first round is given; then there is nothing left to spend
    assert told.lines == 1


def test_devices_that_cannot_be_paid_for_do_not_hold_up_the_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(telemetry, "DEVICES_SHARE", 0.0)
    monkeypatch.setattr(telemetry, "SAVED_S", 1e6)  # so that lines leave nothing to the devices
    for wait in ("UNPAID_EVERY_S", "POWER_EVERY_S"):
        monkeypatch.setattr(telemetry, wait, 1e6)

    machine = FakeGpus(FakeGpu(board=A100_80, mig=True, instances=(Instance("1g.10gb", 0),)))
    [device] = slices_of(machine)
    run = RunFolder.create(tmp_path / "run")
    with (
        loaded(machine),
        telemetry.recording(run, Clock.start(), Watched(slices=[device]), dict, 50),
    ):
        while len(run.lines("telemetry.jsonl")) < 4:
            os.sched_yield()

    lines = run.lines("telemetry.jsonl")
    assert all("host" in line for line in lines)
    boards = [columns for line in lines for columns in line.get("gpus", {}).values()]
    assert [sum(name in one for one in boards) for name in ("power_w", "sm_clock_mhz")] == [1, 1]


class OfTime(Clock):
    """A clock, and the CPU time of the thread, that only turns and a test move on."""

    times: ClassVar[dict[str, float]] = {}

    def now(self) -> float:
        return self.times["now_s"]

    def cpu_s(self) -> float:
        return self.times["cpu_s"]


class Dear:
    """A turn that takes so long, of a core and of the day."""

    def __init__(self, cpu_s: float, wall_s: float) -> None:
        self.takes_s = cpu_s, wall_s
        self.at_s: list[float] = []

    def take(self, now_s: float, _learn: Learn, /) -> dict[str, Any]:
        for name, takes_s in zip(("cpu_s", "now_s"), self.takes_s, strict=True):
            OfTime.times[name] += takes_s

        self.at_s.append(now_s)
        return {}


def longest_wait_s(turn: Dear) -> float:
    return max(later - earlier for earlier, later in pairwise(turn.at_s))


def a_minute(devices: telemetry.Devices, clock: OfTime, line_s: float, period_s: float) -> int:
    """The lines of a minute, each at the cost of so much of a core, beside the devices' turns."""
    OfTime.times.update(now_s=0.0, cpu_s=0.0)
    for_lines, lines, due_s = telemetry.Account(1 - devices.share), 0, 0.0
    while due_s < 60:
        OfTime.times["now_s"] = now_s = max(due_s, clock.now())
        devices.pay(for_lines, period_s)
        if for_lines.left_s > 0:
            lines += 1
            for_lines.spend(line_s)
            OfTime.times["cpu_s"] += line_s

        devices.ask({}, now_s, lambda _column, _why: None, period_s / 2, free=not due_s)
        due_s = max(due_s + period_s, now_s)

    return lines


@given(
    powers_s=st.lists(st.floats(0.0001, 0.006), min_size=1, max_size=8),
    others_s=st.lists(st.tuples(st.floats(0.0001, 0.01), st.floats(0, 0.04)), min_size=2, max_size=8),
    line_s=st.floats(0.0001, 0.001),
    period_s=st.sampled_from([0.01, 0.1, 1.0]),
)
@settings(max_examples=30)
def test_each_device_has_its_turn_and_the_lines_pay_for_what_that_costs(
    powers_s: list[float], others_s: list[tuple[float, float]], line_s: float, period_s: float
):
    powers = [Dear(cpu_s, cpu_s) for cpu_s in powers_s]
    others = [Dear(cpu_s, cpu_s + wait_s) for cpu_s, wait_s in others_s]
    clock = OfTime(0, "")
    devices = telemetry.Devices(telemetry_gpus.Gpus([*powers], [*others]), clock, clock.cpu_s)
    lines = a_minute(devices, clock, line_s, period_s)

    longest_s = telemetry.POWER_EVERY_S * len(powers)
    assert max(map(longest_wait_s, powers)) < longest_s + 1.2
    if len(powers) == 1 and period_s < 1:
        assert len([at for at in powers[0].at_s if 30 <= at <= 33]) >= 2

    unpaid_s = sum(powers_s) * (1 + 60 / longest_s)
    longest_s = telemetry.UNPAID_EVERY_S * len(others)
    assert max(map(longest_wait_s, others)) < longest_s + 1.2
    unpaid_s += sum(one.takes_s[0] for one in others) * (1 + 60 / longest_s)
    least_s = telemetry.LEAST_LINES * (1 - devices.share) * telemetry.BUDGET * 60
    assert (
        lines
        >= min(60 / (period_s + max(wait_s for _, wait_s in others_s) + 0.05), 0.9 * least_s / line_s) - 2
    )
    assert clock.cpu_s() <= max(telemetry.BUDGET * 61, unpaid_s + least_s) + sum(powers_s) + 0.1


@pytest.mark.parametrize(("boards", "instances"), [(1, 1), (1, 7), (8, 8)])
def test_sampling_is_quiet_beside_one_gpu_its_slices_or_eight(boards: int, instances: int):
    """With what an H200 takes (scripts/gpu-telemetry): 3.5 ms for a board's power, 0.15 ms for what it shares and 9 ms
    more every 5 s for its counters, 2.2 ms for an instance; and a line 0.25 ms."""
    powers = [Dear(0.0035, 0.0035) for _ in range(boards)]
    others = [Dear(0.0019, 0.0019) for _ in range(boards)] + [Dear(0.0022, 0.0022) for _ in range(instances)]
    clock = OfTime(0, "")
    devices = telemetry.Devices(telemetry_gpus.Gpus([*powers], [*others]), clock, clock.cpu_s)
    lines = a_minute(devices, clock, 0.00025, 0.1)
    opened_s = sum(one.takes_s[0] for one in (*powers, *others))  # the first turns are free
    assert lines == 600
    assert (clock.cpu_s() - opened_s) / 60 < 1.05 * telemetry.BUDGET
    assert max(map(longest_wait_s, powers)) <= telemetry.POWER_EVERY_S * boards + 0.2


@given(
    times=st.lists(st.tuples(st.floats(0, 10), st.floats(0, 0.01)), max_size=20),
    share=st.floats(0.1, 1),
)
def test_what_is_spent_was_earned_but_for_the_turn_that_was_begun(
    times: list[tuple[float, float]], share: float
):
    account = telemetry.Account(share)
    earned_s = unused_s = spent_s = 0.0
    for span_s, turn_s in times:
        earned_s += telemetry.BUDGET * share * span_s
        unused_s += account.earn(span_s)
        if account.left_s > 0:
            account.spend(turn_s)
            spent_s += turn_s

    assert spent_s <= earned_s + 0.01
    assert account.left_s == pytest.approx(earned_s - unused_s - spent_s)
    assert account.left_s <= telemetry.BUDGET * share * telemetry.SAVED_S


def test_off_leaves_nothing(tmp_path: Path):
    run = RunFolder.create(tmp_path / "run")
    with telemetry.recording(run, Clock.start(), Watched(), dict, 0.0):
        pass

    assert list(run.path.iterdir()) == []


def test_the_figures_of_a_process_are_the_kernels():
    process = OpenProcess(os.getpid())
    try:
        cpu_s, figures = process.cpu_s(), process.figures()
    finally:
        process.close()

    assert figures is not None
    spent = os.times()
    assert cpu_s == pytest.approx(spent.user + spent.system, abs=0.1)
    assert figures.threads >= 1
    assert (figures.switches_voluntary or 0) + (figures.switches_involuntary or 0) > 0
    with pytest.raises(FileNotFoundError):
        OpenProcess(2**22 + 1)


def test_the_kernel_tells_each_cores_time_at_work(tmp_path: Path):
    stat = "cpu  1 2 3 4 5 6 7 8 0 0\ncpu0 100 200 300 4000 5000 0 0 0 50 0\ncpu3 100 0 0 9 9 10 20 30 0 0\nintr 5\n"
    (tmp_path / "stat").write_text(stat)
    with closing(OpenMachine(tmp_path)) as machine:
        assert machine.busy({3, 7}) == BusyTimes(total=0.27, cores=2, by_core={3: 1.6})
        assert machine.memory_available_mib() is None

    with closing(OpenMachine()) as machine:
        busy = machine.busy(os.sched_getaffinity(0))
        assert busy is not None
        assert busy.by_core.keys() == os.sched_getaffinity(0)
        assert busy.total >= sum(busy.by_core.values()) - 1

    (tmp_path / "stat").unlink()
    with closing(OpenMachine(tmp_path)) as machine:
        assert machine.busy({0}) is None


def test_what_a_process_has_started_is_counted_while_it_lives_and_after():
    this = OpenProcess(os.getpid())
    before_s = this.children_cpu_s()
    if before_s is None:
        pytest.skip("this kernel tells no children")

    forks = "import os; os.fork(); [0 for _ in iter(int, 1)]"  # a child, and a child of that
    with subprocess.Popen([sys.executable, "-c", forks], start_new_session=True) as child:
        try:
            while (living_s := this.children_cpu_s() or 0.0) < before_s + 0.2:
                os.sched_yield()
        finally:
            os.killpg(child.pid, signal.SIGKILL)

    after_s = this.children_cpu_s()
    this.close()
    assert after_s is not None
    assert before_s + 0.05 <= after_s  # the grandchild, for which nobody waited, is no longer told
    assert living_s >= before_s + 0.2


def test_the_last_lines_of_a_file_being_written(tmp_path: Path):
    run = RunFolder.create(tmp_path / "run")
    assert run.last_lines("telemetry.jsonl", 100) == []
    for number in range(50):
        run.append_line("telemetry.jsonl", {"at_s": number})

    with (run.path / "telemetry.jsonl").open("a") as file:
        file.write('{"at_s": 50')

    told = [line["at_s"] for line in run.last_lines("telemetry.jsonl", 100)]
    assert told == list(range(told[0], 50))
    assert 3 < len(told) < 10
    assert len(run.last_lines("telemetry.jsonl", 1 << 20)) == 50


@pytest.mark.parametrize(
    ("asked", "rate_hz"),
    [("10hz", 10), ("0.5hz", 0.5), ("1s", 1), ("100ms", 10), ("10m", 1 / 600), ("OFF", 0)],
)
def test_a_rate_is_asked_in_hertz_or_as_a_period(asked: str, rate_hz: float):
    spec = parse_run({"main": "null", "telemetry": asked})
    assert spec.telemetry == pytest.approx(rate_hz)
    assert parse_run(spec.model_dump(mode="json")) == spec  # as the manifest keeps it


@pytest.mark.parametrize(
    ("option", "value", "found"),
    [
        ("telemetry", "10", "not a rate"),
        ("telemetry", "fast", "not a rate"),
        ("telemetry", "5000hz", "no rate between"),
        ("telemetry", "0s", "no rate between"),
        ("dcgm", "localhost:9400", "http://localhost:9400/metrics"),
    ],
)
def test_what_is_no_rate_and_no_url_is_refused(option: str, value: str, found: str):
    with pytest.raises(SpecError) as caught:
        parse_run({"main": "null", option: value})

    assert caught.value.asked == f"--{option} {value}"
    assert found in caught.value.found


GPU = GpuSlice(id="gpu0", name="H200", uuid="GPU-1", gpu_index=0, sms=132, memory_mib=143360, cores=())


@pytest.mark.parametrize(
    ("one", "rate", "found"),
    [(CPU, "10hz", "no slice of this run is on a GPU"), (GPU, "off", "--telemetry off: nothing is sampled")],
)
def test_an_exporter_that_nobody_would_ask_is_refused(one: CpuSlice | GpuSlice, rate: str, found: str):
    spec = parse_run({"main": "null", "dcgm": "http://localhost:9400/metrics", "telemetry": rate})
    with pytest.raises(SpecError) as caught:
        assign(spec, [one], presets(), loadgen_round())

    assert (caught.value.asked, caught.value.found) == ("--dcgm http://localhost:9400/metrics", found)
    assert (
        assign(spec.model_copy(update={"telemetry": 10.0}), [GPU], presets(), loadgen_round()).main.slice
        == GPU
    )
