"""Where GPU instances go: which sets of profiles a GPU has room for, at which memory slices, and what is left.

Pure. The rules, as the driver keeps them (MIG User Guide, and boards read): memory slices are not shared; a
profile starts only where it may; the compute slices of all GPU instances together are at most the GPU's; of
a profile there are at most ``most``; engines that a GPU has once (JPEG, optical flow) go to one instance.

The driver's own placement depends on the order of creation (9,19,14,19 works on an A100, 19,19,14,9 fails), so
ours is always explicit.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache

from scheduler.geometry import Geometry, GpuInstanceProfile, MemoryPlacement, PlacedInstance

ENGINES = ("decoder", "encoder", "jpeg", "ofa")


@dataclass(frozen=True, slots=True)
class Room:
    """What a layout leaves of a GPU."""

    free_memory_slices: tuple[int, ...]
    """Not occupied."""
    wasted_memory_slices: tuple[int, ...]
    """Of these, the ones that no further GPU instance can take."""
    free_compute_slices: int
    wasted_compute_slices: int
    """Of these, how many stay idle however the rest is filled."""
    fits_also: tuple[str, ...]
    """Profiles of which one more has room."""


def place(
    geometry: Geometry, wanted: Sequence[GpuInstanceProfile], kept: Collection[PlacedInstance] = ()
) -> tuple[MemoryPlacement, ...] | None:
    """A placement for each of ``wanted``, in its order, beside instances that stay; None if there is none.

    What it picks leaves the low memory slices free, where the larger profiles must start.
    """
    if _broken_counts(geometry, [*wanted, *_profiles(geometry, kept)]):
        return None

    taken = 0
    for instance in kept:
        taken |= instance.placement.mask

    # Whoever has the least choice first; then equal profiles are neighbours, and placed in descending order.
    order = sorted(
        range(len(wanted)), key=lambda at: (-_size(wanted[at]), len(wanted[at].placements), wanted[at].id)
    )
    found = _search(tuple(wanted[at] for at in order), taken, None)
    if found is None:
        return None

    by_place = dict(zip(order, found, strict=True))
    return tuple(by_place[at] for at in range(len(wanted)))


def why_not(geometry: Geometry, wanted: Sequence[GpuInstanceProfile]) -> str:
    """Why a GPU has no room for this set: every rule that it breaks, in words; empty if it has room."""
    broken = _broken_counts(geometry, wanted)
    memory = sum(_size(profile) for profile in wanted)
    if memory > geometry.memory_slices:
        broken.append(f"{_sum_of(wanted)} take {memory} memory slices, the GPU has {geometry.memory_slices}")

    if not broken and place(geometry, wanted) is None:
        clash = _smallest_clash(geometry, wanted)
        starts = {profile.name: " ".join(str(each.start) for each in profile.placements) for profile in clash}
        broken.append(
            f"{_sum_of(clash)} cannot lie beside each other: "
            + ", ".join(f"{name} starts at memory slice {where} alone" for name, where in starts.items())
        )

    return "; ".join(broken)


def nearest(geometry: Geometry, wanted: Sequence[GpuInstanceProfile], most: int = 3) -> list[Counter[str]]:
    """The sets that a GPU has room for and that come nearest to ``wanted``, best first.

    Nearest: fewest instances missing, then fewest replaced, then the least difference in compute and memory slices
    between the instances, largest compared with largest. Nothing is added to what was asked.
    """
    asked = Counter(profile.name for profile in wanted)
    sizes = _sizes(wanted)

    def distance(names: tuple[str, ...]) -> tuple[int, int, int, tuple[str, ...]]:
        there = Counter(names)
        difference = sum(
            abs(one[0] - other[0]) + abs(one[1] - other[1])
            for one, other in zip(sizes, _padded(_sizes_of(geometry, names), len(sizes)), strict=True)
        )
        return len(wanted) - len(names), (asked - there).total(), difference, names

    candidates = (names for names in possible(geometry) if 0 < len(names) <= len(wanted))
    return [Counter(names) for names in sorted(candidates, key=distance)[:most]]


@lru_cache(maxsize=16)
def possible(geometry: Geometry) -> frozenset[tuple[str, ...]]:
    """Every set of profiles that a GPU has room for, each as its sorted names.

    Built from the last memory slice to the first: what can lie from a slice on is what can lie from the next one
    on, and that with one more instance before it.
    """
    profiles = sorted(geometry.profiles, key=lambda profile: profile.name)
    starting = {
        slice_: [
            (at, place.size)
            for at, profile in enumerate(profiles)
            for place in profile.placements
            if place.start == slice_
        ]
        for slice_ in range(geometry.memory_slices)
    }
    limits = _limits(geometry, profiles)
    none = (0,) * len(profiles)
    from_slice: dict[int, set[tuple[int, ...]]] = {geometry.memory_slices: {none}}
    for slice_ in reversed(range(geometry.memory_slices)):
        here = set(from_slice[slice_ + 1])
        for at, size in starting[slice_]:
            for behind in from_slice[slice_ + size]:
                counts = (*behind[:at], behind[at] + 1, *behind[at + 1 :])
                if all(sum(map(int.__mul__, counts, costs)) <= limit for costs, limit in limits):
                    here.add(counts)

        from_slice[slice_] = here

    return frozenset(
        tuple(profile.name for profile, count in zip(profiles, counts, strict=True) for _ in range(count))
        for counts in from_slice[0]
    )


def room_left(geometry: Geometry, placed: Collection[PlacedInstance]) -> Room:
    """What of a GPU is free beside these instances, and what of that is of no use to anyone."""
    taken = 0
    for instance in placed:
        taken |= instance.placement.mask

    there = _profiles(geometry, placed)
    fitting = [
        (profile, place)
        for profile in geometry.profiles
        if not _broken_counts(geometry, [*there, profile])
        for place in profile.placements
        if not place.mask & taken
    ]
    reachable = 0
    for _, place in fitting:
        reachable |= place.mask

    free = [slice_ for slice_ in range(geometry.memory_slices) if not taken >> slice_ & 1]
    free_compute = geometry.compute_slices - sum(profile.compute_slices for profile in there)
    return Room(
        free_memory_slices=tuple(free),
        wasted_memory_slices=tuple(slice_ for slice_ in free if not reachable >> slice_ & 1),
        free_compute_slices=free_compute,
        wasted_compute_slices=free_compute - _most_compute(geometry, there, taken),
        fits_also=tuple(dict.fromkeys(profile.name for profile, _ in fitting)),
    )


def _search(
    wanted: tuple[GpuInstanceProfile, ...], taken: int, before: MemoryPlacement | None
) -> tuple[MemoryPlacement, ...] | None:
    """Depth first; ``before`` is where the one before was put, for equal profiles never to be tried both ways."""
    if not wanted:
        return ()

    first, rest = wanted[0], wanted[1:]
    for place in reversed(first.placements):
        if place.mask & taken or (before is not None and place.start > before.start):
            continue

        alike = bool(rest) and rest[0].id == first.id
        behind = _search(rest, taken | place.mask, place if alike else None)
        if behind is not None:
            return (place, *behind)

    return None


def _broken_counts(geometry: Geometry, wanted: Sequence[GpuInstanceProfile]) -> list[str]:
    """The rules on numbers that a set breaks; where everything lies is another matter."""
    broken = []
    for profile, count in Counter(wanted).items():
        if count > profile.most:
            broken.append(
                f"{profile.name} is asked for {_times(count)}, the GPU takes it {_times(profile.most)}"
            )

    compute = sum(profile.compute_slices for profile in wanted)
    if compute > geometry.compute_slices:
        broken.append(
            f"{_sum_of(wanted)} take {compute} compute slices, the GPU has {geometry.compute_slices}"
        )

    for engine in _counted_engines(geometry):
        users = [profile for profile in wanted if _engines(profile, engine)]
        there = _engines(geometry.whole, engine)
        if sum(_engines(profile, engine) for profile in users) > there:
            names = "optical flow accelerator" if engine == "ofa" else f"{engine} engine"
            broken.append(
                f"{_sum_of(users)} take more than the {there} {names}{'s' * (there != 1)} of the GPU"
            )

    return broken


@lru_cache(maxsize=16)
def _counted_engines(geometry: Geometry) -> tuple[str, ...]:
    """The engines that limit a layout: those whose figures add up.

    Where a profile, taken as often as the driver says it fits, has more of an engine than the whole GPU, the figures
    do not mean a division, and the engine is left out.
    """
    return tuple(
        engine
        for engine in ENGINES
        if all(
            profile.most * _engines(profile, engine) <= _engines(geometry.whole, engine)
            for profile in geometry.profiles
        )
    )


def _limits(geometry: Geometry, profiles: Sequence[GpuInstanceProfile]) -> list[tuple[tuple[int, ...], int]]:
    """The rules on numbers as (cost of one of each profile, limit of the sum)."""
    limits = [(tuple(profile.compute_slices for profile in profiles), geometry.compute_slices)]
    limits += [(tuple(int(other is profile) for other in profiles), profile.most) for profile in profiles]
    limits += [
        (tuple(_engines(profile, engine) for profile in profiles), _engines(geometry.whole, engine))
        for engine in _counted_engines(geometry)
    ]
    return limits


def _smallest_clash(geometry: Geometry, wanted: Sequence[GpuInstanceProfile]) -> list[GpuInstanceProfile]:
    """A part of ``wanted`` that has no placement, and that has one as soon as any of it is left out."""
    clash = list(wanted)
    for profile in wanted:
        without = list(clash)
        without.remove(profile)
        if place(geometry, without) is None:
            clash = without

    return clash


def _most_compute(geometry: Geometry, there: Sequence[GpuInstanceProfile], taken: int) -> int:
    """The most compute slices that further instances can use."""
    best = 0
    seen: set[tuple[int, tuple[int, ...]]] = set()
    waiting = [(list(there), taken, 0)]
    left = geometry.compute_slices - sum(profile.compute_slices for profile in there)
    while waiting and best < left:
        present, mask, used = waiting.pop()
        best = max(best, used)
        for profile in geometry.profiles:
            if _broken_counts(geometry, [*present, profile]):
                continue

            for place in profile.placements:
                key = (mask | place.mask, tuple(sorted(each.id for each in [*present, profile])))
                if not place.mask & mask and key not in seen:
                    seen.add(key)
                    waiting.append(([*present, profile], key[0], used + profile.compute_slices))

    return best


def _profiles(geometry: Geometry, placed: Collection[PlacedInstance]) -> list[GpuInstanceProfile]:
    found = [geometry.of_id(instance.profile_id) for instance in placed]
    return [profile for profile in found if profile is not None]


def _size(profile: GpuInstanceProfile) -> int:
    return profile.placements[0].size


def _engines(profile: GpuInstanceProfile, engine: str) -> int:
    return int(getattr(profile.engines, engine) or 0)


def _sizes(profiles: Sequence[GpuInstanceProfile]) -> list[tuple[int, int]]:
    return sorted(((profile.compute_slices, _size(profile)) for profile in profiles), reverse=True)


def _sizes_of(geometry: Geometry, names: Sequence[str]) -> list[tuple[int, int]]:
    by_name = {profile.name: profile for profile in geometry.profiles}
    return _sizes([by_name[name] for name in names])


def _padded(sizes: list[tuple[int, int]], length: int) -> list[tuple[int, int]]:
    return sizes + [(0, 0)] * (length - len(sizes))


def _sum_of(profiles: Sequence[GpuInstanceProfile]) -> str:
    """``4g.40gb + 1g.10gb×3``"""
    return " + ".join(
        name if count == 1 else f"{name}×{count}"
        for name, count in Counter(each.name for each in profiles).items()
    )


def _times(count: int) -> str:
    return {1: "once", 2: "twice"}.get(count, f"{count} times")
