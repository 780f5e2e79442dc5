"""``derate``, ``compare`` and ``reference`` from the command line, on one core: there no other slice has cores of its
own that what else runs on this machine could disturb."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.derating import Derating
from scheduler.record import RunFolder
from tests.cli.program import PROGRAM, QUICK, call, wait_until

ASKED = ("derate", "--main", "fixed", "--background", "null", *QUICK)


@pytest.fixture(scope="module", autouse=True)
def one_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A derating of one pair that was killed in the middle of its second run, and gone on with."""
    place = tmp_path_factory.mktemp("results") / "derate [/b]"
    program = subprocess.Popen(
        [PROGRAM, *ASKED, "--repeats", "1", "--output", str(place)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    wait_until(program, place / "runs" / "01-hetero", "Issuing", "background-")
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    assert not (place / "result.json").exists()
    first = (place / "runs" / "01-baseline" / "result.json").stat().st_mtime_ns

    done = call(*ASKED, "--repeats", "1", "--output", str(place))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VALID derating of fixed, Offline" in done.stdout
    assert "too noisy to tell" in done.stdout
    assert (place / "runs" / "01-baseline" / "result.json").stat().st_mtime_ns == first
    return place


def test_what_was_cut_short_is_kept_and_what_was_done_not_repeated(folder: Path):
    there = sorted(path.name for path in (folder / "runs").iterdir())
    assert there == ["01-baseline", "01-hetero", "01-hetero.cut-1"]
    assert not (folder / "runs" / "01-hetero.cut-1" / "result.json").exists()


def test_both_runs_have_the_same_options_and_under_offline_each_its_own_rate(folder: Path):
    answer = Derating.model_validate_json((folder / "result.json").read_text())
    assert answer.main.target_qps is None
    assert [one.kind for one in answer.runs] == ["baseline", "hetero"]
    alone, beside = (RunFolder(folder / "runs" / one.key).manifest() for one in answer.runs)
    assert alone["main"]["settings"] == beside["main"]["settings"]
    assert alone["main"]["settings"]["target_qps"] is None
    assert (alone["background"], alone["idle"]) == ([], ["cpu1"])
    assert alone["slices"] == beside["slices"]


def test_more_repeats_go_on_in_the_same_folder(folder: Path):
    done = call(*ASKED, "--repeats", "2", "--output", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    answer = Derating.model_validate_json(done.stdout)
    assert (answer.pairs, [one.key for one in answer.runs][2:]) == (2, ["02-baseline", "02-hetero"])
    assert answer.ratios[0].interval is not None


def test_validate_judges_each_run_of_a_series(folder: Path):
    done = call("validate", str(folder))
    assert done.returncode == 0, done.stderr
    assert "01-baseline: VALID\n01-hetero: VALID\n" in done.stdout
    assert "01-hetero.cut-1: cut short, not judged" in done.stderr


def test_another_question_is_refused_in_that_folder(folder: Path):
    done = call(*ASKED, "--seed", "7", "--output", str(folder))
    assert done.returncode == 2
    assert "asked.seed" in done.stderr


def test_a_baseline_is_judged_by_what_was_seen_on_the_idle_slices(tmp_path: Path):
    place = tmp_path / "run"
    asked = ("--main", "null", "--slices", "cpu:2", *QUICK, "--main-duration", "2500ms")
    done = call("baseline", *asked, "--output", str(place))
    assert done.returncode == 0, done.stdout + done.stderr
    folder = RunFolder(place)
    assert (folder.result()["kind"], folder.manifest()["idle"]) == ("baseline", ["cpu1"])

    begin_s = folder.result()["main"]["window"]["begin_s"]
    for after_s in (0.1, 2.2):
        line = {"at_s": begin_s + after_s, "idle_cores_busy_s": {"0": after_s}}
        folder.append_line("telemetry.jsonl", line)

    again = call("validate", str(place))
    assert again.returncode == 1
    assert "slice-not-idle: main was not alone: the cores of cpu1 worked for 100%" in again.stdout


def test_an_invalid_run_ends_it_with_1(tmp_path: Path):
    asked = (*ASKED, "--target-qps", "1", "--main-duration", "5s")  # a few samples, and done
    done = call(*asked, "--repeats", "3", "--output", str(tmp_path / "derate"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "run-invalid" in done.stdout
    assert [path.name for path in (tmp_path / "derate" / "runs").iterdir()] == ["01-baseline"]
    told = " ".join(done.stdout.split())
    assert f"remove {tmp_path}/derate/runs/01-baseline first" in told


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("derate", "--main", "null"), "--background is missing"),
        (("derate", "--main", "null", "--background", "none"), "there is no background"),
        (("derate", "--main", "null", "--background", "fixed", "--margin", "nan"), "nan is not a percentage"),
        (("derate", "--main", "null", "--background", "null"), "main's model is never in the background"),
        (("baseline",), "--main is missing"),
        (("compare", "tests", "docs"), "no result.json"),
        (("compare", "tests", "docs", "--max-regression", "much"), "write 5%"),
        (("reference", "--scenario", "offhand"), "Offline"),
        (("reference", "--workload", "nonsense"), "take one of 3d-unet"),
    ],
)
def test_what_is_asked_wrongly_is_told_and_starts_nothing(arguments: tuple[str, ...], why: str):
    done = call(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_compare_has_a_limit_for_ci(folder: Path):
    alone, beside = str(folder / "runs" / "01-baseline"), str(folder / "runs" / "01-hetero")
    told = json.loads(call("compare", alone, beside, "--json").stdout)
    assert told["rows"][0]["figure"] == "result_samples_per_second"
    assert {one["name"] for one in told["conditions"]} >= {"kind", "background"}
    assert call("compare", alone, alone, "--max-regression", "0%").returncode == 0
    assert call("compare", alone, beside, "--max-p99-regression", "5%").returncode == 1  # Offline has none
    both = call("compare", str(folder), str(folder))
    assert both.returncode == 0
    assert "throughput, ratio" in both.stdout
    mixed = call("compare", alone, str(folder))
    assert mixed.returncode == 2
    assert "one is a run, the other a derating" in mixed.stderr


def test_reference_stands_beside_a_run_of_ones_own(folder: Path):
    done = call("reference", str(folder), "--workload", "resnet", "--round", "v2.0", "--system", "a100-sxm")
    assert done.returncode == 0, done.stderr
    assert "0.994" in done.stdout
    assert "TensorRT" in done.stdout
    told = json.loads(call("reference", "--workload", "bert-99", "--scenario", "server", "--json").stdout)
    assert {tuple(one["benchmarks"]) for one in told["published"]} == {("bert-99",)}
    assert told["yours"] is None
