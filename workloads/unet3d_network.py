"""MLPerf's 3D U-Net: blocks, and names of the weights, as in mlcommons/training image_segmentation/pytorch."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from workloads.protocol import Size

CLASSES = 3
"""Background, kidney, tumour."""

FILTERS: dict[Size, tuple[int, ...]] = {"full": (32, 64, 128, 256, 320), "small": (8, 16, 32, 64)}
"""Channels of each level; one more level below with the last count. ``small`` has a quarter of them and a
level fewer: a 32³ window halved five times is one voxel, and instance norm has nothing to normalise."""


def _conv_block(inputs: int, outputs: int, *, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(inputs, outputs, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.InstanceNorm3d(outputs, affine=True),
        nn.ReLU(inplace=True),
    )


class Block(nn.Module):
    """Two convolutions, the first with the stride."""

    def __init__(self, inputs: int, outputs: int, *, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = _conv_block(inputs, outputs, stride=stride)
        self.conv2 = _conv_block(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(x))
        return out


class UpsampleBlock(nn.Module):
    """A transposed convolution, then two over its output beside the skip connection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upsample_conv = nn.Sequential(nn.ConvTranspose3d(inputs, outputs, kernel_size=2, stride=2))
        self.conv1 = _conv_block(2 * outputs, outputs)
        self.conv2 = _conv_block(outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        out: Tensor = self.conv2(self.conv1(torch.cat((self.upsample_conv(x), skip), dim=1)))
        return out


class OutputLayer(nn.Module):
    """Logits of the classes, voxel by voxel."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv3d(inputs, CLASSES, kernel_size=1))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Network(nn.Module):
    """[windows, 1, side, side, side] → [windows, 3, side, side, side]."""

    def __init__(self, filters: Sequence[int]) -> None:
        super().__init__()
        levels = list(pairwise(filters))
        deepest = filters[-1]
        self.input_block = Block(1, filters[0])
        self.downsample = nn.ModuleList([Block(above, below, stride=2) for above, below in levels])
        self.bottleneck = Block(deepest, deepest, stride=2)
        self.upsample = nn.ModuleList(
            [UpsampleBlock(deepest, deepest)]
            + [UpsampleBlock(below, above) for above, below in reversed(levels)]
        )
        self.output = OutputLayer(filters[0])

    def forward(self, x: Tensor) -> Tensor:
        skips = [self.input_block(x)]
        for down in self.downsample:
            skips.append(down(skips[-1]))

        x = self.bottleneck(skips[-1])
        for up, skip in zip(self.upsample, reversed(skips), strict=True):
            x = up(x, skip)

        out: Tensor = self.output(x)
        return out
