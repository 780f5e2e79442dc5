"""retinanet: architecture, torchvision's post-processing, determinism, weights of older checkpoints."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.retinanet import RetinaNet as TorchvisionsRetinaNet
from torchvision.models.detection.retinanet import RetinaNetHead

from workloads import retinanet
from workloads.catalog import CATALOG, build
from workloads.protocol import Size, WorkloadError, WorkloadOptions, output_bytes
from workloads.retinanet import RetinaNet
from workloads.ssd import rows_of, stretched
from workloads.weights import seeded

SIZES: tuple[Size, ...] = ("full", "small")
CPU = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=3, seed=7, threads=1, memory_mib=1024
)


def loaded(options: WorkloadOptions = CPU) -> RetinaNet:
    workload = build("retinanet", options)
    assert isinstance(workload, RetinaNet)
    workload.load()
    workload.load_samples(range(3))
    return workload


@pytest.fixture(scope="module")
def plain() -> RetinaNet:
    return loaded()


@pytest.mark.parametrize("size", SIZES)
def test_the_catalogue_counts_right(size: Size):
    side = retinanet.SIDES[size]
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.inference_mode():
        network = retinanet.network(size).eval()
        levels, rest = network(torch.empty(1, 3, side, side))

    boxes = len(retinanet.anchors(side))
    assert [codes.shape[1:] for codes, _ in levels] == [(9 * n * n, 4) for n in retinanet.cells(side)]
    assert [excess.shape[1:] for _, excess in levels] == [(9 * n * n, 264) for n in retinanet.cells(side)]
    assert rest.shape == (9, 264)
    assert boxes == sum(codes.shape[1] for codes, _ in levels)
    assert f"{boxes} boxes" in CATALOG["retinanet"].sizes[size]
    assert CATALOG["retinanet"].parameters[size] == sum(tensor.numel() for tensor in network.parameters())
    assert CATALOG["retinanet"].flops_per_sample[size] == counter.get_total_flops()


class Recited(torch.nn.Module):
    """A backbone and a head for torchvision's RetinaNet: feature maps of the right shapes, and given answers."""

    out_channels = 256

    def __init__(self, side: int, answers: dict[str, Tensor]) -> None:
        super().__init__()
        self.side, self.answers = side, answers

    def forward(self, given: Tensor | list[Tensor]) -> dict[str, Tensor]:
        if isinstance(given, list):
            return self.answers

        return {
            str(level): torch.zeros(len(given), 256, n, n)
            for level, n in enumerate(retinanet.cells(self.side))
        }


def answered(codes: Tensor, logits: Tensor, side: int, indices: list[int]) -> list[np.ndarray]:
    """Rows from codes and logits of all levels together, logits exact."""
    excess = (logits - retinanet.LEAST).relu()
    counts = [9 * n * n for n in retinanet.cells(side)]
    levels = list(zip(codes.split(counts, dim=1), excess.split(counts, dim=1), strict=True))
    rest = torch.zeros(9, logits.shape[2])
    return rows_of(retinanet.detections(levels, rest, retinanet.anchors(side), side).numpy(), indices)


def test_a_batch_is_answered_as_torchvision_answers_its_images():
    side, generator = 192, torch.Generator().manual_seed(3)
    boxes = len(retinanet.anchors(side))
    logits = (
        torch.randn(2, boxes, 5, generator=generator) - 3
    )  # some hundreds of each level above the threshold
    logits[1, :6000] = -20.0
    codes = torch.randn(2, boxes, 4, generator=generator) * 0.3
    recited = Recited(side, {"cls_logits": logits, "bbox_regression": codes})
    theirs = TorchvisionsRetinaNet(recited, 5, head=recited, min_size=side, max_size=side).eval()
    expected = theirs([torch.zeros(3, side, side)] * 2)

    got = answered(codes, logits, side, [40, 7])

    for rows, found, index in zip(got, expected, [40, 7], strict=True):
        assert 100 < len(rows) == len(found["scores"]) <= 300
        assert (rows[:, 0] == index).all()
        np.testing.assert_allclose(rows[:, 5], found["scores"].numpy(), rtol=1e-5)
        assert (rows[:, 6] == found["labels"].numpy()).all()
        xyxy = rows[:, [2, 1, 4, 3]] * side
        np.testing.assert_allclose(xyxy, found["boxes"].numpy(), rtol=1e-4, atol=1e-3)


def test_nothing_seen_at_all_is_no_rows():
    boxes = len(retinanet.anchors(192))
    nothing = answered(torch.zeros(2, boxes, 4), torch.full((2, boxes, 3), -9.0), 192, [1, 2])
    assert [rows.shape for rows in nothing] == [(0, 7), (0, 7)]


def test_rows_of_detections_are_the_same_for_the_same_seed(plain: RetinaNet):
    outputs = plain.predict([2, 0, 1])
    assert output_bytes(outputs) == output_bytes(loaded().predict([2, 0, 1]))
    assert sum(len(rows) for rows in outputs) > 50
    for rows, index in zip(outputs, [2, 0, 1], strict=True):
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        assert (rows[:, 0] == index).all()
        assert (rows[:, 1:5] >= 0).all()
        assert (rows[:, 1:5] <= 1).all()
        assert (np.diff(rows[:, 5]) <= 0).all()


def test_predict_agrees_with_the_reference(plain: RetinaNet):
    indices = range(3)
    pairs = zip(output_bytes(plain.predict(indices)), plain.reference(indices), strict=True)
    assert plain.fidelity(pairs).value >= 98  # a score at the threshold may fall either way by rounding


def test_a_folder_of_images_is_read(tmp_path: Path):
    for number, seed in enumerate((1, 1, 2)):
        pixels = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    workload = loaded(replace(CPU, data=tmp_path))
    first, twin, other = (rows[:, 1:] for rows in workload.predict([0, 1, 2]))

    assert workload.total_sample_count == 3
    assert workload.labelled is None
    assert len(first)
    assert np.array_equal(first, twin)
    assert not np.array_equal(first, other)


def test_images_are_normalised_as_torchvisions_detectors_have_them(tmp_path: Path):
    Image.new("RGB", (30, 20), (255, 0, 51)).save(tmp_path / "plain.png")

    row = stretched(tmp_path / "plain.png", 16, retinanet.MEAN, retinanet.DEVIATION)

    assert row.shape == (16, 16, 3)
    wanted = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    np.testing.assert_allclose(row.reshape(-1, 3), np.tile(wanted, (256, 1)), rtol=1e-5)


def test_checkpoints_of_mlperf_have_older_names(plain: RetinaNet, tmp_path: Path):
    with seeded(7):
        weights = plain.build().state_dict()

    renamed = {new: old for old, new in retinanet.OLD_NAMES.items()}
    older = {
        renamed.get(key, key): tensor
        for key, tensor in weights.items()
        if not key.endswith("num_batches_tracked")  # FrozenBatchNorm2d has none
    }
    assert "head.classification_head.conv.6.weight" in older
    assert "backbone.fpn.inner_blocks.2.bias" in older
    path = tmp_path / "retinanet_model_10.pth"
    torch.save({"model": older}, path)
    from_file = loaded(replace(CPU, weights=path))
    assert output_bytes(from_file.predict([0, 1])) == output_bytes(plain.predict([0, 1]))

    del older["head.regression_head.bbox_reg.bias"]
    torch.save({"model": older}, path)
    with pytest.raises(WorkloadError, match=r"model_10\.pth do not fit .*bbox_reg\.bias"):
        loaded(replace(CPU, weights=path))


def test_its_heads_are_torchvisions():
    with torch.device("meta"):
        keys = RetinaNetHead(256, 9, 264).state_dict().keys()
        ours = retinanet.RetinaNetNetwork().state_dict().keys()

    assert {f"head.{key}" for key in keys} <= ours
