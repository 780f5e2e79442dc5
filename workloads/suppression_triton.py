"""Suppression of all groups of boxes as one GPU kernel, a program a group. Needs Triton and a C compiler."""

import torch
import triton  # type: ignore[import-untyped]  # it ships no types
import triton.language as tl  # type: ignore[import-untyped]  # likewise
from torch import Tensor

TILE = 256
"""Boxes of a group looked at together, by one warp: most groups are one tile, and no warp waits for another."""


@triton.jit
def _either(one, other):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  triton's own language
    return one | other


@triton.jit
def _overlap(boxes, better, top, left, bottom, right, iou_threshold):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  triton's own language
    """Which of the tile's boxes overlap the box ``better`` by more than the threshold."""
    y, x, y_end, x_end = (
        tl.load(boxes + better * 4),
        tl.load(boxes + better * 4 + 1),
        tl.load(boxes + better * 4 + 2),
        tl.load(boxes + better * 4 + 3),
    )
    height = tl.maximum(tl.minimum(bottom, y_end) - tl.maximum(top, y), 0.0)
    width = tl.maximum(tl.minimum(right, x_end) - tl.maximum(left, x), 0.0)
    common = height * width
    together = (bottom - top) * (right - left) + (y_end - y) * (x_end - x) - common
    return common > iou_threshold * together


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _suppress(boxes, first, count, stays, iou_threshold, TILE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  triton's own language
    group = tl.program_id(0)
    begin = tl.load(first + group).to(tl.int32)
    end = begin + tl.load(count + group).to(tl.int32)
    lane = tl.arange(0, TILE)
    for tile in range(begin, end, TILE):
        place = tile + lane
        inside = place < end
        top = tl.load(boxes + place * 4, mask=inside, other=0.0)
        left = tl.load(boxes + place * 4 + 1, mask=inside, other=0.0)
        bottom = tl.load(boxes + place * 4 + 2, mask=inside, other=0.0)
        right = tl.load(boxes + place * 4 + 3, mask=inside, other=0.0)
        alive = inside.to(tl.int32)
        for better in range(begin, tile):
            if tl.load(stays + better) != 0:
                alive = tl.where(_overlap(boxes, better, top, left, bottom, right, iou_threshold), 0, alive)

        for better in range(tile, tl.minimum(tile + TILE, end)):
            if tl.reduce(tl.where(place == better, alive, 0), 0, _either) != 0:
                hit = _overlap(boxes, better, top, left, bottom, right, iou_threshold) & (place > better)
                alive = tl.where(hit, 0, alive)

        tl.store(stays + place, alive.to(tl.int8), mask=inside)
        tl.debug_barrier()  # the next tile reads what this one has written


def suppress(boxes: Tensor, first: Tensor, count: Tensor, iou_threshold: float) -> Tensor:
    """As `suppression.suppressed`; nothing in it waits for the device."""
    stays = torch.zeros(len(boxes), dtype=torch.int8, device=boxes.device)
    _suppress[(len(first),)](boxes.contiguous(), first, count, stays, iou_threshold, TILE=TILE, num_warps=1)
    return stays.bool()
