"""Whether kernels of this project's own can be had here: Triton, and the C compiler that it needs."""

from collections.abc import Callable
from subprocess import CalledProcessError
from typing import TypeVar

import torch

Made = TypeVar("Made")


def at_hand(make: Callable[[], Made]) -> Made | None:
    """What ``make`` gives, which imports the kernels and runs each once; None where that cannot be done here.

    Raises:
        torch.OutOfMemoryError: that says nothing of the kernels.
    """
    try:
        from triton.errors import TritonError  # type: ignore[import-untyped]  # it ships no types
    except ImportError:
        return None

    try:
        return make()
    except torch.OutOfMemoryError:
        raise
    except (ImportError, TritonError, RuntimeError, OSError, CalledProcessError):
        return None
