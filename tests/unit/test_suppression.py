"""Suppression of groups at once keeps what torchvision keeps, by its own code and by the GPU's kernel."""

from collections.abc import Iterator
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torchvision.ops import batched_nms

from tests.interpreted import interpreted
from workloads.suppression import Suppress, by_torchvision


@pytest.fixture(scope="module", params=["torchvision", "kernel"])
def suppress(request: pytest.FixtureRequest) -> Iterator[Suppress]:
    """Each way; the kernel as Triton interprets it, on the CPU, with tiles of 32 boxes."""
    if request.param == "torchvision":
        yield by_torchvision
        return

    with interpreted("workloads.suppression_triton") as module:
        module.TILE = 32
        yield module.suppress


def some_boxes(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    corner, size = (torch.rand(count, 2, generator=generator) for _ in range(2))
    return torch.cat((corner, corner + size), dim=1)


@pytest.mark.parametrize("threshold", [0.2, 0.5])
def test_it_keeps_what_torchvision_keeps(suppress: Suppress, threshold: float):
    """Groups of none, of one, of a tile and of several; boxes between the groups that belong to none."""
    counts, gap = [1, 0, 32, 40, 7], 3
    starts = list(accumulate((count + gap for count in counts), initial=0))[:-1]
    boxes = some_boxes(starts[-1] + counts[-1] + gap)
    stays = suppress(boxes, torch.tensor(starts), torch.tensor(counts), threshold)
    expected = torch.zeros_like(stays)
    for start, count in zip(starts, counts, strict=True):
        alone = boxes[start : start + count].double()
        best_first = torch.linspace(1, 0, count, dtype=torch.float64)
        expected[start + batched_nms(alone, best_first, torch.zeros(count, dtype=torch.int64), threshold)] = (
            True
        )

    assert 5 < int(stays.sum()) < sum(counts)
    assert torch.equal(stays, expected)


def test_a_chain_ends_as_it_does_one_by_one(suppress: Suppress):
    start = torch.arange(9.0)  # each overlaps its neighbours alone: every second one stays
    boxes = torch.stack((start, torch.zeros(9), start + 1.6, torch.ones(9)), dim=1)
    stays = suppress(boxes, torch.tensor([0]), torch.tensor([9]), 0.2)
    assert stays.tolist() == [True, False] * 4 + [True]


def test_of_no_boxes_none_stay(suppress: Suppress):
    assert suppress(torch.rand(3, 4), torch.tensor([0, 3]), torch.tensor([0, 0]), 0.5).tolist() == [False] * 3
