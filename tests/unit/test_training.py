"""Training: losses fall, all of the network learns, steps follow from the seed, in every precision."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scheduler.errors import SpecError
from scheduler.spec import parse_run
from workloads.catalog import CATALOG, build
from workloads.protocol import Precision, Scenario, Size, WorkloadError, WorkloadOptions
from workloads.training import RECIPES, Training, drawn_from, flops_per_sample
from workloads.weights import seeded

FEW = [0, 5, 9, 2]
SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=4, seed=3, threads=1, memory_mib=1024
)


def loaded(name: str, options: WorkloadOptions = SMALL) -> Training:
    workload = build(name, options)
    assert isinstance(workload, Training)
    workload.load()
    workload.load_samples(FEW)
    return workload


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("name", RECIPES)
def test_the_catalogue_counts_it_right(name: str, size: Size):
    inference, entry = CATALOG[name.removesuffix(":train")], CATALOG[name]
    assert entry.scenarios == (Scenario.OFFLINE,)
    assert entry.parameters == inference.parameters
    flops = flops_per_sample(name, size)
    assert entry.flops_per_sample[size] == flops
    assert 2.9 < flops / inference.flops_per_sample[size] <= 3.01  # one forward, two as dear backward


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", RECIPES)
def test_it_learns_a_few_samples_by_heart(name: str, precision: Precision):
    workload = loaded(name, replace(SMALL, precision=precision))
    before = {key: tensor.clone() for key, tensor in workload.network.named_parameters()}
    first_in_fp32 = workload.reference(FEW)
    losses = [workload.predict(FEW) for _ in range(5)]
    assert (losses[0].shape, losses[0].dtype) == ((4, 1), np.float32)
    np.testing.assert_allclose(losses[0], first_in_fp32, rtol=0 if precision == "fp32" else 0.02)
    assert losses[-1].mean() < losses[0].mean() - 0.1
    still = [key for key, tensor in workload.network.named_parameters() if torch.equal(tensor, before[key])]
    assert still == []
    assert all(tensor.dtype is torch.float32 for tensor in workload.network.parameters())
    assert workload.steps == 5


def test_steps_follow_from_the_seed_whoever_draws_in_between():
    def losses(seed: int, draws: int) -> list[list[float]]:
        workload = loaded("swin-transformer:train", replace(SMALL, seed=seed))  # stochastic depth
        found = []
        for _ in range(3):
            torch.rand(draws)
            found.append(workload.predict(FEW)[:, 0].tolist())

        return found

    assert losses(3, 0) == losses(3, 5)
    assert losses(3, 0) != losses(4, 0)


def test_random_numbers_of_others_are_left_as_they_were():
    with seeded(1):
        expected = torch.rand(2)

    with seeded(1):
        with drawn_from(2, "cpu"):
            torch.rand(7)

        assert torch.equal(torch.rand(2), expected)


def test_weights_of_a_file_are_trained_on(tmp_path: Path):
    path = tmp_path / "resnet50.pt"
    torch.save(loaded("resnet50:train").network.state_dict(), path)
    workload = loaded("resnet50:train", replace(SMALL, weights=path))
    assert workload.predict(FEW).tolist() == loaded("resnet50:train").predict(FEW).tolist()
    assert f"weights: {path}" in workload.notes

    with pytest.raises(WorkloadError, match=r"resnet50\.pt do not fit VisionTransformer: missing"):
        loaded("vision-transformer:train", replace(SMALL, weights=path))


def test_a_loss_that_is_no_number_ends_it():
    workload = loaded("bert:train")
    with torch.no_grad():
        next(workload.network.parameters()).fill_(torch.nan)

    with pytest.raises(
        WorkloadError, match="training diverged: a loss of step 1 is no finite number, at batch size 4"
    ):
        workload.predict(FEW)


def test_notes_say_how_it_is_trained():
    notes = "\n".join(loaded("resnet50:train").notes)
    assert "engine: eager" in notes
    assert "random, seed 3" in notes
    assert "synthetic images 3×64×64 with random labels of 1000" in notes
    assert "SGD step a batch, learning rate 0.0015625" in notes


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_measured_and_never_judged(name: str):
    assert parse_run({"main": name}).main_mode == "performance"
    with pytest.raises(SpecError, match=f"{name} has no accuracy: its answers are losses"):
        parse_run({"main": name, "main_mode": "accuracy"})
