"""DLRM's GPU kernels: bringing a batch's pairs, and the interaction. Need Triton and a C compiler.

The interaction looks the rows up, multiplies them and writes the top's inputs: embedding rows are read once and never
written, 6.7 KB a pair, where look-up, product and choice one after another move some 30 KB.
"""

import torch
import triton  # type: ignore[import-untyped]  # it ships no types
import triton.language as tl  # type: ignore[import-untyped]  # likewise
from torch import Tensor

TILE = (4, 2, 1)
"""Pairs of a program, how many of them are on their way at once, and its warps. A pair is one 32×128 tile, 8 KB of
shared memory, which one warp multiplies; 23 programs fit on an SM of an H100 and hide each other's look-ups. On an H200
the slowest of eight choices took 1.3 times as long as the quickest, this one 1.1 times (scripts/gpu-dlrm)."""

SMS_A_PROGRAM, WORDS = 8, 4096
"""One SM of so many brings samples, and has so many words on their way: of an H100 256 KB, more than a bus needs to be
busy. The network computes on the others meanwhile: products of matrices fill an SM's registers, so a kernel on all SMs
would have them wait."""


@triton.jit(do_not_specialize=["pairs"])  # type: ignore[untyped-decorator]  # triton has no types
def _interact(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    x,  # noqa: ANN001  likewise
    tables,  # noqa: ANN001
    chosen,  # noqa: ANN001
    out,  # noqa: ANN001
    pairs,  # noqa: ANN001
    TABLES: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr,
    STAGES: tl.constexpr,
):
    vector = tl.arange(0, 32)
    column = tl.arange(0, WIDTH)
    of_table = (vector > 0) & (vector <= TABLES)
    below = (vector[:, None] > vector[None, :]) & (vector[:, None] <= TABLES)
    place = WIDTH + (vector * (vector - 1) // 2)[:, None] + vector[None, :]
    WRITTEN: tl.constexpr = WIDTH + TABLES * (TABLES + 1) // 2
    first = tl.program_id(0).to(tl.int64) * PAIRS  # rows of 128 in tables of tens of GB: no 32 bits
    for pair in tl.range(first, tl.minimum(first + PAIRS, pairs), num_stages=STAGES):
        row = tl.load(chosen + pair * TABLES + vector - 1, mask=of_table, other=0).to(tl.int64)
        # All are multiples of WIDTH; said again, as a choice of two addresses is not seen to be: 16 bytes a load.
        at = tl.multiple_of(tl.where(vector == 0, x + pair * WIDTH, tables + row * WIDTH), 16)
        vectors = tl.load(at[:, None] + column[None, :], mask=(vector <= TABLES)[:, None], other=0.0)
        products = tl.dot(vectors, tl.trans(vectors))
        to = out + pair * COLUMNS
        tl.store(to + column, tl.load(x + pair * WIDTH + column))
        tl.store(to + place, products.to(out.dtype.element_ty), mask=below)
        tl.store(to + WRITTEN + vector, 0.0, mask=vector < COLUMNS - WRITTEN)


def interact(
    x: Tensor, tables: Tensor, chosen: Tensor, columns: int, tile: tuple[int, int, int] = TILE
) -> Tensor:
    """The top's inputs [pairs, columns]: x, the products of every two of a pair's vectors, zeros.

    Args:
        x: the bottom's vectors, 16 bits, contiguous [pairs, 128].
        tables: the same dtype, [rows, 128].
        chosen: rows of ``tables``, int32, contiguous [pairs, at most 31 tables].
        columns: at most 32 more than there are vectors' and products' entries.
    """
    pairs, width = x.shape
    out = torch.empty(pairs, columns, dtype=x.dtype, device=x.device)
    each, stages, warps = tile
    _interact[(triton.cdiv(pairs, each),)](
        *(x, tables, chosen, out, pairs),
        **{"TABLES": chosen.shape[1], "WIDTH": width, "COLUMNS": columns, "PAIRS": each, "STAGES": stages},
        num_warps=warps,
    )
    return out


@triton.jit(do_not_specialize=["samples"])  # type: ignore[untyped-decorator]  # triton has no types
def _bring(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    dense,  # noqa: ANN001  likewise
    chosen,  # noqa: ANN001
    runs,  # noqa: ANN001
    to_dense,  # noqa: ANN001
    to_chosen,  # noqa: ANN001
    samples,  # noqa: ANN001
    COUNTS: tl.constexpr,
    TABLES: tl.constexpr,
    WORDS: tl.constexpr,
):
    word = tl.arange(0, WORDS)
    for sample in range(tl.program_id(0), samples, tl.num_programs(0)):
        begin, to, length = (
            tl.load(runs + sample),
            tl.load(runs + samples + sample),
            tl.load(runs + 2 * samples + sample),
        )
        for first in range(0, length * COUNTS, WORDS):
            at = first + word
            inside = at < length * COUNTS
            words = tl.load(dense + begin * COUNTS + at, mask=inside)
            tl.store(to_dense + to * COUNTS + at, words, mask=inside)

        for first in range(0, length * TABLES, WORDS):
            at = first + word
            inside = at < length * TABLES
            words = tl.load(chosen + begin * TABLES + at, mask=inside)
            tl.store(to_chosen + to * TABLES + at, words, mask=inside)


def bring(pool: tuple[Tensor, Tensor], runs: Tensor, dense: Tensor, chosen: Tensor, *, programs: int) -> None:
    """Copy runs of the pool's pairs, all contiguous.

    Args:
        pool: dense float32 [pairs, 13] and rows int32 [pairs, 26], which may be the host's (dlrm_gpu.seen_by_gpu).
        runs: int64 [3, samples]: where each begins in the pool, where it goes, its pairs.
        dense: where the pool's dense go, and ``chosen`` its rows.
        programs: that copy, each on an SM.
    """
    _bring[(programs,)](
        *(*pool, runs, dense, chosen, runs.shape[1]),
        **{"COUNTS": dense.shape[1], "TABLES": chosen.shape[1], "WORDS": WORDS},
        num_warps=8,
    )
