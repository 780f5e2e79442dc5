"""The door to the NVIDIA driver: NVML, through nvidia-ml-py, read only. (What changes it: nvml_mig.py.)

Importing this file loads no library; ``open`` does. Constants come from ``pynvml`` itself; calls go to
the library object that ``open`` was given, so that tests put one in its place.
"""

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pynvml

from scheduler.errors import DriverNotLoaded, GpuError, NotFound, NvmlMissing
from scheduler.host import Host
from scheduler.nvml_codes import gpu_error, throttle_reasons
from scheduler.slices import Gpu, Machine, MigSlice

WORDS: dict[int, str] = {
    code: name.removeprefix("NVML_ERROR_")
    for name, code in vars(pynvml).items()
    if name.startswith("NVML_ERROR_")
}
"""NVML's return codes and their names, of the nvidia-ml-py in use."""

UNANSWERED = {"NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH", "DEPRECATED"}
UNANSWERED |= {"NO_DATA", "NO_PERMISSION"}
"""Codes with which a driver declines one question; any other is a failure."""

_SUFFIXES = {7: "+me", 8: "+me", 10: "+gfx", 11: "+gfx", 12: "+gfx", 17: "+gfx"} | {
    13: "-me",
    14: "-me",
    15: "+me.all",
    16: "+me.all",
}
"""NVML_GPU_INSTANCE_PROFILE_… → what the name has after the gigabytes (nvml.h)."""

_PROFILE = re.compile(r"(?:\d+c\.)?\d+g\.\d+gb(?:[+-][a-z.]+)*")


@dataclass(frozen=True, slots=True)
class GpuProcess:
    """A compute process on a device. In a container, NVML may give the host's pid."""

    pid: int
    used_memory_mib: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """How a GPU is set up; None where the driver does not say."""

    uuid: str
    name: str
    mig_enabled: bool
    sm_clock_max_mhz: int | None
    memory_clock_max_mhz: int | None
    power_limit_w: float | None
    """The limit in force, of the whole board."""
    ecc_enabled: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSample:
    """What a device did at one moment; None where the driver does not say, with the reason."""

    power_w: float | None
    """Of the whole board; from Ampere on the mean of the last second (nvml.h)."""
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    utilisation_percent: int | None
    """Time in the last sample period in which any kernel ran. None under MIG."""
    memory_used_mib: int | None
    throttle_reasons: tuple[str, ...] | None
    """nvidia-smi's words; empty when the clocks run free."""
    energy_j: float | None
    """Since the driver was loaded."""
    unavailable: dict[str, str]
    """Field → why it is None."""


@contextmanager
def open(library: Any = pynvml, host: Host | None = None) -> Iterator["Nvml"]:
    """NVML, initialised; shut down on leaving.

    Raises:
        NvmlMissing, DriverNotLoaded, DriverMismatch, NoPermission, GpuLost, NvmlFailure: it would not start.
    """
    host = host or Host()
    with translated("start NVML", host):
        library.nvmlInit()

    try:
        yield Nvml(library, host)
    finally:
        try:
            library.nvmlShutdown()
        except pynvml.NVMLError:
            pass  # nothing is left to be undone, and what the body raised must not be hidden


@contextmanager
def translated(asked: str, host: Host) -> Iterator[None]:
    """Inside, every NVMLError becomes the GpuError of its code."""
    try:
        yield
    except pynvml.NVMLError as error:
        raise gpu_error(
            word_of(error),
            str(error),
            asked,
            refused_files=host.refused_nvidia_files(),
            kernel_module=host.nvidia_kernel_module(),
        ) from error


def read_machine(host: Host, library: Any = pynvml) -> Machine:
    """What this machine offers. Never raises for a GPU: ``gpu_error`` keeps why none could be read.

    A machine with no library or no driver and no sign of an NVIDIA GPU either has no error: it has no GPU.
    """
    gpus: tuple[Gpu, ...] = ()
    why: GpuError | None = None
    try:
        with open(library, host) as nvml:
            gpus = nvml.gpus()
    except (NvmlMissing, DriverNotLoaded) as error:
        why = error if host.signs_of_nvidia() else None
    except GpuError as error:
        why = error
    else:
        signs = host.signs_of_nvidia()
        if signs and not gpus:
            why = NotFound(
                asked="list the GPUs",
                found=f"the driver is loaded and lists none, though there is {signs[-1]}",
                do="see which driver holds the device (lspci -k) and what dmesg says of it",
            )

    return Machine(cores=host.cores(), memory_mib=host.memory_mib(), gpus=gpus, gpu_error=why)


class Nvml:
    """NVML between its start and its shutdown. Every method raises the GpuError of a code it cannot use.

    Handles are fetched for each question: a change of MIG devices makes old ones stale.
    """

    def __init__(self, library: Any, host: Host) -> None:
        self.library = library
        self.host = host

    def driver(self) -> dict[str, str]:
        """Versions: ``driver_version``, ``nvml_version`` and, where libcuda is present, ``cuda_driver_version``."""
        library = self.library
        with translated("read the driver's version", self.host):
            versions = {
                "driver_version": str(library.nvmlSystemGetDriverVersion()),
                "nvml_version": str(library.nvmlSystemGetNVMLVersion()),
            }

        try:
            number = library.nvmlSystemGetCudaDriverVersion_v2()
        except pynvml.NVMLError:  # LIBRARY_NOT_FOUND here means libcuda.so.1, a part that NVML does without
            return versions

        return versions | {"cuda_driver_version": f"{number // 1000}.{number % 1000 // 10}"}

    def gpus(self) -> tuple[Gpu, ...]:
        """All GPUs that this user may use, with their MIG devices, in NVML's order.

        Raises:
            NoPermission: there are GPUs, and this user may use none of them.
        """
        library = self.library
        with translated("list the GPUs", self.host):
            handles = reachable(library.nvmlDeviceGetCount(), library.nvmlDeviceGetHandleByIndex)

        return tuple(self._gpu(index, handle) for index, handle in handles)

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """Compute processes on a GPU (all of its MIG devices, if the user may see them) or a MIG device.

        Raises:
            NotFound, NoPermission, NotSupported: there is no such device, or it does not tell.
        """
        library = self.library
        with translated(f"list the processes on {uuid}", self.host):
            handle = library.nvmlDeviceGetHandleByUUID(uuid)
            try:
                found = library.nvmlDeviceGetComputeRunningProcesses_v3(handle)
            except pynvml.NVMLError as error:
                if word_of(error) != "FUNCTION_NOT_FOUND":
                    raise

                found = library.nvmlDeviceGetComputeRunningProcesses_v2(handle)  # before R510

        return tuple(GpuProcess(process.pid, _mib_or_none(process.usedGpuMemory)) for process in found)

    def sample(self, uuid: str, fields: Collection[str] | None = None) -> GpuSample:
        """What a GPU does now; of a MIG device only its memory, the rest is shared by the whole GPU.

        Args:
            fields: those to ask; the others are None. None: all.

        Raises:
            NotFound: there is no such device.
            GpuLost: there no longer is.
        """
        library = self.library
        unavailable: dict[str, str] = {}

        def ask(field: str, *calls: Callable[[], Any]) -> Any:
            if fields is not None and field not in fields:
                return None

            if uuid.startswith("MIG-") and field != "memory_used_mib":
                unavailable[field] = "shared by all slices of the GPU: ask the GPU"
                return None

            value, refusal = first_answer(*calls)
            if refusal:
                unavailable[field] = f"NVML answers {refusal}"

            return value

        with translated(f"sample {uuid}", self.host):
            handle = library.nvmlDeviceGetHandleByUUID(uuid)
            sensor = pynvml.NVML_TEMPERATURE_GPU
            return GpuSample(
                power_w=ask("power_w", lambda: library.nvmlDeviceGetPowerUsage(handle) / 1000),
                sm_clock_mhz=ask(
                    "sm_clock_mhz", lambda: library.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM)
                ),
                memory_clock_mhz=ask(
                    "memory_clock_mhz", lambda: library.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_MEM)
                ),
                temperature_c=ask(
                    "temperature_c",
                    lambda: library.nvmlDeviceGetTemperatureV(handle, sensor),
                    lambda: library.nvmlDeviceGetTemperature(handle, sensor),
                ),
                utilisation_percent=ask(
                    "utilisation_percent", lambda: library.nvmlDeviceGetUtilizationRates(handle).gpu
                ),
                memory_used_mib=ask(
                    "memory_used_mib",
                    # v2 leaves out what the driver reserves, v1 counts it as used
                    lambda: library.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2).used >> 20,
                    lambda: library.nvmlDeviceGetMemoryInfo(handle).used >> 20,
                ),
                throttle_reasons=ask(
                    "throttle_reasons",
                    lambda: throttle_reasons(library.nvmlDeviceGetCurrentClocksEventReasons(handle)),
                    lambda: throttle_reasons(library.nvmlDeviceGetCurrentClocksThrottleReasons(handle)),
                ),
                energy_j=ask("energy_j", lambda: library.nvmlDeviceGetTotalEnergyConsumption(handle) / 1000),
                unavailable=unavailable,
            )

    def settings(self, uuid: str) -> GpuSettings:
        """How a GPU is set up.

        Raises:
            NotFound: there is no such GPU.
        """
        library = self.library
        with translated(f"read the settings of {uuid}", self.host):
            handle = library.nvmlDeviceGetHandleByUUID(uuid)
            sm, _ = first_answer(lambda: library.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM))
            memory, _ = first_answer(lambda: library.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM))
            power, _ = first_answer(lambda: library.nvmlDeviceGetEnforcedPowerLimit(handle) / 1000)
            ecc, _ = first_answer(lambda: bool(library.nvmlDeviceGetCurrentEccMode(handle)))
            return GpuSettings(
                uuid=uuid,
                name=library.nvmlDeviceGetName(handle),
                mig_enabled=self._mig_enabled(handle),
                sm_clock_max_mhz=sm,
                memory_clock_max_mhz=memory,
                power_limit_w=power,
                ecc_enabled=ecc,
            )

    def _mig_enabled(self, handle: Any) -> bool:
        """Whether MIG is in force now; False where the GPU or the driver knows no MIG."""
        mode, _ = first_answer(lambda: self.library.nvmlDeviceGetMigMode(handle)[0])
        return bool(mode == pynvml.NVML_DEVICE_MIG_ENABLE)

    def _gpu(self, index: int, handle: Any) -> Gpu:
        library = self.library
        with translated(f"read GPU {index}", self.host):
            gpu = Gpu(
                index=index,
                uuid=library.nvmlDeviceGetUUID(handle),
                name=library.nvmlDeviceGetName(handle),
                memory_mib=self.memory_mib(handle),
                sms=self._sms(handle),
                mig_enabled=self._mig_enabled(handle),
                mig_devices=(),
                cores=self._cores(handle),
                numa_node=self._numa_node(handle),
            )
            return replace(gpu, mig_devices=self._mig_devices(gpu, handle)) if gpu.mig_enabled else gpu

    def _mig_devices(self, gpu: Gpu, handle: Any) -> tuple[MigSlice, ...]:
        library = self.library
        most = library.nvmlDeviceGetMaxMigDeviceCount(handle)
        handles = reachable(most, partial(library.nvmlDeviceGetMigDeviceHandleByIndex, handle))
        devices = [self._mig_device(gpu, handle, mig_handle) for _, mig_handle in handles]
        beside = {
            device.id: tuple(
                other.id
                for other in devices
                if other is not device and other.gpu_instance_id == device.gpu_instance_id
            )
            for device in devices
        }
        return tuple(replace(device, shared_with=beside[device.id]) for device in devices)

    def _mig_device(self, gpu: Gpu, handle: Any, mig_handle: Any) -> MigSlice:
        library = self.library
        gpu_instance = library.nvmlDeviceGetGpuInstanceId(mig_handle)
        compute_instance = library.nvmlDeviceGetComputeInstanceId(mig_handle)
        attributes, _ = first_answer(lambda: library.nvmlDeviceGetAttributes_v2(mig_handle))
        # the rights to see MIG devices and to see GPU instances are apart (/dev/nvidia-caps)
        instance, _ = first_answer(
            lambda: library.nvmlGpuInstanceGetInfo(library.nvmlDeviceGetGpuInstanceById(handle, gpu_instance))
        )
        return MigSlice(
            id=f"gpu{gpu.index}:gi{gpu_instance}:ci{compute_instance}",
            name=profile_name(library.nvmlDeviceGetName(mig_handle), attributes, gpu.memory_mib),
            uuid=library.nvmlDeviceGetUUID(mig_handle),
            gpu_uuid=gpu.uuid,
            gpu_index=gpu.index,
            gpu_name=gpu.name,
            gpu_instance_id=gpu_instance,
            compute_instance_id=compute_instance,
            gi_profile_id=instance.profileId if instance else None,
            placement_start=instance.placement.start if instance else None,
            placement_size=instance.placement.size if instance else None,
            sms=attributes.multiprocessorCount if attributes else None,
            memory_mib=attributes.memorySizeMB if attributes else self.memory_mib(mig_handle),
            cores=gpu.cores,
            numa_node=gpu.numa_node,
        )

    def memory_mib(self, handle: Any) -> int:
        """MiB of a device. Under MIG a plain user may not ask it of the GPU (NO_PERMISSION): then the
        memory of its largest profile, which is 1-2 % less, stands for it."""
        library = self.library
        total, _ = first_answer(lambda: library.nvmlDeviceGetMemoryInfo(handle).total >> 20)
        if total is None:
            total = max((info.memorySizeMB for info in self._gpu_instance_profiles(handle)), default=None)

        return int(library.nvmlDeviceGetMemoryInfo(handle).total >> 20 if total is None else total)

    def _gpu_instance_profiles(self, handle: Any) -> Iterator[Any]:
        """NVML's description of each GPU-instance profile this GPU has."""
        for profile in range(pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT):
            try:
                yield self.library.nvmlDeviceGetGpuInstanceProfileInfo(handle, profile, version=1)
            except pynvml.NVMLError as error:
                if word_of(error) == "INVALID_ARGUMENT":  # this driver's list ends before pynvml's
                    return

                if word_of(error) not in UNANSWERED:
                    raise

    def _sms(self, handle: Any) -> int | None:
        """SMs of a whole GPU, which NVML does not tell: its CUDA cores over the cores of one SM.

        (The largest MIG profile is no measure of it: an A100 has 108 SMs, its 7g profile 98.)
        """
        library = self.library
        answers, _ = first_answer(
            lambda: (
                library.nvmlDeviceGetNumGpuCores(handle),
                library.nvmlDeviceGetCudaComputeCapability(handle),
            )
        )
        if answers is None:
            return None

        cuda_cores, (major, minor) = answers
        per_sm = cuda_cores_per_sm(major, minor)
        return cuda_cores // per_sm if per_sm and cuda_cores % per_sm == 0 else None

    def _cores(self, handle: Any) -> tuple[int, ...]:
        words = -(-self.host.core_count_possible() // 64)
        mask, _ = first_answer(lambda: self.library.nvmlDeviceGetCpuAffinity(handle, words))
        return _set_bits(mask) if mask is not None else ()

    def _numa_node(self, handle: Any) -> int | None:
        """The node of the cores near the GPU. (nvmlDeviceGetNumaNodeId is another thing: the node that the
        GPU's own memory is, on machines such as Grace Hopper.)"""
        library = self.library
        pci, _ = first_answer(lambda: library.nvmlDeviceGetPciInfo(handle))
        address = f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0" if pci else ""
        node = self.host.numa_node_of_pci(address) if pci else None
        if node is not None:
            return node

        scope = pynvml.NVML_AFFINITY_SCOPE_NODE
        mask, _ = first_answer(lambda: library.nvmlDeviceGetMemoryAffinity(handle, 1, scope))
        nodes = _set_bits(mask) if mask is not None else ()
        return nodes[0] if len(nodes) == 1 else None


def profile_name(device_name: str, attributes: Any, gpu_memory_mib: int) -> str:
    """A MIG device's profile: ``1g.10gb``, or ``1c.3g.40gb`` where it is a part of its GPU instance.

    From the driver's name of the device (``NVIDIA A100-SXM4-80GB MIG 1g.10gb``), which carries ``+me`` and
    the like; where it holds none, computed from NVML's device attributes (None: unknown).
    """
    named = _PROFILE.search(device_name)
    if attributes is None:
        return named[0] if named else device_name

    gpu_slices, compute_slices = attributes.gpuInstanceSliceCount, attributes.computeInstanceSliceCount
    name = named[0] if named else computed_name(gpu_slices, attributes.memorySizeMB, gpu_memory_mib)
    return f"{compute_slices}c.{name}" if compute_slices < gpu_slices and "c." not in name else name


def computed_name(compute_slices: int, memory_mib: int, gpu_memory_mib: int, enum: int | None = None) -> str:
    """A profile's name as NVIDIA's tools make it: the gigabytes are the memory in eighths of the GPU, rounded
    up, of the GPU's GB (go-nvlib)."""
    eighths = -(-memory_mib * 8 // gpu_memory_mib)
    gigabytes = int(eighths * -(-gpu_memory_mib // 1024) / 8 + 0.5)
    suffix = "" if enum is None else _SUFFIXES.get(enum, "")
    return f"{compute_slices}g.{gigabytes}gb{suffix}"


def cuda_cores_per_sm(major: int, minor: int) -> int | None:
    """CUDA cores in one SM of a compute capability (the table in helper_cuda.h of NVIDIA's cuda-samples)."""
    if major in (5, 9, 10, 11, 12):
        return 128

    if major == 8:
        return 64 if minor == 0 else 128

    return {(6, 0): 64, (6, 1): 128, (6, 2): 128, (7, 0): 64, (7, 2): 64, (7, 5): 64}.get((major, minor))


def word_of(error: pynvml.NVMLError) -> str:
    return WORDS.get(error.value, f"code {error.value}")


def first_answer(*calls: Callable[[], Any]) -> tuple[Any, str]:
    """What the first call that this driver answers returns; or None and NVML's word for why none did."""
    word = ""
    for call in calls:
        try:
            return call(), ""
        except pynvml.NVMLError as error:
            word = word_of(error)
            if word not in UNANSWERED:
                raise

    return None, word


def reachable(count: int, get: Callable[[int], Any]) -> list[tuple[int, Any]]:
    """(index, handle) of the devices there are below ``count``.

    MIG indices have holes (NOT_FOUND; older drivers INVALID_ARGUMENT), and NVML counts devices that other
    users own (NO_PERMISSION): these are passed over, unless no device is left, which raises the refusal.
    """
    handles: list[tuple[int, Any]] = []
    refusal: pynvml.NVMLError | None = None
    for index in range(count):
        try:
            handles.append((index, get(index)))
        except pynvml.NVMLError as error:
            if word_of(error) == "NO_PERMISSION":
                refusal = error
            elif word_of(error) not in ("NOT_FOUND", "INVALID_ARGUMENT"):
                raise

    if refusal is not None and not handles:
        raise refusal

    return handles


def _set_bits(words: Any) -> tuple[int, ...]:
    """Numbers of the bits set in an array of 64-bit words, lowest first."""
    return tuple(64 * place + bit for place, word in enumerate(words) for bit in range(64) if word >> bit & 1)


def _mib_or_none(used_bytes: int | None) -> int | None:
    return None if used_bytes is None else used_bytes >> 20
