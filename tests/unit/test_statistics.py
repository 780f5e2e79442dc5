"""The words hold what they say: seldom wrong of equal things, nearly always right of a true 5 %."""

import random
from math import exp, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler import statistics
from scheduler.statistics import REPEATS, compare, interval, t_quantile

SEEDS = 300


def pairs(seed: int, ratio: float, noise: float, count: int = REPEATS) -> tuple[list[float], list[float]]:
    """Throughputs of alternating runs of a machine that slows down by 0.1 % from run to run."""
    draw, true = random.Random(seed), 1000.0
    before, after = [], []
    for at in range(count):
        drift = exp(-0.002 * at)
        before.append(true * drift * exp(draw.gauss(0, noise)))
        after.append(true * drift * ratio * exp(draw.gauss(0, noise)))

    return before, after


def told(ratio: float, noise: float, count: int = REPEATS, seeds: int = SEEDS) -> dict[str, float]:
    """How often each decision is made."""
    said = [compare(*pairs(seed, ratio, noise, count)).decision for seed in range(seeds)]
    return {one: said.count(one) / seeds for one in set(said)}


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch):
    """The bootstrap decides nothing; these tests are about the decisions."""
    monkeypatch.setattr(statistics, "RESAMPLES", 100)


# The two-sided 95 % and 99 % points of Student's t, from the printed tables.
@pytest.mark.parametrize(
    ("confidence", "degrees", "t"),
    [
        *((0.95, 1, 12.706), (0.95, 2, 4.303), (0.95, 4, 2.776), (0.95, 10, 2.228), (0.95, 120, 1.980)),
        *((0.99, 1, 63.657), (0.99, 3, 5.841), (0.99, 7, 3.499), (0.99, 30, 2.750)),
    ],
)
def test_t_is_the_tables(confidence: float, degrees: int, t: float):
    assert t_quantile(confidence, degrees) == pytest.approx(t, abs=5e-4)


@pytest.mark.parametrize("noise", [0.0025, 0.005])
def test_equal_things_have_no_difference_in_19_of_20(noise: float):
    assert told(1.0, noise)["no difference found"] >= 0.97


@pytest.mark.parametrize("noise", [0.0025, 0.005, 0.01])
@pytest.mark.parametrize("ratio", [0.95, 1 / 0.95])
def test_a_true_5_percent_is_found_in_19_of_20(ratio: float, noise: float):
    assert told(ratio, noise)["difference"] >= 0.99


def test_noisy_runs_of_equal_things_are_called_noisy_and_seldom_different():
    said = told(1.0, 0.02)
    assert said["too noisy to tell"] >= 0.9
    assert said.get("difference", 0) <= 0.03


def test_more_repeats_decide_what_was_too_noisy():
    assert told(1.0, 0.01, REPEATS).get("no difference found", 0) < 0.7
    assert told(1.0, 0.01, 2 * REPEATS)["no difference found"] >= 0.95


@pytest.mark.parametrize("count", [3, 5, 8, 12])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_the_interval_holds_the_truth_as_often_as_it_says(count: int, confidence: float):
    draw = random.Random(count)
    held = 0
    for _ in range(3000):
        found = interval([draw.gauss(1.0, 0.3) for _ in range(count)], confidence)
        assert found is not None
        held += found[0] <= 1.0 <= found[1]

    assert held / 3000 == pytest.approx(confidence, abs=0.02)  # 3.6 standard errors of 3000 draws


def test_the_repeats_it_asks_for_are_about_enough():
    asked = [compare(*pairs(seed, 1.0, 0.01)) for seed in range(200)]
    again = [
        compare(*pairs(seed, 1.0, 0.01, one.pairs + one.repeat_more)).decision
        for seed, one in enumerate(asked)
        if one.repeat_more is not None
    ]
    assert len(again) > 50
    assert again.count("too noisy to tell") <= 0.5 * len(again)


def test_one_pair_tells_nothing():
    one = compare([100.0], [90.0])
    assert (one.interval, one.spread, one.bootstrap) == (None, None, None)
    assert one.words == f"too noisy to tell (repeat {REPEATS - 1} more)"


def test_what_scatters_wildly_is_beyond_repeating():
    wild = compare([1.0, 50.0, 1.0, 50.0], [50.0, 1.0, 50.0, 1.0], margin=0.001)
    assert wild.words == "too noisy to tell (repeat over 1000 more)"


@pytest.mark.parametrize(
    ("before", "after"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0]), ([1.0, 2.0], [1.0, -1.0])]
)
def test_what_has_no_ratio_is_refused(before: list[float], after: list[float]):
    with pytest.raises(ValueError, match=r"pairs|above 0"):
        compare(before, after)


figures = st.floats(min_value=0.01, max_value=1e6)
paired = st.lists(st.tuples(figures, figures), min_size=2, max_size=12)


@settings(max_examples=50)
@given(paired)
def test_the_interval_holds_the_ratio_and_the_decision_follows_from_it(measured: list[tuple[float, float]]):
    found = compare(*([list(side) for side in zip(*measured, strict=True)]))
    assert found.interval is not None
    low, high = found.interval
    assert low <= found.ratio * (1 + 1e-9)
    assert found.ratio <= high * (1 + 1e-9)
    assert (found.decision == "difference") == (not low <= 1 <= high)
    if found.decision == "no difference found":
        assert 1 - found.margin - 1e-12 <= low <= high <= 1 + found.margin + 1e-12


@settings(max_examples=50)
@given(paired)
def test_the_other_way_round_says_the_same(measured: list[tuple[float, float]]):
    before, after = ([*side] for side in zip(*measured, strict=True))
    one, other = compare(before, after), compare(after, before)
    assert log(one.ratio) == pytest.approx(-log(other.ratio), abs=1e-9)
    assert (one.decision == "difference") == (other.decision == "difference")


def test_the_bootstrap_is_the_same_each_time_and_narrower():
    found = compare(*pairs(1, 0.97, 0.01))
    assert found.bootstrap == compare(*pairs(1, 0.97, 0.01)).bootstrap
    assert found.bootstrap is not None
    assert found.interval is not None
    assert found.interval[0] < found.bootstrap[0] < found.ratio < found.bootstrap[1] < found.interval[1]
