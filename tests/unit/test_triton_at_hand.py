"""Kernels are at hand, or they are not, and only a lack of memory is neither."""

from subprocess import CalledProcessError

import pytest
import torch

from workloads.triton_at_hand import at_hand


def fails(error: BaseException) -> str:
    raise error


def test_what_was_made_is_given():
    assert at_hand(lambda: "kernels") == "kernels"


@pytest.mark.parametrize(
    "error",
    [
        ImportError("no Triton"),
        RuntimeError("Failed to find C compiler"),
        OSError("gcc"),
        CalledProcessError(1, "gcc"),
    ],
)
def test_what_cannot_be_made_here_is_not_at_hand(error: Exception):
    assert at_hand(lambda: fails(error)) is None


def test_too_little_memory_says_nothing_of_the_kernels():
    with pytest.raises(torch.OutOfMemoryError):
        at_hand(lambda: fails(torch.OutOfMemoryError("out of memory")))


def test_a_mistake_of_ours_is_no_lack_of_triton():
    with pytest.raises(AttributeError):
        at_hand(lambda: fails(AttributeError("a typo")))
