"""A fake pynvml that refuses as the real one does: whole machines as data, no board needed.

It has the functions that ``scheduler/nvml.py`` calls, with pynvml's own signatures, structs, handle types
and exceptions. A GPU instance occupies memory slices; what does not fit is INSUFFICIENT_RESOURCES.
"""

import ctypes
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import pynvml

from tests.gpu_state import FakeGpu, GpuInstance, GpuState, MigDevice, uuid_of

MISSING_BEFORE_R470 = (
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
    "nvmlDeviceGetNumGpuCores",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetCurrentClocksEventReasons",
    "nvmlDeviceGetMemoryAffinity",
)
"""Functions that later drivers brought."""


def _nvml(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of NVML: first refuse what this machine is to refuse, then answer."""

    @wraps(function)
    def refusing(self: "FakeGpus", *args: Any, **kwargs: Any) -> Any:
        self.calls.append(function.__name__)
        if not self._initialised:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)

        self._refuse(function.__name__)
        if self.fail_call is not None and len(self.calls) == self.fail_call[0]:
            raise pynvml.NVMLError(self.fail_call[1])

        return function(self, *args, **kwargs)

    return refusing


class FakeGpus:
    """Stands where the module ``pynvml`` does.

    Args:
        gpus: the machine.
        driver: its version; one below 470 names MIG devices by GPU and instance and lacks later functions.
        privileged: False for a user without MIG's rights.
        start_error: the code nvmlInit answers: LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED, …
        refusing: the library's name of a function → the code it always answers.
        fail_call: (n, code): the nth call after nvmlInit answers this code, counted from 1.
    """

    def __init__(
        self,
        *gpus: FakeGpu,
        driver: str = "580.65.06",
        privileged: bool = True,
        start_error: int | None = None,
        refusing: Mapping[str, int] | None = None,
        fail_call: tuple[int, int] | None = None,
    ) -> None:
        self.driver = driver
        self.old = int(driver.partition(".")[0]) < 470
        self.privileged = privileged
        self.start_error = start_error
        self.refusing = dict(refusing or {})
        if self.old:
            self.refusing |= dict.fromkeys(MISSING_BEFORE_R470, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

        self.fail_call = fail_call
        self.calls: list[str] = []
        """Names of the functions called since the first nvmlInit."""
        self._initialised = 0
        self._by_address: dict[int, Any] = {}
        self._gpus = [GpuState.of(asked, index) for index, asked in enumerate(gpus)]

    def lose(self, index: int) -> None:
        """The GPU falls off the bus."""
        self._gpus[index].lost = True

    # The state behind the functions ----------------------------------------------------------------

    def _refuse(self, symbol: str) -> None:
        if symbol in self.refusing:
            raise pynvml.NVMLError(self.refusing[symbol])

    def _handle(self, kind: Any, thing: Any) -> Any:
        """A pointer of pynvml's opaque type for this object."""
        for address, known in self._by_address.items():
            if known is thing:
                return ctypes.cast(ctypes.c_void_p(address), kind)

        address = 0x1000 + 0x10 * len(self._by_address)
        self._by_address[address] = thing
        return ctypes.cast(ctypes.c_void_p(address), kind)

    def _behind(self, handle: Any, *kinds: type) -> Any:
        """The object a handle stands for; INVALID_ARGUMENT where it is of none of these kinds."""
        thing = self._by_address.get(ctypes.cast(handle, ctypes.c_void_p).value or 0)
        if not isinstance(thing, kinds):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        gpu = thing.gpu if isinstance(thing, MigDevice) else thing
        if isinstance(gpu, GpuState) and gpu.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

        return thing

    def _temperature(self, handle: Any, sensor: int) -> int:
        self._behind(handle, GpuState)
        if sensor != pynvml.NVML_TEMPERATURE_GPU:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        return 41

    def _processes(self, handle: Any) -> list[Any]:
        device = self._behind(handle, GpuState, MigDevice)
        whole = isinstance(device, GpuState)
        if whole and device.asked.mig and not self.privileged:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

        processes = device.processes if whole else device.compute_instance.processes
        return [pynvml.nvmlFriendlyObject({"pid": pid, "usedGpuMemory": used}) for pid, used in processes]

    def _mig_uuid(self, device: MigDevice) -> str:
        instances = f"{device.gpu_instance.id}/{device.compute_instance.id}"
        return (
            f"MIG-{device.gpu.uuid}/{instances}"
            if self.old
            else "MIG-" + uuid_of(device.gpu.uuid + instances)[4:]
        )

    # NVML's functions, as pynvml has them ------------------------------------------------------------

    def nvmlInit(self) -> None:
        if self.start_error is not None:
            raise pynvml.NVMLError(self.start_error)

        self._initialised += 1

    @_nvml
    def nvmlShutdown(self) -> None:
        self._initialised -= 1

    @_nvml
    def nvmlSystemGetDriverVersion(self) -> str:
        return self.driver

    @_nvml
    def nvmlSystemGetNVMLVersion(self) -> str:
        return f"12.{self.driver}"

    @_nvml
    def nvmlSystemGetCudaDriverVersion_v2(self) -> int:
        return 13000

    @_nvml
    def nvmlDeviceGetCount(self) -> int:
        return len(self._gpus)

    @_nvml
    def nvmlDeviceGetHandleByIndex(self, index: int) -> Any:
        if not 0 <= index < len(self._gpus):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        gpu = self._gpus[index]
        if gpu.asked.foreign:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

        if gpu.lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

        return self._handle(pynvml.c_nvmlDevice_t, gpu)

    @_nvml
    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> Any:
        for gpu in self._gpus:
            if gpu.uuid == uuid and gpu.lost:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

            if gpu.uuid == uuid:
                return self._handle(pynvml.c_nvmlDevice_t, gpu)

            for device in gpu.mig_devices.values():
                if self._mig_uuid(device) == uuid:
                    return self._handle(pynvml.c_nvmlDevice_t, device)

        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    @_nvml
    def nvmlDeviceGetUUID(self, handle: Any) -> str:
        device = self._behind(handle, GpuState, MigDevice)
        return str(device.uuid) if isinstance(device, GpuState) else self._mig_uuid(device)

    @_nvml
    def nvmlDeviceGetName(self, handle: Any) -> str:
        device = self._behind(handle, GpuState, MigDevice)
        if isinstance(device, GpuState):
            return device.board.name

        if self.old:
            return device.gpu.board.name

        profile, slices = device.gpu_instance.profile, device.compute_instance.slices
        part = f"{slices}c." if slices < profile.compute_slices else ""
        return f"{device.gpu.board.name} MIG {part}{profile.name}"

    @_nvml
    def nvmlDeviceGetMigMode(self, device: Any) -> list[int]:
        gpu = self._behind(device, GpuState)
        if not gpu.board.profiles:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        return [int(gpu.asked.mig), int(gpu.asked.mig)]

    @_nvml
    def nvmlDeviceGetMaxMigDeviceCount(self, device: Any) -> int:
        return int(self._behind(device, GpuState).board.compute_slices)

    @_nvml
    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> Any:
        found = self._behind(device, GpuState).mig_devices.get(index)
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

        return self._handle(pynvml.c_nvmlDevice_t, found)

    @_nvml
    def nvmlDeviceGetGpuInstanceId(self, device: Any) -> int:
        return int(self._behind(device, MigDevice).gpu_instance.id)

    @_nvml
    def nvmlDeviceGetComputeInstanceId(self, device: Any) -> int:
        return int(self._behind(device, MigDevice).compute_instance.id)

    @_nvml
    def nvmlDeviceGetGpuInstanceById(self, device: Any, gpuInstanceId: int) -> Any:
        gpu = self._behind(device, GpuState)
        if not self.privileged:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

        for instance in gpu.instances:
            if instance.id == gpuInstanceId:
                return self._handle(pynvml.c_nvmlGpuInstance_t, instance)

        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    @_nvml
    def nvmlGpuInstanceGetInfo(self, gpuInstance: Any) -> Any:
        instance = self._behind(gpuInstance, GpuInstance)
        info = pynvml.c_nvmlGpuInstanceInfo_t()
        info.id, info.profileId = instance.id, instance.profile.id
        info.placement.start, info.placement.size = instance.start, instance.profile.memory_slices
        return info

    @_nvml
    def nvmlDeviceGetAttributes_v2(self, device: Any) -> Any:
        mig = self._behind(device, GpuState, MigDevice)
        if isinstance(mig, GpuState):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        profile, slices = mig.gpu_instance.profile, mig.compute_instance.slices
        per_slice = min(one.sms for one in mig.gpu.board.profiles)
        attributes = pynvml.c_nvmlDeviceAttributes()
        attributes.multiprocessorCount = (
            profile.sms if slices == profile.compute_slices else slices * per_slice
        )
        attributes.gpuInstanceSliceCount = profile.compute_slices
        attributes.computeInstanceSliceCount = slices
        attributes.memorySizeMB = profile.memory_mib
        return attributes

    @_nvml
    def nvmlDeviceGetGpuInstanceProfileInfo(self, device: Any, profile: int, version: int = 2) -> Any:
        gpu = self._behind(device, GpuState)
        if version == 2:
            self._refuse("nvmlDeviceGetGpuInstanceProfileInfoV")

        if profile >= pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT - 1:  # a driver older than this pynvml
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        found = [one for one in gpu.board.profiles if one.enum == profile]
        if not found:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        info = (
            pynvml.c_nvmlGpuInstanceProfileInfo_v2_t()
            if version == 2
            else pynvml.c_nvmlGpuInstanceProfileInfo_t()
        )
        info.id, info.sliceCount, info.instanceCount = found[0].id, found[0].compute_slices, found[0].most
        info.multiprocessorCount, info.memorySizeMB = found[0].sms, found[0].memory_mib
        if version == 2:
            info.name = f"MIG {found[0].name}".encode()

        return info

    @_nvml
    def nvmlDeviceGetMemoryInfo(self, handle: Any, version: int | None = None) -> Any:
        device = self._behind(handle, GpuState, MigDevice)
        if version is not None:
            self._refuse("nvmlDeviceGetMemoryInfo_v2")

        if isinstance(device, GpuState) and device.asked.mig and not self.privileged:
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

    @_nvml
    def nvmlDeviceGetNumGpuCores(self, device: Any) -> int:
        return int(self._behind(device, GpuState).board.cuda_cores)

    @_nvml
    def nvmlDeviceGetCudaComputeCapability(self, handle: Any) -> tuple[int, int]:
        major, minor = self._behind(handle, GpuState).board.compute_capability
        return major, minor

    @_nvml
    def nvmlDeviceGetPciInfo(self, handle: Any) -> Any:
        gpu = self._behind(handle, GpuState)
        info = pynvml.nvmlPciInfo_t()
        info.domain, info.bus, info.device = 0, 0x1B + 0x10 * gpu.index, 0
        info.busId = f"{info.domain:08X}:{info.bus:02X}:{info.device:02X}.0".encode()
        return info

    @_nvml
    def nvmlDeviceGetCpuAffinity(self, handle: Any, cpuSetSize: int) -> Any:
        return _mask(self._behind(handle, GpuState).asked.cores, cpuSetSize)

    @_nvml
    def nvmlDeviceGetMemoryAffinity(self, handle: Any, nodeSetSize: int, scope: int) -> Any:
        if scope not in (pynvml.NVML_AFFINITY_SCOPE_NODE, pynvml.NVML_AFFINITY_SCOPE_SOCKET):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        return _mask((self._behind(handle, GpuState).asked.numa_node,), nodeSetSize)

    @_nvml
    def nvmlDeviceGetComputeRunningProcesses_v3(self, handle: Any) -> list[Any]:
        return self._processes(handle)

    @_nvml
    def nvmlDeviceGetComputeRunningProcesses_v2(self, handle: Any) -> list[Any]:
        return self._processes(handle)

    @_nvml
    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        self._behind(handle, GpuState)
        return 312_345

    @_nvml
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: Any) -> int:
        self._behind(handle, GpuState)
        return 400_000

    @_nvml
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any) -> int:
        gpu = self._behind(handle, GpuState)
        gpu.energy_mj += 312
        return int(gpu.energy_mj)

    @_nvml
    def nvmlDeviceGetClockInfo(self, handle: Any, type: int) -> int:
        self._behind(handle, GpuState)
        return {pynvml.NVML_CLOCK_SM: 1410, pynvml.NVML_CLOCK_MEM: 1593}[type]

    @_nvml
    def nvmlDeviceGetMaxClockInfo(self, handle: Any, type: int) -> int:
        self._behind(handle, GpuState)
        return {pynvml.NVML_CLOCK_SM: 1980, pynvml.NVML_CLOCK_MEM: 1593}[type]

    @_nvml
    def nvmlDeviceGetCurrentEccMode(self, handle: Any) -> int:
        self._behind(handle, GpuState)
        return int(pynvml.NVML_FEATURE_ENABLED)

    @_nvml
    def nvmlDeviceGetTemperatureV(
        self, handle: Any, sensor: int, version: int = pynvml.nvmlTemperature_v1
    ) -> int:
        if version != pynvml.nvmlTemperature_v1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)

        return self._temperature(handle, sensor)

    @_nvml
    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        return self._temperature(handle, sensor)

    @_nvml
    def nvmlDeviceGetUtilizationRates(self, handle: Any) -> Any:
        if self._behind(handle, GpuState).asked.mig:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        return pynvml.c_nvmlUtilization_t(gpu=97, memory=35)

    @_nvml
    def nvmlDeviceGetCurrentClocksEventReasons(self, handle: Any) -> int:
        self._behind(handle, GpuState)
        return int(pynvml.nvmlClocksEventReasonSwPowerCap | pynvml.nvmlClocksEventReasonHwThermalSlowdown)

    @_nvml
    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:
        self._behind(handle, GpuState)
        return int(pynvml.nvmlClocksEventReasonSwPowerCap)


def _mask(bits: tuple[int, ...], words: int) -> Any:
    mask = (ctypes.c_ulonglong * words)()
    for bit in bits:
        if bit // 64 < words:
            mask[bit // 64] |= 1 << bit % 64

    return mask
