"""SQuAD v1.1's dev set: found, checked before anything starts, cut into features, and scored.

Everything as MLPerf's reference does it (mlcommons/inference, language/bert). Imports neither torch nor
transformers at module level, so that the launcher can use it.
"""

import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from workloads.answers import in_order, of_size
from workloads.labelled import Score
from workloads.protocol import WorkloadError

QUESTIONS_FILE = "dev-v1.1.json"
VOCABULARY_FILE = "vocab.txt"
VERSION = "1.1"
WORDS = 30_522
SPECIAL = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
"""Lines of bert-large-uncased's vocabulary, counted from 0."""

LONGEST_QUESTION = 64
STRIDE_SHARE = 128 / 384
"""By how many tokens the windows over a long document advance, as a share of the longest sequence."""

MARKS = 3
"""[CLS] question [SEP] document [SEP]"""

STRANGE_ANSWERS = 0.01
"""Share of questions whose answer need not stand in the paragraph; above it the labels are another file's."""

BEST, LONGEST_ANSWER = 20, 30
NO_ANSWER = "empty"
"""What the reference answers where no span is allowed."""

SPACE = re.compile("[ \t\r\n\u202f]+")
ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)

Kind = TypeVar("Kind")
Tokenize = Callable[[str], tuple[list[str], list[int]]]
"""A text's WordPieces and their numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question, its paragraph by number, and every answer that counts as right."""

    name: str
    text: str
    paragraph: int
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Squad:
    """The questions of one file, in its order, and the vocabulary to read them with."""

    file: Path
    vocabulary: Path
    paragraphs: tuple[str, ...]
    questions: tuple[Question, ...]


def inspect(folder: Path) -> Squad:
    """Read ``dev-v1.1.json`` and ``vocab.txt`` of ``folder`` (the latter in a folder of it, too), and check them.

    Raises:
        WorkloadError: a file is missing, unreadable, truncated, of another version, or lacks a field; names
            file, field or line, what was found, and what to do.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise WorkloadError(
            f"data folder {folder} {what}; name a folder with {QUESTIONS_FILE} and {VOCABULARY_FILE} with --data"
        )

    file = folder / QUESTIONS_FILE
    if not file.is_file():
        raise WorkloadError(
            f"data folder {folder} holds no {QUESTIONS_FILE}; put SQuAD v1.1's dev set there, or name another folder"
        )

    vocabulary = _find_vocabulary(folder)
    _check_vocabulary(vocabulary)
    paragraphs, questions = _read_questions(file)
    strange = [each for each in questions if not _stands_in(each.answers, paragraphs[each.paragraph])]
    if len(strange) > STRANGE_ANSWERS * len(questions):
        raise WorkloadError(
            f"{file}: of {len(strange)} of {len(questions)} questions no answer stands in the paragraph, "
            f"{strange[0].name} the first of them: these are the labels of another text; take the original file"
        )

    return Squad(file=file, vocabulary=vocabulary, paragraphs=tuple(paragraphs), questions=tuple(questions))


def _find_vocabulary(folder: Path) -> Path:
    if (folder / VOCABULARY_FILE).is_file():
        return folder / VOCABULARY_FILE

    found = sorted(folder.glob(f"*/{VOCABULARY_FILE}"))
    if len(found) == 1:
        return found[0]

    what = f"holds {len(found)} of them in its folders" if found else f"holds no {VOCABULARY_FILE}"
    raise WorkloadError(
        f"data folder {folder} {what}; put bert-large-uncased's {VOCABULARY_FILE} beside {QUESTIONS_FILE}"
    )


def _check_vocabulary(path: Path) -> None:
    """As bert-large-uncased's: the number of lines, and the special words in theirs."""
    try:
        words = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(
            f"vocabulary {path} cannot be read: {error}; take bert-large-uncased's"
        ) from error

    if len(words) != WORDS:
        raise WorkloadError(
            f"vocabulary {path} has {len(words):,} lines, bert-large-uncased's has {WORDS:,}; is the copy complete?"
        )

    for word, line in SPECIAL.items():
        if words[line] != word:
            raise WorkloadError(
                f"vocabulary {path}, line {line + 1}: {words[line]!r}, bert-large-uncased's has {word} there; "
                "take that model's file"
            )


def _read_questions(file: Path) -> tuple[list[str], list[Question]]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise WorkloadError(
            f"{file}, line {error.lineno}, column {error.colno}: no JSON ({error.msg}); is the copy complete?"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{file} cannot be read: {error}") from error

    if isinstance(tree, dict) and str(tree.get("version", VERSION)).removeprefix("v") != VERSION:
        raise WorkloadError(f"{file}: version is {tree['version']}, not {VERSION}; take SQuAD v1.1's dev set")

    paragraphs: list[str] = []
    questions: list[Question] = []
    names: set[str] = set()
    for article, at in _items(tree, "data", file, ""):
        for paragraph, below in _items(article, "paragraphs", file, at):
            paragraphs.append(_field(paragraph, "context", str, file, below))
            for entry, place in _items(paragraph, "qas", file, below):
                question = _question(entry, len(paragraphs) - 1, file, place)
                if question.name in names:
                    raise WorkloadError(
                        f"{file}: {place}.id: {question.name} is there twice; take the original file"
                    )

                names.add(question.name)
                questions.append(question)

    if not questions:
        raise WorkloadError(f"{file}: data holds no questions; take SQuAD v1.1's dev set")

    return paragraphs, questions


def _question(entry: object, paragraph: int, file: Path, at: str) -> Question:
    answers = [
        _field(answer, "text", str, file, place) for answer, place in _items(entry, "answers", file, at)
    ]
    if not answers:
        raise WorkloadError(f"{file}: {at}.answers is empty; SQuAD v1.1 has an answer to every question")

    return Question(
        name=_field(entry, "id", str, file, at),
        text=_field(entry, "question", str, file, at),
        paragraph=paragraph,
        answers=tuple(answers),
    )


def _items(holder: object, key: str, file: Path, at: str) -> Iterator[tuple[object, str]]:
    """The items of a list, each with where it stands: ``data[3].paragraphs[0]``."""
    place = f"{at}.{key}".lstrip(".")
    for number, item in enumerate(_field(holder, key, list, file, at)):
        yield item, f"{place}[{number}]"


def _field(holder: object, key: str, kind: type[Kind], file: Path, at: str) -> Kind:
    place = f"{at}.{key}".lstrip(".")
    if not isinstance(holder, dict) or key not in holder:
        raise WorkloadError(f"{file}: {place} is missing; take SQuAD v1.1's dev set")

    value = holder[key]
    if not isinstance(value, kind) or value == "":
        found = "empty" if value == "" else f"a {type(value).__name__}"
        raise WorkloadError(f"{file}: {place} is {found}, not a {kind.__name__}; take SQuAD v1.1's dev set")

    return value


def _stands_in(answers: tuple[str, ...], paragraph: str) -> bool:
    return any(answer in paragraph for answer in answers)


# ---------------------------------------------------------------------- features


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One paragraph: its words, its WordPieces and their numbers, and the word of each piece."""

    words: list[str]
    pieces: list[str]
    numbers: npt.NDArray[np.int64]
    word_of: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Feature:
    """One sample: a question and a window of its document, ``[CLS] question [SEP] window [SEP]``."""

    question: int
    question_length: int
    start: int
    """The window's first piece, in the document."""
    length: int

    @property
    def offset(self) -> int:
        """Where the window begins in the sample."""
        return self.question_length + 2

    @property
    def tokens(self) -> int:
        return self.question_length + MARKS + self.length


def wordpieces(vocabulary: Path) -> Tokenize:
    """Uncased WordPiece by transformers' BertTokenizer, from the file alone."""
    from transformers import BertTokenizer

    backend: Any = BertTokenizer(vocab=str(vocabulary), do_lower_case=True).backend_tokenizer

    def tokenize(text: str) -> tuple[list[str], list[int]]:
        encoded = backend.encode(text, add_special_tokens=False)
        return encoded.tokens, encoded.ids

    return tokenize


def windows(pieces: int, room: int, stride: int) -> list[tuple[int, int]]:
    """Start and length of each window over a document of so many pieces (create_squad_data.py,
    ``convert_examples_to_features``)."""
    spans: list[tuple[int, int]] = []
    start = 0
    while start < pieces:
        length = min(pieces - start, room)
        spans.append((start, length))
        if start + length == pieces:
            break

        start += min(length, stride)

    return spans


class Features:
    """The samples of a data set: create_squad_data.py's, question by question, window by window."""

    def __init__(self, squad: Squad, sequence: int) -> None:
        self.squad = squad
        self.sequence = sequence
        self.tokenize = wordpieces(squad.vocabulary)
        self.stride = round(STRIDE_SHARE * sequence)
        known: dict[str, tuple[list[str], list[int]]] = {}
        self.documents = [_document(text, self.tokenize, known) for text in squad.paragraphs]
        self.samples: list[Feature] = []
        rows: list[npt.NDArray[np.int64]] = []
        cls, sep = [SPECIAL["[CLS]"]], [SPECIAL["[SEP]"]]
        for number, question in enumerate(squad.questions):
            asked = self.tokenize(question.text)[1][:LONGEST_QUESTION]
            document = self.documents[question.paragraph]
            for start, length in windows(len(document.pieces), sequence - len(asked) - MARKS, self.stride):
                self.samples.append(
                    Feature(question=number, question_length=len(asked), start=start, length=length)
                )
                window = document.numbers[start : start + length]
                rows.append(np.concatenate((cls, asked, sep, window, sep)).astype(np.int64))

        self.lengths = np.array([len(row) for row in rows], dtype=np.int64)
        self.question_lengths = np.array([each.question_length for each in self.samples], dtype=np.int64)
        self.tokens = np.concatenate(rows)
        """All samples' token numbers, one after the other."""


def _document(text: str, tokenize: Tokenize, known: dict[str, tuple[list[str], list[int]]]) -> Document:
    words = [word for word in SPACE.split(text) if word]
    pieces: list[str] = []
    numbers: list[int] = []
    word_of: list[int] = []
    for number, word in enumerate(words):
        if word not in known:
            known[word] = tokenize(word)

        found, ids = known[word]
        pieces += found
        numbers += ids
        word_of += [number] * len(found)

    return Document(
        words=words, pieces=pieces, numbers=np.array(numbers, np.int64), word_of=np.array(word_of, np.int64)
    )


def has_most_context(spans: list[tuple[int, int]], which: int) -> npt.NDArray[np.bool_]:
    """For each piece of one window: is this the window with the most context around it?
    (create_squad_data.py, ``_check_is_max_context``; the first of equals.)"""
    start, length = spans[which]
    at = np.arange(start, start + length)
    scores = np.full((len(spans), length), -np.inf)
    for row, (first, count) in zip(scores, spans, strict=True):
        last = first + count - 1
        inside = (at >= first) & (at <= last)
        row[inside] = np.minimum(at - first, last - at)[inside] + 0.01 * count

    best: npt.NDArray[np.bool_] = scores.argmax(axis=0) == which
    return best


# ---------------------------------------------------------------------- score


class SquadLabels:
    """F1 and exact match of start and end logits, as accuracy-squad.py and evaluate_v1.1.py compute them."""

    def __init__(self, features: Features) -> None:
        self._features = features
        self.sample_count = len(features.samples)

    def score(self, answers: Mapping[int, bytes]) -> Score:
        """F1 in % of the answers, each float32 [sequence, 2]: start and end logits.

        Raises:
            WorkloadError: answers are missing or of another size.
        """
        predicted = self.texts(answers)
        questions = self._features.squad.questions
        f1 = exact = 0.0
        for question, text in zip(questions, predicted, strict=True):
            f1 += max(overlap(text, answer) for answer in question.answers)
            exact += max(normalized(text) == normalized(answer) for answer in question.answers)

        return Score(
            metric="F1",
            value=100 * f1 / len(questions),
            unit="%",
            samples=self.sample_count,
            details={"exact_match": 100 * exact / len(questions), "questions": float(len(questions))},
        )

    def texts(self, answers: Mapping[int, bytes]) -> list[str]:
        """The answer to each question, in the words of its paragraph (``write_predictions``)."""
        features = self._features
        size = features.sequence * 2 * np.dtype(np.float32).itemsize
        what = f"start and end logits of {features.sequence} tokens in float32"
        given = [
            of_size(answer, index, size, what)
            for index, answer in enumerate(in_order(answers, self.sample_count))
        ]
        of_question: dict[int, list[int]] = {}
        for index, sample in enumerate(features.samples):
            of_question.setdefault(sample.question, []).append(index)

        return [
            self._text(of_question.get(number, []), given) for number in range(len(features.squad.questions))
        ]

    def _text(self, samples: list[int], given: list[bytes]) -> str:
        features = self._features
        spans = [(features.samples[index].start, features.samples[index].length) for index in samples]
        best, found = -np.inf, None
        for which, index in enumerate(samples):
            logits = np.frombuffer(given[index], dtype=np.float32).reshape(-1, 2)
            context = has_most_context(spans, which)
            score, start, end = best_span(logits, features.samples[index].offset, context)
            if score > best:
                first = features.samples[index].start - features.samples[index].offset
                best, found = score, (first + start, first + end)

        if found is None:
            return NO_ANSWER

        question = features.squad.questions[features.samples[samples[0]].question]
        document = features.documents[question.paragraph]
        start, end = found
        pieces = " ".join(document.pieces[start : end + 1]).replace(" ##", "").replace("##", "")
        words = " ".join(document.words[document.word_of[start] : document.word_of[end] + 1])
        return projected(" ".join(pieces.split()), words, features.tokenize)


def best_span(
    logits: npt.NDArray[np.float32], offset: int, most_context: npt.NDArray[np.bool_]
) -> tuple[float, int, int]:
    """The likeliest allowed answer among the 20 best starts and the 20 best ends: score, start and end in the
    sample; a score of -inf if none is allowed. Not-a-numbers count as least likely."""
    known = np.where(np.isnan(logits), -np.inf, logits).astype(np.float64)
    starts, ends = (np.argsort(-known[:, side], kind="stable")[:BEST] for side in (0, 1))
    may_start = np.zeros(len(known), dtype=bool)
    may_start[offset : offset + len(most_context)] = most_context
    may_end = np.zeros(len(known), dtype=bool)
    may_end[offset : offset + len(most_context)] = True
    length = ends[None] - starts[:, None] + 1
    allowed = may_start[starts][:, None] & may_end[ends][None] & (length >= 1) & (length <= LONGEST_ANSWER)
    score = np.where(allowed, known[starts, 0][:, None] + known[ends, 1][None], -np.inf)
    row, column = np.unravel_index(int(score.argmax()), score.shape)
    return float(score[row, column]), int(starts[row]), int(ends[column])


def projected(pieces: str, words: str, tokenize: Tokenize) -> str:
    """The part of ``words`` that the pieces are of (accuracy-squad.py, ``get_final_text``).

    As there, with WordPieces, ``##`` and all: words that are split keep everything around the answer.
    """
    tokens = " ".join(tokenize(words)[0])
    at = tokens.find(pieces)
    in_words = [index for index, char in enumerate(words) if char != " "]
    in_tokens = {
        index: order for order, index in enumerate(i for i, char in enumerate(tokens) if char != " ")
    }
    if at == -1 or len(in_words) != len(in_tokens):
        return words

    first, last = in_tokens.get(at), in_tokens.get(at + len(pieces) - 1)
    if first is None or last is None:
        return words

    return words[in_words[first] : in_words[last] + 1]


def normalized(text: str) -> str:
    """Lower case, without punctuation, articles and double spaces (evaluate_v1.1.py, ``normalize_answer``)."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def overlap(predicted: str, answer: str) -> float:
    """F1 of the words of two texts (evaluate_v1.1.py, ``f1_score``)."""
    ours, theirs = normalized(predicted).split(), normalized(answer).split()
    same = (Counter(ours) & Counter(theirs)).total()
    if same == 0:
        return 0.0

    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)
