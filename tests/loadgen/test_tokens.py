"""Token latencies by the real LoadGen: of texts whose first tokens are told while the rest is computed."""

from pathlib import Path
from typing import Any

import pytest

from scheduler.loadgen_log import LatencyMs, LoadgenResult, parse
from tests.loadgen.test_loadgen import run, settings

FURTHER_MS = 8.0
TOKENS = 8
LIMITS = {"server_ttft_latency_ns": 1000, "server_tpot_latency_ns": 100_000_000}


def told(folder: Path, scenario: str, **changed: Any) -> LoadgenResult:
    """A test of texts of 8 tokens, and what its log says."""
    wanted = settings(scenario, use_token_latencies=True, target_qps=100.0, **changed)
    ended = run(folder, "fixed", 4, wanted, further_s=FURTHER_MS / 1000)
    assert ended.code == 0, ended.error
    with (folder / "loadgen" / "mlperf_log_detail.txt").open() as lines:
        return parse(lines)


def p50(latency: LatencyMs | None) -> float:
    assert latency is not None
    assert latency.p50 is not None
    return latency.p50


@pytest.mark.parametrize(("scenario", "limits"), [("Server", LIMITS), ("SingleStream", {})])
def test_the_first_token_and_the_further_ones_are_timed_apart(
    tmp_path: Path, scenario: str, limits: dict[str, int]
):
    found = told(tmp_path, scenario, **limits)
    assert found.tokens is not None
    assert found.latency_ms is not None
    whole, first, further = p50(found.latency_ms), p50(found.tokens.ttft_ms), p50(found.tokens.tpot_ms)
    assert first <= whole - FURTHER_MS
    assert further >= FURTHER_MS / TOKENS
    assert found.tokens.tokens_per_s is not None
    assert found.tokens.tokens_per_s > 0
    if scenario == "Server":  # held to the limit of the first token, which is a microsecond
        assert any("TTFT" in reason for reason in found.invalid_reasons)
    else:  # its score stays that of the whole text, though its early stopping is of the first token
        assert found.loadgen_valid, found.invalid_reasons
        assert found.metric is not None
        assert found.metric.value >= FURTHER_MS


def test_under_offline_there_are_tokens_a_second_alone(tmp_path: Path):
    found = told(tmp_path, "Offline", min_query_count=8)
    assert found.tokens is not None
    assert (found.tokens.ttft_ms, found.tokens.tpot_ms) == (None, None)
    assert found.metric is not None
    assert found.tokens.tokens_per_s == pytest.approx(TOKENS * found.metric.value, rel=1e-3)


def test_without_token_latencies_there_are_none(tmp_path: Path):
    ended = run(tmp_path, "fixed", 4, settings("SingleStream", target_qps=20.0), further_s=0.001)
    with (ended.folder / "loadgen" / "mlperf_log_detail.txt").open() as lines:
        assert parse(lines).tokens is None
