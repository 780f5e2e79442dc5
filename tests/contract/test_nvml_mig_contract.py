"""What holds of MIG through NVML on any machine.

Reading: on fake machines, as pynvml and behind the C interface, and on the real one (``-m gpu``); these tests
take ``opened``. Changing: on fake machines alone; these tests take ``fake``, and no other fixture gives them an
open NVML, so that no mode change, create or destroy call can reach a real GPU.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import combinations
from typing import Any

import pynvml
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import errors, nvml
from scheduler.geometry import ComputePlacement, Geometry, GpuMig, MemoryPlacement, layout_of
from scheduler.host import Host
from scheduler.nvml import Nvml
from scheduler.nvml_mig import NvmlMig
from tests.boards import A30, A100_40, A100_80, H100, H200, T4
from tests.fake_library import loaded
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance

SPARSE = FakeGpu(
    board=A100_80,
    mig=True,
    instances=(Instance("4g.40gb", 0, (2, 1, 1)), Instance("3g.40gb", 4)),
    holes=frozenset({1, 4}),
)
DOUBLE = FakeGpu(
    board=H100,
    mig=True,
    instances=(Instance("1g.20gb", 6), Instance("2g.20gb", 0, bare=True), Instance("1g.10gb+me", 3)),
)

MACHINES: dict[str, Callable[[], FakeGpus]] = {
    "no GPU": lambda: FakeGpus(),
    "T4, no MIG": lambda: FakeGpus(FakeGpu(board=T4)),
    "H200 and H100, MIG off": lambda: FakeGpus(FakeGpu(board=H200), FakeGpu(board=H100)),
    "A100-80, compute instances": lambda: FakeGpus(SPARSE),
    "A100-80, a plain user": lambda: FakeGpus(SPARSE, privileged=False),
    "A100-80, driver 460": lambda: FakeGpus(SPARSE, driver="460.32.03"),
    "A100-80, driver 470": lambda: FakeGpus(SPARSE, driver="470.57.02"),
    "H100, double memory": lambda: FakeGpus(DOUBLE),
    "H100, arrays wanted": lambda: FakeGpus(DOUBLE, wants_arrays=True, driver="515.65.01"),
    "A100-40 and A30": lambda: FakeGpus(
        FakeGpu(board=A100_40, mig=True, instances=(Instance("1g.5gb+me", 2), Instance("1g.10gb", 4))),
        FakeGpu(board=A30, mig=True, instances=(Instance("2g.12gb", 0), Instance("1g.6gb", 3))),
    ),
    "another's H200 beside ours": lambda: FakeGpus(FakeGpu(board=H200, foreign=True), FakeGpu(board=H200)),
}


@contextmanager
def through_module(machine: FakeGpus) -> Iterator[Nvml]:
    with nvml.open(machine, Host()) as opened:
        yield opened


@contextmanager
def through_c(machine: FakeGpus) -> Iterator[Nvml]:
    with loaded(machine) as library, nvml.open(library, Host()) as opened:
        yield opened


FACES: dict[str, Callable[[FakeGpus], Any]] = {"module": through_module, "C": through_c}


@pytest.fixture(
    params=[
        *(f"{machine}|{face}" for machine in MACHINES for face in FACES),
        pytest.param("real", marks=pytest.mark.gpu),
    ]
)
def opened(request: pytest.FixtureRequest) -> Iterator[Nvml]:
    """An open NVML to read from."""
    if request.param == "real":
        with nvml.open(pynvml, Host()) as real:
            yield real

        return

    machine, face = request.param.split("|")
    with FACES[face](MACHINES[machine]()) as fake:
        yield fake


@pytest.fixture(params=FACES)
def fake(request: pytest.FixtureRequest) -> Callable[[FakeGpus], Any]:
    """Opens a fake machine, to read and to change."""
    return FACES[request.param]


# Reading ---------------------------------------------------------------------------------------------


@pytest.fixture
def mig(opened: Nvml) -> NvmlMig:
    return NvmlMig(opened)


@pytest.fixture
def gpus(mig: NvmlMig) -> tuple[GpuMig, ...]:
    return mig.gpus()


@pytest.fixture
def geometries(gpus: tuple[GpuMig, ...]) -> list[Geometry]:
    return [gpu.geometry for gpu in gpus if gpu.geometry is not None]


def test_gpus_are_those_that_discovery_finds(opened: Nvml, gpus: tuple[GpuMig, ...]):
    found = opened.gpus()
    assert [(one.index, one.uuid, one.name, one.enabled) for one in gpus] == [
        (one.index, one.uuid, one.name, one.mig_enabled) for one in found
    ]


def test_a_gpu_says_where_it_is(gpus: tuple[GpuMig, ...]):
    for gpu in gpus:
        assert re.fullmatch(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.0", gpu.pci_address)
        assert gpu.pci_device_id & 0xFFFF == 0x10DE
        assert gpu.minor is None or gpu.minor >= 0


def test_without_mig_there_is_nothing_of_it(gpus: tuple[GpuMig, ...]):
    for gpu in gpus:
        assert gpu.capable or not (gpu.enabled or gpu.pending or gpu.geometry or gpu.resetless)
        assert gpu.enabled or not (gpu.instances or gpu.instances_error)


def test_one_gpu_is_read_as_all_are(mig: NvmlMig, gpus: tuple[GpuMig, ...]):
    assert tuple(mig.gpu(one.uuid) for one in gpus) == gpus


def test_profiles_are_told_apart_and_lie_within_the_gpu(geometries: list[Geometry]):
    for geometry in geometries:
        profiles = geometry.profiles
        assert len({one.id for one in profiles}) == len({one.name for one in profiles}) == len(profiles)
        assert [one.enum for one in profiles] == sorted({one.enum for one in profiles})
        for profile in profiles:
            assert re.fullmatch(r"\d+g\.\d+gb([+-][a-z.]+)*", profile.name)
            assert profile.name.startswith(f"{profile.compute_slices}g.")
            assert profile.placements == tuple(sorted(set(profile.placements)))
            assert 1 <= profile.most <= len(profile.placements)
            assert len({place.size for place in profile.placements}) == 1
            assert 0 < profile.memory_mib <= geometry.whole.memory_mib
            assert 0 < profile.sms <= geometry.whole.sms
            assert profile.engines.copy <= geometry.whole.engines.copy


def test_what_still_fits_is_no_more_than_fits_an_empty_gpu(mig: NvmlMig, gpus: tuple[GpuMig, ...]):
    for gpu in gpus:
        free = mig.free(gpu.uuid)
        profiles = {one.id: one for one in gpu.geometry.profiles} if gpu.geometry else {}
        for profile_id in set(free) & set(profiles):
            assert 0 <= free[profile_id] <= profiles[profile_id].most


def test_instances_are_placed_as_their_profiles_may_be_and_apart(gpus: tuple[GpuMig, ...]):
    for gpu in gpus:
        assert list(gpu.instances) == sorted(gpu.instances, key=lambda one: one.placement)
        for instance in gpu.instances if gpu.geometry else ():
            profile = gpu.geometry.of_id(instance.profile_id)
            assert profile is not None
            assert instance.placement in profile.placements
            assert sum(one.placement.size for one in instance.compute) <= profile.compute_slices

        for one, other in combinations(gpu.instances, 2):
            assert not one.placement.mask & other.placement.mask
            assert one.id != other.id

        for instance in gpu.instances:
            for left, right in combinations(instance.compute, 2):
                assert not left.placement.mask & right.placement.mask


def test_each_compute_instance_is_a_mig_device_of_discovery(opened: Nvml, gpus: tuple[GpuMig, ...]):
    devices = {
        one.uuid: (one.gpu_uuid, one.gpu_instance_id, one.compute_instance_id, one.sms)
        for gpu in opened.gpus()
        for one in gpu.mig_devices
    }
    here = {
        one.uuid: (gpu.uuid, instance.id, one.id, one.sms)
        for gpu in gpus
        for instance in gpu.instances
        for one in instance.compute
    }
    hidden = any(gpu.instances_error for gpu in gpus)
    assert here == ({} if hidden else devices)


def test_compute_profiles_are_sizes_of_the_gpu_instance(mig: NvmlMig, gpus: tuple[GpuMig, ...]):
    for gpu in gpus:
        for instance in gpu.instances:
            profiles = mig.compute_profiles(gpu.uuid, instance.id)
            profile = gpu.geometry.of_id(instance.profile_id) if gpu.geometry else None
            assert len({one.id for one in profiles}) == len(profiles) > 0
            assert profile is None or max(one.size for one in profiles) == profile.compute_slices
            for one in profiles:
                assert one.free is None or 0 <= one.free <= one.most
                assert all(place.size == one.size for place in one.placements)


def test_reading_twice_reads_the_same(mig: NvmlMig, gpus: tuple[GpuMig, ...]):
    assert mig.gpus() == gpus


def test_processes_are_discoverys(opened: Nvml, mig: NvmlMig, gpus: tuple[GpuMig, ...]):
    uuids = [one.uuid for gpu in gpus for instance in gpu.instances for one in instance.compute]
    assert [mig.processes(uuid) for uuid in uuids] == [opened.processes(uuid) for uuid in uuids]


@pytest.mark.parametrize("uuid", ["GPU-00000000-0000-0000-0000-000000000000", "MIG-GPU-0/1/0"])
def test_a_gpu_that_is_not_there_is_not_found(mig: NvmlMig, uuid: str):
    for question in (mig.gpu, mig.free):
        with pytest.raises(errors.NotFound):
            question(uuid)


@pytest.mark.parametrize("machine", MACHINES)
def test_both_faces_of_a_fake_machine_read_the_same(machine: str):
    """All that nvml.py asks, too: pynvml's marshalling adds nothing and loses nothing."""
    answers = []
    for face in FACES.values():
        with face(MACHINES[machine]()) as opened:
            gpus = opened.gpus()
            uuids = [one.uuid for gpu in gpus for one in (gpu, *gpu.mig_devices)]
            answers.append(
                (
                    opened.driver(),
                    gpus,
                    NvmlMig(opened).gpus(),
                    [opened.sample(uuid) for uuid in uuids],
                    [opened.settings(gpu.uuid) for gpu in gpus],
                )
            )

    assert answers[0] == answers[1]


# Changing: fake machines alone -------------------------------------------------------------------------


def test_what_was_created_is_read_and_what_was_destroyed_is_not(fake: Callable[[FakeGpus], Any]):
    with fake(FakeGpus(FakeGpu(board=H200, mig=True))) as opened:
        mig = NvmlMig(opened)
        uuid = mig.gpus()[0].uuid
        instance = mig.create_gpu_instance(uuid, 9, MemoryPlacement(4, 4))
        first = mig.create_compute_instance(uuid, instance, ComputePlacement(0, 2))
        second = mig.create_compute_instance(uuid, instance, ComputePlacement(2, 1))
        (found,) = mig.gpu(uuid).instances
        assert (found.id, found.profile_id, found.placement) == (instance, 9, MemoryPlacement(4, 4))
        assert [(one.id, one.placement, one.sms) for one in found.compute] == [
            (first, ComputePlacement(0, 2), 32),
            (second, ComputePlacement(2, 1), 16),
        ]
        assert mig.free(uuid)[9] == 1
        mig.destroy_compute_instance(uuid, instance, first)
        assert [one.id for one in mig.gpu(uuid).instances[0].compute] == [second]
        mig.destroy_compute_instance(uuid, instance, second)
        mig.destroy_gpu_instance(uuid, instance)
        assert mig.gpu(uuid).instances == ()


def test_every_profile_can_be_had_at_each_of_its_placements(fake: Callable[[FakeGpus], Any]):
    for board in (A30, A100_40, A100_80, H100, H200):
        with fake(FakeGpus(FakeGpu(board=board, mig=True))) as opened:
            mig = NvmlMig(opened)
            (gpu,) = mig.gpus()
            for profile in gpu.geometry.profiles:
                for place in profile.placements:
                    instance = mig.create_gpu_instance(gpu.uuid, profile.id, place)
                    for one in mig.compute_profiles(gpu.uuid, instance):
                        for at in one.placements:
                            compute = mig.create_compute_instance(gpu.uuid, instance, at)
                            (found,) = mig.gpu(gpu.uuid).instances
                            assert found.placed.placement == place
                            assert found.placed.compute == (at,)
                            assert found.compute[0].sms == one.sms
                            mig.destroy_compute_instance(gpu.uuid, instance, compute)

                    mig.destroy_gpu_instance(gpu.uuid, instance)


REFUSED: list[tuple[str, type[errors.GpuError], Callable[[NvmlMig, str], object]]] = [
    (
        "occupied",
        errors.InsufficientResources,
        lambda m, u: m.create_gpu_instance(u, 9, MemoryPlacement(0, 4)),
    ),
    ("no such place", errors.InvalidRequest, lambda m, u: m.create_gpu_instance(u, 9, MemoryPlacement(2, 4))),
    ("no such size", errors.InvalidRequest, lambda m, u: m.create_gpu_instance(u, 9, MemoryPlacement(4, 2))),
    (
        "no such profile",
        errors.NotSupported,
        lambda m, u: m.create_gpu_instance(u, 77, MemoryPlacement(4, 4)),
    ),
    ("no such GPU", errors.NotFound, lambda m, u: m.create_gpu_instance(f"{u}0", 9, MemoryPlacement(4, 4))),
    (
        "CI occupied",
        errors.InsufficientResources,
        lambda m, u: m.create_compute_instance(u, 1, ComputePlacement(0, 3)),
    ),
    (
        "CI no such size",
        errors.NotSupported,
        lambda m, u: m.create_compute_instance(u, 1, ComputePlacement(0, 4)),
    ),
    (
        "CI no such place",
        errors.InvalidRequest,
        lambda m, u: m.create_compute_instance(u, 1, ComputePlacement(1, 2)),
    ),
    ("CI no such GI", errors.NotFound, lambda m, u: m.create_compute_instance(u, 5, ComputePlacement(0, 1))),
    ("GI has CIs", errors.InstanceInUse, lambda m, u: m.destroy_gpu_instance(u, 1)),
    ("GI not there", errors.NotFound, lambda m, u: m.destroy_gpu_instance(u, 5)),
    ("CI in use", errors.InstanceInUse, lambda m, u: m.destroy_compute_instance(u, 1, 0)),
    ("CI not there", errors.NotFound, lambda m, u: m.destroy_compute_instance(u, 1, 6)),
    ("CI's GI not there", errors.NotFound, lambda m, u: m.destroy_compute_instance(u, 5, 0)),
    ("mode with instances", errors.InstanceInUse, lambda m, u: m.set_mode(u, False)),
]


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, change) for _, kind, change in REFUSED], ids=[name for name, *_ in REFUSED]
)
def test_what_the_driver_refuses_is_its_own_error_and_changes_nothing(
    fake: Callable[[FakeGpus], Any],
    kind: type[errors.GpuError],
    change: Callable[[NvmlMig, str], object],
):
    inside = Instance("3g.40gb", 0, ((0, 1), (1, 1)), processes=((7, None),))
    with fake(FakeGpus(FakeGpu(board=A100_80, mig=True, instances=(inside,)))) as opened:
        mig = NvmlMig(opened)
        (before,) = mig.gpus()
        with pytest.raises(kind) as caught:
            change(mig, before.uuid)

        assert type(caught.value) is kind
        assert mig.gpus() == (before,)


CHANGES: list[Callable[[NvmlMig, str], object]] = [
    lambda m, u: m.create_gpu_instance(u, 9, MemoryPlacement(4, 4)),
    lambda m, u: m.destroy_gpu_instance(u, 3),
    lambda m, u: m.create_compute_instance(u, 3, ComputePlacement(0, 1)),
    lambda m, u: m.destroy_compute_instance(u, 1, 0),
    lambda m, u: m.set_mode(u, True),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("rights", [{"privileged": False}, {"may_change": False}])
def test_without_the_right_every_change_is_refused(
    fake: Callable[[FakeGpus], Any], change: Callable[[NvmlMig, str], object], rights: dict[str, bool]
):
    inside = (Instance("2g.20gb", 0, bare=True), Instance("3g.40gb", 4))
    with fake(FakeGpus(FakeGpu(board=A100_80, mig=True, instances=inside), **rights)) as opened:
        mig = NvmlMig(opened)
        with pytest.raises(errors.NoPermission):
            change(mig, mig.gpus()[0].uuid)


@pytest.mark.parametrize("change", CHANGES[:3])
def test_nothing_is_created_or_destroyed_while_mig_is_off(
    fake: Callable[[FakeGpus], Any], change: Callable[[NvmlMig, str], object]
):
    with fake(FakeGpus(FakeGpu(board=H100))) as opened:
        mig = NvmlMig(opened)
        (before,) = mig.gpus()
        with pytest.raises((errors.NotSupported, errors.NotFound)):
            change(mig, before.uuid)

        assert mig.gpus() == (before,)


@pytest.mark.parametrize(
    ("gpu", "word", "mode"),
    [
        (FakeGpu(board=H100), "SUCCESS", (True, True)),
        (FakeGpu(board=A100_80), "RESET_REQUIRED", (False, True)),
        (FakeGpu(board=A100_80, held=True), "IN_USE", (False, True)),
        (FakeGpu(board=A100_80, mig=True), "SUCCESS", (True, True)),
    ],
    ids=["Hopper", "Ampere", "Ampere held", "nothing to do"],
)
def test_enabling_says_whether_the_gpu_took_it_up(
    fake: Callable[[FakeGpus], Any], gpu: FakeGpu, word: str, mode: tuple[bool, bool]
):
    with fake(FakeGpus(gpu)) as opened:
        mig = NvmlMig(opened)
        (before,) = mig.gpus()
        assert mig.set_mode(before.uuid, True) == word
        after = mig.gpu(before.uuid)
        assert after == replace(before, enabled=mode[0], pending=mode[1])


@pytest.mark.parametrize("face", FACES)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_sequence_of_changes_reads_as_what_was_done(face: str, data: st.DataObject):
    """The set of what was created and not destroyed is the layout, whatever was refused on the way."""
    with FACES[face](FakeGpus(FakeGpu(board=data.draw(st.sampled_from([A30, H100])), mig=True))) as opened:
        mig = NvmlMig(opened)
        (gpu,) = mig.gpus()
        expected: dict[int, tuple[int, MemoryPlacement]] = {}
        for _ in range(data.draw(st.integers(1, 12))):
            if expected and data.draw(st.booleans()):
                gone = data.draw(st.sampled_from(sorted(expected)))
                mig.destroy_gpu_instance(gpu.uuid, gone)
                del expected[gone]
                continue

            profile = data.draw(st.sampled_from(gpu.geometry.profiles))
            place = data.draw(st.sampled_from(profile.placements))
            room = mig.free(gpu.uuid)[profile.id]
            try:
                made = mig.create_gpu_instance(gpu.uuid, profile.id, place)
            except errors.InsufficientResources:
                held = [other for _, other in expected.values()]
                assert room == 0 or any(place.mask & other.mask for other in held)
            else:
                assert room > 0
                assert made not in expected
                expected[made] = (profile.id, place)

        found = mig.gpu(gpu.uuid).instances
        assert {one.id: (one.profile_id, one.placement) for one in found} == expected
        assert len(layout_of(found)) == len(expected)
