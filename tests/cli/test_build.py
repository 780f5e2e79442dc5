"""`hetero-mig build`: engines prepared, listed, removed, and used by the run after it."""

import json
from pathlib import Path

import pytest

from tests.cli.program import QUICK, call


@pytest.fixture(autouse=True)
def _cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HETERO_MIG_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--workloads NAMES says what is to be built"),
        (("--workloads", "resnet50", "--slices", "cpu"), "ask for --engine compile"),
        (("--workloads", "null", "--slices", "cpu", "--engine", "compile"), "it has no network"),
        (("--workloads", "bort"), "there is no workload 'bort'"),
        (("--list", "--engine", "compile"), "--engine is for building"),
        (("--max-size", "20"), "write a number and its unit"),
    ],
)
def test_what_is_asked_wrongly_is_refused(arguments: tuple[str, ...], said: str):
    done = call("build", *arguments)
    assert done.returncode == 2
    assert said in " ".join(done.stderr.split())


def test_the_limit_is_remembered():
    assert call("build", "--max-size", "500MB").returncode == 0
    assert "0 kept, 0.0 MiB of at most 477 MiB" in call("build", "--list").stdout


@pytest.mark.slow
def test_a_run_after_a_build_is_warm(tmp_path: Path):
    asked = ("--engine", "compile", "--slices", "cpu:1")
    built = call("build", "--workloads", "minilm", "--json", *asked)
    assert built.returncode == 0, built.stderr
    [told] = json.loads(built.stdout)
    assert told["built"]["how"] == "built"

    run = call("--main", "minilm", *asked, *QUICK, "--output", str(tmp_path / "run"), "--json")
    assert run.returncode == 0, run.stderr
    assert f"{told['built']['key']} was warm" in run.stdout
    tried = json.loads((tmp_path / "run" / "main-minilm" / "loadgen_settings.json").read_text())[
        "calibration"
    ]
    found = (
        tried["earlier_utc"] or "do not hold here" in run.stdout
    )  # that of the build, if the machine is quiet
    assert found, run.stdout

    [kept] = json.loads(call("build", "--list", "--json").stdout)
    assert kept["key"] == told["built"]["key"]
    assert "minilm" in call("build", "--list").stdout
    assert call("build", "--clear").stdout.startswith("removed 1 of 1")
    assert json.loads(call("build", "--list", "--json").stdout) == []


@pytest.mark.slow
def test_a_workload_that_cannot_be_made_ready_is_told_and_the_others_are_built():
    broken = ("--batch-size", "resnet50=1000000000")
    done = call(
        "build", "--workloads", "resnet50,minilm", "--engine", "compile", "--slices", "cpu:1", *broken
    )
    assert done.returncode == 3
    assert "FAILED" in done.stdout
    assert "minilm small fp32 compile ≤16 on cpu0: built" in done.stdout


@pytest.mark.slow
def test_a_build_that_cannot_be_kept_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("HETERO_MIG_CACHE", str(tmp_path / "file"))
    done = call("build", "--workloads", "minilm", "--engine", "compile", "--slices", "cpu:1")
    assert done.returncode == 3
    assert "FAILED: not kept: " in done.stdout
    assert "cannot be written to (Not a directory)" in done.stdout
