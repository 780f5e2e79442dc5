"""The smallest change from one layout to another: what stays, and that the steps lead there."""

from collections import Counter
from functools import cache
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import gpu_tables
from scheduler.geometry import (
    ComputeInstance,
    ComputePlacement,
    Geometry,
    GpuInstance,
    MemoryPlacement,
    PlacedInstance,
    WantedInstance,
    compute_placements,
    layout_of,
)
from scheduler.placement import place, possible
from scheduler.reshape import (
    CreateCompute,
    CreateGpu,
    DestroyCompute,
    DestroyGpu,
    after,
    place_compute,
    steps,
    target,
)


@cache
def gpu() -> Geometry:
    return gpu_tables.named("A100-80GB")


def there(id_: int, name: str, start: int, sizes: tuple[int, ...] | None = None) -> GpuInstance:
    """A GPU instance; without sizes its one compute instance has all of it."""
    profile = gpu().named(name)
    assert profile is not None
    inside = place_compute(profile.compute_slices, (profile.compute_slices,) if sizes is None else sizes)
    assert inside is not None
    return GpuInstance(
        id=id_,
        profile_id=profile.id,
        placement=MemoryPlacement(start, profile.placements[0].size),
        compute=tuple(
            ComputeInstance(id=at, placement=where, uuid=f"MIG-{id_}-{at}")
            for at, where in enumerate(sorted(inside))
        ),
    )


def want(*asked: str | tuple[str, tuple[int, ...]]) -> list[WantedInstance]:
    wanted = []
    for each in asked:
        name, sizes = each if isinstance(each, tuple) else (each, None)
        profile = gpu().named(name)
        assert profile is not None
        inside = place_compute(
            profile.compute_slices,
            (profile.compute_slices,) if sizes is None else sorted(sizes, reverse=True),
        )
        assert inside is not None
        wanted.append(WantedInstance(profile=profile, compute=tuple(sorted(inside))))

    return wanted


def change(current: list[GpuInstance], wanted: list[WantedInstance], busy: tuple[str, ...] = ()):
    found = target(gpu(), current, wanted, busy)
    assert found is not None
    return steps(layout_of(current), found)


SECOND_HALF = MemoryPlacement(4, 4)


def test_two_3g_to_3g_2g_1g_touches_only_the_second_3g():
    current = [there(1, "3g.40gb", 0), there(2, "3g.40gb", 4)]
    assert change(current, want("3g.40gb", "2g.20gb", "1g.10gb")) == [
        DestroyCompute(9, SECOND_HALF, ComputePlacement(0, 3)),
        DestroyGpu(9, SECOND_HALF),
        CreateGpu(14, MemoryPlacement(4, 2)),
        CreateCompute(14, MemoryPlacement(4, 2), ComputePlacement(0, 2)),
        CreateGpu(19, MemoryPlacement(6, 1)),
        CreateCompute(19, MemoryPlacement(6, 1), ComputePlacement(0, 1)),
    ]


def test_within_a_gpu_instance_the_compute_instance_that_is_busy_stays():
    current = [there(1, "3g.40gb", 0, (1, 1, 1))]
    for at, device in enumerate(current[0].compute):
        gone = {step.compute.start for step in change(current, want(("3g.40gb", (1,))), (f"MIG-1-{at}",))}
        assert gone == {0, 1, 2} - {device.placement.start}


def test_the_one_that_is_busy_stays():
    current = [there(1, "3g.40gb", 0), there(2, "3g.40gb", 4)]
    going = [
        step
        for step in change(current, want("3g.40gb", "2g.20gb", "1g.10gb"), ("MIG-2-0",))
        if isinstance(step, DestroyGpu)
    ]
    assert going == [DestroyGpu(9, MemoryPlacement(0, 4))]


def test_what_is_there_already_needs_nothing():
    current = [there(7, "1g.10gb", 3), there(1, "3g.40gb", 4), there(3, "2g.20gb", 0, (1, 1))]
    assert change(current, want(("2g.20gb", (1, 1)), "3g.40gb", "1g.10gb")) == []


def test_within_a_gpu_instance_only_what_differs_changes():
    current = [there(1, "4g.40gb", 0, (2, 1, 1))]
    where = MemoryPlacement(0, 4)
    assert change(current, want(("4g.40gb", (2, 2)))) == [
        DestroyCompute(5, where, ComputePlacement(2, 1)),
        DestroyCompute(5, where, ComputePlacement(3, 1)),
        CreateCompute(5, where, ComputePlacement(2, 2)),
    ]


def test_a_gpu_instance_without_compute_instance_gets_one():
    current = [there(1, "3g.40gb", 4, ())]
    assert change(current, want("3g.40gb")) == [CreateCompute(9, SECOND_HALF, ComputePlacement(0, 3))]


def test_what_stands_in_the_way_moves():
    """A 1g at slice 0 and one at 4 leave no half free: one has to go, the idle one."""
    current = [there(7, "1g.10gb", 0), there(8, "1g.10gb", 4)]
    found = change(current, want("3g.40gb", "1g.10gb", "1g.10gb"), ("MIG-7-0",))
    assert DestroyGpu(19, MemoryPlacement(4, 1)) in found
    assert DestroyGpu(19, MemoryPlacement(0, 1)) not in found
    assert CreateGpu(9, SECOND_HALF) in found


def test_no_room_is_no_target():
    assert target(gpu(), [], want("4g.40gb", "4g.40gb")) is None


def test_a_step_that_does_not_apply_is_refused():
    with pytest.raises(KeyError):
        after(frozenset(), DestroyGpu(9, SECOND_HALF))

    with pytest.raises(KeyError):
        after(layout_of([there(1, "3g.40gb", 4)]), DestroyGpu(9, SECOND_HALF))


# ---------------------------------------------------------------------- any layout to any other


def wanted_of(names: tuple[str, ...]) -> st.SearchStrategy[list[WantedInstance]]:
    """These profiles, each with any compute instances that fit it."""
    profiles = [profile for name in names if (profile := gpu().named(name))]
    inside = [st.sampled_from(every_inside(profile.compute_slices)) for profile in profiles]
    return st.tuples(*inside).map(
        lambda chosen: [
            WantedInstance(profile=profile, compute=compute)
            for profile, compute in zip(profiles, chosen, strict=True)
        ]
    )


@cache
def every_inside(slices: int) -> list[tuple[ComputePlacement, ...]]:
    """All sets of compute instances of a GPU instance, none too."""
    all_places = [place for size in range(1, slices + 1) for place in compute_placements(slices, size)]
    return [
        tuple(sorted(chosen))
        for count in range(slices + 1)
        for chosen in combinations(all_places, count)
        if sum(place.size for place in chosen) == sum(place.mask for place in chosen).bit_count()
        and _disjoint(chosen)
    ]


def _disjoint(places: tuple[ComputePlacement, ...]) -> bool:
    taken = Counter(slice_ for each in places for slice_ in range(each.start, each.start + each.size))
    return not taken or max(taken.values()) == 1


layouts = st.sampled_from(sorted(possible(gpu_tables.named("A100-80GB")))).flatmap(wanted_of)


def existing(wanted: list[WantedInstance]) -> list[GpuInstance]:
    places = place(gpu(), [each.profile for each in wanted])
    assert places is not None
    return [
        GpuInstance(
            id=at,
            profile_id=each.profile.id,
            placement=where,
            compute=tuple(
                ComputeInstance(id=number, placement=inside, uuid=f"MIG-{at}-{number}")
                for number, inside in enumerate(each.compute)
            ),
        )
        for at, (each, where) in enumerate(zip(wanted, places, strict=True))
    ]


def shape(layout: frozenset[PlacedInstance] | list[WantedInstance]) -> Counter[tuple[int, tuple[int, ...]]]:
    return Counter(
        (
            each.profile.id if isinstance(each, WantedInstance) else each.profile_id,
            tuple(sorted(inside.size for inside in each.compute)),
        )
        for each in layout
    )


@given(layouts, layouts, st.integers(0, 7))
def test_the_steps_lead_from_any_layout_to_any_other(
    before: list[WantedInstance], wanted: list[WantedInstance], busy: int
):
    current = existing(before)
    devices = [each.uuid for instance in current for each in instance.compute if each.uuid]
    found = target(gpu(), current, wanted, devices[:busy])
    assert found is not None
    assert shape(found) == shape(wanted)

    layout = layout_of(current)
    for step in steps(layout, found):
        layout = after(layout, step)
        assert_legal(layout)

    assert layout == found
    assert steps(found, found) == []


@given(layouts, layouts)
def test_nothing_that_could_stay_goes(before: list[WantedInstance], wanted: list[WantedInstance]):
    """No larger set of GPU instances could have been kept: tried one by one."""
    current = existing(before)
    found = target(gpu(), current, wanted)
    assert found is not None
    kept = sum(
        (each.profile_id, each.placement) in {(one.profile_id, one.placement) for one in found}
        for each in current
    )
    for more in combinations(current, kept + 1):
        staying = Counter(each.profile_id for each in more)
        if staying <= Counter(each.profile.id for each in wanted):
            rest = Counter(each.profile.id for each in wanted) - staying
            new = [profile for each in rest.elements() if (profile := gpu().of_id(each))]
            assert place(gpu(), new, [each.placed for each in more]) is None


def assert_legal(layout: frozenset[PlacedInstance]) -> None:
    taken: Counter[int] = Counter()
    for each in layout:
        profile = gpu().of_id(each.profile_id)
        assert profile is not None
        assert each.placement in profile.placements
        taken.update(range(each.placement.start, each.placement.start + each.placement.size))
        assert _disjoint(each.compute)

    assert set(taken.values()) <= {1}
