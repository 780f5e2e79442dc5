"""Activity through GPM, and what a GPU has counted: on fake boards, behind pynvml's own marshalling."""

from collections.abc import Iterator

import pynvml
import pytest

from scheduler import nvml, nvml_counters, nvml_gpm
from scheduler.columns import ACTIVITY, PCIE
from scheduler.errors import GpuLost, NotFound
from scheduler.host import Host
from scheduler.nvml_gpm import Gpm
from tests.boards import A100_80, H100, H200
from tests.fake_library import loaded
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance, uuid_of

FIRST, SECOND = uuid_of("gpu0"), uuid_of("gpu1")


@pytest.fixture
def gpus() -> FakeGpus:
    return FakeGpus(
        FakeGpu(board=H200, mig=True, instances=(Instance("1g.18gb", 0), Instance("3g.71gb", 4))),
        FakeGpu(board=H100),
        FakeGpu(board=A100_80),
    )


@pytest.fixture
def gpm(gpus: FakeGpus) -> Iterator[Gpm]:
    with loaded(gpus) as library, nvml.open(library, Host()) as opened:
        with nvml_gpm.opened(opened, lambda: gpus.gpm_now_s) as gpm:
            yield gpm

        assert gpus.gpm_samples() == []


def instances(gpus: FakeGpus) -> list[int]:
    with nvml.open(gpus, Host()) as opened:
        return [device.gpu_instance_id for device in opened.gpus()[0].mig_devices]


def test_ratios_come_from_percent_and_what_gpm_does_not_tell_has_a_reason(gpus: FakeGpus, gpm: Gpm):
    assert gpm.why_not(SECOND) == ""
    assert gpm.activity(SECOND, None) is None  # one sample says nothing yet
    gpus.gpm_now_s, gpus.gpm_percent = 1.0, 98.2
    found = gpm.activity(SECOND, None)
    assert found is not None
    assert set(found.columns) == {*ACTIVITY, *PCIE}
    assert found.columns["sm_active"] == found.columns["dram_active"] == 0.982
    assert found.columns["pcie_tx_mib_s"] == 98.2  # MiB/s already
    lacking = {column for column, value in found.columns.items() if value is None}
    assert lacking == {"sm_occupancy", "pcie_rx_mib_s"} == set(found.unavailable)
    assert found.unavailable == {
        "sm_occupancy": "GPM answers NOT_SUPPORTED",
        "pcie_rx_mib_s": "GPM answers NaN",
    }


def test_samples_too_close_together_are_not_asked_for(gpus: FakeGpus, gpm: Gpm):
    for now_s, told in ((0.0, False), (0.1, False), (0.2, True), (0.25, False), (0.35, True)):
        gpus.gpm_now_s = now_s
        assert (gpm.activity(SECOND, None) is not None) is told, now_s


def test_each_gpu_instance_has_its_own_samples(gpus: FakeGpus, gpm: Gpm):
    small, large = instances(gpus)
    for now_s in (0.0, 0.5):
        gpus.gpm_now_s = now_s
        found = [gpm.activity(FIRST, small), gpm.activity(FIRST, large)]

    assert all(one is not None and one.columns["graphics_active"] == 0.5 for one in found)
    assert len(gpus.gpm_samples()) == 4


def test_ampere_has_no_gpm_and_is_told_where_to_look(gpm: Gpm):
    ampere = uuid_of("gpu2")
    assert "--dcgm" in gpm.why_not(ampere)
    found = gpm.activity(ampere, None)
    assert found is not None
    assert set(found.columns.values()) == {None}
    assert set(found.unavailable.values()) == {"NVML answers NOT_SUPPORTED to a GPM sample"}


def test_a_library_without_gpm_says_so():
    old = FakeGpus(
        FakeGpu(board=H100), refusing={"nvmlGpmQueryDeviceSupport": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    )
    with (
        loaded(old) as library,
        nvml.open(library, Host()) as opened,
        nvml_gpm.opened(opened, lambda: 0.0) as gpm,
    ):
        assert gpm.why_not(FIRST) == "NVML answers FUNCTION_NOT_FOUND to GPM"


def test_a_gpu_that_is_lost_or_was_never_there_is_an_error(gpus: FakeGpus, gpm: Gpm):
    with pytest.raises(NotFound):
        gpm.activity("GPU-00000000-0000-0000-0000-000000000000", None)

    gpus.lose(1)
    with pytest.raises(GpuLost):
        gpm.activity(SECOND, None)


def test_counters_and_what_moves(gpus: FakeGpus):
    gpus.power_capped_ns, gpus.ecc_uncorrected = 2_500_000_000, 1
    with loaded(gpus) as library, nvml.open(library, Host()) as opened:
        counted = nvml_counters.counters(opened, SECOND)
        assert counted.throttled_s == {
            "sw_power_cap": 2.5,
            "sw_thermal_slowdown": 0.0,
            "hw_thermal_slowdown": 0.0,
        }
        assert (counted.ecc_corrected, counted.ecc_uncorrected, counted.unavailable) == (3, 1, {})
        assert nvml_counters.pcie_mib_s(opened, SECOND) == (2.0, 5.0, "")
        assert nvml_counters.pcie_mib_s(opened, FIRST) == (None, None, "NVML answers NOT_SUPPORTED")
        assert nvml_counters.memory_used_mib(opened, SECOND) == (20, "")
        assert nvml_counters.asked_sm_clock_mhz(opened, SECOND) is None
        assert nvml_counters.asked_sm_clock_mhz(opened, uuid_of("gpu2")) == 1410


def test_what_a_driver_does_not_count_has_a_reason():
    refusing = {"nvmlDeviceGetFieldValues": pynvml.NVML_ERROR_NOT_SUPPORTED}
    with (
        loaded(FakeGpus(FakeGpu(board=H100), refusing=refusing)) as library,
        nvml.open(library, Host()) as opened,
    ):
        counted = nvml_counters.counters(opened, FIRST)

    assert counted.throttled_s is counted.ecc_corrected is counted.ecc_uncorrected is None
    assert counted.unavailable == dict.fromkeys(
        ("ecc_corrected", "ecc_uncorrected", "throttled_s"), "NVML answers NOT_SUPPORTED"
    )
