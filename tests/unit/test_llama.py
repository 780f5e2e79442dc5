"""llama: architecture, generation against transformers' own without a cache, weights, fidelity of texts."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from workloads import llama, llama_decoding
from workloads.catalog import CATALOG, build
from workloads.llama import (
    LONGEST_PROMPT,
    NEW_TOKENS,
    SAMPLES,
    Llama,
    flops_per_sample,
    prompt_tokens,
    token_agreement,
)
from workloads.llama_decoding import Decoding
from workloads.pipeline import by_length, generating, lengths_of
from workloads.protocol import Size, WorkloadError, WorkloadOptions, output_bytes
from workloads.weights import seeded

INDICES = [3, 0, 4_095, 41]
SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=4, seed=1, threads=2, memory_mib=1024
)


def loaded(options: WorkloadOptions = SMALL) -> Llama:
    workload = build("llama", options)
    assert isinstance(workload, Llama)
    workload.load()
    workload.load_samples(INDICES)
    return workload


@pytest.fixture(scope="module")
def plain() -> Llama:
    return loaded()


@pytest.mark.parametrize("size", ["full", "small"])
def test_the_catalogue_counts_it_right(size: Size):
    with torch.device("meta"):
        parameters = sum(each.numel() for each in llama.build(size).parameters())

    assert CATALOG["llama"].parameters[size] == parameters
    assert CATALOG["llama"].flops_per_sample[size] == flops_per_sample(size)
    assert f"prompts ≤ {LONGEST_PROMPT[size]}, {NEW_TOKENS[size]} new" in CATALOG["llama"].sizes[size]


def test_full_is_llama_3_2_1b():
    assert CATALOG["llama"].parameters["full"] == 1_235_814_400  # as its page says
    # Two FLOPs a parameter of the layers and token, and the head for the new ones; attention is the rest.
    tokens = llama.mean_prompt("full") + 127
    of_layers = 2 * (1_235_814_400 - 128_256 * 2048) * tokens + 2 * 128_256 * 2048 * 128
    assert CATALOG["llama"].flops_per_sample["full"] == pytest.approx(of_layers, rel=0.03)


def test_prompts_have_the_lengths_that_are_said(plain: Llama):
    lengths = prompt_tokens(np.random.default_rng(0), 512)
    assert len(lengths) == SAMPLES
    assert 32 == lengths.min() < lengths.max() == 512
    assert [len(plain.prompt(index)) for index in range(50)] == list(
        prompt_tokens(np.random.default_rng(1), 32)[:50]
    )


def test_it_writes_what_transformers_writes_without_a_cache(plain: Llama):
    """Prompts of unequal lengths in one padded batch, keys and values kept: as one text after another, read anew by
    transformers' own norms and attention."""
    theirs = LlamaConfig.from_dict(plain.network.config.to_dict(), attn_implementation="eager")
    network = LlamaForCausalLM(theirs).eval()
    network.load_state_dict(plain.network.state_dict())
    with torch.inference_mode(), torch.device("cpu"):
        expected = []
        for index in INDICES:
            text = list(plain.prompt(index))
            for _ in range(NEW_TOKENS["small"]):
                logits = network(input_ids=torch.tensor([text]), use_cache=False).logits
                text.append(int(logits[0, -1].argmax()))

            expected.append(text[-NEW_TOKENS["small"] :])

    answers = plain.predict(INDICES)
    assert (answers.shape, answers.dtype) == ((4, 8), np.int64)
    assert answers.tolist() == expected
    assert len(np.unique(answers)) > 16  # no token again and again


def test_batches_of_any_size_and_order_agree(plain: Llama):
    whole = plain.predict(INDICES)
    assert plain.predict(INDICES[::-1]).tolist() == whole[::-1].tolist()
    assert np.concatenate([plain.predict(INDICES[:1]), plain.predict(INDICES[1:])]).tolist() == whole.tolist()
    assert plain.reference(INDICES).tolist() == whole.tolist()


def test_prompts_of_like_length_are_batched_and_texts_stay_the_same(plain: Llama):
    lengths = lengths_of(plain)
    assert lengths is not None
    indices = list(range(100, 116))
    ordered = [indices[place] for place in by_length(indices, lengths)]
    assert [len(plain.prompt(index)) for index in ordered] == sorted(len(plain.prompt(i)) for i in indices)
    in_order = {index: plain.predict([index])[0].tolist() for index in indices}
    for at in range(0, 16, 4):
        batch = ordered[at : at + 4]
        assert plain.predict(batch).tolist() == [in_order[index] for index in batch]


def test_reading_no_further_than_the_texts_reach_changes_none(plain: Llama, monkeypatch: pytest.MonkeyPatch):
    """Batches of short prompts and of long ones, one after the other in the same buffers."""
    monkeypatch.setattr(llama_decoding, "READ_MULTIPLE", 8)
    by_tokens = sorted(range(200), key=lambda index: len(plain.prompt(index)))
    with torch.inference_mode():
        decoding = Decoding(plain.network, 4, LONGEST_PROMPT["small"], NEW_TOKENS["small"])
        for batch, read in ((by_tokens[:4], 24), (by_tokens[-4:], 40), (by_tokens[:4], 24)):
            tokens = [decoding.begin(*plain._prompts(batch)).clone()]
            tokens += [decoding.next().clone() for _ in range(7)]
            assert decoding._read == read
            assert torch.cat(tokens, dim=1).tolist() == plain.predict(batch).tolist()


def test_the_seed_decides_everything(plain: Llama):
    assert loaded().predict(INDICES).tolist() == plain.predict(INDICES).tolist()
    assert loaded(replace(SMALL, threads=1)).predict(INDICES).tolist() == plain.predict(INDICES).tolist()
    assert loaded(replace(SMALL, seed=2)).predict(INDICES).tolist() != plain.predict(INDICES).tolist()


def test_bf16_mostly_chooses_the_same_tokens():
    half = loaded(replace(SMALL, precision="bf16"))
    indices = range(32)
    answers = np.concatenate([half.predict(list(indices)[at : at + 4]) for at in range(0, 32, 4)])
    fidelity = half.fidelity(zip(output_bytes(answers), half.reference(indices), strict=True))
    assert 85 < fidelity.value < 100


def test_after_the_first_difference_texts_are_not_compared():
    said = np.array([1, 2, 3, 4], np.int64)
    answers = [[1, 2, 3, 4], [1, 2, 9, 9], [7, 2, 3, 4]]
    fidelity = token_agreement((np.array(one, np.int64).tobytes(), said) for one in answers)
    assert fidelity.details == {"tokens": 4 + 3 + 1, "equal": 4 + 2 + 0, "equal_texts": 1}
    assert fidelity.value == pytest.approx(100 * 6 / 8)
    assert fidelity.samples == 3
    assert token_agreement([]).value == 0
    with pytest.raises(WorkloadError, match="answer to sample 0 has 8 bytes, not the 32"):
        token_agreement([(said[:1].tobytes(), said)])


def test_weights_of_a_transformers_folder_are_used_or_refused(tmp_path: Path, plain: Llama):
    with seeded(5):
        network = llama.build("small")

    weights = network.state_dict()
    del weights["lm_head.weight"]  # as saved: it is the embedding
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(network.config.to_dict()))
    workload = loaded(replace(SMALL, weights=tmp_path))
    assert workload.predict(INDICES).tolist() != plain.predict(INDICES).tolist()
    assert torch.equal(workload.network.lm_head.weight, network.lm_head.weight)
    assert f"weights: {tmp_path}" in workload.notes

    (tmp_path / "config.json").write_text(json.dumps({**network.config.to_dict(), "head_dim": 64}))
    with pytest.raises(
        WorkloadError, match=r"config\.json is not of llama small: head_dim is 64, small has 32"
    ):
        loaded(replace(SMALL, weights=tmp_path))

    (tmp_path / "config.json").unlink()
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(WorkloadError, match=r"do not fit LlamaModel: missing 1 \(norm\.weight\)"):
        loaded(replace(SMALL, weights=tmp_path))


def test_notes_say_what_a_sample_is(plain: Llama):
    notes = "\n".join(plain.notes)
    assert "engine: eager" in notes
    assert "random, seed 1" in notes
    assert "4096 prompts of 2 to 32 tokens" in notes
    assert "tokens/s = 8 × samples/s" in notes


def test_the_first_tokens_are_told_once_and_are_those_of_the_texts(plain: Llama):
    told: list[np.ndarray] = []
    texts = plain.generate(INDICES, told.append)
    [first] = told
    assert first.tolist() == texts[:, :1].tolist()
    assert texts.tolist() == plain.predict(INDICES).tolist()
    assert generating(plain) is plain
    assert plain.new_tokens == texts.shape[1]


@torch.inference_mode()
def test_decoding_that_begins_again_forgets_the_steps_before_as_a_capture_makes_them(plain: Llama):
    decoding = plain._decoding_of(2)
    prompts = plain._prompts(INDICES[:2])
    decoding.begin(*plain._prompts(INDICES[2:]))
    for _ in range(4):
        decoding.step(2)

    tokens = [decoding.begin(*prompts).clone(), *(decoding.next().clone() for _ in range(7))]
    assert torch.cat(tokens, dim=1).tolist() == plain.predict(INDICES[:2]).tolist()
