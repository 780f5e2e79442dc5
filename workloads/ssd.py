"""The single-shot detector's parts that both SSD workloads share: boxes from codes, suppression, rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from workloads.protocol import WorkloadOptions
from workloads.vision import ImageWorkload

if TYPE_CHECKING:
    from workloads.protocol import Outputs

COCO_VALIDATION_IMAGES = 5_000

BACKGROUND = 0
"""The class that stands for no object, in both models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """Which boxes are answers."""

    score_threshold: float
    """A box of a class counts above this score."""
    iou_threshold: float
    """Of two boxes of one class that overlap by more than this, the better stays."""
    most_per_class: int
    """Of one image, before suppression."""
    most_per_image: int
    """After it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One SSD at one size."""

    side: int
    classes: int
    """Background included."""
    network: Callable[[], nn.Module]
    """Random weights; gives images ``[B, 3, side, side]`` → codes ``[B, N, 4]``, logits ``[B, N, classes]``."""
    anchors: Callable[[], Tensor]
    """``[N, 4]`` fp32: centre x, centre y, width, height, as shares of the image."""
    code_scale: tuple[float, float]
    """Of centre and of size: the variances of the SSD paper."""
    scores: Callable[[Tensor], Tensor]
    """Logits to scores, over the last axis."""
    suppression: Suppression


class SsdWorkload(ImageWorkload):
    """Images to detections: one ``[K, 7]`` float32 array a sample, K as many as there are.

    A row as in MLPerf's ``PostProcessCocoPt`` (mlcommons/inference, vision/classification_and_detection/
    python/coco.py): sample index, ymin, xmin, ymax, xmax (shares of the image), score, label. Best first.
    """

    def __init__(self, name: str, options: WorkloadOptions, architecture: Architecture) -> None:
        super().__init__(name, options, side=architecture.side, images_in_data_set=COCO_VALIDATION_IMAGES)
        self._architecture = architecture

    def load(self) -> None:
        super().load()
        self._anchors = self._architecture.anchors().to(self.device)

    def build(self) -> nn.Module:
        return self._architecture.network()

    def answer(self, raw: tuple[Tensor, Tensor], indices: Sequence[int]) -> "Outputs":
        codes, logits = raw
        # Boxes and scores in fp32 whatever the network's precision: 15130 boxes lie closer than bf16 tells.
        boxes = decode(codes.float(), self._anchors, self._architecture.code_scale)
        scores = self._architecture.scores(logits.float())
        return detections(boxes, scores, self._architecture.suppression, indices)


def decode(codes: Tensor, anchors: Tensor, scale: tuple[float, float]) -> Tensor:
    """Codes ``[B, N, 4]`` (dx, dy, dw, dh) and anchors ``[N, 4]`` to boxes ``[B, N, 4]`` as ymin, xmin,
    ymax, xmax: centre = anchor centre + d·scale·anchor size; size = anchor size · exp(d·scale) (SSD paper).
    """
    centre = anchors[:, :2] + codes[..., :2] * scale[0] * anchors[:, 2:]
    half = anchors[:, 2:] * torch.exp(codes[..., 2:] * scale[1]) / 2
    return torch.cat(((centre - half).flip(-1), (centre + half).flip(-1)), dim=-1)


def detections(boxes: Tensor, scores: Tensor, suppression: Suppression, indices: Sequence[int]) -> "Outputs":
    """Boxes ``[B, N, 4]`` and scores ``[B, N, C]`` to rows, one array ``[K, 7]`` an image, best first.

    The whole batch at once, and each image as if it were alone: suppression works within a group, and a
    group is one class of one image.
    """
    classes = scores.shape[2]
    image, anchor, label = (scores[:, :, 1:] > suppression.score_threshold).nonzero(as_tuple=True)
    label = label + 1  # the background was left out
    score = scores[image, anchor, label]
    best_first = score.argsort(descending=True, stable=True)
    image, anchor, label, score = (part[best_first] for part in (image, anchor, label, score))

    group = image * classes + label
    few = _rank_within(group) < suppression.most_per_class
    image, anchor, label, score, group = (part[few] for part in (image, anchor, label, score, group))
    box = boxes[image, anchor]
    kept = _suppress(box, score, group, suppression.iou_threshold)
    kept = kept[_rank_within(image[kept]) < suppression.most_per_image]

    image = image[kept]
    sample = torch.as_tensor(indices, device=boxes.device)[image]
    columns = (sample[:, None], box[kept], score[kept, None], label[kept, None])
    rows = torch.cat([column.float() for column in columns], dim=1)
    by_image = image.argsort(stable=True)
    counts = image.bincount(minlength=len(boxes))
    ends = counts.cumsum(0)[:-1].cpu().numpy()
    return np.split(rows[by_image].cpu().numpy(), ends)


def _suppress(boxes: Tensor, scores: Tensor, group: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that stay, best first; boxes of different groups never touch.

    Groups are moved apart, as torchvision's batched_nms does; in fp64, because fp32 has no digits left for
    a box of 0.02 beside an offset of a thousand.
    """
    if not len(boxes):
        return group

    apart = boxes.double()
    span = apart.max() - apart.min() + 1
    kept: Tensor = nms(apart + (group * span)[:, None], scores.double(), iou_threshold)
    return kept


def _rank_within(group: Tensor) -> Tensor:
    """For each element, how many before it belong to the same group; ``[K]`` to ``[K]``."""
    order = group.argsort(stable=True)
    ordered = group[order]
    place = torch.arange(len(group), device=group.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(starts, place, 0).cummax(0).values if len(group) else place
    return torch.empty_like(place).scatter_(0, order, place - first)
