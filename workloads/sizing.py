"""How large a LoadGen test is to be, and whether it was large enough. Pure."""

import math
from dataclasses import replace

from workloads.calibration import OFFLINE_MARGIN, STREAM_MARGIN, digits
from workloads.protocol import LoadgenSettings, Scenario
from workloads.sut import Batches

EARLY_STOPPING_QUERIES = {Scenario.SINGLE_STREAM: 64, Scenario.MULTI_STREAM: 662, Scenario.SERVER: 459}
"""The fewest queries LoadGen's early stopping accepts at p90 and p99; for Server with none late."""
TEN_LATE_QUERIES = 2010
"""What a Server test makes if it can within a reasonable time: ten of so many may be late."""
TOLD_TOO_HIGH = {
    Scenario.OFFLINE: 1 / OFFLINE_MARGIN,
    Scenario.SINGLE_STREAM: STREAM_MARGIN,
    Scenario.MULTI_STREAM: STREAM_MARGIN,
}
"""What is likely of the rate that LoadGen is told: it is told more than was measured, so as not to run out."""
LONG_TEST_FACTOR = 2
MAX_SAMPLES_PER_TEST = 200_000
"""Of a background test: LoadGen holds about 200 bytes a sample for as long as the test lasts."""
GENERATED_BYTES = {
    Scenario.OFFLINE: 212,
    Scenario.SERVER: 316,
    Scenario.SINGLE_STREAM: 316,
    Scenario.MULTI_STREAM: 8 * 82,
}
"""What LoadGen holds for one query generated up front (Offline: one sample)."""
GENERATED_QUERIES = {
    Scenario.OFFLINE: 1.1,
    Scenario.SERVER: 1.0,
    Scenario.SINGLE_STREAM: 2.0,
    Scenario.MULTI_STREAM: 2.0,
}
"""How many it generates, as a multiple of rate × duration."""
MEMORY_SHARE = 0.5
"""Of the memory available, what a test's queries may take."""


def fit(
    settings: LoadgenSettings, qps: float, batch_size: int, memory_bytes: int
) -> tuple[LoadgenSettings, list[str]]:
    """The settings of main's test: the rate, the queries early stopping needs, a size that fits in memory; of Offline
    whole batches, since an odd last one may take as long as a whole one, or be of a size that is not captured yet.

    What a reader would not expect is said in the notes.
    """
    duration_s, notes = settings.min_duration_ms / 1e3, []
    queries = max(settings.min_query_count, EARLY_STOPPING_QUERIES.get(settings.scenario, 1))
    if settings.scenario is Scenario.SERVER and LONG_TEST_FACTOR * duration_s * qps >= TEN_LATE_QUERIES:
        queries = max(queries, TEN_LATE_QUERIES)

    likely_qps = qps * TOLD_TOO_HIGH.get(settings.scenario, 1.0)
    if queries / likely_qps > LONG_TEST_FACTOR * duration_s:
        notes.append(
            f"at {digits(likely_qps)}/s the {queries} queries that are needed take about {queries / likely_qps:.0f} s, "
            f"not the {duration_s:g} s asked for"
        )

    generated = max(queries, GENERATED_QUERIES[settings.scenario] * qps * duration_s)
    excess = generated * GENERATED_BYTES[settings.scenario] / (MEMORY_SHARE * memory_bytes)
    if excess > 1:
        notes.append(
            f"the test lasts {duration_s / excess:.3g} s, not the {duration_s:g} s asked for: LoadGen makes "
            f"its queries beforehand, and the {digits(generated)} of them would take more memory than there is"
        )
        duration_s /= excess

    duration_ms = max(1, round(duration_s * 1e3))
    if settings.scenario is Scenario.OFFLINE:
        generated = max(queries, GENERATED_QUERIES[settings.scenario] * qps * duration_ms / 1e3)
        queries = _in_whole_batches(generated, batch_size)

    asked = replace(settings, min_duration_ms=duration_ms, min_query_count=queries, target_qps=qps)
    return asked, notes


def bounded(
    settings: LoadgenSettings, samples_per_s: float | None, batch_size: int, left_ns: int | None
) -> LoadgenSettings:
    """The settings of one background test: whole batches, and ``min_duration_ms`` long unless that is more
    than `MAX_SAMPLES_PER_TEST` or than the time left. One batch as long as no rate is known."""
    if samples_per_s is None:
        return replace(settings, min_duration_ms=1, min_query_count=batch_size, target_qps=1.0)

    duration_s, least = settings.min_duration_ms / 1e3, settings.min_query_count
    if left_ns is not None and left_ns < duration_s * 1e9:
        duration_s, least = max(left_ns / 1e9, 0.001), 1

    wanted = max(OFFLINE_MARGIN * samples_per_s * duration_s, least)
    samples = _in_whole_batches(min(wanted, MAX_SAMPLES_PER_TEST), batch_size)
    return replace(
        settings,
        min_duration_ms=max(1, int(min(duration_s, samples / (OFFLINE_MARGIN * samples_per_s)) * 1e3)),
        min_query_count=samples,
        target_qps=samples_per_s,
    )


def _in_whole_batches(samples: float, batch_size: int) -> int:
    return math.ceil(samples / batch_size) * batch_size


def was_through_early(asked: LoadgenSettings, batches: Batches) -> bool:
    """An Offline test whose samples did not last for ``min_duration_ms``: the slice was faster than expected."""
    return (
        asked.scenario is Scenario.OFFLINE
        and batches.end_ns - batches.begin_ns < asked.min_duration_ms * 1_000_000
    )
