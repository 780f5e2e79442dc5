"""The reading task of scripts/gpu-trained-bert: what is written is what bert reads, and has one right answer."""

from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests import scripts
from workloads import bert
from workloads.squad import Features, SquadLabels, inspect


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return scripts.loaded("gpu-trained-bert")


def test_only_the_kind_that_is_asked_for_tells_the_answer(script: ModuleType):
    lengths = bert.sample_tokens(np.random.default_rng(3), 384)[:500]
    made = script.readings(np.random.default_rng(4), lengths)

    kinds, words = script.KINDS, script.WORDS
    several = 0
    for row, length, asked, place in zip(
        made.tokens, made.lengths, made.question_lengths, made.places, strict=True
    ):
        part, kind = np.divmod(row - bert.FIRST_WORD, kinds * words)
        kind //= words
        question, paragraph = kind[1 : asked + 1], slice(asked + 2, length - 1)
        assert (part[1 : asked + 1] == 0).all()
        assert len(set(question)) == 1
        for marks, at in ((1, place[0]), (2, place[1])):
            marked = np.flatnonzero(part[paragraph] == marks) + asked + 2
            assert marked[kind[marked] == question[0]].tolist() == [at]
            several += len(marked) > 1

        assert script.SHORTEST_SPAN <= place[1] - place[0] + 1 <= script.LONGEST_SPAN
        assert row[[0, asked + 1, length - 1]].tolist() == [bert.CLS, bert.SEP, bert.SEP]
        assert not row[length:].any()

    assert several > 900, "most paragraphs have spans of other kinds too"


def test_what_is_written_is_read_as_it_was_made_and_right_places_score_in_full(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(script.QUESTIONS, "small", 200)
    script.write_data(tmp_path / "data", "small", 7)

    found = inspect(tmp_path / "data")
    features = Features(found, 128)

    rng = np.random.default_rng((7, script.DATA_STREAM))
    made = script.readings(rng, bert.sample_tokens(rng, 128)[:200])
    assert features.lengths.tolist() == made.lengths.tolist(), "one sample a question, one token a word"
    assert features.tokens.tolist() == made.tokens[made.tokens > 0].tolist()
    logits = np.zeros((200, 128, 2), np.float32)
    for side in (0, 1):
        logits[np.arange(200), made.places[:, side], side] = 9

    labels = SquadLabels(features)
    assert labels.score({number: each.tobytes() for number, each in enumerate(logits)}).value == 100
    swapped = {number: each[:, ::-1].tobytes() for number, each in enumerate(logits)}
    assert labels.score(swapped).details["exact_match"] == 0


def test_questions_grow_once_answered_and_the_rate_falls_at_the_end(script: ModuleType):
    plan = script.Plan(384, 1000)

    lengths = []
    for step in (100, 125, 150, 175, 200, 225):
        lengths.append(plan.sequence)
        plan.answered(step)

    assert lengths == [48, 96, 192, 384, 384, 384]
    assert plan.ends_at == 175 + script.FALLING_STEPS, "from the first time that the longest are answered"
    assert plan.share(0) < plan.share(50) < plan.share(150) == 1 > plan.share(230) > plan.share(274) > 0


def test_what_is_there_is_not_written_over(script: ModuleType, tmp_path: Path):
    (tmp_path / "weights").mkdir()

    refused = script.refusal(Namespace(folder=tmp_path, device="cpu"))

    assert refused == (
        2,
        f"asked: bert trained into {tmp_path}; found: weights in it; do: name another folder",
    )
