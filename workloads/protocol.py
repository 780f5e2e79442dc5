"""What a workload is: the words shared by the models, by LoadGen's driver and by the scheduler.

Imports neither torch nor LoadGen, so that the launcher can use it.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from workloads.ragged import Ragged

    Outputs = npt.NDArray[np.generic] | list[npt.NDArray[np.generic]] | Ragged
    """What one batch gives back, on the host and C-contiguous: either one array whose first axis is the
    batch, or, where samples differ in length, one array a sample."""

Size = Literal["full", "small"]
Precision = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "int8"]
"""tf32: fp32, with matrix products of TF32; fp8 and int8: linear layers so (quantised.py), all else in 16 bits."""
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

    @classmethod
    def named(cls, words: str) -> "Scenario | None":
        """That of a name in any case and spacing (SingleStream, single-stream, single_stream); None: there is none."""
        plain = re.sub(r"[-_ ]", "", words).lower()
        return next((one for one in cls if one.value.lower() == plain), None)


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
    sequence_length: int | None = None
    """Tokens of each sample, of a workload whose entry has ``longest_sequence``; None: as its size has it."""


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
class Load:
    """How a profile asks requests of a workload; each is one batch of ``batch_size`` samples.

    Closed loop: ``concurrency`` clients, each of which asks again the moment it is answered. Open loop: requests
    come at ``arrival_rate_per_s``, answered or not, and their latency counts from when they were to come.
    """

    concurrency: int | None
    """None: open loop."""
    arrival_rate_per_s: float | None
    """None: closed loop."""
    seconds: float
    """How long requests come."""
    longest_warm_up_s: float
    seed: int
    """Of the arrivals and of the samples taken."""
    memory_limit_mib: int | None = None
    """Of a CPU slice: what the process may allocate (RLIMIT_DATA); None: no limit."""


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
    use_token_latencies: bool = False
    """First tokens are told as they come, and the number of tokens with each answer."""
    server_ttft_latency_ns: int | None = None
    """Server's limit of the time to the first token (``ttft_latency``): with ``server_tpot_latency_ns`` in place of
    ``server_target_latency_ns``."""
    server_tpot_latency_ns: int | None = None
    """Its limit of the time for each further token (``tpot_latency``)."""
    server_max_async_queries: int = 0
    """Server: the test is cut, and in error, when more queries wait; 0: any number may."""
    batch_times_ns: tuple[tuple[int, int, int, int], ...] = ()
    """Server: as an earlier test on the slice found them (samples, median, mean, batches timed), so that batches are
    of the same size again; none: to be found."""
    multi_stream_samples_per_query: int = 8
    sample_concatenate_permutation: bool = False
    qsl_rng_seed: int
    sample_index_rng_seed: int
    schedule_rng_seed: int
    mode: Mode = "PerformanceOnly"
    accuracy_sample_count: int | None = None
    """AccuracyOnly: that many samples, the first of the library (``accuracy_sample_count_override``); None: all.
    Data with labels is taken whole, whatever this says."""
    accuracy_log_rng_seed: int = 0
    accuracy_log_sampling_target: int = 0
    """PerformanceOnly: of about so many samples the answers are logged (TEST01); 0: of none."""
    performance_issue_unique: bool = False
    """Each loaded sample once, and no more (TEST04-A)."""
    performance_issue_same: bool = False
    """One sample alone, the one at ``performance_issue_same_index`` of those loaded (TEST04, TEST04-B)."""
    performance_issue_same_index: int = 0
    test05: bool = False
    """The next three in place of the test's own seeds."""
    test05_qsl_rng_seed: int = 0
    test05_sample_index_rng_seed: int = 0
    test05_schedule_rng_seed: int = 0

    @property
    def first_limit_ns(self) -> int | None:
        """What a query of Server has at most until its (first) answer."""
        return self.server_ttft_latency_ns if self.use_token_latencies else self.server_target_latency_ns
