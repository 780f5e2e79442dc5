"""The machine behind a fake pynvml: its GPUs and handles, its user's rights, what it is told to refuse."""

import ctypes
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any

import pynvml

from tests.gpu_state import ComputeInstance, FakeGpu, GpuInstance, GpuState, MigDevice, Process, uuid_of

MISSING_BEFORE: dict[int, tuple[str, ...]] = {
    470: (
        "nvmlDeviceGetMemoryInfo_v2",
        "nvmlDeviceGetComputeRunningProcesses_v3",
        "nvmlDeviceGetNumGpuCores",
        "nvmlDeviceGetTemperatureV",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetMemoryAffinity",
        "nvmlDeviceGetGpuInstancePossiblePlacements_v2",
    ),
    510: ("nvmlDeviceGetGpuInstanceProfileInfoV",),
    525: (
        "nvmlGpuInstanceCreateComputeInstanceWithPlacement",
        "nvmlGpuInstanceGetComputeInstancePossiblePlacements",
        "nvmlGpuInstanceGetComputeInstanceProfileInfoV",
    ),
}
"""Driver branch → functions of the library that came with it, or between it and the branch before."""

SYMBOLS = {
    "nvmlDeviceGetCount": "nvmlDeviceGetCount_v2",
    "nvmlDeviceGetHandleByIndex": "nvmlDeviceGetHandleByIndex_v2",
    "nvmlDeviceGetPciInfo": "nvmlDeviceGetPciInfo_v3",
    "nvmlDeviceGetCurrentEccMode": "nvmlDeviceGetEccMode",
    "nvmlDeviceGetGpuInstancePossiblePlacements": "nvmlDeviceGetGpuInstancePossiblePlacements_v2",
}
"""pynvml's name of a function → the library's, where they differ. (Those with two versions refuse by hand.)"""

CHANGES = (
    "nvmlDeviceSetMigMode",
    "nvmlDeviceCreateGpuInstance",
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceDestroy",
    "nvmlGpuInstanceCreateComputeInstance",
    "nvmlGpuInstanceCreateComputeInstanceWithPlacement",
    "nvmlComputeInstanceDestroy",
)
"""The functions that change anything."""


def nvml_function(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of NVML: first refuse what this machine is to refuse, then answer."""
    name = function.__name__

    @wraps(function)
    def refusing(self: "FakeDriver", *args: Any, **kwargs: Any) -> Any:
        self.calls.append(name)
        if not self._initialised:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_UNINITIALIZED)

        self._refuse(name)
        self._refuse(SYMBOLS.get(name, name))
        if self.fail_call is not None and len(self.calls) == self.fail_call[0]:
            raise pynvml.NVMLError(self.fail_call[1])

        code = self.failing(name) if self.failing is not None else None
        if code is not None:
            raise pynvml.NVMLError(code)

        return function(self, *args, **kwargs)

    return refusing


class FakeDriver:
    """A machine's GPUs as its driver knows them.

    Args:
        gpus: the machine.
        driver: its version; one below 470 names MIG devices by GPU and instance; functions that came later
            than it are missing (MISSING_BEFORE).
        privileged: False for a user without MIG's rights, to see as to change.
        may_change: False for a user who may see GPU instances, but not change them or the mode.
        fresh_uuids: whether a MIG device made again has another UUID; otherwise its ids decide it.
        wants_arrays: refuse to tell a count of placements without an array.
        start_error: the code nvmlInit answers: LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED, …
        refusing: the library's name of a function → the code it always answers.
        fail_call: (n, code): the nth call after nvmlInit answers this code, counted from 1.
        failing: asked before each call, with pynvml's name of the function: the code to answer, or None.
    """

    def __init__(
        self,
        *gpus: FakeGpu,
        driver: str = "580.65.06",
        privileged: bool = True,
        may_change: bool = True,
        fresh_uuids: bool = False,
        wants_arrays: bool = False,
        start_error: int | None = None,
        refusing: Mapping[str, int] | None = None,
        fail_call: tuple[int, int] | None = None,
        failing: Callable[[str], int | None] | None = None,
    ) -> None:
        self.driver = driver
        branch = int(driver.partition(".")[0])
        self.old = branch < 470
        self.privileged = privileged
        self.may_change = may_change and privileged
        self.fresh_uuids = fresh_uuids
        self.wants_arrays = wants_arrays
        self.start_error = start_error
        self.refusing = dict(refusing or {})
        for first, names in MISSING_BEFORE.items():
            if branch < first:
                self.refusing |= dict.fromkeys(names, pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)

        self.fail_call = fail_call
        self.failing = failing
        self.calls: list[str] = []
        """Names of the functions called since the first nvmlInit."""
        self._initialised = 0
        self._by_address: dict[int, Any] = {}
        self._addresses: dict[int, int] = {}
        """id() of a thing, which ``_by_address`` keeps alive → its address."""
        self._gpus = [GpuState.of(asked, index) for index, asked in enumerate(gpus)]

    # What a test does to the machine -------------------------------------------------------------------

    @property
    def changes(self) -> list[str]:
        """The calls that were to change something, refused ones too."""
        return [name for name in self.calls if name in CHANGES]

    def lose(self, index: int) -> None:
        """The GPU falls off the bus."""
        self._gpus[index].lost = True

    def hold(self, index: int, held: bool = True) -> None:
        """A service opens, or closes, the GPU's device file."""
        self._gpus[index].held = held

    def reset(self, index: int) -> None:
        """A GPU reset by the administrator; IN_USE is raised while anything uses the GPU."""
        self._gpus[index].reset()

    def run(self, uuid: str, pid: int, used: int | None = 1 << 30, leaves_after: int | None = None) -> None:
        """A process starts on the GPU or MIG device of this UUID.

        ``leaves_after``: it has ended by the time that so many requests were refused for its sake.
        """
        device = self._of_uuid(uuid)
        place = device.own_processes if isinstance(device, GpuState) else device.compute_instance.processes
        place.append(Process(pid, used, leaves_after))

    def end(self, pid: int) -> None:
        """The process ends."""
        for gpu in self._gpus:
            gpu.end(pid)

    # The state behind the functions --------------------------------------------------------------------

    def _refuse(self, symbol: str) -> None:
        if symbol in self.refusing:
            raise pynvml.NVMLError(self.refusing[symbol])

    def _need_rights(self, *, to_change: bool = False) -> None:
        if not (self.may_change if to_change else self.privileged):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NO_PERMISSION)

    def _handle(self, kind: Any, thing: Any) -> Any:
        """A pointer of pynvml's opaque type for this object."""
        address = self._addresses.setdefault(id(thing), 0x1000 + 0x10 * len(self._addresses))
        self._by_address[address] = thing
        return ctypes.cast(ctypes.c_void_p(address), kind)

    def _behind(self, handle: Any, *kinds: type) -> Any:
        """The object a handle stands for; INVALID_ARGUMENT where it is of none of these kinds.

        A handle of what was destroyed is stale: NOT_FOUND for a MIG device, else INVALID_ARGUMENT.
        """
        thing = self._by_address.get(ctypes.cast(handle, ctypes.c_void_p).value or 0)
        if not isinstance(thing, kinds):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        if thing.gone:
            stale = isinstance(thing, MigDevice)
            raise pynvml.NVMLError(
                pynvml.NVML_ERROR_NOT_FOUND if stale else pynvml.NVML_ERROR_INVALID_ARGUMENT
            )

        if self._gpu_of(thing).lost:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)

        return thing

    def _gpu_of(self, thing: Any) -> GpuState:
        inner = thing.gpu_instance if isinstance(thing, ComputeInstance) else thing
        return inner.gpu if isinstance(inner, GpuInstance | MigDevice) else inner

    def _of_uuid(self, uuid: str) -> Any:
        for gpu in self._gpus:
            if gpu.uuid == uuid:
                return gpu

            for device in gpu.mig_devices.values():
                if self._mig_uuid(device) == uuid:
                    return device

        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def _mig_uuid(self, device: MigDevice) -> str:
        instances = f"{device.gpu_instance.id}/{device.compute_instance.id}"
        if self.old:
            return f"MIG-{device.gpu.uuid}/{instances}"

        made = f"#{device.generation}" if self.fresh_uuids else ""
        return "MIG-" + uuid_of(device.gpu.uuid + instances + made)[4:]
