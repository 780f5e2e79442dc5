"""The fake GPUs behind NVML's C interface, where pynvml looks for ``libnvidia-ml.so.1``.

So pynvml's own marshalling runs: each function has the argument types of nvml.h and takes no others, and one
that the driver lacks is missing from the library. An array that pynvml hands over by reference is a ``void *``.
"""

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, c_char, c_char_p, c_int, c_uint, c_ulonglong, c_void_p
from functools import partial
from types import ModuleType
from typing import Any

import pynvml

from tests.fake_driver import SYMBOLS
from tests.fakes import FakeGpus

PYNVML_NAMES = {symbol: name for name, symbol in SYMBOLS.items()}

Device = pynvml.c_nvmlDevice_t
GpuInstance = pynvml.c_nvmlGpuInstance_t
ComputeInstance = pynvml.c_nvmlComputeInstance_t
GpuPlacement = pynvml.c_nvmlGpuInstancePlacement_t
ComputePlacement = pynvml.c_nvmlComputeInstancePlacement_t

ANSWERS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...]]] = {
    "nvmlShutdown": ((), ()),
    "nvmlSystemGetCudaDriverVersion_v2": ((), (c_int,)),
    "nvmlDeviceGetCount_v2": ((), (c_uint,)),
    "nvmlDeviceGetHandleByIndex_v2": ((c_uint,), (Device,)),
    "nvmlDeviceGetIndex": ((Device,), (c_uint,)),
    "nvmlDeviceGetMinorNumber": ((Device,), (c_uint,)),
    "nvmlDeviceGetPciInfo_v3": ((Device,), (pynvml.nvmlPciInfo_t,)),
    "nvmlDeviceGetNumGpuCores": ((Device,), (c_uint,)),
    "nvmlDeviceGetCudaComputeCapability": ((Device,), (c_int, c_int)),
    "nvmlDeviceGetMemoryInfo": ((Device,), (pynvml.c_nvmlMemory_t,)),
    "nvmlDeviceGetPowerUsage": ((Device,), (c_uint,)),
    "nvmlDeviceGetEnforcedPowerLimit": ((Device,), (c_uint,)),
    "nvmlDeviceGetTotalEnergyConsumption": ((Device,), (c_ulonglong,)),
    "nvmlDeviceGetClockInfo": ((Device, c_uint), (c_uint,)),
    "nvmlDeviceGetMaxClockInfo": ((Device, c_uint), (c_uint,)),
    "nvmlDeviceGetTemperature": ((Device, c_uint), (c_uint,)),
    "nvmlDeviceGetUtilizationRates": ((Device,), (pynvml.c_nvmlUtilization_t,)),
    "nvmlDeviceGetCurrentClocksEventReasons": ((Device,), (c_ulonglong,)),
    "nvmlDeviceGetCurrentClocksThrottleReasons": ((Device,), (c_ulonglong,)),
    "nvmlDeviceGetPcieThroughput": ((Device, c_uint), (c_uint,)),
    "nvmlDeviceGetApplicationsClock": ((Device, c_uint), (c_uint,)),
    "nvmlGpmQueryDeviceSupport": ((Device,), (pynvml.c_nvmlGpmSupport_t,)),
    "nvmlGpmSampleAlloc": ((), (pynvml.c_nvmlGpmSample_t,)),
    "nvmlGpmSampleFree": ((pynvml.c_nvmlGpmSample_t,), ()),
    "nvmlGpmSampleGet": ((Device, pynvml.c_nvmlGpmSample_t), ()),
    "nvmlGpmMigSampleGet": ((Device, c_uint, pynvml.c_nvmlGpmSample_t), ()),
    "nvmlDeviceGetMigMode": ((Device,), (c_uint, c_uint)),
    "nvmlDeviceSetMigMode": ((Device, c_uint), (c_uint,)),
    "nvmlDeviceGetMaxMigDeviceCount": ((Device,), (c_uint,)),
    "nvmlDeviceGetMigDeviceHandleByIndex": ((Device, c_uint), (Device,)),
    "nvmlDeviceGetGpuInstanceId": ((Device,), (c_uint,)),
    "nvmlDeviceGetComputeInstanceId": ((Device,), (c_uint,)),
    "nvmlDeviceGetAttributes_v2": ((Device,), (pynvml.c_nvmlDeviceAttributes,)),
    "nvmlDeviceGetGpuInstanceRemainingCapacity": ((Device, c_uint), (c_uint,)),
    "nvmlDeviceGetGpuInstancePossiblePlacements_v2": (
        (Device, c_uint, POINTER(GpuPlacement), POINTER(c_uint)),
        (),
    ),
    "nvmlDeviceCreateGpuInstance": ((Device, c_uint), (GpuInstance,)),
    "nvmlDeviceCreateGpuInstanceWithPlacement": ((Device, c_uint, POINTER(GpuPlacement)), (GpuInstance,)),
    "nvmlGpuInstanceDestroy": ((GpuInstance,), ()),
    "nvmlDeviceGetGpuInstances": ((Device, c_uint, POINTER(GpuInstance), POINTER(c_uint)), ()),
    "nvmlDeviceGetGpuInstanceById": ((Device, c_uint), (GpuInstance,)),
    "nvmlGpuInstanceGetInfo": ((GpuInstance,), (pynvml.c_nvmlGpuInstanceInfo_t,)),
    "nvmlGpuInstanceGetComputeInstanceRemainingCapacity": ((GpuInstance, c_uint), (c_uint,)),
    "nvmlGpuInstanceGetComputeInstancePossiblePlacements": (
        (GpuInstance, c_uint, POINTER(ComputePlacement), POINTER(c_uint)),
        (),
    ),
    "nvmlGpuInstanceCreateComputeInstance": ((GpuInstance, c_uint), (ComputeInstance,)),
    "nvmlGpuInstanceCreateComputeInstanceWithPlacement": (
        (GpuInstance, c_uint, POINTER(ComputePlacement)),
        (ComputeInstance,),
    ),
    "nvmlComputeInstanceDestroy": ((ComputeInstance,), ()),
    "nvmlGpuInstanceGetComputeInstances": (
        (GpuInstance, c_uint, POINTER(ComputeInstance), POINTER(c_uint)),
        (),
    ),
    "nvmlGpuInstanceGetComputeInstanceById": ((GpuInstance, c_uint), (ComputeInstance,)),
    "nvmlComputeInstanceGetInfo_v2": ((ComputeInstance,), (pynvml.c_nvmlComputeInstanceInfo_t,)),
}
"""Symbol → what goes in, what comes out through pointers at the end."""

VERSIONED: dict[str, tuple[str, tuple[Any, ...], Any, int | None]] = {
    "nvmlDeviceGetMemoryInfo_v2": (
        "nvmlDeviceGetMemoryInfo",
        (Device,),
        pynvml.c_nvmlMemory_v2_t,
        pynvml.nvmlMemory_v2,
    ),
    "nvmlDeviceGetGpuInstanceProfileInfo": (
        "nvmlDeviceGetGpuInstanceProfileInfo",
        (Device, c_uint),
        pynvml.c_nvmlGpuInstanceProfileInfo_t,
        None,
    ),
    "nvmlDeviceGetGpuInstanceProfileInfoV": (
        "nvmlDeviceGetGpuInstanceProfileInfo",
        (Device, c_uint),
        pynvml.c_nvmlGpuInstanceProfileInfo_v2_t,
        pynvml.nvmlGpuInstanceProfileInfo_v2,
    ),
    "nvmlGpuInstanceGetComputeInstanceProfileInfo": (
        "nvmlGpuInstanceGetComputeInstanceProfileInfo",
        (GpuInstance, c_uint, c_uint),
        pynvml.c_nvmlComputeInstanceProfileInfo_t,
        None,
    ),
    "nvmlGpuInstanceGetComputeInstanceProfileInfoV": (
        "nvmlGpuInstanceGetComputeInstanceProfileInfo",
        (GpuInstance, c_uint, c_uint),
        pynvml.c_nvmlComputeInstanceProfileInfo_v2_t,
        pynvml.nvmlComputeInstanceProfileInfo_v2,
    ),
}
"""Symbol → the fake's function, what goes in, the struct that comes out, the version it must arrive with."""

TEXTS = {
    "nvmlSystemGetDriverVersion": (),
    "nvmlSystemGetNVMLVersion": (),
    "nvmlDeviceGetUUID": (Device,),
    "nvmlDeviceGetName": (Device,),
}
"""Symbol, the fake's function too → what goes in before the buffer and its length."""


class FakeLibrary:
    """What ``CDLL("libnvidia-ml.so.1")`` would be: C functions as attributes."""

    def __init__(self, gpus: FakeGpus) -> None:
        self._gpus = gpus
        self.faults: list[Exception] = []
        """What the fake raised that no C function could answer with."""
        self._text = ctypes.create_string_buffer(b"an error of the fake library")
        self._functions: dict[str, Any] = {
            "nvmlErrorString": ctypes.CFUNCTYPE(c_void_p, c_int)(lambda _code: ctypes.addressof(self._text))
        }
        for symbol, (ins, outs) in ANSWERS.items():
            name = PYNVML_NAMES.get(symbol, symbol)
            self._add(symbol, partial(self._answer, name, len(outs)), *ins, *map(POINTER, outs))

        for symbol, (name, ins, struct, version) in VERSIONED.items():
            self._add(symbol, partial(self._versioned, name, version), *ins, POINTER(struct))

        for symbol, ins in TEXTS.items():
            self._add(symbol, partial(self._write_text, symbol), *ins, POINTER(c_char), c_uint)

        for version, struct in ((2, pynvml.c_nvmlProcessInfo_v2_t), (3, pynvml.c_nvmlProcessInfo_v3_t)):
            symbol = f"nvmlDeviceGetComputeRunningProcesses_v{version}"
            self._add(symbol, partial(self._processes, symbol), Device, POINTER(c_uint), POINTER(struct))

        self._add("nvmlInitWithFlags", lambda _flags: self._gpus.nvmlInit(), c_uint)
        self._add("nvmlDeviceGetHandleByUUID", self._by_uuid, c_char_p, POINTER(Device))
        self._add("nvmlDeviceGetEccMode", self._ecc, Device, POINTER(c_uint), POINTER(c_uint))
        self._add(
            "nvmlDeviceGetTemperatureV", self._temperature, Device, POINTER(pynvml.c_nvmlTemperature_v1_t)
        )
        self._add("nvmlDeviceGetCpuAffinity", self._cores, Device, c_uint, c_void_p)
        self._add("nvmlDeviceGetMemoryAffinity", self._nodes, Device, c_uint, c_void_p, c_uint)
        self._add("nvmlGpmMetricsGet", self._metrics, POINTER(pynvml.c_nvmlGpmMetricsGet_t))
        self._add("nvmlDeviceGetFieldValues", self._fields, Device, c_int, c_void_p)

    def __getattr__(self, symbol: str) -> Any:
        missing = self._gpus.refusing.get(symbol) == pynvml.NVML_ERROR_FUNCTION_NOT_FOUND
        if missing or symbol not in self._functions:
            raise AttributeError(symbol)

        return self._functions[symbol]

    def _add(self, symbol: str, act: Callable[..., None], *kinds: Any) -> None:
        def function(*args: Any) -> int:
            try:
                act(*args)
            except pynvml.NVMLError as error:
                return int(error.value)
            except Exception as error:  # noqa: BLE001  C has no other way out
                self.faults.append(error)
                return int(pynvml.NVML_ERROR_UNKNOWN)

            return int(pynvml.NVML_SUCCESS)

        self._functions[symbol] = ctypes.CFUNCTYPE(c_int, *kinds)(function)

    def _answer(self, name: str, outs: int, *args: Any) -> None:
        ins, pointers = args[: len(args) - outs], args[len(args) - outs :]
        answer = getattr(self._gpus, name)(*ins)
        answers = answer if outs > 1 else (answer,)
        for pointer, value in zip(pointers, answers, strict=False):
            pointer[0] = value

    def _versioned(self, name: str, version: int | None, *args: Any) -> None:
        *ins, pointer = args
        if version is not None and pointer[0].version != version:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH)

        which = version if name == "nvmlDeviceGetMemoryInfo" else 1 if version is None else 2
        pointer[0] = getattr(self._gpus, name)(*ins, version=which)

    def _write_text(self, name: str, *args: Any) -> None:
        *ins, buffer, length = args
        text = getattr(self._gpus, name)(*ins).encode() + b"\0"
        if len(text) > length:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)

        ctypes.memmove(buffer, text, len(text))

    def _by_uuid(self, uuid: bytes, pointer: Any) -> None:
        pointer[0] = self._gpus.nvmlDeviceGetHandleByUUID(uuid.decode())

    def _ecc(self, device: Any, current: Any, pending: Any) -> None:
        current[0] = pending[0] = self._gpus.nvmlDeviceGetCurrentEccMode(device)

    def _temperature(self, device: Any, pointer: Any) -> None:
        asked = pointer[0]
        asked.temperature = self._gpus.nvmlDeviceGetTemperatureV(device, asked.sensorType, asked.version)

    def _cores(self, device: Any, words: int, address: int) -> None:
        mask = self._gpus.nvmlDeviceGetCpuAffinity(device, words)
        ctypes.memmove(address, mask, ctypes.sizeof(mask))

    def _nodes(self, device: Any, words: int, address: int, scope: int) -> None:
        mask = self._gpus.nvmlDeviceGetMemoryAffinity(device, words, scope)
        ctypes.memmove(address, mask, ctypes.sizeof(mask))

    def _fields(self, device: Any, count: int, address: int) -> None:
        asked = (pynvml.c_nvmlFieldValue_t * count).from_address(address)
        values = self._gpus.nvmlDeviceGetFieldValues(device, [one.fieldId for one in asked])
        ctypes.memmove(address, values, ctypes.sizeof(values))

    def _metrics(self, pointer: Any) -> None:
        self._gpus.nvmlGpmMetricsGet(pointer[0])

    def _processes(self, name: str, device: Any, count: Any, array: Any) -> None:
        found = getattr(self._gpus, name)(device)
        room, count[0] = count[0], len(found)
        if room < len(found):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)

        for place, process in enumerate(found):
            unknown = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value
            array[place].pid = process.pid
            array[place].usedGpuMemory = unknown if process.usedGpuMemory is None else process.usedGpuMemory


@contextmanager
def loaded(gpus: FakeGpus) -> Iterator[ModuleType]:
    """pynvml, with this machine behind it; what was loaded before is back on leaving.

    Raises:
        Exception: what the fake raised that no C function could answer with, on leaving.
    """
    before, library = pynvml.nvmlLib, FakeLibrary(gpus)
    pynvml.nvmlLib = library
    pynvml._nvmlGetFunctionPointer_cache.clear()
    try:
        yield pynvml
    finally:
        pynvml.nvmlLib = before
        pynvml._nvmlGetFunctionPointer_cache.clear()

    if library.faults:
        raise library.faults[0]
