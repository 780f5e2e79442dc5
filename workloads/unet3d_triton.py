"""3D U-Net's GPU kernels over volumes with channels last: norms, and the convolutions that are no shape for cuDNN's.

An instance norm reads its input twice and writes it once: moments of chunks of voxels, which a small kernel puts
together to what each channel is multiplied by and what is added to it; then that and ReLU in place. Nothing is added up
in an order that differs from run to run. All is fp32 from what is read to what is written. Needs Triton and a C
compiler.
"""

from math import prod
from typing import NamedTuple

import torch
import triton  # type: ignore[import-untyped]  # it ships no types
import triton.language as tl  # type: ignore[import-untyped]  # likewise
from torch import Tensor, nn
from torch.nn import functional

MOST_CHANNELS = 64
"""Of a tile: 128 bytes of a voxel, a line of the cache."""
MOMENTS, WRITING = (2048, 2), (2048, 4)
"""Numbers of a tile and its warps: of the pass that reads, and of the one that reads and writes. An H200 reads 8
windows of 128³ × 32 at 4.2 TB/s so, and reads and writes them at 4.2; by the slowest of six choices it read at 3.2."""
PRODUCTS = (128, 64, 8)
"""Rows and columns of a tile of a product, and its warps."""
ENTERING = 4
"""Warps that convolve a line of the first volume."""
MOST_CHUNKS = 512
"""Of a window; those of one are put together at once, in registers."""
LEAST_CHUNK = 32_768
"""Numbers of a chunk, where a window has as many: 64 KB."""
TOGETHER = 8
"""Channels of a program that puts chunks together."""


@triton.jit
def _tell(total, squares, one, count, place, channels):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  its own language
    """Write moments: of sums of what differs from ``one``, whose squares lose no digits to a mean far from zero."""
    mean = tl.sum(total, 0) / count
    tl.store(place, one + mean)
    tl.store(place + channels, tl.sum(squares, 0) - count * mean * mean)


@triton.jit
def _normed(x, factors, channels, inside):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  its own language
    scale = tl.load(factors)
    shift = tl.load(factors + channels)
    y = tl.load(x, mask=inside[:, None], other=0).to(tl.float32) * scale[None, :] + shift[None, :]
    return tl.where(y < 0, 0.0, y)  # what is no number stays none


@triton.jit(do_not_specialize=["chunk"])  # type: ignore[untyped-decorator]  # triton has no types
def _moments(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    x,  # noqa: ANN001  likewise
    partial,  # noqa: ANN001
    voxels,  # noqa: ANN001
    channels,  # noqa: ANN001
    chunk,  # noqa: ANN001
    VOXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # About the chunk's first voxel.
    window = tl.program_id(2).to(tl.int64)
    first = tl.program_id(0) * chunk
    end = tl.minimum(first + chunk, voxels)
    voxel, channel = tl.arange(0, VOXELS), tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    here = x + window * voxels * channels
    one = tl.load(here + first * channels + channel).to(tl.float32)
    total = tl.full([VOXELS, CHANNELS], 0, tl.float32)
    squares = tl.full([VOXELS, CHANNELS], 0, tl.float32)
    for start in range(first, end, VOXELS):
        at = start + voxel
        inside = (at < end)[:, None]
        read = tl.load(here + (at * channels)[:, None] + channel[None, :], mask=inside, other=0)
        apart = tl.where(inside, read.to(tl.float32) - one[None, :], 0.0)
        total += apart
        squares += apart * apart

    place = partial + (window * tl.num_programs(0) + tl.program_id(0)) * 2 * channels + channel
    _tell(total, squares, one, (end - first).to(tl.float32), place, channels)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _line(x, taps, number, SIDE: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202  its own language
    """A line of voxels of a cube, convolved: each voxel's neighbours are a row of a product."""
    tap, voxel = tl.arange(0, 32), tl.arange(0, SIDE)
    plane, line = number // SIDE + tap // 9 - 1, number % SIDE + tap // 3 % 3 - 1
    there = (plane >= 0) & (plane < SIDE) & (line >= 0) & (line < SIDE) & (tap < 27)
    beside = voxel[:, None] + (tap % 3 - 1)[None, :]
    inside = there[None, :] & (beside >= 0) & (beside < SIDE)
    read = tl.load(x + ((plane * SIDE + line) * SIDE)[None, :] + beside, mask=inside, other=0.0)
    return tl.dot(read, taps).to(read.dtype)


@triton.jit(do_not_specialize=["lines"])  # type: ignore[untyped-decorator]  # triton has no types
def _enter(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    x,  # noqa: ANN001  likewise
    taps,  # noqa: ANN001
    out,  # noqa: ANN001
    partial,  # noqa: ANN001
    lines,  # noqa: ANN001
    SIDE: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # Moments as _moments has them, of what is written; about the mean of the first line.
    window = tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    at = tl.arange(0, SIDE)[:, None] * CHANNELS + channel[None, :]
    weights = tl.load(taps + tl.arange(0, 32)[:, None] * CHANNELS + channel[None, :])
    here, to = x + window * SIDE * SIDE * SIDE, out + window * SIDE * SIDE * SIDE * CHANNELS
    first = tl.program_id(0) * lines
    one = tl.sum(_line(here, weights, first, SIDE).to(tl.float32), 0) / SIDE
    total = tl.full([SIDE, CHANNELS], 0, tl.float32)
    squares = tl.full([SIDE, CHANNELS], 0, tl.float32)
    for number in range(first, tl.minimum(first + lines, SIDE * SIDE)):
        y = _line(here, weights, number, SIDE)
        tl.store(to + number * SIDE * CHANNELS + at, y)
        apart = y.to(tl.float32) - one[None, :]
        total += apart
        squares += apart * apart

    count = (tl.minimum(first + lines, SIDE * SIDE) - first).to(tl.float32) * SIDE
    place = partial + (window * tl.num_programs(0) + tl.program_id(0)) * 2 * CHANNELS + channel
    _tell(total, squares, one, count, place, CHANNELS)


@triton.jit(do_not_specialize=["chunks", "chunk"])  # type: ignore[untyped-decorator]  # triton has no types
def _combine(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    partial,  # noqa: ANN001  likewise
    weight,  # noqa: ANN001
    bias,  # noqa: ANN001
    factors,  # noqa: ANN001
    voxels,  # noqa: ANN001
    channels,  # noqa: ANN001
    chunks,  # noqa: ANN001
    chunk,  # noqa: ANN001
    eps,  # noqa: ANN001
    CHUNKS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # Means and sums of squares about them (Chan, Golub, LeVeque 1983, The American Statistician 37, equation 2.1)
    window = tl.program_id(1)
    each, channel = tl.arange(0, CHUNKS), tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = (each < chunks)[:, None] & (channel < channels)[None, :]
    there = partial + ((window * chunks + each) * 2 * channels)[:, None] + channel[None, :]
    means = tl.load(there, mask=inside, other=0.0)
    squares = tl.load(there + channels, mask=inside, other=0.0)
    count = tl.where(each < chunks, tl.minimum(voxels - each * chunk, chunk), 0).to(tl.float32)[:, None]
    mean = tl.sum(means * count, 0) / voxels
    apart = means - mean[None, :]
    variance = tl.sum(squares + count * apart * apart, 0) / voxels
    channel_inside = channel < channels
    scale = tl.load(weight + channel, mask=channel_inside, other=0).to(tl.float32) / tl.sqrt(variance + eps)
    shift = tl.load(bias + channel, mask=channel_inside, other=0).to(tl.float32) - mean * scale
    to = factors + window * 2 * channels + channel
    tl.store(to, scale, mask=channel_inside)
    tl.store(to + channels, shift, mask=channel_inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _write(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    x,  # noqa: ANN001  likewise
    factors,  # noqa: ANN001
    beside,  # noqa: ANN001
    voxels,  # noqa: ANN001
    channels,  # noqa: ANN001
    width,  # noqa: ANN001
    VOXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    # What is None is left out when the kernel is compiled.
    window = tl.program_id(2).to(tl.int64)
    voxel = tl.program_id(0) * VOXELS + tl.arange(0, VOXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = voxel < voxels
    here = x + window * voxels * channels + (voxel * channels)[:, None] + channel[None, :]
    y = _normed(here, factors + window * 2 * channels + channel, channels, inside).to(x.dtype.element_ty)
    tl.store(here, y, mask=inside[:, None])
    if beside is not None:
        there = beside + window * voxels * width + (voxel * width)[:, None] + channel[None, :]
        tl.store(there, y, mask=inside[:, None])


@triton.jit  # type: ignore[untyped-decorator]  # triton has no types
def _classify(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    x,  # noqa: ANN001  likewise
    factors,  # noqa: ANN001
    weight,  # noqa: ANN001
    bias,  # noqa: ANN001
    out,  # noqa: ANN001
    voxels,  # noqa: ANN001
    VOXELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    window = tl.program_id(1).to(tl.int64)
    voxel, channel = tl.program_id(0) * VOXELS + tl.arange(0, VOXELS), tl.arange(0, CHANNELS)
    inside = voxel < voxels
    here = x + window * voxels * CHANNELS + (voxel * CHANNELS)[:, None] + channel[None, :]
    y = _normed(here, factors + window * 2 * CHANNELS + channel, CHANNELS, inside)
    for each in tl.static_range(CLASSES):
        weights = tl.load(weight + each * CHANNELS + channel).to(tl.float32)
        logit = tl.sum(y * weights[None, :], 1) + tl.load(bias + each).to(tl.float32)
        tl.store(out + (window * CLASSES + each) * voxels + voxel, logit, mask=inside)


@triton.jit(do_not_specialize=["side"])  # type: ignore[untyped-decorator]  # triton has no types
def _upsample(  # type: ignore[no-untyped-def]  # noqa: ANN202  triton's own language
    x,  # noqa: ANN001  likewise
    taps,  # noqa: ANN001
    bias,  # noqa: ANN001
    out,  # noqa: ANN001
    rows,  # noqa: ANN001
    side,  # noqa: ANN001
    inputs,  # noqa: ANN001
    outputs,  # noqa: ANN001
    width,  # noqa: ANN001
    ROWS: tl.constexpr,
    INPUTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    # A voxel becomes eight. Two that are neighbours along the last axis are columns of one product; four such products.
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.program_id(0) // 4 * COLUMNS + tl.arange(0, COLUMNS)
    corner = tl.program_id(0) % 4
    inside = (row < rows)[:, None]
    y = tl.full([ROWS, COLUMNS], 0, tl.float32)
    for first in range(0, inputs, INPUTS):
        at = first + tl.arange(0, INPUTS)
        read = tl.load(x + (row * inputs)[:, None] + at[None, :], mask=inside, other=0.0)
        y = tl.dot(read, tl.load(taps + ((corner * inputs + at) * 2 * outputs)[:, None] + column[None, :]), y)

    channel = column % outputs
    y += tl.load(bias + channel).to(tl.float32)[None, :]
    plane, line = 2 * (row // (side * side)) + corner // 2, 2 * (row // side % side) + corner % 2
    voxel = (plane * 2 * side + line) * 2 * side + 2 * (row % side)
    to = (voxel[:, None] + (column // outputs)[None, :]).to(tl.int64) * width + channel[None, :]
    tl.store(out + to, y, mask=inside)


class Moments(NamedTuple):
    """Of each window and channel, chunk by chunk."""

    partial: Tensor
    """fp32 [windows, chunks, 2, channels]: the mean, and the sum of squares about it."""
    chunk: int
    """Voxels; of the last chunk what is left."""


class Kernels:
    """What 3D U-Net does between two convolutions, of volumes [windows, channels, depth, height, width].

    Args:
        moments, writing, products: as ``MOMENTS``, ``WRITING`` and ``PRODUCTS``.
    """

    def __init__(
        self,
        moments: tuple[int, int] = MOMENTS,
        writing: tuple[int, int] = WRITING,
        products: tuple[int, int, int] = PRODUCTS,
    ) -> None:
        self._moments = moments
        self._writing = writing
        self._products = products

    def entered(self, x: Tensor, taps: Tensor) -> tuple[Tensor, Moments]:
        """A 3³ convolution of one channel, padded by 1, with channels last, and its moments.

        Args:
            x: contiguous [windows, 1, side, side, side]; the side is a power of 2.
            taps: `taps_of_first` its weight.
        """
        windows, side, channels = len(x), x.shape[-1], taps.shape[1]
        shape = (windows, channels, side, side, side)
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        lines = triton.cdiv(side * side, MOST_CHUNKS)
        chunks = triton.cdiv(side * side, lines)
        partial = x.new_empty(windows, chunks, 2, channels, dtype=torch.float32)
        _enter[chunks, windows](
            *(x, taps, out, partial, lines), **{"SIDE": side, "CHANNELS": channels}, num_warps=ENTERING
        )
        return out, Moments(partial, lines * side)

    @staticmethod
    def taps_of_first(weight: Tensor) -> Tensor:
        """What `entered` takes of a weight [channels, 1, 3, 3, 3]: [32, channels], the last five zeros."""
        return functional.pad(weight.flatten(1), (0, 32 - 27)).t().contiguous()

    def norm_relu(
        self,
        x: Tensor,
        norm: nn.InstanceNorm3d,
        beside: Tensor | None = None,
        moments: Moments | None = None,
    ) -> Tensor:
        """``relu(norm(x))`` in x's own place.

        Args:
            x: fewer than 2³¹ numbers a window.
            norm: affine.
            beside: of x's shape, some channels of a tensor with channels last: is filled with the same.
            moments: x's, where they are known.
        """
        x = last(x)
        windows, channels, *sides = x.shape
        voxels = prod(sides)
        factors = self._factors(moments or self.moments(x), voxels, norm)
        elements, warps = self._writing
        tile = _tile(elements, channels)
        blocks = (triton.cdiv(voxels, tile["VOXELS"]), channels // tile["CHANNELS"], windows)
        width = channels if beside is None else beside.stride(-1)
        _write[blocks](*(x, factors, beside, voxels, channels, width), **tile, num_warps=warps)
        return x

    def upsampled(self, x: Tensor, taps: Tensor, bias: Tensor, to: Tensor) -> None:
        """Fill ``to`` with a transposed convolution of x, of kernel and stride 2.

        Args:
            x: cubes; fewer than 2³¹ numbers.
            taps: `taps_of` its weight.
            to: of the result's shape, the first channels of a tensor with channels last.
        """
        x = last(x)
        windows, inputs, side = x.shape[:3]
        rows, outputs = windows * side**3, to.shape[1]
        most_rows, most_columns, warps = self._products
        columns = min(2 * outputs & -2 * outputs, most_columns)
        _upsample[4 * 2 * outputs // columns, triton.cdiv(rows, most_rows)](
            *(x, taps, bias, to, rows, side, inputs, outputs, to.stride(-1)),
            **{"ROWS": most_rows, "INPUTS": min(inputs & -inputs, MOST_CHANNELS), "COLUMNS": columns},
            num_warps=warps,
        )

    @staticmethod
    def taps_of(weight: Tensor) -> Tensor:
        """What `upsampled` takes of a weight [inputs, outputs, 2, 2, 2]: [4, inputs, 2 outputs], four products'."""
        inputs, outputs = weight.shape[:2]
        return weight.permute(2, 3, 0, 4, 1).reshape(4, inputs, 2 * outputs).contiguous()

    def classified(self, x: Tensor, norm: nn.InstanceNorm3d, conv: nn.Conv3d) -> Tensor:
        """``conv(relu(norm(x)))``, contiguous, of a convolution of single voxels.

        Args:
            x: its channels are a power of 2.
        """
        x = last(x)
        windows, channels, *sides = x.shape
        voxels = prod(sides)
        elements, warps = self._writing
        factors = self._factors(self.moments(x), voxels, norm)
        out = x.new_empty(windows, conv.out_channels, *sides)
        each = elements // channels
        _classify[triton.cdiv(voxels, each), windows](
            *(x, factors, conv.weight.flatten(1).contiguous(), conv.bias, out, voxels),
            **{"VOXELS": each, "CHANNELS": channels, "CLASSES": conv.out_channels},
            num_warps=warps,
        )
        return out

    def moments(self, x: Tensor) -> Moments:
        """Of x with channels last."""
        windows, channels, *sides = x.shape
        voxels = prod(sides)
        elements, warps = self._moments
        tile = _tile(elements, channels)
        chunk = max(triton.cdiv(voxels, MOST_CHUNKS), LEAST_CHUNK // tile["CHANNELS"])
        chunks = triton.cdiv(voxels, chunk)
        partial = x.new_empty(windows, chunks, 2, channels, dtype=torch.float32)
        _moments[chunks, channels // tile["CHANNELS"], windows](
            *(x, partial, voxels, channels, chunk), **tile, num_warps=warps
        )
        return Moments(partial, chunk)

    def _factors(self, moments: Moments, voxels: int, norm: nn.InstanceNorm3d) -> Tensor:
        """What the norm multiplies a window's channels by, and what it adds: fp32 [windows, 2, channels]."""
        windows, chunks, _, channels = moments.partial.shape
        factors = moments.partial.new_empty(windows, 2, channels)
        _combine[triton.cdiv(channels, TOGETHER), windows](
            *(moments.partial, norm.weight, norm.bias, factors, voxels, channels, chunks, moments.chunk),
            norm.eps,
            **{"CHUNKS": MOST_CHUNKS, "CHANNELS": TOGETHER},
        )
        return factors


def last(x: Tensor) -> Tensor:
    """x with channels last; x itself where it is so already, as what cuDNN makes of such weights is."""
    return x.contiguous(memory_format=torch.channels_last_3d)


def _tile(elements: int, channels: int) -> dict[str, int]:
    """Voxels and channels of a tile: a power of 2 that divides the channels, so that none is cut."""
    each = min(channels & -channels, MOST_CHANNELS)
    return {"VOXELS": elements // each, "CHANNELS": each}
