"""MIG-capable boards as data: profiles, their placements in memory slices, sizes and SMs.

From shared/FACTS.md section 2; the A30's sizes from NVIDIA's MIG user guide.
"""

from dataclasses import dataclass


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

    def profile(self, name: str) -> Profile:
        """The profile of that name; KeyError if the board has none."""
        return {profile.name: profile for profile in self.profiles}[name]


def _eight_slices(names: list[str], memory_mib: list[int], sms: list[int]) -> tuple[Profile, ...]:
    """Profiles of a board with 8 memory slices; arguments in the order 1g, 1g double memory, 2g, 3g, 4g, 7g."""
    one, double, two, three, four, seven = zip(names, memory_mib, sms, strict=True)
    return (
        Profile(one[0], 0, 19, 1, 1, tuple(range(7)), 7, *one[1:]),
        Profile(f"{one[0]}+me", 7, 20, 1, 1, tuple(range(7)), 1, *one[1:]),
        Profile(double[0], 9, 15, 1, 2, (0, 2, 4, 6), 4, *double[1:]),
        Profile(two[0], 1, 14, 2, 2, (0, 2, 4), 3, *two[1:]),
        Profile(three[0], 2, 9, 3, 4, (0, 4), 2, *three[1:]),
        Profile(four[0], 3, 5, 4, 4, (0,), 1, *four[1:]),
        Profile(seven[0], 4, 0, 7, 8, (0,), 1, *seven[1:]),
    )


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
    ),
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
    ),
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
    ),
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
    ),
)
A30 = Board(
    "NVIDIA A30",
    24576,
    3584,
    (8, 0),
    4,
    4,
    (
        Profile("1g.6gb", 0, 14, 1, 1, (0, 1, 2, 3), 4, 5952, 14),
        Profile("1g.6gb+me", 7, 21, 1, 1, (0, 1, 2, 3), 1, 5952, 14),
        Profile("2g.12gb", 1, 5, 2, 2, (0, 2), 2, 11968, 28),
        Profile("2g.12gb+me", 8, 6, 2, 2, (0, 2), 1, 11968, 28),
        Profile("4g.24gb", 3, 0, 4, 4, (0,), 1, 24000, 56),
    ),
)
T4 = Board("Tesla T4", 15360, 2560, (7, 5), 0, 0, ())
"""No MIG at all."""

COMPUTE_INSTANCES = {
    1: {1: 1},
    2: {1: 2, 2: 1},
    3: {1: 3, 2: 1, 3: 1},
    4: {1: 4, 2: 2, 4: 1},
    7: {1: 7, 2: 3, 3: 2, 4: 1, 7: 1},
}
"""Compute slices of a GPU instance → slices of a compute instance → the most of these."""
