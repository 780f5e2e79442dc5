"""What holds of GPM and of the counters on any machine: on fake ones and, read only, on the real one (``-m gpu``)."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic

import pynvml
import pytest

from scheduler import nvml, nvml_counters, nvml_gpm
from scheduler.columns import ACTIVITY, PCIE
from scheduler.host import Host
from scheduler.nvml_gpm import Gpm
from tests.boards import A100_80, H100, H200
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance

SEVEN = tuple(Instance("1g.18gb", start) for start in range(7))
MACHINES = {
    "H200": lambda: FakeGpus(FakeGpu(board=H200)),
    "H200, seven slices": lambda: FakeGpus(FakeGpu(board=H200, mig=True, instances=SEVEN)),
    "A100 and H100": lambda: FakeGpus(FakeGpu(board=A100_80), FakeGpu(board=H100)),
}


@dataclass
class Opened:
    """A machine, its GPM, and what moves its time on while its GPUs work."""

    nvml: nvml.Nvml
    gpm: Gpm
    work: Callable[[], None]

    def devices(self) -> list[tuple[str, int | None]]:
        """Every whole GPU without MIG, and every GPU instance."""
        found: dict[tuple[str, int | None], None] = {}
        for gpu in self.nvml.gpus():
            if not gpu.mig_enabled:
                found[gpu.uuid, None] = None

            found |= {(gpu.uuid, device.gpu_instance_id): None for device in gpu.mig_devices}

        return [one for one in found if not self.gpm.why_not(one[0])]


@pytest.fixture(params=[*MACHINES, pytest.param("real", marks=pytest.mark.gpu)])
def opened(request: pytest.FixtureRequest) -> Iterator[Opened]:
    real = request.param == "real"
    library = pynvml if real else MACHINES[request.param]()

    def work() -> None:
        if real:
            multiply_for(0.5)
        else:
            library.gpm_now_s += 0.5

    now = monotonic if real else lambda: library.gpm_now_s
    with nvml.open(library, Host()) as gpus, nvml_gpm.opened(gpus, now) as gpm:
        yield Opened(gpus, gpm, work)


def multiply_for(seconds: float) -> None:
    """Keep the first device that CUDA sees at work."""
    import torch

    matrix = torch.ones(4096, 4096, dtype=torch.float16, device="cuda")
    end = monotonic() + seconds
    while monotonic() < end:
        torch.mm(matrix, matrix)
        torch.cuda.synchronize()


def test_activity_is_a_ratio_or_has_a_reason(opened: Opened):
    devices = opened.devices()
    for device in devices:
        assert opened.gpm.activity(*device) is None

    opened.work()
    figures = [opened.gpm.activity(*device) for device in devices]
    for found in figures:
        assert found is not None
        assert set(found.columns) == {*ACTIVITY, *PCIE}
        assert set(found.unavailable) == {name for name, value in found.columns.items() if value is None}
        for column in ACTIVITY:
            value = found.columns[column]
            assert value is None or 0 <= value <= 1

        assert all((found.columns[column] or 0) >= 0 for column in PCIE)

    at_work = [found.columns["graphics_active"] for found in figures if found is not None]
    assert not devices or max(one or 0 for one in at_work) > 0.2


def test_samples_are_not_taken_too_soon(opened: Opened):
    for device in opened.devices():
        assert opened.gpm.activity(*device) is None
        assert opened.gpm.activity(*device) is None


def test_counters_never_run_back_and_what_is_not_counted_has_a_reason(opened: Opened):
    for gpu in opened.nvml.gpus():
        first, second = (nvml_counters.counters(opened.nvml, gpu.uuid) for _ in range(2))
        for reason, seconds in (first.throttled_s or {}).items():
            assert 0 <= seconds <= (second.throttled_s or {})[reason]

        lacking = {
            name
            for name in ("throttled_s", "ecc_corrected", "ecc_uncorrected")
            if getattr(first, name) is None
        }
        assert set(first.unavailable) == lacking
        sent, received, why = nvml_counters.pcie_mib_s(opened.nvml, gpu.uuid)
        assert (sent is None) is (received is None) is bool(why)
        used_mib, why = nvml_counters.memory_used_mib(opened.nvml, gpu.uuid)
        assert (used_mib is None) is bool(why)
        assert used_mib is None or 0 <= used_mib <= gpu.memory_mib


def test_ampere_has_none_and_hopper_has(opened: Opened):
    for gpu in opened.nvml.gpus():
        if "A100" in gpu.name or "A30" in gpu.name:
            assert "dcgm" in opened.gpm.why_not(gpu.uuid)
        elif "H100" in gpu.name or "H200" in gpu.name:
            assert opened.gpm.why_not(gpu.uuid) == ""
