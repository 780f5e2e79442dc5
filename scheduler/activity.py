"""What telemetry says of the conditions of a run: throttling, foreign processes, a busy host, memory errors, gaps.

Pure: the lines of ``telemetry.jsonl`` and ``telemetry.json`` in, findings out.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from scheduler.columns import ACTIVITY, GpuColumns, GpuState, Line, Telemetry, WorkerColumns
from scheduler.result import Finding

THROTTLED_LIMIT = 0.01
"""Of main's window."""
HARMLESS_REASONS = {"gpu_idle", "applications_clocks_setting", "display_clock_setting"}
"""Of ``throttle_reasons``: the clocks are as somebody wants them."""
HOST_LOAD_LIMIT = 0.1
"""Of a slice's cores, taken by others than the run's workers."""
HOST_LOAD_LEAST_S = 0.5
"""The kernel counts CPU time in 10 ms: over less than this, a tenth of a core is guesswork."""
GAP_LIMIT_S, GAP_LIMIT_PERIODS = 2.0, 10.0
CLOCK_SETTINGS = {
    "sm_clock_max_mhz": "MHz, the SMs' highest clock",
    "memory_clock_max_mhz": "MHz, the memory's highest clock",
    "sm_clock_asked_mhz": "MHz, the application clock",
    "power_limit_w": "W, the power limit",
    "ecc_enabled": "ECC",
}
"""Of ``GpuState``: what no one changes while a run lasts, and what it is."""

Window = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The telemetry of one run."""

    telemetry: Telemetry | None
    """None: the run was to have telemetry, and has none."""
    rate_hz: float
    """As asked."""
    lines: Sequence[Line] = ()
    cores: Mapping[str, Collection[int]] = field(default_factory=dict)
    """Of each slice."""


def strangers(pids: Collection[int], ours: Collection[int]) -> tuple[int, ...]:
    """Those of the pids on a device that are no worker of ours.

    In a container NVML tells the host's pids, and none of ours is among them: then as many as there are workers
    are taken to be ours, the lowest.
    """
    known = set(ours)
    if known & set(pids):
        return tuple(sorted(set(pids) - known))

    return tuple(sorted(pids)[len(known) :])


def findings(seen: Seen, window: Window | None) -> Iterable[Finding]:
    """What was not as it should be; ``window`` is main's, None where it has none."""
    if window is not None:
        inside = [line for line in seen.lines if window[0] <= line.at_s <= window[1]]
        yield from _gaps(seen, inside, window)
        for uuid in _names(line.gpus for line in inside):
            yield from _throttled(uuid, inside)

        yield from _host_load(seen, inside)

    yield from _foreign(seen)
    yield from _out_of_range(seen.lines)
    for uuid, before in {} if seen.telemetry is None else seen.telemetry.before.items():
        after = seen.telemetry.after.get(uuid)  # type: ignore[union-attr]  # the loop is empty then
        yield from _changed(uuid, before, after)
        yield from _memory_errors(uuid, before, after, seen.lines)


def _gaps(seen: Seen, inside: Sequence[Line], window: Window) -> Iterable[Finding]:
    times = [window[0], *(line.at_s for line in inside), window[1]]
    longest_s = max(later - earlier for earlier, later in pairwise(times))
    limit_s = max(GAP_LIMIT_S, GAP_LIMIT_PERIODS / seen.rate_hz)
    if seen.telemetry is None or longest_s > limit_s:
        yield Finding(
            code="telemetry-gap",
            severity="warning",
            message=f"there is no telemetry for {longest_s:.3f} s of main's window",
            figure=round(longest_s, 6),
            limit=limit_s,
            recommendation="what the machine did in that time is not known: give the launcher a core, or a lower "
            "--telemetry rate",
        )


def _throttled(uuid: str, inside: Sequence[Line]) -> Iterable[Finding]:
    told = [(line.at_s, line.gpus[uuid]) for line in inside if uuid in line.gpus]
    shares = _counted(told) or _sampled([one for _at, one in told])
    held = {reason: share for reason, share in shares.items() if share > THROTTLED_LIMIT}
    if held:
        words = ", ".join(f"{reason} {share:.0%}" for reason, share in sorted(held.items()))
        yield Finding(
            code="throttled",
            severity="warning",
            message=f"the clocks of {uuid} were held back within main's window: {words} of its time",
            figure=round(max(held.values()), 4),
            limit=THROTTLED_LIMIT,
            recommendation="a power cap is shared by all slices; thermal or brake: mend the cooling or the supply",
        )


def _counted(told: Sequence[tuple[float, GpuColumns]]) -> dict[str, float]:
    """Part of the time by reason, from the driver's own counters; empty without two readings."""
    counted = [(at, one.throttled_s) for at, one in told if one.throttled_s is not None]
    if len(counted) < 2:
        return {}

    (began, first), (ended, last) = counted[0], counted[-1]
    return {reason: (last[reason] - first[reason]) / (ended - began) for reason in first if reason in last}


def _sampled(told: Sequence[GpuColumns]) -> dict[str, float]:
    """Part of the samples by reason."""
    sampled = [one.throttle_reasons for one in told if one.throttle_reasons is not None]
    reasons = {reason for one in sampled for reason in one} - HARMLESS_REASONS
    return {reason: sum(reason in one for one in sampled) / len(sampled) for reason in reasons}


def _host_load(seen: Seen, inside: Sequence[Line]) -> Iterable[Finding]:
    for cores, slices in _by_cores(seen).items():
        busy = _rate(
            [(line.at_s, line.slices[slices[0]].cores_busy_s) for line in inside if slices[0] in line.slices]
        )
        ours = [
            _worker_rate([(line.at_s, line.workers[name]) for line in inside if name in line.workers])
            for name in _names(line.workers for line in inside)
            if any(name in line.workers and line.workers[name].slice in slices for line in inside)
        ]
        known = [one for one in ours if one is not None]
        if busy is None or not ours or len(known) < len(ours):
            continue

        load = (busy - sum(known)) / len(cores)
        if load > HOST_LOAD_LIMIT:
            yield Finding(
                code="host-load",
                severity="warning",
                message=f"others than this run's workers took {load:.0%} of the cores of {', '.join(slices)} within "
                "main's window",
                figure=round(load, 4),
                limit=HOST_LOAD_LIMIT,
                recommendation="end what else runs on this machine: what it takes is missing in these figures",
            )


def _worker_rate(told: Sequence[tuple[float, WorkerColumns]]) -> float | None:
    """Cores that a worker and the processes it has started took; None where these were not read twice."""
    own = _rate([(at, one.cpu_s) for at, one in told])
    children = _rate([(at, one.children_cpu_s) for at, one in told])
    if own is None or (children is None and any(one.children_cpu_s for _at, one in told)):
        return None  # it has children, and a short window has them once

    return own + max(0.0, children or 0.0)  # less: one of them is no longer told


def _rate(told: Sequence[tuple[float, float | None]]) -> float | None:
    """How fast a counter ran, from its first to its last reading; None where these are too close."""
    read = [(at, count) for at, count in told if count is not None]
    if len(read) < 2 or read[-1][0] - read[0][0] < HOST_LOAD_LEAST_S:
        return None

    return (read[-1][1] - read[0][1]) / (read[-1][0] - read[0][0])


def _by_cores(seen: Seen) -> dict[tuple[int, ...], list[str]]:
    """Slices with the very same cores, together: whose work it was there cannot be told apart by core."""
    found: dict[tuple[int, ...], list[str]] = {}
    for slice_id, cores in seen.cores.items():
        if cores:
            found.setdefault(tuple(sorted(cores)), []).append(slice_id)

    apart = [
        cores for cores in found if not any(set(cores) & set(other) for other in found if other != cores)
    ]
    return {cores: found[cores] for cores in apart}


def _foreign(seen: Seen) -> Iterable[Finding]:
    for slice_id in _names(line.slices for line in seen.lines):
        pids = {
            pid for line in seen.lines if slice_id in line.slices for pid in _foreign_pids(line, slice_id)
        }
        if pids:
            yield _foreign_process(f"while the run lasted, other processes were on {slice_id}", pids)

    for uuid, state in {} if seen.telemetry is None else seen.telemetry.after.items():
        if state.processes:
            yield _foreign_process(f"after the run, other processes were on {uuid}", state.processes)


def _foreign_pids(line: Line, slice_id: str) -> Collection[int]:
    return line.slices[slice_id].foreign_pids or ()


def _foreign_process(message: str, pids: Collection[int]) -> Finding:
    return Finding(
        code="foreign-process",
        severity="warning",
        message=f"{message}: pids {', '.join(map(str, sorted(pids)))}",
        recommendation="end them: what they do is in these figures",
    )


def _out_of_range(lines: Sequence[Line]) -> Iterable[Finding]:
    for slice_id in _names(line.slices for line in lines):
        told = [line.slices[slice_id] for line in lines if slice_id in line.slices]
        wrong = {
            column: value
            for one in told
            for column in ACTIVITY
            if (value := getattr(one, column)) is not None and not 0 <= value <= 1
        }
        if wrong:
            words = ", ".join(f"{column} (such as {value:g})" for column, value in sorted(wrong.items()))
            yield Finding(
                code="activity-out-of-range",
                severity="warning",
                message=f"{slice_id}: ratios outside 0-1: {words}",
                figure=max(wrong.values(), key=abs),
                limit=1,
                recommendation="do not trust these columns; DCGM is known to scale them by the slices of a GPU",
            )


def _changed(uuid: str, before: GpuState, after: GpuState | None) -> Iterable[Finding]:
    changed = [
        f"{getattr(before, name)} → {getattr(after, name)} {what}"
        for name, what in CLOCK_SETTINGS.items()
        if after is not None and getattr(before, name) != getattr(after, name)
    ]
    if changed:
        yield Finding(
            code="clocks-changed",
            severity="warning",
            message=f"{uuid} was set up anew while the run lasted: {'; '.join(changed)}",
            recommendation="leave the GPU's settings alone while a run lasts, then run again",
        )


def _memory_errors(
    uuid: str, before: GpuState, after: GpuState | None, lines: Sequence[Line]
) -> Iterable[Finding]:
    for kind, severity in (("uncorrected", "breach"), ("corrected", "warning")):
        column = f"ecc_{kind}"
        first = getattr(before, column)
        counts = [getattr(line.gpus[uuid], column) for line in lines if uuid in line.gpus]
        counts.append(getattr(after, column, None))
        errors = max((count for count in counts if count is not None), default=0) - (first or 0)
        if first is not None and errors > 0:
            yield Finding(
                code="ecc-error",
                severity="breach" if severity == "breach" else "warning",
                message=f"{uuid} had {errors} {kind} memory errors while the run lasted",
                figure=errors,
                limit=0,
                recommendation="reset the GPU and run again; where they come back, have it replaced (nvidia-smi -q)",
            )


def _names(parts: Iterable[Mapping[str, object]]) -> list[str]:
    """Each once, in the order they appear."""
    return list(dict.fromkeys(name for part in parts for name in part))
