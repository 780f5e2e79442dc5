"""From the layout that is there to the one that is wanted, touching as little as can be: a diff. Pure.

``target`` decides where everything is to lie, ``steps`` what to destroy and create for it. The same ``steps``
lead back: a restore is the diff to the layout that was there before.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TypeVar

from scheduler.geometry import (
    ComputeInstance,
    ComputePlacement,
    Geometry,
    GpuInstance,
    MemoryPlacement,
    PlacedInstance,
    WantedInstance,
    compute_placements,
)
from scheduler.placement import place


@dataclass(frozen=True, slots=True, order=True)
class DestroyCompute:
    """Destroy one compute instance of a GPU instance."""

    profile_id: int
    placement: MemoryPlacement
    compute: ComputePlacement


@dataclass(frozen=True, slots=True, order=True)
class DestroyGpu:
    """Destroy a GPU instance, empty by then."""

    profile_id: int
    placement: MemoryPlacement


@dataclass(frozen=True, slots=True, order=True)
class CreateGpu:
    """Create a GPU instance."""

    profile_id: int
    placement: MemoryPlacement


@dataclass(frozen=True, slots=True, order=True)
class CreateCompute:
    """Create a compute instance in a GPU instance."""

    profile_id: int
    placement: MemoryPlacement
    compute: ComputePlacement


Step = DestroyCompute | DestroyGpu | CreateGpu | CreateCompute
Layout = frozenset[PlacedInstance]


def steps(current: Collection[PlacedInstance], wanted: Collection[PlacedInstance]) -> list[Step]:
    """What leads from one layout to the other: first all that goes, compute instances before their GPU
    instance, then all that comes, GPU instances before their compute instances; larger ones first."""
    there = {(each.profile_id, each.placement): set(each.compute) for each in current}
    to_be = {(each.profile_id, each.placement): set(each.compute) for each in wanted}
    going: list[Step] = []
    for where in sorted(there, key=_larger_first):
        going += [
            DestroyCompute(*where, compute) for compute in sorted(there[where] - to_be.get(where, set()))
        ]
        if where not in to_be:
            going.append(DestroyGpu(*where))

    coming: list[Step] = []
    for where in sorted(to_be, key=_larger_first):
        if where not in there:
            coming.append(CreateGpu(*where))

        coming += [
            CreateCompute(*where, compute) for compute in sorted(to_be[where] - there.get(where, set()))
        ]

    return going + coming


def after(layout: Layout, step: Step) -> Layout:
    """The layout once a step is done.

    Raises:
        KeyError: the step does not apply to this layout.
    """
    there = {(each.profile_id, each.placement): each.compute for each in layout}
    where = (step.profile_id, step.placement)
    if isinstance(step, CreateGpu):
        if where in there:
            raise KeyError(where)

        there[where] = ()
    elif isinstance(step, DestroyGpu):
        if there.pop(where):
            raise KeyError(where)
    elif isinstance(step, CreateCompute):
        there[where] = tuple(sorted((*there[where], step.compute)))
    else:
        there[where] = tuple(each for each in there[where] if each != step.compute)

    return frozenset(
        PlacedInstance(profile_id=profile_id, placement=placement, compute=compute)
        for (profile_id, placement), compute in there.items()
    )


def target(
    geometry: Geometry,
    current: Sequence[GpuInstance],
    wanted: Sequence[WantedInstance],
    busy: Collection[str] = (),
) -> Layout | None:
    """Where the wanted instances are to lie, so that the change from ``current`` is the smallest.

    Smallest: first the fewest MIG devices lost on which something runs, then the fewest GPU instances
    destroyed, then the fewest compute instances destroyed.

    Args:
        geometry: of the GPU.
        current: the instances that are there.
        wanted: what is to be there.
        busy: UUIDs of the MIG devices on which something runs.

    Returns:
        None where the GPU has no room for ``wanted``.
    """
    keeper = _Keeper(current, wanted, busy)
    choices = [keeper.choice(kept) for kept in _subsets(current)]
    for choice in sorted((each for each in choices if each is not None), key=lambda each: each.loss):
        others = _without(wanted, choice.shapes)
        places = place(geometry, [each.profile for each in others], choice.staying)
        if places is not None:
            new = [
                PlacedInstance(profile_id=each.profile.id, placement=where, compute=each.compute)
                for each, where in zip(others, places, strict=True)
            ]
            return frozenset([*choice.staying, *new])

    return None


_T = TypeVar("_T")
_Shape = tuple[int, tuple[int, ...]]
"""Profile id and the sizes of the compute instances, ascending."""
_Loss = tuple[int, int, int]
"""Busy MIG devices, GPU instances and compute instances that go."""


@dataclass(frozen=True)
class _Choice:
    """Some of the GPU instances stay: as what, and what is lost."""

    loss: _Loss
    staying: tuple[PlacedInstance, ...]
    shapes: tuple[_Shape, ...]
    """What of the wanted they are."""


class _Keeper:
    """What is lost if these or those GPU instances are kept."""

    def __init__(
        self, current: Sequence[GpuInstance], wanted: Sequence[WantedInstance], busy: Collection[str]
    ) -> None:
        self._current = current
        self._busy = busy
        self._wanted = Counter(_shape(each) for each in wanted)
        self._compute_slices = {each.profile.id: each.profile.compute_slices for each in wanted}
        self._kept: dict[tuple[int, _Shape], tuple[_Loss, PlacedInstance]] = {}

    def choice(self, kept: Sequence[GpuInstance]) -> _Choice | None:
        """Keep these and destroy the others; None where one of them is not wanted in any form."""
        best = self._best(tuple(kept), self._wanted)
        if best is None:
            return None

        loss, staying, shapes = best
        for instance in self._current:
            if instance not in kept:
                loss = _sum(loss, (self._count_busy(instance.compute), 1, len(instance.compute)))

        return _Choice(loss, staying, shapes)

    def _best(
        self, kept: tuple[GpuInstance, ...], wanted: Counter[_Shape]
    ) -> tuple[_Loss, tuple[PlacedInstance, ...], tuple[_Shape, ...]] | None:
        """The pairing of kept instances with shapes that loses the least."""
        if not kept:
            return (0, 0, 0), (), ()

        first, rest = kept[0], kept[1:]
        found = []
        for shape in wanted:
            if shape[0] != first.profile_id or not wanted[shape]:
                continue

            behind = self._best(rest, wanted - Counter([shape]))
            if behind is not None:
                loss, placed = self._keeping(first, shape)
                found.append((_sum(loss, behind[0]), (placed, *behind[1]), (shape, *behind[2])))

        return min(found, key=lambda each: (each[0], each[2]), default=None)

    def _keeping(self, instance: GpuInstance, shape: _Shape) -> tuple[_Loss, PlacedInstance]:
        """The GPU instance stays, and takes the compute instances of this shape: what is lost within."""
        if (instance.id, shape) not in self._kept:
            self._kept[instance.id, shape] = min(
                self._ways_within(instance, shape), key=lambda each: (each[0], each[1].compute)
            )

        return self._kept[instance.id, shape]

    def _ways_within(self, instance: GpuInstance, shape: _Shape) -> Iterator[tuple[_Loss, PlacedInstance]]:
        slices = self._compute_slices[instance.profile_id]
        for staying in _subsets(instance.compute):
            missing = Counter(shape[1])
            missing.subtract(each.placement.size for each in staying)
            if min(missing.values(), default=0) < 0:
                continue

            where = [each.placement for each in staying]
            new = place_compute(slices, sorted(missing.elements(), reverse=True), where)
            if new is not None:
                gone = [each for each in instance.compute if each not in staying]
                placed = PlacedInstance(
                    profile_id=instance.profile_id,
                    placement=instance.placement,
                    compute=tuple(sorted([*where, *new])),
                )
                yield (self._count_busy(gone), 0, len(gone)), placed

    def _count_busy(self, instances: Iterable[ComputeInstance]) -> int:
        return sum(each.uuid in self._busy for each in instances)


def place_compute(
    compute_slices: int, sizes: Sequence[int], kept: Sequence[ComputePlacement] = ()
) -> tuple[ComputePlacement, ...] | None:
    """A placement for a compute instance of each size beside those that stay; None if there is none.

    Args:
        compute_slices: of the GPU instance.
        sizes: largest first.
        kept: occupied.
    """
    if not sizes:
        return ()

    taken = 0
    for each in kept:
        taken |= each.mask

    for where in compute_placements(compute_slices, sizes[0]):
        if not where.mask & taken:
            behind = place_compute(compute_slices, sizes[1:], [*kept, where])
            if behind is not None:
                return (where, *behind)

    return None


def _shape(wanted: WantedInstance) -> _Shape:
    return wanted.profile.id, tuple(sorted(each.size for each in wanted.compute))


def _without(wanted: Sequence[WantedInstance], shapes: Iterable[_Shape]) -> list[WantedInstance]:
    gone = Counter(shapes)
    left = []
    for each in wanted:
        if gone[_shape(each)]:
            gone[_shape(each)] -= 1
        else:
            left.append(each)

    return left


def _subsets(items: Sequence[_T]) -> Iterator[tuple[_T, ...]]:
    for count in range(len(items), -1, -1):
        yield from combinations(items, count)


def _sum(one: _Loss, other: _Loss) -> _Loss:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def _larger_first(where: tuple[int, MemoryPlacement]) -> tuple[int, int, int]:
    profile_id, placement = where
    return -placement.size, placement.start, profile_id
