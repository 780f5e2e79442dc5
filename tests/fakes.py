"""A fake pynvml that refuses as the real one does: whole machines as data, no board needed.

It has the functions that ``scheduler/nvml.py`` and its neighbours ``nvml_*.py`` call, with pynvml's own signatures,
structs, handle types and exceptions. A GPU instance occupies memory slices; what does not fit is
INSUFFICIENT_RESOURCES. What a test may do to the machine is in fake_driver.py.
"""

import ctypes
from typing import Any

import pynvml

from tests.fake_driver import nvml_function
from tests.fake_gpm import FakeGpm
from tests.gpu_state import GpuState, MigDevice

SUBSYSTEM = 0x146310DE
"""Device and vendor that each fake board gives as its own."""


class FakeGpus(FakeGpm):
    """Stands where the module ``pynvml`` does. Arguments and what a test may do: FakeDriver."""

    def nvmlInit(self) -> None:
        if self.start_error is not None:
            raise pynvml.NVMLError(self.start_error)

        self._initialised += 1

    @nvml_function
    def nvmlShutdown(self) -> None:
        self._initialised -= 1

    @nvml_function
    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    @nvml_function
    def nvmlSystemGetNVMLVersion(self) -> str:
        return f"12.{self.driver}"

    @nvml_function
    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    @nvml_function
    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    @nvml_function
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if not 0 <= index < len(self._gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        gpu = self._gpus[index]
        if gpu.asked.foreign:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

        if gpu.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

        return self._handle(pynvml.c_nvmlDevice_t, gpu)

    @nvml_function
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        device = self._of_uuid(uuid)
        if isinstance(device, GpuState) and device.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

        return self._handle(pynvml.c_nvmlDevice_t, device)

    @nvml_function
    def nvmlDeviceGetIndex(self, handle: Any) -> int:
        return int(self._behind(handle, GpuState).index)

    @nvml_function
    def nvmlDeviceGetMinorNumber(self, handle: Any) -> int:
        return int(self._behind(handle, GpuState).index)

    @nvml_function
    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        device = self._behind(handle, GpuState, MigDevice)
        return str(device.uuid) if isinstance(device, GpuState) else self._mig_uuid(device)

    @nvml_function
    def nvmlDeviceGetName(self, handle: Any) -> str:
        device = self._behind(handle, GpuState, MigDevice)
        if isinstance(device, GpuState):
            return device.board.name

        if self.old:
            return device.gpu.board.name

        profile, slices = device.gpu_instance.profile, device.compute_instance.slices
        part = f"{slices}c." if slices < profile.compute_slices else ""
        return f"{device.gpu.board.name} MIG {part}{profile.name}"

    @nvml_function
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        device = self._behind(handle, GpuState, MigDevice)
        if version is not None:
            self._refuse("nvmlDeviceGetMemoryInfo_v2")

        if isinstance(device, GpuState) and device.mig and not self.privileged:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

        info = pynvml.c_nvmlMemory_t() if version is None else pynvml.c_nvmlMemory_v2_t()
        mib = (
            device.board.memory_mib
            if isinstance(device, GpuState)
            else device.gpu_instance.profile.memory_mib
        )
        reserved = 600 << 20
        info.total, info.used = mib << 20, (20 << 20) + (reserved if version is None else 0)
        info.free = info.total - info.used - (0 if version is None else reserved)
        return info

    @nvml_function
    def nvmlDeviceGetNumGpuCores(self, device: Any) -> int:
        return int(self._behind(device, GpuState).board.cuda_cores)

    @nvml_function
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        major, minor = self._behind(handle, GpuState).board.compute_capability
        return major, minor

    @nvml_function
    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any:
        gpu = self._behind(handle, GpuState)
        info = pynvml.nvmlPciInfo_t()
        info.domain, info.bus, info.device = 0, 0x1B + 0x10 * gpu.index, 0
        info.pciDeviceId, info.pciSubSystemId = gpu.board.pci_device_id, SUBSYSTEM
        info.busId = f"{info.domain:08X}:{info.bus:02X}:{info.device:02X}.0".encode()
        return info

    @nvml_function
    def nvmlDeviceGetCpuAffinity(self, handle: Any, cpuSetSize: int) -> Any:
        return _mask(self._behind(handle, GpuState).asked.cores, cpuSetSize)

    @nvml_function
    def nvmlDeviceGetMemoryAffinity(self, handle: Any, nodeSetSize: int, scope: int) -> Any:
        if scope not in (pynvml.NVML_AFFINITY_SCOPE_NODE, pynvml.NVML_AFFINITY_SCOPE_SOCKET):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        return _mask((self._behind(handle, GpuState).asked.numa_node,), nodeSetSize)

    @nvml_function
    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any) -> list[Any]:
        return self._processes(handle)

    @nvml_function
    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: Any) -> list[Any]:
        return self._processes(handle)

    @nvml_function
    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        self._behind(handle, GpuState)
        return 312_345

    @nvml_function
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        self._behind(handle, GpuState)
        return 400_000

    @nvml_function
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        gpu = self._behind(handle, GpuState)
        gpu.energy_mj += 312
        return int(gpu.energy_mj)

    @nvml_function
    def nvmlDeviceGetClockInfo(self, handle: Any, type: int) -> int:
        self._behind(handle, GpuState)
        return {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 1593}[type]

    @nvml_function
    def nvmlDeviceGetMaxClockInfo(self, handle: Any, type: int) -> int:
        self._behind(handle, GpuState)
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 1593}[type]

    @nvml_function
    def nvmlDeviceGetCurrentEccMode(self, handle: Any) -> int:
        self._behind(handle, GpuState)
        return int(pynvml.NVML_FEATURE_ENABLED)

    @nvml_function
    def nvmlDeviceGetTemperatureV(
        self, handle: Any, sensor: int, version: int = pynvml.nvmlTemperature_v1
    ) -> int:
        if version != pynvml.nvmlTemperature_v1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)

        return self._temperature(handle, sensor)

    @nvml_function
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        return self._temperature(handle, sensor)

    @nvml_function
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        if self._behind(handle, GpuState).mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        return pynvml.c_nvmlUtilization_t(gpu=97, memory=35)

    @nvml_function
    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        self._behind(handle, GpuState)
        return int(pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown)

    @nvml_function
    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:
        self._behind(handle, GpuState)
        return int(pynvml.nvmlClocksEventReasonSwPowerCap)

    # The state behind them -----------------------------------------------------------------------------

    def _temperature(self, handle: Any, sensor: int) -> int:
        self._behind(handle, GpuState)
        if sensor != pynvml.NVML_TEMPERATURE_GPU:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        return 41

    def _processes(self, handle: Any) -> list[Any]:
        device = self._behind(handle, GpuState, MigDevice)
        whole = isinstance(device, GpuState)
        if whole and device.mig and not self.privileged:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

        processes = device.processes if whole else device.compute_instance.processes
        return [pynvml.nvmlFriendlyObject({"pid": one.pid, "usedGpuMemory": one.used}) for one in processes]


def _mask(bits: tuple[int, ...], words: int) -> Any:
    mask = (ctypes.c_ulonglong * words)()
    for bit in bits:
        if bit // 64 < words:
            mask[bit // 64] |= 1 << bit % 64

    return mask
