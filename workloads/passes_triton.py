"""The passes of passes.py as one GPU kernel each: a row is read once, written once. Needs Triton and a C compiler."""

import math

import torch
import triton  # type: ignore[import-untyped]  # it ships no types
import triton.language as tl  # type: ignore[import-untyped]  # likewise
from torch import Tensor

from workloads.passes import DTYPE, LARGEST, SMALLEST_SCALE, Form, Norm, Product, Rows, Tables

A_WARP = 256
"""Numbers of a row that one warp takes: 8 a thread, 16 bytes of 16 bits."""
MOST_WARPS = 16
ATTENTION = (64, 32, 4, 3)
"""Queries of a program, keys that it takes at once, its warps, and how many such keys are on their way. BERT's samples
have 177 tokens on average, of which blocks of 128 would leave a third empty: 256 samples in fp16 take an H200 191 µs a
layer so, 402 µs by the worst of 27 choices, 374 µs by FlashAttention 2 (scripts/gpu-quantised)."""


@triton.jit
def _layer_norm(x, inside, at, width, weight, bias, eps):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  its own language
    centred = tl.where(inside, x - tl.sum(x, 0) / width, 0.0)
    normed = centred * (1 / tl.sqrt(tl.sum(centred * centred, 0) / width + eps))
    normed *= tl.load(weight + at, mask=inside, other=0).to(tl.float32)
    return normed + tl.load(bias + at, mask=inside, other=0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _embed(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    words,  # noqa: ANN001  likewise
    segments,  # noqa: ANN001
    positions,  # noqa: ANN001
    word_table,  # noqa: ANN001
    segment_table,  # noqa: ANN001
    position_table,  # noqa: ANN001
    norm_weight,  # noqa: ANN001
    norm_bias,  # noqa: ANN001
    out,  # noqa: ANN001
    width,  # noqa: ANN001
    eps,  # noqa: ANN001
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    word, segment = tl.load(words + row).to(tl.int64), tl.load(segments + row).to(tl.int64)
    position = tl.load(positions + row).to(tl.int64)
    x = tl.load(word_table + word * width + at, mask=inside, other=0).to(tl.float32)
    x += tl.load(segment_table + segment * width + at, mask=inside, other=0).to(tl.float32)
    x += tl.load(position_table + position * width + at, mask=inside, other=0).to(tl.float32)
    x = _layer_norm(x, inside, at, width, norm_weight, norm_bias, eps)
    tl.store(out + row * width + at, x, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _pass(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    values,  # noqa: ANN001  likewise
    row_scales,  # noqa: ANN001
    column_scales,  # noqa: ANN001
    bias,  # noqa: ANN001
    residual,  # noqa: ANN001
    norm_weight,  # noqa: ANN001
    norm_bias,  # noqa: ANN001
    out,  # noqa: ANN001
    rows,  # noqa: ANN001
    scales,  # noqa: ANN001
    width,  # noqa: ANN001
    eps,  # noqa: ANN001
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
    ROUNDED: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # What is None is left out when the kernel is compiled. Beyond the width all is zero throughout.
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    here = row * width + at
    x = tl.load(values + here, mask=inside, other=0).to(tl.float32)
    if row_scales is not None:
        x *= tl.load(row_scales + row) * tl.load(column_scales + at, mask=inside, other=0)
    if bias is not None:
        x += tl.load(bias + at, mask=inside, other=0).to(tl.float32)
    if GELU:  # 0.5 x (1 + tanh(z)) = x / (1 + exp(-2z))
        x = x / (1 + tl.exp(-1.5957691216057308 * (x + 0.044715 * x * x * x)))
    if residual is not None:
        x += tl.load(residual + here, mask=inside, other=0).to(tl.float32)
    if norm_weight is not None:
        x = _layer_norm(x, inside, at, width, norm_weight, norm_bias, eps)
    if out is not None:
        tl.store(out + here, x, mask=inside)
    if rows is not None:
        scale = tl.maximum(tl.max(tl.abs(x), 0) / LARGEST, SMALLEST)
        x = x * (1 / scale)
        if ROUNDED:
            x = tl.floor(x + 0.5)
        x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
        tl.store(rows + here, x.to(rows.dtype.element_ty), mask=inside)
        tl.store(scales + row, scale)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _attend(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    qkv,  # noqa: ANN001  likewise
    bounds,  # noqa: ANN001
    out,  # noqa: ANN001
    scale,  # noqa: ANN001
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    STAGES: tl.constexpr,
):
    # Some queries of one head of one sample. The softmax as FlashAttention has it (arXiv:2205.14135, algorithm 1): its
    # sums are kept relative to the largest score so far.
    first, head, sample = tl.program_id(0) * QUERIES, tl.program_id(1), tl.program_id(2)
    begin = tl.load(bounds + sample).to(tl.int64)
    length = (tl.load(bounds + sample + 1) - begin).to(tl.int32)
    if first < length:
        at = tl.arange(0, WIDTH)
        query, key = first + tl.arange(0, QUERIES), tl.arange(0, KEYS)
        there = (query < length)[:, None]
        here = qkv + begin * 3 * HEADS * WIDTH + head * WIDTH + at[None, :]
        asked = tl.load(here + query[:, None] * 3 * HEADS * WIDTH, mask=there, other=0.0)
        largest = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.full([QUERIES], 0, tl.float32)
        mixed = tl.full([QUERIES, WIDTH], 0, tl.float32)
        for start in tl.range(0, length, KEYS, num_stages=STAGES):
            inside = start + key < length
            rows = here + HEADS * WIDTH + (start + key)[:, None] * 3 * HEADS * WIDTH
            keys = tl.load(rows, mask=inside[:, None], other=0.0)
            values = tl.load(rows + HEADS * WIDTH, mask=inside[:, None], other=0.0)
            scores = tl.where(inside[None, :], tl.dot(asked, tl.trans(keys)) * scale, float("-inf"))
            larger = tl.maximum(largest, tl.max(scores, 1))
            weights, kept = tl.exp2(scores - larger[:, None]), tl.exp2(largest - larger)
            total = total * kept + tl.sum(weights, 1)
            mixed = tl.dot(weights.to(values.dtype), values, mixed * kept[:, None])
            largest = larger

        to = out + (begin + query)[:, None] * HEADS * WIDTH + head * WIDTH + at[None, :]
        tl.store(to, mixed / total[:, None], mask=there)


class Kernels:
    """The passes of passes.py; products and residuals are contiguous.

    Args:
        a_warp: numbers of a row that one warp takes.
        attention: as ``ATTENTION``.
    """

    def __init__(self, a_warp: int = A_WARP, attention: tuple[int, int, int, int] = ATTENTION) -> None:
        self._a_warp = a_warp
        self._attention = attention

    def quantised(self, matrix: Tensor, form: Form) -> Rows:
        """A matrix [n, k] in 8 bits."""
        matrix = matrix.contiguous()
        rows = _empty(matrix, form)
        self._run(Product(matrix), rows=rows, form=form)
        return rows

    def scaled(self, product: Product, dtype: torch.dtype) -> Tensor:
        """What the product means, [n, out]."""
        if product.rows is None and product.bias is None:
            return product.values.to(dtype)

        out = torch.empty_like(product.values, dtype=dtype)
        self._run(product, out=out)
        return out

    def activated(self, product: Product, form: Form) -> Rows:
        """GELU (by tanh) of it in 8 bits."""
        rows = _empty(product.values, form)
        self._run(product, rows=rows, form=form, gelu=True)
        return rows

    def normed(self, product: Product, residual: Tensor, norm: Norm, form: Form) -> tuple[Tensor, Rows]:
        """The layer norm of its sum with ``residual`` [n, out], in residual's dtype and in 8 bits."""
        out, rows = torch.empty_like(residual), _empty(residual, form)
        self._run(product, residual, norm, out=out, rows=rows, form=form)
        return out, rows

    def add_norm(self, x: Tensor, y: Tensor, norm: Norm) -> Tensor:
        """``layer_norm(x + y)`` over the last axis; both [rows, width], of one dtype."""
        out = torch.empty_like(x)
        self._run(Product(x), y, norm, out=out)
        return out

    def embedded(self, words: Tensor, tables: Tables, norm: Norm) -> Tensor:
        """The layer norm of the sum of the tables' rows that int32 ``words`` [3, n] name, [n, width]."""
        width = tables[0].shape[1]
        out = torch.empty(words.shape[1], width, dtype=tables[0].dtype, device=words.device)
        _embed[(len(out),)](
            *(*words, *tables, norm.weight, norm.bias, out, width, norm.eps),
            **self._shape(width),
        )
        return out

    def attended(self, qkv: Tensor, bounds: Tensor, longest: int) -> Tensor:
        """Attention within each sample [n, all heads' width]."""
        count, _, heads, width = qkv.shape
        queries, keys, warps, stages = self._attention
        out = torch.empty(count, heads * width, dtype=qkv.dtype, device=qkv.device)
        _attend[(triton.cdiv(longest, queries), heads, len(bounds) - 1)](
            *(qkv, bounds, out, width**-0.5 / math.log(2)),
            **{"HEADS": heads, "WIDTH": width, "QUERIES": queries, "KEYS": keys, "STAGES": stages},
            num_warps=warps,
        )
        return out

    def _shape(self, width: int) -> dict[str, int]:
        block = triton.next_power_of_2(width)
        return {"BLOCK": block, "num_warps": max(1, min(block // self._a_warp, MOST_WARPS))}

    def _run(
        self,
        product: Product,
        residual: Tensor | None = None,
        norm: Norm | None = None,
        *,
        out: Tensor | None = None,
        rows: Rows | None = None,
        form: Form = "fp8",
        gelu: bool = False,
    ) -> None:
        count, width = product.values.shape
        weight, bias, eps = (None, None, 0.0) if norm is None else (norm.weight, norm.bias, norm.eps)
        _pass[(count,)](
            *(product.values, product.rows, product.columns, product.bias),
            *(residual, weight, bias),
            *(out, *(rows or (None, None))),
            *(width, eps),
            **{"LARGEST": LARGEST[form], "SMALLEST": SMALLEST_SCALE, "ROUNDED": form == "int8"},
            **{"GELU": gelu, **self._shape(width)},
        )


def _empty(like: Tensor, form: Form) -> Rows:
    scale = torch.empty(len(like), 1, dtype=torch.float32, device=like.device)
    return Rows(torch.empty_like(like, dtype=DTYPE[form]), scale)
