"""Layouts as names and counts of MIG devices: what a line of text asks for, the GPU instances it stands for. Pure.

The names are NVML's as go-nvlib reads them (pkg/nvlib/device/mig_profile.go): ``[Nc.]Ng.Mgb[+attribute]``.
"""

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from scheduler.errors import SpecError
from scheduler.geometry import (
    ComputePlacement,
    Geometry,
    GpuInstance,
    GpuInstanceProfile,
    PlacedInstance,
    WantedInstance,
    compute_placements,
    device_name,
)

Devices = Mapping[str, int]
"""Name of a MIG device (``1g.10gb``, ``1c.3g.40gb``) → how many. A name that is not there is none."""

MOST_OF_A_NAME = 99
"""A GPU has at most 8 MIG devices; a request beyond this is a slip of the hand and not worth a plan."""

_NAME = re.compile(
    r"(?:(?P<c>\d{1,2})c\.)?(?P<g>\d{1,2})g\.(?P<gb>\d{1,4})gb"
    r"(?:(?P<sign>[+-])(?P<attribute>[a-z][a-z0-9]*(?:\.[a-z0-9]+)*)|\.(?P<dotted>me\.all|me|gfx))?"
)


@dataclass(frozen=True, slots=True, order=True)
class DeviceRequest:
    """The name of one MIG device, taken apart."""

    slices: int
    """``3`` of ``3g``"""
    memory_gb: int
    attributes: str
    """``+me``, ``-me``, ``+me.all``, ``+gfx``, or empty."""
    compute_slices: int
    """``1`` of ``1c``; where the name has no such part, all of them."""

    @property
    def profile_name(self) -> str:
        """The GPU instance's profile: ``3g.40gb`` of ``1c.3g.40gb``."""
        return f"{self.slices}g.{self.memory_gb}gb{self.attributes}"

    @property
    def name(self) -> str:
        """As the driver writes it: without a ``c`` part where that says nothing."""
        part = "" if self.compute_slices == self.slices else f"{self.compute_slices}c."
        return part + self.profile_name


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuTarget:
    """What one GPU is to become."""

    mig_enabled: bool
    devices: Devices
    """Empty where MIG is to be disabled."""


def parse_name(text: str) -> DeviceRequest | None:
    """Take a MIG device's name apart; None if it is none.

    ``1g.10gb.me``, as Kubernetes resources and labels spell it, is ``1g.10gb+me``.
    """
    match = _NAME.fullmatch(text.strip().lower())
    if match is None:
        return None

    attributes = f"{match['sign'] or ''}{match['attribute'] or ''}"
    if match["dotted"]:
        attributes = f"+{match['dotted']}"

    slices = int(match["g"])
    return DeviceRequest(slices, int(match["gb"]), attributes, int(match["c"] or slices))


def parse_devices(text: str, geometry: Geometry) -> Counter[str]:
    """Names and counts out of ``3g.71gb, 2g.35gb, 1g.18gb*2``, or out of profile ids, ``9,14,19*2``.

    Whether the GPU has room for them is not looked at; the order does not matter.

    Raises:
        SpecError: a name or id that this GPU does not have, or a count that is none.
    """
    wanted: Counter[str] = Counter()
    for item in text.split(","):
        word, star, count = (part.strip() for part in item.partition("*"))
        if not word or (star and not re.fullmatch(r"[+-]?[0-9]{1,18}", count)):
            raise SpecError(
                asked=f"the layout {text!r}",
                found=f"{item.strip()!r} is not a profile, or a profile and a count",
                do="write names or profile ids with commas between them: 3g.71gb,1g.18gb*2 or 9,19,19",
            )

        by_id = geometry.of_id(int(word)) if re.fullmatch(r"[0-9]{1,4}", word) else None
        name = by_id.name if by_id else _device(word, geometry, f"the layout {text!r}")[0]
        wanted[name] += _count(int(count) if star else 1, name, f"the layout {text!r}", least=1)

    return wanted


def text_of(devices: Devices) -> str:
    """The line of text for these MIG devices, the largest first: ``3g.71gb,1g.18gb*2``."""
    return ",".join(
        name if count == 1 else f"{name}*{count}"
        for name, count in sorted(devices.items(), key=lambda each: size_order(each[0]))
        if count
    )


def size_order(name: str) -> tuple[int, int, str, int]:
    """A key that sorts names of MIG devices: the largest GPU instances first, then the largest parts."""
    request = parse_name(name)
    if request is None:
        return (0, 0, name, 0)

    return (-request.slices, -request.memory_gb, request.attributes, -request.compute_slices)


def _count(count: int, name: str, asked: str, *, least: int) -> int:
    if least <= count <= MOST_OF_A_NAME:
        return count

    raise SpecError(
        asked=asked,
        found=f"{count} of {name}",
        do=f"ask for {least} to {MOST_OF_A_NAME}" + ("; leave out what you do not want" if least else ""),
    )


def _device(name: str, geometry: Geometry, asked: str) -> tuple[str, GpuInstanceProfile, int]:
    """A MIG device of this GPU: its name as the driver writes it, its profile, its compute slices."""
    request = parse_name(name)
    profile = geometry.named(request.profile_name) if request else None
    if request is None or profile is None:
        raise _not_here(name, request, geometry, asked)

    # The profile's own number counts: a driver may name 1g what has no single compute slice.
    size = request.compute_slices if request.compute_slices != request.slices else profile.compute_slices
    if not compute_placements(profile.compute_slices, size):
        parts = [each for each in range(1, 9) if compute_placements(profile.compute_slices, each)]
        raise SpecError(
            asked=asked,
            found=f"{name}: a {profile.name} has no compute instance of {size} slices",
            do=f"take {', '.join(device_name(profile, each) for each in parts)}",
        )

    return device_name(profile, size), profile, size


def _not_here(name: str, request: DeviceRequest | None, geometry: Geometry, asked: str) -> SpecError:
    there = [each.name for each in geometry.profiles]
    if request is None:
        found = f"{name!r} is neither a profile of the {geometry.gpu_name} nor the id of one"
        alike = difflib.get_close_matches(name.lower(), there, n=2)
    else:
        found = f"the {geometry.gpu_name} has no {request.profile_name}"
        attributes = {each: (parse_name(each) or request).attributes for each in there}
        alike = [
            each.name
            for each in geometry.profiles
            if each.compute_slices == request.slices and attributes[each.name] == request.attributes
        ]

    ids = ", ".join(f"{each.name} ({each.id})" for each in geometry.profiles)
    return SpecError(
        asked=asked,
        found=found,
        do=(f"perhaps {' or '.join(alike)}? " if alike else "") + f"it has, with their ids: {ids}",
    )


# ---------------------------------------------------------------------- MIG devices and GPU instances


def instances_of(devices: Devices, geometry: Geometry) -> tuple[WantedInstance, ...]:
    """The GPU instances that these MIG devices need: as few as possible.

    A device without ``c`` part is a GPU instance of its own; ``Nc.`` devices of one profile share.

    Raises:
        SpecError: a name that this GPU does not have, or a count beyond all reason.
    """
    asked = "the layout " + ",".join(f"{name}*{count}" for name, count in devices.items())
    sizes: dict[int, list[int]] = {}
    for name, count in devices.items():
        canonical, profile, size = _device(name, geometry, asked)
        sizes.setdefault(profile.id, []).extend([size] * _count(count, canonical, asked, least=0))

    return tuple(
        WantedInstance(profile=profile, compute=compute)
        for profile in geometry.profiles
        for compute in _packed(sizes.get(profile.id, []), profile.compute_slices)
    )


def devices_of(
    instances: Iterable[GpuInstance | PlacedInstance | WantedInstance], geometry: Geometry
) -> Counter[str]:
    """The MIG devices that GPU instances hold: what instances_of was given.

    A GPU instance without compute instance holds none, as in mig-parted's export.

    Raises:
        SpecError: the geometry is not that of their GPU.
    """
    devices: Counter[str] = Counter()
    for instance in instances:
        placed = instance.placed if isinstance(instance, GpuInstance) else instance
        profile = _profile_of(placed, geometry)
        devices.update(device_name(profile, each.size) for each in placed.compute)

    return devices


def _profile_of(instance: PlacedInstance | WantedInstance, geometry: Geometry) -> GpuInstanceProfile:
    if isinstance(instance, WantedInstance):
        return instance.profile

    profile = geometry.of_id(instance.profile_id)
    if profile is None:
        raise SpecError(
            asked="the names of MIG devices",
            found=f"a GPU instance of profile {instance.profile_id}, which the {geometry.gpu_name} does not have",
            do=f"name the GPU that the instances are of; this one was read from {geometry.source}",
        )

    return profile


def _packed(sizes: Sequence[int], slices: int) -> list[tuple[ComputePlacement, ...]]:
    """Compute instances of these sizes in as few GPU instances of ``slices`` compute slices as hold them.

    For a given number of GPU instances, the largest first and each where it starts highest is best: a 3c
    at 4 of a 7g takes one place for a 2c, at 0 it takes two; other sizes only take what their like could.
    """
    number = -(-sum(sizes) // slices)
    while True:
        bins = _in_bins(sorted(sizes, reverse=True), slices, number)
        if bins is not None:
            return [tuple(sorted(each)) for each in bins]

        number += 1


def _in_bins(sizes: Sequence[int], slices: int, number: int) -> list[list[ComputePlacement]] | None:
    bins: list[list[ComputePlacement]] = [[] for _ in range(number)]
    taken = [0] * number
    for size in sizes:
        found = next(
            (
                (at, place)
                for place in reversed(compute_placements(slices, size))
                for at in range(number)
                if not taken[at] & place.mask
            ),
            None,
        )
        if found is None:
            return None

        at, place = found
        bins[at].append(place)
        taken[at] |= place.mask

    return bins
