"""Answers of an accuracy run, before they are judged: all there, each of the size that the workload gives.

Imports neither torch nor LoadGen, so that the launcher can use it.
"""

from collections.abc import Mapping

from workloads.protocol import WorkloadError

NAMED = 5
"""How many sample indices a message spells out."""


def in_order(answers: Mapping[int, bytes], count: int) -> list[bytes]:
    """The answers to samples 0 to ``count`` - 1, in that order.

    Raises:
        WorkloadError: some are missing, or there are answers to samples that the data set does not have.
    """
    missing = [index for index in range(count) if index not in answers]
    if missing:
        raise WorkloadError(
            f"answers to {len(missing)} of {count} samples are missing ({_some(missing)}); "
            "the metric is of the whole data set: run it in accuracy mode, to its end"
        )

    strangers = sorted(answers.keys() - range(count))
    if strangers:
        raise WorkloadError(
            f"answers to samples that the data set does not have ({_some(strangers)}), it has {count}; "
            "judge them with the data they were computed from"
        )

    return [answers[index] for index in range(count)]


def of_size(answer: bytes, index: int, size: int, what: str) -> bytes:
    """The same answer.

    Raises:
        WorkloadError: it has not ``size`` bytes, which are ``what``.
    """
    if len(answer) != size:
        raise WorkloadError(f"the answer to sample {index} has {len(answer)} bytes, not the {size} of {what}")

    return answer


def _some(indices: list[int]) -> str:
    more = ", …" if len(indices) > NAMED else ""
    return ", ".join(map(str, indices[:NAMED])) + more
