"""The real LoadGen on workloads that compute nothing, each benchmark in a process of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tests.loadgen import benchmark
from workloads import loadgen
from workloads.progress import ProgressMark, WindowWork, read_history, read_mark, work_in_window

IDLE_LIMIT_S = 0.1
SERVER_LIMIT_NS = 50_000_000
AT_EASE = {"target_qps": 500.0, "server_target_latency_ns": 1_000_000_000}
"""Server's rate and limit on a machine that others may use meanwhile: a stop of half a second breaks nothing."""


def settings(scenario: str, **changed: Any) -> dict[str, Any]:
    return {
        "conf_model": "*",
        "scenario": scenario,
        "min_duration_ms": 300,
        "min_query_count": 1,
        "performance_sample_count": 256,
        "target_qps": None,
        "server_target_latency_ns": SERVER_LIMIT_NS,
        "qsl_rng_seed": 11,
        "sample_index_rng_seed": 12,
        "schedule_rng_seed": 13,
    } | changed


@dataclass(frozen=True)
class Run:
    """What a benchmark's process left."""

    folder: Path
    code: int
    error: str

    @property
    def result(self) -> dict[str, Any]:
        assert self.code == 0, self.error
        loaded: dict[str, Any] = json.loads((self.folder / "result.json").read_text())
        return loaded

    @property
    def measured(self) -> dict[str, Any]:
        measured: dict[str, Any] = self.result["measured"]
        return measured

    @property
    def mark(self) -> ProgressMark:
        mark = read_mark(self.folder)
        assert mark is not None
        return mark

    def log(self, test: str = "") -> dict[str, Any]:
        return loadgen.read_detail(self.folder / "loadgen" / test)

    def logs(self) -> list[dict[str, Any]]:
        return [self.log(test.name) for test in sorted((self.folder / "loadgen").iterdir())]

    def work(self) -> WindowWork:
        history = read_history(self.folder)
        begin_ns, end_ns = self.measured["begin_ns"], self.measured["end_ns"]
        return work_in_window(history, begin_ns, end_ns, history.batch_begin_ns)


def run(folder: Path, workload: str, batch_size: int, wanted: dict[str, Any], **more: Any) -> Run:
    asked = {"workload": workload, "batch_size": batch_size, "settings": wanted} | more
    command = [sys.executable, benchmark.__file__, str(folder), json.dumps(asked)]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100, check=False)
    error = folder / "error.txt"
    return Run(folder, ended.returncode, error.read_text() if error.exists() else ended.stderr)


def samples_of(log: dict[str, Any]) -> int:
    """How many samples LoadGen says it issued in a test that ran to its end."""
    queries = (
        log["generated_query_count"] if log["effective_scenario"] == "Offline" else log["result_query_count"]
    )
    return int(queries * log["generated_samples_per_query"])


@pytest.mark.parametrize(
    ("workload", "scenario", "batch_size", "changed"),
    [
        ("null", "Offline", 64, {}),
        ("null", "Server", 64, AT_EASE),
        ("null", "SingleStream", 1, {}),
        ("null", "MultiStream", 3, {}),  # a query of eight is cut into three batches
        ("fixed", "Offline", 4, {"min_query_count": 100}),
        ("fixed", "Server", 4, AT_EASE),
        ("fixed", "SingleStream", 1, {"min_query_count": 200}),
    ],
)
def test_every_scenario_is_valid_by_itself(
    tmp_path: Path, workload: str, scenario: str, batch_size: int, changed: dict[str, Any]
) -> None:
    ended = run(tmp_path, workload, batch_size, settings(scenario, **changed))
    log = ended.log()
    assert (log["result_validity"], log["num_errors"]) == ("VALID", 0), (ended.measured, ended.error)
    assert ended.mark.samples_completed == samples_of(log)
    assert ended.mark.samples_completed >= changed.get("min_query_count", 1)
    assert (ended.mark.tests_started, ended.mark.tests_completed) == (1, 1)
    assert ended.result["issuing"] == [ended.measured["begin_ns"]] == [ended.mark.first_issue_ns]
    assert ended.measured["end_ns"] == ended.mark.last_completion_ns
    assert ended.measured["end_ns"] - ended.measured["begin_ns"] >= 290e6
    assert ended.result["largest_batch"] <= batch_size
    assert ended.measured["effective"]["qsl_rng_seed"] == log["effective_qsl_rng_seed"] == 11
    assert ended.measured["effective"]["performance_sample_count_override"] == 256


@pytest.mark.parametrize("changed", [{}, {"target_qps": 333.0}, {"min_query_count": 100}])
def test_an_offline_test_of_main_has_no_odd_last_batch(tmp_path: Path, changed: dict[str, Any]) -> None:
    ended = run(tmp_path, "fixed", 7, settings("Offline", **changed))
    assert samples_of(ended.log()) % 7 == 0
    assert (
        ended.measured["effective"]["min_query_count"]
        == samples_of(ended.log())
        == ended.mark.samples_completed
    )


def test_the_calibrated_rate_is_the_workloads(tmp_path: Path) -> None:
    ended = run(tmp_path, "fixed", 2, settings("Offline"), size="full")  # 10 ms a sample
    assert 100 < ended.measured["calibration"]["target_qps"] <= 125
    assert not ended.measured["calibration"]["given"]


def test_server_runs_at_the_highest_rate_that_its_trials_held(tmp_path: Path) -> None:
    ended = run(tmp_path, "fixed", 4, settings("Server"))
    calibration, log = ended.measured["calibration"], ended.log()
    held = [trial["asked_qps"] for trial in calibration["trials"] if trial["held"]]
    lowest = min(trial["asked_qps"] for trial in calibration["trials"])
    assert calibration["target_qps"] == max(held, default=lowest)
    assert log["effective_target_qps"] == pytest.approx(calibration["target_qps"], rel=1e-5)
    # Whether the rate holds once more is the machine's matter; what LoadGen makes of it is not.
    assert log["num_errors"] == 0
    if log["result_max_latency_ns"] <= SERVER_LIMIT_NS:
        assert log["result_validity"] == "VALID"
    elif log["result_99.00_percentile_latency_ns"] > SERVER_LIMIT_NS:
        assert log["result_validity"] == "INVALID"


def test_server_answers_several_queries_in_a_batch(tmp_path: Path) -> None:
    wanted = settings("Server", target_qps=1000.0)
    ended = run(tmp_path, "null", 64, wanted, batch_s=0.005)  # one at a time it would manage 200/s
    log = ended.log()
    assert (log["result_validity"], log["num_errors"]) == ("VALID", 0)
    assert samples_of(log) >= 459
    assert ended.mark.batches < ended.mark.samples_completed / 3
    assert ended.result["largest_batch"] <= 64
    assert ended.measured["calibration"]["given"]
    assert ended.measured["effective"]["server_target_qps"] == 1000


def test_server_takes_no_batch_that_the_limit_has_no_room_for(tmp_path: Path) -> None:
    wanted = settings("Server", target_qps=500.0, server_target_latency_ns=20_000_000)
    ended = run(tmp_path, "fixed", 64, wanted)  # 64 would take 64 ms
    assert ended.measured["calibration"]["batch_size"] <= 8
    assert ended.result["largest_batch"] == 64  # while calibrating


def test_a_rate_far_too_low_is_invalid_by_loadgen(tmp_path: Path) -> None:
    ended = run(tmp_path, "fixed", 4, settings("Offline", target_qps=50.0))
    assert ended.log()["result_validity"] == "INVALID"
    assert ended.measured["calibration"]["target_qps"] == 50


def test_an_audit_config_lying_about_is_not_obeyed(tmp_path: Path) -> None:
    (tmp_path / "audit.config").write_text("*.*.mode = 2\n*.*.performance_issue_same = 1\n")
    ended = run(tmp_path, "fixed", 4, settings("Offline"))
    assert ended.log()["effective_performance_issue_same"] is False


def test_background_stays_at_work_through_every_turnover(tmp_path: Path) -> None:
    ended = run(tmp_path, "fixed", 4, settings("Offline", min_duration_ms=150), tests=6)
    logs = ended.logs()
    assert len(logs) == ended.measured["tests"] == ended.mark.tests_completed >= 6
    work = ended.work()
    assert work.longest_idle_s <= IDLE_LIMIT_S
    assert work.longest_gap_s <= IDLE_LIMIT_S + work.longest_batch_s
    assert work.filler_samples > 0
    assert ended.mark.samples_completed == sum(samples_of(log) for log in logs)
    assert all(log["num_errors"] == 0 and log["result_validity"] for log in logs)  # each told its result
    assert sum(log["result_validity"] == "VALID" for log in logs) >= len(logs) - 1
    assert ended.result["issuing"] == [ended.measured["begin_ns"]]
    assert ended.result["load_calls"] <= 2  # calibration's samples, then LoadGen's, for all tests
    assert {path.name for path in (tmp_path / "loadgen" / "test-0001").iterdir()} == {
        "mlperf_log_detail.txt",
        "mlperf_log_summary.txt",
    }


def test_background_on_torch_stays_at_work_too(tmp_path: Path) -> None:
    ended = run(tmp_path, "matmul", 2, settings("Offline", min_duration_ms=150), tests=5)
    assert ended.mark.tests_completed >= 5
    assert ended.work().longest_idle_s <= IDLE_LIMIT_S
    assert ended.work().filler_samples > 0


def test_background_ends_with_the_test_in_hand_when_its_time_has_come(tmp_path: Path) -> None:
    ended = run(tmp_path, "fixed", 4, settings("Offline", min_duration_ms=60_000), lasting_s=2.0)
    seconds = (ended.measured["end_ns"] - ended.result["begin_ns"]) / 1e9
    assert 2.0 <= seconds < 4.0
    assert ended.mark.samples_completed == sum(samples_of(log) for log in ended.logs())
    assert ended.logs()[-1]["result_validity"] == "VALID"


@pytest.mark.parametrize(
    ("scenario", "broken"),
    [
        ("Offline", {"break_at_load": 2}),  # calibration's samples are loaded first, then LoadGen's
        ("Server", {"break_at_load": 2}),  # on the thread that predicts, as is the next
        ("Offline", {"break_at_load": 1, "tests": 10}),
    ],
)
def test_what_breaks_in_a_callback_is_told_and_ends_the_process(
    tmp_path: Path, scenario: str, broken: dict[str, Any]
) -> None:
    ended = run(tmp_path, "fixed", 4, settings(scenario), **broken)
    assert (ended.code, ended.error) == (benchmark.TOLD, "ArithmeticError: the model broke")


def test_a_test_that_is_through_early_is_repeated_with_more_samples(tmp_path: Path) -> None:
    # As a GPU whose clocks rise only after the calibration.
    ended = run(tmp_path, "fixed", 4, settings("Offline", min_duration_ms=500), slow_calibration=True)
    assert ended.measured["tests"] == 2
    assert "test 1 was through early" in " ".join(ended.measured["notes"])
    assert (tmp_path / "calibration" / "early-1" / "mlperf_log_detail.txt").exists()
    assert loadgen.read_detail(tmp_path / "loadgen")["result_validity"] == "VALID"


def test_what_breaks_while_no_test_runs_is_raised(tmp_path: Path) -> None:
    ended = run(tmp_path, "fixed", 4, settings("Offline"), break_at_load=1)
    assert (ended.code, ended.error) == (benchmark.RAISED, "ArithmeticError: the model broke")
    assert not (tmp_path / "loadgen").exists()


def test_only_offline_can_be_background(tmp_path: Path) -> None:
    ended = run(tmp_path, "null", 1, settings("Server"), tests=1)
    assert ended.code == benchmark.RAISED
    assert "runs under Offline" in ended.error


@pytest.mark.slow
def test_memory_is_flat_over_many_background_tests(tmp_path: Path) -> None:
    ended = run(tmp_path, "null", 64, settings("Offline", min_duration_ms=2), tests=600)
    rss_mib = ended.result["rss_mib"]
    assert ended.mark.tests_completed >= 600
    assert rss_mib[-1] - rss_mib[len(rss_mib) // 4] < 1.0


def test_version() -> None:
    assert loadgen.version() == metadata.version("mlcommons-loadgen")
