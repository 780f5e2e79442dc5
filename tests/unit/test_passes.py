"""The passes between products: the GPU's kernels, interpreted by Triton, do what plain torch does."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.interpreted import interpreted
from workloads.bert import build
from workloads.bert_packed import PackedNetwork
from workloads.passes import LARGEST, PLAIN, Form, Norm, Passes, Product, Rows
from workloads.passes_at_hand import passes_for

Made = Callable[..., Passes]
SHAPES = [(1, 64), (3, 96), (5, 1024)]
"""Of 96 numbers a row, a kernel's block has 32 too many."""


@pytest.fixture(scope="module")
def kernels() -> Iterator[Made]:
    """The class of the kernels in a copy of passes_triton that Triton interprets, on the CPU."""
    with interpreted("workloads.passes_triton") as module:
        yield module.Kernels


def drawn(count: int, width: int, seed: int = 0) -> Tensor:
    """Rows of differing size in fp16; the second, where there is one, of zeros."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(count, width, generator=generator) * torch.rand(count, 1, generator=generator)
    matrix[1:2] = 0
    return matrix.half()


def product_of(count: int, width: int) -> Product:
    """An int8 product that is not scaled yet."""
    generator = torch.Generator().manual_seed(count)
    values = torch.randint(-9999, 9999, (count, width), generator=generator, dtype=torch.int32)
    scales = (torch.rand(*shape, generator=generator) / 100 for shape in ((count, 1), (1, width)))
    return Product(values, *scales, drawn(1, width)[0])


def norm_of(width: int) -> Norm:
    return Norm(drawn(1, width, 1)[0], drawn(1, width, 2)[0], 1e-5)


def near(found: Rows, wanted: Rows) -> None:
    """They are the same to a rounding of the 8 bits here and there: fp32 is not added up in the same order."""
    torch.testing.assert_close(found.scale, wanted.scale)
    assert found.values.dtype is wanted.values.dtype
    apart = (found.values.float() - wanted.values.float()).abs()
    assert apart.max() <= 1
    assert (apart > 0).float().mean() < 0.01


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_rows_are_quantised_in_int8(kernels: Made, count: int, width: int):
    matrix = drawn(count, width)
    near(kernels().quantised(matrix, "int8"), PLAIN.quantised(matrix, "int8"))
    near(
        kernels().quantised(drawn(width, count).t(), "int8"), PLAIN.quantised(drawn(width, count).t(), "int8")
    )


@settings(max_examples=10)
@given(seed=st.integers(0, 99), scale=st.sampled_from([2.0**-9, 1.0, 64.0]))
def test_what_fp8_can_hold_comes_back(kernels: Made, seed: int, scale: float):
    """Nothing to round: where Triton's interpreter rounds to fp8 it loses carries (3.9), as no GPU does."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(-127, 127, (3, 96), generator=generator, dtype=torch.int8).view(
        torch.float8_e4m3fn
    )
    exact = values.float().nan_to_num(448.0)
    exact[exact.abs() < 2**-6] = 0  # below fp8's normal numbers
    exact[:, 0] = LARGEST["fp8"]
    found = kernels().quantised(exact * scale, "fp8")
    assert found.values.dtype is torch.float8_e4m3fn
    assert torch.equal(found.values.float(), exact)
    assert found.scale.unique().tolist() == [scale]


@pytest.mark.parametrize("form", ["int8", "fp8"])
def test_a_row_of_zeros_is_one(kernels: Made, form: Form):
    rows = kernels().quantised(torch.zeros(2, 96), form)
    assert not rows.values.float().any()
    assert rows.scale.gt(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_a_product_is_scaled(kernels: Made, count: int, width: int, dtype: torch.dtype):
    product = product_of(count, width)
    by_hand = (product.values.double() * product.rows * product.columns + product.bias).to(dtype)
    for passes in (PLAIN, kernels()):
        torch.testing.assert_close(passes.scaled(product, dtype), by_hand)
        done = Product(product.values.to(dtype))
        assert torch.equal(passes.scaled(done, dtype), done.values)


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_a_product_is_activated(kernels: Made, count: int, width: int):
    for product in (product_of(count, width), Product(drawn(count, width))):
        meant = PLAIN.scaled(product, torch.float32)
        gelu = torch.nn.functional.gelu(meant, approximate="tanh")
        near(kernels().activated(product, "int8"), PLAIN.quantised(gelu, "int8"))
        rows = PLAIN.activated(product, "int8")
        torch.testing.assert_close(rows.values * rows.scale, gelu, atol=2 * float(rows.scale.max()), rtol=0)


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_a_sum_is_normed_in_16_bits_and_in_8(kernels: Made, count: int, width: int):
    residual, norm = drawn(count, width, 3), norm_of(width)
    for product in (product_of(count, width), Product(drawn(count, width))):
        found, rows = kernels().normed(product, residual, norm, "int8")
        wanted, wanted_rows = PLAIN.normed(product, residual, norm, "int8")
        assert found.dtype is torch.float16
        torch.testing.assert_close(found, wanted)
        near(rows, wanted_rows)


def test_two_summands_are_normed(kernels: Made):
    x, y, norm = drawn(3, 96), drawn(3, 96, 1), norm_of(96)
    exact = PLAIN.add_norm(x.float(), y.float(), Norm(norm.weight.float(), norm.bias.float(), norm.eps))
    torch.testing.assert_close(kernels().add_norm(x, y, norm), exact.half())


def test_embeddings_are_looked_up_and_normed(kernels: Made):
    tables = (drawn(30, 96), drawn(2, 96, 1), drawn(8, 96, 2))
    words = torch.tensor([[29, 0, 7, 29, 1], [0, 1, 1, 0, 0], [0, 1, 2, 3, 7]], dtype=torch.int32)
    norm = norm_of(96)
    whole = Norm(norm.weight.float(), norm.bias.float(), norm.eps)
    first, second, third = (table.float() for table in tables)
    exact = PLAIN.embedded(words, (first, second, third), whole)
    torch.testing.assert_close(kernels().embedded(words, tables, norm), exact.half())


@pytest.mark.parametrize("lengths", [[1], [5, 64, 70], [3, 0, 0, 129], [128, 130, 2]])
def test_each_sample_attends_to_itself_alone(kernels: Made, lengths: list[int]):
    """Within a block of keys, over several, a last one of few; sequences without tokens close a batch."""
    bounds = torch.tensor([0, *lengths]).cumsum(0, dtype=torch.int32)
    qkv = 3 * torch.randn(sum(lengths), 3, 2, 16, generator=torch.Generator().manual_seed(0))
    parts = [part.double().unbind(1) for part in qkv.split(lengths)]
    by_hand = [
        torch.einsum("hqk,khd->qhd", (torch.einsum("qhd,khd->hqk", q, k) / 4).softmax(-1), v)
        for q, k, v in parts
    ]
    exact = torch.cat(by_hand).flatten(1).float()
    for passes in (kernels(), PLAIN):
        torch.testing.assert_close(passes.attended(qkv, bounds, 130), exact, atol=1e-4, rtol=0)


@pytest.mark.parametrize("form", [None, "int8"])
def test_packed_bert_by_the_kernels_is_that_by_torch(kernels: Made, form: Form | None):
    torch.manual_seed(0)
    network = PackedNetwork(build("small").requires_grad_(False), 128, form)
    words = torch.stack((torch.arange(1000, 1010), torch.arange(10) > 3, torch.arange(10))).int()
    bounds = torch.tensor([0, 4, 10], dtype=torch.int32)
    plain = network.forward(words, bounds)
    network.passes = kernels()
    found = network.forward(words, bounds)
    tolerance = 1e-5 if form is None else 0.01  # GELU by tanh
    assert (found - plain).abs().max() < tolerance * plain.abs().max()


def test_a_cpu_has_the_plain_ones():
    assert passes_for(torch.zeros(1)) is PLAIN
