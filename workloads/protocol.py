"""What a workload is: the words shared by the models, by LoadGen's driver and by the scheduler.

Imports neither torch nor LoadGen, so that the launcher can use it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Outputs = npt.NDArray[np.generic] | list[npt.NDArray[np.generic]]
    """What one batch gives back, on the host and C-contiguous: either one array whose first axis is the
    batch, or, where samples differ in length, one array a sample."""

Size = Literal["full", "small"]
Precision = Literal["fp32", "bf16", "fp16"]
DeviceKind = Literal["cpu", "cuda"]
EngineName = Literal["auto", "eager", "graph", "compile"]
"""How a network is run (engine.py); ``auto``: graph on a GPU where it can be captured, else eager."""
Mode = Literal["PerformanceOnly", "AccuracyOnly"]
"""LoadGen's test modes, those of them that the harness uses, spelled as LoadGen spells them."""


class Scenario(StrEnum):
    """LoadGen's scenarios, spelled as LoadGen spells them."""

    SINGLE_STREAM = "SingleStream"
    MULTI_STREAM = "MultiStream"
    SERVER = "Server"
    OFFLINE = "Offline"


class WorkloadError(Exception):
    """The workload cannot be used as asked (a broken image, weights that do not fit); says what and where."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadOptions:
    """How one workload is to be built. Everything random in it follows from ``seed``."""

    size: Size
    device: DeviceKind
    """``cuda`` is always the one device that the process's slice lets it see."""
    precision: Precision
    batch_size: int
    """The most samples ``predict`` is given at once."""
    seed: int
    threads: int
    """CPU threads the slice allows: torch's intra-op threads on a CPU slice."""
    memory_mib: int
    """What the slice offers; dlrm caps its tables by it."""
    weights: Path | None = None
    data: Path | None = None
    engine: EngineName = "auto"


class Workload(Protocol):
    """One model and its samples, as LoadGen's driver uses them.

    ``load`` once; then any number of ``load_samples``, ``predict``, ``unload_samples``. A workload is used
    by one thread at a time, but not always by the same one.

    It may have two attributes more: ``labelled`` (labelled.py, after ``load``), where its data has labels, and
    ``fidelity`` (fidelity.py), how its answers are compared with the reference's, where numbers alone do not say.
    """

    total_sample_count: int
    """Size of the sample library, LoadGen's ``TotalSampleCount``."""

    notes: list[str]
    """What a reader of the result must know: where weights and inputs came from, what was capped.
    Complete once ``load`` has returned."""

    def load(self) -> None:
        """Build the model on the device, with its weights.

        Raises:
            WorkloadError: weights or data do not fit, naming file and key.
        """

    def load_samples(self, indices: Sequence[int]) -> None:
        """Make these samples of the library ready in memory (idempotent)."""

    def unload_samples(self, indices: Sequence[int]) -> None:
        """Let go of them."""

    def predict(self, indices: Sequence[int]) -> "Outputs":
        """Compute one batch of loaded samples, at most ``batch_size``; outputs are on the host on return."""

    def reference(self, indices: Sequence[int]) -> "Outputs":
        """The same in fp32, eager, one sample at a time: what ``predict`` is held against."""


def output_bytes(outputs: "Outputs") -> list[bytes]:
    """One byte string a sample, as LoadGen logs it."""
    return [row.tobytes() for row in outputs]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadgenSettings:
    """LoadGen's settings for one benchmark, spelled as LoadGen spells them (test_settings.h)."""

    conf_model: str
    """Key in LoadGen's embedded mlperf.conf; ``*`` where it has none for this model."""
    scenario: Scenario
    min_duration_ms: int
    min_query_count: int
    """Queries; under Offline, samples."""
    performance_sample_count: int
    target_qps: float | None
    """``server_target_qps`` or ``offline_expected_qps``; the expected rate of queries under the streams.
    None: a calibration on the slice picks it."""
    server_target_latency_ns: int | None = None
    target_latency_percentile: float | None = None
    """Of Server, SingleStream and MultiStream."""
    multi_stream_samples_per_query: int = 8
    sample_concatenate_permutation: bool = False
    qsl_rng_seed: int
    sample_index_rng_seed: int
    schedule_rng_seed: int
    mode: Mode = "PerformanceOnly"
    accuracy_sample_count: int | None = None
    """AccuracyOnly: that many samples, the first of the library (``accuracy_sample_count_override``); None: all.
    Data with labels is taken whole, whatever this says."""
