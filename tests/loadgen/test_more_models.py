"""The real LoadGen on workloads that answer otherwise than the others: losses of training steps, texts."""

from pathlib import Path

import pytest

from tests.loadgen.test_loadgen import run, samples_of, settings

SHORT = settings("Offline", performance_sample_count=16, min_duration_ms=2, target_qps=4_000.0)
"""A few samples, which any machine takes longer over than 2 ms, however fast it is."""


@pytest.mark.parametrize(
    "workload", [pytest.param("vision-transformer:train", marks=pytest.mark.slow), "llama"]
)
def test_main_is_valid_offline(tmp_path: Path, workload: str):
    ended = run(tmp_path, workload, 4, SHORT)
    log = ended.log()
    assert (log["result_validity"], log["num_errors"]) == ("VALID", 0), (ended.measured, ended.error)
    assert ended.mark.samples_completed == samples_of(log) > 4
    assert ended.result["largest_batch"] <= 4


def test_training_is_kept_busy_in_the_background(tmp_path: Path):
    ended = run(tmp_path, "swin-transformer:train", 4, SHORT, tests=3)
    assert ended.measured["tests"] >= 3
    for log in ended.logs():
        assert (log["result_validity"], log["num_errors"]) == ("VALID", 0)

    assert ended.work().samples >= samples_of(ended.logs()[0]) == 4
