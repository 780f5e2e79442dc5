"""GPM and the counters of a fake pynvml, with pynvml's own signatures, structs and handle types."""

import ctypes
from dataclasses import dataclass
from typing import Any

import pynvml

from tests.fake_driver import nvml_function
from tests.fake_mig import FakeMig
from tests.gpu_state import GpuState

GPM_FROM = (9, 0)
"""The compute capability of Hopper."""

COUNTED = {
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_POWER_CAP: "sw_power_cap",
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN: "sw_thermal_slowdown",
    pynvml.NVML_FI_DEV_CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN: "hw_thermal_slowdown",
}
"""Field → the reason that it counts, in ns."""


@dataclass
class GpmSample:
    """What nvmlGpmSampleAlloc gives."""

    gpu: GpuState | None = None
    gpu_instance_id: int | None = None
    at_s: float = 0.0
    freed: bool = False


class FakeGpm(FakeMig):
    """GPM: Hopper and newer; two samples of one device, more than 100 ms apart by ``gpm_now_s``."""

    gpm_now_s = 0.0
    """A test moves it on."""
    gpm_percent = 50.0
    """What every activity is, between any two samples; a test sets it."""
    ecc_uncorrected = 0
    power_capped_ns = 0

    def gpm_samples(self) -> list[GpmSample]:
        """Those allocated and not freed."""
        return [one for one in self._by_address.values() if isinstance(one, GpmSample) and not one.freed]

    @nvml_function
    def nvmlGpmQueryDeviceSupport(self, device: Any) -> Any:
        gpu = self._behind(device, GpuState)
        support = pynvml.c_nvmlGpmSupport_t()
        support.version = pynvml.NVML_GPM_SUPPORT_VERSION
        support.isSupportedDevice = int(gpu.board.compute_capability >= GPM_FROM)
        return support

    @nvml_function
    def nvmlGpmSampleAlloc(self) -> Any:
        return self._handle(pynvml.c_nvmlGpmSample_t, GpmSample())

    @nvml_function
    def nvmlGpmSampleFree(self, gpmSample: Any) -> None:
        self._sample(gpmSample).freed = True

    @nvml_function
    def nvmlGpmSampleGet(self, device: Any, gpmSample: Any) -> Any:
        self._take(self._behind(device, GpuState), None, gpmSample)
        return gpmSample

    @nvml_function
    def nvmlGpmMigSampleGet(self, device: Any, gpuInstanceId: int, gpmSample: Any) -> Any:
        gpu = self._behind(device, GpuState)
        if gpuInstanceId not in [one.id for one in gpu.instances]:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        self._take(gpu, gpuInstanceId, gpmSample)
        return gpmSample

    @nvml_function
    def nvmlGpmMetricsGet(self, metricsGet: Any) -> Any:
        if metricsGet.version != pynvml.NVML_GPM_METRICS_GET_VERSION:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)

        before, after = self._sample(metricsGet.sample1), self._sample(metricsGet.sample2)
        same = (before.gpu, before.gpu_instance_id) == (after.gpu, after.gpu_instance_id)
        if before.gpu is None or not same or after.at_s - before.at_s <= 0.1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        for place in range(metricsGet.numMetrics):
            metric = metricsGet.metrics[place]
            metric.nvmlReturn = pynvml.NVML_SUCCESS
            metric.value = self.gpm_percent
            if metric.metricId == pynvml.NVML_GPM_METRIC_SM_OCCUPANCY:
                metric.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED
            elif metric.metricId == pynvml.NVML_GPM_METRIC_PCIE_RX_PER_SEC:
                metric.value = float("nan")

        return metricsGet

    @nvml_function
    def nvmlDeviceGetPcieThroughput(self, device: Any, counter: int) -> int:
        if self._behind(device, GpuState).mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        return {pynvml.NVML_PCIE_UTIL_TX_BYTES: 2048, pynvml.NVML_PCIE_UTIL_RX_BYTES: 5120}[counter]

    @nvml_function
    def nvmlDeviceGetApplicationsClock(self, handle: Any, type: int) -> int:
        if self._behind(handle, GpuState).board.compute_capability >= GPM_FROM:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        return {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 1593}[type]

    @nvml_function
    def nvmlDeviceGetFieldValues(self, handle: Any, fieldIds: Any) -> Any:
        values = FakeMig.nvmlDeviceGetFieldValues.__wrapped__(self, handle, fieldIds)  # type: ignore[attr-defined]  # wraps
        for value in values:
            if value.fieldId in COUNTED:
                capped = COUNTED[value.fieldId] == "sw_power_cap"
                value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
                value.value.ullVal = self.power_capped_ns if capped else 0
                value.nvmlReturn = pynvml.NVML_SUCCESS
            elif value.fieldId in (
                pynvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL,
                pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL,
            ):
                uncorrected = value.fieldId == pynvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL
                value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG
                value.value.ullVal = self.ecc_uncorrected if uncorrected else 3
                value.nvmlReturn = pynvml.NVML_SUCCESS

        return values

    def _take(self, gpu: GpuState, gpu_instance_id: int | None, handle: Any) -> None:
        if gpu.board.compute_capability < GPM_FROM:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        sample = self._sample(handle)
        sample.gpu, sample.gpu_instance_id, sample.at_s = gpu, gpu_instance_id, self.gpm_now_s

    def _sample(self, handle: Any) -> GpmSample:
        thing = self._by_address.get(ctypes.cast(handle, ctypes.c_void_p).value or 0)
        if not isinstance(thing, GpmSample) or thing.freed:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        return thing
