"""Which slices ``--slices`` gives, on machines described as data."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.errors import DriverNotLoaded, NoUsableSlice, SpecError
from scheduler.selection import names_of, offered, slices_on
from scheduler.slices import CpuSlice, Gpu, GpuSlice, Machine, MigSlice

UUIDS = ("GPU-aaaa", "GPU-bbbb", "GPU-cccc")


def mig_device(gpu: int, gi: int, *, ci: int = 0, cores: tuple[int, ...] = ()) -> MigSlice:
    return MigSlice(
        id=f"gpu{gpu}:gi{gi}:ci{ci}",
        name="1g.10gb",
        uuid=f"MIG-{gpu}-{gi}-{ci}",
        gpu_uuid=UUIDS[gpu],
        gpu_index=gpu,
        gpu_name="NVIDIA H100",
        gpu_instance_id=gi,
        compute_instance_id=ci,
        gi_profile_id=19,
        placement_start=gi,
        placement_size=1,
        sms=16,
        memory_mib=9984,
        cores=cores,
    )


def gpu(index: int, *, mig: int | None = None, cores: tuple[int, ...] = ()) -> Gpu:
    """A GPU; ``mig``: how many MIG devices it has, None for MIG off."""
    devices = tuple(mig_device(index, 7 + number, cores=cores) for number in range(mig or 0))
    return Gpu(
        index=index,
        uuid=UUIDS[index],
        name="NVIDIA H100",
        memory_mib=81559,
        sms=132,
        mig_enabled=mig is not None,
        mig_devices=devices,
        cores=cores,
        numa_node=0,
    )


def machine(*gpus: Gpu, cores: int = 8) -> Machine:
    return Machine(cores=tuple(range(cores)), memory_mib=64_000, gpus=gpus)


UNREADABLE = replace(
    machine(),
    gpu_error=DriverNotLoaded(asked="GPUs", found="no kernel driver", do="load the nvidia module"),
)


def ids(machine_: Machine, asked: str, benchmarks: int = 3) -> list[str]:
    return [each.id for each in slices_on(machine_, asked, benchmarks)]


# --- auto


def test_auto_is_cpu_cores_without_a_gpu():
    assert ids(machine(), "auto") == ["cpu0", "cpu1", "cpu2"]


def test_auto_is_the_mig_devices_of_all_gpus_where_there_are_any():
    there = machine(gpu(0, mig=2), gpu(1), gpu(2, mig=1))

    assert ids(there, "auto") == ["gpu0:gi7:ci0", "gpu0:gi8:ci0", "gpu2:gi7:ci0"]


def test_auto_is_the_gpus_where_there_are_two_without_mig():
    chosen = slices_on(machine(gpu(0), gpu(1), gpu(2, mig=0)), "auto", 2)

    assert [each.uuid for each in chosen] == ["GPU-aaaa", "GPU-bbbb"]
    assert all(isinstance(each, GpuSlice) and each.sms == 132 and each.memory_mib == 81559 for each in chosen)


@pytest.mark.parametrize("asked", ["auto", "gpu"])
def test_one_gpu_does_for_main_alone(asked: str):
    assert ids(machine(gpu(0)), asked, benchmarks=1) == ["gpu0"]


@pytest.mark.parametrize("asked", ["auto", "gpu"])
def test_one_gpu_without_mig_is_refused_with_the_ways_on(asked: str):
    with pytest.raises(NoUsableSlice, match="one GPU without MIG") as refusal:
        slices_on(machine(gpu(0)), asked, 2)

    assert all(way in refusal.value.do for way in ("enable MIG", "another GPU", "--slices cpu", "none"))


@pytest.mark.parametrize("asked", ["auto", "mig", "gpu", "GPU-aaaa", "gpu0"])
def test_a_gpu_that_cannot_be_read_is_never_passed_over(asked: str):
    with pytest.raises(DriverNotLoaded):
        slices_on(UNREADABLE, asked, 2)


def test_cpu_cores_do_not_ask_after_the_gpu():
    assert ids(UNREADABLE, "cpu", 2) == ["cpu0", "cpu1"]


# --- mig, gpu


@pytest.mark.parametrize(
    ("gpus", "asked", "found"),
    [
        ((), "mig", "no GPU on this machine"),
        ((), "gpu", "no GPU on this machine"),
        ((gpu(0, mig=0),), "auto", "MIG is enabled on GPU 0, but it has no MIG device"),
        ((gpu(0, mig=0), gpu(1, mig=0)), "mig", "MIG is enabled on GPU 0, 1, but"),
        ((gpu(0, mig=0),), "gpu", "MIG is enabled on GPU 0, but"),
        ((gpu(0), gpu(1)), "mig", "no GPU here has MIG enabled"),
        ((gpu(0, mig=2),), "gpu", "every GPU here is divided"),
    ],
)
def test_nothing_usable_says_what_is_there(gpus: tuple[Gpu, ...], asked: str, found: str):
    with pytest.raises(NoUsableSlice, match=found):
        slices_on(machine(*gpus), asked, 2)


def test_gpu_leaves_mig_devices_out():
    assert ids(machine(gpu(0), gpu(1), gpu(2, mig=3)), "gpu") == ["gpu0", "gpu1"]


@pytest.mark.parametrize("asked", ["mps:7", "timeslice:4", "mps"])
def test_shares_of_a_gpu_are_refused_as_not_in_this_version(asked: str):
    with pytest.raises(SpecError, match="not in this version"):
        slices_on(machine(gpu(0)), asked, 2)


# --- explicit lists


def test_slices_are_named_by_id_or_uuid_in_either_format_and_keep_their_order():
    there = machine(gpu(0, mig=2), gpu(1))

    assert ids(there, "gpu1, MIG-GPU-aaaa/8/0,mig-0-7-0") == ["gpu1", "gpu0:gi8:ci0", "gpu0:gi7:ci0"]


@pytest.mark.parametrize(
    ("asked", "found", "do"),
    [
        ("0", "'0' is an index", "gpu0:gi7:ci0, gpu1"),
        ("GPU-aaaa", "has MIG enabled: only its MIG devices", "gpu0:gi7:ci0, gpu1"),
        ("gpu0", "has MIG enabled: only its MIG devices", "gpu0:gi7:ci0, gpu1"),
        ("MIG-gone", "no slice 'MIG-gone'", "gpu0:gi7:ci0, gpu1"),
        ("gpu1,", "no slice ''", "gpu0:gi7:ci0, gpu1"),
        ("cpu0,cpu1", "no slice 'cpu0'", "--slices cpu or cpu:N"),
        ("gpu1,GPU-bbbb", "GPU-bbbb is there twice", "once"),
    ],
)
def test_a_name_that_is_no_slice_is_refused_with_the_reason(asked: str, found: str, do: str):
    with pytest.raises(SpecError) as refusal:
        slices_on(machine(gpu(0, mig=1), gpu(1)), asked, 2)

    assert found in refusal.value.found
    assert do in refusal.value.do


def test_a_list_on_a_machine_without_gpu_is_refused():
    with pytest.raises(SpecError, match="no slice 'gpu0'"):
        slices_on(machine(), "gpu0", 2)


def test_names_of_each_kind():
    (cpu,) = slices_on(machine(), "cpu", 1)
    (whole,) = slices_on(machine(gpu(0)), "gpu0", 1)

    assert names_of(cpu) == ["cpu0"]
    assert names_of(whole) == ["gpu0", "GPU-aaaa"]
    assert names_of(mig_device(0, 7, ci=1)) == ["gpu0:gi7:ci1", "MIG-0-7-1", "MIG-GPU-aaaa/7/1"]


def test_all_there_is_to_name():
    there = machine(gpu(0, mig=2, cores=(0, 1)), gpu(1, cores=(70,)), gpu(2, mig=0))

    assert [(each.id, each.cores) for each in offered(there)] == [
        ("gpu0:gi7:ci0", (0,)),
        ("gpu0:gi8:ci0", (1,)),
        ("gpu1", there.cores),
        ("cpu", there.cores),
    ]
    assert [each.id for each in offered(UNREADABLE)] == ["cpu"]


# --- host cores


@pytest.mark.parametrize("asked", ["cpu:0", "cpu:", "cpu:-1", "cpu:two", "cpu:1.5"])
def test_a_number_of_cpu_slices_is_a_positive_whole_number(asked: str):
    with pytest.raises(SpecError, match="is not a number of slices"):
        slices_on(machine(), asked, 2)


def test_cpu_slices_are_contiguous_runs_of_the_cores_this_process_may_use():
    there = Machine(cores=(0, 1, 2, 8, 9, 10, 11), memory_mib=64_000)

    assert [each.cores for each in slices_on(there, "cpu:3", 2)] == [(0, 1, 2), (8, 9), (10, 11)]


def test_too_few_cores_are_shared_in_turn_and_the_slices_say_with_whom():
    chosen = slices_on(machine(cores=2), "cpu", 6)

    assert [each.cores for each in chosen] == [(0,), (1,), (0,), (1,), (0,), (1,)]
    assert chosen[0].shared_with == ("cpu2", "cpu4")
    assert chosen[3].shared_with == ("cpu1", "cpu5")


@given(
    cores=st.sets(st.integers(0, 300), min_size=1, max_size=64),
    count=st.integers(1, 80),
)
@settings(deadline=None)
def test_cpu_slices_divide_the_cores_evenly(cores: set[int], count: int):
    there = Machine(cores=tuple(sorted(cores)), memory_mib=1000)

    chosen = slices_on(there, f"cpu:{count}", 1)

    assert len(chosen) == count
    assert all(isinstance(each, CpuSlice) and each.memory_mib == 1000 for each in chosen)
    assert {core for each in chosen for core in each.cores} == cores
    lengths = [len(each.cores) for each in chosen]
    assert max(lengths) - min(lengths) <= 1
    if count <= len(cores):
        assert sum(lengths) == len(cores)
        assert not any(each.shared_with for each in chosen)
    else:
        users = [sum(core in each.cores for each in chosen) for core in cores]
        assert max(users) - min(users) <= 1

    for each in chosen:
        sharing = {other.id for other in chosen if other is not each and set(other.cores) & set(each.cores)}
        assert set(each.shared_with) == sharing


def test_gpu_slices_divide_the_host_cores_near_their_gpu():
    there = machine(gpu(0, mig=2, cores=(0, 1, 2, 3)), gpu(1, mig=1, cores=(4, 5, 6, 7)))

    assert [each.cores for each in slices_on(there, "auto", 3)] == [(0, 1), (2, 3), (4, 5, 6, 7)]


def test_gpus_near_the_same_cores_divide_them():
    near = (0, 1, 2, 3)
    there = machine(gpu(0, cores=near), gpu(1, mig=1, cores=near), gpu(2, cores=(4, 5)))

    chosen = slices_on(there, "gpu0,gpu1:gi7:ci0,gpu2", 3)

    assert [each.cores for each in chosen] == [(0, 1), (2, 3), (4, 5)]


def test_only_cores_this_process_may_use_and_all_of_them_where_none_is_near():
    there = machine(gpu(0, cores=(1, 2, 40, 41)), gpu(1, cores=(42, 43)), gpu(2), cores=4)

    assert [each.cores for each in slices_on(there, "gpu", 3)] == [(1, 2), (0, 1), (2, 3)]


def test_cores_shared_by_gpu_slices_leave_the_sharing_of_gpu_memory_alone():
    device = replace(mig_device(0, 7), shared_with=("gpu0:gi7:ci1",))
    there = machine(replace(gpu(0, mig=0), mig_devices=(device, mig_device(0, 7, ci=1))), cores=1)

    chosen = slices_on(there, "mig", 2)

    assert [each.cores for each in chosen] == [(0,), (0,)]
    assert [each.shared_with for each in chosen] == [("gpu0:gi7:ci1",), ()]


@given(
    mig_counts=st.lists(st.one_of(st.none(), st.integers(0, 7)), min_size=1, max_size=3),
    cores=st.integers(1, 32),
)
@settings(deadline=None)
def test_every_gpu_slice_has_a_core_and_no_core_is_wasted(mig_counts: list[int | None], cores: int):
    there = machine(*(gpu(index, mig=mig) for index, mig in enumerate(mig_counts)), cores=cores)

    try:
        chosen = slices_on(there, "auto", 1)
    except NoUsableSlice:
        assert not any(mig != 0 for mig in mig_counts)
        return

    expected = sum(mig or 0 for mig in mig_counts) or mig_counts.count(None)
    assert len(chosen) == expected
    lengths = [len(each.cores) for each in chosen]
    assert min(lengths) >= 1
    assert max(lengths) - min(lengths) <= 1
    assert len({core for each in chosen for core in each.cores}) == cores
