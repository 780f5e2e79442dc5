"""3D U-Net: sliding windows against MLPerf's recipe, volumes of KiTS19's size."""

from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from workloads.catalog import CATALOG
from workloads.protocol import Size, WorkloadError, WorkloadOptions
from workloads.unet3d import SAMPLES, VOLUMES, Unet3d, blending_weights, build, corners, flops_per_sample

SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=1, seed=1, threads=1, memory_mib=2048
)


def loaded(options: WorkloadOptions = SMALL) -> Unet3d:
    unet = Unet3d("3d-unet", options)
    unet.load()
    return unet


@pytest.fixture(scope="module")
def unet() -> Unet3d:
    return loaded()


def by_the_recipe(network: torch.nn.Module, volume: Tensor, side: int) -> np.ndarray:
    """MLPerf's reference: add weighted logits, divide by the added weights, take the largest."""
    line = np.exp(-0.5 * ((np.arange(side) - (side - 1) / 2) / (0.125 * side)) ** 2)
    weights = np.cbrt(np.einsum("i,j,k->ijk", line, line, line))
    weights = torch.from_numpy(weights / weights.max()).float()
    result, norm = torch.zeros(3, *volume.shape), torch.zeros(volume.shape)
    step = side // 2
    for i in range(0, volume.shape[0] - side + 1, step):
        for j in range(0, volume.shape[1] - side + 1, step):
            for k in range(0, volume.shape[2] - side + 1, step):
                place = (slice(i, i + side), slice(j, j + side), slice(k, k + side))
                result[(slice(None), *place)] += network(volume[place][None, None])[0] * weights
                norm[place] += weights

    assert (norm > 0).all()
    return (result / norm).argmax(0).numpy()


def test_segments_as_mlperfs_recipe(unet: Unet3d):
    [answer] = unet.predict([0])
    with torch.inference_mode():
        expected = by_the_recipe(unet._network, unet._volume(0), 32)

    assert answer.dtype == np.uint8
    assert answer.shape == expected.shape
    assert answer.flags.c_contiguous
    assert (answer == expected).mean() >= 0.999
    assert len(np.unique(answer)) > 1


def test_a_batch_answers_as_each_sample_alone(unet: Unet3d):
    together, exact = unet.predict([1, 2]), unet.reference([1, 2])
    for one, other in zip(together, exact, strict=True):
        assert (one == other).mean() >= 0.999

    assert not np.array_equal(*(each[:48, :48, :48] for each in together))


def test_bf16_stays_close_to_the_reference(unet: Unet3d):
    [half] = loaded(replace(SMALL, precision="bf16")).predict([3])
    [exact] = unet.predict([3])
    assert 0.98 < (half == exact).mean() < 1


def test_the_same_seed_gives_the_same_bytes(unet: Unet3d):
    assert loaded().predict([0])[0].tobytes() == unet.predict([0])[0].tobytes()
    other = loaded(replace(SMALL, seed=2))
    assert other.predict([0])[0].tobytes() != unet.predict([0])[0].tobytes()


def test_windows_cover_a_volume_to_its_last_voxel():
    begins = corners((48, 48, 64), 32)
    assert len(begins) == 2 * 2 * 3
    assert begins[0] == (0, 0, 0)
    assert begins[-1] == (16, 16, 32)


def test_blending_weights_are_a_cube_with_its_peak_inside():
    weights = blending_weights(32)
    assert weights.max() == 1
    assert weights[15:17, 15:17, 15:17].min() == 1
    torch.testing.assert_close(weights, weights.flip(0, 1, 2))
    torch.testing.assert_close(weights, weights.permute(2, 0, 1))


def test_full_volumes_are_kits19s():
    volumes = VOLUMES["full"]
    assert sum(volumes.values()) == SAMPLES == 43
    voxels = sum(prod(shape) * cases for shape, cases in volumes.items()) / SAMPLES
    assert voxels == pytest.approx(32.4e6, rel=0.05)
    assert all(side % 64 == 0 and side >= 128 for shape in volumes for side in shape)


def test_the_library_holds_every_volume_once(unet: Unet3d):
    shapes = [
        unet.predict([index])[0].shape if index < 2 else unet._shapes[index] for index in range(SAMPLES)
    ]
    assert {shape: shapes.count(shape) for shape in set(shapes)} == VOLUMES["small"]
    assert sum(VOLUMES["small"].values()) == SAMPLES


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_catalogue_counts_it_right(size: Size):
    with torch.device("meta"):
        parameters = sum(each.numel() for each in build(size).parameters())

    assert CATALOG["3d-unet"].parameters[size] == parameters
    assert CATALOG["3d-unet"].flops_per_sample[size] == flops_per_sample(size)


def test_full_has_mlperfs_parameters():
    assert CATALOG["3d-unet"].parameters["full"] == pytest.approx(31.2e6, rel=1e-3)


def test_weights_from_a_file_answer_for_the_seed(tmp_path: Path, unet: Unet3d):
    state = loaded(replace(SMALL, seed=9))._network.state_dict()
    path = tmp_path / "unet.pt"
    torch.save(state, path)
    from_file = loaded(replace(SMALL, weights=path))
    assert from_file.predict([0])[0].tobytes() != unet.predict([0])[0].tobytes()

    del state["upsample.0.upsample_conv.0.bias"]
    torch.save(state, path)
    with pytest.raises(WorkloadError, match=r"missing.*upsample\.0\.upsample_conv\.0\.bias"):
        loaded(replace(SMALL, weights=path))


def test_notes_say_where_everything_came_from(unet: Unet3d):
    notes = "\n".join(unet.notes)
    assert "random, seed 1" in notes
    assert "43 volumes" in notes
    assert "host memory" in notes
    assert "overlap 0.5, 2 a forward pass" in notes
