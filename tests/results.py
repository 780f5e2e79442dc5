"""Results of runs as their folders would tell them, made from figures alone."""

from typing import Any

from scheduler.conditions import Clocks, Measured
from scheduler.result import BackgroundResult, Finding, Latencies, MainResult, Metric, Result, Timing, Window
from tests.unit.test_verdict import MANIFEST
from workloads.protocol import Scenario

OFFLINE = Metric(name="result_samples_per_second", value=100.0, unit="samples/s")
SERVER = Metric(name="result_completed_samples_per_sec", value=100.0, unit="samples/s")
STREAM = Metric(name="early_stopping_latency_ss", value=5.0, unit="ms")
SCORES = {Scenario.OFFLINE: OFFLINE, Scenario.SERVER: SERVER, Scenario.SINGLE_STREAM: STREAM}
HOST = {"hostname": "one", "versions": {"torch": "2.15.0"}}
GPUS = {"driver": {"version": "580.1"}, "settings": {}}
BREACH = Finding(
    code="loadgen-invalid", severity="breach", message="LoadGen says INVALID", recommendation="lower it"
)


def measured(
    value: float = 100.0,
    *,
    key: str = "01-baseline",
    company: bool = False,
    valid: bool = True,
    scenario: Scenario = Scenario.OFFLINE,
    latency_ms: float = 10.0,
    clocks: Clocks | None = None,
    host: dict[str, Any] | None = None,
    gpus: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    **main: Any,
) -> Measured:
    """One run; ``main`` are fields of its main benchmark that are not as usual."""
    kind = "hetero" if company else "baseline"
    told = MainResult(
        **{
            "workload": "null",
            "size": "small",
            "precision": "fp32",
            "batch_size": 4,
            "scenario": scenario,
            "slice": "cpu0",
            "device": {},
            "loadgen_valid": valid,
            "num_errors": 0,
            "metric": SCORES[scenario].model_copy(update={"value": value}),
            "latency_ms": Latencies(
                mean=latency_ms, p50=latency_ms, p90=2 * latency_ms, p99=3 * latency_ms, p999=4 * latency_ms
            ),
            "window": Window(begin_s=1.0, end_s=11.0),
            "settings": {"min_duration_ms": 10_000, "target_qps": 120.0, **(settings or {})},
            "notes": [],
            **main,
        }
    )
    manifest = MANIFEST.model_copy(update={"kind": kind, "host": host or HOST, "gpus": gpus or GPUS})
    result = Result(
        kind=kind,
        verdict="VALID" if valid else "INVALID",
        started_utc="2026-11-20T00:00:00Z",
        preset="quick",
        comparable_to_mlperf=False,
        notes=[],
        findings=[] if valid else [BREACH],
        main=told,
        background=[_beside()] if company else [],
        timing=Timing(
            launch_to_all_issuing_s=None,
            start_buffer_s=0,
            buffer_overshoot_ms=None,
            main_s=10,
            stop_to_all_gone_s=None,
        ),
        slices=manifest.slices,
    )
    return Measured(key=key, manifest=manifest, result=result, clocks=clocks or Clocks())


def _beside() -> BackgroundResult:
    return BackgroundResult(
        workload="fixed",
        size="small",
        precision="fp32",
        batch_size=1,
        slice="cpu1",
        device={},
        pid=7,
        ended="killed",
        window=Window(begin_s=0.0, end_s=12.0),
        samples_completed=1000,
        filler_samples=0,
        samples_in_main_window=900,
        samples_per_s_in_main_window=90.0,
        filler_samples_in_main_window=0,
        longest_gap_s=0.1,
        longest_idle_s=0.0,
        longest_batch_s=0.1,
        loadgen_tests=1,
        loadgen_result=None,
        loadgen_valid=None,
        notes=[],
    )
