"""RetinaNet, object detection: MLPerf's network (round v2.1 and later) at 800×800, and the same one small.

ResNeXt-50 32×4d with a feature pyramid, from torchvision's parts and with its names, as mlcommons/training,
single_stage_detector/ssd/model/retinanet.py (``retinanet_resnext50_32x4d_fpn``) builds it for the 264 classes of
OpenImages; answers as mlcommons/inference, vision/classification_and_detection/python/openimages.py gives them.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.resnet import Bottleneck
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from workloads.fidelity import box_f1
from workloads.protocol import Size, WorkloadOptions
from workloads.ssd import rank_within, suppress
from workloads.vision import ImageWorkload, spread

if TYPE_CHECKING:
    from workloads.protocol import Outputs

SIDES: dict[Size, int] = {"full": 800, "small": 128}
OPENIMAGES_VALIDATION_IMAGES = 24_781
CLASSES = 264
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


class RetinaNetNetwork(nn.Module):
    """Images ``[B, 3, s, s]`` to codes ``[B, N, 4]`` and logits ``[B, N, 264]``, level by level; N = 120087 at 800."""

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

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        answers = self.head(list(self.backbone(images).values()))
        return answers["bbox_regression"], answers["cls_logits"]


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
        super().load()
        self._anchors = anchors(self.side).to(self.device)

    def build(self) -> nn.Module:
        return network(self.options.size)

    def images(self) -> Callable[[int, Tensor], object]:
        return self.synthetic_images()

    def renamed_weights(self) -> Mapping[str, str]:
        return OLD_NAMES

    def answer(self, raw: tuple[Tensor, Tensor], indices: Sequence[int]) -> "Outputs":
        codes, logits = raw
        return detections(codes, logits, self._anchors, self.side, indices)


def decode(codes: Tensor, placed: Tensor, side: int) -> Tensor:
    """Codes ``[K, 4]`` (dx, dy, dw, dh) and their anchors ``[K, 4]`` to boxes ``[K, 4]`` as ymin, xmin, ymax, xmax in
    pixels, cut off at the image's edge (torchvision's BoxCoder with weights of one)."""
    size = placed[:, 2:] - placed[:, :2]
    centre = placed[:, :2] + size / 2 + codes[:, :2] * size
    half = size * torch.exp(codes[:, 2:].clamp(max=LARGEST_GROWTH)) / 2
    return torch.cat(((centre - half).flip(-1), (centre + half).flip(-1)), dim=-1).clamp(0, side)


def detections(codes: Tensor, logits: Tensor, placed: Tensor, side: int, indices: Sequence[int]) -> "Outputs":
    """Codes ``[B, N, 4]`` and logits ``[B, N, C]`` to rows, one array ``[K, 7]`` an image, best first.

    As torchvision's ``RetinaNet.postprocess_detections`` does image by image, for the whole batch at once.
    """
    classes = logits.shape[2]
    ends = torch.tensor([ANCHORS_PER_CELL * count**2 for count in cells(side)], device=codes.device).cumsum(0)
    least = math.log(SCORE_THRESHOLD / (1 - SCORE_THRESHOLD))
    image, anchor, label = (logits > least).nonzero(as_tuple=True)
    score = logits[image, anchor, label].float().sigmoid()
    best_first = score.argsort(descending=True, stable=True)
    image, anchor, label, score = (part[best_first] for part in (image, anchor, label, score))

    level = torch.searchsorted(ends, anchor, right=True)
    few = rank_within(image * len(ends) + level) < MOST_PER_LEVEL
    image, anchor, label, score = (part[few] for part in (image, anchor, label, score))
    # In fp32 whatever the network's precision: neighbouring anchors lie closer than bf16 tells.
    box = decode(codes[image, anchor].float(), placed[anchor], side)
    kept = suppress(box, score, image * classes + label, IOU_THRESHOLD)
    kept = kept[rank_within(image[kept]) < MOST_PER_IMAGE]

    image = image[kept]
    sample = torch.as_tensor(indices, device=codes.device)[image]
    columns = (sample[:, None], box[kept] / side, score[kept, None], label[kept, None])
    rows = torch.cat([column.float() for column in columns], dim=1)
    counts = image.bincount(minlength=len(codes)).cumsum(0)[:-1].cpu().numpy()
    return np.split(rows[image.argsort(stable=True)].cpu().numpy(), counts)
