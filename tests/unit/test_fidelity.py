"""How near answers are to a reference: by hand, at the ends of the scale, and for answers that are broken."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads import catalog, fidelity
from workloads.fidelity import Compare, Fidelity
from workloads.librispeech import VOCABULARY
from workloads.protocol import WorkloadError, WorkloadOptions
from workloads.quality import comparison_of

Array = npt.NDArray[Any]
OPTIONS = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=1, seed=1, threads=1, memory_mib=1024
)
SEVEN: dict[str, Compare] = {
    "3d-unet": fidelity.mean_dice,
    "bert": fidelity.span_f1,
    "dlrm": fidelity.rank_auc,
    "resnet50": fidelity.top1_agreement,
    "rnnt": fidelity.symbol_agreement,
    "ssd-mobilenet": fidelity.box_f1,
    "ssd-resnet34": fidelity.box_f1,
}


def compared(compare: Compare, answers: list[Array], references: list[Array]) -> Fidelity:
    return compare(
        (answer.tobytes(), reference) for answer, reference in zip(answers, references, strict=True)
    )


def boxes(*rows: tuple[float, ...]) -> Array:
    """Rows of score, label, ymin, xmin, ymax, xmax, as MLPerf orders them."""
    table = [(0.0, *box, score, label) for score, label, *box in rows]
    return np.array(table, dtype=np.float32).reshape(-1, 7)


def span(start: int, end: int, length: int = 40) -> Array:
    logits = np.zeros((length + 3, 2), dtype=np.float32)
    logits[length:] = -10_000.0
    logits[start, 0] = logits[end, 1] = 5.0
    return logits


def text(words: str) -> Array:
    return np.array([VOCABULARY.index(letter) for letter in words], dtype=np.int64)


def examples(name: str) -> list[Array]:
    """Two answers as the workload gives them."""
    random = np.random.default_rng(5)
    return {
        "resnet50": [np.int64([3]), np.int64([7])],
        "ssd-resnet34": [boxes((0.9, 1, 0.1, 0.1, 0.5, 0.5)), boxes((0.8, 2, 0.0, 0.0, 1.0, 0.2))],
        "ssd-mobilenet": [boxes((0.9, 1, 0.1, 0.1, 0.5, 0.5)), boxes()],
        "bert": [span(3, 9), span(20, 20)],
        "dlrm": [random.random(100, dtype=np.float32), random.random(270, dtype=np.float32)],
        "3d-unet": [random.integers(0, 3, (4, 4, 4), dtype=np.uint8), np.zeros((4, 4, 4), np.uint8)],
        "rnnt": [text("to be or not"), text("")],
    }[name]


@pytest.mark.parametrize("name", SEVEN)
def test_the_reference_itself_is_100_percent(name: str):
    found = compared(SEVEN[name], examples(name), examples(name))
    assert (found.value, found.samples) == (100.0, 2)


@pytest.mark.parametrize("compare", [*SEVEN.values(), fidelity.by_kind, fidelity.close_values])
def test_where_there_is_nothing_to_compare_the_value_is_0(compare: Compare):
    assert compare([]).value == 0.0


@pytest.mark.parametrize("name", ["ssd-resnet34", "3d-unet", "rnnt"])
def test_answers_without_content_prove_nothing(name: str):
    empty = {"ssd-resnet34": boxes(), "3d-unet": np.zeros((4, 4, 4), np.uint8), "rnnt": text("")}[name]
    assert compared(SEVEN[name], [empty], [empty]).value == 0.0


@pytest.mark.parametrize("name", ["bert", "dlrm", "3d-unet", "ssd-resnet34"])
def test_answers_of_another_size_are_refused(name: str):
    answer, reference = examples(name)[0].tobytes()[:-1], examples(name)[0]
    with pytest.raises(WorkloadError, match="bytes"):
        SEVEN[name]([(answer, reference)])


@pytest.mark.parametrize("name", SEVEN)
def test_each_workload_is_compared_in_its_own_terms(name: str):
    assert comparison_of(catalog.build(name, OPTIONS)) is SEVEN[name]


@pytest.mark.parametrize("name", ["null", "matmul"])
def test_a_workload_without_its_own_terms_is_compared_by_the_kind_of_its_numbers(name: str):
    assert comparison_of(catalog.build(name, OPTIONS)) is fidelity.by_kind


def test_labels_agree_or_do_not():
    found = compared(fidelity.top1_agreement, [np.int64([1]), np.int64([2])], [np.int64([1]), np.int64([9])])
    assert (found.metric, found.value, found.details) == (
        "top-1 agreement",
        50.0,
        {"wholly_equal": 1.0, "reference_labels": 2.0},
    )


# ---------------------------------------------------------------------- boxes

LEFT = (0.9, 1, 0.0, 0.0, 1.0, 0.5)


def test_a_box_is_matched_at_half_overlap_and_in_its_class_alone():
    half = (0.9, 1, 0.0, 0.0, 1.0, 0.25)  # IoU 0.5 exactly
    less = (0.9, 1, 0.0, 0.0, 1.0, 0.24)
    other = (0.9, 2, 0.0, 0.0, 1.0, 0.5)
    values = [compared(fidelity.box_f1, [boxes(one)], [boxes(LEFT)]).value for one in (half, less, other)]
    assert values == [100.0, 0.0, 0.0]


def test_a_box_is_found_once_and_the_best_one_finds_it():
    near = (0.5, 1, 0.0, 0.0, 1.0, 0.4)
    found = compared(fidelity.box_f1, [boxes(near, LEFT)], [boxes(LEFT)])
    assert found.value == pytest.approx(100 * 2 / 3)
    assert found.details["mean_iou_of_matched"] == 1.0


def test_boxes_too_many_and_too_few_both_count():
    far = (0.5, 1, 0.0, 0.6, 1.0, 1.0)
    assert compared(fidelity.box_f1, [boxes(LEFT, far)], [boxes(LEFT)]).value == pytest.approx(200 / 3)
    assert compared(fidelity.box_f1, [boxes(LEFT)], [boxes(LEFT, far)]).value == pytest.approx(200 / 3)


# ---------------------------------------------------------------------- spans


def test_spans_overlap_by_tokens():
    found = compared(fidelity.span_f1, [span(3, 6), span(3, 6)], [span(5, 8), span(10, 12)])
    assert found.value == pytest.approx(100 * (2 * 2 / 8 + 0) / 2)
    assert found.details["span_agreement_percent"] == 0.0


def test_the_likeliest_span_by_trying_all():
    logits = np.random.default_rng(8).standard_normal((50, 2)).astype(np.float32)
    tried = {
        (start, end): float(logits[start, 0]) + float(logits[end, 1])
        for start in range(50)
        for end in range(start, min(50, start + fidelity.LONGEST_SPAN))
    }
    assert fidelity.best_span(logits) == max(tried, key=tried.__getitem__)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
@pytest.mark.parametrize("in_reference", [False, True])
def test_a_span_of_logits_that_are_not_finite_is_no_answer(broken: float, in_reference: bool):
    whole, spoilt = span(3, 6), span(3, 6)
    spoilt[4] = broken
    answer, reference = (whole, spoilt) if in_reference else (spoilt, whole)
    found = compared(fidelity.span_f1, [answer, whole], [reference, whole])
    assert found.value == found.details["span_agreement_percent"] == 50.0
    assert found.details["values_not_finite"] == 2.0
    assert np.isfinite(list(found.details.values())).all()


@pytest.mark.parametrize("name", ["bert", "dlrm", "close values"])
def test_two_that_are_not_numbers_do_not_agree(name: str):
    nothing = {"bert": np.full((50, 2), np.nan, np.float32)}.get(name, np.full(50, np.nan, np.float32))
    compare = SEVEN.get(name, fidelity.close_values)
    found = compared(compare, [nothing], [nothing])
    assert found.value == 0.0
    assert np.isfinite(list(found.details.values())).all()


def test_padding_is_not_in_the_errors_of_logits():
    answer = span(3, 6)
    answer[:40] *= 1.01
    answer[40:] = -20_000.0
    details = compared(fidelity.span_f1, [answer], [span(3, 6)]).details
    assert details["max_relative_error"] == pytest.approx(0.01, rel=1e-4)
    assert details["mean_relative_error"] == pytest.approx(0.01, rel=1e-4)


# ---------------------------------------------------------------------- probabilities, volumes, symbols


def test_ranks_matter_and_scale_does_not():
    reference = np.linspace(0.1, 0.9, 100, dtype=np.float32)
    halved, turned = reference / 2, np.ascontiguousarray(reference[::-1])
    assert compared(fidelity.rank_auc, [halved], [reference]).value == 100.0
    assert compared(fidelity.rank_auc, [turned], [reference]).value == 0.0
    assert compared(fidelity.rank_auc, [halved], [reference]).details["mean_relative_error"] == pytest.approx(
        0.5
    )


@pytest.mark.parametrize("half", [slice(50, 100), slice(0, 50)], ids=["positive", "negative"])
@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_ranked_wrong(half: slice, broken: float):
    reference = np.linspace(0, 1, 100, dtype=np.float32)
    answer = reference.copy()
    answer[half] = broken
    found = compared(fidelity.rank_auc, [answer], [reference])
    assert (found.value, found.details["values_not_finite"]) == (0.0, 50.0)


def test_one_probability_for_all_is_no_fidelity():
    reference = np.linspace(0.1, 0.9, 100, dtype=np.float32)
    assert compared(fidelity.rank_auc, [np.full_like(reference, 0.5)], [reference]).value == 50.0
    assert compared(fidelity.rank_auc, [reference], [np.full_like(reference, 0.5)]).value == 0.0


def test_dice_is_of_the_foreground_each_class_alike():
    reference = np.array([0, 1, 1, 1, 1, 2], dtype=np.uint8).reshape(1, 2, 3)
    answer = np.array([0, 0, 1, 1, 1, 2], dtype=np.uint8).reshape(1, 2, 3)
    found = compared(fidelity.mean_dice, [answer], [reference])
    assert found.value == pytest.approx(100 * (6 / 7 + 1) / 2)
    assert found.details["voxel_agreement_percent"] == pytest.approx(100 * 5 / 6)


def test_symbols_are_compared_up_to_the_first_that_differs_and_edits_told_beside():
    found = compared(
        fidelity.symbol_agreement, [text("to be or knot"), text("to")], [text("to be or not"), text("to")]
    )
    assert found.value == pytest.approx(100 * (9 + 2) / (10 + 2))  # of "to be or k"
    assert found.details["1-CER_percent"] == pytest.approx(100 * (1 - 1 / 14))
    assert found.details["1-WER_percent"] == 80.0
    assert (found.details["symbols"], found.details["equal_texts"]) == (12, 1)


@given(same=st.text("ab", max_size=9), one=st.text("ab", max_size=9), other=st.text("ab", max_size=9))
def test_a_text_agrees_as_far_as_it_is_the_references(same: str, one: str, other: str):
    one, other = same + one, same + other
    choices, turned = fidelity.Choices(), fidelity.Choices()
    choices.add(text(one), text(other))
    turned.add(text(other), text(one))
    alike = 0
    while one[alike : alike + 1] == other[alike : alike + 1] != "":
        alike += 1

    merely_longer = alike == min(len(one), len(other))
    chosen = max(len(one), len(other)) if merely_longer else alike + 1
    assert choices.percent == turned.percent == (pytest.approx(100 * alike / chosen) if chosen else 0)


@pytest.mark.parametrize("wrong", ["to be or not to be"[:9], "", "to be or not to be" * 2])
def test_a_text_cut_short_or_given_twice_lacks_all_that_is_missing(wrong: str):
    """One in ten of them is enough to fall short of 99 %."""
    right = text("to be or not to be")
    found = compared(fidelity.symbol_agreement, [text(wrong), *[right] * 9], [right] * 10)
    assert found.value < 96


# ---------------------------------------------------------------------- any other workload


def test_whole_numbers_are_equal_or_not():
    found = compared(
        fidelity.by_kind, [np.int32([1, 2]), np.int32([3, 4])], [np.int32([1, 2]), np.int32([3, 5])]
    )
    assert (found.metric, found.value, found.details) == ("equal answers", 75.0, {"wholly_equal": 1.0})


def test_real_numbers_are_close_or_not():
    reference = np.array([1.0, -3.0], dtype=np.float32)
    found = compared(fidelity.by_kind, [reference * np.float32(1.5)], [reference])
    assert (found.metric, found.value) == ("closeness", 50.0)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_no_answer(broken: float):
    reference = np.ones(1000, dtype=np.float32)
    answer = reference.copy()
    answer[5] = broken
    found = compared(fidelity.by_kind, [answer, reference], [reference, reference])
    assert found.value == 50.0
    assert found.details["values_not_finite"] == 1.0
    assert np.isfinite(found.details["max_relative_error"])
    assert compared(fidelity.by_kind, [reference, reference], [answer, reference]).value == 50.0
