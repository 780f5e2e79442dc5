"""3D U-Net with channels last computes what the plain network does; its kernels as Triton interprets them."""

from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from tests.interpreted import interpreted
from workloads.unet3d_gpu import ChannelsLast
from workloads.unet3d_network import Network


@pytest.fixture(scope="module")
def kernels() -> Iterator[ModuleType]:
    """A copy of unet3d_triton whose kernels Triton interprets, on the CPU."""
    with interpreted("workloads.unet3d_triton") as module:
        yield module


@pytest.fixture
def small_chunks(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 512 numbers."""
    monkeypatch.setattr(kernels, "LEAST_CHUNK", 512)


def drawn(*shape: int, mean: float = 0.0) -> Tensor:
    """fp32 with channels last; one number in three of a window is as far from the mean again."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(*shape, generator=generator) + mean
    x[..., ::3] *= 2
    return x.contiguous(memory_format=torch.channels_last_3d)


def norm_of(channels: int) -> nn.InstanceNorm3d:
    norm = nn.InstanceNorm3d(channels, affine=True)
    assert norm.weight is not None
    generator = torch.Generator().manual_seed(channels)
    for parameter in (norm.weight, norm.bias):
        nn.init.normal_(parameter, generator=generator)

    return norm


@torch.inference_mode()
def by_torch(x: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
    weight, bias = norm.weight.double(), norm.bias.double()
    return nn.functional.instance_norm(x.double(), weight=weight, bias=bias, eps=norm.eps).relu().float()


def network_of(*filters: int) -> Network:
    """With norms that scale and shift."""
    torch.manual_seed(len(filters))
    network = Network(filters).eval()
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm3d):
            nn.init.normal_(module.weight, 1, 0.3)
            nn.init.normal_(module.bias, 0, 0.3)

    return network


@pytest.mark.parametrize(
    "shape",
    [
        (1, 8, 2, 2, 2),  # one chunk, smaller than a tile
        (2, 64, 4, 4, 4),  # eight of them
        (3, 320, 2, 3, 2),  # channels in five tiles; the last chunk is the shorter one
        (2, 32, 5, 6, 7),
    ],
)
@pytest.mark.parametrize("elements", [256, 4096])
def test_volumes_are_normed(kernels: ModuleType, small_chunks: None, shape: tuple[int, ...], elements: int):
    x, norm = drawn(*shape), norm_of(shape[1])
    exact = by_torch(x, norm)
    with torch.inference_mode():
        found = kernels.Kernels((elements, 1), (elements, 1)).norm_relu(x, norm)

    assert found.data_ptr() == x.data_ptr()
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


def test_a_mean_far_from_zero_costs_no_digits(kernels: ModuleType, small_chunks: None):
    """In fp32 the square of 3000 leaves none for a variance of 1."""
    x, norm = drawn(1, 32, 8, 8, 8), norm_of(32)
    x = x.clamp(-2, 2).mul_(64).round_().div_(64).add_(3000)
    exact = by_torch(x, norm)
    with torch.inference_mode():
        found = kernels.Kernels((256, 1)).norm_relu(x, norm)

    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-3)


def test_16_bits_are_rounded_once(kernels: ModuleType):
    x, norm = drawn(2, 32, 4, 4, 4).half(), norm_of(32).half()
    exact = by_torch(x, norm)
    with torch.inference_mode():
        found = kernels.Kernels().norm_relu(x, norm)

    assert found.dtype is torch.float16
    torch.testing.assert_close(found.float(), exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("side", "most_chunks"), [(2, 512), (8, 16)])
def test_the_first_volume_is_convolved_and_its_moments_are_told(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, side: int, most_chunks: int
):
    """Chunks of one line, and of four."""
    monkeypatch.setattr(kernels, "MOST_CHUNKS", most_chunks)
    x, conv, norm = drawn(2, 1, side, side, side), nn.Conv3d(1, 8, 3, padding=1, bias=False), norm_of(8)
    x = x.contiguous()
    own = kernels.Kernels()
    with torch.inference_mode():
        exact = conv(x)
        found, moments = own.entered(x, own.taps_of_first(conv.weight))
        torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)
        normed = own.norm_relu(found, norm, moments=moments)

    torch.testing.assert_close(normed, by_torch(exact, norm), rtol=1e-4, atol=1e-4)


def test_what_is_no_number_stays_none(kernels: ModuleType):
    x, norm = drawn(1, 8, 2, 2, 2), norm_of(8)
    x[0, 3, 1, 1, 1] = torch.nan
    with torch.inference_mode():
        found = kernels.Kernels().norm_relu(x, norm)

    assert found.isnan().flatten(2).any(2).nonzero().tolist() == [[0, 3]]


def test_the_same_is_written_beside(kernels: ModuleType):
    x, norm = drawn(2, 8, 4, 4, 4), norm_of(8)
    pair = torch.full_like(drawn(2, 16, 4, 4, 4), -1)
    with torch.inference_mode():
        found = kernels.Kernels().norm_relu(x, norm, pair[:, 8:])

    assert torch.equal(pair[:, 8:], found)
    assert pair[:, :8].eq(-1).all()


@pytest.mark.parametrize("elements", [64, 4096])
def test_normed_volumes_are_classified(kernels: ModuleType, elements: int):
    x, norm, conv = drawn(2, 8, 3, 4, 5), norm_of(8), nn.Conv3d(8, 3, kernel_size=1)
    with torch.inference_mode():
        exact = conv(by_torch(x, norm))
        found = kernels.Kernels(writing=(elements, 1)).classified(x, norm, conv)

    assert found.is_contiguous()
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        (2, 16, 8, 3),  # windows, channels of input and output, side; fewer rows than a tile's
        (1, 64, 32, 6),  # two tiles, the second not whole
        (1, 320, 192, 2),  # three tiles of outputs, five of inputs
    ],
)
def test_volumes_are_upsampled_beside_others(kernels: ModuleType, shape: tuple[int, int, int, int]):
    windows, inputs, outputs, side = shape
    x, conv = drawn(windows, inputs, side, side, side), nn.ConvTranspose3d(inputs, outputs, 2, stride=2)
    pair = torch.full_like(drawn(windows, 2 * outputs, *(3 * [2 * side])), -1)
    own = kernels.Kernels()
    with torch.inference_mode():
        own.upsampled(x, own.taps_of(conv.weight), conv.bias, pair[:, :outputs])
        exact = conv(x)

    torch.testing.assert_close(pair[:, :outputs], exact, rtol=1e-4, atol=1e-4)
    assert pair[:, outputs:].eq(-1).all()


def test_the_network_segments_as_the_plain_one(kernels: ModuleType):
    network, x = network_of(8, 16), drawn(2, 1, 8, 8, 8).contiguous()
    names = list(network.state_dict())
    with torch.inference_mode():
        exact = network(x)
        found = ChannelsLast(network, kernels.Kernels())(x)

    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-4)
    assert list(network.state_dict()) == names
