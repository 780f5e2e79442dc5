"""Names of MIG devices, lines of text, and the GPU instances that they stand for."""

from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import gpu_tables, layout
from scheduler.errors import SpecError
from scheduler.geometry import (
    COMPUTE_SIZES,
    ComputeInstance,
    ComputePlacement,
    Geometry,
    GpuInstance,
    PlacedInstance,
    WantedInstance,
    compute_placements,
    device_name,
)

GPUS = ("A100-40GB", "A100-80GB", "H200-141GB", "A30", "RTX-PRO-6000-96GB")


@cache
def gpu(name: str) -> Geometry:
    return gpu_tables.named(name)


def every_device(geometry: Geometry) -> list[str]:
    return [
        device_name(profile, size)
        for profile in geometry.profiles
        for size in range(1, profile.compute_slices + 1)
        if compute_placements(profile.compute_slices, size)
    ]


@st.composite
def wishes(draw: st.DrawFn) -> tuple[Geometry, Counter[str]]:
    geometry = gpu(draw(st.sampled_from(GPUS)))
    names = draw(st.lists(st.sampled_from(every_device(geometry)), max_size=9))
    return geometry, Counter(names)


# --- names


@pytest.mark.parametrize("name", GPUS)
def test_every_name_that_a_gpu_has_is_read_and_written_as_the_driver_writes_it(name: str):
    for device in every_device(gpu(name)):
        request = layout.parse_name(device)

        assert request is not None
        assert request.name == device


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1c.1g.5gb", "1g.5gb"),
        ("1g.10gb.me", "1g.10gb+me"),
        ("1g.24gb.me.all", "1g.24gb+me.all"),
        ("1g.24gb+me.all", "1g.24gb+me.all"),
        ("4g.96gb.gfx", "4g.96gb+gfx"),
        ("1g.24gb-me", "1g.24gb-me"),
        ("  1C.3G.40GB ", "1c.3g.40gb"),
    ],
)
def test_other_spellings_of_a_name(text: str, name: str):
    request = layout.parse_name(text)

    assert request is not None
    assert request.name == name


@pytest.mark.parametrize(
    "text", ["", "1g", "1g.5", "1g.gb", "g.5gb", "1 g.5gb", "1r.1g.5gb", "1g.5gb+", "1g.5gb+2me", "1g.5gb*me"]
)
def test_what_is_no_name(text: str):
    assert layout.parse_name(text) is None


# --- lines of text


def test_names_and_counts_add_up():
    asked = layout.parse_devices(" 1g.18gb ,3g.71gb,2g.35gb, 1g.18gb * 2", gpu("H200-141GB"))

    assert asked == Counter({"1g.18gb": 3, "2g.35gb": 1, "3g.71gb": 1})


def test_profile_ids_are_taken_as_nvidia_smi_takes_them():
    assert layout.parse_devices("19,19,14,9", gpu("A100-80GB")) == Counter(
        {"1g.10gb": 2, "2g.20gb": 1, "3g.40gb": 1}
    )
    assert layout.parse_devices("14*4", gpu("A30")) == Counter({"1g.6gb": 4})


def test_parts_and_attributes_are_names_too():
    asked = layout.parse_devices("1c.3g.40gb*3,1g.10gb.me", gpu("A100-80GB"))

    assert asked == Counter({"1c.3g.40gb": 3, "1g.10gb+me": 1})


@given(wishes())
def test_a_line_that_is_written_reads_the_same(wish: tuple[Geometry, Counter[str]]):
    geometry, devices = wish
    if devices:
        assert layout.parse_devices(layout.text_of(devices), geometry) == devices


def test_a_line_names_the_largest_first():
    assert layout.text_of({"1g.18gb": 2, "1c.3g.71gb": 1, "3g.71gb": 1, "2g.35gb": 0}) == (
        "3g.71gb,1c.3g.71gb,1g.18gb*2"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "''"),
        ("1g.18gb,,2g.35gb", "''"),
        ("1g.18gb*", "'1g.18gb*'"),
        ("1g.18gb*two", "'1g.18gb*two'"),
        ("1g.18gb:2", "'1g.18gb:2'"),
        ("1g.18gb*0", "0 of 1g.18gb"),
        ("1g.18gb*-1", "-1 of 1g.18gb"),
        ("1g.18gb*1000000000000", "1000000000000 of 1g.18gb"),
        ("seven", "'seven' is neither"),
        ("77", "'77' is neither"),
        ("1g.10gb", "the NVIDIA H200 has no 1g.10gb"),
        ("1g.18gb+gfx", "the NVIDIA H200 has no 1g.18gb+gfx"),
        ("3c.4g.71gb", "3c.4g.71gb: a 4g.71gb has no compute instance of 3 slices"),
        ("2c.1g.18gb", "2c.1g.18gb: a 1g.18gb has no compute instance of 2 slices"),
    ],
)
def test_a_refusal_says_what_was_found_and_in_which_line(text: str, told: str):
    with pytest.raises(SpecError) as refused:
        layout.parse_devices(text, gpu("H200-141GB"))

    assert repr(text) in refused.value.asked
    assert told in refused.value.found


def test_a_name_of_another_gpu_is_answered_with_the_ones_of_the_same_slices_here():
    with pytest.raises(SpecError) as refused:
        layout.parse_devices("1g.10gb*7", gpu("H200-141GB"))

    assert refused.value.do.startswith("perhaps 1g.18gb or 1g.35gb?")
    assert all(profile.name in refused.value.do for profile in gpu("H200-141GB").profiles)


def test_a_refused_part_is_answered_with_the_parts_that_there_are():
    with pytest.raises(SpecError) as refused:
        layout.parse_devices("3c.4g.71gb", gpu("H200-141GB"))

    assert refused.value.do == "take 1c.4g.71gb, 2c.4g.71gb, 4g.71gb"


# --- MIG devices to GPU instances and back


def sizes_of(instances: tuple[WantedInstance, ...]) -> list[tuple[str, list[int]]]:
    return [(each.profile.name, sorted(place.size for place in each.compute)) for each in instances]


def test_a_whole_name_is_an_instance_of_its_own_and_parts_share_one():
    asked = {"1g.10gb": 2, "3g.40gb": 1, "1c.3g.40gb": 1, "2c.3g.40gb": 1}

    assert sizes_of(layout.instances_of(asked, gpu("A100-80GB"))) == [
        ("1g.10gb", [1]),
        ("1g.10gb", [1]),
        ("3g.40gb", [3]),
        ("3g.40gb", [1, 2]),
    ]


@pytest.mark.parametrize(
    ("asked", "packed"),
    [
        ({"2c.4g.40gb": 2}, [[2, 2]]),
        ({"1c.4g.40gb": 4}, [[1, 1, 1, 1]]),
        ({"2c.4g.40gb": 1, "1c.4g.40gb": 2}, [[1, 1, 2]]),
        ({"2c.4g.40gb": 3}, [[2], [2, 2]]),
        ({"2c.3g.40gb": 2}, [[2], [2]]),  # three slices, but a 2c starts at an even one
        ({"4c.7g.80gb": 1, "3c.7g.80gb": 1}, [[3, 4]]),
        ({"3c.7g.80gb": 2, "2c.7g.80gb": 4}, [[2, 2, 3], [2, 2, 3]]),  # not both 3c in one
    ],
)
def test_parts_are_packed_into_as_few_instances_as_hold_them(asked: dict[str, int], packed: list[list[int]]):
    found = [sizes for _, sizes in sizes_of(layout.instances_of(asked, gpu("A100-80GB")))]

    assert sorted(found) == packed


@given(wishes())
def test_devices_to_instances_and_back_is_the_identity(wish: tuple[Geometry, Counter[str]]):
    geometry, devices = wish
    instances = layout.instances_of(devices, geometry)

    assert layout.devices_of(instances, geometry) == devices


@given(wishes())
def test_no_two_compute_instances_of_an_instance_overlap_and_all_start_where_they_may(
    wish: tuple[Geometry, Counter[str]],
):
    geometry, devices = wish
    for instance in layout.instances_of(devices, geometry):
        slices = instance.profile.compute_slices
        masks = [place.mask for place in instance.compute]

        assert list(instance.compute) == sorted(instance.compute)
        assert sum(masks).bit_count() == sum(place.size for place in instance.compute) <= slices
        assert all(place in compute_placements(slices, place.size) for place in instance.compute)


@st.composite
def parts(draw: st.DrawFn) -> tuple[int, list[int]]:
    slices = draw(st.sampled_from([2, 3, 4, 7]))
    sizes = draw(st.lists(st.sampled_from(COMPUTE_SIZES[slices][:-1]), min_size=1, max_size=7))
    return slices, sizes


@given(parts())
@settings(deadline=None)
def test_packing_is_as_tight_as_the_best_that_brute_force_finds(case: tuple[int, list[int]]):
    slices, sizes = case
    geometry = gpu("A100-80GB")
    profile = next(each for each in geometry.profiles if each.compute_slices == slices)
    devices = Counter(device_name(profile, size) for size in sizes)

    assert len(layout.instances_of(devices, geometry)) == fewest(slices, sorted(sizes))


def fewest(slices: int, sizes: list[int]) -> int:
    return min(
        len(groups)
        for groups in partitions(sizes)
        if all(fits(slices, tuple(sorted(group))) for group in groups)
    )


def partitions(items: list[int]) -> Iterator[list[list[int]]]:
    if not items:
        yield []
        return

    for rest in partitions(items[1:]):
        yield [[items[0]], *rest]
        for at, group in enumerate(rest):
            yield [*rest[:at], [items[0], *group], *rest[at + 1 :]]


@cache
def fits(slices: int, sizes: tuple[int, ...], taken: int = 0) -> bool:
    if not sizes:
        return True

    return any(
        fits(slices, sizes[1:], taken | place.mask)
        for place in compute_placements(slices, sizes[0])
        if not taken & place.mask
    )


def test_instances_that_exist_are_named_too_and_one_without_compute_instance_holds_nothing():
    geometry = gpu("A100-80GB")
    profile = geometry.named("3g.40gb")
    assert profile is not None
    first, second = profile.placements
    compute = ComputeInstance(id=0, placement=ComputePlacement(0, 2), uuid="MIG-a")
    there = [
        GpuInstance(id=2, profile_id=profile.id, placement=first, compute=(compute,)),
        PlacedInstance(profile_id=profile.id, placement=second, compute=()),
    ]

    assert layout.devices_of(there, geometry) == Counter({"2c.3g.40gb": 1})


def test_an_instance_of_another_gpu_is_refused():
    place = gpu("A100-80GB").profiles[0].placements[0]
    stranger = PlacedInstance(profile_id=99, placement=place, compute=(ComputePlacement(0, 1),))

    with pytest.raises(SpecError, match="profile 99"):
        layout.devices_of([stranger], gpu("A100-80GB"))


def test_none_of_a_name_makes_no_instance():
    assert layout.instances_of({"1g.10gb": 0, "1c.3g.40gb": 0}, gpu("A100-80GB")) == ()


def test_a_count_beyond_all_reason_makes_no_instances():
    with pytest.raises(SpecError, match=r"100000000 of 1g\.10gb"):
        layout.instances_of({"1g.10gb": 100_000_000}, gpu("A100-80GB"))
