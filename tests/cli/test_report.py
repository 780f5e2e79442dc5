"""``hetero-mig report`` on a run that was really made, and the page in a real browser where there is one."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from scheduler.report.tables import load
from tests.cli.program import QUICK, call

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of null, SingleStream, beside fixed."""
    path = tmp_path_factory.mktemp("report") / "run"
    asked = (
        "--main",
        "null",
        "--main-scenario",
        "singlestream",
        "--background",
        "fixed",
        "--slices",
        "cpu:2",
    )
    done = call(*asked, *QUICK, "--output", str(path))
    assert done.returncode in (0, 1), done.stderr
    return path


def test_a_run_is_reported_traced_and_read_into_tables(made: Path):
    done = call("report", str(made))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["report:", str(made / "report.html"), str(made / "report.md")]
    html = (made / "report.html").read_text()
    result = json.loads((made / "result.json").read_text())
    assert f'<span class="verdict {"good" if result["verdict"] == "VALID" else "bad"}">' in html
    assert "hetero-mig --main null --main-scenario SingleStream --main-duration 300ms" in html

    found = load(made)
    log = (made / found.manifest.main.name / "loadgen" / "mlperf_log_detail.txt").read_text()
    queries = int(re.findall(r'"result_query_count", "value": (\d+)', log)[0])
    assert len(found.latencies) == queries == found.each[0].samples
    # LoadGen's clock starts a little before the process's own and stops before it.
    assert found.percentiles()["p50"] == pytest.approx(result["main"]["latency_ms"]["p50"], abs=0.1)
    assert np.isfinite(found.benchmarks["exited_s"]).all()

    trace = made.parent / "trace.json"
    assert call("report", str(made), "--trace", str(trace)).returncode == 0
    assert len(json.loads(trace.read_text())["traceEvents"]) > 10


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["."], 2, "there is no manifest.json: it is no run"),
        ([".", ".", "--trace", "t.json"], 2, "--trace writes one RUN and nothing else"),
    ],
)
def test_what_is_no_run_is_told_in_one_message(tmp_path: Path, arguments: list[str], code: int, says: str):
    done = call("report", *arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


OWN_ERRANDS = re.compile(r"https?://[^/]*\.(google|googleapis|gvt1)\.com/")
"""What Chromium asks for by itself, whatever it shows."""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
@pytest.mark.parametrize("scheme", ["0", "1"], ids=["dark", "light"])
def test_a_browser_shows_it_without_a_complaint_or_a_request(made: Path, tmp_path: Path, scheme: str):
    assert call("report", str(made), "--output", str(tmp_path / "report.html")).returncode == 0
    complaints, requested = shown(tmp_path / "report.html", tmp_path, scheme)
    assert (complaints, requested) == ([], [])

    other = tmp_path / "other.html"
    other.write_text("<script>console.log('hm')</script><img src='http://nowhere.invalid/x.png'>")
    complaints, requested = shown(other, tmp_path, scheme)
    assert len(complaints) >= 1
    assert set(requested) == {"http://nowhere.invalid/x.png"}


def shown(page: Path, folder: Path, scheme: str) -> tuple[list[str], list[str]]:
    """What the page wrote to the console, and the addresses that were asked for because of it."""
    net_log, picture = folder / f"{page.stem}.json", folder / f"{page.stem}.png"
    done = subprocess.run(
        [
            *(str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
            *("--disable-background-networking", "--disable-component-update", "--no-first-run"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={folder / page.stem}"),
            *(f"--blink-settings=preferredColorScheme={scheme}", f"--log-net-log={net_log}"),
            *(f"--screenshot={picture}", "--window-size=1100,4000", page.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert picture.stat().st_size > 1000, done.stderr
    requested = re.findall(r'"url":"(https?://[^"]*)"', net_log.read_text())
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return complaints, [url for url in requested if not OWN_ERRANDS.match(url)]
