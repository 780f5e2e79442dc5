"""Which passes a tensor's device has: one kernel each on a GPU, else plain torch."""

from functools import cache

import torch
from torch import Tensor

from workloads.passes import PLAIN, Passes
from workloads.triton_at_hand import at_hand


def passes_for(x: Tensor) -> Passes:
    """The passes for what is on x's device; torch.compile is given plain ones, which it fuses itself."""
    if not x.is_cuda or torch.compiler.is_compiling():
        return PLAIN

    return kernels() or PLAIN


@cache
def kernels() -> Passes | None:
    """The passes of one kernel each; None where Triton, or the C compiler it needs, is missing."""
    return at_hand(_tried)


def _tried() -> Passes:
    from workloads.passes_triton import Kernels

    found = Kernels()
    row = torch.zeros(1, 64, dtype=torch.float16, device="cuda")
    found.quantised(row, "int8")
    found.attended(row.new_zeros(1, 3, 1, 64), torch.tensor([0, 1], dtype=torch.int32, device="cuda"), 1)
    torch.cuda.synchronize()
    return found
