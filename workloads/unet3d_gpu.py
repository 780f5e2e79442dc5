"""3D U-Net on a GPU in 16 bits: channels last, as cuDNN's kernels for tensor cores read and write them.

All between cuDNN's convolutions is unet3d_triton.py's: torch's norm would have every volume copied to channels first
and back. What the way down leaves for the way up is written where the way up reads it, half of a tensor's channels, so
that nothing is joined. A first convolution of one channel, and a last one of three, are no shapes for cuDNN's kernels.
"""

from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from workloads.triton_at_hand import at_hand
from workloads.unet3d_network import Network

if TYPE_CHECKING:
    from workloads.unet3d_triton import Kernels


class ChannelsLast:
    """The arithmetic of unet3d_network.py's Network, from its weights, which it lays out anew in their place."""

    def __init__(self, network: Network, kernels: "Kernels") -> None:
        self._network: Any = network.to(memory_format=torch.channels_last_3d)
        self._kernels = kernels
        first: Any = network.input_block.conv1[0]
        self._first_taps = kernels.taps_of_first(first.weight.detach())
        ups: Any = network.upsample
        self._taps = {up: kernels.taps_of(up.upsample_conv[0].weight.detach()) for up in ups}

    def __call__(self, x: Tensor) -> Tensor:
        """[windows, 1, side, side, side] → [windows, 3, side, side, side]."""
        network, pairs = self._network, list[Tensor]()
        x = self._left(network.input_block, self._entered(x), pairs)
        for block in network.downsample:
            x = self._left(block, self._normed(block.conv1, x), pairs)

        x = self._normed(network.bottleneck.conv2, self._normed(network.bottleneck.conv1, x))
        *lower, top = network.upsample
        for up in lower:
            x = self._normed(up.conv2, self._joined(up, x, pairs.pop()))

        conv, norm, _ = top.conv2
        return self._kernels.classified(conv(self._joined(top, x, pairs.pop())), norm, network.output.conv[0])

    def _entered(self, x: Tensor) -> Tensor:
        x, moments = self._kernels.entered(x, self._first_taps)
        return self._kernels.norm_relu(x, self._network.input_block.conv1[1], moments=moments)

    def _left(self, block: Any, x: Tensor, pairs: list[Tensor]) -> Tensor:
        """A level's last volume on the way down; it is left for the way up too, in one more pair."""
        pairs.append(_pair(x))
        return self._normed(block.conv2, x, pairs[-1][:, x.shape[1] :])

    def _joined(self, up: Any, x: Tensor, pair: Tensor) -> Tensor:
        """What has come up beside what was left, after the first convolution."""
        bias = up.upsample_conv[0].bias
        self._kernels.upsampled(x, self._taps[up], bias, pair[:, : pair.shape[1] // 2])
        return self._normed(up.conv1, pair)

    def _normed(self, block: nn.Sequential, x: Tensor, beside: Tensor | None = None) -> Tensor:
        conv, norm, _ = block
        assert isinstance(norm, nn.InstanceNorm3d)
        return self._kernels.norm_relu(conv(x), norm, beside)


def on_gpu(network: Network) -> ChannelsLast | None:
    """The network, in 16 bits on the GPU, by our kernels; None where Triton, or the C compiler it needs, is missing."""
    found = kernels(next(network.parameters()).dtype)
    return None if found is None else ChannelsLast(network, found)


@cache
def kernels(dtype: torch.dtype) -> "Kernels | None":
    """Our kernels, compiled; None where that cannot be done here."""
    return at_hand(partial(_tried, dtype))


def _tried(dtype: torch.dtype) -> "Kernels":
    from workloads.unet3d_triton import Kernels

    found = Kernels()
    made_so: dict[str, Any] = {"device": "cuda", "dtype": dtype}
    norm, conv = nn.InstanceNorm3d(32, affine=True, **made_so), nn.Conv3d(32, 3, kernel_size=1, **made_so)
    x, taps = torch.zeros(1, 32, 8, 8, 8, **made_so), torch.zeros(32, 32, 2, 2, 2, **made_so)
    weight = torch.zeros(32, 1, 3, 3, 3, **made_so)
    entered, moments = found.entered(torch.zeros(1, 1, 16, 16, 16, **made_so), found.taps_of_first(weight))
    pair = _pair(found.norm_relu(entered, norm, moments=moments))
    found.upsampled(found.norm_relu(x, norm), found.taps_of(taps), norm.bias, pair[:, :32])
    found.classified(x, norm, conv)
    torch.cuda.synchronize()
    return found


def _pair(x: Tensor) -> Tensor:
    """Room for twice x's channels: first what comes up, then what was left beside it."""
    windows, channels, *sides = x.shape
    shape = (windows, 2 * channels, *sides)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
