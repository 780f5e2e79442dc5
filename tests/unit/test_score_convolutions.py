"""The last convolutions of detectors in 16 bits: logits as near as fp32's bias makes them, and none lost."""

import copy

import pytest
import torch
from torch import Tensor, nn

from workloads.score_convolutions import ExcessConvolution, ScoreConvolution

BACKGROUND_LEAD, LEAST = -6.003, -2.944


def made(convolution: nn.Conv2d) -> tuple[nn.Conv2d, Tensor]:
    """It, with weights that 16 bits hold exactly and a bias far below zero, and features that they hold too."""
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(convolution.weight.shape, generator=generator) / 6
    convolution.weight.data = weight.half().bfloat16().float()
    assert convolution.bias is not None
    nn.init.constant_(convolution.bias, BACKGROUND_LEAD)
    features = torch.randn(2, 16, 9, 9, generator=generator)
    return convolution.requires_grad_(False), features.half().bfloat16().float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_in_fp32_leaves_a_fraction_of_the_error(dtype: torch.dtype):
    plain, features = made(nn.Conv2d(16, 20, 3, padding=1))
    scores = ScoreConvolution(16, 20, 3, padding=1)
    scores.load_state_dict(plain.state_dict())
    exact = plain(features)
    torch.testing.assert_close(scores(features), exact)
    low, rounded = features.to(dtype), copy.deepcopy(plain).to(dtype)
    logits = scores.to(dtype)(low)
    assert (scores.weight.dtype, scores.bias.dtype, logits.dtype) == (dtype, torch.float32, torch.float32)
    assert (logits - exact).abs().mean() < 0.35 * (rounded(low).float() - exact).abs().mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_no_logit_above_the_least_is_lost_and_its_excess_is_exact(dtype: torch.dtype):
    plain, features = made(nn.Conv2d(16, 20, 3, padding=1))
    excess = ExcessConvolution(16, 20, 3, padding=1, least=LEAST)
    excess.load_state_dict(plain.state_dict())
    wanted = plain(features) - LEAST
    excess.to(dtype)
    found, rest = excess(features.to(dtype)), excess.rest()
    assert found.dtype == dtype
    assert rest.max() <= 0
    above = wanted > 1e-5
    assert 50 < above.sum() < 0.5 * above.numel()
    assert (found[above] > 0).all()
    told = found.float() + rest.view(1, -1, 1, 1)
    assert (told[found == 0] <= 0).all()
    error = (told - wanted)[above].abs()
    assert (error <= 1e-5 + torch.finfo(dtype).eps * found.float()[above]).all()
