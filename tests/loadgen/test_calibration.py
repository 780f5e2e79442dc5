"""What is picked from what was measured; the trials here are those of a slice known by a formula."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.calibration import (
    MOST_HALVINGS,
    MOST_TRIALS,
    ROOM,
    Calibration,
    RunTrial,
    best_batch,
    calibrate,
    digits,
    has_new,
    told,
    way,
)
from workloads.kept_times import Earlier
from workloads.null import Null
from workloads.protocol import LoadgenSettings, Scenario, WorkloadOptions
from workloads.sizing import MAX_SAMPLES_PER_TEST, bounded, fit, was_through_early
from workloads.stopwatch import BatchTime, Stopwatch
from workloads.sut import Batches, Library, Nobody

if TYPE_CHECKING:
    import numpy.typing as npt

    from workloads.protocol import Outputs

MS = 10**6
SERVER = LoadgenSettings(
    conf_model="*",
    scenario=Scenario.SERVER,
    min_duration_ms=10_000,
    min_query_count=1,
    performance_sample_count=64,
    target_qps=None,
    server_target_latency_ns=15 * MS,
    qsl_rng_seed=1,
    sample_index_rng_seed=2,
    schedule_rng_seed=3,
)
OFFLINE = replace(SERVER, scenario=Scenario.OFFLINE)
ENOUGH_MEMORY = 2**40


OPTIONS = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=16, seed=1, threads=1, memory_mib=1
)


def calibrated(settings: LoadgenSettings, run_trial: RunTrial, earlier: Earlier | None = None) -> Calibration:
    workload = Null("null", OPTIONS)
    library = Library(workload)
    library.load_any(64, 1)
    return calibrate(workload, library, settings, OPTIONS.batch_size, run_trial, earlier=earlier)


def before(*sizes: int, target_qps: float | None, fastest_ns: int = 1) -> Earlier:
    """An earlier calibration whose batches took all times from ``fastest_ns`` to two seconds."""
    times = [BatchTime(size, 9 * 10**8, 9 * 10**8, 3, fastest_ns, 2 * 10**9) for size in sizes]
    return Earlier(measured_utc="2026-11-01T00:00:00Z", batch_times=tuple(times), target_qps=target_qps)


def slice_that_holds(capacity_qps: float, floor_ns: int = 2 * MS) -> RunTrial:
    """Latency grows without bound towards the capacity, beyond which the trial is cut with an error."""

    def run_trial(
        asked: LoadgenSettings, _batch_size: int, _outstanding: int
    ) -> tuple[int, float, Mapping[str, Any]]:
        assert asked.target_qps is not None
        load = asked.target_qps / capacity_qps
        latency_ns = floor_ns / (1 - load) if load < 1 else 10**12
        log = {"result_99.00_percentile_latency_ns": int(latency_ns), "num_errors": int(load >= 1)}
        return 1000, min(asked.target_qps, capacity_qps), log

    return run_trial


def test_server_goes_down_until_the_limit_is_held_with_room() -> None:
    found = calibrated(SERVER, slice_that_holds(80_000))
    first_held = next(at for at, trial in enumerate(found.trials) if trial.held)
    falling = [trial.asked_qps for trial in found.trials[: first_held + 1]]
    assert falling == sorted(falling, reverse=True)
    between = [trial.asked_qps for trial in found.trials[first_held + 1 :]]
    assert 1 <= len(between) <= MOST_HALVINGS
    assert all(falling[-1] < rate < falling[-2] for rate in between)
    (chosen,) = {trial for trial in found.trials if trial.asked_qps == found.target_qps}
    assert chosen.held
    assert chosen.latency_ns is not None
    assert chosen.latency_ns <= ROOM * 15 * MS
    nearest = min(trial.asked_qps for trial in found.trials if not trial.held)
    assert chosen.asked_qps < nearest <= 1.15 * chosen.asked_qps
    assert found.notes == ()


def test_server_says_that_no_rate_holds_the_limit() -> None:
    found = calibrated(SERVER, slice_that_holds(80_000, floor_ns=20 * MS))
    assert len(found.trials) == MOST_TRIALS
    assert found.target_qps == min(trial.asked_qps for trial in found.trials)
    assert "no rate tried holds the latency limit of 15 ms" in found.notes[0]
    assert "can hold" not in told(found, Scenario.SERVER)[0]


def test_a_given_rate_is_kept_and_not_tried() -> None:
    found = calibrated(replace(SERVER, target_qps=123.0), slice_that_holds(1))
    assert (found.target_qps, found.given, found.trials) == (123.0, True, ())
    assert [one.batch_size for one in found.batch_times] == [1, 2, 4, 8, 16]


def test_batch_times_that_are_known_are_taken_so_that_batches_have_the_same_size_again() -> None:
    known = ((1, 3 * MS, 3 * MS, 9), (4, 4 * MS, 4 * MS, 9), (16, 14 * MS, 14 * MS, 9))
    found = calibrated(replace(SERVER, target_qps=123.0, batch_times_ns=known), slice_that_holds(1))
    assert found.batch_times == tuple(BatchTime(*one) for one in known)
    assert found.batch_size == 4


def test_what_was_found_before_is_taken_where_one_measurement_agrees() -> None:
    earlier = before(16, target_qps=77.0)
    found = calibrated(OFFLINE, slice_that_holds(1), earlier)
    assert (found.target_qps, found.batch_times) == (77.0, earlier.batch_times)
    assert (found.earlier_utc, found.warm_up_batches, found.trials) == ("2026-11-01T00:00:00Z", 1, ())
    assert "of 2026-11-01T00:00:00Z, are confirmed by 1 batch on this slice" in found.notes[0]
    assert "that of the calibration of 2026-11-01T00:00:00Z" in told(found, Scenario.OFFLINE)[0]
    assert not has_new(found, earlier)


@pytest.mark.parametrize("sizes", [(16,), (8,)])
def test_what_was_found_before_is_dropped_where_it_is_otherwise_now(sizes: tuple[int, ...]) -> None:
    earlier = before(*sizes, target_qps=77.0, fastest_ns=10**9)
    asked = replace(OFFLINE, target_qps=123.0)
    found = calibrated(asked, slice_that_holds(1), earlier)
    assert (found.target_qps, found.earlier_utc) == (123.0, None)
    assert found.batch_times[-1].mean_ns < 10**8
    assert ["do not hold here: 16 samples take" in note for note in found.notes] == [True] * (sizes == (16,))
    assert has_new(found, earlier)


@pytest.mark.parametrize(
    ("capacity_qps", "held"),
    [
        (400.0, [True, False]),  # as before: the next is tried, and nothing between
        (470.0, [True, True, False]),  # what was in the way then is gone
        (350.0, [False, True, True, True]),
    ],
)
def test_the_rate_that_server_was_proven_at_is_the_first(capacity_qps: float, held: list[bool]) -> None:
    earlier = before(1, 4, 16, target_qps=300.0)
    found = calibrated(SERVER, slice_that_holds(capacity_qps), earlier)
    assert found.trials[0].asked_qps == 300.0
    assert [one.held for one in found.trials][: len(held)] == held
    assert found.target_qps == max(one.asked_qps for one in found.trials if one.held)
    assert has_new(found, earlier) is (found.target_qps > 300.0)  # a lower one may be somebody's doing
    assert has_new(found, before(1, 4, 16, target_qps=found.target_qps / 2))
    assert "picked by a calibration" in told(found, Scenario.SERVER)[0]


def test_batch_times_that_are_told_win_over_what_was_found_before() -> None:
    known = ((16, 3 * MS, 3 * MS, 9),)
    asked = replace(OFFLINE, target_qps=123.0, batch_times_ns=known)
    found = calibrated(asked, slice_that_holds(1), before(16, target_qps=77.0))
    assert (found.batch_times, found.earlier_utc) == ((BatchTime(*known[0]),), None)


@given(
    former=st.integers(min_value=1000, max_value=10**8),
    now=st.integers(min_value=1000, max_value=10**8),
)
def test_short_batches_agree_within_a_tenth_both_ways(former: int, now: int) -> None:
    one, other = BatchTime.of(8, [former]), BatchTime.of(8, [now])
    assert one.agrees(other) is (max(former, now) <= 1.1 * min(former, now))


def test_one_way_of_timing_is_not_taken_for_another() -> None:
    asked = [
        (OFFLINE, 16),
        (OFFLINE, 8),
        (replace(SERVER, scenario=Scenario.SINGLE_STREAM), 16),
        (replace(SERVER, scenario=Scenario.MULTI_STREAM), 16),
        (SERVER, 16),
        (replace(SERVER, server_target_latency_ns=30 * MS), 16),
    ]
    ways = [way(settings, batch_size) for settings, batch_size in asked]
    assert len(set(ways)) == len(ways)
    assert way(SERVER, 16) == way(replace(SERVER, target_qps=5.0, qsl_rng_seed=9), 16)


class OfTwoLengths(Null):
    """Half of its samples are long; remembers the batches it was asked for."""

    def __init__(self, name: str, options: WorkloadOptions) -> None:
        super().__init__(name, options)
        self.batches: list[list[int]] = []

    def lengths(self, indices: Sequence[int]) -> "npt.NDArray[np.int64]":
        return np.asarray(indices) % 2

    def predict(self, indices: Sequence[int]) -> "Outputs":
        self.batches.append(list(indices))
        return super().predict(indices)


def test_batches_sorted_by_length_are_timed_in_a_mixed_order() -> None:
    workload = OfTwoLengths("null", OPTIONS)
    library = Library(workload)
    library.load(range(64))
    watch = Stopwatch(workload, library, 16, in_flight=True)
    for _ in range(16):
        watch.time(16)

    kinds = [{index % 2 for index in batch} for batch in workload.batches]
    assert all(len(kind) == 1 for kind in kinds)  # each of one length
    assert all(len(set.union(*kinds[at : at + 4])) == 2 for at in range(13))  # any four of both


class Overlapping(Null):
    """Begins a batch while another goes on, and knows how many were not waited for."""

    depth, in_flight = 2, 0

    def begin(self, indices: Sequence[int]) -> "Overlapping":
        self.in_flight += 1
        self._begun = indices
        return self

    def done(self) -> bool:
        return True

    def result(self) -> "Outputs":
        self.in_flight -= 1
        return self.predict(self._begun)


@pytest.mark.parametrize("known", [(), ((16, 3 * MS, 3 * MS, 9),)])
def test_no_batch_is_left_in_flight(known: tuple[tuple[int, int, int, int], ...]) -> None:
    workload = Overlapping("null", OPTIONS)
    library = Library(workload)
    library.load_any(64, 1)
    asked = replace(OFFLINE, target_qps=123.0, batch_times_ns=known)
    calibrate(workload, library, asked, OPTIONS.batch_size, slice_that_holds(1))
    assert workload.in_flight == 0


@pytest.mark.parametrize(
    ("rate", "words"),
    [(28_441.7, "28,442"), (1e7, "10,000,000"), (1000.0, "1,000"), (999.94, "999.9"), (0.25, "0.25")],
)
def test_a_rate_is_told_without_an_exponent(rate: float, words: str) -> None:
    assert digits(rate) == words
    found = replace(
        calibrated(replace(SERVER, target_qps=1.0), slice_that_holds(1)), given=False, target_qps=rate
    )
    assert f"target_qps {words} was picked" in told(found, Scenario.SERVER)[0]


def test_server_without_a_limit_is_refused() -> None:
    with pytest.raises(ValueError, match="server_target_latency_ns"):
        calibrated(replace(SERVER, server_target_latency_ns=None), slice_that_holds(1))


@pytest.mark.parametrize("scenario", [Scenario.OFFLINE, Scenario.SINGLE_STREAM])
def test_what_answers_at_once_is_timed_under_loadgen(scenario: Scenario) -> None:
    def run_trial(
        _asked: LoadgenSettings, _batch_size: int, _outstanding: int
    ) -> tuple[int, float, Mapping[str, Any]]:
        return 1000, 3000.0, {"num_errors": 0}

    found = calibrated(replace(SERVER, scenario=scenario), run_trial)
    assert found.target_qps == pytest.approx(3750 if scenario is Scenario.OFFLINE else 4000)


def test_the_best_batch_leaves_half_the_limit_free() -> None:
    times = [BatchTime(size, (3 + size) * MS, (3 + size) * MS, 5) for size in (1, 2, 4, 8, 16)]
    assert best_batch(times, 30 * MS).batch_size == 8
    assert best_batch(times, 1000 * MS).batch_size == 16
    assert best_batch(times, 1 * MS).batch_size == 2  # none fits: the best of those about as quick as any


def test_main_has_the_queries_that_early_stopping_needs() -> None:
    asked, notes = fit(SERVER, 1000.0, 16, ENOUGH_MEMORY)
    assert (asked.min_query_count, asked.min_duration_ms, asked.target_qps) == (2010, 10_000, 1000.0)
    assert notes == []
    assert fit(replace(SERVER, min_query_count=5000), 1000.0, 16, ENOUGH_MEMORY)[0].min_query_count == 5000
    streams = replace(SERVER, scenario=Scenario.MULTI_STREAM)
    assert fit(streams, 1000.0, 16, ENOUGH_MEMORY)[0].min_query_count == 662


def test_main_says_when_the_queries_take_long() -> None:
    _asked, notes = fit(SERVER, 10.0, 16, ENOUGH_MEMORY)
    assert notes == ["at 10/s the 459 queries that are needed take about 46 s, not the 10 s asked for"]


def test_main_is_cut_to_what_fits_in_memory() -> None:
    asked, notes = fit(OFFLINE, 1e6, 1, 2**30)
    assert asked.min_duration_ms < 10_000
    assert 1.1e6 * asked.min_duration_ms / 1e3 * 212 <= 2**29 * 1.001
    assert "take more memory than there is" in notes[0]


@given(
    qps=st.floats(1e-3, 1e7),
    duration_ms=st.integers(1, 600_000),
    least=st.integers(1, 30_000),
    batch_size=st.integers(1, 2048),
)
def test_mains_offline_test_is_of_whole_batches(
    qps: float, duration_ms: int, least: int, batch_size: int
) -> None:
    wanted = replace(OFFLINE, min_duration_ms=duration_ms, min_query_count=least)
    asked, _notes = fit(wanted, qps, batch_size, ENOUGH_MEMORY)
    assert asked.min_query_count % batch_size == 0
    # LoadGen makes the larger of the count and 1.1 × rate × duration: the count, or batches are not whole.
    generated = max(least, 1.1 * qps * asked.min_duration_ms / 1e3)
    assert generated <= asked.min_query_count < generated + batch_size


@pytest.mark.parametrize("samples_per_s", [0.05, 3.3, 900.0, 2.5e6])
@pytest.mark.parametrize("batch_size", [1, 7, 1024])
def test_a_background_test_is_bounded_and_of_whole_batches(samples_per_s: float, batch_size: int) -> None:
    asked = bounded(OFFLINE, samples_per_s, batch_size, None)
    assert asked.min_query_count % batch_size == 0
    assert 0 < asked.min_query_count < MAX_SAMPLES_PER_TEST + batch_size
    assert 1 <= asked.min_duration_ms <= 10_000
    # LoadGen makes the larger of the count and 1.1 × rate × duration: the count, or batches are not whole.
    assert asked.min_query_count >= 1.1 * samples_per_s * asked.min_duration_ms / 1e3
    # Unless bounded, the test is long enough to be VALID at the measured rate and up to 1.2 × of it.
    if asked.min_query_count < MAX_SAMPLES_PER_TEST:
        assert asked.min_query_count / samples_per_s >= 1.19 * asked.min_duration_ms / 1e3


def test_the_last_background_test_is_as_long_as_the_time_left() -> None:
    asked = bounded(replace(OFFLINE, min_query_count=24576), 100.0, 4, 2_000_000_000)
    assert (asked.min_duration_ms, asked.min_query_count) == (2000, 252)


@pytest.mark.parametrize(("took_ms", "early"), [(9_999, True), (10_000, False), (12_000, False)])
def test_only_an_offline_test_can_be_through_early(took_ms: int, early: bool) -> None:
    batches = Batches(lambda indices: np.zeros((len(indices), 1)), lambda _ids, _outputs: None, 8, Nobody())
    batches.begin_ns, batches.end_ns = 5 * MS, (5 + took_ms) * MS
    assert was_through_early(OFFLINE, batches) is early
    assert not was_through_early(SERVER, batches)
