"""The turns of sampling, on this machine and on fake GPUs, and the budget they have."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from scheduler import nvml, telemetry, telemetry_gpus
from scheduler.clock import Clock
from scheduler.columns import ACTIVITY, Line, Telemetry
from scheduler.errors import SpecError
from scheduler.host import Host
from scheduler.proc import OpenProcess
from scheduler.record import RunFolder
from scheduler.slices import CpuSlice, GpuSlice, MigSlice
from scheduler.spec import parse_run
from scheduler.turns import Watched, merge
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
            for turn in gpus.turns:
                merge(line, turn.take(moment, lambda column, why: told.setdefault(column, why)))

            lines.append(Line.model_validate(line))

    return lines, told


def test_each_mig_slice_has_its_memory_its_activity_and_its_processes():
    machine = mig_machine(worker=WORKER, stranger=99)
    first, second = slices_of(machine)
    (early, late), told = sampled(machine, [first, second], [1.0, 2.0])
    assert early.slices[first.id].graphics_active is None  # one sample says nothing yet
    columns = late.slices[first.id]
    assert (columns.memory_used_mib, columns.graphics_active, columns.dram_active) == (20, 0.5, 0.5)
    assert (columns.processes, columns.foreign_pids) == (2, (99,))
    assert late.slices[second.id].processes == 0
    board = late.gpus[first.gpu_uuid]
    assert board.power_w == 312.345
    assert board.throttled_s is not None
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
        lines = [turn.take(1.0, lambda column, why: told.setdefault(column, why)) for turn in gpus.turns]
        assert gpus.states() == {}

    assert "GPU_IS_LOST" in told[f"gpus.{first.gpu_uuid}"]
    assert lines[0] == {}
    assert lines[1]["slices"][first.id]["memory_used_mib"] is None


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
    assert workers[-1].memory_mib > 10
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


def test_off_leaves_nothing(tmp_path: Path):
    run = RunFolder.create(tmp_path / "run")
    with telemetry.recording(run, Clock.start(), Watched(), dict, 0.0):
        pass

    assert list(run.path.iterdir()) == []


def test_the_figures_of_a_process_are_the_kernels():
    process = OpenProcess(os.getpid())
    try:
        figures = process.read()
    finally:
        process.close()

    assert figures is not None
    spent = os.times()
    assert figures.cpu_s == pytest.approx(spent.user + spent.system, abs=0.1)
    assert figures.threads >= 1
    assert figures.switches_voluntary + figures.switches_involuntary > 0
    with pytest.raises(FileNotFoundError):
        OpenProcess(2**22 + 1)


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
