"""Non-maximum suppression of many groups of boxes at once.

On a GPU it is one kernel for all groups (suppression_triton.py), which never has the host look at anything, so that
it is captured with the network in a CUDA graph. torchvision's compares every box of a batch with every other, those
of other groups too, and waits for the device: of 40 000 boxes of 8 images in fp64 it takes several times as long as
ssd-resnet34's network (H200, torch 2.11).
"""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torchvision.ops import nms

from workloads.triton_at_hand import at_hand

Suppress = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def suppressed(boxes: Tensor, first: Tensor, count: Tensor, iou_threshold: float) -> Tensor:
    """Bool [K]: which boxes stay, suppressing greedily from the best within each group.

    Args:
        boxes: fp32 [K, 4], two opposite corners.
        first, count: int64 [G]; group g is the ``count[g]`` boxes from ``first[g]`` on, the best first. Boxes of no
            group do not stay.
        iou_threshold: of two boxes of a group that overlap by more than this, the better stays.
    """
    kernel = in_one_kernel() if boxes.is_cuda else None
    return (kernel or by_torchvision)(boxes, first, count, iou_threshold)


def by_torchvision(boxes: Tensor, first: Tensor, count: Tensor, iou_threshold: float) -> Tensor:
    """The same, by `torchvision.ops.nms`: the host waits for the device.

    Groups are moved apart, as torchvision's batched_nms does; in fp64, because fp32 has no digits left for a box of
    0.02 beside an offset of a thousand.
    """
    group = torch.arange(len(count), device=boxes.device).repeat_interleave(count)
    rank = torch.arange(len(group), device=boxes.device) - (count.cumsum(0) - count)[group]
    place = first[group] + rank
    stays = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    if not len(place):
        return stays

    apart = boxes[place].double()
    span = apart.max() - apart.min() + 1
    kept = nms(apart + (group * span)[:, None], -rank.double(), iou_threshold)
    stays[place[kept]] = True
    return stays


@cache
def in_one_kernel() -> Suppress | None:
    """As `suppressed`, by Triton; None where Triton, or what it compiles with, is missing or fails."""
    return at_hand(_tried)


def _tried() -> Suppress:
    from workloads.suppression_triton import suppress

    alone = torch.zeros(1, dtype=torch.int64, device="cuda")
    suppress(torch.zeros(1, 4, device="cuda"), alone, alone + 1, 0.5)
    return suppress
