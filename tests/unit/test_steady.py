"""When a warm-up is over: three windows that agree, found in the batch times themselves."""

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.steady import WINDOW_BATCHES, WINDOW_S, WINDOWS, WITHIN, WarmUp


def batches_until_steady(times_s: list[float]) -> int | None:
    warm_up = WarmUp()
    return next((number for number, time_s in enumerate(times_s, 1) if warm_up.took(time_s)), None)


@given(st.floats(min_value=1e-5, max_value=10))
def test_equal_batches_are_steady_after_three_windows(batch_s: float):
    warm_up = WarmUp()
    took_s = next(number for number in count(1) if warm_up.took(batch_s)) * batch_s
    assert warm_up.batches >= WINDOWS * WINDOW_BATCHES
    assert WINDOWS * WINDOW_S * 0.999 <= took_s <= WINDOWS * (WINDOW_S + WINDOW_BATCHES * batch_s)


def test_the_batches_of_a_cold_start_are_waited_out():
    cold = [2.0, 0.5, 0.3, 0.2, 0.15, 0.14, 0.12, 0.11]
    found = batches_until_steady(cold + [0.1] * 100)
    assert found is not None
    assert found > len(cold)  # the last three windows hold none that is much slower
    assert found <= len(cold) + WINDOWS * WINDOW_BATCHES


def test_one_slow_batch_puts_it_off():
    steady_at = batches_until_steady([0.05] * 100)
    assert steady_at == WINDOWS * WINDOW_BATCHES
    later = batches_until_steady([0.05] * 8 + [0.5] + [0.05] * 100)
    assert later is not None
    assert later >= steady_at + WINDOW_BATCHES


@given(st.lists(st.sampled_from([0.1, 0.1 * (1 + 3 * WITHIN)]), min_size=30, max_size=60))
def test_it_is_steady_only_where_the_last_windows_agree(levels: list[float]):
    times_s = [level for level in levels for _ in range(WINDOW_BATCHES)]  # each is a window of its own
    found = batches_until_steady(times_s)
    alike = [at for at in range(WINDOWS, len(levels) + 1) if len(set(levels[at - WINDOWS : at])) == 1]
    assert found == (alike[0] * WINDOW_BATCHES if alike else None)


def test_times_that_drift_are_never_steady():
    assert batches_until_steady([0.1 * 1.05**number for number in range(60)]) is None


@pytest.mark.parametrize("batches", [0, 1, 8])
def test_too_few_batches_are_not_steady(batches: int):
    assert batches_until_steady([0.2] * batches) is None
