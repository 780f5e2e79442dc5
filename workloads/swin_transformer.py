"""Swin-B, image classification: torchvision's ``swin_b``, which MIGPerf calls swin_transformer."""

from functools import partial

from torch import nn
from torchvision.models.swin_transformer import SwinTransformer

from workloads.classification import CLASSES, ImageClassifier
from workloads.protocol import Size

NETWORKS: dict[Size, partial[nn.Module]] = {
    "full": partial(
        SwinTransformer,
        patch_size=[4, 4],
        embed_dim=128,
        depths=[2, 2, 18, 2],
        num_heads=[4, 8, 16, 32],
        window_size=[7, 7],
        stochastic_depth_prob=0.5,
    ),
    "small": partial(
        SwinTransformer,
        patch_size=[4, 4],
        embed_dim=48,
        depths=[2, 2, 2, 2],
        num_heads=[2, 4, 8, 16],
        window_size=[4, 4],
        stochastic_depth_prob=0.1,
    ),
}
"""MIGPerf's load_cv_model takes ``swin_b`` (mig_perf/utils/model_hub.py). Stochastic depth is of training only."""


def network(size: Size) -> nn.Module:
    """The network with torchvision's random weights: images ``[B, 3, side, side]`` to 1000 logits."""
    net: nn.Module = NETWORKS[size](num_classes=CLASSES)
    return net


class SwinB(ImageClassifier):
    """Images, synthetic or of a folder, to one int64 label each."""

    def build(self) -> nn.Module:
        return network(self.options.size)
