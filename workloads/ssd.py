"""The single-shot detector's parts that both SSD workloads share: boxes from codes, suppression, rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.ops import nms

from workloads import coco, images
from workloads.fidelity import box_f1
from workloads.protocol import WorkloadOptions
from workloads.suppression import LARGEST_GROUP, suppress_groups
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
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    """Of red, green and blue as shares of 255: what the network's images are normalised by."""
    category_of: tuple[int, ...]
    """COCO's category id of each class."""
    only_with_objects: bool
    """MLPerf's reference leaves out the images that show nothing of the 80 categories for this model."""


class SsdWorkload(ImageWorkload):
    """Images to detections: one ``[K, 7]`` float32 array a sample, K as many as there are.

    A row as in MLPerf's ``PostProcessCocoPt`` (mlcommons/inference, vision/classification_and_detection/
    python/coco.py): sample index, ymin, xmin, ymax, xmax (shares of the image), score, label. Best first.
    """

    fidelity = staticmethod(box_f1)

    def __init__(self, name: str, options: WorkloadOptions, architecture: Architecture) -> None:
        super().__init__(name, options, side=architecture.side, images_in_data_set=COCO_VALIDATION_IMAGES)
        self._architecture = architecture

    def load(self) -> None:
        super().load()
        self._anchors = self._architecture.anchors().to(self.device)

    def build(self) -> nn.Module:
        return self._architecture.network()

    def images(self) -> Callable[[int, Tensor], object]:
        folder = self.options.data
        if folder is None:
            return self.synthetic_images()

        data = coco.find(folder)
        files = data.files if isinstance(data, images.Images) else self._labelled_files(data)
        self.total_sample_count = len(files)
        architecture = self._architecture
        side = architecture.side
        self.notes.append(
            f"inputs: {len(files)} images of {folder}, scaled to {side}×{side} whatever their shape, "
            f"mean {architecture.mean}, deviation {architecture.deviation}"
        )
        if self.labelled is None:
            self.notes.append(f"labels: none: no {coco.ANNOTATIONS}")

        if self.options.size == "small":
            self.notes.append(f"the small model sees {side}×{side}: no accuracy to hold against MLPerf's")

        def fill(index: int, row: Tensor) -> None:
            row.copy_(prepared(files[index], architecture))

        return fill

    def _labelled_files(self, data: coco.Coco) -> tuple[Path, ...]:
        architecture = self._architecture
        used = data.with_objects() if architecture.only_with_objects else data
        self.labelled = coco.MeanAveragePrecision(used, architecture.category_of)
        boxes = sum(picture.objects for picture in used.pictures)
        self.notes.append(f"labels: {boxes} boxes in {len(used.pictures)} images, by {coco.ANNOTATIONS}")
        left_out = len(data.pictures) - len(used.pictures)
        if left_out:
            self.notes.append(
                f"{left_out} of {len(data.pictures)} images show nothing of the 80 categories and are left out, as "
                "MLPerf's reference does for this model"
            )

        return tuple(picture.file for picture in used.pictures)

    def answer(self, raw: tuple[Tensor, Tensor], indices: Sequence[int]) -> "Outputs":
        codes, logits = raw
        # Boxes and scores in fp32 whatever the network's precision: 15130 boxes lie closer than bf16 tells.
        boxes = decode(codes.float(), self._anchors, self._architecture.code_scale)
        scores = self._architecture.scores(logits.float())
        return detections(boxes, scores, self._architecture.suppression, indices)


def prepared(path: Path, architecture: Architecture) -> Tensor:
    """One image as the network wants it: ``[side, side, 3]`` RGB fp32, normalised.

    As MLPerf's reference prepares COCO (mlcommons/inference, vision/classification_and_detection/python/
    dataset.py, ``maybe_resize``, then ``pre_process_coco_resnet34`` or ``pre_process_coco_pt_mobilenet``):
    stretched to a square in floating point with cv2.INTER_LINEAR, which looks at the four nearest pixels
    alone however much it shrinks, as ``interpolate`` does. (Pillow's bilinear filter does not.)

    Raises:
        WorkloadError: the file cannot be decoded.
    """
    pixels = torch.from_numpy(np.array(images.upright(path), dtype=np.float32))
    square = (architecture.side, architecture.side)
    scaled = interpolate(pixels.permute(2, 0, 1)[None], size=square, mode="bilinear", align_corners=False)
    share = scaled[0].permute(1, 2, 0) / 255
    return (share - torch.tensor(architecture.mean)) / torch.tensor(architecture.deviation)


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
    few = rank_within(group) < suppression.most_per_class
    image, anchor, label, score, group = (part[few] for part in (image, anchor, label, score, group))
    box = boxes[image, anchor]
    kept = suppress(box, score, group, suppression.iou_threshold)
    kept = kept[rank_within(image[kept]) < suppression.most_per_image]

    image = image[kept]
    sample = torch.as_tensor(indices, device=boxes.device)[image]
    columns = (sample[:, None], box[kept], score[kept, None], label[kept, None])
    rows = torch.cat([column.float() for column in columns], dim=1)
    by_image = image.argsort(stable=True)
    counts = image.bincount(minlength=len(boxes))
    ends = counts.cumsum(0)[:-1].cpu().numpy()
    return np.split(rows[by_image].cpu().numpy(), ends)


def suppress(boxes: Tensor, scores: Tensor, group: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes that stay, best first; boxes of different groups never touch.

    Groups are moved apart, as torchvision's batched_nms does; in fp64, because fp32 has no digits left for
    a box of 0.02 beside an offset of a thousand. On a GPU, small groups are not moved but kept apart.
    """
    if not len(boxes):
        return group

    if boxes.is_cuda:
        best_first = scores.argsort(descending=True, stable=True)
        group = group[best_first]
        rank = rank_within(group)
        largest = int(rank.max()) + 1
        if largest <= LARGEST_GROUP:
            stays = suppress_groups(boxes[best_first], group, rank, iou_threshold, largest=largest)
            return best_first[stays]

        group = torch.empty_like(group).scatter_(0, best_first, group)

    apart = boxes.double()
    span = apart.max() - apart.min() + 1
    kept: Tensor = nms(apart + (group * span)[:, None], scores.double(), iou_threshold)
    return kept


def rank_within(group: Tensor) -> Tensor:
    """For each element, how many before it belong to the same group; ``[K]`` to ``[K]``."""
    order = group.argsort(stable=True)
    ordered = group[order]
    place = torch.arange(len(group), device=group.device)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    first = torch.where(starts, place, 0).cummax(0).values if len(group) else place
    return torch.empty_like(place).scatter_(0, order, place - first)
