"""The search for the highest VALID rate: stories of trials, and simulated Servers whose capacity is known."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler import search
from scheduler.search import Found, Kind, Terms, Trial, Try, most_waiting, next_sizing, next_step
from tests.server_queue import ServerQueue, truth, tuned

TERMS = Terms(hint=1000, tolerance=0.01, confirm=1)
MOST_TRIALS = 80


def short(rate: float, *, valid: bool, share: float | None = None, completed: float | None = None) -> Trial:
    return Trial(rate=rate, kind="screening", valid=valid, latency_share=share, completed=completed)


def full(rate: float, *, valid: bool, share: float | None = None) -> Trial:
    return Trial(rate=rate, kind="confirmation", valid=valid, latency_share=share)


def asked(terms: Terms, *trials: Trial) -> tuple[float, Kind]:
    step = next_step(terms, trials)
    assert isinstance(step, Try)
    return round(step.rate, 1), step.kind


def found(terms: Terms, *trials: Trial) -> Found:
    step = next_step(terms, trials)
    assert isinstance(step, Found)
    return step


def carried_out(terms: Terms, answer: Callable[[Try], Trial]) -> tuple[Found, list[Trial]]:
    trials: list[Trial] = []
    while len(trials) < MOST_TRIALS:
        step = next_step(terms, trials)
        if isinstance(step, Found):
            return step, trials

        trials.append(answer(step))

    raise AssertionError(f"no end after {MOST_TRIALS} trials: {trials[-5:]}")


# ---------------------------------------------------------------------- stories


def test_it_begins_at_the_hint_and_goes_outwards_in_growing_steps():
    assert asked(TERMS) == (1000, "screening")
    one = short(1000, valid=True)
    assert asked(TERMS, one) == (1100, "screening")
    assert asked(TERMS, one, short(1100, valid=True)) == (1331, "screening")


def test_a_slice_that_was_overloaded_says_itself_how_far_down_to_go():
    assert asked(TERMS, short(1000, valid=False)) == (909.1, "screening")
    assert asked(TERMS, short(1000, valid=False, completed=600)) == (570, "screening")


def test_it_tries_where_the_latencies_say_that_the_limit_is_met():
    low, high = short(900, valid=True, share=0.8), short(1000, valid=False, share=1.25)
    assert asked(TERMS, low, high) == (round(math.sqrt(900 * 1000), 1), "screening")
    near = asked(TERMS, short(900, valid=True, share=0.99), high)[0]
    assert 900 < near < 920


def test_a_closed_bracket_is_confirmed_and_one_confirmation_proves():
    trials = [short(990, valid=True, share=0.98), short(1005, valid=False, share=1.02)]
    rate, kind = asked(TERMS, *trials)
    assert kind == "confirmation"
    assert 990 <= rate < 1000

    step = found(TERMS, *trials, full(rate, valid=True, share=0.998))
    assert (step.rate, step.bracket.high) == (rate, 1005)


def test_a_confirmation_with_room_left_goes_up():
    trials = [short(950, valid=True, share=0.8), short(960, valid=False, share=1.01)]
    rate, kind = asked(TERMS, *trials, full(950, valid=True, share=0.8), short(1000, valid=False, share=1.1))
    assert kind == "confirmation"
    assert rate > 955


def test_a_failed_confirmation_steps_down_and_nothing_above_it_is_asked_again():
    trials = [short(990, valid=True, share=0.98), short(1005, valid=False, share=1.02)]
    trials.append(full(995, valid=False, share=1.01))
    rate, kind = asked(TERMS, *trials)
    assert kind == "confirmation"
    assert 970 < rate < 995
    assert found(TERMS, *trials, full(990, valid=True, share=0.99)).rate == 990


def test_what_noise_let_through_once_is_not_proven_where_two_are_asked_for():
    terms = Terms(hint=1000, tolerance=0.01, confirm=2)
    trials = [short(990, valid=True, share=0.99), short(1005, valid=False, share=1.02)]
    trials.append(full(995, valid=True, share=0.999))
    assert asked(terms, *trials) == (995, "confirmation")
    assert search.proven(terms, trials) is None

    trials.append(full(995, valid=False, share=1.02))
    rate, kind = asked(terms, *trials)
    assert kind == "confirmation"
    assert rate < 995
    step = found(terms, *trials, full(rate, valid=True, share=0.99), full(rate, valid=True, share=0.99))
    assert round(step.rate or 0, 1) == rate


def test_a_cut_trial_is_invalid_whatever_else_it_says():
    cut = Trial(rate=1000, kind="screening", valid=True, cut=True, completed=800, latency_share=0.5)
    assert asked(TERMS, cut) == (760, "screening")


def test_without_a_hint_the_first_trial_is_at_a_calibrated_rate_and_is_the_hint_from_then_on():
    terms = Terms(hint=0, tolerance=0.01, confirm=1)
    assert asked(terms) == (0, "screening")
    assert asked(terms, short(400, valid=True)) == (440, "screening")


@pytest.mark.parametrize("valid", [True, False])
def test_a_slice_that_holds_everything_or_nothing_ends_the_search(valid: bool):
    step, trials = carried_out(TERMS, lambda step: short(step.rate, valid=valid))
    assert step.rate is None
    assert ("every rate from the hint" in step.why) is True
    assert len(trials) < 20


def test_what_is_too_high_only_in_full_length_is_given_up_in_the_end():
    def answer(step: Try) -> Trial:
        is_short = step.kind == "screening"
        return Trial(rate=step.rate, kind=step.kind, valid=is_short and step.rate < 1200)

    terms = Terms(hint=1000, tolerance=0.5, confirm=1)
    assert carried_out(terms, answer)[0].rate is None


@given(
    capacity=st.floats(20, 50_000),
    steepness=st.floats(2, 60),
    bias=st.floats(0.9, 1.1),
    confirm=st.integers(1, 3),
    with_latency=st.booleans(),
)
def test_any_slice_without_noise_is_found_within_the_tolerance(
    capacity: float, steepness: float, bias: float, confirm: int, with_latency: bool
):
    """Short trials may be wrong by 10 % in either direction: they only guide."""
    terms = Terms(hint=1000, tolerance=0.01, confirm=confirm)

    def answer(step: Try) -> Trial:
        limit = capacity * (bias if step.kind == "screening" else 1)
        share = (step.rate / limit) ** steepness
        told = min(share, 1e6) if with_latency and share > 1e-6 else None
        return Trial(rate=step.rate, kind=step.kind, valid=share <= 1, latency_share=told)

    step, trials = carried_out(terms, answer)
    assert step.rate is not None
    assert step.rate <= capacity
    assert step.rate >= capacity / 1.0101
    assert (
        sum(one.rate == step.rate and one.valid and one.kind == "confirmation" for one in trials) >= confirm
    )


@given(
    st.lists(
        st.tuples(st.floats(1, 1e6), st.booleans(), st.booleans(), st.none() | st.floats(0.01, 100)),
        max_size=12,
    )
)
def test_whatever_the_trials_say_the_next_is_above_what_is_proven_and_below_what_failed(
    trials: list[tuple[float, bool, bool, float | None]],
):
    so_far = [
        Trial(rate=rate, kind="screening" if is_short else "confirmation", valid=valid, latency_share=share)
        for rate, is_short, valid, share in trials
    ]
    step = next_step(TERMS, so_far)
    failed = [one.rate for one in so_far if one.kind == "confirmation" and not one.valid]
    if isinstance(step, Try) and step.kind == "confirmation":
        assert all(step.rate < rate for rate in failed)
        assert (search.proven(TERMS, so_far) or 0) < step.rate
    elif isinstance(step, Found) and step.rate is not None:
        assert full(step.rate, valid=True).rate in [one.rate for one in so_far if one.valid]
        assert all(step.rate < rate for rate in failed)


# ---------------------------------------------------------------------- the other scenarios


def test_a_test_that_is_only_to_be_sized_takes_two_trials():
    terms = Terms(hint=0, tolerance=0.01, confirm=1)
    assert next_sizing(terms, [], 0.96) == Try(rate=0, kind="screening", bracket=search.Bracket())
    measured = short(1250, valid=True, completed=1000)
    assert next_sizing(terms, [measured], 0.96) == Try(
        rate=960, kind="confirmation", bracket=search.Bracket()
    )
    step = next_sizing(terms, [measured, full(960, valid=True)], 0.96)
    assert isinstance(step, Found)
    assert step.rate == 960


def test_a_size_that_was_too_small_is_raised_and_not_for_ever():
    terms = Terms(hint=0, tolerance=0.01, confirm=2)
    trials = [short(1250, valid=True, completed=1000), full(960, valid=False)]
    step = next_sizing(terms, trials, 0.96)
    assert isinstance(step, Try)
    assert step.rate == pytest.approx(1056)

    trials += [full(1056, valid=True)]
    assert next_sizing(terms, trials, 0.96) == Try(
        rate=1056, kind="confirmation", bracket=search.Bracket(low=960)
    )
    step = next_sizing(terms, [*trials, full(1056, valid=False)], 0.96)
    assert isinstance(step, Try)
    assert step.rate > 1100

    step = next_sizing(terms, trials[:2] + [full(960, valid=False)] * search.MOST_SIZINGS, 0.96)
    assert isinstance(step, Found)
    assert step.rate is None


# ---------------------------------------------------------------------- simulated Servers


def test_a_cut_trial_could_not_have_become_valid():
    """From the moment the bound is passed, too many queries are late even at the fastest the slice can go."""
    server = ServerQueue(a_s=0.004, b_s=0.0004, batch_size=32, limit_s=0.03)
    for seed, rate in enumerate((1.02, 1.1, 1.3, 2.0)):
        asked_qps = rate * server.peak_qps
        most = most_waiting(asked_qps, 30, 2010, server.limit_s, 0.99)
        _, _, cut = server.answer(asked_qps, 30, seed, most_waiting=most)
        whole, _, _ = server.answer(asked_qps, 30, seed)
        assert cut
        assert (whole > server.limit_s).mean() > 0.01


def gpu_like(slower: float = 1.0) -> tuple[ServerQueue, float]:
    """Batches of up to 32, 4 ms + 0.4 ms a sample, p99 under 30 ms, and its truth, which the slow test finds again.

    Where all times are so many times longer, the same happens so many times slower.
    """
    server = ServerQueue(a_s=0.004 * slower, b_s=0.0004 * slower, batch_size=32, limit_s=0.03 * slower)
    return server, 1592 / slower


def simulated(server: ServerQueue, true: float, seeds: int = 20) -> list[float]:
    """The rates found ÷ the truth, from a baseline 25 % above it: 30 s of screening, 600 s of confirmation."""
    terms = Terms(hint=1.25 * true, tolerance=0.01, confirm=1)
    runs = (tuned(server, terms, seed, screening_s=30, full_s=600, between_s=0) for seed in range(seeds))
    return [(one.rate or 0) / true for one in runs]


@pytest.mark.parametrize(("slower", "seeds"), [(1, 20), pytest.param(2, 60, marks=pytest.mark.slow)])
def test_the_true_capacity_is_found_within_1_percent_and_never_exceeded(slower: float, seeds: int):
    shares = simulated(*gpu_like(slower), seeds)
    assert sum(abs(share - 1) <= 0.01 for share in shares) >= 0.95 * seeds
    assert max(shares) <= 1.01


def test_with_so_few_queries_that_the_arrivals_decide_it_is_what_loadgen_has_as_the_highest():
    """199 queries/s: 1 % more, with the same schedule, is INVALID, though the truth may be farther away."""
    server, true = gpu_like(slower=8)
    shares = simulated(server, true)
    above = (
        server.trial(1.01 * share * true, "confirmation", 600, seed, 99)[0]
        for seed, share in enumerate(shares)
    )
    assert sum(not one.valid for one in above) >= 19
    assert max(shares) <= 1.01


def test_the_fewer_queries_the_nearer_to_the_tail_is_what_must_keep_the_limit():
    shares = [search.held_share(0.9, 1.2, 0.99, queries) for queries in (1e9, 955_000, 24_000, 2010, 459)]
    assert shares == sorted(shares)
    assert shares[0] == pytest.approx(0.9, rel=1e-3)
    assert shares[-1] == pytest.approx(1.2)
    beyond = search.held_share(0.9, 1.2, 0.999, 24_000)
    assert beyond == 0.9  # LoadGen tells nothing of what is farther out


@pytest.mark.slow
def test_so_it_is_where_the_latency_leaps_at_the_capacity():
    """As the `fixed` workload: one sample after another, 1 ms each, p99 under 100 ms."""
    fixed = ServerQueue(a_s=0, b_s=0.001, batch_size=1, limit_s=0.1)
    shares = simulated(fixed, truth(fixed, 600))
    assert sum(abs(share - 1) <= 0.01 for share in shares) >= 19
    assert max(shares) <= 1.01


@pytest.mark.slow
def test_the_truth_is_what_long_runs_say():
    server, true = gpu_like()
    assert truth(server, 600) == pytest.approx(true, rel=1e-3)
