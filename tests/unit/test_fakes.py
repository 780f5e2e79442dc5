"""The fake refuses what the driver refuses, and has pynvml's own signatures."""

import ctypes
import inspect

import pynvml
import pytest

from tests.boards import A30, A100_80, H100, T4, Board
from tests.fake_library import loaded
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance, uuid_of

PROCESS = 4321

FAKED = sorted(name for name in dir(FakeGpus) if name.startswith("nvml"))


def machine(*instances: Instance, board: Board = A100_80):
    return FakeGpus(FakeGpu(board=board, mig=True, instances=instances))


@pytest.mark.parametrize("name", FAKED)
def test_signatures_are_pynvmls(name: str):
    real = inspect.signature(getattr(pynvml, name)).parameters
    fake = inspect.signature(getattr(FakeGpus(), name)).parameters
    assert list(fake) == list(real)
    assert [one.default for one in fake.values()] == [one.default for one in real.values()]


@pytest.mark.parametrize(
    "instances",
    [
        [Instance("3g.40gb", 0), Instance("1g.10gb", 3)],  # 3g occupies four memory slices
        [Instance("7g.80gb", 0), Instance("1g.10gb", 0)],
        [Instance("1g.10gb+me", 0), Instance("1g.10gb+me", 1)],  # one media extension a GPU
        [Instance("1g.20gb", 6), Instance("1g.10gb", 6)],
        [Instance("3g.40gb", 0, (2, 2))],
        [Instance("3g.40gb", 0, (2, 1, 1))],
    ],
)
def test_what_does_not_fit_is_refused(instances: list[Instance]):
    with pytest.raises(pynvml.NVMLError_InsufficientResources):
        machine(*instances)


def test_a_start_that_the_profile_does_not_have_is_refused():
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        machine(Instance("2g.20gb", 1))

    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        machine(Instance("1g.10gb", 7))


def test_instances_need_mig():
    with pytest.raises(pynvml.NVMLError_NotSupported):
        FakeGpus(FakeGpu(board=A100_80, instances=(Instance("1g.10gb", 0),)))


@pytest.mark.parametrize(
    "instances",
    [
        [Instance("4g.40gb", 0), Instance("3g.40gb", 4)],
        [Instance("4g.40gb", 0), Instance("2g.20gb", 4), Instance("1g.10gb", 6)],
        [Instance("1g.20gb", 0), Instance("1g.20gb", 2), Instance("1g.20gb", 4), Instance("1g.20gb", 6)],
        [Instance("7g.80gb", 0, (3, 2, 2))],
    ],
)
def test_what_fits_fits(instances: list[Instance]):
    machine(*instances)


def test_an_a30_has_four_slices():
    machine(*(Instance("1g.6gb", start) for start in range(4)), board=A30)
    with pytest.raises(pynvml.NVMLError_InsufficientResources):
        machine(Instance("4g.24gb", 0), Instance("1g.6gb", 3), board=A30)


def test_a_handle_of_another_kind_is_an_invalid_argument():
    library = machine(Instance("1g.10gb", 0))
    library.nvmlInit()
    gpu = library.nvmlDeviceGetHandleByIndex(0)
    device = library.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        library.nvmlDeviceGetPowerUsage(device)

    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        library.nvmlDeviceGetGpuInstanceId(gpu)


def test_nothing_answers_before_init_or_after_shutdown():
    library = machine()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        library.nvmlDeviceGetCount()

    library.nvmlInit()
    assert library.nvmlDeviceGetCount() == 1
    library.nvmlShutdown()
    with pytest.raises(pynvml.NVMLError_Uninitialized):
        library.nvmlDeviceGetCount()


# Creating and destroying -----------------------------------------------------------------------------


def started(library: FakeGpus):
    """(library, handle of its first GPU), after nvmlInit."""
    library.nvmlInit()
    return library, library.nvmlDeviceGetHandleByIndex(0)


def created(*profiles: int) -> list[int]:
    """Memory slices at which an empty A100 puts GPU instances of these profiles, left to its own choice."""
    library, gpu = started(machine())
    instances = [library.nvmlDeviceCreateGpuInstance(gpu, profile) for profile in profiles]
    return [library.nvmlGpuInstanceGetInfo(one).placement.start for one in instances]


def test_the_drivers_own_placement_depends_on_the_order():
    assert created(9, 19, 14, 19) == [4, 3, 0, 2]
    with pytest.raises(pynvml.NVMLError_InsufficientResources):
        created(19, 19, 14, 9)


def test_what_is_left_is_what_can_be_created():
    for profile in (19, 20, 15, 14, 9, 5, 0):
        library, gpu = started(machine(Instance("2g.20gb", 2), Instance("1g.10gb", 6)))
        left = library.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu, profile)
        for _ in range(left):
            library.nvmlDeviceCreateGpuInstance(gpu, profile)

        assert library.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu, profile) == 0
        with pytest.raises(pynvml.NVMLError_InsufficientResources):
            library.nvmlDeviceCreateGpuInstance(gpu, profile)


def test_an_a30_has_one_media_extension_whatever_the_profile():
    library, gpu = started(machine(Instance("1g.6gb+me", 0), board=A30))
    with pytest.raises(pynvml.NVMLError_InsufficientResources):
        library.nvmlDeviceCreateGpuInstance(gpu, 6)


def test_gpu_instances_go_after_their_compute_instances_and_these_after_their_processes():
    library, gpu = started(machine(Instance("1g.10gb", 3, processes=((PROCESS, None),))))
    instance = library.nvmlDeviceGetGpuInstanceById(gpu, 7)
    compute = library.nvmlGpuInstanceGetComputeInstanceById(instance, 0)
    device = library.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    for destroy, what in (
        (library.nvmlGpuInstanceDestroy, instance),
        (library.nvmlComputeInstanceDestroy, compute),
    ):
        with pytest.raises(pynvml.NVMLError_InUse):
            destroy(what)

    library.end(PROCESS)
    library.nvmlComputeInstanceDestroy(compute)
    library.nvmlGpuInstanceDestroy(instance)
    with pytest.raises(pynvml.NVMLError_NotFound):
        library.nvmlDeviceGetUUID(device)

    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        library.nvmlGpuInstanceGetInfo(instance)

    with pytest.raises(pynvml.NVMLError_InvalidArgument):
        library.nvmlComputeInstanceGetInfo_v2(compute)

    with pytest.raises(pynvml.NVMLError_NotFound):
        library.nvmlDeviceGetGpuInstanceById(gpu, 7)


def test_a_process_that_leaves_is_in_use_until_then():
    library, gpu = started(machine(Instance("1g.10gb", 0)))
    device = library.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    library.run(library.nvmlDeviceGetUUID(device), PROCESS, leaves_after=2)
    compute = library.nvmlGpuInstanceGetComputeInstanceById(library.nvmlDeviceGetGpuInstanceById(gpu, 7), 0)
    for _ in range(2):
        with pytest.raises(pynvml.NVMLError_InUse):
            library.nvmlComputeInstanceDestroy(compute)

    library.nvmlComputeInstanceDestroy(compute)
    assert library.nvmlDeviceGetComputeRunningProcesses_v3(gpu) == []


@pytest.mark.parametrize("fresh", [False, True])
def test_ids_are_used_again_and_uuids_as_asked(fresh: bool):
    library, gpu = started(FakeGpus(FakeGpu(board=A100_80, mig=True), fresh_uuids=fresh))
    seen = []
    for _ in range(2):
        instance = library.nvmlDeviceCreateGpuInstance(gpu, 19)
        compute = library.nvmlGpuInstanceCreateComputeInstance(instance, 0)
        device = library.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
        seen.append((library.nvmlDeviceGetGpuInstanceId(device), library.nvmlDeviceGetUUID(device)))
        library.nvmlComputeInstanceDestroy(compute)
        library.nvmlGpuInstanceDestroy(instance)

    assert seen[0][0] == seen[1][0]
    assert (seen[0][1] != seen[1][1]) == fresh


def test_mig_indices_have_holes_where_something_was_destroyed():
    library, gpu = started(machine(*(Instance("1g.10gb", start) for start in range(3))))
    instance = library.nvmlDeviceGetGpuInstanceById(gpu, 8)
    library.nvmlComputeInstanceDestroy(library.nvmlGpuInstanceGetComputeInstanceById(instance, 0))
    with pytest.raises(pynvml.NVMLError_NotFound):
        library.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 1)

    assert library.nvmlDeviceGetGpuInstanceId(library.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 2)) == 9


@pytest.mark.parametrize("rights", [{"privileged": False}, {"may_change": False}])
def test_who_may_not_change_mig_changes_nothing(rights: dict[str, bool]):
    library, gpu = started(FakeGpus(FakeGpu(board=H100, mig=True), **rights))
    with pytest.raises(pynvml.NVMLError_NoPermission):
        library.nvmlDeviceCreateGpuInstance(gpu, 19)

    with pytest.raises(pynvml.NVMLError_NoPermission):
        library.nvmlDeviceSetMigMode(gpu, 0)

    assert library.nvmlDeviceGetMigMode(gpu) == [1, 1]
    assert library.changes == ["nvmlDeviceCreateGpuInstance", "nvmlDeviceSetMigMode"]


# The mode --------------------------------------------------------------------------------------------


def test_hopper_takes_the_mode_up_at_once_and_ampere_at_a_reset():
    library, gpu = started(FakeGpus(FakeGpu(board=H100), FakeGpu(board=A100_80)))
    ampere = library.nvmlDeviceGetHandleByIndex(1)
    assert library.nvmlDeviceSetMigMode(gpu, 1) == pynvml.NVML_SUCCESS
    assert library.nvmlDeviceGetMigMode(gpu) == [1, 1]
    assert library.nvmlDeviceSetMigMode(ampere, 1) == pynvml.NVML_ERROR_RESET_REQUIRED
    assert library.nvmlDeviceGetMigMode(ampere) == [0, 1]
    library.reset(1)
    assert library.nvmlDeviceGetMigMode(ampere) == [1, 1]


@pytest.mark.parametrize(("board", "pending"), [(H100, 0), (A100_80, 1)])
def test_a_gpu_in_use_does_not_take_the_mode_up(board: Board, pending: int):
    library, gpu = started(FakeGpus(FakeGpu(board=board, held=True)))
    library.run(uuid_of("gpu0"), PROCESS)
    for _ in range(2):  # for the process, then for the service
        assert library.nvmlDeviceSetMigMode(gpu, 1) == pynvml.NVML_ERROR_IN_USE
        assert library.nvmlDeviceGetMigMode(gpu) == [0, pending]
        with pytest.raises(pynvml.NVMLError_InUse):
            library.reset(0)

        library.end(PROCESS)


def test_instances_are_in_the_way_of_disabling_and_do_not_survive_a_reset():
    library, gpu = started(machine(Instance("3g.40gb", 0), board=H100))
    with pytest.raises(pynvml.NVMLError_InUse):
        library.nvmlDeviceSetMigMode(gpu, 0)

    assert library.nvmlDeviceGetMigMode(gpu) == [1, 1]
    device = library.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    library.reset(0)
    with pytest.raises(pynvml.NVMLError_NotFound):
        library.nvmlDeviceGetName(device)

    assert library.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu, 0) == 1


def test_a_pending_mode_can_be_taken_back():
    library, gpu = started(machine())
    assert library.nvmlDeviceSetMigMode(gpu, 0) == pynvml.NVML_ERROR_RESET_REQUIRED
    assert library.nvmlDeviceSetMigMode(gpu, 1) == pynvml.NVML_SUCCESS
    assert library.nvmlDeviceGetMigMode(gpu) == [1, 1]


def test_a_gpu_without_mig_has_no_mode():
    library, gpu = started(FakeGpus(FakeGpu(board=T4)))
    with pytest.raises(pynvml.NVMLError_NotSupported):
        library.nvmlDeviceSetMigMode(gpu, 1)


# Failing, and the C interface ------------------------------------------------------------------------


def test_a_hook_fails_calls_by_name_and_leaves_the_rest():
    library = machine()
    library.failing = lambda name: (
        pynvml.NVML_ERROR_UNKNOWN if name == "nvmlDeviceCreateGpuInstance" else None
    )
    library, gpu = started(library)
    with pytest.raises(pynvml.NVMLError_Unknown):
        library.nvmlDeviceCreateGpuInstance(gpu, 19)

    assert library.nvmlDeviceGetGpuInstanceRemainingCapacity(gpu, 19) == 7


def test_the_library_takes_the_headers_types_and_no_others():
    with loaded(machine(Instance("1g.10gb", 0))) as nvml:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByIndex(0)
        instance = nvml.nvmlDeviceGetGpuInstanceById(gpu, 7)
        with pytest.raises(ctypes.ArgumentError):
            nvml.nvmlGpuInstanceDestroy(gpu)

        with pytest.raises(ctypes.ArgumentError):
            nvml.nvmlDeviceCreateGpuInstanceWithPlacement(gpu, 19, (1, 1))

        with pytest.raises(ctypes.ArgumentError):
            nvml.nvmlGpuInstanceGetComputeInstances(instance, 0, None, 7)

        assert nvml.nvmlGpuInstanceGetInfo(instance).id == 7
        nvml.nvmlShutdown()


def test_a_call_that_came_later_than_the_driver_is_missing_from_the_library():
    with loaded(FakeGpus(FakeGpu(board=A100_80), driver="470.57.02")) as nvml:
        nvml.nvmlInit()
        gpu = nvml.nvmlDeviceGetHandleByIndex(0)
        assert nvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, 0, version=1).id == 19
        with pytest.raises(pynvml.NVMLError_FunctionNotFound):
            nvml.nvmlDeviceGetGpuInstanceProfileInfo(gpu, 0, version=2)

        nvml.nvmlShutdown()


def test_the_library_that_was_loaded_before_is_back():
    before = pynvml.nvmlLib
    with loaded(machine()) as nvml:
        nvml.nvmlInit()
        assert nvml.nvmlDeviceGetCount() == 1
        nvml.nvmlShutdown()

    assert pynvml.nvmlLib is before
