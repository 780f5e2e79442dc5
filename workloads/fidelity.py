"""Fidelity: how near a workload's answers are to those of the same weights in fp32, in the terms of its task.

100 % is the reference itself. It is not accuracy: nothing here knows what is right. Pure: answers as LoadGen
logs them (bytes), references as ``Workload.reference`` gives them (arrays), pair by pair, so that no more
than one sample need be in memory. Imports neither torch nor LoadGen.

Where there is nothing to compare (no box in any picture, no symbol, no foreground) the value is 0: of such
answers no fidelity can be told.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from workloads.criteo import area_under_curve
from workloads.librispeech import spelled, word_errors
from workloads.protocol import WorkloadError

Reference = npt.NDArray[Any]
Pair = tuple[bytes, Reference]
"""One sample: its answer, and the reference's."""

IOU = 0.5
"""From which on two boxes of one class are the same object: PASCAL VOC's, and the lowest of COCO's."""

LABEL, BOX, SCORE = 6, slice(1, 5), 5
"""Columns of a detection: sample index, ymin, xmin, ymax, xmax, score, label (MLPerf's rows)."""

LONGEST_SPAN = 30
"""Tokens of an answer: SQuAD's ``max_answer_length`` in MLPerf's reference."""

NO_ANSWER = -9_000.0
"""Logits below it are of padding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How near the answers are to the reference's."""

    metric: str
    """``top-1 agreement``, ``box F1``, ``span F1``, ``rank AUC``, ``mean DICE``, ``symbol agreement``,
    ``token agreement``, ``equal answers`` or ``closeness``."""
    value: float
    """In %, so that it is held against 99 % and 99.9 %."""
    samples: int
    details: dict[str, float] = field(default_factory=dict)


Compare = Callable[[Iterable[Pair]], Fidelity]
"""What a workload has as ``fidelity``; one that has none is compared by the kind of its numbers."""


def by_kind(pairs: Iterable[Pair]) -> Fidelity:
    """Whole numbers must be equal; real ones close.

    Raises:
        WorkloadError: an answer has not the reference's size.
    """
    there = iter(pairs)
    first = next(there, None)
    if first is None:
        return Fidelity(metric="equal answers", value=0.0, samples=0)

    whole = first[1].dtype.kind in "iub"
    return (equal_answers if whole else close_values)(chain([first], there))


def equal_answers(pairs: Iterable[Pair]) -> Fidelity:
    """The share of whole numbers that are equal, place by place, its mean over the samples."""
    shares: list[float] = []
    for number, (answer, reference) in enumerate(pairs):
        same = _numbers(answer, reference, number) == reference.ravel()
        shares.append(float(same.mean()) if len(same) else 1.0)

    return Fidelity(
        metric="equal answers",
        value=_percent(sum(shares), len(shares)),
        samples=len(shares),
        details={"wholly_equal": float(sum(share == 1 for share in shares))},
    )


def top1_agreement(pairs: Iterable[Pair]) -> Fidelity:
    """The share of pictures given the reference's label; an answer is one int64. ``reference_labels``: how many
    labels the reference gives; where it is one, agreement tells little."""
    labels: set[int] = set()

    def noting() -> Iterable[Pair]:
        for answer, reference in pairs:
            labels.update(reference.ravel().tolist())
            yield answer, reference

    found = equal_answers(noting())  # of one number each
    return Fidelity(
        metric="top-1 agreement",
        value=found.value,
        samples=found.samples,
        details={**found.details, "reference_labels": float(len(labels))},
    )


def close_values(pairs: Iterable[Pair]) -> Fidelity:
    """100 % less the mean relative error of the samples; a sample with a value that is not finite, its own or the
    reference's, counts 0.

    A sample's error is the sum of its differences over the sum of the reference's magnitudes, at most 1.
    """
    errors = _Errors()
    shares: list[float] = []
    for number, (answer, reference) in enumerate(pairs):
        given = _numbers(answer, reference, number)
        error = errors.add(given, reference)
        shares.append(1 - min(1.0, error) if _are_finite(given, reference) else 0.0)

    return Fidelity(
        metric="closeness",
        value=_percent(sum(shares), len(shares)),
        samples=len(shares),
        details=errors.told(),
    )


def box_f1(pairs: Iterable[Pair]) -> Fidelity:
    """F1 of boxes: a box is found where the reference has one of the same class with an IoU of 0.5 or more,
    each once, the best first; over all samples together.

    An answer is float32 rows of seven, as MLPerf logs detections.
    """
    matched = given = wanted = samples = 0
    overlaps: list[float] = []
    for number, (answer, reference) in enumerate(pairs):
        if len(answer) % (4 * reference.shape[1]):
            raise WorkloadError(
                f"answer {number} has {len(answer)} bytes, no whole rows of {reference.shape[1]} float32"
            )

        rows = np.frombuffer(answer, dtype=np.float32).reshape(-1, reference.shape[1])
        found = _matches(rows, reference)
        overlaps += found
        matched, given, wanted = matched + len(found), given + len(rows), wanted + len(reference)
        samples += 1

    return Fidelity(
        metric="box F1",
        value=_percent(2 * matched, given + wanted),
        samples=samples,
        details={
            "boxes": float(given),
            "reference_boxes": float(wanted),
            "matched": float(matched),
            "mean_iou_of_matched": float(np.mean(overlaps)) if overlaps else 0.0,
        },
    )


def span_f1(pairs: Iterable[Pair]) -> Fidelity:
    """F1 of the tokens of the likeliest span, as SQuAD's F1 is of its words; mean over the samples. A sample with a
    value that is not finite, its own or the reference's, counts 0.

    An answer is float32 [sequence, 2]: start and end logits, padding below -9000.
    """
    errors = _Errors()
    overlaps: list[float] = []
    same = 0
    for number, (answer, reference) in enumerate(pairs):
        given = _numbers(answer, reference, number).reshape(reference.shape)
        found, wanted = best_span(given), best_span(reference)
        common = min(found[1], wanted[1]) - max(found[0], wanted[0]) + 1
        lengths = found[1] - found[0] + wanted[1] - wanted[0] + 2
        real = ~(reference <= NO_ANSWER)  # what is not a number is no padding
        finite = _are_finite(given[real], reference[real])
        overlaps.append(2 * max(0, common) / lengths if finite else 0.0)
        same += finite and found == wanted
        errors.add(given[real], reference[real])

    return Fidelity(
        metric="span F1",
        value=_percent(sum(overlaps), len(overlaps)),
        samples=len(overlaps),
        details={"span_agreement_percent": _percent(same, len(overlaps)), **errors.told()},
    )


def best_span(logits: Reference) -> tuple[int, int]:
    """First and last token of the likeliest span of at most 30; not-a-numbers are least likely."""
    known = np.where(np.isnan(logits), -np.inf, logits.astype(np.float64))
    starts, ends = known[:, 0], known[:, 1]
    best, span = -np.inf, (0, 0)
    for longer in range(min(LONGEST_SPAN, len(known))):
        scores = starts[: len(known) - longer] + ends[longer:]
        at = int(scores.argmax())
        if scores[at] > best:
            best, span = float(scores[at]), (at, at + longer)

    return span


def rank_auc(pairs: Iterable[Pair]) -> Fidelity:
    """The area under the ROC curve of the answers, where the reference's upper half is what is positive; one that is
    not finite is ranked as wrong as can be.

    An answer is float32 probabilities, one for each of its user-item pairs.
    """
    errors = _Errors()
    given: list[npt.NDArray[np.float32]] = []
    wanted: list[Reference] = []
    for number, (answer, reference) in enumerate(pairs):
        given.append(_numbers(answer, reference, number))
        wanted.append(reference)
        errors.add(given[-1], reference)

    rated = np.concatenate([np.empty(0, np.float32), *given])
    ranks = np.concatenate([np.empty(0, np.float32), *wanted])
    positive = ranks > np.median(ranks) if len(ranks) else np.empty(0, np.bool_)
    rated = np.where(np.isfinite(rated), rated, np.where(positive, -np.inf, np.inf))
    told = 100 * area_under_curve(rated, positive) if positive.any() else 0.0
    return Fidelity(
        metric="rank AUC",
        value=told,
        samples=len(given),
        details={"pairs": float(len(ranks)), **errors.told()},
    )


def mean_dice(pairs: Iterable[Pair]) -> Fidelity:
    """DICE of each class that is not the background, its mean over the classes of a case, and over the cases.

    An answer is a uint8 class a voxel. A case in which neither has any foreground is left out.
    """
    shares: list[float] = []
    samples = same = voxels = 0
    for number, (answer, reference) in enumerate(pairs):
        given, wanted = _numbers(answer, reference, number), reference.ravel()
        samples, voxels = samples + 1, voxels + len(wanted)
        same += int((given == wanted).sum())
        classes = sorted({*np.unique(given).tolist(), *np.unique(wanted).tolist()} - {0})
        if classes:
            shares.append(float(np.mean([_dice(given == one, wanted == one) for one in classes])))

    return Fidelity(
        metric="mean DICE",
        value=_percent(sum(shares), len(shares)),
        samples=samples,
        details={
            "voxel_agreement_percent": _percent(same, voxels),
            "cases_with_foreground": float(len(shares)),
        },
    )


class Choices:
    """Symbols of texts that are equal, of those that were chosen after the same text.

    Where each symbol follows from those before it, one that differs gives what comes after it another beginning: that
    is not compared. Where a text merely ends before the other, all that it lacks differs.
    """

    def __init__(self) -> None:
        self._equal = self._chosen = self._texts = 0
        self.samples = 0

    def add(self, given: npt.NDArray[Any], reference: Reference) -> None:
        """One text, and the reference's."""
        shared = min(len(given), len(reference))
        differing = np.flatnonzero(given[:shared] != reference[:shared])
        equal = int(differing[0]) if len(differing) else shared
        self._equal += equal
        self._chosen += equal + 1 if equal < shared else max(len(given), len(reference))
        self._texts += equal == len(given) == len(reference)
        self.samples += 1

    @property
    def percent(self) -> float:
        """That are equal; 0 where nothing was chosen."""
        return 100 * self._equal / self._chosen if self._chosen else 0.0

    def told(self, what: str) -> dict[str, float]:
        """How many of ``what`` were chosen after the same text, how many are equal, and texts that wholly are."""
        return {
            what: float(self._chosen),
            "equal": float(self._equal),
            "equal_texts": float(self._texts),
        }


def symbol_agreement(pairs: Iterable[Pair]) -> Fidelity:
    """`Choices` of symbols; beside it 1 less the edits over the reference's symbols (1-CER), and that of words.

    An answer is int64 symbols of librispeech.VOCABULARY. With random weights, after a symbol that differs the texts go
    on apart, some twelve edits each (full size, 96 utterances, weights rounded to fp16), which tell of the weights.
    """
    choices = Choices()
    edits = symbols = word_edits = words = 0
    for number, (answer, reference) in enumerate(pairs):
        heard, said = spelled(answer, number), spelled(reference.tobytes(), number)
        choices.add(np.frombuffer(answer, np.int64), reference)
        symbols, words = symbols + len(said), words + len(said.split())
        if heard != said:
            edits += word_errors(heard, said)
            word_edits += word_errors(heard.split(), said.split())

    return Fidelity(
        metric="symbol agreement",
        value=choices.percent,
        samples=choices.samples,
        details={
            **choices.told("symbols"),
            "1-CER_percent": 100 * (1 - edits / symbols) if symbols else 0.0,
            "1-WER_percent": 100 * (1 - word_edits / words) if words else 0.0,
        },
    )


class _Errors:
    """Relative errors of real numbers, sample by sample."""

    def __init__(self) -> None:
        self._largest = self._sum = 0.0
        self._samples = self._not_finite = 0

    def add(self, given: npt.NDArray[Any], reference: Reference) -> float:
        """The sample's error: the sum of its differences over the sum of the reference's magnitudes, where a
        value that is not finite stands for 0."""
        known, wanted = (
            np.nan_to_num(one.ravel().astype(np.float64), nan=0, posinf=0, neginf=0)
            for one in (given, reference)
        )
        self._not_finite += int((~(np.isfinite(given.ravel()) & np.isfinite(reference.ravel()))).sum())
        apart = np.abs(known - wanted)
        total, top = float(np.abs(wanted).sum()), float(np.abs(wanted).max(initial=0.0))
        error = float(apart.sum()) / total if total else float(apart.any())
        self._largest = max(self._largest, float(apart.max(initial=0.0)) / top if top else error)
        self._sum += error
        self._samples += 1
        return error

    def told(self) -> dict[str, float]:
        """``max``: the largest difference of a sample over its largest magnitude; ``mean``: of the samples'."""
        return {
            "max_relative_error": self._largest,
            "mean_relative_error": self._sum / self._samples if self._samples else 0.0,
            "values_not_finite": float(self._not_finite),
        }


def _numbers(answer: bytes, reference: Reference, number: int) -> npt.NDArray[Any]:
    if len(answer) != reference.nbytes:
        raise WorkloadError(
            f"answer {number} has {len(answer)} bytes, and the reference {reference.nbytes}: {reference.dtype} "
            f"{list(reference.shape)}"
        )

    return np.frombuffer(answer, dtype=reference.dtype)


def _are_finite(given: npt.NDArray[Any], reference: Reference) -> bool:
    return bool(np.isfinite(given).all() and np.isfinite(reference).all())


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0


def _dice(found: npt.NDArray[np.bool_], wanted: npt.NDArray[np.bool_]) -> float:
    return 2 * int((found & wanted).sum()) / (int(found.sum()) + int(wanted.sum()))


def _matches(rows: Reference, wanted: Reference) -> list[float]:
    """The IoU of each box of ``rows`` with the one of ``wanted`` that it is matched to."""
    found: list[float] = []
    for label in np.unique(wanted[:, LABEL]):
        ours, theirs = rows[rows[:, LABEL] == label], wanted[wanted[:, LABEL] == label]
        overlaps = _overlaps(ours[np.argsort(-ours[:, SCORE], kind="stable"), BOX], theirs[:, BOX])
        for row in overlaps:
            if row[at := int(row.argmax())] >= IOU:
                found.append(float(row[at]))
                overlaps[:, at] = -1.0

    return found


def _overlaps(ours: Reference, theirs: Reference) -> npt.NDArray[np.float64]:
    """IoU of each with each, float64 [ours, theirs]; boxes are ymin, xmin, ymax, xmax."""
    one, other = ours.astype(np.float64)[:, None], theirs.astype(np.float64)[None]
    corner, end = np.maximum(one[..., :2], other[..., :2]), np.minimum(one[..., 2:], other[..., 2:])
    common = np.clip(end - corner, 0, None).prod(axis=-1)
    areas = (one[..., 2:] - one[..., :2]).prod(axis=-1) + (other[..., 2:] - other[..., :2]).prod(axis=-1)
    shares: npt.NDArray[np.float64] = common / np.maximum(areas - common, 1e-12)
    return shares
