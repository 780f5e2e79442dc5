"""What a calibration found, kept with the engine it was found for: a later run need only see that it still holds."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from workloads.engine_cache import Lease, NotKept
from workloads.stopwatch import BatchTime


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """An earlier calibration on such a slice."""

    measured_utc: str
    batch_times: tuple[BatchTime, ...]
    """Those of the largest batch last."""
    target_qps: float | None
    """What it picked; of Server, the rate it proved. None: it was given."""


def earlier(lease: Lease, way: str) -> Earlier | None:
    """What is kept with this engine for this way of timing; None: nothing, or nothing that can be used."""
    found = None if lease.engine is None else lease.engine.calibrations.get(way)
    try:
        return None if found is None else _read(found)
    except (KeyError, TypeError, ValueError):
        return None


def keep(
    lease: Lease,
    way: str,
    batch_times: Sequence[BatchTime],
    target_qps: float | None,
    measured_utc: str | None = None,
) -> list[str]:
    """Keep them with the engine, from now on in place of what there was for this way of timing; gives a note where that
    cannot be written.

    Args:
        measured_utc: when the batch times were measured; None: now.
    """
    found = Earlier(
        measured_utc=measured_utc or f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
        batch_times=tuple(batch_times),
        target_qps=target_qps,
    )
    try:
        lease.keep_calibration(way, asdict(found))
    except NotKept as refusal:
        return [f"the calibration is not kept with the engine: {refusal}"]

    return []


def _read(found: Any) -> Earlier:
    """Raises KeyError, TypeError or ValueError where it is not as ``keep`` writes it."""
    times, qps = tuple(BatchTime(**one) for one in found["batch_times"]), found["target_qps"]
    if not times or not all(
        isinstance(value, int) and value > 0 for one in times for value in asdict(one).values()
    ):
        raise ValueError("no time of a batch is nothing")

    if qps is not None and not 0 < float(qps) < float("inf"):
        raise ValueError("no rate is nothing")

    return Earlier(
        measured_utc=str(found["measured_utc"]),
        batch_times=times,
        target_qps=None if qps is None else float(qps),
    )
