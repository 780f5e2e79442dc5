"""SSD-MobileNet v1, object detection: MLPerf's network at 300×300, and the same one at 160×160.

Architecture from mlcommons/inference, vision/classification_and_detection/python/models/
ssd_mobilenet_v1.py, itself TensorFlow's ssd_mobilenet_v1_coco with batch norms folded; names of modules as
there, so that its state_dict fits.
"""

import math
from collections import OrderedDict
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from workloads.protocol import Size, WorkloadOptions
from workloads.score_convolutions import ScoreConvolution
from workloads.ssd import Architecture, SsdWorkload, Suppression
from workloads.vision import spread

CLASSES = 91
SHAPES_PER_CELL = (3, 6, 6, 6, 6, 6)
MIN_SCALE, MAX_SCALE = 0.2, 0.95
ASPECT_RATIOS = (1.0, 2.0, 1 / 2, 3.0, 1 / 3)

HEAD_GAIN = 0.45
COMMON_LOGIT = -4.3
"""Of random weights: objects are rare, so that suppression has about a trained model's work."""

CELLS: dict[Size, tuple[int, ...]] = {"full": (19, 10, 5, 3, 2, 1), "small": (10, 5, 3, 2, 1, 1)}
"""A side of each of the six feature maps, at 300×300 and at 160×160."""


class SameConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's SAME: where the padding is odd, one more below and right."""

    def forward(self, images: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        height, width = (
            max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in images.shape[-2:]
        )
        if height % 2 or width % 2:
            images = pad(images, (0, width % 2, 0, height % 2))

        padding = (height // 2, width // 2)
        return conv2d(images, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)


class ScaleAndBias(nn.Module):
    """A folded batch norm: one factor and one addend a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.scale: Tensor
        self.bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return torch.addcmul(self.bias.view(1, -1, 1, 1), features, self.scale.view(1, -1, 1, 1))


class Bias(nn.Module):
    """A batch norm whose factor is folded into the weights: one addend a channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(channels))
        self.bias: Tensor

    def forward(self, features: Tensor) -> Tensor:
        return features + self.bias.view(1, -1, 1, 1)


class Head(nn.Module):
    """One feature map to its logits ``[B, cells·shapes, 91]`` and codes ``[B, cells·shapes, 4]``."""

    def __init__(self, channels: int, shapes: int) -> None:
        super().__init__()
        self.classification = ScoreConvolution(channels, CLASSES * shapes, 1)
        self.regression = nn.Conv2d(channels, 4 * shapes, 1)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        logits, codes = self.classification(feature), self.regression(feature)
        images = len(feature)
        return (
            logits.permute(0, 2, 3, 1).reshape(images, -1, CLASSES),
            codes.permute(0, 2, 3, 1).reshape(images, -1, 4),
        )


class SsdMobilenetNetwork(nn.Module):
    """Images to codes ``[B, N, 4]`` (dx, dy, dw, dh) and logits ``[B, N, 91]``, N = 1917 at 300×300."""

    def __init__(self) -> None:
        super().__init__()
        separable = [
            (32, 64, 1),
            (64, 128, 2),
            (128, 128, 1),
            (128, 256, 2),
            (256, 256, 1),
            (256, 512, 2),
            *[(512, 512, 1)] * 5,
            (512, 1024, 2),
            (1024, 1024, 1),
        ]
        self.backbone = nn.ModuleList([_convolution(3, 32, 2), *(_separable(*layer) for layer in separable)])
        extras = [(1024, 256, 512), (512, 128, 256), (256, 128, 256), (256, 64, 128)]
        self.extras = nn.ModuleList([_extra(*layer) for layer in extras])
        channels = (512, 1024, 512, 256, 256, 128)
        heads = zip(channels, SHAPES_PER_CELL, strict=True)
        self.predictors = nn.ModuleList([Head(width, shapes) for width, shapes in heads])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = []
        feature = images
        for number, layer in enumerate(self.backbone):
            feature = layer(feature)
            if number in (11, 13):
                features.append(feature)

        for layer in self.extras:
            feature = layer(feature)
            features.append(feature)

        answers = [head(feature) for head, feature in zip(self.predictors, features, strict=True)]
        logits, codes = (torch.cat(parts, dim=1) for parts in zip(*answers, strict=True))
        # The checkpoint's codes are dy, dx, dh, dw: each pair the other way round.
        return torch.unflatten(codes, -1, (2, 2)).flip(-1).flatten(-2), logits


def network() -> nn.Module:
    """The network with random weights under which it finds some tens of objects an image."""
    net = SsdMobilenetNetwork()
    spread(net)
    for head in net.predictors:
        assert isinstance(head, Head)
        assert head.classification.bias is not None
        head.classification.weight.data *= HEAD_GAIN
        head.regression.weight.data *= HEAD_GAIN
        nn.init.constant_(head.classification.bias, COMMON_LOGIT)

    return net


def anchors(cells_per_side: tuple[int, ...]) -> Tensor:
    """``[N, 4]`` fp32: centre x, centre y, width, height; cell by cell, then shape by shape.

    TensorFlow's multiple_grid_anchor_generator, ``create_ssd_anchors``, with ssd_mobilenet_v1_coco.config.
    """
    steps = len(cells_per_side)
    scales = [MIN_SCALE + (MAX_SCALE - MIN_SCALE) * step / (steps - 1) for step in range(steps)] + [1.0]
    boxes = []
    for head, cells in enumerate(cells_per_side):
        scale = scales[head]
        shapes = [(scale, ratio) for ratio in ASPECT_RATIOS] + [(math.sqrt(scale * scales[head + 1]), 1.0)]
        if head == 0:
            shapes = [(0.1, 1.0), (scale, 2.0), (scale, 0.5)]

        centres = [(cell + 0.5) / cells for cell in range(cells)]
        boxes += [
            (x, y, size * math.sqrt(ratio), size / math.sqrt(ratio))
            for y in centres
            for x in centres
            for size, ratio in shapes
        ]

    return torch.tensor(boxes)


def _convolution(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            {
                "0": SameConv2d(inside, outside, 3, stride, bias=False),
                "0/BatchNorm": Bias(outside),
                "0/ReLU": nn.ReLU6(inplace=True),
            }
        )
    )


def _separable(inside: int, outside: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            {
                "depthwise": SameConv2d(inside, inside, 3, stride, groups=inside, bias=False),
                "depthwise/BatchNorm": ScaleAndBias(inside),
                "depthwise/ReLU": nn.ReLU6(inplace=True),
                "pointwise": nn.Conv2d(inside, outside, 1, bias=False),
                "pointwise/BatchNorm": Bias(outside),
                "pointwise/ReLU": nn.ReLU6(inplace=True),
            }
        )
    )


def _extra(inside: int, middle: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, middle, 1),
        nn.ReLU6(inplace=True),
        SameConv2d(middle, outside, 3, 2),
        nn.ReLU6(inplace=True),
    )


def _architecture(side: int, cells: tuple[int, ...]) -> Architecture:
    return Architecture(
        side=side,
        classes=CLASSES,
        network=network,
        anchors=partial(anchors, cells),
        code_scale=(1 / 10, 1 / 5),
        scores=torch.sigmoid,
        # Score and IoU as in MLPerf's ssd_mobilenet_v1.py; at most 100 as in TensorFlow's config.
        suppression=Suppression(
            score_threshold=0.3, iou_threshold=0.6, most_per_class=100, most_per_image=100
        ),
        mean=(0.5, 0.5, 0.5),
        deviation=(0.5, 0.5, 0.5),
        category_of=tuple(range(CLASSES)),  # its classes are COCO's ids, those not used among them
        only_with_objects=False,
    )


ARCHITECTURES: dict[Size, Architecture] = {
    "full": _architecture(300, CELLS["full"]),
    "small": _architecture(160, CELLS["small"]),
}


class SsdMobilenet(SsdWorkload):
    """Images, synthetic or of a folder, to COCO detections."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        super().__init__(name, options, ARCHITECTURES[options.size])
