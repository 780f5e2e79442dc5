"""ImageNet's validation set: both labelled folders and the plain one, every malformed kind, and top-1."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from workloads import imagenet
from workloads.protocol import WorkloadError, WorkloadOptions, output_bytes
from workloads.resnet50 import Resnet50, network
from workloads.weights import seeded

CPU = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=8, seed=7, threads=1, memory_mib=1024
)


def name_of(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"


def save_picture(path: Path, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 255, (70, 90 + seed, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six images and MLPerf's map, whose order is not that of the names; and a file beside them."""
    for number in range(1, 7):
        save_picture(tmp_path / name_of(number), number)

    labels = {4: 65, 2: 970, 6: 0, 1: 999, 3: 65, 5: 7}
    lines = [f"{name_of(number)} {label}" for number, label in labels.items()]
    (tmp_path / "val_map.txt").write_text("\n".join(lines) + "\n")
    (tmp_path / "synset_words.txt").write_text("n01440764 tench\n")
    return tmp_path


def test_a_map_gives_order_and_labels(folder: Path) -> None:
    found = imagenet.inspect(folder)
    assert [path.name for path in found.images.files] == [name_of(number) for number in (4, 2, 6, 1, 3, 5)]
    assert found.labels == (65, 970, 0, 999, 65, 7)
    assert found.said_by == "val_map.txt"
    assert found.images.decoded == 6
    assert found.images.ignored == 2


def test_class_folders_give_labels(tmp_path: Path) -> None:
    classes = [f"n{number:08d}" for number in range(5, 5 + 3 * 1000, 3)]
    for name in classes:
        (tmp_path / name).mkdir()

    for name, seed in ((classes[999], 1), (classes[0], 2), (classes[65], 3)):
        save_picture(tmp_path / name / "x.png", seed)

    found = imagenet.inspect(tmp_path)
    assert found.labels == (0, 65, 999)
    assert [path.parent.name for path in found.images.files] == [classes[0], classes[65], classes[999]]

    save_picture(tmp_path / "stray.png", 4)
    with pytest.raises(WorkloadError, match=r"none of its 1000 class folders \(stray\.png\)"):
        imagenet.inspect(tmp_path)


def test_some_classes_alone_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "n01440764").mkdir()
    save_picture(tmp_path / "n01440764" / "x.png", 1)
    found = imagenet.inspect(tmp_path)
    assert found.labels is None
    assert "1 sub-folders, not one for each of the 1000 classes" in found.said_by


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda text: text.replace(" 970", ""),
            r"val_map\.txt, line 2: found 'ILSVRC2012_val_00000002\.JPEG'",
        ),
        (lambda text: text.replace(" 970", " 9 70"), r"line 2: found"),
        (lambda text: text.replace(" 970", " tench"), r"line 2: label 'tench' of ILSVRC2012_val_00000002"),
        (lambda text: text.replace(" 970", " -1"), r"line 2: label '-1'.* 0 to 999"),
        (lambda text: text.replace(" 970", " 1000"), r"line 2: label '1000'.*count from 1\?"),
        (
            lambda text: text.replace(name_of(1), name_of(2)),
            r"line 4: ILSVRC2012_val_00000002\.JPEG a second time",
        ),
        (lambda text: text.replace(name_of(1), name_of(9)), r"1 of 6 images that are not in.*_00000009"),
        (lambda text: text[:0] + "\n", r"val_map\.txt is empty"),
    ],
)
def test_a_malformed_map_is_named(folder: Path, change: Callable[[str], str], complaint: str) -> None:
    path = folder / "val_map.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(WorkloadError, match=complaint):
        imagenet.inspect(folder)


def test_a_map_that_is_no_text(folder: Path) -> None:
    (folder / "val_map.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WorkloadError, match=r"val_map\.txt cannot be read as text"):
        imagenet.inspect(folder)


def test_an_image_of_the_map_that_is_truncated(folder: Path) -> None:
    path = folder / name_of(3)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(WorkloadError, match=r"1 of 6 image files cannot be used\n.*_00000003\.JPEG: damaged"):
        imagenet.inspect(folder)


def test_no_folder_and_no_images(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="it is empty"):
        imagenet.inspect(tmp_path)

    with pytest.raises(WorkloadError, match="does not exist"):
        imagenet.inspect(tmp_path / "absent")


def as_logged(labels: list[int]) -> dict[int, bytes]:
    return dict(enumerate(output_bytes(np.array(labels, dtype=np.int64))))


def test_top1_by_hand() -> None:
    top1 = imagenet.Top1([65, 970, 0, 999])
    assert top1.sample_count == 4
    score = top1.score(as_logged([65, 1, 0, 999]))
    assert (score.metric, score.value, score.unit, score.samples) == ("top-1", 75.0, "%", 4)
    assert score.details == {"good": 3.0}
    assert top1.score(as_logged([1, 1, 1, -1])).value == 0


def test_answers_that_cannot_be_judged() -> None:
    top1 = imagenet.Top1([1, 2, 3])
    with pytest.raises(WorkloadError, match=r"answers to 1 of 3 samples are missing \(2\)"):
        top1.score(as_logged([1, 2]))

    with pytest.raises(WorkloadError, match=r"does not have \(3\), it has 3"):
        top1.score(as_logged([1, 2, 3, 4]))

    with pytest.raises(WorkloadError, match="answer to sample 1 has 4 bytes, not the 8 of an int64"):
        top1.score(as_logged([1, 2, 3]) | {1: b"1234"})


def test_the_workload_judges_its_own_answers(folder: Path) -> None:
    """The map is rewritten with what the model answers: 100 %; with one label changed, 5 of 6."""
    workload = Resnet50("resnet50", replace(CPU, data=folder))
    assert workload.labelled is None
    workload.load()
    assert workload.total_sample_count == 6
    assert any("6 images" in note and str(folder) in note for note in workload.notes)
    assert any("labels: of all 6 images, by val_map.txt" in note for note in workload.notes)
    assert any("small model sees 64×64" in note for note in workload.notes)
    workload.load_samples(range(6))
    answers = dict(enumerate(output_bytes(workload.predict(range(6)))))
    found = [int(np.frombuffer(answer, np.int64)[0]) for answer in answers.values()]

    found[3] = (found[3] + 1) % 1000
    files = [name_of(number) for number in (4, 2, 6, 1, 3, 5)]
    lines = [f"{name} {label}\n" for name, label in zip(files, found, strict=True)]
    (folder / "val_map.txt").write_text("".join(lines))
    workload.load()
    assert workload.labelled is not None
    assert workload.labelled.score(answers).value == pytest.approx(500 / 6)


def test_a_plain_folder_has_no_labels(tmp_path: Path) -> None:
    save_picture(tmp_path / "x.png", 1)
    workload = Resnet50("resnet50", replace(CPU, data=tmp_path))
    workload.load()
    assert workload.labelled is None
    assert any(note.startswith("labels: none: no val_map.txt") for note in workload.notes)


def test_mlperfs_checkpoint_of_2017_fits(tmp_path: Path) -> None:
    """resnet50-19c8e357.pth: torchvision's names in the old file format, without num_batches_tracked."""
    with seeded(3):
        state = network().state_dict()

    old = {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}
    path = tmp_path / "resnet50-19c8e357.pth"
    torch.save(old, path, _use_new_zipfile_serialization=False)
    workload = Resnet50("resnet50", replace(CPU, weights=path))
    workload.load()
    seed3 = Resnet50("resnet50", replace(CPU, seed=3))
    seed3.load()
    assert workload._network is not None
    assert seed3._network is not None
    ours, theirs = workload._network.state_dict(), seed3._network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_the_launcher_can_inspect_without_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from workloads import imagenet\n"
        "assert 'PIL' not in sys.modules and 'numpy' not in sys.modules\n"
        "imagenet.inspect(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
