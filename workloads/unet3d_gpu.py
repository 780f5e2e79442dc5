"""3D U-Net on a GPU in 16 bits: channels last, as cuDNN's kernels for tensor cores read and write them.

Instance norm and ReLU are unet3d_triton.py's kernels: torch's norm would have every volume copied to channels first
and back. What the way down leaves for the way up is written where the way up reads it, half of a tensor's channels, so
that nothing is joined.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from workloads.triton_at_hand import at_hand
from workloads.unet3d_network import Network

if TYPE_CHECKING:
    from workloads.unet3d_triton import Kernels


class ChannelsLast:
    """The arithmetic of unet3d_network.py's Network, from its weights, which it lays out anew in their place."""

    def __init__(self, network: Network, kernels: "Kernels") -> None:
        network.to(memory_format=torch.channels_last_3d)
        self._network: Any = network
        self._kernels = kernels

    def __call__(self, x: Tensor) -> Tensor:
        """[windows, 1, side, side, side] → [windows, 3, side, side, side]."""
        network, pairs = self._network, list[Tensor]()
        for block in (network.input_block, *network.downsample):
            x = self._normed(block.conv1, x)
            pairs.append(_pair(x))
            x = self._normed(block.conv2, x, pairs[-1][:, x.shape[1] :])

        x = self._normed(network.bottleneck.conv2, self._normed(network.bottleneck.conv1, x))
        *lower, top = network.upsample
        for up in lower:
            x = self._normed(up.conv2, self._joined(up, x, pairs.pop()))

        conv, norm, _ = top.conv2
        return self._kernels.classified(conv(self._joined(top, x, pairs.pop())), norm, network.output.conv[0])

    def _joined(self, up: Any, x: Tensor, pair: Tensor) -> Tensor:
        """What has come up beside what was left, after the first convolution."""
        self._upsampled(up.upsample_conv[0], x, pair[:, : pair.shape[1] // 2])
        return self._normed(up.conv1, pair)

    def _normed(self, block: nn.Sequential, x: Tensor, beside: Tensor | None = None) -> Tensor:
        conv, norm, _ = block
        assert isinstance(norm, nn.InstanceNorm3d)
        return self._kernels.norm_relu(conv(x), norm, beside)

    def _upsampled(self, conv: nn.ConvTranspose3d, x: Tensor, to: Tensor) -> None:
        assert conv.bias is not None
        x = functional.conv_transpose3d(x, conv.weight, stride=2)
        torch.add(x, conv.bias[:, None, None, None], out=to)


def on_gpu(network: Network) -> ChannelsLast | None:
    """The network, in 16 bits on the GPU, by our kernels; None where Triton, or the C compiler it needs, is missing."""
    found = kernels()
    return None if found is None else ChannelsLast(network, found)


@cache
def kernels() -> "Kernels | None":
    """Our kernels, compiled; None where that cannot be done here."""
    return at_hand(_tried)


def _tried() -> "Kernels":
    from workloads.unet3d_triton import Kernels

    found = Kernels()
    norm = nn.InstanceNorm3d(32, affine=True, device="cuda", dtype=torch.float16)
    conv = nn.Conv3d(32, 3, kernel_size=1, device="cuda", dtype=torch.float16)
    x = torch.zeros(1, 32, 4, 4, 4, device="cuda", dtype=torch.float16)
    found.classified(found.norm_relu(x, norm), norm, conv)
    torch.cuda.synchronize()
    return found


def _pair(x: Tensor) -> Tensor:
    """Room for twice x's channels: first what comes up, then what is left beside it."""
    windows, channels, *sides = x.shape
    return torch.empty(
        windows,
        2 * channels,
        *sides,
        dtype=x.dtype,
        device=x.device,
        memory_format=torch.channels_last_3d,
    )
