"""BERT: answers that hold, whatever the batch; lengths as SQuAD's; weights from files."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from workloads.bert import (
    MASKED_LOGIT,
    SAMPLES,
    SEQUENCE,
    Bert,
    build,
    flops_per_sample,
    sample_tokens,
)
from workloads.catalog import CATALOG
from workloads.protocol import Size, WorkloadError, WorkloadOptions
from workloads.weights import seeded

SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=8, seed=1, threads=1, memory_mib=2048
)
INDICES = [3, 10_832, 0, 77, 500]


def loaded(options: WorkloadOptions = SMALL) -> Bert:
    bert = Bert("bert", options)
    bert.load()
    return bert


@pytest.fixture(scope="module")
def bert() -> Bert:
    return loaded()


def test_a_batch_answers_as_each_sample_alone(bert: Bert):
    together = bert.predict(INDICES)
    assert together.shape == (len(INDICES), 128, 2)
    assert together.dtype == np.float32
    assert together.flags.c_contiguous
    np.testing.assert_allclose(together, bert.reference(INDICES), rtol=0, atol=1e-4)


def test_answers_differ_between_samples_and_positions(bert: Bert):
    answers = bert.predict([1, 2])
    short = min(int((row[:, 0] != MASKED_LOGIT).sum()) for row in answers)
    assert np.abs(answers[0, :short] - answers[1, :short]).max() > 0.1
    assert answers[0, :short].std() > 0.01


def test_nothing_is_answered_past_a_samples_end(bert: Bert):
    answers = bert.predict(INDICES)
    lengths = sample_tokens(np.random.default_rng(SMALL.seed), SEQUENCE["small"])[INDICES]
    for answer, length in zip(answers, lengths, strict=True):
        assert (answer[length:] == MASKED_LOGIT).all()
        assert (np.abs(answer[:length]) < 100).all()


def test_the_same_seed_gives_the_same_bytes(bert: Bert):
    assert loaded().predict(INDICES).tobytes() == bert.predict(INDICES).tobytes()
    assert not np.array_equal(loaded(replace(SMALL, seed=2)).predict(INDICES), bert.predict(INDICES))


def test_bf16_stays_close_to_the_reference():
    bert = loaded(replace(SMALL, precision="bf16"))
    exact, half = bert.reference(INDICES), bert.predict(INDICES)
    assert not np.array_equal(exact, half)
    np.testing.assert_allclose(half, exact, rtol=0, atol=0.05)


def test_lengths_are_squads():
    lengths = sample_tokens(np.random.default_rng(0), SEQUENCE["full"])
    assert len(lengths) == SAMPLES == 10_833
    assert lengths.mean() == pytest.approx(0.46 * 384, rel=0.02)
    assert 32 <= lengths.min() < lengths.max() == 384
    assert 0.01 < (lengths == 384).mean() < 0.04


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_catalogue_counts_it_right(size: Size):
    with torch.device("meta"):
        parameters = sum(each.numel() for each in build(size).parameters())

    assert CATALOG["bert"].parameters[size] == parameters
    assert CATALOG["bert"].flops_per_sample[size] == flops_per_sample(size)


def test_full_is_bert_large():
    # Open Model Zoo's bert-large for SQuAD, with positions for 384 tokens: 333.96 M parameters, 246.93 GFLOPs.
    positions_beyond_384 = (512 - 384) * 1024
    assert CATALOG["bert"].parameters["full"] - positions_beyond_384 == pytest.approx(333.96e6, rel=1e-4)
    assert CATALOG["bert"].flops_per_sample["full"] / 177 == pytest.approx(246.93e9 / 384, rel=0.05)


@pytest.fixture(scope="module")
def other_weights() -> dict[str, torch.Tensor]:
    with seeded(99):
        return build("small").state_dict()


def test_weights_from_a_file_answer_for_the_seed(
    tmp_path: Path, bert: Bert, other_weights: dict[str, torch.Tensor]
):
    pooler = {"bert.pooler.dense.weight": torch.zeros(256, 256)}
    torch.save(other_weights | pooler, tmp_path / "bert.pt")
    save_file(other_weights, tmp_path / "model.safetensors")
    from_file = loaded(replace(SMALL, weights=tmp_path / "bert.pt"))
    from_folder = loaded(replace(SMALL, weights=tmp_path))
    assert not np.allclose(from_file.predict(INDICES), bert.predict(INDICES), atol=0.1)
    assert np.array_equal(from_file.predict(INDICES), from_folder.predict(INDICES))
    assert any(str(tmp_path / "bert.pt") in note for note in from_file.notes)


def test_names_of_converted_tensorflow_checkpoints_are_known(
    tmp_path: Path, other_weights: dict[str, torch.Tensor]
):
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in other_weights.items()
    }
    assert old.keys() != other_weights.keys()
    old["bert.pooler.dense.bias"] = torch.zeros(256)
    old["bert.embeddings.position_ids"] = torch.arange(512)[None]
    torch.save(other_weights, tmp_path / "new.pt")
    torch.save(old, tmp_path / "model.pytorch")
    answers = [
        loaded(replace(SMALL, weights=tmp_path / name)).predict([0]) for name in ("new.pt", "model.pytorch")
    ]
    assert np.array_equal(*answers)

    del old["bert.encoder.layer.0.output.LayerNorm.gamma"]
    torch.save(old, tmp_path / "model.pytorch")
    with pytest.raises(
        WorkloadError, match=r"model\.pytorch.*missing 1 .*layer\.0\.output\.LayerNorm\.weight"
    ):
        loaded(replace(SMALL, weights=tmp_path / "model.pytorch"))


def test_weights_that_lack_a_key_are_refused(tmp_path: Path, other_weights: dict[str, torch.Tensor]):
    path = tmp_path / "bert.safetensors"
    save_file({key: value for key, value in other_weights.items() if key != "qa_outputs.bias"}, path)
    with pytest.raises(WorkloadError, match=r"bert\.safetensors.*qa_outputs\.bias"):
        loaded(replace(SMALL, weights=path))


def test_a_folder_of_another_size_is_refused_by_its_config(
    tmp_path: Path, other_weights: dict[str, torch.Tensor]
):
    save_file(other_weights, tmp_path / "model.safetensors")
    config = build("small").config.to_dict() | {"num_hidden_layers": 24}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(WorkloadError, match=r"config\.json.*num_hidden_layers is 24, small has 4"):
        loaded(replace(SMALL, weights=tmp_path))


def test_a_folder_with_a_broken_config_is_refused(tmp_path: Path, other_weights: dict[str, torch.Tensor]):
    save_file(other_weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WorkloadError, match=r"config\.json cannot be read"):
        loaded(replace(SMALL, weights=tmp_path))


def test_notes_say_where_everything_came_from(bert: Bert):
    notes = "\n".join(bert.notes)
    assert "random, seed 1" in notes
    assert "10833 samples" in notes
    assert "start" in notes
    assert "MLPerf's reference pads" in notes
