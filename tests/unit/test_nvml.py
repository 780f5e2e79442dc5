"""Discovery, samples and refusals of NVML, on fake machines."""

import subprocess
import sys
from pathlib import Path

import pynvml
import pytest

from scheduler import errors, nvml
from scheduler.errors import GpuError
from scheduler.host import Host
from tests.boards import A30, A100_40, A100_80, H100, H200, T4, Board
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance, uuid_of

BARE = Host(Path("/nonexistent"))
"""A host whose /proc, /sys and /dev say nothing."""

SEVEN = tuple(Instance("1g.10gb", start) for start in range(7))
MIXED = FakeGpu(
    board=A100_80,
    mig=True,
    instances=(Instance("3g.40gb", 0, (1, 2)), Instance("2g.20gb", 4), Instance("1g.10gb+me", 6)),
)


def gpus(library: FakeGpus, host: Host = BARE):
    with nvml.open(library, host) as opened:
        return opened.gpus()


def sample(library: FakeGpus, uuid: str):
    with nvml.open(library, BARE) as opened:
        return opened.sample(uuid)


def machine_with(tmp_path: Path, **files: str):
    """A host root with these files: key with __ for /."""
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    return Host(tmp_path)


# Discovery -------------------------------------------------------------------------------------------


def test_a_gpu_without_mig():
    (gpu,) = gpus(FakeGpus(FakeGpu(board=H200, cores=(0, 1, 2, 3, 70), numa_node=1)))
    assert (gpu.index, gpu.uuid, gpu.name) == (0, uuid_of("gpu0"), "NVIDIA H200")
    assert (gpu.memory_mib, gpu.sms) == (143771, 132)
    assert not gpu.mig_enabled
    assert gpu.mig_devices == ()
    assert gpu.numa_node == 1


@pytest.mark.parametrize(("board", "sms"), [(A30, 56), (A100_40, 108), (A100_80, 108), (H100, 132), (T4, 40)])
def test_sms_are_the_gpus_own_and_not_its_largest_profiles(board: Board, sms: int):
    assert gpus(FakeGpus(FakeGpu(board=board)))[0].sms == sms


def test_a_gpu_of_a_later_architecture_tells_no_sms():
    assert nvml.cuda_cores_per_sm(13, 0) is None
    assert nvml.cuda_cores_per_sm(12, 0) == 128


def test_mig_devices_of_several_profiles():
    (gpu,) = gpus(FakeGpus(MIXED))
    facts = [
        (
            one.id,
            one.name,
            one.sms,
            one.memory_mib,
            one.gi_profile_id,
            one.placement_start,
            one.placement_size,
        )
        for one in gpu.mig_devices
    ]
    assert facts == [
        ("gpu0:gi1:ci0", "1c.3g.40gb", 14, 40192, 9, 0, 4),
        ("gpu0:gi1:ci1", "2c.3g.40gb", 28, 40192, 9, 0, 4),
        ("gpu0:gi3:ci0", "2g.20gb", 28, 19968, 14, 4, 2),
        ("gpu0:gi7:ci0", "1g.10gb+me", 14, 9728, 20, 6, 1),
    ]
    assert [one.shared_with for one in gpu.mig_devices] == [("gpu0:gi1:ci1",), ("gpu0:gi1:ci0",), (), ()]
    assert {one.gpu_uuid for one in gpu.mig_devices} == {gpu.uuid}


def test_all_gpus_of_a_machine_with_and_without_mig():
    machine = gpus(
        FakeGpus(
            FakeGpu(board=H100, mig=True, instances=SEVEN),
            FakeGpu(board=H100),
            FakeGpu(board=A30, mig=True, instances=(Instance("2g.12gb", 2), Instance("1g.6gb", 0))),
        )
    )
    assert [len(gpu.mig_devices) for gpu in machine] == [7, 0, 2]
    assert [one.id for one in machine[2].mig_devices] == ["gpu2:gi3:ci0", "gpu2:gi7:ci0"]
    assert [one.gi_profile_id for one in machine[2].mig_devices] == [5, 14]


def test_mig_enabled_without_instance_is_no_error_of_nvml():
    (gpu,) = gpus(FakeGpus(FakeGpu(board=H200, mig=True)))
    assert gpu.mig_enabled
    assert gpu.mig_devices == ()


def test_holes_between_mig_indices_are_passed_over():
    instances = (Instance("2g.20gb", 0), Instance("2g.20gb", 2), Instance("1g.10gb", 6))
    library = FakeGpus(FakeGpu(board=A100_80, mig=True, instances=instances, holes=frozenset({0, 2, 3})))
    assert [one.placement_start for one in gpus(library)[0].mig_devices] == [0, 2, 6]


def test_both_uuid_formats():
    new = gpus(FakeGpus(MIXED))[0].mig_devices[1]
    old = gpus(FakeGpus(MIXED, driver="460.32.03"))[0].mig_devices[1]
    assert new.uuid.startswith("MIG-")
    assert not new.uuid.startswith("MIG-GPU-")
    assert old.uuid == f"MIG-{uuid_of('gpu0')}/1/1"
    assert old.environ()["CUDA_VISIBLE_DEVICES"] == old.uuid


@pytest.mark.parametrize("board", [A30, A100_40, A100_80, H100, H200], ids=lambda board: board.name)
def test_a_driver_that_does_not_name_profiles_leaves_us_to_work_them_out(board: Board):
    for profile in board.profiles:
        if profile.name.endswith("+me"):  # media extensions came with drivers that name profiles
            continue

        gpu = FakeGpu(board=board, mig=True, instances=(Instance(profile.name, profile.starts[0]),))
        (device,) = gpus(FakeGpus(gpu, driver="460.32.03"))[0].mig_devices
        assert device.name == profile.name


def test_a_part_of_a_gpu_instance_is_named_so_by_any_driver():
    names = [one.name for one in gpus(FakeGpus(MIXED, driver="460.32.03"))[0].mig_devices]
    assert names == ["1c.3g.40gb", "2c.3g.40gb", "2g.20gb", "1g.10gb"]


def test_a_plain_user_sees_mig_devices_without_their_placement():
    (gpu,) = gpus(FakeGpus(MIXED, privileged=False))
    assert gpu.memory_mib == A100_80.profile("7g.80gb").memory_mib  # the GPU's own is refused to him
    assert [one.placement_start for one in gpu.mig_devices] == [None] * 4
    assert [one.name for one in gpu.mig_devices] == ["1c.3g.40gb", "2c.3g.40gb", "2g.20gb", "1g.10gb+me"]
    assert gpu.mig_devices[0].shared_with == ("gpu0:gi1:ci1",)


def test_gpus_of_other_users_are_passed_over():
    machine = gpus(FakeGpus(FakeGpu(board=H100, foreign=True), FakeGpu(board=H100)))
    assert [gpu.index for gpu in machine] == [1]


def test_a_machine_whose_gpus_are_all_refused_says_so():
    with pytest.raises(errors.NoPermission):
        gpus(FakeGpus(FakeGpu(board=H100, foreign=True), FakeGpu(board=H100, foreign=True)))


def test_all_mig_devices_refused_is_not_the_same_as_none():
    library = FakeGpus(
        MIXED, refusing={"nvmlDeviceGetMigDeviceHandleByIndex": pynvml.NVML_ERROR_NO_PERMISSION}
    )
    with pytest.raises(errors.NoPermission):
        gpus(library)


def test_cores_near_the_gpu_beyond_the_64th(tmp_path: Path):
    host = machine_with(tmp_path, sys__devices__system__cpu__possible="0-127\n")
    (gpu,) = gpus(FakeGpus(FakeGpu(board=H200, cores=(3, 63, 64, 127))), host)
    assert gpu.cores == (3, 63, 64, 127)


@pytest.mark.parametrize(("sysfs", "node"), [("3\n", 3), ("-1\n", 2)])
def test_the_numa_node_is_that_of_the_pci_device_else_what_nvml_says(tmp_path: Path, sysfs: str, node: int):
    folder = tmp_path / "sys/bus/pci/devices/0000:1b:00.0"
    folder.mkdir(parents=True)
    (folder / "numa_node").write_text(sysfs)
    assert gpus(FakeGpus(FakeGpu(board=H200, numa_node=2)), Host(tmp_path))[0].numa_node == node


OPTIONAL = [
    "nvmlDeviceGetAttributes_v2",
    "nvmlDeviceGetCpuAffinity",
    "nvmlDeviceGetCudaComputeCapability",
    "nvmlDeviceGetGpuInstanceById",
    "nvmlDeviceGetMemoryAffinity",
    "nvmlDeviceGetNumGpuCores",
    "nvmlDeviceGetPciInfo",
    "nvmlGpuInstanceGetInfo",
]


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_FUNCTION_NOT_FOUND, pynvml.NVML_ERROR_NOT_SUPPORTED])
@pytest.mark.parametrize("name", OPTIONAL)
def test_discovery_does_without_what_a_driver_does_not_know(name: str, code: int):
    (gpu,) = gpus(FakeGpus(MIXED, refusing={name: code}))
    assert [one.memory_mib for one in gpu.mig_devices] == [40192, 40192, 19968, 9728]
    assert all("g." in one.name for one in gpu.mig_devices)


def test_a_driver_that_knows_no_mig_has_none():
    code = pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
    assert not gpus(FakeGpus(FakeGpu(board=H200), refusing={"nvmlDeviceGetMigMode": code}))[0].mig_enabled


def test_failure_of_any_call_is_told_and_nvml_is_shut_down():
    calls = FakeGpus(MIXED, FakeGpu(board=H200))
    gpus(calls)
    assert len(calls.calls) > 40
    for n in range(1, len(calls.calls)):  # the last call is the shutdown
        library = FakeGpus(MIXED, FakeGpu(board=H200), fail_call=(n, pynvml.NVML_ERROR_UNKNOWN))
        with pytest.raises(errors.NvmlFailure) as caught:
            gpus(library)

        assert isinstance(caught.value.__cause__, pynvml.NVMLError)
        assert library.calls[-1] == "nvmlShutdown"


def test_a_lost_gpu_is_named():
    library = FakeGpus(FakeGpu(board=H200), FakeGpu(board=H200))
    with nvml.open(library, BARE) as opened:
        library.lose(1)
        with pytest.raises(errors.GpuLost) as caught:
            opened.gpus()

        with pytest.raises(errors.GpuLost, match=uuid_of("gpu1")):
            opened.sample(uuid_of("gpu1"))

        assert opened.sample(uuid_of("gpu0")).power_w is not None

    assert "reset" in caught.value.do


# The machine as a whole --------------------------------------------------------------------------------


def test_read_machine_puts_host_and_gpus_together():
    machine = nvml.read_machine(Host(), FakeGpus(FakeGpu(board=A30)))
    assert [gpu.name for gpu in machine.gpus] == ["NVIDIA A30"]
    assert machine.gpu_error is None
    assert machine.cores == Host().cores()
    assert machine.memory_mib == Host().memory_mib()


@pytest.mark.parametrize("code", [pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, pynvml.NVML_ERROR_DRIVER_NOT_LOADED])
def test_no_driver_and_no_sign_of_a_gpu_is_simply_a_machine_without(tmp_path: Path, code: int):
    machine = nvml.read_machine(Host(tmp_path), FakeGpus(start_error=code))
    assert machine.gpus == ()
    assert machine.gpu_error is None


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (pynvml.NVML_ERROR_LIBRARY_NOT_FOUND, errors.NvmlMissing),
        (pynvml.NVML_ERROR_DRIVER_NOT_LOADED, errors.DriverNotLoaded),
    ],
)
@pytest.mark.parametrize("sign", ["dev__nvidiactl", "proc__driver__nvidia__version", "pci"])
def test_no_driver_but_a_sign_of_a_gpu_is_told(tmp_path: Path, code: int, kind: type[GpuError], sign: str):
    files = {sign: ""}
    if sign == "pci":
        folder = "sys__bus__pci__devices__0000:3b:00.0__"
        files = {f"{folder}vendor": "0x10de\n", f"{folder}class": "0x030200\n"}

    machine = nvml.read_machine(machine_with(tmp_path, **files), FakeGpus(start_error=code))
    assert machine.gpus == ()
    assert type(machine.gpu_error) is kind


def test_other_failures_are_told_without_any_sign(tmp_path: Path):
    library = FakeGpus(start_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    assert type(nvml.read_machine(Host(tmp_path), library).gpu_error) is errors.DriverMismatch


def test_a_mismatch_names_the_kernel_modules_version(tmp_path: Path):
    version = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build  (dvs)\n"
    host = machine_with(tmp_path, proc__driver__nvidia__version=version)
    machine = nvml.read_machine(host, FakeGpus(start_error=pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH))
    assert "580.65.06" in machine.gpu_error.found


def test_a_driver_that_lists_no_gpu_though_there_is_one_is_told(tmp_path: Path):
    assert nvml.read_machine(Host(tmp_path), FakeGpus()).gpu_error is None
    machine = nvml.read_machine(machine_with(tmp_path, dev__nvidia0=""), FakeGpus())
    assert type(machine.gpu_error) is errors.NotFound


def test_the_real_library_is_loaded_by_open_and_not_by_import():
    code = (
        "import sys, scheduler.nvml, pynvml; sys.exit(pynvml.nvmlLib is not None or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_leaving_shuts_down_and_hides_no_error_of_the_body():
    library = FakeGpus(FakeGpu(board=H200), refusing={"nvmlShutdown": pynvml.NVML_ERROR_UNKNOWN})
    with pytest.raises(ZeroDivisionError), nvml.open(library, BARE):
        raise ZeroDivisionError

    assert library.calls == ["nvmlShutdown"]


# Samples, processes, versions --------------------------------------------------------------------------


def test_sample_of_a_gpu():
    assert sample(FakeGpus(FakeGpu(board=H200)), uuid_of("gpu0")) == nvml.GpuSample(
        power_w=312.345,
        sm_clock_mhz=1410,
        memory_clock_mhz=1593,
        temperature_c=41,
        utilisation_percent=97,
        memory_used_mib=20,
        throttle_reasons=("sw_power_cap", "hw_thermal_slowdown"),
        energy_j=1000.312,
        unavailable={},
    )


def test_sample_under_mig_has_no_utilisation_and_says_why():
    taken = sample(FakeGpus(MIXED), uuid_of("gpu0"))
    assert taken.utilisation_percent is None
    assert taken.unavailable == {"utilisation_percent": "NVML answers NOT_SUPPORTED"}
    assert taken.power_w == 312.345


@pytest.mark.parametrize("driver", ["580.65.06", "460.32.03"])
def test_sample_of_a_mig_device_is_its_memory_alone(driver: str):
    library = FakeGpus(MIXED, driver=driver)
    taken = sample(library, gpus(library)[0].mig_devices[2].uuid)
    assert taken.memory_used_mib is not None
    assert taken.power_w is None
    assert len(taken.unavailable) == 7


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTotalEnergyConsumption", "energy_j"),
        ("nvmlDeviceGetUtilizationRates", "utilisation_percent"),
        ("nvmlDeviceGetMemoryInfo", "memory_used_mib"),
    ],
)
def test_a_figure_that_the_driver_does_not_give_is_none_with_its_reason(call: str, field: str):
    code = pynvml.NVML_ERROR_NOT_SUPPORTED
    taken = sample(FakeGpus(FakeGpu(board=H200), refusing={call: code}), uuid_of("gpu0"))
    assert getattr(taken, field) is None
    assert taken.unavailable == {field: "NVML answers NOT_SUPPORTED"}


def test_sample_on_an_old_driver_falls_back():
    taken = sample(FakeGpus(FakeGpu(board=A100_40), driver="460.32.03"), uuid_of("gpu0"))
    assert taken.unavailable == {}
    assert taken.temperature_c == 41
    assert taken.throttle_reasons == ("sw_power_cap",)
    assert taken.memory_used_mib == 620  # the old call counts what the driver reserves


def test_an_unknown_uuid_is_not_found():
    with pytest.raises(errors.NotFound):
        sample(FakeGpus(FakeGpu(board=H200)), "GPU-00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize("driver", ["580.65.06", "460.32.03"])
def test_processes_of_a_gpu_and_of_a_mig_device(driver: str):
    gpu = FakeGpu(
        board=H200,
        mig=True,
        instances=(Instance("1g.18gb", 0, processes=((41, 3 << 30),)), Instance("1g.18gb", 1)),
        processes=((7, None),),
    )
    library = FakeGpus(gpu, driver=driver)
    first, second = gpus(library)[0].mig_devices
    with nvml.open(library, BARE) as opened:
        assert opened.processes(uuid_of("gpu0")) == (nvml.GpuProcess(7, None), nvml.GpuProcess(41, 3072))
        assert opened.processes(first.uuid) == (nvml.GpuProcess(41, 3072),)
        assert opened.processes(second.uuid) == ()


def test_processes_refused_to_a_plain_user_under_mig():
    with nvml.open(FakeGpus(MIXED, privileged=False), BARE) as opened, pytest.raises(errors.NoPermission):
        opened.processes(uuid_of("gpu0"))


def test_driver_versions_with_and_without_libcuda():
    full = {"driver_version": "580.65.06", "nvml_version": "12.580.65.06", "cuda_driver_version": "13.0"}
    with nvml.open(FakeGpus(), BARE) as opened:
        assert opened.driver() == full

    code = pynvml.NVML_ERROR_LIBRARY_NOT_FOUND
    with nvml.open(FakeGpus(refusing={"nvmlSystemGetCudaDriverVersion_v2": code}), BARE) as opened:
        assert opened.driver() == {key: full[key] for key in ("driver_version", "nvml_version")}


def test_settings_of_a_gpu():
    with nvml.open(FakeGpus(FakeGpu(board=H200)), BARE) as opened:
        assert opened.settings(uuid_of("gpu0")) == nvml.GpuSettings(
            uuid=uuid_of("gpu0"),
            name="NVIDIA H200",
            mig_enabled=False,
            sm_clock_max_mhz=1980,
            memory_clock_max_mhz=1593,
            power_limit_w=400.0,
            ecc_enabled=True,
        )
