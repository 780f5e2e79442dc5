"""``hf:FOLDER``: what its configuration decides, and the model on real, tiny transformers folders."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from workloads import catalog, own
from workloads.hf_config import TASKS, read_config
from workloads.protocol import Precision, Workload, WorkloadError, WorkloadOptions

BERT = {
    "model_type": "bert",
    "vocab_size": 99,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 24,
    "pad_token_id": 0,
}
LLAMA = BERT | {"model_type": "llama", "pad_token_id": None, "bos_token_id": 1, "eos_token_id": [2, 3]}
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 32,
    "patch_size": 8,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 99,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 1,
    "num_heads": 2,
}
LABELS = {"id2label": {str(number): f"label {number}" for number in range(5)}}


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are given anew in each test, as in each process."""
    monkeypatch.setattr(own, "_KNOWN", {})


def folder_of(folder: Path, architecture: str, config: dict[str, Any], **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"architectures": [architecture], **config, **more}))
    return folder


def with_weights(folder: Path) -> Path:
    """A masked language model's, random weights included."""
    from transformers import AutoConfig, AutoModelForMaskedLM

    folder_of(folder, "BertForMaskedLM", BERT)
    AutoModelForMaskedLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def loaded(
    folder: Path, *, precision: Precision = "fp32", weights: Path | None = None, data: Path | None = None
) -> Workload:
    options = WorkloadOptions(
        size="small",
        device="cpu",
        precision=precision,
        batch_size=4,
        seed=1,
        threads=1,
        memory_mib=512,
        weights=weights,
        data=data,
    )
    entry = catalog.find(f"hf:{folder}")
    assert entry is not None
    workload = catalog.build(entry.name, options)
    workload.load()
    workload.load_samples(range(min(8, workload.total_sample_count)))
    return workload


KINDS = [
    ("BertForSequenceClassification", BERT | LABELS, "sequence classification", (4, 5), "float32"),
    ("LlamaForSequenceClassification", LLAMA | LABELS, "sequence classification", (4, 5), "float32"),
    ("BertForQuestionAnswering", BERT, "question answering", (4, 24, 2), "float32"),
    ("BertForMaskedLM", BERT, "masked language modelling", (4, 4), "int64"),
    ("LlamaForCausalLM", LLAMA, "causal language modelling", (4, 1), "int64"),
    ("ViTForImageClassification", VIT | LABELS, "image classification", (4, 5), "float32"),
]


@pytest.mark.parametrize(
    ("architecture", "config", "task", "shape", "dtype"), KINDS, ids=[kind[0] for kind in KINDS]
)
def test_each_task_gives_its_answers_and_they_agree_with_the_reference(
    tmp_path: Path, architecture: str, config: dict[str, Any], task: str, shape: tuple[int, ...], dtype: str
):
    workload = loaded(folder_of(tmp_path / "tiny", architecture, config))
    answers = np.asarray(workload.predict([3, 1, 0, 2]))
    assert (answers.shape, answers.dtype) == (shape, dtype)
    np.testing.assert_allclose(answers, np.asarray(workload.reference([3, 1, 0, 2])), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(answers[1], np.asarray(workload.predict([1]))[0], rtol=1e-4, atol=1e-5)
    if dtype == "float32":
        assert len({row.tobytes() for row in answers}) == 4

    assert f"{architecture}, {task}" in workload.notes[0]
    assert "random, seed 1" in workload.notes[1]
    workload.unload_samples(range(8))


@pytest.mark.parametrize("kind", KINDS, ids=[kind[0] for kind in KINDS])
def test_in_int8_each_task_answers_nearly_as_the_reference_does(tmp_path: Path, kind: tuple[Any, ...]):
    workload = loaded(folder_of(tmp_path / "tiny", kind[0], kind[1]), precision="int8")
    answers, references = (np.asarray(ask(range(4))) for ask in (workload.predict, workload.reference))
    assert any("linear layers in int8" in note for note in workload.notes)
    if kind[-1] == "float32":  # the int8 network is not its own reference
        np.testing.assert_allclose(answers, references, atol=0.1 * np.abs(references).max())
        assert not np.array_equal(answers, references)


def test_a_model_without_linear_layers_is_refused_in_8_bits(tmp_path: Path):
    config = {
        "model_type": "gpt2",
        "vocab_size": 99,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 24,
    }
    with pytest.raises(WorkloadError, match="GPT2LMHeadModel has no linear layer"):
        loaded(folder_of(tmp_path / "tiny", "GPT2LMHeadModel", config), precision="int8")


@pytest.mark.parametrize(
    ("architecture", "metric"),
    [
        ("BertForMaskedLM", "token agreement"),
        ("BertForQuestionAnswering", "span F1"),
        ("BertForSequenceClassification", "closeness"),
        ("LlamaForCausalLM", "equal answers"),
    ],
)
def test_an_accuracy_run_compares_in_the_terms_of_the_task(tmp_path: Path, architecture: str, metric: str):
    config = LLAMA if architecture.startswith("Llama") else BERT
    workload = loaded(folder_of(tmp_path / "tiny", architecture, config))
    references = [np.asarray(workload.reference([index]))[0] for index in range(4)]
    same = workload.fidelity([(each.tobytes(), each) for each in references])
    others = workload.fidelity(
        [(other.tobytes(), each) for other, each in zip(references[::-1], references, strict=True)]
    )
    assert (same.metric, same.value, same.samples) == (metric, 100.0, 4)
    assert others.value < 100


def test_the_folders_weights_are_used_and_another_file_takes_their_place(tmp_path: Path):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    folder = folder_of(tmp_path / "tiny", "BertForSequenceClassification", BERT | LABELS)
    random = np.asarray(loaded(folder).predict([0, 1]))
    AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(
        tmp_path / "kept"
    )
    kept = loaded(tmp_path / "kept")
    assert kept.notes[1] == f"weights: {tmp_path / 'kept'}"
    answers = np.asarray(kept.predict([0, 1]))
    assert not np.allclose(answers, random)
    for weights in (tmp_path / "kept", tmp_path / "kept" / "model.safetensors"):
        again = loaded(folder, weights=weights)
        assert again.notes[1] == f"weights: {weights}"
        np.testing.assert_array_equal(np.asarray(again.predict([0, 1])), answers)


def test_bf16_computes_in_bf16_and_refers_to_fp32(tmp_path: Path):
    folder = folder_of(tmp_path / "tiny", "BertForSequenceClassification", BERT | LABELS)
    exact, rounded = loaded(folder), loaded(folder, precision="bf16")
    np.testing.assert_array_equal(np.asarray(rounded.reference([5])), np.asarray(exact.reference([5])))
    answer = np.asarray(rounded.predict([5]))
    assert answer.dtype == np.float32
    assert not np.array_equal(answer, np.asarray(exact.predict([5])))


def test_a_checkpoint_of_another_task_is_refused_by_its_keys(tmp_path: Path):
    with_weights(tmp_path / "kept")
    folder_of(tmp_path / "kept", "BertForSequenceClassification", BERT | LABELS)
    with pytest.raises(
        WorkloadError, match=r"lack \d+ of the keys of BertForSequenceClassification .*classifier\.bias"
    ):
        loaded(tmp_path / "kept")


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_a_value_that_is_none(path: Path) -> None:
    state = load_file(path)
    state["bert.embeddings.LayerNorm.bias"][3] = torch.nan
    save_file(state, path)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda kept: cut_short(kept / "model.safetensors"), r"model\.safetensors .*is the copy complete"),
        (
            lambda kept: (
                (kept / "model.safetensors").rename(kept / "other.safetensors")
                and (kept / "model.safetensors.index.json").write_text(
                    '{"weight_map": {"a": "gone.safetensors"}}'
                )
            ),
            r"kept/gone\.safetensors: no such file",
        ),
        (
            lambda kept: folder_of(kept, "BertForMaskedLM", BERT | {"hidden_size": 32}),
            r"\[16\], the model has \[32\]",
        ),
        (
            lambda kept: with_a_value_that_is_none(kept / "model.safetensors"),
            r"kept have values that are not finite in 1 \(bert\.embeddings\.LayerNorm\.bias\)",
        ),
        (
            lambda kept: (kept / "config.json").write_text(
                '{"architectures": ["XForMaskedLM"], "vocab_size": 9}'
            ),
            "cannot.*kept",
        ),
    ],
    ids=["cut short", "missing shard", "another shape", "not finite", "unknown model type"],
)
def test_a_folder_that_cannot_be_loaded_is_named_with_what_is_wrong(tmp_path: Path, spoil: Any, says: str):
    kept = with_weights(tmp_path / "kept")
    spoil(kept)
    with pytest.raises(WorkloadError, match=says):
        loaded(kept)


def test_loading_leaves_no_semaphore_behind(tmp_path: Path):
    kept = with_weights(tmp_path / "kept")
    program = (
        "import sys; from pathlib import Path; from multiprocessing import resource_tracker as tracker;"
        "from tests.unit.test_hf import loaded;"
        "tracker.register = lambda name, kind: sys.exit(f'{kind} {name} is left');"
        "loaded(Path(sys.argv[1]))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(kept)], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    ("architecture", "config", "says"),
    [
        ("BertForMaskedLM", BERT | {"type_vocab_size": 0}, "failed on a batch: RuntimeError: index_select"),
        ("T5ForSequenceClassification", T5, "failed on a batch: AttributeError: 'T5Config' object has no"),
    ],
)
def test_a_model_that_fails_on_its_first_batch_is_named_as_the_one_at_fault(
    tmp_path: Path, architecture: str, config: dict[str, Any], says: str
):
    workload = loaded(folder_of(tmp_path / "hapless", architecture, config))
    for answer in (workload.predict, workload.reference):
        with pytest.raises(WorkloadError, match=rf"hapless: transformers' {architecture} {says}"):
            answer([0])


def test_a_model_that_runs_out_of_memory_is_not_at_fault(tmp_path: Path):
    workload = loaded(folder_of(tmp_path / "large", "BertForMaskedLM", BERT))

    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    vars(workload)["_network"].register_forward_pre_hook(too_much)
    with pytest.raises(torch.OutOfMemoryError):
        workload.predict([0])


def test_samples_have_no_special_token_and_follow_the_seed(tmp_path: Path):
    from workloads.hf_inputs import make_tokens

    folder = folder_of(tmp_path / "tiny", "BertForMaskedLM", BERT, mask_token_id=4, sep_token_id=7)
    options = WorkloadOptions(
        size="full", device="cpu", precision="fp32", batch_size=1, seed=3, threads=1, memory_mib=1
    )
    tokens, masked = make_tokens(read_config(folder), options)
    assert tokens.shape == (1024, 24)
    assert masked.shape == (1024, 4)
    assert (np.take_along_axis(tokens, masked, axis=1) == 4).all()
    assert (tokens == 4).sum() == masked.size
    assert not {0, 7} & set(np.unique(tokens))
    assert tokens.max() < 99
    np.testing.assert_array_equal(tokens, make_tokens(read_config(folder), options)[0])


# ---------------------------------------------------------------------- inputs of the user's

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]


def with_tokenizer(folder: Path) -> Path:
    """A WordPiece tokenizer of a few words, as BERT's folders have it."""
    from transformers import BertTokenizerFast

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def text_of(path: Path, words: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(" ".join(WORDS[number % len(WORDS)] for number in range(words)))
    return path


def test_a_text_becomes_whole_samples_by_the_folders_tokenizer(tmp_path: Path):
    folder = with_tokenizer(folder_of(tmp_path / "tiny", "BertForMaskedLM", BERT))
    text_of(tmp_path / "texts" / "1.txt", 60)
    text_of(tmp_path / "texts" / "2.txt", 40)
    workload = loaded(folder, data=tmp_path / "texts")
    assert workload.total_sample_count == 100 // 22  # 24 positions, [CLS] and [SEP] among them
    assert f"4 samples of {tmp_path / 'texts'}: 24 token ids each" in workload.notes[2]
    assert np.asarray(workload.predict([0, 3])).shape == (2, 4)


@pytest.mark.parametrize(
    ("content", "tokenizer", "says"),
    [
        (b"", True, "no text"),
        (b"the dog", True, "too little text: a sample of this model is 24 tokens"),
        (b"the dog \xff", True, "is not UTF-8: invalid start byte at byte 8"),
        (b"the dog", False, "tiny has no tokenizer"),
    ],
)
def test_a_text_that_cannot_be_used(tmp_path: Path, content: bytes, tokenizer: bool, says: str):
    folder = folder_of(tmp_path / "tiny", "BertForQuestionAnswering", BERT)
    if tokenizer:
        with_tokenizer(folder)

    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(WorkloadError, match=says):
        loaded(folder, data=tmp_path / "a.txt")


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path):
    folder = with_tokenizer(folder_of(tmp_path / "tiny", "BertForQuestionAnswering", BERT, vocab_size=8))
    with pytest.raises(WorkloadError, match=r"gives token 13, its config\.json has vocab_size 8"):
        loaded(folder, data=text_of(tmp_path / "a.txt", 60))


def test_images_are_normalised_as_the_folder_says(tmp_path: Path):
    from PIL import Image

    from workloads.hf_inputs import pictures

    (tmp_path / "album").mkdir()
    for number, colour in enumerate([(255, 0, 51), (0, 255, 51)]):
        Image.new("RGB", (40, 40), colour).save(tmp_path / "album" / f"{number}.png")

    folder = folder_of(tmp_path / "tiny", "ViTForImageClassification", VIT | LABELS)
    said = {"image_mean": [0.5, 0.5, 0.2], "image_std": [0.5, 0.25, 1.0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    options = WorkloadOptions(
        size="small", device="cpu", precision="fp32", batch_size=2, seed=0, threads=1, memory_mib=1,
        data=tmp_path / "album",
    )  # fmt: skip
    count, fill, _ = pictures(read_config(folder), options)
    row = torch.empty(32, 32, 3)
    fill(0, row)
    assert count == 2
    torch.testing.assert_close(row[16, 16], torch.tensor([1.0, -2.0, 0.0]), atol=1e-5, rtol=0)

    workload = loaded(folder, data=tmp_path / "album")
    assert np.asarray(workload.predict([0, 1])).shape == (2, 5)
    (folder / "preprocessor_config.json").write_text('{"image_std": [0, 1]}')
    with pytest.raises(WorkloadError, match=r"preprocessor_config\.json: image_std is \[0, 1\]"):
        loaded(folder, data=tmp_path / "album")


# ---------------------------------------------------------------------- the configuration alone


@pytest.mark.parametrize("ending", TASKS)
def test_the_task_follows_from_the_architecture(tmp_path: Path, ending: str):
    assert read_config(folder_of(tmp_path, f"Some{ending}", BERT)).task == TASKS[ending]


def test_sequences_are_as_long_as_the_size_says_or_the_positions_allow(tmp_path: Path):
    def tokens(**more: Any) -> tuple[int, int]:
        config = read_config(folder_of(tmp_path, "XForMaskedLM", BERT, **more))
        return config.tokens("full"), config.tokens("small")

    assert tokens() == (24, 24)
    assert tokens(max_position_embeddings=512) == (384, 128)
    assert tokens(max_position_embeddings=130, model_type="roberta", pad_token_id=1) == (128, 128)
    assert tokens(max_position_embeddings=None) == (384, 128)
    assert tokens(max_position_embeddings=None, n_positions=200) == (200, 128)


@pytest.mark.parametrize(
    ("architecture", "more", "says"),
    [
        ("T5ForConditionalGeneration", {}, "architectures has T5ForConditionalGeneration"),
        ("BartForSequenceClassification", {"is_encoder_decoder": True}, "is_encoder_decoder"),
        ("XForCausalLM", {"auto_map": {"AutoModel": "x.py"}}, "auto_map"),
        ("XForCausalLM", {"vocab_size": None}, "vocab_size is None"),
        ("XForCausalLM", {"vocab_size": 1}, "vocab_size is 1"),
        ("XForCausalLM", {"max_position_embeddings": 0}, "0 positions"),
        ("XForCausalLM", {"max_position_embeddings": "many"}, "many positions"),
        ("XForImageClassification", {"image_size": [32, 48]}, r"image_size is \[32, 48\]"),
        ("XForImageClassification", {"image_size": 0}, "image_size is 0"),
        ("XForImageClassification", {"num_channels": 1}, "num_channels is 1"),
    ],
)
def test_a_model_for_something_else_is_refused_by_its_field(
    tmp_path: Path, architecture: str, more: dict[str, Any], says: str
):
    with pytest.raises(WorkloadError, match=rf"config\.json.*{says}"):
        read_config(folder_of(tmp_path, architecture, BERT, **more))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "cannot be read"),
        ("[]", "names no architectures"),
        ('{"architectures": []}', "names no architectures"),
        ('{"architectures": [3]}', "names no architectures"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_configuration_that_says_nothing_is_refused(tmp_path: Path, text: str | bytes, says: str):
    (tmp_path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(WorkloadError, match=says):
        read_config(tmp_path)
