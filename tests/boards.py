"""MIG-capable boards as data: profiles, their placements in memory slices, sizes, SMs and engines.

From shared/FACTS.md section 2; H100's and H200's engines read from boards (driver 580.159.04), those of A100 and
A30 from ``nvidia-smi mig -lgip`` as published, the A30's sizes from NVIDIA's MIG user guide.
"""

from dataclasses import dataclass

from scheduler import gpu_tables
from scheduler.geometry import Geometry, GpuInstanceProfile


@dataclass(frozen=True)
class Profile:
    """One GPU-instance profile of a board."""

    name: str
    enum: int
    """NVML_GPU_INSTANCE_PROFILE_…: what the profile query takes."""
    id: int
    """What create and placement queries take."""
    compute_slices: int
    memory_slices: int
    starts: tuple[int, ...]
    """Memory slices it may start at."""
    most: int
    """How many of it fit on an empty GPU."""
    memory_mib: int
    sms: int
    engines: tuple[int, int, int, int, int]
    """Copy, decoder, encoder, JPEG, OFA."""


@dataclass(frozen=True)
class Board:
    """One model of GPU."""

    name: str
    memory_mib: int
    cuda_cores: int
    compute_capability: tuple[int, int]
    memory_slices: int
    compute_slices: int
    profiles: tuple[Profile, ...]
    pci_device_id: int
    """Device and vendor."""
    resetless: bool | None
    """Whether a mode change takes effect at once; None where the driver is asked in vain."""

    def profile(self, name: str) -> Profile:
        """The profile of that name; KeyError if the board has none."""
        return {profile.name: profile for profile in self.profiles}[name]


def _eight_slices(
    names: list[str],
    memory_mib: list[int],
    sms: list[int],
    decoders: list[int],
    jpegs: list[int],
    copies: int,
) -> tuple[Profile, ...]:
    """Profiles of a board with 8 memory slices; arguments in the order 1g, 1g double memory, 2g, 3g, 4g, 7g.

    ``copies`` is the 7g's copy engines; the others have one for each compute slice.
    """
    one, double, two, three, four, seven = zip(names, memory_mib, sms, strict=True)
    engines = [
        (copy, decoder, 0, jpeg, 0)
        for copy, decoder, jpeg in zip([1, 1, 2, 3, 4], decoders[:5], jpegs[:5], strict=True)
    ]
    media, whole = (1, 1, 0, 1, 1), (copies, decoders[5], 0, jpegs[5], 1)
    return (
        Profile(one[0], 0, 19, 1, 1, tuple(range(7)), 7, *one[1:], engines[0]),
        Profile(f"{one[0]}+me", 7, 20, 1, 1, tuple(range(7)), 1, *one[1:], media),
        Profile(double[0], 9, 15, 1, 2, (0, 2, 4, 6), 4, *double[1:], engines[1]),
        Profile(two[0], 1, 14, 2, 2, (0, 2, 4), 3, *two[1:], engines[2]),
        Profile(three[0], 2, 9, 3, 4, (0, 4), 2, *three[1:], engines[3]),
        Profile(four[0], 3, 5, 4, 4, (0,), 1, *four[1:], engines[4]),
        Profile(seven[0], 4, 0, 7, 8, (0,), 1, *seven[1:], whole),
    )


A100_ENGINES = ([0, 1, 1, 2, 2, 5], [0, 0, 0, 0, 0, 1], 7)
H100_ENGINES = ([1, 1, 2, 3, 4, 7], [1, 1, 2, 3, 4, 7], 8)
"""Decoders, JPEG engines, copy engines of the 7g."""

A100_40 = Board(
    "NVIDIA A100-SXM4-40GB",
    40960,
    6912,
    (8, 0),
    8,
    7,
    _eight_slices(
        ["1g.5gb", "1g.10gb", "2g.10gb", "3g.20gb", "4g.20gb", "7g.40gb"],
        [4864, 9984, 9984, 20096, 20096, 40320],
        [14, 14, 28, 42, 56, 98],
        *A100_ENGINES,
    ),
    0x20B010DE,
    False,
)
A100_80 = Board(
    "NVIDIA A100-SXM4-80GB",
    81920,
    6912,
    (8, 0),
    8,
    7,
    _eight_slices(
        ["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"],
        [9728, 19968, 19968, 40192, 40192, 80896],
        [14, 14, 28, 42, 56, 98],
        *A100_ENGINES,
    ),
    0x20B210DE,
    False,
)
H100 = Board(
    "NVIDIA H100 80GB HBM3",
    81559,
    16896,
    (9, 0),
    8,
    7,
    _eight_slices(
        ["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb", "7g.80gb"],
        [9984, 20096, 20096, 40448, 40448, 81152],
        [16, 26, 32, 60, 64, 132],
        *H100_ENGINES,
    ),
    0x233010DE,
    True,
)
H200 = Board(
    "NVIDIA H200",
    143771,
    16896,
    (9, 0),
    8,
    7,
    _eight_slices(
        ["1g.18gb", "1g.35gb", "2g.35gb", "3g.71gb", "4g.71gb", "7g.141gb"],
        [16384, 33280, 33280, 71424, 71424, 143360],
        [16, 26, 32, 60, 64, 132],
        *H100_ENGINES,
    ),
    0x233510DE,
    True,
)
A30 = Board(
    "NVIDIA A30",
    24576,
    3584,
    (8, 0),
    4,
    4,
    (
        Profile("1g.6gb", 0, 14, 1, 1, (0, 1, 2, 3), 4, 5952, 14, (1, 1, 0, 0, 0)),
        Profile("1g.6gb+me", 7, 21, 1, 1, (0, 1, 2, 3), 1, 5952, 14, (1, 1, 0, 1, 1)),
        Profile("2g.12gb", 1, 5, 2, 2, (0, 2), 2, 11968, 28, (2, 2, 0, 0, 0)),
        Profile("2g.12gb+me", 8, 6, 2, 2, (0, 2), 1, 11968, 28, (2, 2, 0, 1, 1)),
        Profile("4g.24gb", 3, 0, 4, 4, (0,), 1, 24000, 56, (4, 4, 0, 1, 1)),
    ),
    0x20B710DE,
    False,
)
T4 = Board("Tesla T4", 15360, 2560, (7, 5), 0, 0, (), 0x1EB810DE, None)
"""No MIG at all."""


def _engines(profile: GpuInstanceProfile, geometry: Geometry, field: str) -> int:
    """How many; where the table does not say, in proportion to the smallest profile, and for the whole GPU as many as
    any profile has."""
    told = getattr(profile.engines, field)
    if told is not None:
        return int(told)

    others = [getattr(each.engines, field) or 0 for each in geometry.profiles]
    return max(others[0] * profile.compute_slices, *(others if profile is geometry.whole else ()), 0)


def of_table(name: str) -> Board:
    """A model that has no board here, as its built-in table says; what the table leaves open is made up."""
    table = gpu_tables.table_named(name)
    geometry = table.geometry()
    profiles = []
    for each in geometry.profiles:
        size = each.placements[0].size
        fields = ("copy", "decoder", "encoder", "jpeg", "ofa")
        engines = (_engines(each, geometry, field) for field in fields)
        profiles.append(
            Profile(
                each.name,
                each.enum,
                each.id,
                each.compute_slices,
                size,
                tuple(place.start for place in each.placements),
                each.most,
                each.memory_mib or table.memory_mib * size // geometry.memory_slices,
                each.sms or 16 * each.compute_slices,
                (*engines,),
            )
        )

    major, _, minor = table.compute_capability.partition(".")
    return Board(
        geometry.gpu_name,
        table.memory_mib,
        128 * 16 * geometry.compute_slices,
        (int(major), int(minor)),
        geometry.memory_slices,
        geometry.compute_slices,
        tuple(profiles),
        int(table.pci_device_ids[0], 16),
        True,
    )


COMPUTE_INSTANCES = {
    1: {1: 1},
    2: {1: 2, 2: 1},
    3: {1: 3, 2: 1, 3: 1},
    4: {1: 4, 2: 2, 4: 1},
    7: {1: 7, 2: 3, 3: 2, 4: 1, 7: 1},
}
"""Compute slices of a GPU instance → slices of a compute instance → the most of these."""

COMPUTE_STEP = {1: 1, 2: 2, 3: 4, 4: 4, 7: 7}
"""Slices of a compute instance → it starts at multiples of this."""
