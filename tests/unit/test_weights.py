"""Weights: every format comes back as it was, every misfit is named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from workloads.protocol import WorkloadError
from workloads.weights import load_weights, read_state_dict, seeded


def small_network(seed: int) -> nn.Module:
    with seeded(seed):
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


def as_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def as_state_dict(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "weights.pt")
    return folder / "weights.pt"


def as_wrapped(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"state_dict": state, "epoch": 3}, folder / "weights.pth")
    return folder / "weights.pth"


def as_model_wrapped(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"model": state, "iteration": 7}, folder / "weights.pth")
    return folder / "weights.pth"


def as_data_parallel(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({f"module.{key}": tensor for key, tensor in state.items()}, folder / "weights.pt")
    return folder / "weights.pt"


def as_transformers_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "model.safetensors")
    return folder


def as_transformers_pickle(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def as_shards(state: dict[str, Tensor], folder: Path) -> Path:
    weight_map = {key: f"model-{number % 2}.safetensors" for number, key in enumerate(state)}
    for name in set(weight_map.values()):
        save_file({key: state[key] for key, file in weight_map.items() if file == name}, folder / name)

    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


FORMATS = [
    as_safetensors,
    as_state_dict,
    as_wrapped,
    as_model_wrapped,
    as_data_parallel,
    as_transformers_safetensors,
    as_transformers_pickle,
    as_shards,
]


@pytest.mark.parametrize("write", FORMATS)
def test_round_trip(write: Callable[[dict[str, Tensor], Path], Path], tmp_path: Path) -> None:
    saved, other = small_network(1), small_network(2)
    assert not torch.equal(saved[0].weight, other[0].weight)

    load_weights(other, write(saved.state_dict(), tmp_path))

    for key, tensor in saved.state_dict().items():
        assert torch.equal(other.state_dict()[key], tensor), key


def test_weights_take_the_dtype_of_the_module(tmp_path: Path) -> None:
    saved = small_network(1)
    module = small_network(2).to(torch.bfloat16)
    load_weights(module, as_safetensors(saved.state_dict(), tmp_path))
    assert torch.equal(module[0].weight, saved[0].weight.to(torch.bfloat16))


def test_old_checkpoints_without_the_batch_counter_fit(tmp_path: Path) -> None:
    state = small_network(1).state_dict()
    del state["1.num_batches_tracked"]
    load_weights(small_network(2), as_state_dict(state, tmp_path))


def test_a_misfit_names_file_and_keys(tmp_path: Path) -> None:
    state = small_network(1).state_dict()
    del state["0.bias"]
    state["head.weight"] = torch.zeros(2)
    state["2.weight"] = torch.zeros(5, 4)
    path = as_safetensors(state, tmp_path)

    with pytest.raises(WorkloadError) as caught:
        load_weights(small_network(2), path)

    message = str(caught.value)
    assert str(path) in message
    assert "missing 1 (0.bias)" in message
    assert "unexpected 1 (head.weight)" in message
    assert "wrong shape 1 (2.weight is [5, 4], the model has [2, 4])" in message


def test_many_misfits_are_counted_not_listed(tmp_path: Path) -> None:
    path = as_safetensors({f"layer.{number}": torch.zeros(1) for number in range(40)}, tmp_path)
    with pytest.raises(WorkloadError, match=r"unexpected 40 \(layer\.\d+, layer\.\d+, layer\.\d+, …\)"):
        load_weights(small_network(1), path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_that_are_not_finite_are_refused_by_key(
    value: float, dtype: torch.dtype, tmp_path: Path
) -> None:
    state = {key: each.to(dtype) for key, each in small_network(1).state_dict().items()}
    state["2.weight"][1, 1] = value
    path = as_state_dict(state, tmp_path)
    with pytest.raises(WorkloadError, match=r"not finite in 1 \(2\.weight\)") as caught:
        load_weights(small_network(2), path)

    assert str(path) in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_large_values_whose_sum_overflows_are_finite(dtype: torch.dtype, tmp_path: Path) -> None:
    state = small_network(1).state_dict()
    state["2.weight"] = torch.full((2, 4), torch.finfo(dtype).max, dtype=dtype)
    load_weights(small_network(2), as_state_dict(state, tmp_path))


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    state = small_network(1).state_dict()
    state["2.bias"] = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(WorkloadError, match=r"no real numbers 1 \(2\.bias is int64\)"):
        load_weights(small_network(2), as_state_dict(state, tmp_path))


def test_a_misfit_changes_nothing(tmp_path: Path) -> None:
    module, state = small_network(2), small_network(1).state_dict()
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    del state["0.bias"]
    with pytest.raises(WorkloadError):
        load_weights(module, as_state_dict(state, tmp_path))

    assert all(torch.equal(module.state_dict()[key], tensor) for key, tensor in before.items())


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt", "weights.bin"])
@pytest.mark.parametrize("content", [b"", b"not weights at all", b"\x80\x02}q\x00.garbage"])
def test_a_file_of_another_kind_is_refused_by_name(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(WorkloadError, match=name):
        read_state_dict(path)


@pytest.mark.parametrize("write", [as_safetensors, as_state_dict])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_file_is_refused_by_name(
    write: Callable[[dict[str, Tensor], Path], Path], share: float, tmp_path: Path
) -> None:
    path = write(small_network(1).state_dict(), tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(WorkloadError, match=path.name):
        read_state_dict(path)


def test_a_pickled_model_gives_its_tensors(tmp_path: Path) -> None:
    """More of it in test_pickled_module.py."""
    path, network = tmp_path / "model.pt", small_network(1)
    torch.save(network, path)
    got = read_state_dict(path)
    assert got.keys() == network.state_dict().keys()
    assert all(torch.equal(tensor, got[key]) for key, tensor in network.state_dict().items())


def test_what_is_no_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"lr": 0.1, "names": ["a"]}, path)
    with pytest.raises(WorkloadError, match=r"no tensors: 2 \(lr, names\)"):
        read_state_dict(path)

    torch.save([torch.zeros(1)], path)
    with pytest.raises(WorkloadError, match="hold a list"):
        read_state_dict(path)


def test_nothing_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(WorkloadError, match="no such file or folder"):
        read_state_dict(tmp_path / "absent.pt")

    with pytest.raises(WorkloadError, match=r"holds none of model\.safetensors"):
        read_state_dict(tmp_path)


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    as_shards(small_network(1).state_dict(), tmp_path)
    (tmp_path / "model-1.safetensors").unlink()
    with pytest.raises(WorkloadError, match=r"model-1\.safetensors"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}'])
def test_a_broken_index_is_refused_by_name(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(WorkloadError, match=r"index\.json"):
        read_state_dict(tmp_path)


@pytest.mark.gpu
def test_on_a_gpu_seeded_draws_there_and_repeats() -> None:
    torch.cuda.manual_seed(5)
    before = torch.cuda.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        with seeded(seed, "cuda"):
            drawn.append(torch.nn.Linear(300, 300).weight)

    assert drawn[0].is_cuda
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert torch.equal(torch.cuda.get_rng_state(), before)
    assert not torch.empty(1).is_cuda


def test_seeded_repeats_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with seeded(1):
        first = torch.rand(3)

    assert torch.equal(torch.rand(3), expected)
    with seeded(1):
        assert torch.equal(torch.rand(3), first)

    with seeded(2):
        assert not torch.equal(torch.rand(3), first)
