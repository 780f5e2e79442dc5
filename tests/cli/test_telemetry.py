"""Telemetry and metrics of real runs."""

import json
import socket
import subprocess
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from scheduler.columns import Line, Telemetry
from tests.cli.program import QUICK, call, looks, start

Samples = dict[tuple[str, str], float]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def scraped(port: int) -> Samples:
    """(metric, benchmark or phase or slice) → value."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        text = answer.read().decode()

    return {
        (
            one.name,
            one.labels.get("benchmark") or one.labels.get("phase") or one.labels.get("slice", ""),
        ): one.value
        for family in text_string_to_metric_families(text)
        for one in family.samples
    }


def scrape_until(program: subprocess.Popen[bytes], port: int, metric: str, of: str) -> Samples:
    """The first scrape in which that is above 0."""
    for _ in looks(program):
        try:
            found = scraped(port)
        except OSError:  # not yet, or no longer
            continue

        if found.get((metric, of), 0) > 0:
            return found

    raise AssertionError(f"the run ended with {program.returncode}, and {metric} of {of} was never above 0")


def test_a_run_is_sampled_told_to_prometheus_and_judged_the_same_again(tmp_path: Path):
    folder, port, textfile = tmp_path / "run", free_port(), tmp_path / "run.prom"
    quick = [*QUICK, "--main-duration", "1500ms"]
    told = ["--metrics-port", str(port), "--metrics-textfile", str(textfile)]
    program = start(folder, "--main", "null", "--background", "fixed", *quick, "--telemetry", "20hz", *told)
    found = scrape_until(program, port, "hetero_mig_phase", "measuring")
    assert found["hetero_mig_samples_completed_total", "background-1-fixed"] > 0
    assert found["hetero_mig_phase", "starting"] == 0
    assert found["hetero_mig_worker_memory_bytes", "background-1-fixed"] > 1e6
    assert textfile.read_text().startswith("# HELP hetero_mig")
    refused = call("--main", "null", "--metrics-port", str(port), "--output", str(tmp_path / "other"))
    assert refused.returncode == 2
    assert "in use" in refused.stderr
    assert not (tmp_path / "other").exists()

    assert program.wait() == 0
    assert not textfile.exists()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["spec"]["telemetry"] == 20
    about = Telemetry.model_validate_json((folder / "telemetry.json").read_text())
    lines = [Line.model_validate_json(line) for line in (folder / "telemetry.jsonl").read_text().splitlines()]
    assert about.lines == len(lines)
    seen = {name for line in lines for name in line.workers}
    assert seen == {"main-null", "background-1-fixed"}
    completed = [line.workers["main-null"].samples_completed for line in lines if "main-null" in line.workers]
    assert completed == sorted(completed)
    assert completed[-1] > 0

    again = call("validate", str(folder))
    assert (again.returncode, again.stderr) == (0, "")
    (folder / "telemetry.json").unlink()
    again = call("validate", str(folder))
    assert "telemetry-gap" in again.stdout


def test_what_is_no_rate_is_refused_before_anything_starts(tmp_path: Path):
    done = call("--main", "null", "--telemetry", "10", "--output", str(tmp_path / "run"))
    assert done.returncode == 2
    assert "asked: --telemetry 10\nfound: not a rate" in done.stderr
    assert not (tmp_path / "run").exists()
