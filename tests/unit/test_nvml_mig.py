"""MIG through NVML on fake drivers: what is read, and what an older or stricter driver leaves out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest

from scheduler import errors, nvml
from scheduler.geometry import ComputePlacement, Engines, MemoryPlacement, compute_placements
from scheduler.host import Host
from scheduler.nvml import UNANSWERED, WORDS
from scheduler.nvml_codes import ERRORS
from scheduler.nvml_mig import NvmlMig
from tests.boards import A30, A100_40, A100_80, H100, H200, T4, Board
from tests.fakes import SUBSYSTEM, FakeGpus
from tests.gpu_state import FakeGpu, Instance, uuid_of

BARE = Host(Path("/nonexistent"))
"""A host whose /proc, /sys and /dev say nothing."""

GPU = uuid_of("gpu0")
CODES = {word: code for code, word in WORDS.items()}


@contextmanager
def opened(library: FakeGpus) -> Iterator[NvmlMig]:
    with nvml.open(library, BARE) as started:
        yield NvmlMig(started)


def read(*instances: Instance, board: Board = A100_80, mig: bool = True, **driver: Any):
    """The GPU of a machine with one."""
    with opened(FakeGpus(FakeGpu(board=board, mig=mig, instances=instances), **driver)) as reader:
        return reader.gpu(GPU)


# Reading ---------------------------------------------------------------------------------------------


def test_a_gpu_with_mig_off():
    gpu = read(board=H200, mig=False)
    assert (gpu.name, gpu.pci_device_id, gpu.pci_address, gpu.minor) == (
        "NVIDIA H200",
        0x233510DE,
        "0000:1b:00.0",
        0,
    )
    assert gpu.pci_subsystem_id == SUBSYSTEM
    assert (gpu.capable, gpu.enabled, gpu.pending, gpu.resetless) == (True, False, False, True)
    assert (gpu.instances, gpu.instances_error) == ((), "")
    assert (gpu.geometry.gpu_name, gpu.geometry.source) == ("NVIDIA H200", "driver 580.65.06")
    assert (gpu.geometry.memory_slices, gpu.geometry.compute_slices) == (8, 7)


def test_a_profile_is_all_that_the_driver_says_of_it():
    profile = read(board=H100).geometry.named("2g.20gb")
    assert (profile.id, profile.enum, profile.compute_slices, profile.most) == (14, 1, 2, 3)
    assert profile.placements == (MemoryPlacement(0, 2), MemoryPlacement(2, 2), MemoryPlacement(4, 2))
    assert (profile.memory_mib, profile.sms) == (20096, 32)
    assert profile.engines == Engines(copy=2, decoder=2, encoder=0, jpeg=2, ofa=0)


def test_a_gpu_without_mig_knows_none_of_it():
    gpu = read(board=T4, mig=False)
    assert (gpu.capable, gpu.enabled, gpu.pending, gpu.resetless, gpu.geometry) == (
        False,
        False,
        False,
        None,
        None,
    )


@pytest.mark.parametrize("board", [A30, A100_40, A100_80, H100, H200], ids=lambda board: board.name)
def test_a_driver_that_does_not_name_profiles_leaves_us_to_work_the_same_names_out(board: Board):
    named, computed = read(board=board).geometry, read(board=board, driver="470.57.02").geometry
    assert computed == replace(named, source="driver 470.57.02")


def test_a_driver_that_takes_another_struct_is_asked_with_the_older_one():
    mismatch = {"nvmlDeviceGetGpuInstanceProfileInfoV": pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH}
    assert read(refusing=mismatch) == read()


def test_a_driver_that_wants_an_array_for_placements_gets_one():
    assert read(wants_arrays=True) == read()


def test_a_driver_that_tells_no_placements_has_no_geometry_but_its_instances_are_read():
    asked = Instance("3g.40gb", 4)
    missing = {"nvmlDeviceGetGpuInstancePossiblePlacements_v2": pynvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    gpu = read(asked, refusing=missing)
    assert gpu.capable
    assert gpu.geometry is None
    assert gpu.instances == read(asked).instances


def test_mig_devices_are_matched_to_their_compute_instances_over_holes():
    instances = (Instance("2g.20gb", 4, (1, 1)), Instance("1g.20gb", 6), Instance("3g.40gb", 0, bare=True))
    with opened(
        FakeGpus(FakeGpu(board=H100, mig=True, instances=instances, holes=frozenset({0, 2})))
    ) as reader:
        found = reader.gpu(GPU).instances

    assert [(one.profile_id, one.placement.start) for one in found] == [(9, 0), (14, 4), (15, 6)]
    assert [[(each.mig_index, each.placement.start, each.sms) for each in one.compute] for one in found] == [
        [],
        [(1, 0, 16), (3, 1, 16)],
        [(4, 0, 26)],
    ]


def test_both_uuid_formats():
    new, old = (read(Instance("1g.10gb", 2), driver=driver) for driver in ("580.65.06", "460.32.03"))
    assert new.instances[0].compute[0].uuid.startswith("MIG-")
    assert old.instances[0].compute[0].uuid == f"MIG-{GPU}/7/0"


def test_a_plain_user_is_told_why_he_sees_no_instances():
    gpu = read(Instance("1g.10gb", 0), privileged=False)
    assert gpu.enabled
    assert gpu.instances == ()
    assert "NO_PERMISSION" in gpu.instances_error


def plain_user_of(root: Path) -> Host:
    """A host with a driver's capability files, of which this process may read none."""
    files = {
        "proc/driver/nvidia-caps/mig-minors": "config 1\nmonitor 2\n",
        "proc/driver/nvidia/capabilities/mig/config": "DeviceFileMinor: 1\n",
        "proc/driver/nvidia/capabilities/mig/monitor": "DeviceFileMinor: 2\n",
        "proc/self/status": "Uid:\t7\t7\t7\t7\nCapEff:\t0000000000000000\n",
    }
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)

    return Host(root)


@pytest.mark.parametrize(
    ("change", "right", "do"),
    [
        (lambda m: m.create_gpu_instance(GPU, 9, MemoryPlacement(4, 4)), "config", "nvidia-modprobe"),
        (lambda m: m.destroy_gpu_instance(GPU, 2), "config", "nvidia-modprobe"),
        (lambda m: m.create_compute_instance(GPU, 2, ComputePlacement(0, 1)), "config", "nvidia-modprobe"),
        (lambda m: m.destroy_compute_instance(GPU, 1, 0), "config", "nvidia-modprobe"),
        (lambda m: m.set_mode(GPU, False), "mode", "as root"),
        (lambda m: m.compute_profiles(GPU, 1), "monitor", "nvidia-modprobe"),
    ],
    ids=["create GPU", "destroy GPU", "create compute", "destroy compute", "mode", "see"],
)
def test_a_refusal_names_the_right_that_is_missing_and_what_gives_it(
    change: Callable[[NvmlMig], object], right: str, do: str, tmp_path: Path
):
    gpu = FakeGpu(
        board=A100_80, mig=True, instances=(Instance("3g.40gb", 0), Instance("1g.10gb", 5, bare=True))
    )
    with nvml.open(FakeGpus(gpu, privileged=False), plain_user_of(tmp_path)) as started:
        reader = NvmlMig(started)
        assert "the right monitor is missing: there is no /dev/nvidia-caps/nvidia-cap2" in (
            reader.gpu(GPU).instances_error
        )
        with pytest.raises(
            errors.NoPermission, match=f"NO_PERMISSION.*; the right {right} is missing: "
        ) as caught:
            change(reader)

    assert do in caught.value.do


def test_who_sees_instances_but_not_their_mig_devices_gets_them_without_uuid():
    refusing = {"nvmlDeviceGetMigDeviceHandleByIndex": pynvml.NVML_ERROR_NO_PERMISSION}
    (instance,) = read(Instance("3g.40gb", 0, (2, 1)), refusing=refusing).instances
    assert [(one.uuid, one.mig_index, one.sms) for one in instance.compute] == [(None, None, None)] * 2
    assert [one.placement.size for one in instance.compute] == [2, 1]


@pytest.mark.parametrize(
    ("function", "field", "left"),
    [
        ("nvmlDeviceGetFieldValues", "resetless", None),
        ("nvmlDeviceGetMinorNumber", "minor", None),
        ("nvmlDeviceGetPciInfo", "pci_address", ""),
    ],
)
@pytest.mark.parametrize("word", ["NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "NO_PERMISSION"])
def test_a_question_declined_leaves_the_rest(function: str, field: str, left: object, word: str):
    gpu = read(refusing={function: CODES[word]})
    assert getattr(gpu, field) == left
    assert gpu.geometry == read().geometry


def test_a_field_unknown_to_the_driver_is_unknown_to_us():
    assert read(refusing={"nvmlDeviceGetFieldValues": pynvml.NVML_ERROR_INVALID_ARGUMENT}).resetless is None
    assert read(board=A100_80).resetless is False


def test_a_capacity_that_is_not_told_is_left_out():
    with opened(
        FakeGpus(
            FakeGpu(board=H100, mig=True, instances=(Instance("4g.40gb", 0),)),
            FakeGpu(board=T4),
        )
    ) as reader:
        assert reader.free(GPU) == {19: 3, 20: 1, 15: 2, 14: 1, 9: 1, 5: 0, 0: 0}
        assert reader.free(uuid_of("gpu1")) == {}

    refusing = {"nvmlDeviceGetGpuInstanceRemainingCapacity": pynvml.NVML_ERROR_NOT_SUPPORTED}
    with opened(FakeGpus(FakeGpu(board=H100, mig=True), refusing=refusing)) as reader:
        assert reader.free(GPU) == {}


def test_a_compute_profile_of_double_memory_is_its_own():
    library = FakeGpus(FakeGpu(board=H200, mig=True, instances=(Instance("1g.35gb", 2, bare=True),)))
    with opened(library) as reader:
        (profile,) = reader.compute_profiles(GPU, 7)
        assert (profile.size, profile.id, profile.most, profile.free, profile.sms) == (1, 7, 1, 1, 26)
        assert profile.placements == (ComputePlacement(0, 1),)
        assert reader.create_compute_instance(GPU, 7, ComputePlacement(0, 1)) == 0


@pytest.mark.parametrize("board", [A30, H200], ids=lambda board: board.name)
def test_what_a_driver_says_of_compute_instances_is_what_we_work_out_without_one(board: Board):
    with opened(FakeGpus(FakeGpu(board=board, mig=True))) as reader:
        for profile in reader.gpu(GPU).geometry.profiles:
            instance = reader.create_gpu_instance(GPU, profile.id, profile.placements[0])
            told = {one.size: one.placements for one in reader.compute_profiles(GPU, instance)}
            worked_out = {size: compute_placements(profile.compute_slices, size) for size in range(1, 9)}
            assert told == {size: places for size, places in worked_out.items() if places}
            reader.destroy_gpu_instance(GPU, instance)


def test_a_mode_that_waits_for_a_reset_is_pending():
    library = FakeGpus(FakeGpu(board=A100_80))
    with opened(library) as reader:
        assert reader.set_mode(GPU, True) == "RESET_REQUIRED"
        gpu = reader.gpu(GPU)
        assert (gpu.enabled, gpu.pending) == (False, True)
        library.reset(0)
        gpu = reader.gpu(GPU)
        assert (gpu.enabled, gpu.pending) == (True, True)


def test_a_gpu_that_was_lost_is_said_to_be():
    library = FakeGpus(FakeGpu(board=A100_80), FakeGpu(board=A100_80))
    with opened(library) as reader:
        library.lose(0)
        with pytest.raises(errors.GpuLost):
            reader.gpu(GPU)

        assert reader.gpu(uuid_of("gpu1")).capable


def test_a_failure_that_is_no_declining_is_raised():
    for word in ("UNKNOWN", "TIMEOUT", "GPU_IS_LOST", "MEMORY"):
        assert word not in UNANSWERED
        with pytest.raises(ERRORS[word]):
            read(Instance("1g.10gb", 0), refusing={"nvmlDeviceGetGpuInstances": CODES[word]})


def test_a_read_that_fails_anywhere_is_one_of_our_errors():
    whole = FakeGpu(board=A100_80, mig=True, instances=(Instance("3g.40gb", 0, (2, 1)),))
    library = FakeGpus(whole)
    with opened(library) as reader:
        reader.gpu(GPU)
        calls = len(library.calls)

    for n in range(1, calls + 1):
        failing = FakeGpus(whole, fail_call=(n, pynvml.NVML_ERROR_UNKNOWN))
        with opened(failing) as reader, pytest.raises(errors.NvmlFailure):
            reader.gpu(GPU)

        declining = FakeGpus(whole, fail_call=(n, pynvml.NVML_ERROR_NOT_SUPPORTED))
        with opened(declining) as reader, suppress(errors.NotSupported):
            assert reader.gpu(GPU).uuid == GPU


# Changing --------------------------------------------------------------------------------------------


def test_a_driver_without_placement_for_compute_instances_is_left_to_place_them():
    library = FakeGpus(
        FakeGpu(board=A100_80, mig=True, instances=(Instance("4g.40gb", 0, bare=True),)), driver="515.65.01"
    )
    with opened(library) as reader:
        made = [
            reader.create_compute_instance(GPU, 1, place)
            for place in (ComputePlacement(0, 2), ComputePlacement(2, 1), ComputePlacement(3, 1))
        ]
        assert [one.id for one in reader.gpu(GPU).instances[0].compute] == made
        assert all(one.placements == () for one in reader.compute_profiles(GPU, 1))


def test_what_such_a_driver_places_elsewhere_is_destroyed_again():
    library = FakeGpus(
        FakeGpu(board=A100_80, mig=True, instances=(Instance("4g.40gb", 0, bare=True),)), driver="515.65.01"
    )
    with opened(library) as reader:
        before = reader.gpu(GPU)
        with pytest.raises(errors.NotSupported) as caught:
            reader.create_compute_instance(GPU, 1, ComputePlacement(2, 2))

        assert "0:2" in caught.value.found
        assert reader.gpu(GPU) == before


def test_an_error_says_what_was_asked():
    library = FakeGpus(FakeGpu(board=A100_80, mig=True, instances=(Instance("3g.40gb", 4),)))
    with opened(library) as reader, pytest.raises(errors.InsufficientResources) as caught:
        reader.create_gpu_instance(GPU, 9, MemoryPlacement(4, 4))

    assert caught.value.asked == f"create a GPU instance of profile 9 at 4:4 on {GPU}"
    assert "INSUFFICIENT_RESOURCES" in caught.value.found


@pytest.mark.parametrize("word", sorted(set(ERRORS) - {"UNINITIALIZED"}))
def test_every_code_of_a_change_is_the_error_it_stands_for(word: str):
    if word not in CODES:
        pytest.skip(f"this nvidia-ml-py has no {word}")

    library = FakeGpus(
        FakeGpu(board=H100, mig=True), refusing={"nvmlDeviceCreateGpuInstanceWithPlacement": CODES[word]}
    )
    with opened(library) as reader, pytest.raises(ERRORS[word]) as caught:
        reader.create_gpu_instance(GPU, 9, MemoryPlacement(4, 4))

    assert type(caught.value) is ERRORS[word]


def test_reading_calls_nothing_that_changes():
    library = FakeGpus(FakeGpu(board=A100_80, mig=True, instances=(Instance("3g.40gb", 0, (2, 1)),)))
    with opened(library) as reader:
        reader.gpus()
        reader.gpu(GPU)
        reader.free(GPU)
        reader.compute_profiles(GPU, 1)
        reader.processes(GPU)

    assert library.calls
    assert library.changes == []
