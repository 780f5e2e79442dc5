"""ResNet-50 v1.5, image classification: torchvision's ``resnet50``, whose 3×3 convolutions hold the stride."""

from torch import nn
from torchvision.models.resnet import Bottleneck, resnet50

from workloads.classification import SIDES as SIDES
from workloads.classification import ImageClassifier
from workloads.vision import spread

RESIDUAL_GAIN = 0.3
"""Of random weights: what each block adds, so that 16 blocks do not double the variance 16 times."""


def network() -> nn.Module:
    """ResNet-50 v1.5 with random weights: images ``[B, 3, H, W]`` to 1000 logits."""
    net: nn.Module = resnet50(weights=None)
    spread(net)
    for block in net.modules():
        if isinstance(block, Bottleneck):
            nn.init.constant_(block.bn3.weight, RESIDUAL_GAIN)

    return net


class Resnet50(ImageClassifier):
    """Images, synthetic or of a folder, to one int64 label each."""

    def build(self) -> nn.Module:
        return network()
