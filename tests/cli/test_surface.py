"""Everything of the command line that starts no run."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import PROGRAM, call


def test_without_arguments_it_helps_and_exits_2():
    done = call()
    assert done.returncode == 2
    assert "--background" in done.stdout


def test_help_names_the_two_meanings_of_nvidias_start_time_buffer():
    done = call("--help")
    assert done.returncode == 0
    assert done.stdout.count("--start_time_buffer") == 2


BAD = [
    (["--main", "resnet51"], "there is no workload 'resnet51'"),
    (["--main", "null", "--main-duration", "600"], "a bare number could be seconds or milliseconds"),
    (["--main", "dlrm", "--main-scenario", "singlestream"], "it runs under Offline, Server"),
    (["--main", "null", "--background", "fixed,fixed", "--slices", "cpu:2"], "slices beside main's"),
    (["--main", "resnet50", "--background", "resnet"], "main is resnet50 itself"),
    (["--main", "null", "--slices", "mps:7"], "not in this version"),
    (
        ["--main", "null", "--main-slice", "gpu9", "--slices", "cpu:2"],
        "the slices of this run are cpu0, cpu1",
    ),
    (["--main", "null", "--precision", "fp16", "--slices", "cpu"], "fp16"),
    (["--main", "null", "--batch-size", "many"], "--batch-size"),
    (["--main", "null", "--target-qps", "-1"], "greater than 0"),
    (["--main", "null", "--weights", "nowhere.safetensors"], "there is no nowhere.safetensors"),
    (["--main", "matmul", "--data", "."], "reads no data folder"),
    (["--main", "null", "--no-such-option"], "No such option"),
    (["slices", "--main", "null"], "No such option"),
    (["--main", "null", "slices"], "--main is for a run"),
]


@pytest.mark.parametrize(
    ("arguments", "says"), BAD, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_gets_one_message_and_exit_2(tmp_path: Path, arguments: list[str], says: str):
    done = call(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_dry_run_prints_the_plan_and_starts_nothing(tmp_path: Path):
    arguments = ("--main", "resnet50", "--background", "datacenter", "--slices", "cpu", "--dry-run")
    table = call(*arguments, cwd=tmp_path)
    assert table.returncode == 0
    assert "background-5-ssd-resnet34" in table.stdout
    plan = json.loads(call(*arguments, "--json", cwd=tmp_path).stdout)
    assert [one["workload"] for one in plan["background"]] == [
        "3d-unet",
        "bert",
        "dlrm",
        "rnnt",
        "ssd-resnet34",
    ]
    assert list(tmp_path.iterdir()) == []


def test_an_answer_that_nothing_can_take_is_no_bug():
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([PROGRAM, "slices", "--json"], stdout=full, stderr=subprocess.PIPE, text=True)

    assert done.returncode == 3
    assert done.stderr.splitlines()[1] == "found: no space is left where that goes (standard output)"
    assert "Traceback" not in done.stderr


def test_slices_lists_at_least_the_cpu():
    found = json.loads(call("slices", "--json").stdout)
    assert "cpu" in [one["kind"] for one in found]
    assert call("slices").returncode == 0


def test_workloads_lists_the_catalogue():
    found = json.loads(call("workloads", "--json").stdout)
    assert {one["name"] for one in found} >= {"resnet50", "bert", "dlrm", "rnnt", "3d-unet", "null"}
    assert "datacenter" in call("workloads").stdout


HEAVY = ["torch", "torchvision", "transformers", "numpy", "pandas", "pynvml", "mlperf_loadgen", "pydantic"]


def test_help_imports_nothing_heavy():
    program = (
        "import sys\nfrom scheduler import cli\nsys.argv = ['hetero-mig', '--help']\n"
        "try:\n    cli.main()\nexcept SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_a_run_never_imports_torch_or_loadgen_in_the_launcher(tmp_path: Path):
    program = (
        "import sys\nfrom scheduler import cli\n"
        "sys.argv = ['hetero-mig', '--main', 'matmul', '--background', 'none', '--slices', 'cpu', '--preset',"
        f" 'quick', '--main-duration', '200ms', '--output', {str(tmp_path / 'run')!r}]\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    code = end.code\n"
        "names = ['torch', 'torchvision', 'transformers', 'mlperf_loadgen']\n"
        "print(code, [name for name in names if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "0 []", done.stdout + done.stderr
