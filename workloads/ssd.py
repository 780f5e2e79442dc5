"""The single-shot detector's parts that both SSD workloads share: boxes from codes, suppression, rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from workloads import coco, images
from workloads.fidelity import box_f1
from workloads.protocol import WorkloadOptions
from workloads.suppression import suppressed
from workloads.vision import ImageWorkload

if TYPE_CHECKING:
    import numpy.typing as npt

    from workloads.protocol import Outputs

COCO_VALIDATION_IMAGES = 5_000

BACKGROUND = 0
"""The class that stands for no object, in both models."""

SCORE = 4
"""Column of what `best_of` finds."""


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
        self._anchors = self._architecture.anchors().to(self.device)
        super().load()

    def build(self) -> nn.Module:
        return self._architecture.network()

    def images(self) -> Callable[[int, Tensor], object]:
        folder = self.options.data
        if folder is None:
            return self.synthetic_images()

        data = coco.find(folder)
        files = data.files if isinstance(data, images.Images) else self._labelled_files(data)
        architecture = self._architecture
        fill = stretching(self, files, architecture.mean, architecture.deviation)
        if self.labelled is None:
            self.notes.append(f"labels: none: no {coco.ANNOTATIONS}")

        if self.options.size == "small":
            side = architecture.side
            self.notes.append(f"the small model sees {side}×{side}: no accuracy to hold against MLPerf's")

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

    def reduced(self, raw: tuple[Tensor, Tensor]) -> Tensor:
        """The detections, ``[B, most_per_image, 6]``: they are part of what the device computes, as in MLPerf."""
        codes, logits = raw
        # Boxes and scores in fp32 whatever the network's precision: 15130 boxes lie closer than bf16 tells.
        boxes = decode(codes.float(), self._anchors, self._architecture.code_scale)
        return detections(boxes, self._architecture.scores(logits.float()), self._architecture.suppression)

    def answer(self, found: "npt.NDArray[Any]", indices: Sequence[int]) -> "Outputs":
        return rows_of(found, indices)


def stretching(
    workload: ImageWorkload,
    files: Sequence[Path],
    mean: tuple[float, float, float],
    deviation: tuple[float, float, float],
) -> Callable[[int, Tensor], object]:
    """Have a detector's samples be these files, which it says in its notes; gives what fills a row (`stretched`)."""
    workload.total_sample_count = len(files)
    workload.notes.append(
        f"inputs: {len(files)} images of {workload.options.data}, scaled to {workload.side}×{workload.side} whatever "
        f"their shape, mean {mean}, deviation {deviation}"
    )

    def fill(index: int, row: Tensor) -> None:
        row.copy_(stretched(files[index], workload.side, mean, deviation))

    return fill


def stretched(
    path: Path, side: int, mean: tuple[float, float, float], deviation: tuple[float, float, float]
) -> Tensor:
    """One image as a detector wants it: ``[side, side, 3]`` RGB fp32, normalised as shares of 255.

    As MLPerf's reference prepares COCO and OpenImages (mlcommons/inference, vision/classification_and_detection/
    python/dataset.py, ``maybe_resize``, then ``pre_process_coco_resnet34``, ``pre_process_coco_pt_mobilenet`` or
    ``pre_process_openimages_retinanet``): stretched to a square in floating point with cv2.INTER_LINEAR, which looks
    at the four nearest pixels alone however much it shrinks, as ``interpolate`` does. (Pillow's bilinear filter does
    not.)

    Raises:
        WorkloadError: the file cannot be decoded.
    """
    pixels = torch.from_numpy(np.array(images.upright(path), dtype=np.float32))
    scaled = interpolate(
        pixels.permute(2, 0, 1)[None], size=(side, side), mode="bilinear", align_corners=False
    )
    share = scaled[0].permute(1, 2, 0) / 255
    return (share - torch.tensor(mean)) / torch.tensor(deviation)


def decode(codes: Tensor, anchors: Tensor, scale: tuple[float, float]) -> Tensor:
    """Codes ``[B, N, 4]`` (dx, dy, dw, dh) and anchors ``[N, 4]`` to boxes ``[B, N, 4]`` as ymin, xmin,
    ymax, xmax: centre = anchor centre + d·scale·anchor size; size = anchor size · exp(d·scale) (SSD paper).
    """
    centre = anchors[:, :2] + codes[..., :2] * scale[0] * anchors[:, 2:]
    half = anchors[:, 2:] * torch.exp(codes[..., 2:] * scale[1]) / 2
    return torch.cat(((centre - half).flip(-1), (centre + half).flip(-1)), dim=-1)


def detections(boxes: Tensor, scores: Tensor, suppression: Suppression) -> Tensor:
    """Boxes ``[B, N, 4]`` and scores ``[B, N, C]`` to the best that stay, ``[B, most_per_image, 6]`` (`best_of`).

    All shapes follow from those given, so that nothing waits for the device. Suppression works within a group, and a
    group is one class of one image: each image is answered as if it were alone.
    """
    images, places, _ = scores.shape
    of_classes = scores[..., 1:].transpose(1, 2).contiguous()  # the background is left out
    score, anchor = of_classes.topk(min(suppression.most_per_class, places), dim=2)
    box = chosen_boxes(boxes, anchor.flatten(1))
    count = (score > suppression.score_threshold).sum(2).flatten()
    first = torch.arange(len(count), device=box.device) * score.shape[2]
    stays = suppressed(box.flatten(0, 1), first, count, suppression.iou_threshold).view(images, -1)
    label = torch.arange(stays.shape[1], device=box.device) // score.shape[2] + 1
    return best_of(box, score.flatten(1), label.expand(images, -1), stays, suppression.most_per_image)


def chosen_boxes(boxes: Tensor, places: Tensor) -> Tensor:
    """``[B, N, 4]`` and int64 ``[B, K]`` to ``[B, K, 4]``."""
    return boxes.gather(1, places[..., None].expand(-1, -1, 4))


def best_of(boxes: Tensor, scores: Tensor, labels: Tensor, stays: Tensor, most: int) -> Tensor:
    """``[B, most, 6]`` fp32: of each image the boxes that stay, best first: corners, score, label. Rows that are left
    over have score 0.

    Args:
        boxes: ``[B, K, 4]``.
        scores, labels, stays: ``[B, K]``; scores above 0.
    """
    score, place = torch.where(stays, scores, 0.0).topk(min(most, scores.shape[1]), dim=1)
    label = labels.gather(1, place)
    return torch.cat((chosen_boxes(boxes, place), score[..., None], label[..., None].float()), dim=2)


def rows_of(found: "npt.NDArray[Any]", indices: Sequence[int]) -> "list[npt.NDArray[Any]]":
    """What `best_of` found as rows, one array ``[K, 7]`` an image: before each row its sample index."""
    counts = (found[:, :, SCORE] > 0).sum(axis=1)
    rows = np.empty((*found.shape[:2], 7), dtype=np.float32)
    rows[:, :, 0] = np.asarray(indices)[:, None]
    rows[:, :, 1:] = found
    return [row[:count] for row, count in zip(rows, counts, strict=True)]
