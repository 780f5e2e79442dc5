"""The last convolutions of detectors' classes: scores are told apart in fp32, whatever the network computes in.

A head's bias keeps most scores far below the threshold: -6 where logits spread by 1. A logit is then the small rest of
two large numbers, and rounded to 16 bits at each step it no longer says which of two boxes is better.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional


class ScoreConvolution(nn.Conv2d):
    """Images' features to logits in fp32: the bias is fp32 whatever the weight is, and is added in it."""

    def forward(self, features: Tensor) -> Tensor:
        assert self.bias is not None
        logits: Tensor = self._conv_forward(features, self.weight, None) + self.bias.view(1, -1, 1, 1)
        return logits  # promoted to fp32

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        assert self.bias is not None
        exact = self.bias.data
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        if self.bias.dtype is not exact.dtype:
            self.bias.data = exact.to(self.bias.device)

        return self


class ExcessConvolution(ScoreConvolution):
    """Features to how far each logit is above ``least``, 0 for those below; in the features' own precision.

    What matters lies just above zero, where 16 bits have their finest steps. ``rest`` is to be added to what is not
    0, in fp32: what the bias lost as it was rounded, upwards, so that no logit is lost with it.
    """

    def __init__(self, inside: int, outside: int, kernel_size: int, *, padding: int, least: float) -> None:
        super().__init__(inside, outside, kernel_size, padding=padding)
        self.least = least
        self._paddings = (padding, padding)
        self.in_one_call = False
        """Whether bias and ReLU are cuDNN's epilogue: then a logit is rounded once, when it is an excess (fused.py)."""

    def forward(self, features: Tensor) -> Tensor:
        bias = self._rounded()
        if self.in_one_call:
            return torch.cudnn_convolution_relu(
                features, self.weight, bias, self.stride, self._paddings, self.dilation, self.groups
            )

        return functional.relu_(self._conv_forward(features, self.weight, bias))

    def rest(self) -> Tensor:
        """Of each output channel, fp32, not above 0."""
        return self._wanted() - self._rounded().float()

    def _wanted(self) -> Tensor:
        assert self.bias is not None
        return self.bias - self.least

    def _rounded(self) -> Tensor:
        wanted = self._wanted()
        return (wanted + wanted.abs() * torch.finfo(self.weight.dtype).eps).to(self.weight.dtype)
