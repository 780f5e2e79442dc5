"""DLRM's network in shapes for tensor cores computes what the plain one does, its kernel too (interpreted)."""

from collections.abc import Iterator
from functools import partial
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.interpreted import interpreted
from workloads.dlrm import ROWS, WIDTH, Dlrm, SyntheticPairs
from workloads.dlrm_gpu import FastNetwork, Interact, bring, interact
from workloads.protocol import WorkloadOptions

CPU = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=4, seed=4, threads=1, memory_mib=1024
)
COLUMNS = 480
"""128 of the bottom's vector, 351 products of two of 27 vectors, and one to be a multiple of 8."""


@pytest.fixture(scope="module")
def dlrm() -> Dlrm:
    dlrm = Dlrm("dlrm", CPU)
    dlrm.load()
    return dlrm


@pytest.fixture(scope="module")
def kernel() -> Iterator[ModuleType]:
    """A copy of dlrm_triton whose kernel Triton interprets, on the CPU."""
    with interpreted("workloads.dlrm_triton") as module:
        yield module


def drawn(pairs: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors and tables whose products 16 bits tell well, and rows: the first, the last, and any between."""
    generator = torch.Generator().manual_seed(pairs)
    x, tables = (torch.rand(count, WIDTH, generator=generator).half() / 8 for count in (pairs, rows))
    chosen = torch.randint(rows, (pairs, len(ROWS)), generator=generator, dtype=torch.int32)
    chosen[0, :3] = torch.tensor([0, rows - 1, 0])
    return x, tables, chosen


def test_filled_up_shapes_change_nothing(dlrm: Dlrm):
    dense, chosen = dlrm._samples[7]
    with torch.inference_mode():
        found = FastNetwork(dlrm._network, interact).forward(dense, chosen).numpy()

    assert np.allclose(found, dlrm.predict([7])[0], atol=1e-6)


@pytest.mark.parametrize("pairs", [1, 4, 7])
@pytest.mark.parametrize("tile", [(1, 1, 1), (4, 2, 1)])
def test_the_kernel_interacts_as_torch_does(kernel: ModuleType, pairs: int, tile: tuple[int, int, int]):
    given = drawn(pairs, rows=50)
    exact = interact(*(each.float() if each.is_floating_point() else each for each in given), COLUMNS)
    found = kernel.interact(*given, COLUMNS, tile)
    assert found.dtype == torch.float16
    torch.testing.assert_close(found.float(), exact, rtol=1e-3, atol=1e-5)


def test_the_network_by_way_of_the_kernel_rates_as_the_plain_one(dlrm: Dlrm, kernel: ModuleType):
    def in_16_bits(x: Tensor, tables: Tensor, chosen: Tensor, columns: int) -> Tensor:
        y: Tensor = kernel.interact(x.half(), tables.half(), chosen, columns)
        return y.float()

    by_kernel: Interact = in_16_bits
    dense, chosen = dlrm._samples[11]
    some = slice(0, 9)
    with torch.inference_mode():
        found = FastNetwork(dlrm._network, by_kernel).forward(dense[some], chosen[some]).numpy()

    assert np.allclose(found, dlrm.predict([11])[0][some], atol=2e-3)


def test_samples_are_brought_side_by_side(dlrm: Dlrm, kernel: ModuleType):
    """More of them than there are programs, and some longer than is asked for at once."""
    samples = dlrm._samples
    assert isinstance(samples, SyntheticPairs)
    indices = range(7)
    begins, lengths = samples.runs(indices)
    runs = torch.from_numpy(np.stack((begins, lengths.cumsum() - lengths, lengths)))
    assert lengths.max() * len(ROWS) > kernel.WORDS
    expected = tuple(torch.cat([samples[index][which] for index in indices]) for which in (0, 1))
    for by in (partial(kernel.bring, programs=3), bring):
        found = tuple(torch.full_like(each, -1) for each in expected)
        by(samples.pool, runs, *found)
        assert all(map(torch.equal, found, expected))


def test_rows_beyond_32_bits_of_offset_are_found(kernel: ModuleType):
    """Of a table of 4.4 GB, of which only the rows that are written take memory."""
    last = 2**31 // WIDTH + 5
    tables = torch.empty(last + 1, WIDTH, dtype=torch.float16)
    x, few, _ = drawn(1, rows=2)
    tables[0], tables[last] = few[0], few[1]
    chosen = torch.zeros(1, len(ROWS), dtype=torch.int32)
    chosen[0, 5] = last
    found = kernel.interact(x, tables, chosen, COLUMNS)
    assert torch.equal(found, kernel.interact(x, few, chosen.clamp(max=1), COLUMNS))
