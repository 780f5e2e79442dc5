"""Calls the installed program."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PROGRAM = str(Path(sys.executable).with_name("hetero-mig"))
QUICK = ("--preset", "quick", "--main-duration", "300ms", "--start-buffer", "50ms", "--end-buffer", "50ms")


def call(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Call it and wait for its end."""
    return subprocess.run([PROGRAM, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120)


def start(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """Start a run in its own session, so that a signal to it is to it alone."""
    return subprocess.Popen(
        [PROGRAM, *arguments, "--output", str(folder)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def events(folder: Path) -> list[dict[str, Any]]:
    """The record so far."""
    path = folder / "events.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def looks(program: subprocess.Popen[bytes]) -> Iterator[None]:
    """One a look at what a running program does, until it ends; between two the processor is left to others, for a
    moment in which nothing is assumed to happen."""
    while program.poll() is None:
        yield
        time.sleep(0.005)


def wait_until(program: subprocess.Popen[bytes], folder: Path, what: str, name: str) -> dict[str, Any]:
    """The first event of that kind about a benchmark whose name starts with ``name``."""
    for _ in looks(program):
        for event in events(folder):
            if event["what"] == what and event["name"].startswith(name):
                return event

    raise AssertionError(f"the run ended with {program.returncode} before {what} of {name}")


def workers(folder: Path) -> list[int]:
    """Pids of the workers that came to be ready."""
    return [event["facts"]["pid"] for event in events(folder) if event["what"] == "Ready"]
