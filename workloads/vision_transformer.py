"""ViT-B/16, image classification: torchvision's ``vit_b_16``, which MIGPerf calls vision_transformer."""

from functools import partial

from torch import nn
from torchvision.models.vision_transformer import VisionTransformer

from workloads.classification import CLASSES, SIDES, ImageClassifier
from workloads.protocol import Size

HEAD_DEVIATION = 0.02
"""Of random weights: as everywhere else in the network. torchvision begins with a head of zeros, under which every
image gets the same answer."""

NETWORKS: dict[Size, partial[nn.Module]] = {
    "full": partial(
        VisionTransformer, patch_size=16, num_layers=12, num_heads=12, hidden_dim=768, mlp_dim=3072
    ),
    "small": partial(
        VisionTransformer, patch_size=16, num_layers=4, num_heads=4, hidden_dim=256, mlp_dim=1024
    ),
}


def network(size: Size) -> nn.Module:
    """The network with random weights: images ``[B, 3, side, side]`` to 1000 logits."""
    net: nn.Module = NETWORKS[size](image_size=SIDES[size], num_classes=CLASSES)
    for name, parameter in net.named_parameters():
        if name == "heads.head.weight":
            nn.init.normal_(parameter, std=HEAD_DEVIATION)

    return net


class VitB16(ImageClassifier):
    """Images, synthetic or of a folder, to one int64 label each."""

    def build(self) -> nn.Module:
        return network(self.options.size)
