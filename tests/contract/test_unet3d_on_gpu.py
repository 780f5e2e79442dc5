"""3D U-Net in 16 bits on a real GPU: its kernels, compiled, are what torch computes in fp32."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from workloads.engine import Graphs
from workloads.precision import without_tf32
from workloads.protocol import EngineName, Precision, WorkloadOptions
from workloads.unet3d import WINDOW, Unet3d
from workloads.unet3d_gpu import kernels
from workloads.unet3d_network import CLASSES, FILTERS

pytestmark = pytest.mark.gpu
OPTIONS = WorkloadOptions(
    size="small", device="cuda", precision="fp16", batch_size=1, seed=3, threads=4, memory_mib=40_960
)
LEVELS = [
    (channels, WINDOW[size] >> level)
    for size in ("full", "small")
    for level, channels in enumerate((*FILTERS[size], FILTERS[size][-1]))
]
"""Channels and side of all that is normed; the last of each is the bottleneck."""
TOPS = [(FILTERS[size][0], WINDOW[size]) for size in FILTERS]
TOLERANCE = {torch.float16: {"rtol": 2e-3, "atol": 2e-3}, torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2}}


def drawn(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    """About 1, with channels last."""
    x = torch.empty(shape, dtype=dtype, device="cuda", memory_format=torch.channels_last_3d)
    return x.normal_(1, 0.5)


def norm_of(channels: int, dtype: torch.dtype = torch.float16) -> nn.InstanceNorm3d:
    norm = nn.InstanceNorm3d(channels, affine=True, device="cuda", dtype=dtype)
    for parameter in (norm.weight, norm.bias):
        nn.init.normal_(parameter)

    return norm


@torch.inference_mode()
def by_torch(x: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
    weight, bias = norm.weight.float(), norm.bias.float()
    return functional.instance_norm(x.float(), weight=weight, bias=bias, eps=norm.eps).relu()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("channels", "side"), LEVELS)
@torch.inference_mode()
def test_volumes_are_normed_as_torch_does(dtype: torch.dtype, channels: int, side: int):
    """Bit for bit the same again."""
    found = kernels(dtype)
    assert found is not None
    torch.manual_seed(0)
    x, norm = drawn(3, channels, side, side, side, dtype=dtype), norm_of(channels, dtype)
    exact, again = by_torch(x, norm), x.clone()
    pair = torch.zeros_like(torch.cat((x, x), dim=1))
    y = found.norm_relu(x, norm, pair[:, channels:])
    torch.testing.assert_close(y.float(), exact, **TOLERANCE[dtype])
    assert torch.equal(pair[:, channels:], y)
    assert not pair[:, :channels].any()
    assert torch.equal(found.norm_relu(again, norm), y)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("channels", "side"), TOPS)
@torch.inference_mode()
def test_crops_are_convolved_and_normed_as_torch_does(dtype: torch.dtype, channels: int, side: int):
    found = kernels(dtype)
    assert found is not None
    torch.manual_seed(0)
    x, norm = torch.randn(3, 1, side, side, side, device="cuda", dtype=dtype), norm_of(channels, dtype)
    conv = nn.Conv3d(1, channels, 3, padding=1, bias=False, device="cuda", dtype=dtype)
    with without_tf32():
        exact = functional.conv3d(x.float(), conv.weight.float(), padding=1)

    y, moments = found.entered(x, found.taps_of_first(conv.weight))
    torch.testing.assert_close(y.float(), exact, **TOLERANCE[dtype])
    exact = by_torch(y, norm)
    torch.testing.assert_close(found.norm_relu(y, norm, moments=moments).float(), exact, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("channels", "side"), TOPS)
@torch.inference_mode()
def test_volumes_are_classified_as_torch_does(dtype: torch.dtype, channels: int, side: int):
    found = kernels(dtype)
    assert found is not None
    torch.manual_seed(0)
    x, norm = drawn(3, channels, side, side, side, dtype=dtype), norm_of(channels, dtype)
    conv = nn.Conv3d(channels, CLASSES, kernel_size=1, device="cuda", dtype=dtype)
    with without_tf32():
        exact = functional.conv3d(by_torch(x, norm), conv.weight.float(), conv.bias.float())

    y = found.classified(x, norm, conv)
    assert y.is_contiguous()
    torch.testing.assert_close(y.float(), exact, **TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("level", "above"), [*pairwise(reversed(LEVELS[:6])), *pairwise(reversed(LEVELS[6:]))]
)
@torch.inference_mode()
def test_volumes_are_upsampled_as_torch_does(
    dtype: torch.dtype, level: tuple[int, int], above: tuple[int, int]
):
    found = kernels(dtype)
    assert found is not None
    torch.manual_seed(0)
    (inputs, side), (outputs, _) = level, above
    x = drawn(3, inputs, side, side, side, dtype=dtype)
    conv = nn.ConvTranspose3d(inputs, outputs, 2, stride=2, device="cuda", dtype=dtype)
    with without_tf32():
        weight, bias = conv.weight.float(), conv.bias.float()
        exact = functional.conv_transpose3d(x.float(), weight, bias, stride=2)

    pair = torch.zeros_like(torch.cat((exact, exact), dim=1), dtype=dtype)
    pair = pair.contiguous(memory_format=torch.channels_last_3d)
    found.upsampled(x, found.taps_of(conv.weight), conv.bias, pair[:, :outputs])
    torch.testing.assert_close(pair[:, :outputs].float(), exact, **TOLERANCE[dtype])
    assert not pair[:, outputs:].any()


@torch.inference_mode()
def test_windows_beyond_32_bits_of_offset_are_normed():
    windows, channels, side = 33, 32, 128
    if torch.cuda.mem_get_info()[0] < 20 * 2**30:
        pytest.skip("14 GB")

    found = kernels(torch.float16)
    assert found is not None
    x, norm = drawn(windows, channels, side, side, side), norm_of(channels)
    exact = by_torch(x[-1:], norm)
    shape = (windows, 2 * channels, side, side, side)
    pair = torch.empty(shape, dtype=x.dtype, device="cuda", memory_format=torch.channels_last_3d)
    y = found.norm_relu(x, norm, pair[:, channels:])
    torch.testing.assert_close(y[-1:].float(), exact, **TOLERANCE[x.dtype])
    assert torch.equal(pair[-1:, channels:], y[-1:])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_windows_in_16_bits_are_segmented_as_eagerly_and_in_fp32(precision: Precision):
    """Eight windows at a time, and groups of those left over."""

    def answers(engine: EngineName) -> list[np.ndarray]:
        workload = Unet3d("3d-unet", replace(OPTIONS, engine=engine, precision=precision))
        workload.load()
        notes = "; ".join(workload.notes)
        assert f"engine: {engine}" in notes
        assert "normed by our kernels" in notes
        assert isinstance(workload._engine, Graphs) == (engine == "graph")
        workload.load_samples([0, 1])
        with without_tf32():
            exact = workload.reference([0, 1])

        found = workload.predict([0, 1])
        least = 0.998 if precision == "fp16" else 0.99
        assert all(np.mean(one == other) > least for one, other in zip(found, exact, strict=True))
        return found

    for graph, eager in zip(answers("graph"), answers("eager"), strict=True):
        assert np.mean(graph == eager) > (0.999 if precision == "fp16" else 0.99)
