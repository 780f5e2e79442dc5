"""vision-transformer and swin-transformer: architecture, determinism, agreement with the reference, weights."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import swin_b, vit_b_16

from workloads import swin_transformer, vision_transformer
from workloads.catalog import CATALOG, build
from workloads.classification import SIDES, ImageClassifier
from workloads.protocol import Size, WorkloadError, WorkloadOptions
from workloads.weights import seeded

NAMES = ("vision-transformer", "swin-transformer")
MODULES = {"vision-transformer": vision_transformer, "swin-transformer": swin_transformer}
TORCHVISIONS = {"vision-transformer": vit_b_16, "swin-transformer": swin_b}
SIZES: tuple[Size, ...] = ("full", "small")
IMAGES = range(16)
CPU = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=16, seed=7, threads=1, memory_mib=1024
)


def loaded(name: str, options: WorkloadOptions = CPU) -> ImageClassifier:
    workload = build(name, options)
    assert isinstance(workload, ImageClassifier)
    workload.load()
    workload.load_samples(IMAGES)
    return workload


def labels(workload: ImageClassifier) -> list[int]:
    answers = np.asarray(workload.predict(IMAGES))
    assert (answers.shape, answers.dtype) == ((16,), np.int64)
    return list(answers.tolist())


@pytest.fixture(scope="module")
def workloads() -> dict[str, ImageClassifier]:
    return {name: loaded(name) for name in NAMES}


def on_meta(name: str, size: Size) -> nn.Module:
    with torch.device("meta"):
        return MODULES[name].network(size).eval()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_the_catalogue_counts_right(name: str, size: Size):
    network = on_meta(name, size)
    image = torch.empty(1, 3, SIDES[size], SIDES[size], device="meta")
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        assert network(image).shape == (1, 1000)

    assert CATALOG[name].parameters[size] == sum(tensor.numel() for tensor in network.parameters())
    assert CATALOG[name].flops_per_sample[size] == counter.get_total_flops()


@pytest.mark.parametrize("name", NAMES)
def test_full_takes_torchvisions_checkpoints(name: str):
    with torch.device("meta"):
        theirs = TORCHVISIONS[name](weights=None).state_dict()

    ours = on_meta(name, "full").state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {
        key: tensor.shape for key, tensor in theirs.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_same_seed_answers_the_same_and_tells_images_apart(
    name: str, workloads: dict[str, ImageClassifier]
):
    found = labels(workloads[name])
    assert labels(loaded(name)) == found
    assert len(set(found)) >= 6
    assert labels(loaded(name, replace(CPU, seed=8))) != found


@pytest.mark.parametrize("name", NAMES)
def test_predict_agrees_with_the_reference(name: str, workloads: dict[str, ImageClassifier]):
    workload = workloads[name]
    assert labels(workload) == list(workload.reference(IMAGES))
    half = loaded(name, replace(CPU, precision="bf16"))
    agree = np.asarray(half.predict(IMAGES)) == np.asarray(half.reference(IMAGES))
    assert agree.mean() >= 0.8


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_file_are_used_or_refused(
    name: str, workloads: dict[str, ImageClassifier], tmp_path: Path
):
    plain, path = workloads[name], tmp_path / "weights.pt"
    with seeded(7):
        weights = plain.build().state_dict()

    torch.save(weights, path)
    again = loaded(name, replace(CPU, weights=path, seed=7))
    assert labels(again) == labels(plain)
    assert f"weights: {path}" in again.notes

    torch.save({key: tensor for key, tensor in weights.items() if "head" not in key}, path)
    with pytest.raises(WorkloadError, match=r"weights\.pt do not fit .*missing 2 \(.*head"):
        loaded(name, replace(CPU, weights=path))


def test_images_of_a_folder_are_classified_as_resnet50s_are(tmp_path: Path):
    random = np.random.default_rng(0)
    for number in range(16):
        pixels = random.integers(0, 255, (90, 110, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02}.png")

    workload = loaded("swin-transformer", replace(CPU, data=tmp_path))
    assert workload.total_sample_count == 16
    assert len(labels(workload)) == 16
    assert any("short side to 73" in note for note in workload.notes)
