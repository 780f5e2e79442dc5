"""Placement against brute force: every set of profiles, every rule, on both kinds of GPU."""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import islice, product

import pytest

from scheduler import gpu_tables
from scheduler.geometry import Geometry, GpuInstanceProfile, MemoryPlacement, PlacedInstance
from scheduler.placement import nearest, place, possible, room_left, why_not

GPUS = ("A100-80GB", "H100-80GB", "A30")
LONGEST_PLAN_S = 0.05


@cache
def geometry(name: str) -> Geometry:
    return gpu_tables.named(name)


def profiles(name: str, *names: str) -> list[GpuInstanceProfile]:
    found = [geometry(name).named(each) for each in names]
    assert all(found), names
    return [each for each in found if each is not None]


def every_multiset(gpu: Geometry) -> Iterator[list[GpuInstanceProfile]]:
    """Also ones that ask for one more than there can be of each."""
    for counts in product(*(range(profile.most + 2) for profile in gpu.profiles)):
        yield [profile for profile, count in zip(gpu.profiles, counts, strict=True) for _ in range(count)]


def fits_by_brute_force(gpu: Geometry, wanted: Sequence[GpuInstanceProfile]) -> bool:
    """The rules once more, without any of the program's shortcuts: try all arrangements slice by slice."""
    if sum(profile.compute_slices for profile in wanted) > (7 if gpu.memory_slices == 8 else 4):
        return False

    if any(wanted.count(profile) > profile.most for profile in gpu.profiles):
        return False

    with_media = sum("+me" in profile.name for profile in wanted)
    has_all_media = any(profile is gpu.whole for profile in wanted)
    if with_media + has_all_media > 1:  # one optical flow accelerator on each of these GPUs
        return False

    return _arranged(list(wanted), set())


def _arranged(wanted: list[GpuInstanceProfile], taken: set[int]) -> bool:
    if not wanted:
        return True

    first, *rest = wanted
    for start in (each.start for each in first.placements):
        slices = set(range(start, start + first.placements[0].size))
        if not slices & taken and _arranged(rest, taken | slices):
            return True

    return False


@pytest.mark.parametrize("name", GPUS)
def test_every_multiset_agrees_with_brute_force(name: str):
    gpu = geometry(name)
    checked = fitting = 0
    for wanted in every_multiset(gpu):
        checked += 1
        found = place(gpu, wanted)
        expected = fits_by_brute_force(gpu, wanted)
        assert (found is not None) == expected, [profile.name for profile in wanted]
        assert (tuple(sorted(profile.name for profile in wanted)) in possible(gpu)) == expected
        assert (why_not(gpu, wanted) == "") == expected
        if found is not None:
            fitting += 1
            assert_legal(wanted, found)

    assert fitting == len(possible(gpu))
    assert checked > 10 * fitting > 100


def assert_legal(wanted: Sequence[GpuInstanceProfile], found: Sequence[MemoryPlacement]) -> None:
    taken: Counter[int] = Counter()
    for profile, where in zip(wanted, found, strict=True):
        assert where in profile.placements
        taken.update(range(where.start, where.start + where.size))

    assert set(taken.values()) <= {1}


@pytest.mark.parametrize("name", GPUS)
def test_no_plan_takes_50_ms(name: str):
    """With the reason and the nearest where it cannot be had; every eleventh set, CPU time. Takes 4 ms here."""
    gpu = geometry(name)
    worst = 0.0
    for wanted in islice(every_multiset(gpu), 0, None, 11):
        began = time.process_time()
        if place(gpu, wanted) is None:
            why_not(gpu, wanted)
            nearest(gpu, wanted)

        worst = max(worst, time.process_time() - began)

    assert worst < LONGEST_PLAN_S


@pytest.mark.parametrize("order", [(9, 19, 14, 19), (19, 19, 14, 9)])
def test_the_documented_sequences_both_succeed(order: tuple[int, ...]):
    gpu = geometry("A100-80GB")
    wanted = [profile for each in order if (profile := gpu.of_id(each))]
    found = place(gpu, wanted)
    assert found is not None
    assert_legal(wanted, found)


@pytest.mark.parametrize(
    ("name", "asked", "reason"),
    [
        ("A100-80GB", ["4g.40gb"] * 2, "4g.40gb is asked for twice, the GPU takes it once"),
        ("A100-80GB", ["4g.40gb"] * 2, "8 compute slices, the GPU has 7"),
        ("H100-80GB", ["1g.10gb+me"] * 2, "1g.10gb+me is asked for twice, the GPU takes it once"),
        ("H100-80GB", ["1g.10gb+me"] * 2, "take more than the 1 optical flow accelerator of the GPU"),
        ("A30", ["1g.6gb+me", "2g.12gb+me"], "take more than the 1 optical flow accelerator of the GPU"),
        (
            "A100-80GB",
            ["3g.40gb"] * 2 + ["1g.10gb"] * 2,
            "3g.40gb×2 + 1g.10gb×2 take 8 compute slices, the GPU has 7",
        ),
        (
            "A100-80GB",
            ["3g.40gb"] * 2 + ["1g.10gb"],
            "3g.40gb×2 + 1g.10gb take 9 memory slices, the GPU has 8",
        ),
        (
            "A100-80GB",
            ["3g.40gb", "1g.20gb", "1g.20gb", "1g.10gb", "1g.10gb+me"],
            "take 10 memory slices",
        ),
        ("A100-80GB", ["1g.10gb"] * 6 + ["1g.20gb"] * 1 + ["1g.10gb+me"], "8 compute slices"),
    ],
)
def test_what_cannot_be_had_says_why(name: str, asked: list[str], reason: str):
    assert reason in why_not(geometry(name), profiles(name, *asked))


def test_a_clash_names_only_who_clashes():
    """Seven of eight memory slices by count, but a 2g never starts at slice 6, where the room is."""
    gpu = Geometry(
        gpu_name="made up",
        source="this test",
        profiles=tuple(
            GpuInstanceProfile(
                name=profile.name,
                id=profile.id,
                enum=profile.enum,
                compute_slices=profile.compute_slices,
                placements=profile.placements[:2] if profile.name == "2g.20gb" else profile.placements,
                most=profile.most,
                memory_mib=profile.memory_mib,
                sms=profile.sms,
                engines=profile.engines,
            )
            for profile in geometry("A100-80GB").profiles
        ),
    )
    asked = [each for name in ("2g.20gb", "2g.20gb", "2g.20gb", "1g.10gb") if (each := gpu.named(name))]
    assert why_not(gpu, asked) == (
        "2g.20gb×3 cannot lie beside each other: 2g.20gb starts at memory slice 0 2 alone"
    )


@pytest.mark.parametrize(
    ("asked", "first"),
    [
        (["4g.40gb"] * 2, {"4g.40gb": 1, "3g.40gb": 1}),
        (["1g.10gb+me"] * 2, {"1g.10gb+me": 1, "1g.10gb": 1}),
        (["3g.40gb"] * 2 + ["1g.10gb"] * 2, {"3g.40gb": 1, "2g.20gb": 1, "1g.10gb": 2}),
        (["1g.10gb"] * 9, {"1g.10gb": 7}),
    ],
)
def test_nearest_is_what_a_person_would_take_instead(asked: list[str], first: dict[str, int]):
    gpu = geometry("A100-80GB")
    found = nearest(gpu, profiles("A100-80GB", *asked))
    assert found[0] == first
    for each in found:
        assert place(gpu, profiles("A100-80GB", *each.elements())) is not None


def placed(name: str, *instances: tuple[str, int]) -> list[PlacedInstance]:
    return [
        PlacedInstance(
            profile_id=profile.id,
            placement=next(each for each in profile.placements if each.start == start),
            compute=(),
        )
        for (_, start), profile in zip(
            instances, profiles(name, *(each for each, _ in instances)), strict=True
        )
    ]


def test_new_instances_lie_beside_those_that_stay():
    gpu = geometry("A100-80GB")
    [one] = profiles("A100-80GB", "3g.40gb")
    assert place(gpu, [one], placed("A100-80GB", ("3g.40gb", 0))) == (MemoryPlacement(4, 4),)
    assert place(gpu, [one], placed("A100-80GB", ("1g.10gb", 0), ("1g.10gb", 6))) is None


def test_what_is_placed_first_leaves_the_low_slices_to_the_large():
    gpu = geometry("A100-80GB")
    small = profiles("A100-80GB", "1g.10gb", "2g.20gb")
    found = place(gpu, small)
    assert found is not None
    staying = [
        PlacedInstance(profile_id=profile.id, placement=where, compute=())
        for profile, where in zip(small, found, strict=True)
    ]
    assert place(gpu, profiles("A100-80GB", "4g.40gb"), staying) == (MemoryPlacement(0, 4),)


def test_waste_is_what_nobody_can_take_any_more():
    gpu = geometry("A100-80GB")
    room = room_left(gpu, placed("A100-80GB", ("4g.40gb", 0), ("2g.20gb", 4), ("1g.10gb", 6)))
    assert (room.free_memory_slices, room.wasted_memory_slices) == ((7,), (7,))
    assert (room.free_compute_slices, room.wasted_compute_slices, room.fits_also) == (0, 0, ())

    room = room_left(gpu, placed("A100-80GB", ("3g.40gb", 0), ("3g.40gb", 4)))
    assert (room.free_compute_slices, room.wasted_compute_slices) == (1, 1)
    assert room.free_memory_slices == ()

    room = room_left(gpu, placed("A100-80GB", ("2g.20gb", 0), ("2g.20gb", 2), ("2g.20gb", 4)))
    assert (room.free_memory_slices, room.wasted_memory_slices) == ((6, 7), ())
    assert (room.free_compute_slices, room.wasted_compute_slices) == (1, 0)
    assert set(room.fits_also) == {"1g.10gb", "1g.10gb+me", "1g.20gb"}

    everything = room_left(gpu, [])
    assert everything.wasted_memory_slices == ()
    assert len(everything.fits_also) == len(gpu.profiles)


@pytest.mark.parametrize("name", GPUS)
def test_wasted_compute_slices_are_those_that_no_further_instances_use(name: str):
    """Against every set of further instances that there is room for beside what stays where it is."""
    gpu = geometry(name)
    for names in sorted(possible(gpu))[::7]:
        there = profiles(name, *names)
        places = place(gpu, there)
        assert places is not None
        stays = placed(name, *zip(names, (each.start for each in places), strict=True))
        most = 0
        for larger in possible(gpu):
            added = Counter(larger) - Counter(names)
            if added.total() == len(larger) - len(names):
                more = profiles(name, *added.elements())
                if place(gpu, more, stays) is not None:
                    most = max(most, sum(each.compute_slices for each in more))

        room = room_left(gpu, stays)
        assert room.wasted_compute_slices == room.free_compute_slices - most, names
