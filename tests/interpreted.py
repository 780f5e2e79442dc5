"""Our Triton kernels without a GPU: Triton's interpreter runs them on the CPU."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import triton


@contextmanager
def interpreted(name: str) -> Iterator[ModuleType]:
    """A copy of the module of that name, whose kernels are interpreted within."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "1")
        for own in ("sum", "max"):  # Triton's own; compiled ones, where Triton was imported before
            function = getattr(triton.language, own)
            if isinstance(function, triton.JITFunction):
                patch.setattr(triton.language, own, triton.jit(function.fn))

        spec.loader.exec_module(module)
        yield module
