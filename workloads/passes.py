"""What happens to a matrix between two products: scaled, activated, normed, quantised row by row; attention.

Each is one pass over memory by passes_triton.py's kernels on a GPU, and plain torch elsewhere. The kernels, and all
that quantises, compute in fp32 from what they read to what they write; attention's weights alone are rounded between.
"""

from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional

Form = Literal["int8", "fp8"]
DTYPE = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
LARGEST = {"int8": 127.0, "fp8": 448.0}
SMALLEST_SCALE = 1e-12
"""Of a row of zeros."""


class Rows(NamedTuple):
    """A matrix in 8 bits: it is about ``values * scale``."""

    values: Tensor
    """[n, k]."""
    scale: Tensor
    """fp32 [n, 1]: what a row's largest magnitude is over the format's."""


class Product(NamedTuple):
    """A product as its kernel leaves it: ``values * rows * columns + bias`` is meant."""

    values: Tensor
    """[n, out]: int32, or of 16 or 32 bits."""
    rows: Tensor | None = None
    """fp32 [n, 1]; None where values are scaled already."""
    columns: Tensor | None = None
    """fp32 [1, out], with ``rows``."""
    bias: Tensor | None = None
    """[out]; None where there is none, or values have it already."""


class Norm(NamedTuple):
    """A layer norm over the last axis."""

    weight: Tensor
    bias: Tensor
    eps: float


Tables = tuple[Tensor, Tensor, Tensor]
"""Embeddings of one width and dtype."""


class Passes(Protocol):
    """One way to compute them."""

    def quantised(self, matrix: Tensor, form: Form) -> Rows:
        """A matrix [n, k] in 8 bits."""

    def scaled(self, product: Product, dtype: torch.dtype) -> Tensor:
        """What the product means, [n, out]."""

    def activated(self, product: Product, form: Form) -> Rows:
        """GELU of it in 8 bits; on a GPU by tanh, 5e-4 at most from that by erf."""

    def normed(self, product: Product, residual: Tensor, norm: Norm, form: Form) -> tuple[Tensor, Rows]:
        """The layer norm of its sum with ``residual`` [n, out], in residual's dtype and in 8 bits."""

    def add_norm(self, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """``layer_norm(x + y)`` over the last axis; both [n, width], of one dtype."""

    def embedded(self, words: Tensor, tables: Tables, norm: Norm) -> Tensor:
        """The layer norm of the sum of the tables' rows that int32 ``words`` [3, n] name, [n, width]."""

    def attended(self, qkv: Tensor, bounds: Tensor, longest: int) -> Tensor:
        """Attention within each of the samples that int32 ``bounds`` [samples + 1] part, none over ``longest``.

        Args:
            qkv: queries, keys, values, contiguous [n, 3, heads, a power of 2 of at least 16].

        Returns:
            [n, all heads' width].
        """


class Plain:
    """The passes by torch's own operations, which torch.compile fuses."""

    def quantised(self, matrix: Tensor, form: Form) -> Rows:
        matrix = matrix.float()
        scale = (matrix.abs().amax(dim=1, keepdim=True) / LARGEST[form]).clamp(min=SMALLEST_SCALE)
        exact = (matrix / scale).clamp(-LARGEST[form], LARGEST[form])
        return Rows((exact.round() if form == "int8" else exact).to(DTYPE[form]), scale)

    def scaled(self, product: Product, dtype: torch.dtype) -> Tensor:
        if product.rows is None and product.bias is None:
            return product.values.to(dtype)

        return _meant(product).to(dtype)

    def activated(self, product: Product, form: Form) -> Rows:
        how = "tanh" if product.values.is_cuda else "none"
        return self.quantised(functional.gelu(_meant(product), approximate=how), form)

    def normed(self, product: Product, residual: Tensor, norm: Norm, form: Form) -> tuple[Tensor, Rows]:
        whole = Norm(norm.weight.float(), norm.bias.float(), norm.eps)
        out = self.add_norm(_meant(product), residual.float(), whole)
        return out.to(residual.dtype), self.quantised(out, form)

    def add_norm(self, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        return functional.layer_norm(x + y, (x.shape[-1],), norm.weight, norm.bias, norm.eps)

    def embedded(self, words: Tensor, tables: Tables, norm: Norm) -> Tensor:
        first, second, third = (functional.embedding(*each) for each in zip(words, tables, strict=True))
        return self.add_norm(first + second, third, norm)

    def attended(self, qkv: Tensor, bounds: Tensor, longest: int) -> Tensor:
        if qkv.is_cuda:
            parts = (*qkv.unbind(1), bounds, bounds, longest, longest)
            out: Tensor = torch.ops.aten._flash_attention_forward(*parts, 0.0, False, False)[0]
            return out.flatten(1)

        samples = torch.tensor_split(qkv, bounds[1:-1].tolist())
        # [rows, 3, heads, width] of a sample to [heads, rows, width], three times
        alone = [
            functional.scaled_dot_product_attention(*each.permute(1, 2, 0, 3)[:, None]) for each in samples
        ]
        return torch.cat([each[0] for each in alone], dim=1).transpose(0, 1).flatten(1)


PLAIN: Passes = Plain()


def _meant(product: Product) -> Tensor:
    out = product.values.float()
    if product.rows is not None and product.columns is not None:
        out = out * product.rows * product.columns

    return out if product.bias is None else out + product.bias.float()
