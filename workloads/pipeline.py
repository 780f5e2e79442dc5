"""Batches in flight, and batches of like samples: what a workload may offer so that a device is kept at work.

Imports neither torch nor LoadGen.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from workloads.protocol import Workload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from workloads.protocol import Outputs


class Pending(Protocol):
    """A batch that has begun."""

    def done(self) -> bool:
        """Whether ``result`` would return at once."""

    def result(self) -> "Outputs":
        """Wait for the outputs. On the host; they may be overwritten once ``depth`` further batches began."""


Begin = Callable[[Sequence[int]], Pending]


@runtime_checkable
class Pipelined(Protocol):
    """A Workload (protocol.py) that can have several batches in flight: it begins them, and is asked later."""

    depth: int
    """How many batches may have begun and not been asked for; 1: none beside another."""

    def begin(self, indices: Sequence[int]) -> Pending:
        """Begin one batch of loaded samples, at most ``batch_size``; batches end in the order they began."""


def depth_of(workload: Workload) -> int:
    """How many batches the workload may have in flight; 1 where it only predicts."""
    return workload.depth if isinstance(workload, Pipelined) else 1


def begin_of(workload: Workload) -> Begin | None:
    """What begins a batch beside another; None where the workload only predicts."""
    return workload.begin if isinstance(workload, Pipelined) and workload.depth > 1 else None


FirstTokens = Callable[["Outputs"], None]
"""Told the first token of each sample of a batch, int64 [batch, 1] on the host, as soon as they are there."""
Generate = Callable[[Sequence[int], FirstTokens], "Outputs"]


@runtime_checkable
class Generating(Protocol):
    """A Workload (protocol.py) whose answers are texts: it tells their first tokens while it goes on."""

    new_tokens: int
    """Tokens of each answer."""

    def generate(self, indices: Sequence[int], first_tokens: FirstTokens) -> "Outputs":
        """As ``predict``; ``first_tokens`` is called once."""


def generating(workload: Workload) -> Generating | None:
    """The workload, where it tells first tokens."""
    return workload if isinstance(workload, Generating) else None


SORTED_BATCHES = 16
"""So many batches' worth of a query's samples are sorted by length, the shortest in the first batch. Not the whole
query: the rate of a background benchmark is to be the same whichever part of its test main's window meets."""

Lengths = Callable[[Sequence[int]], "npt.NDArray[np.integer[Any]]"]


@runtime_checkable
class OfLengths(Protocol):
    """A Workload (protocol.py) whose batches take as long as their longest sample."""

    def lengths(self, indices: Sequence[int]) -> "npt.NDArray[np.integer[Any]]":
        """How long each of these samples is, in any unit."""


def lengths_of(workload: Workload) -> Lengths | None:
    """What tells samples' lengths; None where they make no difference."""
    return workload.lengths if isinstance(workload, OfLengths) else None


def by_length(indices: Sequence[int], lengths: Lengths) -> list[int]:
    """The places of ``indices``, that of the shortest sample first."""
    places: list[int] = lengths(indices).argsort(kind="stable").tolist()
    return places
