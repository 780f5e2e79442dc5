"""A benchmark's settings as LoadGen takes them. LoadGen itself is handed in: loadgen.py is the one door to it."""

from typing import Any

from workloads.protocol import LoadgenSettings

REPORTED = (
    "min_duration_ms",
    "max_duration_ms",
    "min_query_count",
    "max_query_count",
    "single_stream_expected_latency_ns",
    "single_stream_target_latency_percentile",
    "multi_stream_expected_latency_ns",
    "multi_stream_target_latency_percentile",
    "multi_stream_samples_per_query",
    "server_target_qps",
    "server_target_latency_ns",
    "server_target_latency_percentile",
    "use_token_latencies",
    "ttft_latency",
    "tpot_latency",
    "server_coalesce_queries",
    "server_max_async_queries",
    "offline_expected_qps",
    "sample_concatenate_permutation",
    "performance_sample_count_override",
    "accuracy_sample_count_override",
    "qsl_rng_seed",
    "sample_index_rng_seed",
    "schedule_rng_seed",
    "accuracy_log_rng_seed",
    "accuracy_log_sampling_target",
    "performance_issue_unique",
    "performance_issue_same",
    "performance_issue_same_index",
    "test05",
    "test05_qsl_rng_seed",
    "test05_sample_index_rng_seed",
    "test05_schedule_rng_seed",
)
"""What a benchmark's effective settings are told by."""


def test_settings(
    asked: Any, lg: Any, settings: LoadgenSettings, sample_count: int, most_outstanding: int
) -> Any:
    """Set LoadGen's TestSettings; the same object.

    Args:
        asked: a new ``TestSettings``.
        lg: LoadGen's module, for the words of its enumerations.
        sample_count: ``performance_sample_count``, at most the library's size.
        most_outstanding: queries that may wait before the test is cut (Server); 0: any number.
    """
    # Type 0 is LoadGen's embedded mlperf.conf; unlike a file of one's own it may be read any number of times.
    asked.FromConfig("", settings.conf_model, str(settings.scenario), 0)
    asked.scenario = getattr(lg.TestScenario, str(settings.scenario))
    asked.mode = getattr(lg.TestMode, settings.mode)
    asked.min_duration_ms, asked.max_duration_ms = settings.min_duration_ms, 0
    asked.min_query_count, asked.max_query_count = settings.min_query_count, 0
    asked.performance_sample_count_override = sample_count
    asked.accuracy_sample_count_override = settings.accuracy_sample_count or 0
    asked.sample_concatenate_permutation = settings.sample_concatenate_permutation
    asked.qsl_rng_seed = settings.qsl_rng_seed
    asked.sample_index_rng_seed = settings.sample_index_rng_seed
    asked.schedule_rng_seed = settings.schedule_rng_seed
    asked.multi_stream_samples_per_query = settings.multi_stream_samples_per_query
    asked.server_max_async_queries = most_outstanding or settings.server_max_async_queries
    if settings.server_target_latency_ns is not None:
        asked.server_target_latency_ns = settings.server_target_latency_ns

    if settings.target_latency_percentile is not None:
        asked.server_target_latency_percentile = settings.target_latency_percentile
        asked.single_stream_target_latency_percentile = settings.target_latency_percentile
        asked.multi_stream_target_latency_percentile = settings.target_latency_percentile

    if settings.target_qps is not None:
        asked.server_target_qps = asked.offline_expected_qps = settings.target_qps
        expected_ns = max(1, round(1e9 / settings.target_qps))
        asked.single_stream_expected_latency_ns = asked.multi_stream_expected_latency_ns = expected_ns

    asked.use_token_latencies = settings.use_token_latencies
    if settings.server_ttft_latency_ns is not None and settings.server_tpot_latency_ns is not None:
        asked.ttft_latency, asked.tpot_latency = (
            settings.server_ttft_latency_ns,
            settings.server_tpot_latency_ns,
        )

    _set_audit(asked, settings)
    return asked


def _set_audit(asked: Any, settings: LoadgenSettings) -> None:
    """What an audit.config sets, and what LoadGen 6.0.17 does not take from one (test05 and its seeds)."""
    asked.accuracy_log_rng_seed = settings.accuracy_log_rng_seed
    asked.accuracy_log_sampling_target = settings.accuracy_log_sampling_target
    asked.performance_issue_unique = settings.performance_issue_unique
    asked.performance_issue_same = settings.performance_issue_same
    asked.performance_issue_same_index = settings.performance_issue_same_index
    asked.test05 = settings.test05
    if not settings.test05:
        return

    asked.test05_qsl_rng_seed = settings.test05_qsl_rng_seed
    asked.test05_sample_index_rng_seed = settings.test05_sample_index_rng_seed
    asked.test05_schedule_rng_seed = settings.test05_schedule_rng_seed
