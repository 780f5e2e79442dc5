"""The arrivals of an open loop: a Poisson process, decided beforehand."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.arrivals import poisson

RATES = st.floats(min_value=0.1, max_value=5000)
SEEDS = st.integers(min_value=0, max_value=2**32 - 1)


@given(RATES, st.floats(min_value=0.01, max_value=2), SEEDS)
def test_arrivals_rise_and_end_in_time_and_are_the_seeds(rate: float, seconds: float, seed: int):
    times = list(poisson(rate, seconds, seed))
    assert all(earlier <= later for earlier, later in pairwise([0.0, *times]))
    assert all(at_s < seconds for at_s in times)
    assert times == list(poisson(rate, seconds, seed))


@given(RATES, SEEDS)
def test_a_longer_schedule_begins_as_the_shorter(rate: float, seed: int):
    shorter = list(poisson(rate, 0.2, seed))
    assert list(poisson(rate, 0.4, seed))[: len(shorter)] == shorter


@given(st.floats(min_value=10, max_value=1000), SEEDS)
def test_the_count_is_poissons(rate: float, seed: int):
    mean = 2000.0  # arrivals; a normal's six standard deviations: once in 5e8 schedules
    assert abs(len(list(poisson(rate, mean / rate, seed))) - mean) < 6 * math.sqrt(mean)


@given(st.floats(min_value=1, max_value=1000), SEEDS)
def test_gaps_are_exponential(rate: float, seed: int):
    times = [0.0, *poisson(rate, 4000 / rate, seed)]
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    furthest = max(
        abs((number + 0.5) / len(gaps) - (1 - math.exp(-rate * gap))) for number, gap in enumerate(gaps)
    )
    assert furthest < 2.9 / math.sqrt(len(gaps))  # Kolmogorov: beyond it once in 1e7 schedules


def test_other_seeds_other_arrivals():
    assert list(poisson(100, 1, 1)) != list(poisson(100, 1, 2))


@pytest.mark.parametrize("rate", [0, -1, math.nan])
def test_a_rate_that_is_none_is_refused(rate: float):
    with pytest.raises(ValueError, match="a rate of"):
        next(poisson(rate, 1, 0))
