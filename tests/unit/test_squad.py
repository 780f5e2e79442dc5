"""SQuAD v1.1: features and answers held against plain loops over the same definitions; every malformed kind."""

import json
import string
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workloads.bert import MASKED_LOGIT, Bert
from workloads.protocol import WorkloadError, WorkloadOptions, output_bytes
from workloads.squad import (
    SPECIAL,
    WORDS,
    Features,
    SquadLabels,
    best_span,
    has_most_context,
    inspect,
    normalized,
    overlap,
    projected,
    windows,
    wordpieces,
)

SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=8, seed=1, threads=1, memory_mib=2048
)
SEQUENCE = 128
KNOWN = (
    "steve",
    "smith",
    "tower",
    "the",
    "in",
    "paris",
    "##s",
    "stands",
    "where",
    "is",
    "eiffel",
    "un",
    "##do",
)
PARIS = "The Eiffel Tower stands in Paris, where Steve Smiths undo\u202ftowers."


def write_vocabulary(path: Path, lines: int = WORDS) -> None:
    words = [f"[unused{line}]" for line in range(lines)]
    for word, line in SPECIAL.items():
        words[line] = word

    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    for line, word in enumerate((*KNOWN, *letters, *(f"##{letter}" for letter in letters)), 1000):
        words[line] = word

    path.write_text("\n".join(words) + "\n", encoding="utf-8")


def question(name: str, text: str, *answers: str) -> dict[str, Any]:
    return {
        "id": name,
        "question": text,
        "answers": [{"text": each, "answer_start": 0} for each in answers],
    }


def tree() -> dict[str, Any]:
    random = Random(5)
    words = ["".join(random.choices(string.ascii_lowercase, k=random.randint(1, 6))) for _ in range(90)]
    long = " ".join(words)
    return {
        "version": "1.1",
        "data": [
            {
                "title": "Towers",
                "paragraphs": [
                    {
                        "context": PARIS,
                        "qas": [
                            question("q1", "Where is the Eiffel Tower?", "Paris", "in Paris"),
                            question("q2", "What stands in Paris?", "The Eiffel Tower"),
                        ],
                    }
                ],
            },
            {
                "title": "Words",
                "paragraphs": [
                    {"context": long, "qas": [question("q3", "Which? " * 9, " ".join(words[60:63]))]}
                ],
            },
        ],
    }


def write(folder: Path, data: object) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "dev-v1.1.json").write_text(json.dumps(data), encoding="utf-8")
    write_vocabulary(folder / "vocab.txt")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("squad"), tree())


@pytest.fixture(scope="module")
def features(folder: Path) -> Features:
    return Features(inspect(folder), SEQUENCE)


def pointing(features: Features, texts: dict[str, str]) -> dict[int, bytes]:
    """Logits that point at these texts wherever a window holds them whole."""
    answers = {}
    for index, sample in enumerate(features.samples):
        asked = features.squad.questions[sample.question]
        document = features.documents[asked.paragraph]
        logits = np.full((features.sequence, 2), MASKED_LOGIT, dtype=np.float32)
        logits[: sample.tokens] = 0
        wanted = texts[asked.name].split()
        for first in range(len(document.words)):
            if document.words[first : first + len(wanted)] == wanted:
                pieces = np.flatnonzero(
                    (document.word_of >= first) & (document.word_of < first + len(wanted))
                )
                start, end = pieces[[0, -1]] - sample.start
                if start >= 0 and end < sample.length:
                    logits[sample.offset + start, 0] = logits[sample.offset + end, 1] = 9

        answers[index] = logits.tobytes()

    return answers


# ---------------------------------------------------------------------- features


def test_a_sample_is_the_question_and_the_document_between_marks(features: Features):
    line = {word: 1000 + number for number, word in enumerate(KNOWN)}
    mark = 1000 + len(KNOWN) + len(string.ascii_lowercase + string.digits)
    end = int(features.lengths[0])
    expected = [line[each] for each in ("where", "is", "the", "eiffel", "tower")]
    assert features.tokens[:7].tolist() == [101, *expected, mark + string.punctuation.index("?")]
    assert features.tokens[7:10].tolist() == [102, line["the"], line["eiffel"]]
    assert features.tokens[end - 1] == 102
    document = features.documents[0]
    assert document.words[-2:] == ["undo", "towers."]
    assert document.pieces[-5:] == ["un", "##do", "tower", "##s", "."]
    assert document.word_of[-5:].tolist() == [9, 9, 10, 10, 10]


def test_a_long_document_becomes_overlapping_samples(features: Features):
    of_long = [each for each in features.samples if each.question == 2]
    assert len(of_long) > 2
    assert all(each.tokens <= SEQUENCE for each in of_long)
    assert [each.start for each in of_long[:2]] == [0, features.stride]
    assert of_long[-1].start + of_long[-1].length == len(features.documents[1].pieces)
    assert sum(features.lengths) == len(features.tokens)


def test_at_mlperfs_length_the_stride_is_128(folder: Path):
    features = Features(inspect(folder), 384)
    assert features.stride == 128
    assert features.samples[0].question_length == 6


def test_a_question_is_cut_at_64_tokens(tmp_path: Path):
    data = tree()
    data["data"][0]["paragraphs"][0]["qas"][0]["question"] = "Where is " * 80
    features = Features(inspect(write(tmp_path / "long", data)), SEQUENCE)
    assert features.samples[0].question_length == 64


@given(st.integers(1, 900), st.integers(2, 300), st.integers(1, 300))
def test_windows_cover_every_piece(pieces: int, room: int, stride: int):
    spans = windows(pieces, room, stride)
    assert {at for start, length in spans for at in range(start, start + length)} == set(range(pieces))
    assert all(0 < length <= room for _, length in spans)
    assert [start for start, _ in spans] == [min(stride, room) * number for number in range(len(spans))]


@given(st.integers(1, 900), st.integers(64, 380), st.integers(40, 200))
@example(320, 300, 128)  # here and there the windows' lengths decide
def test_each_piece_has_most_context_in_one_window(pieces: int, room: int, stride: int):
    spans = windows(pieces, room, stride)
    masks = [has_most_context(spans, which) for which in range(len(spans))]
    for at in range(pieces):
        scores = {
            which: min(at - start, start + length - 1 - at) + 0.01 * length
            for which, (start, length) in enumerate(spans)
            if start <= at < start + length
        }
        first_best = max(scores, key=lambda which: scores[which])
        assert [which for which in scores if masks[which][at - spans[which][0]]] == [first_best]


# ---------------------------------------------------------------------- answers


@given(st.integers(0, 10_000))
def test_the_best_span_is_the_best_of_all_allowed_ones(seed: int):
    random = np.random.default_rng(seed)
    logits = random.integers(-4, 5, (60, 2)).astype(np.float32)  # whole numbers: many ties
    offset, length = int(random.integers(2, 20)), int(random.integers(1, 40))
    context = random.random(length) < 0.7
    tops = [sorted(range(60), key=lambda at, side=side: -logits[at, side])[:20] for side in (0, 1)]
    best = (-np.inf, 0, 0)
    for start in tops[0]:
        for end in tops[1]:
            inside = offset <= start < offset + length and start <= end < offset + length
            score = float(logits[start, 0] + logits[end, 1])
            if inside and context[start - offset] and end - start < 30 and score > best[0]:
                best = (score, start, end)

    found = best_span(logits, offset, context)
    assert found[0] == best[0]
    assert best[0] == -np.inf or found == best


def test_an_answer_has_at_most_30_tokens():
    logits = np.zeros((80, 2), dtype=np.float32)
    logits[5, 0], logits[5 + 29, 1], logits[5 + 30, 1] = 9, 7, 8
    assert best_span(logits, 2, np.ones(70, dtype=bool)) == (16.0, 5, 34)


@pytest.mark.parametrize(("better", "score"), [(19, 3.0), (20, -np.inf)])
def test_only_the_20_best_starts_count(better: int, score: float):
    logits = np.zeros((80, 2), dtype=np.float32)
    logits[:better, 0] = 5  # the question's, where no answer may start
    logits[40, 0], logits[41, 1] = 1, 2
    assert best_span(logits, 30, np.ones(20, dtype=bool))[0] == score


def test_not_a_number_is_never_the_best():
    logits = np.zeros((10, 2), dtype=np.float32)
    logits[3] = np.nan
    logits[4] = 1
    assert best_span(logits, 2, np.ones(6, dtype=bool)) == (2.0, 4, 4)


@pytest.mark.parametrize(
    ("pieces", "words", "expected"),
    [
        ("steve smith", "Steve Smith,", "Steve Smith"),
        ("in paris", "in Paris.", "in Paris"),
        ("tower", "Towers", "Towers"),  # MLPerf's tokenizer splits the word into pieces: all of it is kept
        ("smith", "Eiffel", "Eiffel"),
    ],
)
def test_an_answer_is_cut_out_of_the_words(folder: Path, pieces: str, words: str, expected: str):
    assert projected(pieces, words, wordpieces(folder / "vocab.txt")) == expected


def test_words_are_compared_without_case_articles_and_punctuation():
    assert normalized("  The  Eiffel-Tower, a tower!") == "eiffeltower tower"
    assert overlap("The Eiffel Tower!", "eiffel tower") == 1.0
    assert overlap("in the year 1999", "1999") == pytest.approx(2 * (1 / 3) * 1 / (1 / 3 + 1))
    assert overlap("Rome", "Paris") == 0.0


def test_right_answers_score_100_and_wrong_ones_less(features: Features):
    labels = SquadLabels(features)
    right = {each.name: each.answers[0] for each in features.squad.questions}
    right["q1"] = "Paris,"
    score = labels.score(pointing(features, right))
    assert (score.metric, score.unit, score.value) == ("F1", "%", 100.0)
    assert score.details["exact_match"] == 100.0
    assert score.samples == len(features.samples)

    # "Eiffel" of "Eiffel Tower": precision 1, recall 1/2, F1 2/3; "stands": nothing; the third is right.
    score = labels.score(pointing(features, right | {"q1": "stands", "q2": "Eiffel"}))
    assert score.value == pytest.approx(100 * (0 + 2 / 3 + 1) / 3)
    assert score.details["exact_match"] == pytest.approx(100 / 3)


def test_where_no_span_is_allowed_the_answer_is_the_references(features: Features):
    logits = np.full((SEQUENCE, 2), MASKED_LOGIT, dtype=np.float32)
    logits[:25] = np.arange(25, 0, -1)[
        :, None
    ]  # the 20 best are question and marks: its document begins at 29
    answers = pointing(features, {each.name: "Paris," for each in features.squad.questions})
    answers |= {i: logits.tobytes() for i, each in enumerate(features.samples) if each.question == 2}
    assert next(each.offset for each in features.samples if each.question == 2) > 20
    assert SquadLabels(features).texts(answers)[2] == "empty"


def test_answers_missing_or_of_another_size_are_refused(features: Features):
    answers = pointing(features, {each.name: "Paris," for each in features.squad.questions})
    with pytest.raises(WorkloadError, match=r"sample 1 has 8 bytes, not the 1024"):
        SquadLabels(features).score(answers | {1: b"12345678"})

    del answers[1]
    with pytest.raises(WorkloadError, match="missing"):
        SquadLabels(features).score(answers)


# ---------------------------------------------------------------------- malformed


def change(path: str, value: object) -> Callable[[Path], None]:
    """Set (or with ``...`` delete) what stands at ``data/0/…`` in the file."""

    def apply(folder: Path) -> None:
        data: Any = tree()
        *steps, last = [int(step) if step.isdecimal() else step for step in path.split("/")]
        holder = data
        for step in steps:
            holder = holder[step]

        if value is ...:
            del holder[last]
        else:
            holder[last] = value

        (folder / "dev-v1.1.json").write_text(json.dumps(data), encoding="utf-8")

    return apply


def cut(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])

    return apply


def shift_vocabulary(folder: Path) -> None:
    lines = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    (folder / "vocab.txt").write_text("\n".join([lines[-1], *lines[:-1]]), encoding="utf-8")


QA = "data/0/paragraphs/0/qas/0"


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda folder: (folder / "dev-v1.1.json").unlink(), r"holds no dev-v1\.1\.json"),
        (lambda folder: (folder / "vocab.txt").unlink(), r"holds no vocab\.txt"),
        (cut("dev-v1.1.json"), r"dev-v1\.1\.json, line 1, column \d+: no JSON .* copy complete"),
        (cut("vocab.txt"), r"vocab\.txt has [\d,]+ lines, bert-large-uncased's has 30,522"),
        (shift_vocabulary, r"vocab\.txt, line 1: '\[unused30521\]'.*\[PAD\]"),
        (lambda folder: (folder / "dev-v1.1.json").write_text(""), r"line 1, column 1: no JSON"),
        (lambda folder: (folder / "dev-v1.1.json").write_text("[]"), "data is missing"),
        (change("version", "v2.0"), r"version is v2\.0, not 1\.1"),
        (change("data", []), "holds no questions"),
        (change("data", 3), "data is a int, not a list"),
        (change("data/1/paragraphs", ...), r"data\[1\]\.paragraphs is missing"),
        (change("data/0/paragraphs/0/context", ...), r"data\[0\]\.paragraphs\[0\]\.context is missing"),
        (change("data/0/paragraphs/0/context", ""), "context is empty"),
        (change(f"{QA}/question", ...), r"paragraphs\[0\]\.qas\[0\]\.question is missing"),
        (change(f"{QA}/id", "q2"), r"qas\[1\]\.id: q2 is there twice"),
        (change(f"{QA}/answers", []), r"qas\[0\]\.answers is empty"),
        (change(f"{QA}/answers", ...), r"qas\[0\]\.answers is missing"),
        (change(f"{QA}/answers/1/text", 7), r"answers\[1\]\.text is a int"),
        (change(f"{QA}/answers", [{"text": "Lyon"}]), "1 of 3 questions no answer stands .* q1"),
    ],
)
def test_a_malformed_data_set_is_named(tmp_path: Path, spoil: Callable[[Path], None], complaint: str):
    spoil(write(tmp_path / "squad", tree()))
    with pytest.raises(WorkloadError, match=complaint):
        inspect(tmp_path / "squad")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(WorkloadError, match="does not exist"):
        inspect(tmp_path / "nowhere")


def test_the_vocabulary_may_lie_in_a_folder_beside(tmp_path: Path):
    folder = write(tmp_path / "squad", tree())
    (folder / "bert_tf_v1_1_large_fp32_384_v2").mkdir()
    (folder / "vocab.txt").rename(folder / "bert_tf_v1_1_large_fp32_384_v2" / "vocab.txt")
    assert inspect(folder).vocabulary.parent.name == "bert_tf_v1_1_large_fp32_384_v2"


# ---------------------------------------------------------------------- the workload


def test_bert_answers_real_questions_and_is_scored(folder: Path):
    bert = Bert("bert", replace(SMALL, data=folder))
    bert.load()
    indices = range(bert.total_sample_count)
    assert bert.labelled is not None
    assert bert.labelled.sample_count == len(indices) > 4
    bert.load_samples(indices)
    together = np.concatenate([bert.predict(list(indices)[at : at + 8]) for at in range(0, len(indices), 8)])
    np.testing.assert_allclose(together, bert.reference(indices), rtol=0, atol=1e-4)
    score = bert.labelled.score(dict(enumerate(output_bytes(together))))
    assert 0 <= score.value <= 100
    notes = "\n".join(bert.notes)
    assert "labelled: 3 questions" in notes
    assert "MLPerf's are of 384 tokens" in notes
    bert.unload_samples(indices)


def test_synthetic_samples_have_no_labels():
    bert = Bert("bert", SMALL)
    bert.load()
    assert bert.labelled is None
