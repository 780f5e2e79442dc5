"""KiTS19 as MLPerf preprocesses it: both kinds of folder, every malformed kind, and DICE."""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from workloads import kits19
from workloads.protocol import WorkloadError, WorkloadOptions, output_bytes
from workloads.unet3d import Unet3d, build
from workloads.weights import seeded

SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=1, seed=1, threads=1, memory_mib=2048
)
SHAPES = {"case_00003": (32, 32, 48), "case_00000": (32, 48, 32)}
"""Two cases, in the list's order."""

Volume = npt.NDArray[Any]


def image_of(name: str) -> Volume:
    random = np.random.default_rng(int(name[-5:]))
    return random.standard_normal((1, *SHAPES[name]), dtype=np.float32)


def label_of(name: str) -> Volume:
    random = np.random.default_rng(int(name[-5:]) + 100)
    return random.integers(0, 3, (1, *SHAPES[name]), dtype=np.uint8)


def dump(path: Path, content: object, protocol: int = 4) -> None:
    path.write_bytes(pickle.dumps(content, protocol))


@pytest.fixture(params=[2, 3, 4, 5])
def protocol(request: pytest.FixtureRequest) -> int:
    return int(request.param)


def make_pickled(folder: Path, protocol: int = 4) -> Path:
    """As mlcommons/inference's preprocess.py leaves a folder."""
    for name in SHAPES:
        dump(folder / f"{name}.pkl", [image_of(name), label_of(name)], protocol)

    about = {
        name: {
            "original_affine": np.eye(4),
            "reshaped_affine": np.eye(4) * np.float64(1.2),
            "zoom_factor": np.array([1.25, 0.8, 0.8]),
            "case": name,
            "image_shape": (1, *SHAPES[name]),
        }
        for name in SHAPES
    }
    dump(folder / "preprocessed_files.pkl", {"file_list": list(SHAPES), "cases": about}, protocol)
    (folder / "nifti").mkdir()
    return folder


def make_arrays(folder: Path) -> Path:
    """As mlcommons/training's preprocess_dataset.py leaves a folder."""
    for name in SHAPES:
        np.save(folder / f"{name}_x.npy", image_of(name))
        np.save(folder / f"{name}_y.npy", label_of(name))

    return folder


def test_pickles_are_read_whatever_their_protocol(tmp_path: Path, protocol: int) -> None:
    data = kits19.inspect(make_pickled(tmp_path, protocol))
    assert [case.name for case in data.cases] == ["case_00003", "case_00000"]  # as listed, not as sorted
    assert data.has_labels
    for case in data.cases:
        np.testing.assert_array_equal(kits19.read_image(case), image_of(case.name)[0])
        np.testing.assert_array_equal(kits19.read_label(case), label_of(case.name)[0])


def test_pickles_of_numpy_1_are_read(tmp_path: Path) -> None:
    """It called its innards numpy.core; protocol 2 has the name in plain letters."""
    folder = make_pickled(tmp_path, 2)
    path = folder / "case_00000.pkl"
    content = path.read_bytes()
    assert b"numpy._core" in content
    path.write_bytes(content.replace(b"numpy._core", b"numpy.core"))
    np.testing.assert_array_equal(
        kits19.read_label(kits19.inspect(folder).cases[1]), label_of("case_00000")[0]
    )


def test_without_a_list_all_cases_are_taken(tmp_path: Path) -> None:
    folder = make_pickled(tmp_path)
    (folder / "preprocessed_files.pkl").unlink()
    assert [case.name for case in kits19.inspect(folder).cases] == ["case_00000", "case_00003"]


def test_arrays_are_read_with_and_without_labels(tmp_path: Path) -> None:
    data = kits19.inspect(make_arrays(tmp_path))
    assert [case.name for case in data.cases] == ["case_00000", "case_00003"]
    assert "training" in data.made_by
    np.testing.assert_array_equal(kits19.read_image(data.cases[1]), image_of("case_00003")[0])
    np.testing.assert_array_equal(kits19.read_label(data.cases[1]), label_of("case_00003")[0])

    (tmp_path / "case_00000_y.npy").unlink()
    with pytest.raises(WorkloadError, match=r"1 of 2 volumes lack their label \(case_00000_y\.npy\)"):
        kits19.inspect(tmp_path)

    (tmp_path / "case_00003_y.npy").unlink()
    assert not kits19.inspect(tmp_path).has_labels


def test_folders_without_cases(tmp_path: Path) -> None:
    with pytest.raises(
        WorkloadError, match=r"holds neither case_XXXXX\.pkl nor case_XXXXX_x\.npy; make them"
    ):
        kits19.inspect(tmp_path)

    (tmp_path / "case_00000").mkdir()
    (tmp_path / "case_00000" / "imaging.nii.gz").write_bytes(b"")
    with pytest.raises(WorkloadError, match="this is KiTS19 before preprocessing"):
        kits19.inspect(tmp_path)

    with pytest.raises(WorkloadError, match="does not exist"):
        kits19.inspect(tmp_path / "absent")

    (tmp_path / "file").write_text("")
    with pytest.raises(WorkloadError, match="is no folder"):
        kits19.inspect(tmp_path / "file")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (["case_00000"], r"preprocessed_files\.pkl has no list under 'file_list'"),
        ({"file_list": []}, "has no list under 'file_list'"),
        ({"file_list": ["../case_00000"]}, r"'file_list': found '\.\./case_00000'; want case_XXXXX"),
        ({"file_list": ["case_00000", "case_00000"]}, "found a case twice"),
        ({"file_list": ["case_00000", "case_00009"]}, r"1 of 2 cases .* \(case_00009\.pkl\)"),
    ],
)
def test_a_malformed_list_is_named(tmp_path: Path, content: object, complaint: str) -> None:
    dump(make_pickled(tmp_path) / "preprocessed_files.pkl", content)
    with pytest.raises(WorkloadError, match=complaint):
        kits19.inspect(tmp_path)


IMAGE, LABEL = image_of("case_00000"), label_of("case_00000")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (IMAGE, r"case_00000\.pkl holds a ndarray, not \[image, label\]"),
        ([IMAGE], r"holds a list, not \[image, label\]"),
        ([IMAGE, None], "the label is a NoneType, not an array"),
        ([IMAGE[0], LABEL[0]], r"the image is \[32, 48, 32\]; want \[1, depth, height, width\]"),
        ([IMAGE[:, :0], LABEL[:, :0]], r"the image is \[1, 0, 48, 32\]; want"),
        ([IMAGE, LABEL[:, 1:]], r"the label is \[31, 48, 32\] and the image \[32, 48, 32\]"),
        ([IMAGE.astype(np.int32), LABEL], "the image is of int32; want finite float32"),
        ([np.full_like(IMAGE, np.nan), LABEL], "float32 with values that are not finite"),
        ([IMAGE, LABEL + np.uint8(1)], r"the label has values 1 to 3; classes are 0 background"),
        ([IMAGE, LABEL.astype(np.int8) - np.int8(1)], "the label has values -1 to 1"),
        ([IMAGE, LABEL.astype(np.float32)], "the label is of float32; want uint8"),
        ([IMAGE.astype(object), LABEL], "the image is of object"),
    ],
)
def test_a_malformed_case_is_named(tmp_path: Path, content: object, complaint: str) -> None:
    dump(make_pickled(tmp_path) / "case_00000.pkl", content)
    with pytest.raises(WorkloadError, match=complaint):
        kits19.inspect(tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda whole: whole[:-3000], lambda whole: whole[:7], lambda whole: whole[:0]]
)
def test_truncated_files_are_named(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    for make, name in ((make_pickled, "case_00000.pkl"), (make_arrays, "case_00000_x.npy")):
        folder = tmp_path / name
        folder.mkdir()
        path = make(folder) / name
        path.write_bytes(damage(path.read_bytes()))
        with pytest.raises(WorkloadError, match=rf"{name} .*copy it or preprocess the case again"):
            kits19.inspect(folder)


class Runs:
    """Pickled, it asks for a command to be run."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (self.command,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    folder = make_pickled(tmp_path)
    dump(folder / "case_00000.pkl", [IMAGE, Runs(f"touch {tmp_path}/was_run")])
    with pytest.raises(
        WorkloadError, match=r"case_00000\.pkl is no pickle of arrays.*it wants posix\.system"
    ):
        kits19.inspect(folder)

    dump(
        folder / "preprocessed_files.pkl",
        {"file_list": list(SHAPES), "cases": Runs(f"touch {tmp_path}/was_run")},
    )
    with pytest.raises(WorkloadError, match=r"preprocessed_files\.pkl is no pickle of arrays"):
        kits19.inspect(folder)

    np.save(make_arrays(tmp_path) / "case_00000_x.npy", np.array([Runs(f"touch {tmp_path}/was_run")]))
    for path in tmp_path.glob("*.pkl"):
        path.unlink()

    with pytest.raises(WorkloadError, match=r"case_00000_x\.npy cannot be read .*allow_pickle"):
        kits19.inspect(tmp_path)

    assert not (tmp_path / "was_run").exists()


# ---------------------------------------------------------------------- shapes


def test_mlperfs_shapes_stay_as_they_are() -> None:
    volume = np.zeros((128, 192, 320), dtype=np.uint8)
    assert kits19.fitted(volume, 128, 0) is not None
    assert kits19.fitted(volume, 128, 0).shape == volume.shape


@pytest.mark.parametrize(
    ("length", "begins", "ends"),
    [
        (130, 1, 129),  # 2 too long, less than 32: one is cut at either end
        (159, 15, 143),  # 31 too long: 15 and 16 are cut
        (160, -16, 176),  # 32 too long: padded to 192
        (191, 0, 192),  # one is padded, behind
        (256, 0, 256),
    ],
)
def test_axes_are_cut_or_padded_as_mlperf_does(length: int, begins: int, ends: int) -> None:
    line = np.arange(1, length + 1, dtype=np.float32)
    volume = np.broadcast_to(line[:, None, None], (length, 128, 128))
    fitted = kits19.fitted(volume, 128, kits19.PADDING)
    expected = [line[place] if 0 <= place < length else np.float32(-2.2) for place in range(begins, ends)]
    assert fitted.shape == (ends - begins, 128, 128)
    np.testing.assert_array_equal(fitted[:, 5, 7], expected)


def test_what_is_shorter_than_a_window_repeats_its_edges() -> None:
    volume = np.broadcast_to(np.arange(1.0, 6.0)[:, None, None], (5, 32, 32))
    fitted = kits19.fitted(volume, 32, kits19.PADDING)
    assert fitted.shape == (32, 32, 32)
    np.testing.assert_array_equal(fitted[:, 0, 0], [1.0] * 14 + [2, 3, 4] + [5.0] * 15)


# ---------------------------------------------------------------------- DICE


def answers_of(folder: Path, change: Callable[[Volume], object] = len) -> dict[int, bytes]:
    """The labels themselves, each changed, as the workload's bytes."""
    answers = {}
    for index, case in enumerate(kits19.find(folder).cases):
        found = kits19.read_label(case).copy()
        change(found)
        answers[index] = found.tobytes()

    return answers


def test_the_label_itself_is_1(tmp_path: Path) -> None:
    judge = kits19.MeanDice(kits19.find(make_pickled(tmp_path)), 32)
    score = judge.score(answers_of(tmp_path))
    assert (score.metric, score.unit, score.samples, judge.sample_count) == ("DICE", "", 2, 2)
    assert score.value == pytest.approx(1)
    assert score.details == {"kidney": pytest.approx(1), "tumour": pytest.approx(1)}


def test_dice_by_hand(tmp_path: Path) -> None:
    """Two cases. Kidney: 4 of 6 voxels, 2 × 4 / (6 + 4) = 0.8; and no kidney in label and answer, which is 1.
    Tumour: 3 right of 5 and 3 elsewhere, 2 × 3 / (5 + 6) = 6/11; and none of 2 voxels, 0."""
    labels, answers = [np.zeros((1, 32, 32, 32), np.uint8) for _ in range(2)], {}
    labels[0][0, 0, 0, :6], labels[0][0, 1, 0, :5], labels[1][0, 0, 0, :2] = 1, 2, 2
    for index, label in enumerate(labels):
        dump(tmp_path / f"case_0000{index}.pkl", [np.zeros_like(label, np.float32), label])
        answers[index] = np.zeros((32, 32, 32), np.uint8)

    answers[0][0, 0, :4], answers[0][1, 0, :3], answers[0][2, 0, :3] = 1, 2, 2
    judge = kits19.MeanDice(kits19.inspect(tmp_path), 32)
    score = judge.score({index: answer.tobytes() for index, answer in answers.items()})
    kidney, tumour = (0.8 + 1) / 2, (6 / 11 + 0) / 2
    assert score.details == {"kidney": pytest.approx(kidney), "tumour": pytest.approx(tumour, abs=1e-6)}
    assert score.value == pytest.approx((kidney + tumour) / 2, abs=1e-6)


def by_one_hot(prediction: Volume, target: Volume) -> Volume:
    """accuracy_kits.py's way: one channel a class, without the background, in float64."""
    hot, wanted = (np.eye(3)[volume.ravel()][:, 1:] for volume in (prediction, target))
    return (2 * (hot * wanted).sum(0) + 1e-6) / (hot.sum(0) + wanted.sum(0) + 1e-6)


def test_dice_as_mlperf_computes_it(tmp_path: Path) -> None:
    random = np.random.default_rng(3)

    def blur(found: Volume) -> None:
        wrong = random.uniform(size=found.shape) < 0.3
        found[wrong] = random.integers(0, 3, int(wrong.sum()), dtype=np.uint8)

    data = kits19.find(make_pickled(tmp_path))
    answers = answers_of(tmp_path, blur)
    expected = np.mean(
        [
            by_one_hot(np.frombuffer(answers[index], np.uint8), kits19.read_label(case))
            for index, case in enumerate(data.cases)
        ]
    )
    score = kits19.MeanDice(data, 32).score(answers)
    assert 0.5 < score.value < 0.99
    assert score.value == pytest.approx(expected, rel=1e-12)


def test_answers_that_cannot_be_judged(tmp_path: Path) -> None:
    judge = kits19.MeanDice(kits19.find(make_pickled(tmp_path)), 32)
    answers = answers_of(tmp_path)
    with pytest.raises(WorkloadError, match=r"answers to 1 of 2 samples are missing \(1\)"):
        judge.score({0: answers[0]})

    with pytest.raises(WorkloadError, match=r"sample 1 has 49151 bytes, not the 49152 of .*32×48×32 voxels"):
        judge.score(answers | {1: answers[1][1:]})

    with pytest.raises(WorkloadError, match=r"sample 1 \(case_00000\) has class 7"):
        judge.score(answers | {1: b"\x07" + answers[1][1:]})


# ---------------------------------------------------------------------- the workload


def loaded(options: WorkloadOptions) -> Unet3d:
    workload = Unet3d("3d-unet", options)
    workload.load()
    return workload


def test_the_workload_judges_its_own_answers(tmp_path: Path) -> None:
    """The labels are rewritten with what the model answers, and it is then right everywhere."""
    folder = make_pickled(tmp_path)
    workload = loaded(replace(SMALL, data=folder))
    assert workload.total_sample_count == 2
    notes = "\n".join(workload.notes)
    assert f"2 cases of {folder}, by MLPerf inference's preprocess.py" in notes
    assert "labels: of all of them" in notes
    workload.load_samples([0, 1])
    outputs = workload.predict([0, 1])
    assert [output.shape for output in outputs] == list(SHAPES.values())
    for output, exact in zip(outputs, workload.reference([0, 1]), strict=True):
        assert (output == exact).mean() > 0.999

    answers = dict(enumerate(output_bytes(outputs)))
    assert workload.labelled is not None
    assert 0.05 < workload.labelled.score(answers).value < 0.7
    for name, output in zip(SHAPES, outputs, strict=True):
        dump(folder / f"{name}.pkl", [image_of(name), output[None]])

    workload.load()
    assert workload.labelled.score(answers).value == pytest.approx(1)


def test_volumes_of_other_shapes_are_fitted(tmp_path: Path) -> None:
    np.save(
        tmp_path / "case_00001_x.npy", np.random.default_rng(0).standard_normal((1, 34, 47, 20), np.float32)
    )
    workload = loaded(replace(SMALL, data=tmp_path))
    assert workload.labelled is None
    assert "labels: none: no case_XXXXX_y.npy" in workload.notes
    workload.load_samples([0])
    assert workload.predict([0])[0].shape == (32, 48, 32)


def test_samples_are_let_go_of(tmp_path: Path) -> None:
    workload = loaded(replace(SMALL, data=make_arrays(tmp_path)))
    workload.load_samples([1])
    with pytest.raises(KeyError):
        workload.predict([0])

    workload.unload_samples([0, 1])
    with pytest.raises(KeyError):
        workload.predict([1])


def test_mlperfs_checkpoint_fits(tmp_path: Path) -> None:
    """3dunet_kits19_pytorch_checkpoint.pth: the weights under best_model_state_dict, beside the optimizer's."""
    with seeded(9):
        state = build("small").state_dict()

    path = tmp_path / "3dunet_kits19_pytorch_checkpoint.pth"
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.8, momentum=0.9).state_dict()
    content = {"epoch": 3740, "best_model_state_dict": state, "optimizer_state_dict": optimizer}
    torch.save(content, path)
    ours, theirs = (loaded(replace(SMALL, **given))._network for given in ({"weights": path}, {"seed": 9}))
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in ours.state_dict().items())

    state["output.conf"] = state.pop("output.conv.0.bias")
    torch.save(content, path)
    with pytest.raises(
        WorkloadError, match=r"checkpoint\.pth do not fit.*missing 1 \(output\.conv\.0\.bias\)"
    ):
        loaded(replace(SMALL, weights=path))


def test_the_launcher_can_inspect_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from workloads import kits19\n"
        "assert 'numpy' not in sys.modules\n"
        "kits19.inspect(Path(sys.argv[1])); assert 'torch' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(make_pickled(tmp_path))], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
