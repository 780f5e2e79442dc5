"""Linear layers in 8 bits: weights quantised once, activations as they come; all else stays as it was.

A weight has one scale an output channel, an activation one a row, both symmetric: the largest magnitude is the
format's largest. Products are accumulated in int32 (int8) or fp32 (fp8 e4m3) and scaled back.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from workloads.protocol import WorkloadOptions

Form = Literal["int8", "fp8"]
DTYPE = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {"int8": 127.0, "fp8": 448.0}
SMALLEST_SCALE = 1e-12
"""Of a row of zeros."""
MULTIPLE = 16
"""Of a product's inner and outer sizes, as cuBLASLt and CUTLASS want them in 8 bits."""
FEWEST_ROWS = 17
"""torch._int_mm on a GPU takes more than 16 rows."""


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
        rows, scale = quantised(weight.detach().float(), form)
        self.rows: Tensor
        self.scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("rows", rows)
        self.register_buffer("scale", scale.t().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        rows, scale = quantised(x.reshape(-1, x.shape[-1]), self.form)
        out = (_int8 if self.form == "int8" else _fp8)(rows, scale, self.rows, self.scale)
        if self.bias is not None:
            out = out + self.bias

        return out.to(x.dtype).view(*x.shape[:-1], -1)


def quantised(matrix: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """A matrix ``[n, k]`` in 8 bits, and its rows' scales, fp32 ``[n, 1]``: their product is about the matrix."""
    matrix = matrix.float()
    scale = (matrix.abs().amax(dim=1, keepdim=True) / LARGEST[form]).clamp(min=SMALLEST_SCALE)
    scaled = (matrix / scale).clamp(-LARGEST[form], LARGEST[form])
    return (scaled.round() if form == "int8" else scaled).to(DTYPE[form]), scale


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
    name = "int8" if form == "int8" else "fp8 (e4m3)"
    return (
        f"precision: {count} linear layers in {name}, weights scaled by channel, activations by row as they come; "
        "all else in 16 bits on a GPU, fp32 on a CPU"
    )


def _int8(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    count = len(x)
    if x.is_cuda and count < FEWEST_ROWS:
        x = torch.cat((x, x.new_zeros(FEWEST_ROWS - count, x.shape[1])))

    product: Tensor = torch._int_mm(x, weight.t())
    return product[:count].float() * x_scale * weight_scale


def _fp8(x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    out: Tensor = torch._scaled_mm(
        x, weight.t(), scale_a=x_scale, scale_b=weight_scale, out_dtype=torch.bfloat16
    )
    return out
