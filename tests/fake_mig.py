"""The MIG functions of a fake pynvml, with pynvml's own signatures, structs and handle types."""

import ctypes
from typing import Any

import pynvml

from tests.boards import COMPUTE_INSTANCES, Profile
from tests.fake_driver import FakeDriver, nvml_function
from tests.gpu_state import ComputeInstance, GpuInstance, GpuState, MigDevice

COMPUTE_PROFILES = {1: 0, 2: 1, 3: 2, 4: 3, 7: 4}
"""Compute slices → NVML_COMPUTE_INSTANCE_PROFILE_…, which is the profile's id too."""

REV1 = 7
"""The 1c of a GPU instance that has one compute slice and two memory slices."""

COMPUTE_ENUMS = 9
"""Those this driver knows; later ones are an INVALID_ARGUMENT."""


class FakeMig(FakeDriver):
    """MIG, as pynvml has it."""

    # The mode ------------------------------------------------------------------------------------------

    @nvml_function
    def nvmlDeviceGetMigMode(self, device: Any) -> list[int]:
        gpu = self._capable(device)
        return [int(gpu.mig), int(gpu.pending)]

    @nvml_function
    def nvmlDeviceSetMigMode(self, device: Any, mode: int) -> int:
        gpu = self._capable(device)
        self._need_rights(to_change=True)
        if mode not in (pynvml.NVML_DEVICE_MIG_DISABLE, pynvml.NVML_DEVICE_MIG_ENABLE):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        return gpu.set_mode(mode == pynvml.NVML_DEVICE_MIG_ENABLE)

    @nvml_function
    def nvmlDeviceGetFieldValues(self, handle: Any, fieldIds: Any) -> Any:
        gpu = self._behind(handle, GpuState)
        values = (pynvml.c_nvmlFieldValue_t * len(fieldIds))()
        for value, field in zip(values, fieldIds, strict=True):
            value.fieldId = field
            known = field == pynvml.NVML_FI_DEV_IS_RESETLESS_MIG_SUPPORTED
            if known and gpu.board.resetless is not None:
                value.valueType = pynvml.NVML_VALUE_TYPE_UNSIGNED_INT
                value.value.uiVal = gpu.board.resetless
            else:
                value.nvmlReturn = pynvml.NVML_ERROR_NOT_SUPPORTED

        return values

    # GPU instances -------------------------------------------------------------------------------------

    @nvml_function
    def nvmlDeviceGetGpuInstanceProfileInfo(self, device: Any, profile: int, version: int = 2) -> Any:
        gpu = self._behind(device, GpuState)
        self._refuse(f"nvmlDeviceGetGpuInstanceProfileInfo{'V' if version == 2 else ''}")
        if profile >= pynvml.NVML_GPU_INSTANCE_PROFILE_COUNT - 1:  # a driver older than this pynvml
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        found = next((one for one in gpu.board.profiles if one.enum == profile), None)
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        kinds = {1: pynvml.c_nvmlGpuInstanceProfileInfo_t, 2: pynvml.c_nvmlGpuInstanceProfileInfo_v2_t}
        info = kinds[version]()
        info.id, info.sliceCount, info.instanceCount = found.id, found.compute_slices, found.most
        info.multiprocessorCount, info.memorySizeMB = found.sms, found.memory_mib
        info.copyEngineCount, info.decoderCount, info.encoderCount = found.engines[:3]
        info.jpegCount, info.ofaCount = found.engines[3:]
        if version == 2:
            info.name = f"MIG {found.name}".encode()

        return info

    @nvml_function
    def nvmlDeviceGetGpuInstancePossiblePlacements(
        self, device: Any, profileId: int, placementsRef: Any, countRef: Any
    ) -> int:
        profile = self._profile(self._behind(device, GpuState), profileId)
        places = [
            pynvml.c_nvmlGpuInstancePlacement_t(start, profile.memory_slices) for start in profile.starts
        ]
        if not placementsRef and self.wants_arrays:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        return _fill(placementsRef, countRef, places)

    @nvml_function
    def nvmlDeviceGetGpuInstanceRemainingCapacity(self, device: Any, profileId: int) -> int:
        gpu = self._behind(device, GpuState)
        return gpu.capacity(self._profile(gpu, profileId))

    @nvml_function
    def nvmlDeviceCreateGpuInstance(self, device: Any, profileId: int) -> Any:
        gpu = self._behind(device, GpuState)
        self._need_rights(to_change=True)
        created = gpu.create_gpu_instance(self._profile(gpu, profileId))
        return self._handle(pynvml.c_nvmlGpuInstance_t, created)

    @nvml_function
    def nvmlDeviceCreateGpuInstanceWithPlacement(self, device: Any, profileId: int, placement: Any) -> Any:
        gpu = self._behind(device, GpuState)
        self._need_rights(to_change=True)
        profile = self._profile(gpu, profileId)
        place = _behind_reference(placement, pynvml.c_nvmlGpuInstancePlacement_t)
        if place.size != profile.memory_slices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        created = gpu.create_gpu_instance(profile, place.start)
        return self._handle(pynvml.c_nvmlGpuInstance_t, created)

    @nvml_function
    def nvmlGpuInstanceDestroy(self, gpuInstance: Any) -> int:
        instance = self._behind(gpuInstance, GpuInstance)
        self._need_rights(to_change=True)
        instance.gpu.destroy_gpu_instance(instance)
        return int(pynvml.NVML_SUCCESS)

    @nvml_function
    def nvmlDeviceGetGpuInstances(
        self, device: Any, profileId: int, gpuInstancesRef: Any, countRef: Any
    ) -> int:
        gpu = self._behind(device, GpuState)
        self._need_rights()
        profile = self._profile(gpu, profileId)
        found = [one for one in gpu.instances if one.profile is profile]
        return _fill(
            gpuInstancesRef, countRef, [self._handle(pynvml.c_nvmlGpuInstance_t, one) for one in found]
        )

    @nvml_function
    def nvmlDeviceGetGpuInstanceById(self, device: Any, gpuInstanceId: int) -> Any:
        gpu = self._behind(device, GpuState)
        self._need_rights()
        for instance in gpu.instances:
            if instance.id == gpuInstanceId:
                return self._handle(pynvml.c_nvmlGpuInstance_t, instance)

        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    @nvml_function
    def nvmlGpuInstanceGetInfo(self, gpuInstance: Any) -> Any:
        instance = self._behind(gpuInstance, GpuInstance)
        self._need_rights()
        info = pynvml.c_nvmlGpuInstanceInfo_t()
        info.device = self._handle(pynvml.c_nvmlDevice_t, instance.gpu)
        info.id, info.profileId = instance.id, instance.profile.id
        info.placement.start, info.placement.size = instance.start, instance.profile.memory_slices
        return info

    # Compute instances ---------------------------------------------------------------------------------

    @nvml_function
    def nvmlGpuInstanceGetComputeInstanceProfileInfo(
        self, device: Any, profile: int, engProfile: int, version: int = 2
    ) -> Any:
        instance = self._behind(device, GpuInstance)
        self._refuse(f"nvmlGpuInstanceGetComputeInstanceProfileInfo{'V' if version == 2 else ''}")
        if profile >= COMPUTE_ENUMS or engProfile != pynvml.NVML_COMPUTE_INSTANCE_ENGINE_PROFILE_SHARED:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        slices = _slices_of(instance.profile, profile)
        kinds = {
            1: pynvml.c_nvmlComputeInstanceProfileInfo_t,
            2: pynvml.c_nvmlComputeInstanceProfileInfo_v2_t,
        }
        info = kinds[version]()
        info.id, info.sliceCount = profile, slices
        info.instanceCount = COMPUTE_INSTANCES[instance.profile.compute_slices][slices]
        info.multiprocessorCount = self._sms(instance, slices)
        copy, decoder, encoder, jpeg, ofa = instance.profile.engines
        info.sharedCopyEngineCount, info.sharedDecoderCount, info.sharedEncoderCount = copy, decoder, encoder
        info.sharedJpegCount, info.sharedOfaCount = jpeg, ofa
        if version == 2:
            info.name = f"MIG {slices}c.{instance.profile.name}".encode()

        return info

    @nvml_function
    def nvmlGpuInstanceGetComputeInstanceRemainingCapacity(self, gpuInstance: Any, profileId: int) -> int:
        instance = self._behind(gpuInstance, GpuInstance)
        return len(instance.free_compute_starts(_slices_of(instance.profile, profileId)))

    @nvml_function
    def nvmlGpuInstanceGetComputeInstancePossiblePlacements(
        self, gpuInstance: Any, profileId: int, placementsRef: Any, countRef: Any
    ) -> int:
        instance = self._behind(gpuInstance, GpuInstance)
        slices = _slices_of(instance.profile, profileId)
        if not placementsRef and self.wants_arrays:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        kind = pynvml.c_nvmlComputeInstancePlacement_t
        return _fill(
            placementsRef, countRef, [kind(start, slices) for start in instance.compute_starts(slices)]
        )

    @nvml_function
    def nvmlGpuInstanceCreateComputeInstance(self, gpuInstance: Any, profileId: int) -> Any:
        instance = self._behind(gpuInstance, GpuInstance)
        self._need_rights(to_change=True)
        created = instance.gpu.create_compute_instance(instance, _slices_of(instance.profile, profileId))
        return self._handle(pynvml.c_nvmlComputeInstance_t, created)

    @nvml_function
    def nvmlGpuInstanceCreateComputeInstanceWithPlacement(
        self, gpuInstance: Any, profileId: int, placement: Any
    ) -> Any:
        instance = self._behind(gpuInstance, GpuInstance)
        self._need_rights(to_change=True)
        slices = _slices_of(instance.profile, profileId)
        place = _behind_reference(placement, pynvml.c_nvmlComputeInstancePlacement_t)
        if place.size != slices:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)

        created = instance.gpu.create_compute_instance(instance, slices, place.start)
        return self._handle(pynvml.c_nvmlComputeInstance_t, created)

    @nvml_function
    def nvmlComputeInstanceDestroy(self, computeInstance: Any) -> int:
        compute = self._behind(computeInstance, ComputeInstance)
        self._need_rights(to_change=True)
        compute.gpu_instance.gpu.destroy_compute_instance(compute)
        return int(pynvml.NVML_SUCCESS)

    @nvml_function
    def nvmlGpuInstanceGetComputeInstances(
        self, gpuInstance: Any, profileId: int, computeInstancesRef: Any, countRef: Any
    ) -> int:
        instance = self._behind(gpuInstance, GpuInstance)
        slices = _slices_of(instance.profile, profileId)
        found = [one for one in instance.compute if one.slices == slices]
        return _fill(
            computeInstancesRef,
            countRef,
            [self._handle(pynvml.c_nvmlComputeInstance_t, one) for one in found],
        )

    @nvml_function
    def nvmlGpuInstanceGetComputeInstanceById(self, gpuInstance: Any, computeInstanceId: int) -> Any:
        for compute in self._behind(gpuInstance, GpuInstance).compute:
            if compute.id == computeInstanceId:
                return self._handle(pynvml.c_nvmlComputeInstance_t, compute)

        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    @nvml_function
    def nvmlComputeInstanceGetInfo_v2(self, computeInstance: Any) -> Any:
        compute = self._behind(computeInstance, ComputeInstance)
        info = pynvml.c_nvmlComputeInstanceInfo_t()
        info.device = self._handle(pynvml.c_nvmlDevice_t, compute.gpu_instance.gpu)
        info.gpuInstance = self._handle(pynvml.c_nvmlGpuInstance_t, compute.gpu_instance)
        info.id, info.profileId = compute.id, _profile_of(compute)
        info.placement.start, info.placement.size = compute.start, compute.slices
        return info

    # MIG devices ---------------------------------------------------------------------------------------

    @nvml_function
    def nvmlDeviceGetMaxMigDeviceCount(self, device: Any) -> int:
        gpu = self._behind(device, GpuState)
        return int(gpu.board.compute_slices) if gpu.mig else 0

    @nvml_function
    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Any, index: int) -> Any:
        found = self._behind(device, GpuState).mig_devices.get(index)
        if found is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

        return self._handle(pynvml.c_nvmlDevice_t, found)

    @nvml_function
    def nvmlDeviceGetGpuInstanceId(self, device: Any) -> int:
        return int(self._behind(device, MigDevice).gpu_instance.id)

    @nvml_function
    def nvmlDeviceGetComputeInstanceId(self, device: Any) -> int:
        return int(self._behind(device, MigDevice).compute_instance.id)

    @nvml_function
    def nvmlDeviceGetAttributes_v2(self, device: Any) -> Any:
        mig = self._behind(device, GpuState, MigDevice)
        if isinstance(mig, GpuState):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        profile, slices = mig.gpu_instance.profile, mig.compute_instance.slices
        attributes = pynvml.c_nvmlDeviceAttributes()
        attributes.multiprocessorCount = self._sms(mig.gpu_instance, slices)
        attributes.gpuInstanceSliceCount = profile.compute_slices
        attributes.computeInstanceSliceCount = slices
        attributes.memorySizeMB = profile.memory_mib
        return attributes

    # The state behind them -----------------------------------------------------------------------------

    def _capable(self, device: Any) -> GpuState:
        gpu = self._behind(device, GpuState)
        if not gpu.board.profiles:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

        return gpu

    def _profile(self, gpu: GpuState, profile_id: int) -> Profile:
        for profile in gpu.board.profiles:
            if profile.id == profile_id:
                return profile

        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    def _sms(self, instance: GpuInstance, slices: int) -> int:
        if slices == instance.profile.compute_slices:
            return instance.profile.sms

        return slices * min(one.sms for one in instance.gpu.board.profiles)


def _is_double(profile: Profile) -> bool:
    return profile.compute_slices == 1 and profile.memory_slices == 2


def _slices_of(profile: Profile, compute_profile: int) -> int:
    """Compute slices of a compute instance profile; NOT_SUPPORTED where this GPU instance has none such."""
    if _is_double(profile):
        sizes = {REV1: 1}
    else:
        sizes = {COMPUTE_PROFILES[size]: size for size in COMPUTE_INSTANCES[profile.compute_slices]}

    if compute_profile not in sizes:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)

    return sizes[compute_profile]


def _profile_of(compute: ComputeInstance) -> int:
    return REV1 if _is_double(compute.gpu_instance.profile) else COMPUTE_PROFILES[compute.slices]


def _behind_reference(reference: Any, kind: type) -> Any:
    """What ``byref(x)`` or a pointer points at; any other argument is none that C could take."""
    found = getattr(reference, "_obj", None)
    if found is None and isinstance(reference, ctypes._Pointer) and reference:
        found = reference.contents

    if not isinstance(found, kind):
        raise ctypes.ArgumentError(f"expected a reference to {kind.__name__}, not {reference!r}")

    return found


def _fill(array: Any, count_reference: Any, found: list[Any]) -> int:
    """Write to an array of ``count``, and to ``count``, as C does; without an array only the count."""
    count = _behind_reference(count_reference, ctypes.c_uint)
    if array:
        if count.value < len(found):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)

        for place, one in enumerate(found):
            array[place] = one

    count.value = len(found)
    return int(pynvml.NVML_SUCCESS)
