"""How far each benchmark was at which time: the record's events as spans. Used by the pictures and the trace."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from scheduler.result import Manifest
from scheduler.story import BenchmarkStory, RunStory

Stage = Literal["load", "prepare", "issue", "end"]
"""Launch to ready; to the first query (main: its calibration); to the last completion; to its exit."""
Phase = Literal["start", "start buffer", "main starts", "main's window", "end buffer", "stop"]
SAYS = {
    "load": "loads",
    "prepare": "warms up, calibrates",
    "issue": "issues",
    "end": "ends",
}


@dataclass(frozen=True, slots=True)
class Span:
    """One benchmark's stage, or the run's phase; s on the run's clock."""

    what: str
    begin_s: float
    end_s: float


def stages_of(told: BenchmarkStory | None, last_completion_s: float | None, until_s: float) -> list[Span]:
    """One benchmark's stages, in order; the one it was in when the record ends lasts until ``until_s``."""
    if told is None or told.launched_at is None:
        return []

    issued_s = told.issuing.first_issue_at if told.issuing is not None else None
    ended_s = told.finished.end if told.finished is not None else last_completion_s
    edges: list[tuple[Stage, float | None]] = [
        ("load", told.launched_at),
        ("prepare", told.ready.at if told.ready is not None else None),
        ("issue", issued_s),
        ("end", ended_s if issued_s is not None and told.exited is not None else None),
    ]
    begun = [(stage, at) for stage, at in edges if at is not None]
    ends = [at for _stage, at in begun[1:]] + [told.exited.at if told.exited is not None else until_s]
    return [Span(stage, at, max(at, end)) for (stage, at), end in zip(begun, ends, strict=True)]


def phases_of(manifest: Manifest, told: RunStory, window: tuple[float, float] | None) -> list[Span]:
    """The run's phases, as far as it came."""
    main = told.benchmarks.get(manifest.main.name, BenchmarkStory())
    issuing = [
        one.issuing.at
        for name, one in told.benchmarks.items()
        if one.issuing is not None and name != manifest.main.name
    ]
    all_issue = len(issuing) == len(manifest.background)
    alone = manifest.first_main is None  # else other mains run in what would be the buffers
    began_s = min(
        (one.launched_at for one in told.benchmarks.values() if one.launched_at is not None), default=None
    )
    edges: list[tuple[Phase, float | None]] = [
        ("start", began_s if manifest.background else None),
        ("start buffer", max(issuing, default=None) if all_issue and alone else None),
        ("main starts", main.launched_at),
        ("main's window", None if window is None else window[0]),
        ("end buffer", window[1] if window is not None and manifest.background and alone else None),
        ("stop", told.first_stop_at),
    ]
    return list(_filled(edges, told.last_exit_at))


def _filled(edges: list[tuple[Phase, float | None]], over_s: float | None) -> Iterator[Span]:
    begun = [(phase, at) for phase, at in edges if at is not None]
    for (phase, at), end in zip(begun, [*(at for _phase, at in begun[1:]), over_s], strict=False):
        if end is not None and end >= at:
            yield Span(phase, at, end)
