"""Non-maximum suppression of many small groups at once, for GPUs.

torchvision's compares every box of a batch with every other, those of other groups too: of 40 000 boxes of 8
images in fp64 that takes several times as long as ssd-resnet34's network (H200, torch 2.11). Here a box meets the
boxes of its own group alone.
"""

import torch
from torch import Tensor

LARGEST_GROUP = 256
"""Boxes; the pairs of a group are computed as one square."""
PAIRS_AT_ONCE = 1 << 22
"""16 MiB of fp32 for each intermediate result."""


def suppress_groups(
    boxes: Tensor, group: Tensor, rank: Tensor, iou_threshold: float, *, largest: int
) -> Tensor:
    """Bool [K]: which boxes stay, suppressing greedily from the best within each group.

    Args:
        boxes: [K, 4], two opposite corners.
        group: int64 [K], not negative.
        rank: int64 [K], of each box within its group, 0 the best.
        largest: above every rank.
    """
    which, place = torch.unique(group, return_inverse=True)
    corners = boxes.new_zeros(len(which), largest, 4, dtype=torch.float32)
    corners[place, rank] = boxes.float()
    stays = torch.zeros(len(which), largest, dtype=torch.bool, device=boxes.device)
    stays[place, rank] = True
    at_once = max(1, PAIRS_AT_ONCE // largest**2)
    for start in range(0, len(which), at_once):
        part = slice(start, start + at_once)
        stays[part] = _greedy(_overlaps(corners[part], iou_threshold), stays[part])

    return stays[place, rank]


def _overlaps(boxes: Tensor, iou_threshold: float) -> Tensor:
    """[G, n, 4] → bool [G, n, n]: whether the box of the row, a better one, overlaps that of the column."""
    low, high = boxes[:, :, None], boxes[:, None]
    side = (torch.minimum(low[..., 2:], high[..., 2:]) - torch.maximum(low[..., :2], high[..., :2])).clamp_(0)
    common = side[..., 0] * side[..., 1]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    return (common / (area[:, :, None] + area[:, None] - common) > iou_threshold).triu_(diagonal=1)


def _greedy(overlaps: Tensor, there: Tensor) -> Tensor:
    """A box stays if no better one that stays overlaps it: found from the best on, all groups at once.

    Each round settles at least one more box of each group, so it ends, with what suppressing one by one gives;
    chains of boxes that depend on each other are short, so it ends soon.
    """
    stays = there
    while True:
        again = there & ~(overlaps & stays[:, :, None]).any(dim=1)
        if torch.equal(again, stays):
            return stays

        stays = again
