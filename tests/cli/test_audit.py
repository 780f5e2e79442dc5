"""Audits from the command line: an honest SUT passes, each cheat fails the test that is there for it; and export."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from click.testing import CliRunner

from scheduler import submission, submission_rules
from scheduler.cli import root
from scheduler.errors import FolderTaken, HeteroMigError
from scheduler.spec import loadgen_round
from tests.cli.program import call
from tests.house import ROOT

SUTS = ROOT / "tests" / "cli" / "suts.py"
BUFFERS = ("--start-buffer", "50ms", "--end-buffer", "50ms")
QUICK = ("--slices", "cpu", "--preset", "quick", "--main-duration", "600ms", *BUFFERS)

TWICE = ("--main-duration", "1200ms")
"""Long enough for samples to be asked for again."""


def audited(test: str, sut: str, folder: Path, *more: str) -> dict[str, Any]:
    """The answer of an audit, whose exit code says the same."""
    done = call("audit", test, "--main", sut, *QUICK, *more, "--output", str(folder), "--json", "--quiet")
    assert done.returncode in (0, 1), done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["verdict"] == ("FAIL" if done.returncode else "PASS")
    assert answer == json.loads((folder / "result.json").read_text())
    return answer


def said_at_once(*words: str) -> tuple[int, str]:
    """Exit code, and what was told, of a command that starts no process; called in this one."""
    done = CliRunner().invoke(root, words)
    if isinstance(done.exception, HeteroMigError):
        return done.exception.exit_code, str(done.exception)

    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


def in_place_of_honest(sut: str, folder: Path) -> str:
    """A SUT that goes by the honest one's name, so that the honest one's runs are taken for its own."""
    file = folder / "suts.py"
    file.write_text(f"{SUTS.read_text()}\n\nHonest = {sut}\n")
    return f"{file}:Honest"


def failed(answer: dict[str, Any]) -> dict[str, str]:
    """What did not pass, but for warnings of what else runs on this machine."""
    checks = [check for check in answer["checks"] if not check["what"].startswith("conditions")]
    return {check["what"]: check["message"] for check in checks if not check["passed"]}


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with TEST01 and TEST04 of an honest SUT, alone, of round v6.1."""
    folder = tmp_path_factory.mktemp("honest")
    one = audited("TEST01", f"{SUTS}:Honest", folder / "01", "--round", "v6.1")
    assert (one["verdict"], one["background"], failed(one)) == ("PASS", [], {})
    made = folder / "01" / "runs" / "performance"
    four = audited(
        "test04", f"{SUTS}:Honest", folder / "04", "--round", "v6.1", "--performance-run", str(made)
    )
    assert (four["verdict"], sorted(four["runs"])) == ("PASS", ["TEST04", "performance"])
    return folder


def test_what_mlperfs_scripts_expect_is_left(honest: Path):
    left = honest / "01" / "mlperf"
    files = {str(path.relative_to(left)) for path in left.rglob("*") if path.is_file()}
    logs = {"mlperf_log_detail.txt", "mlperf_log_summary.txt"}
    run, test = "performance/run_1", "compliance/TEST01"
    assert files == {
        *(f"results/{run}/{name}" for name in logs),
        *(f"results/accuracy/{name}" for name in (*logs, "mlperf_log_accuracy.json")),
        *(f"TEST01_logs/{name}" for name in (*logs, "mlperf_log_accuracy.json", "audit.config")),
        *(f"{test}/{run}/{name}" for name in logs),
        *(f"{test}/{name}" for name in ("verify_accuracy.txt", "verify_performance.txt")),
        f"{test}/accuracy/mlperf_log_accuracy.json",
    }
    for name in ("verify_accuracy.txt", "verify_performance.txt"):
        assert "TEST PASS" in (left / test / name).read_text().splitlines()

    said = (left / "TEST01_logs" / "mlperf_log_detail.txt").read_text()
    assert '"key": "effective_accuracy_log_rng_seed", "value": 720381539243781796' in said
    logged = json.loads((left / "TEST01_logs" / "mlperf_log_accuracy.json").read_text())
    assert {len(entry["data"]) for entry in logged} == {2 * 8 * 8}


def test_in_company_with_the_seeds_of_test05(tmp_path: Path):
    answer = audited("TEST05", f"{SUTS}:Honest", tmp_path, "--round", "v4.1", "--background", "fixed")
    assert (answer["verdict"], answer["background"]) == ("PASS", ["fixed"]), failed(answer)
    said = (tmp_path / "mlperf" / "TEST05_logs" / "mlperf_log_detail.txt").read_text()
    assert '"key": "effective_qsl_rng_seed", "value": 16799458546791641818' in said
    before = (tmp_path / "runs" / "TEST05" / "events.jsonl").stat().st_mtime_ns
    again = audited("TEST05", f"{SUTS}:Honest", tmp_path, "--round", "v4.1", "--background", "fixed")
    assert again == answer
    assert (tmp_path / "runs" / "TEST05" / "events.jsonl").stat().st_mtime_ns == before


def test_a_sut_that_computes_a_sample_of_a_batch_once_fails_04(honest: Path, tmp_path: Path):
    made = ("--performance-run", str(honest / "01" / "runs" / "performance"))
    sut = in_place_of_honest("Caching", tmp_path)
    answer = audited("TEST04", sut, tmp_path / "audit", "--round", "v6.1", *made)
    found = failed(answer)
    assert found.keys() == {"performance of TEST04", "TEST04 run"}
    assert found["performance of TEST04"].endswith("as if answers were kept")
    assert "the minimum duration was not met" in found["TEST04 run"]


def test_an_invalid_performance_run_is_made_again_by_the_same_command_and_a_valid_one_kept(tmp_path: Path):
    sut, runs = tmp_path / "suts.py", tmp_path / "audit" / "runs"
    asked = ("TEST04", f"{sut}:Honest", tmp_path / "audit", "--round", "v6.1", "--target-qps", "400")
    sut.write_text(SUTS.read_text().replace("1024, 0.004", "1024, 0.00001"))
    hasty = audited(*asked)
    assert (hasty["verdict"], list(hasty["runs"])) == ("FAIL", ["performance"])
    assert "the minimum duration was not met" in failed(hasty)["performance run"]

    sut.write_text(SUTS.read_text())
    answer = audited(*asked)
    assert (answer["verdict"], list(answer["runs"])) == ("PASS", ["performance", "TEST04"]), failed(answer)
    assert {path.name for path in runs.iterdir()} == {"performance", "performance.former-1", "TEST04"}
    validated, told = said_at_once("validate", str(tmp_path / "audit"))
    assert (validated, "performance.former-1: INVALID" in told) == (0, True), told


@pytest.mark.slow
def test_a_sut_that_answers_differently_in_performance_mode_fails_01(tmp_path: Path):
    found = failed(audited("TEST01", f"{SUTS}:TwoFaced", tmp_path, *TWICE))
    assert found.keys() == {"every element of every answer", "MLPerf's own: first elements"}
    assert "TEST FAIL" in (tmp_path / "mlperf" / "compliance" / "TEST01" / "verify_accuracy.txt").read_text()


def test_a_sut_that_is_wrong_from_the_second_element_on_fails_01_though_mlperfs_script_passes_it(
    honest: Path, tmp_path: Path
):
    before = honest / "01" / "runs"
    made = [f"--{run}-run={before / run}" for run in ("performance", "accuracy")]
    sut, folder = in_place_of_honest("RightAtFirst", tmp_path), tmp_path / "audit"
    found = failed(audited("TEST01", sut, folder, "--round", "v6.1", *made))
    assert found.keys() == {"every element of every answer"}
    assert "element 1 of 8 differs" in found["every element of every answer"]
    assert "TEST PASS" in (folder / "mlperf" / "compliance" / "TEST01" / "verify_accuracy.txt").read_text()


@pytest.mark.slow
def test_a_sut_that_is_tuned_to_the_rounds_seeds_fails_05(tmp_path: Path):
    sut = f"{shutil.copy(SUTS, tmp_path / 'suts.py')}:Tuned"
    assert call("--main", sut, *QUICK, "--output", str(tmp_path / "first")).returncode == 0
    found = failed(audited("TEST05", sut, tmp_path / "audit"))
    assert "it is slower with other seeds than with the round's" in found["performance of TEST05"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("TEST05", "--main", "null", "--round", "v6.1"), "was dropped from v5.0 on"),
        (("TEST02", "--main", "null"), "TEST02"),
        (("TEST01",), "--main is missing"),
        (("TEST01", "--main", "nothing"), "there is no workload 'nothing'"),
    ],
)
def test_what_cannot_be_audited_is_refused(
    arguments: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    code, told = said_at_once("audit", *arguments)
    assert (code, said in told) == (2, True), told
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_something_else_is_not_taken(honest: Path, tmp_path: Path):
    made = str(honest / "01" / "runs" / "performance")
    output = ("--output", str(tmp_path / "audit"))
    asked = ("audit", "TEST04", "--main", "null", *QUICK, *output)
    code, told = said_at_once(*asked, "--performance-run", made)
    assert code == 2
    assert "workload suts.Honest, not null; batch size 8, not 1024" in told
    code, told = said_at_once("audit", "TEST01", "--main", "null", *QUICK, *output, "--accuracy-run", made)
    assert (code, "mode PerformanceOnly, not AccuracyOnly" in told) == (2, True), told
    code, told = said_at_once(*asked, "--accuracy-run", made)
    assert (code, "TEST04 has no accuracy run" in told) == (2, True), told
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_tells_the_runs_and_starts_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    code, told = said_at_once("audit", "TEST04", "--main", "null", "--slices", "cpu", "--dry-run")
    assert (code, "TEST04-B     one sample again and again" in told) == (0, True), told
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- export


@pytest.fixture
def as_resnet50(honest: Path, tmp_path: Path) -> list[str]:
    """The honest SUT's audits as if they were 600-second ones of a small resnet50."""
    for test in ("01", "04"):
        shutil.copytree(honest / test, tmp_path / test)

    for path in sorted(tmp_path.rglob("main-suts.Honest"), reverse=True):
        path.rename(path.with_name("main-resnet50"))

    for path in (each for each in tmp_path.rglob("*") if each.suffix in (".json", ".jsonl", ".txt")):
        text = path.read_text().replace("suts.Honest", "resnet50").replace(str(honest), str(tmp_path))
        text = text.replace('"preset": "quick"', '"preset": "mlperf"')
        text = re.sub(r'(effective_min_duration_ms", "value": )\d+', r"\g<1>600000", text)
        path.write_text(re.sub(r'(generated_samples_per_query", "value": )\d+', r"\g<1>24576", text))

    return [str(tmp_path / "01"), str(tmp_path / "04")]


def export(folders: list[str], output: Path, *more: str) -> tuple[int, str]:
    asked = ("export", "--mlperf", "v6.1", "--submitter", "ORG", "--output", str(output))
    return said_at_once(*asked, *more, *folders)


def test_a_rehearsal_of_small_models_is_written_marked_and_passes_the_rules(
    as_resnet50: list[str], tmp_path: Path
):
    code, told = export(as_resnet50, tmp_path / "tree", "--system", "SYS", "--rehearsal")
    assert code == 0, told
    for reason in ("the small model", "random weights", "judged by fidelity"):
        assert reason in told
        assert reason in (tmp_path / "tree" / "NOT-FOR-SUBMISSION.md").read_text()

    offline = tmp_path / "tree" / "closed" / "ORG" / "results" / "SYS" / "resnet" / "Offline"
    told = (offline / "accuracy" / "accuracy.txt").read_text()
    assert re.search(r"^hash=[0-9a-f]{64}$", told, re.MULTILINE)
    assert not re.search(r"^accuracy=", told, re.MULTILINE)
    log = (offline / "accuracy" / "mlperf_log_accuracy.json").read_bytes()
    whole = next(Path(as_resnet50[0]).glob("runs/accuracy/*/loadgen/mlperf_log_accuracy.json")).read_bytes()
    assert log == whole[:4096] + b"\n\n...\n\n" + whole[-4096:]
    code, told = export(as_resnet50, tmp_path / "tree", "--rehearsal")
    assert (code, "holds something already" in told) == (2, True), told
    code, told = export(as_resnet50, tmp_path / "tree" / "NOT-FOR-SUBMISSION.md", "--rehearsal")
    assert (code, "that is no folder" in told) == (2, True), told


def test_two_exports_into_one_folder_do_not_meet_and_the_second_is_told(
    as_resnet50: list[str], tmp_path: Path
):
    place, together = tmp_path / "place", Barrier(4)
    place.mkdir()

    def one(_: int) -> str:
        asked = submission.Asked(
            round="v6.1",
            folders=tuple(map(Path, as_resnet50)),
            submitter="ORG",
            system="SYS",
            system_type=None,
            division="closed",
            system_fields={},
            rehearsal=True,
            output=place / "tree",
        )
        together.wait()
        try:
            submission.export(asked)
        except FolderTaken as error:
            return error.found

        return "written"

    with ThreadPoolExecutor(4) as threads:
        told = sorted(threads.map(one, range(4)))

    assert told == [*["that folder holds something already"] * 3, "written"]
    assert [path.name for path in place.iterdir()] == ["tree"]
    assert (
        submission_rules.problems(submission.files_of(place / "tree"), loadgen_round("v6.1"), rehearsal=True)
        == []
    )


def test_a_tree_takes_its_name_at_once_or_not_at_all(tmp_path: Path):
    draft, file = tmp_path / "draft", tmp_path / "file"
    (draft / "closed").mkdir(parents=True)
    file.touch()
    with pytest.raises(FolderTaken, match="that is no folder"):
        submission.name_it(draft, file)

    (tmp_path / "tree" / "open").mkdir(parents=True)
    with pytest.raises(FolderTaken, match="holds something already"):
        submission.name_it(draft, tmp_path / "tree")

    (tmp_path / "tree" / "open").rmdir()
    submission.name_it(draft, tmp_path / "tree")
    assert (tmp_path / "tree" / "closed").is_dir()
    assert not draft.exists()


def test_without_that_word_every_reason_is_told_and_nothing_written(as_resnet50: list[str], tmp_path: Path):
    code, told = export(as_resnet50, tmp_path / "tree")
    assert code == 2
    for reason in ("the small model", "random weights", "judged by fidelity"):
        assert reason in told

    assert not (tmp_path / "tree").exists()


def test_an_audit_that_is_missing_is_named(as_resnet50: list[str], tmp_path: Path):
    code, told = export(as_resnet50[:1], tmp_path / "tree", "--rehearsal")
    assert code == 2
    made = f"--performance-run {as_resnet50[0]}/runs/performance`"
    assert "no TEST04 was named" in told
    assert f"`hetero-mig audit TEST04 --main resnet50 --main-scenario Offline --round v6.1 {made}" in told


def test_what_is_no_audit_or_a_damaged_one_is_named(honest: Path, as_resnet50: list[str], tmp_path: Path):
    code, told = export([str(tmp_path)], tmp_path / "tree")
    assert (code, "name the folder of a run" in told) == (2, True), told
    code, told = export([str(honest / "01")], tmp_path / "tree")
    assert (code, "suts.Honest Offline: a model of your own" in told) == (2, True), told
    answer = Path(as_resnet50[0], "result.json")
    answer.write_text(answer.read_text().replace('"runs"', '"runes"'))
    shutil.rmtree(answer.with_name("mlperf"))
    code, told = export(as_resnet50, tmp_path / "tree")
    assert (code, "it lacks runs, mlperf/compliance" in told) == (3, True), told


@pytest.mark.parametrize("name", ["A B", "A;B", "$(x)", "../A", ".A", "<script>", ""])
def test_a_name_that_a_shell_would_not_take_for_one_is_refused(name: str, tmp_path: Path):
    code, told = said_at_once("export", "--mlperf", "v6.1", "--submitter", name, str(tmp_path))
    assert (code, "it names a folder" in told) == (2, True), told
