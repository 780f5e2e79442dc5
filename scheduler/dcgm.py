"""The door to a running dcgm-exporter: its exposition, joined on (GPU UUID, GPU_I_ID).

A thread of its own asks, so that an exporter that is slow, gone or wrong never keeps the sampling waiting.
"""

import http.client
import math
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

from scheduler.columns import ACTIVITY, PCIE

METRICS = {
    "DCGM_FI_PROF_GR_ENGINE_ACTIVE": ("graphics_active", 1.0),
    "DCGM_FI_PROF_SM_ACTIVE": ("sm_active", 1.0),
    "DCGM_FI_PROF_SM_OCCUPANCY": ("sm_occupancy", 1.0),
    "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE": ("tensor_active", 1.0),
    "DCGM_FI_PROF_DRAM_ACTIVE": ("dram_active", 1.0),
    "DCGM_FI_PROF_PCIE_TX_BYTES": ("pcie_tx_mib_s", 2.0**-20),
    "DCGM_FI_PROF_PCIE_RX_BYTES": ("pcie_rx_mib_s", 2.0**-20),
}
"""The exporter's metric → our column, and what its value is multiplied by: PCIe comes in bytes/s."""

COLUMNS = (*ACTIVITY, *PCIE)
PERIOD_S = 1.0
"""DCGM itself samples once a second unless told otherwise."""
TIMEOUT_S = 2.0
STALE_S = 10.0
"""Figures older than this are not told: the exporter's own time stamp, or its last good answer."""
LONGEST_BYTES = 16 << 20
BLANK = 2.0**46
"""DCGM's blanks begin at 2^47 (DCGM_FP64_BLANK of dcgm_structs.h); no ratio and no PCIe is near it."""
_WANTED = re.compile(rf"^(?:{'|'.join(METRICS)})(?:[{{ ].*)$", re.MULTILINE)

Where = tuple[str, str | None]
"""GPU UUID, and the GPU instance's id as the exporter writes it; None: it gives none."""


@dataclass(frozen=True, slots=True)
class Exposition:
    """One answer of the exporter."""

    figures: Mapping[Where, Mapping[str, float]] = field(default_factory=dict)
    stamped_unix_s: float | None = None
    """The oldest of its own time stamps, where it gives any."""

    def of(
        self, gpu_uuid: str, gpu_instance_id: int | None
    ) -> tuple[dict[str, float | None], dict[str, str]]:
        """Columns, and why those that are None are."""
        name = None if gpu_instance_id is None else str(gpu_instance_id)
        found = self.figures.get((gpu_uuid, name))
        if found is None:
            return _none(self._why_missing(gpu_uuid, gpu_instance_id))

        columns: dict[str, float | None] = {}
        unavailable: dict[str, str] = {}
        for column in COLUMNS:
            value = found.get(column)
            if value is None:
                unavailable[column] = "dcgm-exporter does not export it (see its counters file)"
            elif not math.isfinite(value):
                value, unavailable[column] = None, f"dcgm-exporter answers {value}"
            elif value >= BLANK:
                value, unavailable[column] = None, "DCGM has no value (it answers its blank)"

            columns[column] = value

        return columns, unavailable

    def _why_missing(self, gpu_uuid: str, gpu_instance_id: int | None) -> str:
        instances = [name for uuid, name in self.figures if uuid == gpu_uuid]
        if not instances:
            there = ", ".join(sorted({uuid for uuid, _ in self.figures})) or "no activity of any GPU"
            return f"dcgm-exporter does not tell of {gpu_uuid}; it tells of {there}"

        if gpu_instance_id is None:
            return f"dcgm-exporter tells of instances of {gpu_uuid} alone, not of the whole GPU"

        known = ", ".join(name for name in instances if name is not None)
        return (
            f"dcgm-exporter tells of GPU_I_ID {known} of {gpu_uuid}, not of {gpu_instance_id}: restart it after MIG "
            "devices were made"
            if known
            else f"dcgm-exporter gives no GPU_I_ID for {gpu_uuid}: it watches whole GPUs; start it with -d f"
        )


def parse(text: str) -> Exposition:
    """An exposition in Prometheus's text format; what is not an activity is passed over.

    Raises:
        ValueError: a line of it is not of that format.
    """
    figures: dict[Where, dict[str, float]] = {}
    stamps: list[float] = []
    lines = "\n".join(line.rstrip("\r") for line in _WANTED.findall(text))
    for family in text_string_to_metric_families(lines + "\n"):
        for sample in family.samples:
            column, factor = METRICS[sample.name]
            uuid = sample.labels.get("UUID") or sample.labels.get("uuid")  # the second with its old namespace
            if uuid is None:
                raise ValueError(f"{sample.name} has no label UUID")

            where = (uuid, sample.labels.get("GPU_I_ID") or None)
            value = sample.value if sample.value >= BLANK else sample.value * factor
            figures.setdefault(where, {})[column] = value
            if sample.timestamp is not None:
                stamps.append(float(sample.timestamp))

    return Exposition(figures, min(stamps, default=None))


class DcgmExporter:
    """What a running exporter said last; made by ``watching``.

    Args:
        url: ``http://HOST:9400/metrics``.
        now: s, on the run's clock.
        unix_now: s since 1970, for the exporter's own time stamps.
    """

    def __init__(self, url: str, now: Callable[[], float], unix_now: Callable[[], float]) -> None:
        self._url = url
        self._now = now
        self._unix_now = unix_now
        self._open = urllib.request.build_opener(
            urllib.request.ProxyHandler({})
        ).open  # it is a machine of ours
        self._said: Exposition | None = None
        self._said_at = 0.0
        self._problem = ""
        self.answers = 0
        """Good ones so far."""

    def activity(
        self, gpu_uuid: str, gpu_instance_id: int | None
    ) -> tuple[dict[str, float | None], dict[str, str]]:
        """Columns of a GPU instance, or of a whole GPU, and why those that are None are; neither before the first
        answer has come or failed."""
        said, age_s = self._said, self._now() - self._said_at
        if said is None and not self._problem:
            return {}, {}

        if said is None or age_s > STALE_S:
            return _none(f"dcgm-exporter at {self._url}: {self._problem}")

        if said.stamped_unix_s is not None:
            age_s = self._unix_now() - said.stamped_unix_s
            if age_s > STALE_S:
                return _none(
                    f"dcgm-exporter's figures are stale: it stamped them more than {STALE_S:g} s ago"
                )

        return said.of(gpu_uuid, gpu_instance_id)

    def ask(self) -> None:
        """Fetch its exposition; what goes wrong is told by ``activity``."""
        try:
            said = parse(self._fetch())
        except (OSError, ValueError, http.client.HTTPException) as error:
            why = error.reason if isinstance(error, urllib.error.URLError) else error
            self._problem = f"{why or type(error).__name__}"
            return

        self._said, self._said_at = said, self._now()
        self.answers += 1
        self._problem = "it no longer answers"

    def _fetch(self) -> str:
        end = self._now() + TIMEOUT_S
        pieces: list[bytes] = []
        with self._open(self._url, timeout=TIMEOUT_S) as answer:
            while piece := answer.read1(1 << 16):
                pieces.append(piece)
                if self._now() > end:  # a time-out of a socket starts anew with every byte
                    raise TimeoutError(f"the answer takes more than {TIMEOUT_S:g} s")

                if sum(map(len, pieces)) > LONGEST_BYTES:
                    raise ValueError(f"the answer has more than {LONGEST_BYTES >> 20} MiB")

        return b"".join(pieces).decode("utf-8", errors="replace")


@contextmanager
def watching(url: str, now: Callable[[], float], unix_now: Callable[[], float]) -> Iterator[DcgmExporter]:
    """Ask the exporter once a second until the ``with`` is left."""
    exporter = DcgmExporter(url, now, unix_now)
    enough = threading.Event()

    def ask_again() -> None:
        while True:
            exporter.ask()
            if enough.wait(PERIOD_S):
                return

    thread = threading.Thread(target=ask_again, daemon=True, name="dcgm")
    thread.start()
    try:
        yield exporter
    finally:
        enough.set()
        thread.join(2 * TIMEOUT_S)


def _none(why: str) -> tuple[dict[str, float | None], dict[str, str]]:
    return dict.fromkeys(COLUMNS), dict.fromkeys(COLUMNS, why)
