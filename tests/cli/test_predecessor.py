"""The predecessor's command line, through scripts/launch_heterogeneous_mig.py."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler import cli
from tests.documents import HETEROGENEOUS_MIG_MD, LAUNCH_HETEROGENEOUS_MIG_MD, words_of

ROOT = Path(__file__).parent.parent.parent
RUNS = [
    command
    for document in (HETEROGENEOUS_MIG_MD, LAUNCH_HETEROGENEOUS_MIG_MD)
    for what, command in document.items()
    if what in ("performance", "accuracy")
]


def script(command: str, *more: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command as the document has it, for this Python and wherever the repository is, and more after it."""
    words = [str(ROOT / "scripts" / "launch_heterogeneous_mig.py"), *words_of(command), *more]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=cwd, timeout=900)


@pytest.mark.parametrize("command", RUNS)
def test_the_documents_runs_are_planned(command: str, capsys: pytest.CaptureFixture[str]):
    words = [*words_of(command), "--dryrun", "--", "--slices", "cpu"]
    assert cli.root.main(["predecessor", *words], prog_name="hetero-mig", standalone_mode=False) == 0
    told = capsys.readouterr()
    planned = re.findall(r"^(?:main|background-\d)-\S+", told.out, re.MULTILINE)
    assert planned == [
        "main-ssd-resnet34",
        "background-1-3d-unet",
        "background-2-bert",
        "background-3-dlrm",
        "background-4-resnet50",
        "background-5-rnnt",
    ]
    assert ("Server, accuracy" in told.out) == ("AccuracyOnly" in command)
    assert "here: hetero-mig --main ssd-resnet34 --main-scenario server" in told.err
    assert "note: --start_time_buffer=600000: waited after" in told.err


def test_the_script_runs_and_its_exit_code_is_the_verdicts(tmp_path: Path):
    short = "--main_benchmark_duration=300 --start_time_buffer=50 --end_time_buffer_min=50"
    command = f"python3 scripts/launch_heterogeneous_mig.py --main_benchmark=null --main_scenario=SingleStream {short}"
    folder = tmp_path / "run"
    done = script(
        command,
        *("--background_benchmarks=fixed", "--main_benchmark_runargs=--min_query_count=77", "--", "--output"),
        *(str(folder), "--json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["verdict"], result["main"]["settings"]["min_query_count"]) == ("VALID", 77)
    assert "here: hetero-mig --main null" in done.stderr
    assert result["timing"]["start_buffer_s"] == 0.05


def test_its_help_and_its_refusals(tmp_path: Path):
    assert (
        "--main_benchmark_immediate_start BOOL" in script(HETEROGENEOUS_MIG_MD["help"], cwd=tmp_path).stdout
    )
    refused = script(HETEROGENEOUS_MIG_MD["performance"], "--lenient=False", cwd=tmp_path)
    assert refused.returncode == 2
    assert "ignored explicit argument 'False'" in refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", RUNS[:2])
def test_the_documents_runs_are_carried_out_with_short_durations(tmp_path: Path, command: str):
    short = ["--main_benchmark_duration=5000", "--start_time_buffer=1000", "--end_time_buffer_min=1000"]
    # At a rate within Server's latency a few cores take hours for 459 queries; at this one 6.3 minutes (and INVALID).
    if "runargs" not in command:
        short.append("--main_benchmark_runargs=--server_target_qps=20")

    folder = tmp_path / "run"
    done = script(command, *short, "--", "--slices", "cpu", "--output", str(folder), cwd=tmp_path)
    result = json.loads((folder / "result.json").read_text())
    background = result["background"]
    assert {one["workload"] for one in background} == {"3d-unet", "bert", "dlrm", "resnet50", "rnnt"}
    assert all(one["samples_in_main_window"] > 0 for one in background)
    assert result["main"]["mode"] == ("AccuracyOnly" if "AccuracyOnly" in command else "PerformanceOnly")
    assert done.returncode == (0 if result["verdict"] == "VALID" else 1), done.stdout
