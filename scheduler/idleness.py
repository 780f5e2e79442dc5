"""Whether all but main's slice was idle in a baseline: what was seen in, findings out. Pure."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scheduler.result import Finding, SliceRecord

BUSY_LIMIT = 0.2
"""Of an idle CPU slice's time within main's window. A benchmark there would take all of it, a quiet host's own
work a few percent."""
LEAST_S = 2.0
"""Between the samples that this is told by: the kernel counts in steps of 10 ms, and short bursts are no work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What was seen on a GPU, or a CPU slice, where nothing but main was to compute."""

    name: str
    before: tuple[int, ...] | None = ()
    """Processes computing there before main was launched; None: the driver does not tell."""
    after: tuple[int, ...] | None = ()
    """The same once main's process was gone; none where that is not yet noted."""
    busy: float | None = None
    """Part of the time of its cores, main's left out, that was spent working in main's window."""
    untold: bool = False
    """There is too little telemetry in main's window to tell."""


def seen(
    processes: Mapping[str, Mapping[str, Sequence[int] | None]],
    samples: Sequence[Mapping[str, Any]],
    window: tuple[float, float] | None,
    idle: Sequence[SliceRecord],
    mains_cores: Collection[int] = (),
) -> list[Seen]:
    """From what the folder holds: ``idle.json``, ``telemetry.jsonl``, main's window, and the slices left idle.

    Cores have a figure where main's window holds samples that are far enough apart.
    """
    before = processes.get("before", {})
    after = processes.get("after", dict.fromkeys(before, ()))
    gpus = [Seen(name=name, before=_pids(before[name]), after=_pids(after.get(name))) for name in before]
    within = [
        line
        for line in samples
        if "idle_cores_busy_s" in line and window and window[0] <= line["at_s"] <= window[1]
    ]
    on_cores = [one for one in idle if one.kind == "cpu"]
    if not within or within[-1]["at_s"] - within[0]["at_s"] < LEAST_S:
        others = [one for one in on_cores if window and not set(one.cores) <= set(mains_cores)]
        return [*gpus, *(Seen(name=one.id, untold=True) for one in others)]

    return [*gpus, *(Seen(name=one.id, busy=_busy(within[0], within[-1], one)) for one in on_cores)]


def findings(places: Sequence[Seen]) -> Iterable[Finding]:
    """A breach for each place that was at work: what was measured beside it is no baseline."""
    for one in places:
        pids = sorted({*(one.before or ()), *(one.after or ())})
        if pids:
            yield Finding(
                code="slice-not-idle",
                severity="breach",
                message=f"main was not alone: on {one.name} other processes compute, pids "
                f"{', '.join(map(str, pids))}",
                figure=len(pids),
                limit=0,
                recommendation="end them, then run again",
            )

        if one.busy is not None and one.busy > BUSY_LIMIT:
            yield Finding(
                code="slice-not-idle",
                severity="breach",
                message=f"main was not alone: the cores of {one.name} worked for {one.busy:.0%} of its window",
                figure=round(one.busy, 3),
                limit=BUSY_LIMIT,
                recommendation="end what else runs on this machine, then run again",
            )

    untold = [one.name for one in places if one.before is None or one.after is None]
    if untold:
        yield Finding(
            code="idle-not-verified",
            severity="warning",
            message=f"the driver does not tell who computes on {', '.join(untold)}",
            recommendation="run as a user who may see the processes of others",
        )

    unseen = [one.name for one in places if one.untold]
    if unseen:
        yield Finding(
            code="idle-not-verified",
            severity="warning",
            message=f"whether the cores of {', '.join(unseen)} were idle is not known: there is no telemetry over "
            f"{LEAST_S:g} s of main's window",
            limit=LEAST_S,
            recommendation="give a longer --main-duration and leave --telemetry on",
        )


def _pids(listed: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if listed is None else tuple(listed)


def _busy(first: Mapping[str, Any], last: Mapping[str, Any], idle: SliceRecord) -> float | None:
    begin, end = first["idle_cores_busy_s"], last["idle_cores_busy_s"]
    cores = [
        core for core in map(str, idle.cores) if begin.get(core) is not None and end.get(core) is not None
    ]
    if not cores:  # all of them are main's too
        return None

    return float(sum(end[core] - begin[core] for core in cores) / (last["at_s"] - first["at_s"]) / len(cores))
