"""resnet50, ssd-resnet34 and ssd-mobilenet: architecture, determinism, agreement with the reference."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import batched_nms

from workloads import resnet50, ssd, ssd_mobilenet, ssd_resnet34
from workloads.catalog import CATALOG, build
from workloads.protocol import DeviceKind, Size, WorkloadError, WorkloadOptions, output_bytes
from workloads.samples import SampleStore, SyntheticImages
from workloads.vision import ImageWorkload
from workloads.weights import seeded

NAMES = ("resnet50", "ssd-mobilenet", "ssd-resnet34")
DETECTORS = ("ssd-mobilenet", "ssd-resnet34")
SIZES: tuple[Size, ...] = ("full", "small")
CPU = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=4, seed=7, threads=1, memory_mib=1024
)


def loaded(name: str, options: WorkloadOptions = CPU, samples: int = 4) -> ImageWorkload:
    workload = build(name, options)
    assert isinstance(workload, ImageWorkload)
    workload.load()
    workload.load_samples(range(samples))
    return workload


@pytest.fixture(scope="module")
def workloads() -> dict[str, ImageWorkload]:
    """The three, small, fp32 on the CPU, four samples loaded; not changed by any test."""
    return {name: loaded(name) for name in NAMES}


def on_meta(name: str, size: Size) -> tuple[nn.Module, Tensor]:
    """The network and one image, without memory or arithmetic."""
    with torch.device("meta"):
        if name == "resnet50":
            return resnet50.network().eval(), torch.empty(1, 3, *[resnet50.SIDES[size]] * 2)

        architecture = architecture_of(name, size)
        return architecture.network().eval(), torch.empty(1, 3, architecture.side, architecture.side)


def architecture_of(name: str, size: Size) -> ssd.Architecture:
    module = ssd_mobilenet if name == "ssd-mobilenet" else ssd_resnet34
    return module.ARCHITECTURES[size]


def assert_same_detections(got: np.ndarray, expected: np.ndarray, share: float = 0.98) -> None:
    """Nearly every row of each has one in the other of the same label, in the same place.

    Not every one: a score at the threshold, or two boxes at the IoU limit, may fall either way by rounding.
    """
    for these, those in ((got, expected), (expected, got)):
        found = [
            bool(((those[:, 6] == row[6]) & (np.abs(those[:, 1:6] - row[1:6]).max(axis=1) < 1e-3)).any())
            for row in these
        ]
        assert np.mean(found) >= share


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_the_catalogue_counts_right(name: str, size: Size) -> None:
    network, image = on_meta(name, size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network(image)

    assert CATALOG[name].parameters[size] == sum(tensor.numel() for tensor in network.parameters())
    assert CATALOG[name].flops_per_sample[size] == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "size", "boxes", "classes"),
    [
        ("ssd-resnet34", "full", 15130, 81),
        ("ssd-resnet34", "small", 8732, 81),
        ("ssd-mobilenet", "full", 1917, 91),
        ("ssd-mobilenet", "small", 540, 91),
    ],
)
def test_boxes_and_classes(name: str, size: Size, boxes: int, classes: int) -> None:
    network, image = on_meta(name, size)
    with torch.inference_mode():
        codes, logits = network(image)

    assert codes.shape == (1, boxes, 4)
    assert logits.shape == (1, boxes, classes)
    assert architecture_of(name, size).anchors().shape == (boxes, 4)
    assert f"{boxes} boxes" in CATALOG[name].sizes[size]


def test_ssd_resnet34_has_mlperfs_feature_maps() -> None:
    network, image = on_meta("ssd-resnet34", "full")
    assert isinstance(network, ssd_resnet34.SsdResnet34Network)
    feature, cells = network.model(image), []
    assert feature.shape == (1, 256, 150, 150)
    for number, head in enumerate(network.loc):
        cells.append(tuple(head(feature).shape[2:]))
        if number < 5:
            feature = network.additional_blocks[number](feature)

    assert cells == [(50, 50), (25, 25), (13, 13), (7, 7), (3, 3), (3, 3)]


def test_ssd_resnet34_keeps_mlperfs_names() -> None:
    keys = ssd_resnet34.SsdResnet34Network(ssd_resnet34.GRID_1200).state_dict().keys()
    for key in (
        "model.layer1.0.weight",
        "model.layer1.4.0.conv1.weight",
        "model.layer2.0.0.downsample.0.weight",
        "additional_blocks.4.2.bias",
        "loc.5.weight",
        "conf.0.bias",
    ):
        assert key in keys


def test_resnet50_is_v15() -> None:
    network, _ = on_meta("resnet50", "full")
    block = network.layer2[0]
    assert block.conv1.stride == (1, 1)
    assert block.conv2.stride == (2, 2)


def test_tensorflows_padding_puts_the_odd_one_last() -> None:
    """3×3, stride 2 on an even side: the first window starts at the first pixel."""
    convolution = ssd_mobilenet.SameConv2d(1, 1, 3, 2, bias=False)
    nn.init.zeros_(convolution.weight)
    convolution.weight.data[0, 0, 0, 0] = 1.0
    image = torch.arange(16.0).view(1, 1, 4, 4)
    with torch.inference_mode():
        assert convolution(image)[0, 0].tolist() == [[0, 2], [8, 10]]
        assert convolution(image[..., :3, :3])[0, 0].tolist() == [[0, 0], [0, 5]]


def test_default_boxes_of_ssd_resnet34() -> None:
    boxes = ssd_resnet34.default_boxes(ssd_resnet34.GRID_1200)
    torch.testing.assert_close(boxes[0], torch.tensor([0.01, 0.01, 0.07, 0.07]))
    torch.testing.assert_close(boxes[1], torch.tensor([0.03, 0.01, 0.07, 0.07]))  # x runs first
    between = (0.07 * 0.15) ** 0.5
    torch.testing.assert_close(boxes[2500], torch.tensor([0.01, 0.01, between, between]))
    wide = torch.tensor([0.01, 0.01, 0.07 * 2**0.5, 0.07 / 2**0.5])
    torch.testing.assert_close(boxes[5000], wide)


def test_anchors_of_ssd_mobilenet() -> None:
    anchors = ssd_mobilenet.anchors(ssd_mobilenet.CELLS["full"])
    half = 0.5 / 19
    torch.testing.assert_close(anchors[0], torch.tensor([half, half, 0.1, 0.1]))
    torch.testing.assert_close(anchors[1], torch.tensor([half, half, 0.2 * 2**0.5, 0.2 / 2**0.5]))
    torch.testing.assert_close(anchors[3], torch.tensor([3 * half, half, 0.1, 0.1]))
    torch.testing.assert_close(anchors[1083], torch.tensor([0.05, 0.05, 0.35, 0.35]))
    torch.testing.assert_close(anchors[-1], torch.tensor([0.5, 0.5, 0.95**0.5, 0.95**0.5]))


def test_decoding_follows_the_ssd_paper() -> None:
    anchors = torch.tensor([[0.5, 0.5, 0.2, 0.4]])
    still = ssd.decode(torch.zeros(1, 1, 4), anchors, (0.1, 0.2))
    torch.testing.assert_close(still[0, 0], torch.tensor([0.3, 0.4, 0.7, 0.6]))  # ymin xmin ymax xmax
    codes = torch.tensor([[[5.0, -5.0, 0.0, 5.0 * np.log(2)]]], dtype=torch.float32)
    moved = ssd.decode(codes, anchors, (0.1, 0.2))
    torch.testing.assert_close(moved[0, 0], torch.tensor([-0.1, 0.5, 0.7, 0.7]))


def detections_one_by_one(boxes: Tensor, scores: Tensor, limits: ssd.Suppression, index: int) -> np.ndarray:
    """MLPerf's decode_single, class by class, for one image: what ``detections`` is held against."""
    rows = []
    for label in range(1, scores.shape[1]):
        above = scores[:, label] > limits.score_threshold
        order = scores[above, label].argsort(descending=True)[: limits.most_per_class]
        box, score = boxes[above][order], scores[above, label][order]
        one_class = torch.zeros(len(box), dtype=torch.int64)
        for kept in batched_nms(box.double(), score.double(), one_class, limits.iou_threshold):
            rows.append([float(index), *box[kept].tolist(), float(score[kept]), float(label)])

    rows.sort(key=lambda row: -row[5])
    return np.array(rows[: limits.most_per_image], dtype=np.float32).reshape(-1, 7)


@pytest.mark.parametrize(("per_class", "per_image"), [(200, 200), (3, 200), (200, 5)])
def test_a_batch_is_suppressed_as_its_images_are_alone(per_class: int, per_image: int) -> None:
    generator = torch.Generator().manual_seed(3)
    centre = torch.rand(3, 60, 2, generator=generator)
    half = torch.rand(3, 60, 2, generator=generator) * 0.2 + 0.01
    boxes = torch.cat((centre - half, centre + half), dim=2)
    scores = torch.rand(3, 60, 5, generator=generator)
    scores[1] = 0.0  # an image where nothing is seen
    limits = ssd.Suppression(
        score_threshold=0.4, iou_threshold=0.3, most_per_class=per_class, most_per_image=per_image
    )

    got = ssd.rows_of(ssd.detections(boxes, scores, limits).numpy(), [40, 7, 12])

    assert [len(rows) > 0 for rows in got] == [True, False, True]
    for rows, box, score, index in zip(got, boxes, scores, [40, 7, 12], strict=True):
        np.testing.assert_array_equal(rows, detections_one_by_one(box, score, limits, index))


def test_boxes_are_part_of_what_the_device_computes_and_rows_of_what_the_host_makes(
    workloads: dict[str, ImageWorkload],
) -> None:
    """One tensor of the batch's size alone comes back, whatever is seen: so the next batch can begin before."""
    workload = workloads["ssd-mobilenet"]
    assert workload.engine is not None
    pending = workload.begin([3, 1])
    assert pending.done()
    with torch.inference_mode():
        found = workload.engine.run(2)

    assert found.shape == (2, 100, 6)
    rows = ssd.rows_of(found.numpy(), [3, 1])
    assert output_bytes(rows) == output_bytes(pending.result()) == output_bytes(workload.predict([3, 1]))


def test_nothing_seen_at_all_is_no_rows() -> None:
    limits = ssd.Suppression(score_threshold=0.5, iou_threshold=0.5, most_per_class=9, most_per_image=9)
    found = ssd.detections(torch.rand(2, 8, 4), torch.zeros(2, 8, 3), limits)
    got = ssd.rows_of(found.numpy(), [1, 2])
    assert [rows.shape for rows in got] == [(0, 7), (0, 7)]
    assert output_bytes(got) == [b"", b""]


def test_labels(workloads: dict[str, ImageWorkload]) -> None:
    outputs = workloads["resnet50"].predict([0, 1, 2])
    assert isinstance(outputs, np.ndarray)
    assert outputs.shape == (3,)
    assert outputs.dtype == np.int64
    assert [len(sample) for sample in output_bytes(outputs)] == [8, 8, 8]


def test_random_weights_tell_images_apart() -> None:
    workload = loaded("resnet50", replace(CPU, batch_size=32), samples=32)
    assert len(set(np.asarray(workload.predict(range(32))).tolist())) >= 8


@pytest.mark.parametrize("name", DETECTORS)
def test_rows_of_detections(name: str, workloads: dict[str, ImageWorkload]) -> None:
    indices = [3, 1]
    outputs = workloads[name].predict(indices)
    limits = architecture_of(name, "small").suppression
    for rows, index in zip(outputs, indices, strict=True):
        assert rows.dtype == np.float32
        assert rows.flags.c_contiguous
        assert 1 <= len(rows) <= limits.most_per_image
        assert np.isfinite(rows).all()
        assert (rows[:, 0] == index).all()
        assert (rows[:, 1] < rows[:, 3]).all()
        assert (rows[:, 2] < rows[:, 4]).all()
        assert (rows[:, 5] > limits.score_threshold).all()
        assert (np.diff(rows[:, 5]) <= 0).all()
        assert set(rows[:, 6]) <= set(range(1, architecture_of(name, "small").classes))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_answers_the_same(name: str, workloads: dict[str, ImageWorkload]) -> None:
    again = loaded(name)
    assert output_bytes(again.predict([0, 2])) == output_bytes(workloads[name].predict([0, 2]))


@pytest.mark.parametrize("name", NAMES)
def test_another_seed_answers_otherwise(name: str, workloads: dict[str, ImageWorkload]) -> None:
    other = loaded(name, replace(CPU, seed=8))
    assert output_bytes(other.predict([0, 2])) != output_bytes(workloads[name].predict([0, 2]))


def test_predict_agrees_with_the_reference_in_labels(workloads: dict[str, ImageWorkload]) -> None:
    workload = workloads["resnet50"]
    assert list(workload.predict(range(4))) == list(workload.reference(range(4)))


@pytest.mark.parametrize("name", DETECTORS)
def test_predict_agrees_with_the_reference_in_boxes(name: str, workloads: dict[str, ImageWorkload]) -> None:
    for got, expected in zip(workloads[name].predict([0, 2]), workloads[name].reference([0, 2]), strict=True):
        assert_same_detections(got, expected)


def test_splits_of_a_batch_agree_in_labels(workloads: dict[str, ImageWorkload]) -> None:
    workload = workloads["resnet50"]
    whole = list(workload.predict([2, 0, 3, 2]))
    assert whole == [*workload.predict([2]), *workload.predict([0, 3, 2])]


@pytest.mark.parametrize("name", DETECTORS)
def test_splits_of_a_batch_agree_in_boxes(name: str, workloads: dict[str, ImageWorkload]) -> None:
    workload = workloads[name]
    whole = workload.predict([2, 0, 3])
    for got, expected in zip([*workload.predict([2]), *workload.predict([0, 3])], whole, strict=True):
        assert_same_detections(got, expected)


def test_bf16_mostly_agrees_with_the_reference() -> None:
    workload = loaded("resnet50", replace(CPU, precision="bf16", batch_size=16), samples=16)
    agree = np.asarray(workload.predict(range(16))) == np.asarray(workload.reference(range(16)))
    assert agree.mean() >= 0.5  # by chance it would be 0.001


@pytest.mark.parametrize("name", DETECTORS)
def test_bf16_detects(name: str) -> None:
    workload = loaded(name, replace(CPU, precision="bf16"), samples=1)
    (got,), (expected,) = workload.predict([0]), workload.reference([0])
    assert np.isfinite(got).all()
    assert abs(len(got) - len(expected)) <= 0.3 * len(expected) + 3


@pytest.mark.parametrize("name", NAMES)
def test_fp16_on_a_cpu_is_refused(name: str) -> None:
    with pytest.raises(WorkloadError, match="fp16 on a CPU"):
        build(name, replace(CPU, precision="fp16")).load()


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_refuse_an_empty_data_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match=r"data folder .* it is empty"):
        build(name, replace(CPU, data=tmp_path)).load()


def test_ssd_resnet34_in_full_runs_once() -> None:
    workload = loaded("ssd-resnet34", replace(CPU, size="full", batch_size=1), samples=1)
    (rows,) = workload.predict([0])
    assert 50 <= len(rows) <= 200
    assert "3×1200×1200" in " ".join(workload.notes)


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_file_are_used_and_said(
    name: str, workloads: dict[str, ImageWorkload], tmp_path: Path
) -> None:
    """The weights of seed 7 in a file answer as seed 7 itself; those of seed 3 otherwise."""
    plain, path = workloads[name], tmp_path / "weights.pt"
    assert any("random, seed 7" in note for note in plain.notes)
    for seed in (7, 3):
        with seeded(seed):
            torch.save(plain.build().state_dict(), path)

        workload = loaded(name, replace(CPU, weights=path))
        assert f"weights: {path}" in workload.notes
        same = output_bytes(workload.predict([0, 2])) == output_bytes(plain.predict([0, 2]))
        assert same == (seed == 7)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "weights.pt")
    with pytest.raises(WorkloadError, match="do not fit ResNet: missing 267"):
        build("resnet50", replace(CPU, weights=tmp_path / "weights.pt")).load()


def test_resnet50_classifies_the_images_of_a_folder(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(3):
        pixels = random.integers(0, 255, (90, 110 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")

    (tmp_path / "readme.txt").write_text("three pictures")
    workload = loaded("resnet50", replace(CPU, data=tmp_path, threads=2), samples=3)
    assert workload.total_sample_count == 3
    assert any(str(tmp_path) in note and "3 images" in note for note in workload.notes)
    assert list(workload.predict([0, 1, 2])) == list(workload.reference([0, 1, 2]))
    with pytest.raises(WorkloadError, match="does not exist"):
        build("resnet50", replace(CPU, data=tmp_path / "absent")).load()


def test_an_image_that_broke_after_inspection_is_named(tmp_path: Path) -> None:
    Image.new("RGB", (80, 80)).save(tmp_path / "a.png")
    workload = build("resnet50", replace(CPU, data=tmp_path))
    workload.load()
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(WorkloadError, match=r"a\.png"):
        workload.load_samples([0])


def test_samples_load_once_and_unload() -> None:
    filled = []

    def fill(index: int, row: Tensor) -> None:
        filled.append(index)
        row.fill_(index)

    store = SampleStore(
        fill, shape=(2, 3), dtype=torch.bfloat16, device=torch.device("cpu"), batch_size=4, threads=2
    )
    store.load([5, 3, 5])
    store.load([3, 8])
    assert sorted(filled) == [3, 5, 8]
    assert len(store) == 3
    batch = store.gather([8, 3, 8])
    assert batch.shape == (3, 2, 3)
    assert batch.dtype == torch.bfloat16
    assert batch[:, 0, 0].tolist() == [8, 3, 8]
    assert store.gather([5]).data_ptr() == batch.data_ptr()

    store.unload([3, 4])
    store.unload([3])
    with pytest.raises(KeyError):
        store.gather([3])

    store.load([3])
    assert filled.count(3) == 2


def test_synthetic_images_differ_and_repeat() -> None:
    def image(seed: int, index: int) -> Tensor:
        row = torch.empty(64, 64, 3)
        SyntheticImages(seed=seed, side=64).fill(index, row)
        return row

    rows = [image(1, index) for index in (0, 1, 2, 49_999)]
    assert all(not torch.equal(a, b) for number, a in enumerate(rows) for b in rows[:number])
    assert torch.equal(image(1, 2), rows[2])
    assert not torch.equal(image(2, 2), rows[2])
    together = torch.stack(rows)
    assert abs(float(together.mean())) < 0.7
    assert 0.4 < float(together.std()) < 1.6


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_on_a_gpu(name: str, size: Size, precision: str) -> None:
    device: DeviceKind = "cuda"
    options = replace(CPU, device=device, size=size, precision=precision)
    workload = loaded(name, options)
    assert any("pinned host memory" in note for note in workload.notes)
    got, expected = workload.predict(range(4)), workload.reference(range(4))
    if name == "resnet50":
        assert np.mean(np.asarray(got) == np.asarray(expected)) >= (1.0 if precision == "fp32" else 0.5)
        return

    for rows, wanted in zip(got, expected, strict=True):
        assert np.isfinite(rows).all()
        if precision == "fp32":
            assert_same_detections(rows, wanted, share=0.95)
        else:
            assert abs(len(rows) - len(wanted)) <= 0.3 * len(wanted) + 3


@pytest.mark.gpu
def test_pinned_samples_reach_the_gpu() -> None:
    store = SampleStore(
        lambda index, row: row.fill_(index),
        shape=(4,),
        dtype=torch.float16,
        device=torch.device("cuda"),
        batch_size=3,
    )
    store.load(range(10))
    assert store.gather([9, 2, 9]).cpu()[:, 0].tolist() == [9, 2, 9]
