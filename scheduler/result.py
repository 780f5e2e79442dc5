"""What a run's ``manifest.json`` and ``result.json`` hold: the published schema, and the words of a judgement.

Times are seconds on the run's monotonic clock, whose zero is the manifest's ``clock_zero``.
"""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from scheduler.spec import AccuracyTerms
from workloads.protocol import Mode, Precision, Scenario, Size

SCHEMA_VERSION = 1


def first_fault(error: ValidationError) -> str:
    """Where a record is not as its schema has it, and how: ``main.size: Field required``; the first of several."""
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'it'}: {first['msg']}"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Record):
    """One thing found when judging. A breach makes the run INVALID; the others are only told."""

    code: str
    severity: Literal["breach", "warning", "info"]
    message: str
    figure: float | None = None
    """What was measured, in the unit the message names."""
    limit: float | None = None
    recommendation: str = ""


class Window(_Record):
    """From the first query issued to the last completion."""

    begin_s: float | None
    end_s: float | None


class Metric(_Record):
    """LoadGen's score of the scenario."""

    name: str
    value: float
    unit: str


class Latencies(_Record):
    """Of single queries, as LoadGen reports them; ms."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None


class QualityFigure(_Record):
    """How good answers are, by one measure; not judged."""

    metric: str
    """``top-1``, ``F1`` …; of fidelity ``top-1 agreement``, ``span F1`` …"""
    value: float
    unit: str
    samples: int
    """That it was computed over."""
    details: dict[str, float] = {}


class FidelityFigure(QualityFigure):
    """Against the same weights in fp32."""

    unit: Literal["%"] = "%"


class QualityRecord(_Record):
    """A worker's ``quality.json``: what workloads/quality.py writes."""

    accuracy: QualityFigure | None
    """In the task's own metric; None: the data has no labels."""
    fidelity: FidelityFigure
    library: int
    """Samples of the data set."""
    answered: int
    """Of them, how many LoadGen asked for."""
    answers_sha256: str
    """Of LoadGen's accuracy log, which the figures were computed from."""


class AccuracyResult(QualityFigure):
    """What an accuracy run is judged by. Never called accuracy where it is fidelity."""

    kind: Literal["accuracy", "fidelity"]
    target: float
    """The least value that is enough, in ``unit``."""
    reached: bool
    why_fidelity: str = ""
    """Why MLPerf's target does not apply; empty where it does."""
    beside: QualityFigure | None = None
    """The other figure, told and not judged: fidelity beside accuracy, accuracy beside fidelity."""


class TokensResult(_Record):
    """How fast texts were generated, by LoadGen's token latencies."""

    tokens_per_s: float | None
    ttft_ms: Latencies | None
    """Time to the first token; None under Offline."""
    tpot_ms: Latencies | None
    """Time for each further token."""


class MainResult(_Record):
    """The main benchmark."""

    workload: str
    size: Size
    precision: Precision
    batch_size: int
    scenario: Scenario
    mode: Mode = "PerformanceOnly"
    slice: str
    device: dict[str, Any]
    """What CUDA (or the kernel) confirmed the worker stands on."""
    loadgen_valid: bool
    num_errors: int | None
    """None: LoadGen's log has no end."""
    metric: Metric | None
    latency_ms: Latencies
    tokens: TokensResult | None = None
    """Of a workload that generates texts."""
    accuracy: AccuracyResult | None = None
    """Of an accuracy run that came to its end."""
    window: Window
    settings: dict[str, Any]
    """Effective LoadGen settings, as LoadGen logged them."""
    notes: list[str]


class BackgroundResult(_Record):
    """One background benchmark."""

    workload: str
    size: Size
    precision: Precision
    batch_size: int
    slice: str
    device: dict[str, Any]
    pid: int | None
    ended: Literal["killed", "completed", "died", "running", "not started"]
    """``running``: of a trial (tuning), whose background goes on after it."""
    window: Window
    samples_completed: int
    filler_samples: int
    """Computed between LoadGen's tests to keep the slice at work; not in ``samples_completed``."""
    samples_in_main_window: int
    samples_per_s_in_main_window: float | None
    filler_samples_in_main_window: int
    longest_gap_s: float | None
    """Between two completions (filler included), within main's window and up to its edges."""
    longest_idle_s: float | None
    """With no batch in hand, within main's window."""
    longest_batch_s: float | None
    loadgen_tests: int
    """Offline tests that LoadGen finished."""
    loadgen_result: Metric | None
    """LoadGen's own figure of the last test it finished, where one did."""
    loadgen_valid: bool | None
    """What LoadGen says of that test; the overlap is judged by completions, not by it."""
    notes: list[str]


class Timing(_Record):
    """How long the phases took."""

    launch_to_all_issuing_s: float | None
    start_buffer_s: float
    buffer_overshoot_ms: float | None
    """From the start buffer's end to main's launch."""
    main_s: float | None
    """Main's measured window."""
    stop_to_all_gone_s: float | None


class Placement(_Record):
    """Where a MIG device's GPU instance lies, in memory slices of its GPU."""

    gpu_uuid: str
    start: int
    size: int | None


class SliceRecord(_Record):
    """A slice as ``result.json`` tells it."""

    id: str
    kind: str
    name: str
    uuid: str | None
    sms: int | None
    memory_mib: int
    numa_node: int | None = None
    cores: list[int]
    shared_with: list[str]
    placement: Placement | None = None
    """Of MIG devices, where the driver tells it."""


class Result(_Record):
    """``result.json``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["hetero", "baseline"]
    verdict: Literal["VALID", "INVALID"]
    started_utc: str
    preset: str
    comparable_to_mlperf: bool
    notes: list[str]
    findings: list[Finding]
    main: MainResult
    background: list[BackgroundResult]
    timing: Timing
    slices: list[SliceRecord]


class BenchmarkRecord(_Record):
    """One benchmark as planned."""

    name: str
    role: Literal["main", "background"]
    workload: str
    slice: str
    size: Size
    precision: Precision
    batch_size: int
    scenario: Scenario
    settings: dict[str, Any]
    duration_s: float | None = None
    data: str | None = None
    weights: str | None = None


class ClockZero(_Record):
    """The moment that all times are counted from."""

    monotonic_ns: int
    """CLOCK_MONOTONIC of the machine, since its boot."""
    utc: str


class Manifest(_Record):
    """``manifest.json``: enough to judge again, and to know what was run where."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["hetero", "baseline"]
    started_utc: str
    clock_zero: ClockZero
    preset: str
    comparable_to_mlperf: bool
    on_main_end: Literal["kill", "drain"]
    on_breach: Literal["stop", "record"]
    windows: dict[str, float]
    accuracy: AccuracyTerms | None = None
    """None: a performance run."""
    main: BenchmarkRecord
    """Where mains follow one another: the first, or the one that is judged."""
    first_main: str | None = None
    """Where mains follow one another over one background (tuning): the first; None: there is one."""
    background: list[BenchmarkRecord]
    slices: list[SliceRecord]
    idle: list[str]
    notes: list[str]
    spec: dict[str, Any]
    host: dict[str, Any]
    gpus: dict[str, Any]
