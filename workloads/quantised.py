"""Linear layers in 8 bits: weights quantised once, activations as they come; all else stays as it was.

A weight has one scale an output channel, an activation one a row, both symmetric: the largest magnitude is the
format's largest. Products are accumulated in int32 (int8) or fp32 (fp8 e4m3) and scaled back.
"""

import torch
from torch import Tensor, nn

from workloads.passes import DTYPE, PLAIN, Form, Product, Rows
from workloads.passes_at_hand import passes_for
from workloads.protocol import WorkloadOptions

FAST_ACCUMULATION = True
"""Of fp8 products: Hopper's tensor cores add up with 14 bits and more seldom hand over to fp32; inference commonly
does (Transformer Engine's forward products, torchao, vLLM). Ignored where there is nothing to choose."""
MULTIPLE = 16
"""Of a product's inner and outer sizes, as cuBLASLt and CUTLASS want them in 8 bits."""
FEWEST_ROWS = 17
"""torch._int_mm on a GPU takes more than 16 rows."""
SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def form_of(options: WorkloadOptions) -> Form | None:
    """The 8-bit format that is asked for, if one is."""
    return options.precision if options.precision in DTYPE else None  # type: ignore[return-value]  # DTYPE's keys are Form's


class ScaledLinear(nn.Module):
    """``x @ weight.T + bias`` by way of an 8-bit product; the answer has x's dtype.

    Args:
        weight: ``[out, in]``, both multiples of 16.
        bias: ``[out]``, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, form: Form) -> None:
        super().__init__()
        self.form: Form = form
        rows, scale = PLAIN.quantised(weight.detach(), form)
        self.rows: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("rows", rows)
        self.register_buffer("scale", scale.t().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        passes = passes_for(x)
        rows = passes.quantised(x.reshape(-1, x.shape[-1]), self.form)
        return passes.scaled(self.product(rows, x.dtype), x.dtype).view(*x.shape[:-1], -1)

    def product(self, x: Rows, dtype: torch.dtype) -> Product:
        """The product alone: of fp8 scaled and, in 16 bits on a GPU, with its bias; of int8 neither.

        Args:
            dtype: of fp8's values, where it is one of 16 bits.
        """
        if self.form == "int8":
            return Product(_int8(x.values, self.rows), x.scale, self.scale, self.bias)

        dtype = dtype if dtype in SIXTEEN_BITS else torch.bfloat16
        inside = self.bias is not None and self.bias.is_cuda and self.bias.dtype is dtype
        values = torch._scaled_mm(
            *(x.values, self.rows.t(), x.scale, self.scale),
            bias=self.bias if inside else None,
            out_dtype=dtype,
            use_fast_accum=FAST_ACCUMULATION and x.values.is_cuda,
        )
        return Product(values, bias=None if inside else self.bias)


def fits(weight: Tensor) -> bool:
    """Whether an 8-bit product takes a weight of this shape."""
    return all(size % MULTIPLE == 0 for size in weight.shape)


def quantise(network: nn.Module, form: Form) -> int:
    """Put a ScaledLinear in the place of every nn.Linear (of that very class) within, where its shape fits; gives how
    many. Heads of odd size stay as they are."""
    count = 0
    for name, child in network.named_children():
        if type(child) is nn.Linear and fits(child.weight):
            setattr(network, name, ScaledLinear(child.weight, child.bias, form))
            count += 1
        else:
            count += quantise(child, form)

    return count


def told(count: int, form: Form) -> str:
    """What a result's reader is to know."""
    how = "int8" if form == "int8" else "fp8 (e4m3, on a GPU with fast accumulation)"
    return (
        f"precision: {count} linear layers in {how}, weights scaled by channel, activations by row as they come; "
        "all else in 16 bits on a GPU, fp32 on a CPU"
    )


def _int8(x: Tensor, weight: Tensor) -> Tensor:
    count = len(x)
    if x.is_cuda and count < FEWEST_ROWS:
        x = torch.cat((x, x.new_zeros(FEWEST_ROWS - count, x.shape[1])))

    product: Tensor = torch._int_mm(x, weight.t())
    return product[:count]
