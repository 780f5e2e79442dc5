"""Answers of differing lengths, one after another in one array."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


@dataclass(frozen=True, slots=True, eq=False)
class Ragged(Sequence["npt.NDArray[np.generic]"]):
    """A batch's answers: the list of their arrays, without an object a sample where only places are asked for.

    Args:
        flat: all answers, C-contiguous, of one axis.
        lengths: int64, of each answer; together that of ``flat``.
    """

    flat: "npt.NDArray[np.generic]"
    lengths: "npt.NDArray[np.int64]"

    def __len__(self) -> int:
        return len(self.lengths)

    @overload
    def __getitem__(self, which: int) -> "npt.NDArray[np.generic]": ...

    @overload
    def __getitem__(self, which: slice) -> "Ragged": ...

    def __getitem__(self, which: int | slice) -> "npt.NDArray[np.generic] | Ragged":
        """One answer, a view; or the first so many (``[:count]``: there are no others)."""
        if isinstance(which, slice):
            assert (which.start, which.step) == (None, None), "only the first so many lie together here"
            lengths = self.lengths[which]
            return Ragged(self.flat[: int(lengths.sum())], lengths)

        start = int(self.lengths[:which].sum())
        return self.flat[start : start + int(self.lengths[which])]

    def __iter__(self) -> "Iterator[npt.NDArray[np.generic]]":
        stops = self.lengths.cumsum()
        for start, stop in zip((stops - self.lengths).tolist(), stops.tolist(), strict=True):
            yield self.flat[start:stop]

    def places(self, base: int) -> tuple[list[int], list[int]]:
        """The address of each answer, where ``base`` is that of ``flat``, and its bytes."""
        sizes = self.lengths * self.flat.itemsize
        return (base + sizes.cumsum() - sizes).tolist(), sizes.tolist()
