"""Activity of a GPU or a GPU instance through NVML's GPM: Hopper and newer, no daemon.

A figure is over the time between two samples, which must be more than 100 ms apart (nvml.h); so each device
keeps its last sample, and its first question has no answer yet.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pynvml

from scheduler.columns import ACTIVITY, PCIE
from scheduler.nvml import UNANSWERED, Nvml, translated, word_of

METRICS = {
    "graphics_active": pynvml.NVML_GPM_METRIC_GRAPHICS_UTIL,
    "sm_active": pynvml.NVML_GPM_METRIC_SM_UTIL,
    "sm_occupancy": pynvml.NVML_GPM_METRIC_SM_OCCUPANCY,
    "tensor_active": pynvml.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    "dram_active": pynvml.NVML_GPM_METRIC_DRAM_BW_UTIL,
    "pcie_tx_mib_s": pynvml.NVML_GPM_METRIC_PCIE_TX_PER_SEC,
    "pcie_rx_mib_s": pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC,
}
"""Column → metric id. Activity comes in percent, PCIe in MiB/s (nvml.h)."""

APART_S = 0.1


@dataclass(slots=True)
class GpmFigures:
    """Columns → figures; None where GPM does not tell, with the reason."""

    columns: dict[str, float | None]
    unavailable: dict[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class _Device:
    gpu_uuid: str
    gpu_instance_id: int | None
    samples: list[Any]
    """The last one and the one to take next."""
    taken_at: float | None = None


class Gpm:
    """Devices and their samples; made by ``opened``."""

    def __init__(self, nvml: Nvml, now: Callable[[], float]) -> None:
        self._nvml = nvml
        self._now = now
        self._devices: dict[tuple[str, int | None], _Device] = {}

    def why_not(self, gpu_uuid: str) -> str:
        """Why this GPU has no GPM; empty where it has.

        Raises:
            NotFound, GpuLost: there is no such GPU, or no longer.
        """
        library = self._nvml.library
        with translated(f"ask whether {gpu_uuid} has GPM", self._nvml.host):
            handle = library.nvmlDeviceGetHandleByUUID(gpu_uuid)
            try:
                has = library.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice
            except pynvml.NVMLError as error:
                if word_of(error) not in UNANSWERED:
                    raise

                return f"NVML answers {word_of(error)} to GPM"

        return (
            ""
            if has
            else "GPM needs Hopper or newer; a running dcgm-exporter (--dcgm URL) tells it of Ampere"
        )

    def activity(self, gpu_uuid: str, gpu_instance_id: int | None) -> GpmFigures | None:
        """What a GPU instance, or a whole GPU, did since it was asked last; None where that was less than
        100 ms ago, or never.

        Raises:
            GpuError: the GPU is lost, or NVML fails.
        """
        device = self._device(gpu_uuid, gpu_instance_id)
        now = self._now()
        if device.taken_at is not None and now - device.taken_at <= APART_S:
            return None

        before, after = device.samples
        library = self._nvml.library
        with translated(f"sample the activity of {gpu_uuid}", self._nvml.host):
            handle = library.nvmlDeviceGetHandleByUUID(gpu_uuid)
            try:
                if gpu_instance_id is None:
                    library.nvmlGpmSampleGet(handle, after)
                else:
                    library.nvmlGpmMigSampleGet(handle, gpu_instance_id, after)

                first, device.taken_at = device.taken_at is None, now
                device.samples = [after, before]
                return None if first else self._read(before, after)
            except pynvml.NVMLError as error:
                if word_of(error) not in UNANSWERED:
                    raise

                return _none(f"NVML answers {word_of(error)} to a GPM sample")

    def close(self) -> None:
        """Give the samples back."""
        for device in self._devices.values():
            for sample in device.samples:
                try:
                    self._nvml.library.nvmlGpmSampleFree(sample)
                except pynvml.NVMLError:  # the driver is going; it takes them along
                    pass

        self._devices.clear()

    def _device(self, gpu_uuid: str, gpu_instance_id: int | None) -> _Device:
        key = (gpu_uuid, gpu_instance_id)
        if key not in self._devices:
            with translated(f"make GPM samples for {gpu_uuid}", self._nvml.host):
                samples = [self._nvml.library.nvmlGpmSampleAlloc() for _ in range(2)]

            self._devices[key] = _Device(gpu_uuid, gpu_instance_id, samples)

        return self._devices[key]

    def _read(self, before: Any, after: Any) -> GpmFigures:
        asked = pynvml.c_nvmlGpmMetricsGet_t()
        asked.version = pynvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics = len(METRICS)
        asked.sample1, asked.sample2 = before, after
        for place, metric in enumerate(METRICS.values()):
            asked.metrics[place].metricId = metric

        self._nvml.library.nvmlGpmMetricsGet(asked)
        found = GpmFigures({})
        for place, column in enumerate(METRICS):
            one = asked.metrics[place]
            if one.nvmlReturn != pynvml.NVML_SUCCESS:
                found.columns[column] = None
                found.unavailable[column] = f"GPM answers {word_of(pynvml.NVMLError(one.nvmlReturn))}"
            elif one.value != one.value:  # NaN
                found.columns[column] = None
                found.unavailable[column] = "GPM answers NaN"
            else:
                found.columns[column] = round(one.value / 100 if column in ACTIVITY else one.value, 6)

        return found


def _none(why: str) -> GpmFigures:
    columns = (*ACTIVITY, *PCIE)
    return GpmFigures(dict.fromkeys(columns), dict.fromkeys(columns, why))


@contextmanager
def opened(nvml: Nvml, now: Callable[[], float]) -> Iterator[Gpm]:
    """GPM on an open NVML; ``now`` is in s, on any clock. Its samples are freed on leaving."""
    gpm = Gpm(nvml, now)
    try:
        yield gpm
    finally:
        gpm.close()
