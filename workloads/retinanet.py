"""RetinaNet, object detection: MLPerf's network (round v2.1 and later) at 800×800, and the same one small.

ResNeXt-50 32×4d with a feature pyramid, from torchvision's parts and with its names, as mlcommons/training,
single_stage_detector/ssd/model/retinanet.py (``retinanet_resnext50_32x4d_fpn``) builds it for the 264 classes of
OpenImages; answers as mlcommons/inference, vision/classification_and_detection/python/openimages.py gives them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.resnet import Bottleneck
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from workloads import images
from workloads.fidelity import box_f1
from workloads.protocol import Size, WorkloadOptions
from workloads.score_convolutions import ExcessConvolution
from workloads.ssd import best_of, rows_of, stretching
from workloads.suppression import suppressed
from workloads.vision import ImageWorkload, spread

if TYPE_CHECKING:
    import numpy.typing as npt

    from workloads.protocol import Outputs

SIDES: dict[Size, int] = {"full": 800, "small": 128}
OPENIMAGES_VALIDATION_IMAGES = 24_781
CLASSES = 264
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of red, green and blue as shares of 255: what torchvision's detectors, and so MLPerf's, normalise images by."""
CHANNELS = 256
ANCHOR_SIDES = (32, 64, 128, 256, 512)
"""Of each pyramid level, in pixels; 3 scales (2⁰, 2^⅓, 2^⅔) × 3 ratios of each."""
RATIOS = (0.5, 1.0, 2.0)
ANCHORS_PER_CELL = 9

SCORE_THRESHOLD = 0.05
IOU_THRESHOLD = 0.5
MOST_PER_LEVEL = 1000
"""Of one level of one image, before suppression."""
MOST_PER_IMAGE = 300
LEAST = math.log(SCORE_THRESHOLD / (1 - SCORE_THRESHOLD))
"""The logit of that score."""
INFINITY_BITS = 0x7F800000
"""Of fp32's infinity, above those of every number."""
LARGEST_GROWTH = math.log(1000 / 16)
"""Of a box against its anchor, as logarithm (torchvision's BoxCoder)."""

OLD_NAMES = {
    **{
        f"head.{head}.conv.{2 * layer}.{kind}": f"head.{head}.conv.{layer}.0.{kind}"
        for head in ("classification_head", "regression_head")
        for layer in range(4)
        for kind in ("weight", "bias")
    },
    **{
        f"backbone.fpn.{blocks}.{block}.{kind}": f"backbone.fpn.{blocks}.{block}.0.{kind}"
        for blocks in ("inner_blocks", "layer_blocks")
        for block in range(3)
        for kind in ("weight", "bias")
    },
}
"""Of checkpoints made before torchvision 0.13 wrapped each convolution: MLPerf's own among them."""

RESIDUAL_GAIN = 0.3
PYRAMID_GAIN, HEAD_GAIN, BOX_GAIN = 0.5, 0.5, 0.1
BACKGROUND_LEAD: dict[Size, float] = {"full": 6.0, "small": 5.2}
"""Of random weights: boxes with an object are rare, so that suppression has about a trained model's work."""


Levels = list[tuple[Tensor, Tensor]]
"""Of each pyramid level with n anchors: codes ``[B, n, 4]``, and the excess of each class's logit above `LEAST`, 0
where it is below, ``[B, n, C]``."""


class RetinaNetNetwork(nn.Module):
    """Images ``[B, 3, s, s]`` to `Levels`, and what is to be added to each excess in fp32, ``[9, 264]`` (`rest` of
    ExcessConvolution). All levels together have 120087 anchors at 800."""

    def __init__(self) -> None:
        super().__init__()
        # Evaluated, BatchNorm2d and the reference's FrozenBatchNorm2d are the same, and have the same names.
        self.backbone = resnet_fpn_backbone(
            backbone_name="resnext50_32x4d",
            weights=None,
            norm_layer=nn.BatchNorm2d,
            trainable_layers=5,
            returned_layers=[2, 3, 4],
            extra_blocks=LastLevelP6P7(CHANNELS, CHANNELS),
        )
        self.head = RetinaNetHead(CHANNELS, ANCHORS_PER_CELL, CLASSES)
        self.head.classification_head.cls_logits = ExcessConvolution(
            CHANNELS, ANCHORS_PER_CELL * CLASSES, 3, padding=1, least=LEAST
        )

    def forward(self, images: Tensor) -> tuple[Levels, Tensor]:
        # As torchvision's head, but that a level's gigabyte of logits is not copied to join the others.
        boxes, classes = self.head.regression_head, self.head.classification_head
        levels = [
            (
                _by_anchor(boxes.bbox_reg(boxes.conv(feature)), 4),
                _by_anchor(classes.cls_logits(classes.conv(feature)), CLASSES),
            )
            for feature in self.backbone(images).values()
        ]
        return levels, classes.cls_logits.rest().view(ANCHORS_PER_CELL, CLASSES)


def _by_anchor(maps: Tensor, values: int) -> Tensor:
    """``[B, 9 · values, h, w]`` to ``[B, h · w · 9, values]``; of channels_last maps it is a view."""
    return maps.permute(0, 2, 3, 1).reshape(len(maps), -1, values)


def network(size: Size) -> nn.Module:
    """The network with random weights under which it finds some hundreds of objects an image."""
    net = RetinaNetNetwork()
    spread(net)
    for name, module in net.named_modules():
        if isinstance(module, Bottleneck):
            nn.init.constant_(module.bn3.weight, RESIDUAL_GAIN)
        elif isinstance(module, nn.Conv2d) and name.startswith("backbone.fpn."):
            module.weight.data.mul_(PYRAMID_GAIN)
        elif isinstance(module, nn.Conv2d) and name == "head.classification_head.cls_logits":
            module.weight.data.mul_(HEAD_GAIN)
            nn.init.constant_(module.bias, -BACKGROUND_LEAD[size])  # type: ignore[arg-type]  # it has one
        elif isinstance(module, nn.Conv2d) and name == "head.regression_head.bbox_reg":
            module.weight.data.mul_(BOX_GAIN)

    return net


def cells(side: int) -> tuple[int, ...]:
    """A side of each of the five pyramid levels, strides 8 to 128, rounded up as the convolutions do."""
    return tuple(-(-side // stride) for stride in (8, 16, 32, 64, 128))


def anchors(side: int) -> Tensor:
    """``[N, 4]`` fp32 in pixels: xmin, ymin, xmax, ymax, of the reference's sizes."""
    sizes = tuple((one, int(one * 2 ** (1 / 3)), int(one * 2 ** (2 / 3))) for one in ANCHOR_SIDES)
    generator = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
    image = ImageList(torch.empty(1, 3, side, side), [(side, side)])
    (boxes,) = generator(image, [torch.empty(1, 1, count, count) for count in cells(side)])
    placed: Tensor = boxes
    return placed


class RetinaNet(ImageWorkload):
    """Images to detections: one ``[K, 7]`` float32 array a sample, K as many as there are.

    A row as in MLPerf's ``PostProcessOpenImagesRetinanet``: sample index, ymin, xmin, ymax, xmax (shares of the
    image), score, class index from 0. Best first.
    """

    fidelity = staticmethod(box_f1)

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        super().__init__(
            name, options, side=SIDES[options.size], images_in_data_set=OPENIMAGES_VALIDATION_IMAGES
        )

    def load(self) -> None:
        self._anchors = anchors(self.side).to(self.device)
        super().load()

    def build(self) -> nn.Module:
        return network(self.options.size)

    def images(self) -> Callable[[int, Tensor], object]:
        folder = self.options.data
        if folder is None:
            return self.synthetic_images()

        fill = stretching(self, images.find(folder).files, MEAN, DEVIATION)
        self.notes.append("labels: none: OpenImages' annotations are not read")
        return fill

    def renamed_weights(self) -> Mapping[str, str]:
        return OLD_NAMES

    def reduced(self, raw: tuple[Levels, Tensor]) -> Tensor:
        """The detections, ``[B, 300, 6]``: they are part of what the device computes, as in MLPerf."""
        return detections(*raw, self._anchors, self.side)

    def answer(self, found: "npt.NDArray[Any]", indices: Sequence[int]) -> "Outputs":
        return rows_of(found, indices)


def decode(codes: Tensor, placed: Tensor) -> Tensor:
    """Codes ``[K, 4]`` (dx, dy, dw, dh) and their anchors ``[K, 4]`` to boxes ``[K, 4]`` as ymin, xmin, ymax, xmax in
    pixels (torchvision's BoxCoder with weights of one)."""
    size = placed[:, 2:] - placed[:, :2]
    centre = placed[:, :2] + size / 2 + codes[:, :2] * size
    half = size * torch.exp(codes[:, 2:].clamp(max=LARGEST_GROWTH)) / 2
    return torch.cat(((centre - half).flip(-1), (centre + half).flip(-1)), dim=-1)


def detections(levels: Levels, rest: Tensor, placed: Tensor, side: int) -> Tensor:
    """The network's answer and its anchors ``[N, 4]`` to the best boxes that stay, ``[B, 300, 6]`` (`best_of`).

    As torchvision's ``RetinaNet.postprocess_detections`` does image by image, for the whole batch at once. All shapes
    follow from those given, so that nothing waits for the device.
    """
    of_levels = torch.split(placed, [codes.shape[1] for codes, _ in levels])
    found = [candidates(*level, rest, anchor) for level, anchor in zip(levels, of_levels, strict=True)]
    box, excess, label = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    box = box.clamp(0, side)
    stays = _suppressed(box, excess, label, classes=rest.shape[1])
    return best_of(box / side, (excess + LEAST).sigmoid(), label, stays, MOST_PER_IMAGE)


def candidates(codes: Tensor, excess: Tensor, rest: Tensor, placed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of one level, the pairs of anchor and class with the largest logits, at most 1000 an image: boxes ``[B, k, 4]``,
    excess in fp32 (0 or below: no pair) and class, ``[B, k]``.

    They belong to the anchors whose best classes have the largest: so the level's logits are read once, and only
    those of 1000 anchors looked through.
    """
    image = torch.arange(len(codes), device=codes.device)[:, None]
    anchor = excess.amax(2).topk(min(MOST_PER_LEVEL, codes.shape[1]), dim=1).indices
    rounded = excess[image, anchor]
    exact = torch.where(rounded > 0, rounded + rest[anchor % ANCHORS_PER_CELL], 0.0).flatten(1)
    best, pair = exact.topk(min(MOST_PER_LEVEL, exact.shape[1]), dim=1)
    label = pair % rest.shape[1]
    anchor = anchor.gather(1, pair // rest.shape[1])
    # In fp32 whatever the network's precision: neighbouring anchors lie closer than bf16 tells.
    box = decode(codes[image, anchor].float().flatten(0, 1), placed[anchor].flatten(0, 1))
    return box.view(*anchor.shape, 4), best, label


def _suppressed(box: Tensor, excess: Tensor, label: Tensor, classes: int) -> Tensor:
    """Bool ``[B, K]``: which stay, each class of each image a group."""
    images = len(box)
    group = torch.arange(images, device=box.device)[:, None] * classes + label
    group = torch.where(excess > 0, group, images * classes)  # no pair: behind all groups
    # One sort by group, then by excess: the bits of a positive float, read as a whole number, are in its order.
    best_first = INFINITY_BITS - excess.clamp(min=0).view(torch.int32).long()
    order = ((group << 32) + best_first).flatten().argsort()
    bounds = torch.searchsorted(group.flatten()[order], torch.arange(images * classes + 1, device=box.device))
    stays = suppressed(box.flatten(0, 1)[order], bounds[:-1], bounds.diff(), IOU_THRESHOLD)
    return torch.zeros_like(stays).scatter(0, order, stays).view(images, -1)
