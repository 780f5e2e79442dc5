"""MIG through NVML: reads profiles and instances, creates and destroys instances, sets the mode.

Nothing is decided here, and nothing tried again: one question or one change a call. Only calls and argument
types that nvml.h documents are used. Handles are fetched anew for each call, as a change makes old ones stale.
"""

import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pynvml

from scheduler.capabilities import explained, lacking
from scheduler.errors import NotSupported
from scheduler.geometry import (
    ComputeInstance,
    ComputePlacement,
    ComputeProfile,
    Engines,
    Geometry,
    GpuInstance,
    GpuInstanceProfile,
    GpuMig,
    MemoryPlacement,
)
from scheduler.nvml import (
    UNANSWERED,
    WORDS,
    GpuProcess,
    Nvml,
    computed_name,
    first_answer,
    reachable,
    translated,
    word_of,
)

_ENUM_LIMIT = 64
"""Profile enums are asked for up to the driver's last, which may be later than this pynvml's."""

_PLACEMENT_LIMIT = 64
"""Room for placements where a driver does not tell their count; no profile has as many."""

_SHARED = pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED


class NvmlMig:
    """MIG on the GPUs of an open Nvml. Every method raises the GpuError of a code it cannot use."""

    def __init__(self, nvml: Nvml) -> None:
        self._nvml = nvml
        self._library = nvml.library
        self._host = nvml.host
        self._geometries: dict[str, Geometry] = {}

    # Reading -----------------------------------------------------------------------------------------

    def gpus(self) -> tuple[GpuMig, ...]:
        """All GPUs that this user may reach, in NVML's order.

        Raises:
            NoPermission: there are GPUs, and this user may use none of them.
        """
        library = self._library
        with translated("read MIG of the GPUs", self._host):
            handles = reachable(library.nvmlDeviceGetCount(), library.nvmlDeviceGetHandleByIndex)
            return tuple(self._gpu(index, handle) for index, handle in handles)

    def gpu(self, uuid: str) -> GpuMig:
        """One GPU.

        Raises:
            NotFound: there is no such GPU.
        """
        with translated(f"read MIG of {uuid}", self._host):
            handle = self._gpu_handle(uuid)
            return self._gpu(self._library.nvmlDeviceGetIndex(handle), handle)

    def free(self, uuid: str) -> dict[int, int]:
        """Profile id → how many more GPU instances of it fit now; empty where the driver does not say."""
        library = self._library
        with translated(f"read what still fits on {uuid}", self._host):
            handle = self._gpu_handle(uuid)
            room: dict[int, int] = {}
            for _, info in self._profile_infos(handle):
                more, refusal = first_answer(
                    partial(library.nvmlDeviceGetGpuInstanceRemainingCapacity, handle, info.id)
                )
                if not refusal:
                    room[info.id] = more

            return room

    def compute_profiles(self, uuid: str, gpu_instance_id: int) -> tuple[ComputeProfile, ...]:
        """What compute instances a GPU instance can have, in the order of NVML's enum.

        Raises:
            NotFound: there is no such GPU instance.
            NoPermission: this user may not see GPU instances.
        """
        asked = f"read the compute instance profiles of GPU instance {gpu_instance_id} on {uuid}"
        with explained("monitor", self._host.root), translated(asked, self._host):
            instance = self._gpu_instance_handle(uuid, gpu_instance_id)
            return tuple(self._compute_profile(instance, info) for info in self._compute_infos(instance))

    def processes(self, uuid: str) -> tuple[GpuProcess, ...]:
        """Compute processes on a GPU or a MIG device, as ``Nvml.processes`` tells them."""
        return self._nvml.processes(uuid)

    # Changing ----------------------------------------------------------------------------------------

    def create_gpu_instance(self, uuid: str, profile_id: int, placement: MemoryPlacement) -> int:
        """Create a GPU instance at a placement; its id.

        Raises:
            InsufficientResources: the placement is occupied, or the profile used up.
            InvalidRequest: the profile has no such placement.
            NotSupported: MIG is not in force, or the GPU has no such profile.
            NoPermission: this user may not change MIG.
        """
        library = self._library
        asked = (
            f"create a GPU instance of profile {profile_id} at {placement.start}:{placement.size} on {uuid}"
        )
        with explained("config", self._host.root), translated(asked, self._host):
            handle = self._gpu_handle(uuid)
            place = pynvml.c_nvmlGpuInstancePlacement_t(placement.start, placement.size)
            created = library.nvmlDeviceCreateGpuInstanceWithPlacement(
                handle, profile_id, ctypes.byref(place)
            )
            return int(library.nvmlGpuInstanceGetInfo(created).id)

    def destroy_gpu_instance(self, uuid: str, gpu_instance_id: int) -> None:
        """Destroy a GPU instance that has no compute instance left.

        Raises:
            InstanceInUse: it still has one.
            NotFound: there is no such GPU instance.
            NoPermission: this user may not change MIG.
        """
        asked = f"destroy GPU instance {gpu_instance_id} on {uuid}"
        with explained("config", self._host.root), translated(asked, self._host):
            self._library.nvmlGpuInstanceDestroy(self._gpu_instance_handle(uuid, gpu_instance_id))

    def create_compute_instance(self, uuid: str, gpu_instance_id: int, placement: ComputePlacement) -> int:
        """Create a compute instance at a placement; its id.

        A driver before R525 takes no placement: what it makes is destroyed again where it lies elsewhere.

        Raises:
            InsufficientResources: the placement is occupied.
            InvalidRequest: the profile has no such placement.
            NotSupported: no compute instance of this GPU instance has this size, or the driver takes no
                placement and chose another.
            NotFound: there is no such GPU instance.
            NoPermission: this user may not change MIG.
        """
        library = self._library
        asked = (
            f"create a compute instance at {placement.start}:{placement.size} in GPU instance {gpu_instance_id} "
            f"on {uuid}"
        )
        with explained("config", self._host.root), translated(asked, self._host):
            instance = self._gpu_instance_handle(uuid, gpu_instance_id)
            fitting = [info for info in self._compute_infos(instance) if info.sliceCount == placement.size]
            if not fitting:
                raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

            place = pynvml.c_nvmlComputeInstancePlacement_t(placement.start, placement.size)
            profile_id = fitting[0].id
            try:
                created = library.nvmlGpuInstanceCreateComputeInstanceWithPlacement(
                    instance, profile_id, ctypes.byref(place)
                )
            except pynvml.NVMLError as error:
                if word_of(error) != "FUNCTION_NOT_FOUND":
                    raise

                created = library.nvmlGpuInstanceCreateComputeInstance(instance, profile_id)

            info = library.nvmlComputeInstanceGetInfo_v2(created)
            found = ComputePlacement(info.placement.start, info.placement.size)
            if found != placement:
                library.nvmlComputeInstanceDestroy(created)

        if found != placement:
            raise NotSupported(
                asked=asked,
                found=f"the driver placed it at {found.start}:{found.size}; it was destroyed again",
                do="update the driver to R525 or later, which takes the placement of a compute instance",
            )

        return int(info.id)

    def destroy_compute_instance(self, uuid: str, gpu_instance_id: int, compute_instance_id: int) -> None:
        """Destroy a compute instance that no process uses.

        Raises:
            InstanceInUse: a process uses it.
            NotFound: there is no such GPU or compute instance.
            NoPermission: this user may not change MIG.
        """
        library = self._library
        asked = f"destroy compute instance {compute_instance_id} of GPU instance {gpu_instance_id} on {uuid}"
        with explained("config", self._host.root), translated(asked, self._host):
            instance = self._gpu_instance_handle(uuid, gpu_instance_id)
            compute = library.nvmlGpuInstanceGetComputeInstanceById(instance, compute_instance_id)
            library.nvmlComputeInstanceDestroy(compute)

    def set_mode(self, uuid: str, enabled: bool) -> str:
        """Ask for MIG mode on or off; NVML's word for whether the GPU took it up.

        ``SUCCESS``: in force now. ``IN_USE``, ``RESET_REQUIRED`` and the like: why it is not; whether it is
        pending is what reading the GPU again tells.

        Raises:
            NoPermission, NotSupported, NotFound: NVML refused the request itself.
        """
        mode = pynvml.NVML_DEVICE_MIG_ENABLE if enabled else pynvml.NVML_DEVICE_MIG_DISABLE
        asked = f"{'enable' if enabled else 'disable'} MIG on {uuid}"
        with explained("mode", self._host.root), translated(asked, self._host):
            status = self._library.nvmlDeviceSetMigMode(self._gpu_handle(uuid), mode)

        return "SUCCESS" if status == pynvml.NVML_SUCCESS else WORDS.get(status, f"code {status}")

    # Handles -----------------------------------------------------------------------------------------

    def _gpu_handle(self, uuid: str) -> Any:
        if uuid.startswith("MIG-"):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

        return self._library.nvmlDeviceGetHandleByUUID(uuid)

    def _gpu_instance_handle(self, uuid: str, gpu_instance_id: int) -> Any:
        return self._library.nvmlDeviceGetGpuInstanceById(self._gpu_handle(uuid), gpu_instance_id)

    # A GPU -------------------------------------------------------------------------------------------

    def _gpu(self, index: int, handle: Any) -> GpuMig:
        library = self._library
        uuid = library.nvmlDeviceGetUUID(handle)
        modes, _ = first_answer(lambda: library.nvmlDeviceGetMigMode(handle))
        enabled, pending = (mode == pynvml.NVML_DEVICE_MIG_ENABLE for mode in modes or (0, 0))
        pci, _ = first_answer(lambda: library.nvmlDeviceGetPciInfo(handle))
        minor, _ = first_answer(lambda: library.nvmlDeviceGetMinorNumber(handle))
        instances, refusal = first_answer(lambda: self._instances(handle)) if enabled else ((), "")
        why = lacking("monitor", self._host.root) if refusal == "NO_PERMISSION" else ""
        return GpuMig(
            index=index,
            uuid=uuid,
            name=library.nvmlDeviceGetName(handle),
            pci_device_id=pci.pciDeviceId if pci else 0,
            pci_subsystem_id=pci.pciSubSystemId if pci else None,
            pci_address=f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0" if pci else "",
            minor=minor,
            capable=modes is not None,
            enabled=enabled,
            pending=pending,
            resetless=self._resetless(handle) if modes is not None else None,
            geometry=self._geometry(uuid, handle) if modes is not None else None,
            instances=instances or (),
            instances_error=f"NVML answers {refusal} when asked for the GPU instances{why}"
            if refusal
            else "",
        )

    def _resetless(self, handle: Any) -> bool | None:
        """Field 184: some drivers know none of it, some refuse it within the answer."""
        library, field = self._library, pynvml.NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED
        try:
            values, _ = first_answer(lambda: library.nvmlDeviceGetFieldValues(handle, [field]))
        except pynvml.NVMLError as error:
            if word_of(error) != "INVALID_ARGUMENT":
                raise

            return None

        if values is None or values[0].nvmlReturn != pynvml.NVML_SUCCESS:
            return None

        return bool(values[0].value.uiVal)

    # Profiles ----------------------------------------------------------------------------------------

    def _geometry(self, uuid: str, handle: Any) -> Geometry | None:
        """The profiles that have a place on this GPU, asked for once; None where the driver does not tell."""
        if uuid not in self._geometries:
            library = self._library
            profiles = [self._profile(handle, enum, info) for enum, info in self._profile_infos(handle)]
            placeable = tuple(each for each in profiles if each.placements)
            if not placeable:
                return None

            self._geometries[uuid] = Geometry(
                gpu_name=library.nvmlDeviceGetName(handle),
                profiles=placeable,
                source=f"driver {library.nvmlSystemGetDriverVersion()}",
            )

        return self._geometries[uuid]

    def _profile(self, handle: Any, enum: int, info: Any) -> GpuInstanceProfile:
        library = self._library
        found = _placements(
            lambda array, count: library.nvmlDeviceGetGpuInstancePossiblePlacements(
                handle, info.id, array, count
            ),
            pynvml.c_nvmlGpuInstancePlacement_t,
        )
        named = getattr(info, "name", "").removeprefix("MIG ")  # only the later struct has one
        return GpuInstanceProfile(
            name=named or self._computed_name(handle, enum, info),
            id=info.id,
            enum=enum,
            compute_slices=info.sliceCount,
            placements=tuple(sorted(MemoryPlacement(start, size) for start, size in found)),
            most=info.instanceCount,
            memory_mib=info.memorySizeMB,
            sms=info.multiprocessorCount,
            engines=Engines(
                copy=info.copyEngineCount,
                decoder=info.decoderCount,
                encoder=info.encoderCount,
                jpeg=info.jpegCount,
                ofa=info.ofaCount,
            ),
        )

    def _computed_name(self, handle: Any, enum: int, info: Any) -> str:
        return computed_name(info.sliceCount, info.memorySizeMB, self._nvml.memory_mib(handle), enum)

    def _profile_infos(self, handle: Any) -> Iterator[tuple[int, Any]]:
        """(enum, NVML's description) of each GPU instance profile of this GPU.

        The second version of the struct holds the name; drivers before R510 have the first alone. (The third
        came back without a name from driver 580 on an H200.)
        """
        library = self._library

        def describe(enum: int) -> Any:
            try:
                return library.nvmlDeviceGetGpuInstanceProfileInfo(handle, enum, version=2)
            except pynvml.NVMLError as error:
                if word_of(error) not in ("FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH"):
                    raise

            return library.nvmlDeviceGetGpuInstanceProfileInfo(handle, enum, version=1)

        return _described(describe, pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT)

    def _compute_infos(self, instance: Any) -> list[Any]:
        """NVML's description of each compute instance profile of a GPU instance.

        Where two have one size (``7_SLICE`` and ``7_SLICE_NVL``) the plain one comes first.
        """

        def describe(enum: int) -> Any:
            return self._library.nvmlGpuInstanceGetComputeInstanceProfileInfo(
                instance, enum, _SHARED, version=1
            )

        found = [info for _, info in _described(describe, pynvml.NVML_COMPUTE_INSTANCE_PROFILE_COUNT)]
        return found or [describe(0)]  # each has one at least: if none is told, this raises why

    def _compute_profile(self, instance: Any, info: Any) -> ComputeProfile:
        library = self._library
        more, _ = first_answer(
            lambda: library.nvmlGpuInstanceGetComputeInstanceRemainingCapacity(instance, info.id)
        )
        found = _placements(
            lambda array, count: library.nvmlGpuInstanceGetComputeInstancePossiblePlacements(
                instance, info.id, array, count
            ),
            pynvml.c_nvmlComputeInstancePlacement_t,
        )
        return ComputeProfile(
            size=info.sliceCount,
            id=info.id,
            most=info.instanceCount,
            free=more,
            sms=info.multiprocessorCount,
            placements=tuple(sorted(ComputePlacement(start, size) for start, size in found)),
        )

    # Instances ---------------------------------------------------------------------------------------

    def _instances(self, handle: Any) -> tuple[GpuInstance, ...]:
        library = self._library
        devices = self._mig_devices(handle)
        instances = []
        for _, profile in self._profile_infos(handle):
            found = (pynvml.c_nvmlGpuInstance_t * profile.instanceCount)()
            count = ctypes.c_uint(profile.instanceCount)
            library.nvmlDeviceGetGpuInstances(handle, profile.id, found, ctypes.byref(count))
            instances += [self._gpu_instance(one, devices) for one in found[: count.value]]

        return tuple(sorted(instances, key=lambda each: each.placement))

    def _gpu_instance(self, instance: Any, devices: dict[tuple[int, int], "_MigDevice"]) -> GpuInstance:
        library = self._library
        info = library.nvmlGpuInstanceGetInfo(instance)
        compute = []
        for profile in self._compute_infos(instance):
            found = (pynvml.c_nvmlComputeInstance_t * profile.instanceCount)()
            count = ctypes.c_uint(profile.instanceCount)
            library.nvmlGpuInstanceGetComputeInstances(instance, profile.id, found, ctypes.byref(count))
            compute += [library.nvmlComputeInstanceGetInfo_v2(one) for one in found[: count.value]]

        return GpuInstance(
            id=info.id,
            profile_id=info.profileId,
            placement=MemoryPlacement(info.placement.start, info.placement.size),
            compute=tuple(
                sorted(
                    (_compute_instance(one, devices.get((info.id, one.id))) for one in compute),
                    key=lambda each: each.placement,
                )
            ),
        )

    def _mig_devices(self, handle: Any) -> dict[tuple[int, int], "_MigDevice"]:
        """(GPU instance id, compute instance id) → the MIG device, of those that this user may see."""
        library = self._library
        most, _ = first_answer(lambda: library.nvmlDeviceGetMaxMigDeviceCount(handle))
        devices = {}
        for index in range(most or 0):
            try:
                device = library.nvmlDeviceGetMigDeviceHandleByIndex(handle, index)
            except pynvml.NVMLError as error:
                if word_of(error) not in ("NOT_FOUND", "INVALID_ARGUMENT", "NO_PERMISSION"):
                    raise

                continue

            key = library.nvmlDeviceGetGpuInstanceId(device), library.nvmlDeviceGetComputeInstanceId(device)
            attributes, _ = first_answer(partial(library.nvmlDeviceGetAttributes_v2, device))
            sms = attributes.multiprocessorCount if attributes else None
            devices[key] = index, str(library.nvmlDeviceGetUUID(device)), sms

        return devices


_MigDevice = tuple[int, str, int | None]
"""Index, UUID, SMs."""


def _compute_instance(info: Any, device: _MigDevice | None) -> ComputeInstance:
    index, uuid, sms = device or (None, None, None)
    return ComputeInstance(
        id=info.id,
        placement=ComputePlacement(info.placement.start, info.placement.size),
        uuid=uuid,
        mig_index=index,
        sms=sms,
    )


def _described(describe: Callable[[int], Any], known: int) -> Iterator[tuple[int, Any]]:
    """(enum, description) of each profile there is; ``known`` is how many enums this pynvml has."""
    for enum in range(_ENUM_LIMIT):
        try:
            yield enum, describe(enum)
        except pynvml.NVMLError as error:
            word = word_of(error)
            if word == "INVALID_ARGUMENT":  # past the driver's last; or one in between that it does not know
                if enum >= known:
                    return

            elif word not in UNANSWERED:
                raise


def _placements(ask: Callable[[Any, Any], Any], kind: Any) -> list[tuple[int, int]]:
    """(start, size) of each placement; empty where the driver does not tell them.

    ``ask`` is called without an array to learn the count, then with one of that length. A driver that wants
    an array at once gets a long one.
    """
    count = ctypes.c_uint(0)
    try:
        _, refusal = first_answer(lambda: ask(None, ctypes.byref(count)))
    except pynvml.NVMLError as error:
        if word_of(error) not in ("INVALID_ARGUMENT", "INSUFFICIENT_SIZE"):
            raise

        count.value, refusal = _PLACEMENT_LIMIT, ""

    if refusal or not count.value:
        return []

    array = (kind * count.value)()
    ask(array, ctypes.byref(count))
    return [(place.start, place.size) for place in array[: count.value]]
