"""bert-base, distilbert, minilm, mpnet: architecture, determinism, agreement with the reference, weights."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import MPNetModel

from workloads.catalog import CATALOG, build
from workloads.encoders import ENCODERS, SEQUENCE, TextEncoder, bias_once, flops_per_sample
from workloads.encoders import build as network_of
from workloads.fidelity import close_values
from workloads.protocol import Size, WorkloadError, WorkloadOptions, output_bytes
from workloads.weights import seeded

INDICES = [3, 0, 9_999, 41]
SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=4, seed=1, threads=1, memory_mib=1024
)
WIDTH = {"bert-base": 2, "distilbert": 2, "minilm": 128, "mpnet": 256}
PARAMETERS = {"bert-base": 177.9e6, "distilbert": 135.3e6, "minilm": 117.7e6, "mpnet": 109.5e6}
"""Of the checkpoints that have the shape, as their pages say, poolers included."""


def loaded(name: str, options: WorkloadOptions = SMALL) -> TextEncoder:
    workload = build(name, options)
    assert isinstance(workload, TextEncoder)
    workload.load()
    workload.load_samples(INDICES)
    return workload


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("name", ENCODERS)
def test_the_catalogue_counts_it_right(name: str, size: Size):
    with torch.device("meta"):
        parameters = sum(each.numel() for each in network_of(name, size).parameters())

    assert CATALOG[name].parameters[size] == parameters
    assert CATALOG[name].flops_per_sample[size] == flops_per_sample(name, size)
    assert f"sequence {SEQUENCE[size]}" in CATALOG[name].sizes[size]
    if size == "full":
        assert parameters == pytest.approx(PARAMETERS[name], rel=0.01)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_batch_is_answered_as_its_samples_are_alone(name: str):
    workload = loaded(name)
    answers = workload.predict(INDICES)
    assert (answers.shape, answers.dtype) == ((4, WIDTH[name]), np.float32)
    assert answers.flags.c_contiguous
    np.testing.assert_allclose(answers, workload.reference(INDICES), atol=1e-5)
    np.testing.assert_allclose(answers[1:2], workload.predict([0]), atol=1e-5)
    assert answers.std(axis=0).min() > 1e-4  # samples differ
    assert np.array_equal(answers, loaded(name).predict(INDICES))
    assert not np.allclose(answers, loaded(name, replace(SMALL, seed=2)).predict(INDICES), atol=1e-3)


@pytest.mark.parametrize("name", ENCODERS)
def test_bf16_stays_close_to_the_reference(name: str):
    half = loaded(name, replace(SMALL, precision="bf16"))
    pairs = zip(output_bytes(half.predict(INDICES)), half.reference(INDICES), strict=True)
    assert 95 < close_values(pairs).value < 100


@pytest.mark.parametrize("name", ["minilm", "mpnet"])
def test_embeddings_have_length_one(name: str):
    np.testing.assert_allclose(np.linalg.norm(loaded(name).predict(INDICES), axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("name", ["bert-base", "mpnet"])
def test_weights_of_a_folder_answer_for_the_seed(name: str, tmp_path: Path):
    with seeded(1):
        network = network_of(name, "small")

    weights = network.state_dict()
    pooler = {"pooler.dense.bias": torch.zeros(256)} if name == "mpnet" else {}
    save_file(weights | pooler, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(network.config.to_dict()))
    workload = loaded(name, replace(SMALL, weights=tmp_path))
    assert np.array_equal(workload.predict(INDICES), loaded(name).predict(INDICES))
    assert f"weights: {tmp_path}" in workload.notes

    (tmp_path / "config.json").write_text(json.dumps({**network.config.to_dict(), "num_hidden_layers": 24}))
    with pytest.raises(
        WorkloadError, match=r"config\.json is not of .* small: num_hidden_layers is 24, small has"
    ):
        loaded(name, replace(SMALL, weights=tmp_path))

    (tmp_path / "config.json").write_text("{")
    with pytest.raises(WorkloadError, match=r"config\.json cannot be read"):
        loaded(name, replace(SMALL, weights=tmp_path))


@torch.inference_mode()
def test_mpnet_answers_the_same_with_its_bias_computed_once():
    with seeded(1):
        network = network_of("mpnet", "small")
        tokens = torch.randint(1000, 8000, (3, 40))

    assert isinstance(network, MPNetModel)
    before: torch.Tensor = network(input_ids=tokens).last_hidden_state
    bias_once(network, 40)
    with torch.no_grad():
        network.encoder.relative_attention_bias.weight.zero_()  # not read any more

    assert torch.equal(network(input_ids=tokens).last_hidden_state, before)


def test_a_bare_encoder_is_refused_where_a_classification_is_asked_for(tmp_path: Path):
    path = tmp_path / "bert.safetensors"
    save_file({"classifier.bias": torch.zeros(2)}, path)
    with pytest.raises(
        WorkloadError, match=r"bert\.safetensors do not fit BertForSequenceClassification: missing"
    ):
        loaded("bert-base", replace(SMALL, weights=path))


def test_notes_say_where_everything_came_from():
    notes = "\n".join(loaded("minilm").notes)
    assert "random, seed 1" in notes
    assert "10000 samples of 32 token ids" in notes
    assert "paraphrase-multilingual-MiniLM-L12-v2 made small" in notes
    assert "engine: eager" in notes


@pytest.mark.parametrize("name", ENCODERS)
def test_samples_are_as_long_as_asked(name: str):
    answers = loaded(name, replace(SMALL, sequence_length=48)).predict(INDICES)
    assert answers.shape == (4, WIDTH[name])
    assert not np.allclose(answers, loaded(name).predict(INDICES), atol=1e-3)
    longest = CATALOG[name].longest_sequence
    assert longest is not None
    assert loaded(name, replace(SMALL, sequence_length=longest)).predict([0]).shape == (1, WIDTH[name])
