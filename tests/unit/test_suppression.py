"""Suppression of groups at once keeps what suppressing them one by one does."""

import pytest
import torch
from torchvision.ops import batched_nms

from workloads import suppression
from workloads.ssd import rank_within
from workloads.suppression import suppress_groups


@pytest.mark.parametrize("groups", [1, 7, 60])
@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.9])
def test_it_keeps_what_torchvision_keeps(groups: int, threshold: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(suppression, "PAIRS_AT_ONCE", 5000)  # several parts
    generator = torch.Generator().manual_seed(groups)
    count = 400
    corner, size = (torch.rand(count, 2, generator=generator) for _ in range(2))
    boxes = torch.cat((corner, corner + size), dim=1)
    group = torch.randint(groups, (count,), generator=generator) * 3
    scores = torch.linspace(1, 0, count)
    rank = rank_within(group)
    stays = suppress_groups(boxes, group, rank, threshold, largest=int(rank.max()) + 1)
    expected = batched_nms(boxes.double(), scores.double(), group, threshold)
    assert stays.nonzero()[:, 0].tolist() == expected.tolist()


def test_a_chain_ends_as_it_does_one_by_one():
    start = torch.arange(9.0)  # each overlaps its neighbours alone: every second one stays
    boxes = torch.stack((start, torch.zeros(9), start + 1.6, torch.ones(9)), dim=1)
    rank = torch.arange(9)
    stays = suppress_groups(boxes, torch.zeros(9, dtype=torch.int64), rank, 0.2, largest=9)
    assert stays.tolist() == [True, False] * 4 + [True]
