"""Data whose answers are known: what a data set offers beside its inputs, and the score of a workload on it.

Imports neither torch nor LoadGen, so that the launcher can use it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How good the answers are, in the task's own metric."""

    metric: str
    """``top-1``, ``mAP``, ``F1``, ``AUC``, ``DICE``, ``1-WER``"""
    value: float
    """In the unit that MLPerf's targets have."""
    unit: str
    """``%``, or empty for a plain share."""
    samples: int
    """How many it was computed over."""
    details: dict[str, float] = field(default_factory=dict)
    """Further figures of the same evaluation: ``exact_match``, ``tumour`` …"""


class Labelled(Protocol):
    """A data set with labels."""

    sample_count: int

    def score(self, answers: Mapping[int, bytes]) -> Score:
        """Judge answers by sample index, each as LoadGen logs it: the bytes of that sample's output.

        Raises:
            WorkloadError: answers are missing or of another shape than the workload gives.
        """
