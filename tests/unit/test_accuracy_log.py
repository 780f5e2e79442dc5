"""LoadGen's accuracy log: read by place, the first answer of each sample, and what is no such log."""

import hashlib
from pathlib import Path

import pytest

from workloads.accuracy_log import AccuracyLog
from workloads.protocol import WorkloadError

WHOLE = """[
{ "seq_id" : 0, "qsl_idx" : 7, "data" : "0502" },
{ "seq_id" : 1, "qsl_idx" : 3, "data" : "" },
{ "seq_id" : 2, "qsl_idx" : 7, "data" : "FFFF" }
]
"""


def log(folder: Path, text: str) -> Path:
    path = folder / "mlperf_log_accuracy.json"
    path.write_text(text)
    return path


def test_answers_by_sample_the_first_one_counts(tmp_path: Path):
    path = log(tmp_path, WHOLE)
    answers = AccuracyLog(path)
    assert dict(answers) == {7: b"\x05\x02", 3: b""}
    assert answers.entries == 3
    assert answers.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_empty_log_has_no_answers(tmp_path: Path):
    assert len(AccuracyLog(log(tmp_path, "[\n]\n"))) == 0


@pytest.mark.parametrize("text", [WHOLE[:60], WHOLE.replace("qsl_idx", "index"), "no log"])
def test_what_is_cut_off_or_of_another_kind_is_named(tmp_path: Path, text: str):
    path = log(tmp_path, text)
    with pytest.raises(WorkloadError, match=str(path)):
        AccuracyLog(path)


def test_an_answer_that_is_no_hexadecimal_number_is_named(tmp_path: Path):
    answers = AccuracyLog(log(tmp_path, WHOLE.replace("0502", "05Z2")))
    with pytest.raises(WorkloadError, match="sample 7 is no hexadecimal number"):
        answers[7]
    with pytest.raises(WorkloadError, match="sample 7 is no hexadecimal number"):
        list(answers.every())


def test_a_log_that_is_not_there_is_named(tmp_path: Path):
    with pytest.raises(WorkloadError, match="No such file"):
        AccuracyLog(tmp_path / "none.json")
