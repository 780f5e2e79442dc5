"""What holds of NVML on any machine: on fake ones and, read only, on the real one (``-m gpu``)."""

import re
from dataclasses import fields
from itertools import combinations

import pynvml
import pytest

from scheduler import errors, nvml
from scheduler.host import Host
from scheduler.slices import Gpu, MigSlice
from tests.boards import A30, A100_40, A100_80, H100, H200, T4
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance

SEVEN = FakeGpu(board=H100, mig=True, instances=tuple(Instance("1g.10gb", start) for start in range(7)))
SPARSE = FakeGpu(
    board=A100_80,
    mig=True,
    instances=(Instance("4g.40gb", 0, (2, 1, 1)), Instance("3g.40gb", 4)),
    holes=frozenset({1, 4}),
)

MACHINES = {
    "no GPU": lambda: FakeGpus(),
    "T4, no MIG": lambda: FakeGpus(FakeGpu(board=T4)),
    "H200": lambda: FakeGpus(FakeGpu(board=H200)),
    "two H100, seven slices and none": lambda: FakeGpus(SEVEN, FakeGpu(board=H100, mig=True)),
    "A100-80, compute instances": lambda: FakeGpus(SPARSE),
    "A100-80, a plain user": lambda: FakeGpus(SPARSE, privileged=False),
    "A100-80, old driver": lambda: FakeGpus(SPARSE, driver="460.32.03"),
    "A100-40 and A30": lambda: FakeGpus(
        FakeGpu(board=A100_40, mig=True, instances=(Instance("1g.5gb+me", 2), Instance("1g.10gb", 4))),
        FakeGpu(board=A30, mig=True, instances=(Instance("2g.12gb", 0), Instance("1g.6gb", 3))),
    ),
    "another's H200 beside ours": lambda: FakeGpus(FakeGpu(board=H200, foreign=True), FakeGpu(board=H200)),
}


@pytest.fixture(params=[*MACHINES, pytest.param("real", marks=pytest.mark.gpu)])
def opened(request: pytest.FixtureRequest):
    library = pynvml if request.param == "real" else MACHINES[request.param]()
    with nvml.open(library, Host()) as gpus:
        yield gpus


@pytest.fixture
def gpus(opened: nvml.Nvml):
    return opened.gpus()


@pytest.fixture
def devices(gpus: tuple[Gpu, ...]):
    return [device for gpu in gpus for device in gpu.mig_devices]


def test_gpus_are_whole_and_told_apart(gpus: tuple[Gpu, ...]):
    assert [gpu.index for gpu in gpus] == sorted({gpu.index for gpu in gpus})
    assert len({gpu.uuid for gpu in gpus}) == len(gpus)
    for gpu in gpus:
        assert re.fullmatch(r"GPU-[0-9a-f-]{36}", gpu.uuid)
        assert gpu.name
        assert gpu.memory_mib > 1000
        assert gpu.sms is None or 1 <= gpu.sms < 1000
        assert list(gpu.cores) == sorted(set(gpu.cores))
        assert gpu.numa_node is None or gpu.numa_node >= 0
        assert gpu.mig_enabled or not gpu.mig_devices


def test_mig_devices_belong_to_their_gpu(gpus: tuple[Gpu, ...]):
    for gpu in gpus:
        for device in gpu.mig_devices:
            assert (device.gpu_uuid, device.gpu_index, device.gpu_name) == (gpu.uuid, gpu.index, gpu.name)
            assert device.id == f"gpu{gpu.index}:gi{device.gpu_instance_id}:ci{device.compute_instance_id}"
            assert re.fullmatch(r"(\d+c\.)?\d+g\.\d+gb([+-][a-z.]+)*", device.name)
            assert 0 < device.memory_mib <= gpu.memory_mib
            assert device.sms is None or 0 < device.sms <= (gpu.sms or 1000)
            assert (device.cores, device.numa_node) == (gpu.cores, gpu.numa_node)


def test_mig_devices_are_told_apart(devices: list[MigSlice]):
    assert len({device.uuid for device in devices}) == len(devices)
    assert len({device.id for device in devices}) == len(devices)
    for device in devices:
        assert re.fullmatch(r"MIG-[0-9a-f-]{36}|MIG-GPU-[0-9a-f-]{36}/\d+/\d+", device.uuid)
        assert device.environ()["CUDA_VISIBLE_DEVICES"] == device.uuid


def test_sharing_is_mutual_and_within_one_gpu_instance(devices: list[MigSlice]):
    by_id = {device.id: device for device in devices}
    for device in devices:
        assert device.id not in device.shared_with
        for other in (by_id[name] for name in device.shared_with):
            assert device.id in other.shared_with
            assert (device.gpu_uuid, device.gpu_instance_id) == (other.gpu_uuid, other.gpu_instance_id)
            assert "c." in device.name


def test_gpu_instances_occupy_memory_slices_of_their_own(gpus: tuple[Gpu, ...]):
    for gpu in gpus:
        placed = [device for device in gpu.mig_devices if device.placement_start is not None]
        occupied = {
            device.gpu_instance_id: range(
                device.placement_start, device.placement_start + device.placement_size
            )
            for device in placed
        }
        for one, other in combinations(occupied.values(), 2):
            assert not set(one) & set(other)

        memory = {device.gpu_instance_id: device.memory_mib for device in gpu.mig_devices}
        assert sum(memory.values()) <= gpu.memory_mib


def test_reading_twice_reads_the_same(opened: nvml.Nvml, gpus: tuple[Gpu, ...]):
    assert opened.gpus() == gpus


def test_samples_are_sane(opened: nvml.Nvml, gpus: tuple[Gpu, ...]):
    for gpu in gpus:
        sample = opened.sample(gpu.uuid)
        assert sample.power_w is None or 0 < sample.power_w < 2000
        assert sample.sm_clock_mhz is None or 0 <= sample.sm_clock_mhz < 5000
        assert sample.memory_clock_mhz is None or 0 < sample.memory_clock_mhz < 20000
        assert sample.temperature_c is None or 0 < sample.temperature_c < 120
        assert sample.utilisation_percent is None or 0 <= sample.utilisation_percent <= 100
        assert sample.memory_used_mib is None or 0 <= sample.memory_used_mib <= gpu.memory_mib
        assert sample.throttle_reasons is None or all(
            isinstance(word, str) for word in sample.throttle_reasons
        )
        if gpu.mig_enabled:
            assert sample.utilisation_percent is None


def test_what_a_sample_lacks_has_a_reason_and_nothing_else_has(
    opened: nvml.Nvml, gpus: tuple[Gpu, ...], devices: list[MigSlice]
):
    for one in (*gpus, *devices):
        sample = opened.sample(one.uuid)
        lacking = {field.name for field in fields(sample) if getattr(sample, field.name) is None}
        assert set(sample.unavailable) == lacking
        assert all(sample.unavailable.values())


def test_energy_never_runs_back(opened: nvml.Nvml, gpus: tuple[Gpu, ...]):
    for gpu in gpus:
        first, second = opened.sample(gpu.uuid).energy_j, opened.sample(gpu.uuid).energy_j
        assert first is None or second >= first


def test_processes_have_a_pid(opened: nvml.Nvml, gpus: tuple[Gpu, ...], devices: list[MigSlice]):
    for one in (*gpus, *devices):
        try:
            processes = opened.processes(one.uuid)
        except errors.NoPermission:  # a plain user's answer for a whole GPU under MIG
            assert one in gpus
            assert one.mig_enabled
            continue

        for process in processes:
            assert process.pid > 0
            assert process.used_memory_mib is None or 0 <= process.used_memory_mib <= one.memory_mib


def test_settings_are_sane(opened: nvml.Nvml, gpus: tuple[Gpu, ...]):
    for gpu in gpus:
        settings = opened.settings(gpu.uuid)
        assert (settings.uuid, settings.name, settings.mig_enabled) == (gpu.uuid, gpu.name, gpu.mig_enabled)
        assert settings.sm_clock_max_mhz is None or settings.sm_clock_max_mhz > 0
        assert settings.power_limit_w is None or settings.power_limit_w > 0


def test_versions(opened: nvml.Nvml):
    versions = opened.driver()
    assert re.fullmatch(r"\d+\.\d+(\.\d+)?", versions["driver_version"])
    assert re.fullmatch(r"\d+(\.\d+)+", versions["nvml_version"])
    assert re.fullmatch(r"\d+\.\d+", versions.get("cuda_driver_version", "0.0"))


@pytest.mark.parametrize("question", ["sample", "processes", "settings"])
def test_a_device_that_is_not_there_is_not_found(opened: nvml.Nvml, question: str):
    with pytest.raises(errors.NotFound) as caught:
        getattr(opened, question)("GPU-00000000-0000-0000-0000-000000000000")

    assert "GPU-00000000" in caught.value.asked


def test_the_real_machine_reads_as_gpus_or_as_none_or_as_a_reason():
    host = Host()
    machine = nvml.read_machine(host)
    assert machine.gpus or machine.gpu_error or not host.signs_of_nvidia()
    assert not (machine.gpus and machine.gpu_error)
