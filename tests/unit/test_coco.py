"""COCO's validation set: found and checked, every malformed kind, prepared as MLPerf does, and mAP."""

import copy
import io
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from workloads import coco, images, ssd_mobilenet, ssd_resnet34
from workloads.catalog import build
from workloads.protocol import WorkloadError, WorkloadOptions, output_bytes
from workloads.ssd import SsdWorkload, stretched

CPU = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=4, seed=7, threads=1, memory_mib=1024
)
LABELS_OF_81 = (0, *coco.CATEGORIES)
LABELS_OF_91 = tuple(range(91))

Change = Callable[[dict[str, Any]], object]


def annotation(identifier: int, image: int, category: int, box: list[float]) -> dict[str, Any]:
    return {
        "id": identifier,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": box[2] * box[3],
        "iscrowd": 0,
        "segmentation": [[0, 0, 0, 1, 1, 1]],
    }


def document() -> dict[str, Any]:
    """Four images of 200×100, the third without objects; three objects."""
    return {
        "info": {"year": 2017},
        "images": [
            {"id": identifier, "file_name": f"{identifier:012d}.jpg", "width": 200, "height": 100}
            for identifier in (139, 42, 285, 632)
        ],
        "categories": [{"id": identifier, "name": f"thing {identifier}"} for identifier in coco.CATEGORIES],
        "annotations": [
            annotation(11, 139, 1, [0, 0, 100, 50]),
            annotation(12, 632, 1, [20, 10, 50, 50]),
            annotation(13, 42, 90, [50, 20, 100, 60]),
        ],
    }


def write(folder: Path, content: dict[str, Any]) -> None:
    (folder / "annotations").mkdir(exist_ok=True)
    (folder / coco.ANNOTATIONS).write_text(json.dumps(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path, document())
    (tmp_path / "val2017").mkdir()
    for seed, record in enumerate(document()["images"]):
        pixels = np.random.default_rng(seed).integers(0, 255, (100, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "val2017" / record["file_name"])

    return tmp_path


def inspected(folder: Path) -> coco.Coco:
    found = coco.inspect(folder)
    assert isinstance(found, coco.Coco)
    return found


def test_the_annotations_give_order_and_objects(folder: Path) -> None:
    found = inspected(folder)
    assert [picture.identifier for picture in found.pictures] == [139, 42, 285, 632]
    assert [picture.objects for picture in found.pictures] == [1, 1, 0, 1]
    assert found.decoded == 4
    assert [picture.identifier for picture in found.with_objects().pictures] == [139, 42, 632]


def test_there_are_80_categories_of_1_to_90() -> None:
    assert len(coco.CATEGORIES) == 80
    assert (coco.CATEGORIES[0], coco.CATEGORIES[11], coco.CATEGORIES[-1]) == (1, 13, 90)


def test_a_folder_of_images_alone_has_no_labels(folder: Path) -> None:
    assert isinstance(coco.inspect(folder / "val2017"), images.Images)


def with_first(key: str, **values: object) -> Change:
    return lambda content: content[key][0].update(values)


def without(key: str, field: str) -> Change:
    return lambda content: content[key][0].pop(field)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda content: content.pop("images"),
            r"instances_val2017\.json: no list of objects under 'images'",
        ),
        (lambda content: content.update(annotations={}), "no list of objects under 'annotations'"),
        (lambda content: content.update(annotations=[]), "'annotations' is empty"),
        (lambda content: content.update(images=[3]), "no list of objects under 'images'"),
        (lambda content: content["categories"].pop(), "categories are not COCO's 80"),
        (lambda content: content["categories"].reverse(), "categories are not COCO's 80 in their order"),
        (without("images", "id"), r"annotations\[0\]: image_id 139 is none of the file's images"),
        (without("images", "width"), r"images\[0\]: width is missing"),
        (with_first("images", height=0), r"images\[0\]: height is 0; want a whole number, 1 or more"),
        (with_first("images", file_name="../x.jpg"), r"images\[0\]: file_name is '\.\./x\.jpg'"),
        (with_first("images", file_name=None), r"images\[0\]: file_name is None"),
        (with_first("images", file_name="absent.jpg"), r"1 of 4 images that are not in .*\(absent\.jpg\)"),
        (with_first("images", id=42), r"annotations\[0\]: image_id 139"),
        (with_first("images", width=100), "is 100×100 by its width and height, the file is 200×100"),
        (without("annotations", "category_id"), r"annotations\[0\]: category_id is missing"),
        (with_first("annotations", category_id=12), r"annotations\[0\]: category_id 12 is none of COCO's 80"),
        (with_first("annotations", id=13), r"annotations\[2\]: id 13 a second time"),
        (with_first("annotations", image_id=7), r"annotations\[0\]: image_id 7 is none"),
        (with_first("annotations", bbox=[1, 2, 3]), r"annotations\[0\]: bbox \[1, 2, 3\]"),
        (with_first("annotations", bbox=[1, 2, 3, "4"]), r"annotations\[0\]: bbox"),
        (with_first("annotations", bbox=[1, 2, 3, float("nan")]), r"annotations\[0\]: bbox"),
        (without("annotations", "area"), r"annotations\[0\]: bbox .* area None"),
        (with_first("annotations", iscrowd=2), r"annotations\[0\]: iscrowd is 2"),
        (
            lambda content: [each.update(iscrowd=1) for each in content["annotations"]],
            "every object is a crowd",
        ),
    ],
)
def test_malformed_annotations_are_named(folder: Path, change: Change, complaint: str) -> None:
    content = document()
    change(content)
    write(folder, content)
    with pytest.raises(WorkloadError, match=complaint):
        coco.inspect(folder)


def test_an_image_id_twice(folder: Path) -> None:
    content = document()
    content["images"].append(copy.deepcopy(content["images"][0]))
    write(folder, content)
    with pytest.raises(WorkloadError, match=r"images\[4\]: id 139 a second time"):
        coco.inspect(folder)


@pytest.mark.parametrize("content", [b"", b'{"images": [', b"\xff\xfe", b"[" * 100_000])
def test_annotations_that_are_no_json(folder: Path, content: bytes) -> None:
    (folder / coco.ANNOTATIONS).write_bytes(content)
    with pytest.raises(WorkloadError, match=r"instances_val2017\.json cannot be read as JSON"):
        coco.inspect(folder)


def test_other_files_that_are_missing_or_broken(folder: Path) -> None:
    path = folder / "val2017" / "000000000042.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    with pytest.raises(
        WorkloadError, match=r"1 of 4 image files cannot be used\n.*000000000042\.jpg: damaged"
    ):
        coco.inspect(folder)

    path.write_bytes(whole)
    (folder / coco.ANNOTATIONS).write_text("[]")
    with pytest.raises(WorkloadError, match="hold a JSON list"):
        coco.inspect(folder)

    (folder / coco.ANNOTATIONS).unlink()
    with pytest.raises(WorkloadError, match=r"has annotations/, but no annotations/instances_val2017\.json"):
        coco.inspect(folder)


# ---------------------------------------------------------------------- mAP


def rows(index: int, *boxes: tuple[list[float], float, int]) -> bytes:
    """Boxes as annotations have them, in pixels of 200×100, as the workload's bytes."""
    found = [
        [index, top / 100, left / 200, (top + height) / 100, (left + width) / 200, score, label]
        for (left, top, width, height), score, label in boxes
    ]
    return np.array(found, dtype=np.float32).reshape(-1, 7).tobytes()


def judge_of(folder: Path, category_of: tuple[int, ...] = LABELS_OF_81) -> coco.MeanAveragePrecision:
    found = coco.find(folder)
    assert isinstance(found, coco.Coco)
    return coco.MeanAveragePrecision(found, category_of)


PERFECT = {
    0: rows(0, ([0, 0, 100, 50], 0.9, 1)),
    1: rows(1, ([50, 20, 100, 60], 0.8, 80)),
    2: b"",
    3: rows(3, ([20, 10, 50, 50], 0.7, 1)),
}


def test_all_found_is_100(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    judge = judge_of(folder)
    score = judge.score(PERFECT)
    assert (score.metric, score.unit, score.samples, judge.sample_count) == ("mAP", "%", 4, 4)
    assert score.value == pytest.approx(100)
    assert capsys.readouterr().out == ""


def test_labels_are_mapped_as_the_model_means_them(folder: Path) -> None:
    """Class 80 of 81 is category 90; of the 91 classes it is category 80, which no image shows."""
    assert judge_of(folder, LABELS_OF_91).score(PERFECT).value == pytest.approx(50)
    as_91 = PERFECT | {1: rows(1, ([50, 20, 100, 60], 0.8, 90))}
    assert judge_of(folder, LABELS_OF_91).score(as_91).value == pytest.approx(100)
    assert ssd_resnet34.ARCHITECTURES["full"].category_of == LABELS_OF_81
    assert ssd_mobilenet.ARCHITECTURES["full"].category_of == LABELS_OF_91


def test_map_by_hand(folder: Path) -> None:
    """One of category 1's two is missed: precision 1 at 51 of the 101 recalls, 0 at the others. Category 90's
    box overlaps by 0.82: right at 7 of the 10 thresholds."""
    answers = PERFECT | {3: b"", 1: rows(1, ([50, 20, 82, 60], 0.8, 80))}
    score = judge_of(folder).score(answers)
    assert score.value == pytest.approx(100 * (51 / 101 + 0.7) / 2)
    assert score.details == {
        "AP50": pytest.approx(100 * (51 / 101 + 1) / 2),
        "AP75": pytest.approx(100 * (51 / 101 + 1) / 2),
    }


def test_a_false_positive_before_the_right_one_halves_precision(folder: Path) -> None:
    wrong_first = rows(1, ([0, 0, 10, 10], 0.9, 80), ([50, 20, 100, 60], 0.8, 80))
    assert judge_of(folder).score(PERFECT | {1: wrong_first}).value == pytest.approx(75)


def test_nothing_found_is_0(folder: Path) -> None:
    score = judge_of(folder).score(dict.fromkeys(range(4), b""))
    assert score.value == 0
    assert score.samples == 4


def test_as_pycocotools_judges_the_files(folder: Path, tmp_path: Path) -> None:
    """Random boxes, against the way of MLPerf's accuracy-coco.py: the whole annotations file, results as JSON."""
    random = np.random.default_rng(5)
    content = document()
    content["annotations"] = [
        annotation(1 + number, image, category, np.round(random.uniform(1, 60, 4), 2).tolist())
        for number, (image, category) in enumerate((i, c) for i in (139, 42, 632) for c in (1, 1, 13, 90))
    ]
    write(folder, content)
    detections, answers = [], {}
    for index, image in enumerate((139, 42, 285, 632)):
        boxes = []
        for each in content["annotations"]:
            box = (np.array(each["bbox"]) + random.uniform(-1, 4, 4)).clip(0.5).tolist()
            label = int(random.choice([each["category_id"], 1]))
            boxes.append((box, float(np.float32(random.uniform())), LABELS_OF_81.index(label)))
            found = {"image_id": image, "category_id": label, "bbox": box, "score": boxes[-1][1]}
            detections.append(found)

        answers[index] = rows(index, *boxes)

    (tmp_path / "results.json").write_text(json.dumps(detections))
    with redirect_stdout(io.StringIO()):
        truth = COCO(str(folder / coco.ANNOTATIONS))
        evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()

    score = judge_of(folder).score(answers)
    assert 1 < score.value < 90
    assert score.value == pytest.approx(100 * evaluation.stats[0])
    assert score.details["AP50"] == pytest.approx(100 * evaluation.stats[1])


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        (b"12345", "answer to sample 1 has 5 bytes, no whole rows of 7 float32"),
        (rows(0, ([0, 0, 9, 9], 0.5, 1)), "answer to sample 1 has rows of another sample"),
        (rows(1, ([0, 0, 9, 9], 0.5, 81)), "labels other than 1 to 80"),
        (rows(1, ([0, 0, 9, 9], 0.5, 0)), "labels other than 1 to 80"),
    ],
)
def test_answers_that_are_no_detections(folder: Path, answer: bytes, complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        judge_of(folder).score(PERFECT | {1: answer})


def test_answers_that_are_missing(folder: Path) -> None:
    with pytest.raises(WorkloadError, match=r"answers to 1 of 4 samples are missing \(3\)"):
        judge_of(folder).score({index: PERFECT[index] for index in range(3)})


# ---------------------------------------------------------------------- the workloads


def loaded(name: str, folder: Path) -> SsdWorkload:
    workload = build(name, replace(CPU, data=folder))
    assert isinstance(workload, SsdWorkload)
    workload.load()
    return workload


def test_ssd_resnet34_leaves_out_images_without_objects(folder: Path) -> None:
    workload = loaded("ssd-resnet34", folder)
    assert workload.total_sample_count == 3
    assert workload.labelled is not None
    assert workload.labelled.sample_count == 3
    notes = "\n".join(workload.notes)
    assert "labels: 3 boxes in 3 images" in notes
    assert "1 of 4 images show nothing of the 80 categories" in notes
    assert "small model sees 300×300" in notes


def test_ssd_mobilenet_takes_images_without_labels(folder: Path) -> None:
    workload = loaded("ssd-mobilenet", folder / "val2017")
    assert workload.total_sample_count == 4
    assert workload.labelled is None
    assert "labels: none: no annotations/instances_val2017.json" in workload.notes


def test_a_model_is_perfect_by_its_own_answers(folder: Path) -> None:
    """What ssd-mobilenet finds is written into the annotations; the same answers are then 100 %."""
    workload = loaded("ssd-mobilenet", folder)
    workload.load_samples(range(4))
    content, answers = document(), {}
    content["annotations"] = []
    for index, answer in enumerate(output_bytes(workload.predict(range(4)))):
        found = np.frombuffer(answer, dtype=np.float32).reshape(-1, 7)
        inside = (found[:, 1] >= 0) & (found[:, 2] >= 0) & np.isin(found[:, 6], coco.CATEGORIES)
        answers[index] = found[inside].tobytes()
        for _, top, left, bottom, right, _, label in found[inside].tolist():
            box = [left * 200, top * 100, (right - left) * 200, (bottom - top) * 100]
            identifier, image = len(content["annotations"]) + 1, content["images"][index]["id"]
            content["annotations"].append(annotation(identifier, image, int(label), box))

    write(folder, content)
    workload.load()
    assert workload.total_sample_count == 4
    assert workload.labelled is not None
    assert workload.labelled.score(answers).value == pytest.approx(100)
    halved = {index: answer[: len(answer) // 56 * 28] for index, answer in answers.items()}
    assert 1 < workload.labelled.score(halved).value < 99


def nearest_four(pixels: np.ndarray, side: int) -> np.ndarray:
    """cv2.resize with INTER_LINEAR, from its definition: centres at +0.5, four neighbours, edges repeated."""

    def axis(length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        at = (np.arange(side) + 0.5) * length / side - 0.5
        low = np.floor(at)
        share = at - low
        return low.clip(0, length - 1).astype(int), (low + 1).clip(0, length - 1).astype(int), share

    top, bottom, down = axis(pixels.shape[0])
    left, right, across = axis(pixels.shape[1])
    rows = pixels[top] * (1 - down)[:, None, None] + pixels[bottom] * down[:, None, None]
    return rows[:, left] * (1 - across)[:, None] + rows[:, right] * across[:, None]


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (160, 160), (90, 1400)])
def test_images_are_prepared_as_mlperf_does(size: tuple[int, int], tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    mobilenet = (nearest_four(pixels.astype(np.float64), 160) - 127.5) / 127.5
    small = ssd_mobilenet.ARCHITECTURES["small"]
    got = stretched(tmp_path / "x.png", small.side, small.mean, small.deviation)
    assert got.dtype == torch.float32
    np.testing.assert_allclose(got.numpy(), mobilenet, atol=5e-4)

    share = nearest_four(pixels.astype(np.float64), 300) / 255
    resnet = (share - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    small = ssd_resnet34.ARCHITECTURES["small"]
    got = stretched(tmp_path / "x.png", small.side, small.mean, small.deviation)
    np.testing.assert_allclose(got.numpy(), resnet, atol=1e-3)


def test_the_launcher_can_inspect_without_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from workloads import coco\n"
        "assert not {'PIL', 'numpy', 'pycocotools'} & set(sys.modules)\n"
        "coco.inspect(Path(sys.argv[1])); assert not {'torch', 'pycocotools'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
