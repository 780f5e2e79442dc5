"""SSD-ResNet34, object detection: MLPerf's network at 1200×1200, and the same one small.

Architecture from mlcommons/inference, vision/classification_and_detection/python/models/{ssd_r34,
base_model_r34}.py; names of modules as there, so that its state_dict (``resnet34-ssd1200``) fits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, resnet34

from workloads.coco import CATEGORIES
from workloads.protocol import Size, WorkloadOptions
from workloads.score_convolutions import ScoreConvolution
from workloads.ssd import BACKGROUND, Architecture, SsdWorkload, Suppression
from workloads.vision import spread

CLASSES = 81
CHANNELS = (256, 512, 512, 256, 256, 256)
SHAPES_PER_CELL = (4, 6, 6, 6, 4, 4)
ASPECT_RATIOS = ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,))
SCALES = tuple(scale / 300 for scale in (21, 45, 99, 153, 207, 261, 315))
"""Of each feature map's boxes, and one more, as shares of the image."""

RESIDUAL_GAIN = 0.3
HEAD_GAIN = 0.6
BACKGROUND_LEAD = 6.0
"""Of random weights: 13 blocks do not double the variance 13 times; boxes with an object are rare, so that
suppression has about a trained model's work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Where the six detection heads look, at one image side."""

    head_stride: int
    last_extra_stride: int
    cells: tuple[int, ...]
    """A side of each head's output."""
    cells_per_image: tuple[float, ...]
    """What a side of the image counts in that head's steps."""


GRID_1200 = Grid(
    head_stride=3,
    last_extra_stride=2,
    cells=(50, 25, 13, 7, 3, 3),
    cells_per_image=(50, 25, 13, 7, 3, 3),
)
GRID_300 = Grid(
    head_stride=1,
    last_extra_stride=1,
    cells=(38, 19, 10, 5, 3, 1),
    cells_per_image=tuple(300 / step for step in (8, 16, 32, 64, 100, 300)),
)
"""As MLPerf training has this network at 300×300 (8732 boxes); with the strides of 1200 the last map of a
300×300 image would have no cell."""


class Backbone(nn.Module):
    """ResNet-34 up to its third stage, which keeps its resolution: ``[B, 3, s, s]`` → ``[B, 256, s/8, s/8]``."""

    def __init__(self) -> None:
        super().__init__()
        children = list(resnet34(weights=None).children())
        self.layer1 = nn.Sequential(*children[:6])
        self.layer2 = nn.Sequential(*children[6:7])
        first: Any = next(self.layer2[0].children())
        first.conv1.stride = (1, 1)
        first.downsample[0].stride = (1, 1)

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layer2(self.layer1(images))
        return features


class SsdResnet34Network(nn.Module):
    """Images to codes ``[B, N, 4]`` and logits ``[B, N, 81]``, N = 15130 at 1200×1200."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.model = Backbone()
        last = grid.last_extra_stride
        self.additional_blocks = nn.ModuleList(
            [
                _extra(CHANNELS[0], 256, CHANNELS[1], stride=2, padding=1),
                _extra(CHANNELS[1], 256, CHANNELS[2], stride=2, padding=1),
                _extra(CHANNELS[2], 128, CHANNELS[3], stride=2, padding=1),
                _extra(CHANNELS[3], 128, CHANNELS[4], stride=last, padding=0),
                _extra(CHANNELS[4], 128, CHANNELS[5], stride=1, padding=0),
            ]
        )
        self.loc = nn.ModuleList(_heads(nn.Conv2d, 4, grid.head_stride))
        self.conf = nn.ModuleList(_heads(ScoreConvolution, CLASSES, grid.head_stride))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = [self.model(images)]
        for block in self.additional_blocks:
            features.append(block(features[-1]))

        return _join(self.loc, features, 4), _join(self.conf, features, CLASSES)


def network(grid: Grid) -> nn.Module:
    """The network with random weights under which it finds some hundreds of objects an image."""
    net = SsdResnet34Network(grid)
    spread(net)
    for module in net.modules():
        if isinstance(module, BasicBlock):
            nn.init.constant_(module.bn2.weight, RESIDUAL_GAIN)

    for head in (*net.loc, *net.conf):
        _parameters(head)[0].mul_(HEAD_GAIN)

    for head, shapes in zip(net.conf, SHAPES_PER_CELL, strict=True):
        _parameters(head)[1][:shapes] = BACKGROUND_LEAD  # channels: all shapes of class 0, of class 1, …

    return net


def default_boxes(grid: Grid) -> Tensor:
    """``[N, 4]`` fp32: centre x, centre y, width, height (ssd_r34.py, ``DefaultBoxes``), shape by shape."""
    boxes = []
    for head, cells in enumerate(grid.cells):
        scale, following = SCALES[head], SCALES[head + 1]
        between = math.sqrt(scale * following)
        shapes = [(scale, scale), (between, between)]
        for ratio in ASPECT_RATIOS[head]:
            wide, narrow = scale * math.sqrt(ratio), scale / math.sqrt(ratio)
            shapes += [(wide, narrow), (narrow, wide)]

        centres = [(cell + 0.5) / grid.cells_per_image[head] for cell in range(cells)]
        boxes += [(x, y, width, height) for width, height in shapes for y in centres for x in centres]

    return torch.tensor(boxes).clamp_(0, 1)


def _parameters(convolution: nn.Module) -> list[Tensor]:
    """Its weight and its bias, free to be written."""
    return [parameter.data for parameter in convolution.parameters()]


def _extra(inside: int, middle: int, outside: int, *, stride: int, padding: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, middle, 1),
        nn.ReLU(inplace=True),
        nn.Conv2d(middle, outside, 3, stride=stride, padding=padding),
        nn.ReLU(inplace=True),
    )


def _heads(kind: type[nn.Conv2d], values: int, stride: int) -> list[nn.Module]:
    return [
        kind(channels, shapes * values, 3, stride=stride, padding=1)
        for channels, shapes in zip(CHANNELS, SHAPES_PER_CELL, strict=True)
    ]


def _join(heads: nn.ModuleList, features: Sequence[Tensor], values: int) -> Tensor:
    """All heads' outputs as ``[B, N, values]``; a head's channels are value by value, then shape by shape."""
    parts = [
        head(feature).reshape(len(feature), values, -1) for head, feature in zip(heads, features, strict=True)
    ]
    return torch.cat(parts, dim=2).transpose(1, 2)


def _architecture(side: int, grid: Grid) -> Architecture:
    return Architecture(
        side=side,
        classes=CLASSES,
        network=partial(network, grid),
        anchors=partial(default_boxes, grid),
        code_scale=(0.1, 0.2),
        scores=partial(torch.softmax, dim=-1),
        # ssd_r34.py, decode_single: above 0.05, IoU 0.5, 200 a class, 200 an image.
        suppression=Suppression(
            score_threshold=0.05, iou_threshold=0.5, most_per_class=200, most_per_image=200
        ),
        mean=(0.485, 0.456, 0.406),
        deviation=(0.229, 0.224, 0.225),
        # coco.py, ``use_label_map``: class k is the k-th category of the file.
        category_of=(BACKGROUND, *CATEGORIES),
        only_with_objects=True,
    )


ARCHITECTURES: dict[Size, Architecture] = {
    "full": _architecture(1200, GRID_1200),
    "small": _architecture(300, GRID_300),
}


class SsdResnet34(SsdWorkload):
    """Images, synthetic or of a folder, to COCO detections."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        super().__init__(name, options, ARCHITECTURES[options.size])
