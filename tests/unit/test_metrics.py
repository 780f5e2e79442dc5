"""What Prometheus is told of a run, and where."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from scheduler import assignment, metrics
from scheduler.clock import Clock
from scheduler.errors import SpecError
from scheduler.events import DeadlinePassed
from scheduler.lifecycle import Run
from scheduler.metrics import Address, RunMetrics, address_of, published
from scheduler.record import RunFolder
from scheduler.selection import slices_on
from scheduler.slices import Gpu, Machine, MigSlice
from scheduler.spec import loadgen_round, parse_run, presets
from workloads.progress import Progress

GPU = "GPU-00000000-1111-2222-3333-444444444444"


def mig_device(instance: int) -> MigSlice:
    return MigSlice(
        id=f"gpu0:gi{instance}:ci0",
        name="1g.18gb",
        uuid=f"MIG-{instance}",
        gpu_uuid=GPU,
        gpu_index=0,
        gpu_name="H200",
        gpu_instance_id=instance,
        compute_instance_id=0,
        gi_profile_id=19,
        placement_start=instance,
        placement_size=1,
        sms=16,
        memory_mib=16384,
        cores=(0,),
    )


@pytest.fixture
def plan() -> assignment.Plan:
    devices = (mig_device(7), mig_device(8), mig_device(9))
    gpu = Gpu(
        index=0,
        uuid=GPU,
        name="H200",
        memory_mib=143771,
        sms=132,
        mig_enabled=True,
        mig_devices=devices,
        cores=(0,),
        numa_node=None,
    )
    spec = parse_run({"main": "resnet50", "background": "bert", "slices": "mig", "preset": "quick"})
    machine = Machine(cores=(0, 1), memory_mib=1 << 16, gpus=(gpu,))
    slices = slices_on(machine, spec.slices, assignment.benchmark_count(spec))
    return assignment.assign(spec, slices, presets(), loadgen_round())


def told(metrics: RunMetrics) -> dict[str, dict[tuple[tuple[str, str], ...], float]]:
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in metrics.collect():
        for one in family.samples:
            found.setdefault(one.name, {})[tuple(sorted(one.labels.items()))] = one.value

    return found


def labelled(series: dict[tuple[tuple[str, str], ...], float], **labels: str) -> float:
    [value] = [value for key, value in series.items() if labels.items() <= dict(key).items()]
    return value


def test_a_mig_run_is_told_with_its_devices(plan: assignment.Plan, tmp_path: Path):
    folder = RunFolder.create(tmp_path / "run")
    shown: list[Any] = []
    run = RunMetrics()
    assert set(told(run)) == {"hetero_mig_info"}
    seen = run.following(plan, folder, Clock.start(), lambda what, _state: shown.append(what))
    state = Run(background=["b"], mains=["m"], windows=plan.windows)
    seen(DeadlinePassed(1.0), state)
    assert len(shown) == 1

    main = plan.main.slice
    with Progress(folder.benchmark(plan.main.name)) as progress:
        progress.completed(1, 2, 64, filler=False)
        activity = {"graphics_active": 0.982, "sm_occupancy": None, "memory_used_mib": 2}
        folder.append_line("telemetry.jsonl", {"at_s": 1.0, "slices": {main.id: {"graphics_active": 0.1}}})
        folder.append_line("telemetry.jsonl", {"at_s": 1.1, "slices": {main.id: activity}})
        folder.append_line("telemetry.jsonl", {"at_s": 1.2, "slices": {main.id: {"cpu_active": 0.5}}})
        folder.append_line("telemetry.jsonl", {"at_s": 1.3, "gpus": {GPU: {"power_w": 412.0}}})
        found = told(run)

    assert labelled(found["hetero_mig_phase"], phase=state.phase) == 1
    assert sum(found["hetero_mig_phase"].values()) == 1
    who = {"gpu": GPU, "gpu_instance": "7", "profile": "1g.18gb", "workload": "resnet50", "role": "main"}
    assert labelled(found["hetero_mig_samples_completed_total"], slice=main.id, **who) == 64
    assert labelled(found["hetero_mig_slice_graphics_active_ratio"], slice=main.id, **who) == 0.982
    assert labelled(found["hetero_mig_slice_memory_used_bytes"], slice=main.id) == 2 << 20
    assert labelled(found["hetero_mig_slice_cpu_active_ratio"], slice=main.id) == 0.5
    assert labelled(found["hetero_mig_gpu_power_watts"], gpu=GPU) == 412.0
    assert "hetero_mig_slice_sm_occupancy_ratio" not in found  # not available is not 0


def test_a_rate_is_over_a_second_or_more():
    run = RunMetrics()
    assert run._rate("main", 0.0, 0) is None
    assert run._rate("main", 0.5, 50) is None
    assert run._rate("main", 2.0, 300) == pytest.approx(250 / 1.5)
    assert run._rate("main", 2.1, 310) == pytest.approx(260 / 1.6)  # another scraper came in between


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("9401", Address("127.0.0.1", 9401)),
        ("0.0.0.0:9401", Address("0.0.0.0", 9401)),
        ("[::1]:9401", Address("::1", 9401)),
    ],
)
def test_addresses(text: str, address: Address):
    assert address_of(text) == address


@pytest.mark.parametrize("text", ["http", "", "70000", "localhost:", "-1", "0"])
def test_what_is_no_port_is_refused(text: str):
    with pytest.raises(SpecError, match="not a port"):
        address_of(text)


def test_a_host_that_cannot_be_is_refused():
    with pytest.raises(SpecError, match="another address"), published("a..b:9401", None):
        pass


def test_a_port_is_free_again_afterwards_and_a_taken_one_is_refused():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SpecError, match="in use"), published(port, None):
            pass

    for _ in range(2):
        with published(port, None):
            pass


def test_a_file_is_there_while_the_run_lasts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(metrics, "WRITE_EVERY_S", 0.01)
    path = tmp_path / "run.prom"
    with published(None, path):
        first = path.stat().st_ino
        while path.stat().st_ino == first:  # it is renewed by rename
            os.sched_yield()

        assert 'hetero_mig_info{version="' in path.read_text()

    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_ours_or_cannot_be_is_refused(tmp_path: Path):
    precious, left = tmp_path / "precious.prom", tmp_path / "left.prom"
    precious.write_text("node_cpu_seconds_total 1\n")
    for path, found in (
        (precious, "not of this program"),
        (tmp_path / "no" / "run.prom", "No such file"),
        (tmp_path / "run.txt", "does not end in .prom"),
    ):
        with pytest.raises(SpecError, match=found), published(None, path):
            pass

    assert precious.read_text() == "node_cpu_seconds_total 1\n"
    left.write_text("# HELP hetero_mig_info The program\n")  # by a run that was killed
    with published(None, left):
        pass
