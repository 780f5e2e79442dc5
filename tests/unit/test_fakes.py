"""The fake refuses what the driver refuses, and has pynvml's own signatures."""

import inspect

import pynvml
import pytest

from tests.boards import A30, A100_80, Board
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance

FAKED = sorted(name for name in vars(FakeGpus) if name.startswith("nvml"))


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
