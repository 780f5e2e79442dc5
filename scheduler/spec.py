"""What the user asks, validated: the only place where input is. Decides nothing."""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

import profiles
from scheduler.errors import SpecError
from workloads import catalog
from workloads.protocol import DeviceKind, EngineName, Precision, Scenario, Size, WorkloadError

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Contradiction(ValueError):
    """Options that do not go together."""

    def __init__(self, message: str, *options: str) -> None:
        super().__init__(message)
        self.options = options


def parse_duration(value: object) -> float:
    """Seconds from ``90s``, ``10m``, ``1.5h``, ``600000ms``.

    A bare number is refused: the predecessor's options were in milliseconds, most tools' are in seconds.

    Raises:
        ValueError: it is not a duration.
    """
    match = _DURATION.fullmatch(str(value).strip())
    if match is None:
        bare = re.fullmatch(r"\d+(\.\d+)?", str(value).strip())
        reason = "a bare number could be seconds or milliseconds" if bare else "not a duration"
        raise ValueError(f"{reason}: {value!r}; write it with its unit, as 90s, 10m or 600000ms")

    return float(match[1]) * _SECONDS[match[2]]


HIGHEST_RATE_HZ = 100.0


def parse_rate(value: object) -> float:
    """Times a second from ``10hz``, ``0.5hz``, or a period: ``1s``, ``100ms``; 0 from ``off``.

    Raises:
        ValueError: it is not a rate.
    """
    text = str(value).strip().lower()
    if text == "off" or isinstance(value, float):
        return float(value) if isinstance(value, float) else 0.0

    found = re.fullmatch(r"(\d+(?:\.\d+)?)hz", text)
    if found is None and not _DURATION.fullmatch(text):
        raise ValueError(f"not a rate: {value!r}; write off, a rate as 10hz, or a period as 1s or 100ms")

    rate_hz = float(found[1]) if found else 1 / (parse_duration(text) or 1e-9)
    if not 0.001 <= rate_hz <= HIGHEST_RATE_HZ:
        raise ValueError(f"{value!r} is no rate between one in 1000 s and {HIGHEST_RATE_HZ:g}hz")

    return rate_hz


Duration = Annotated[float, BeforeValidator(parse_duration), Field(allow_inf_nan=False)]
LastingDuration = Annotated[Duration, Field(gt=0)]
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


class Preset(BaseModel):
    """One entry of ``profiles/presets.yaml``; in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: dict[DeviceKind, Size]
    main_duration_s: Seconds
    background_test_duration_s: Seconds
    mlperf_sample_counts: bool
    start_timeout_s: Seconds
    start_buffer_s: Seconds
    end_buffer_s: Seconds
    main_timeout_s: Seconds
    stop_grace_s: Seconds
    stall_after_s: Seconds
    drain_timeout_s: Seconds


def presets() -> dict[str, Preset]:
    """The run presets by name."""
    return {name: Preset.model_validate(entry) for name, entry in profiles.read_yaml("presets.yaml").items()}


class Accuracy(BaseModel):
    """What a round asks of a model's accuracy: at least ``target × reference``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    reference: float
    targets: tuple[float, ...]
    reference_by_samples: dict[int, float] = {}
    """By the size of the data set, where that is not the round's ``total_sample_count``."""


class AccuracyTerms(BaseModel):
    """By what a run in accuracy mode is judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Annotated[float, Field(gt=0, le=1)]
    """0.99 or 0.999: the part of the reference that the answers must reach."""
    fidelity_samples: Count
    """How many answers, at most, are held against the same weights in fp32."""
    mlperf_metric: str | None = None
    """None: MLPerf has no such benchmark."""
    mlperf_reference: dict[int, float] = {}
    """What MLPerf's reference model reaches, by the size of the data set."""


AuditTest = Literal["TEST01", "TEST04", "TEST05"]
RoundName = Literal["v2.0", "v4.1", "v6.1"]
SystemType = Literal["datacenter", "edge"]


class Test05(BaseModel):
    """The seeds of MLPerf's TEST05, and how LoadGen is told: in the place of a test's own, or by ``test05``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    by: Literal["seeds", "test05"]
    qsl_rng_seed: int
    sample_index_rng_seed: int
    schedule_rng_seed: int


class RoundWorkload(BaseModel):
    """One workload in an MLPerf round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conf_model: str
    performance_sample_count: Count
    quick_performance_sample_count: Count | None = None
    total_sample_count: Count | None = None
    """Of MLPerf's data set; None for a workload that MLPerf does not have."""
    server_target_latency_ms: Count | None = None
    server_ttft_latency_ms: Count | None = None
    """Of a workload that generates texts: to the first token; its LoadGen tests have token latencies."""
    server_tpot_latency_ms: Count | None = None
    """For each further token."""
    offline_min_sample_count: Count | None = None
    """Where the round has another than ``min_query_count``."""
    sample_concatenate_permutation: bool = False
    accuracy: Accuracy | None = None
    submitted_as: dict[Literal["99", "99.9"], str] = {}
    """The benchmark's name in a submission, by the accuracy target in %."""
    required: dict[SystemType, tuple[Scenario, ...]] = {}
    """The scenarios that a submission must have, by kind of system; empty where the round has no such benchmark."""
    datacenter_only: tuple[Literal["99", "99.9"], ...] = ()
    """Accuracy targets that the round does not have on edge systems."""
    audits: tuple[AuditTest, ...] = ()
    """The compliance tests that a closed submission must have passed."""
    test01_samples: Count = 4096
    """Of about how many samples TEST01 logs the answers."""


class QuickCounts(BaseModel):
    """What a run that is not MLPerf-length takes in place of the round's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_query_count: dict[Scenario, Count]
    performance_sample_count: Count
    fidelity_samples: Count
    cpu_server_target_latency_ms: Count


class LoadgenRound(BaseModel):
    """``profiles/loadgen/<round>.yaml``: LoadGen's settings of one MLPerf round."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    round: RoundName
    min_duration_ms: Count
    qsl_rng_seed: int
    sample_index_rng_seed: int
    schedule_rng_seed: int
    target_latency_percentile: dict[Scenario, float]
    multi_stream_samples_per_query: Count
    hetero_mig: bool
    """Whether MLPerf took results measured beside a background."""
    test05: Test05 | None
    """None: the round has no TEST05."""
    min_query_count: dict[Scenario, Count]
    fidelity_samples: Count
    quick: QuickCounts
    workloads: dict[str, RoundWorkload]
    own: RoundWorkload
    """Of workloads that are the user's own."""

    def of(self, name: str) -> RoundWorkload:
        """What the round, or an own model's class, says of a workload."""
        if name in self.workloads:
            return self.workloads[name]

        limit_ms = catalog.entry(name).server_target_latency_ms
        return (
            self.own
            if limit_ms is None
            else self.own.model_copy(update={"server_target_latency_ms": limit_ms})
        )

    def least_queries(self, name: str, scenario: Scenario) -> int:
        """``min_query_count`` of a workload's test; under Offline, of samples."""
        own = self.of(name).offline_min_sample_count if scenario is Scenario.OFFLINE else None
        return own or self.min_query_count[scenario]


def loadgen_round(name: RoundName = "v2.0") -> LoadgenRound:
    """The settings of an MLPerf round. A round's file may tell only what differs from another's."""
    told = dict(profiles.read_yaml(f"loadgen/{name}.yaml"))
    before = told.pop("differs_from", None)
    if before is not None:
        base = profiles.read_yaml(f"loadgen/{before}.yaml")
        differing = told.pop("workloads")
        workloads = {each: entry | differing.get(each, {}) for each, entry in base["workloads"].items()}
        told = base | told | {"workloads": workloads}

    return LoadgenRound.model_validate(told)


class Windows(BaseModel):
    """A run's waits, in seconds. NVIDIA's ``--start_time_buffer`` is ``start_timeout_s`` in its code and
    ``start_buffer_s`` in its document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    start_timeout_s: Seconds
    """The longest wait for all background benchmarks to issue."""
    start_buffer_s: Seconds
    """The pause after the last background benchmark issues."""
    end_buffer_s: Seconds
    """How long background must outlive main."""
    main_timeout_s: Seconds
    """The longest a main benchmark may take from its launch."""
    stop_grace_s: Seconds
    """Between asking a process to stop and killing it."""
    stall_after_s: Annotated[float, Field(gt=0)]
    """An issuing benchmark that completes nothing for this long has stalled."""
    drain_timeout_s: Seconds
    """The longest wait for a draining background benchmark to finish the test in hand."""


class RunSpec(BaseModel):
    """One run as asked for. None means: as the preset, the workload or the slice has it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    main: str
    main_scenario: Scenario = Scenario.OFFLINE
    main_mode: Literal["performance", "accuracy"] = "performance"
    accuracy_target: Literal["auto", "99", "99.9"] = "auto"
    """In %; auto: as MLPerf's HeteroMIG ran each workload."""
    fidelity_samples: Count | None = None
    main_duration: LastingDuration | None = None
    main_min_query_count: Count | None = None
    """In place of the round's, or the quick preset's."""
    main_slice: str | None = None
    target_qps: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    background: tuple[str, ...] = ()
    """Names of the catalogue; macros are expanded, main's own model may be among them."""
    background_duration: Literal["automatic"] | float = "automatic"
    on_main_end: Literal["kill", "drain"] = "kill"
    on_breach: Literal["stop", "record"] = "stop"
    slices: str = "auto"
    layout: str | None = None
    """``FILE#LABEL``, or MIG devices: in force while the run lasts."""
    preset: Literal["auto", "quick", "mlperf"] = "auto"
    round: RoundName = "v2.0"
    """The MLPerf round whose seeds, counts and limits are taken."""
    size: Literal["auto", "full", "small"] = "auto"
    precision: Precision | Literal["auto"] = "auto"
    engine: EngineName = "auto"
    batch_size: dict[str, Count] = {}
    """By workload name."""
    weights: dict[str, Path] = {}
    data: dict[str, Path] = {}
    telemetry: Annotated[float, BeforeValidator(parse_rate), Field(ge=0, le=HIGHEST_RATE_HZ)] = 10.0
    """Samples a second; 0: none."""
    dcgm: str | None = None
    """The URL of a running dcgm-exporter, to take the activity of the slices from."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """0 is MLPerf's own seeds; numpy takes 32 bits."""
    start_timeout: LastingDuration | None = None
    start_buffer: Duration | None = None
    end_buffer: Duration | None = None
    main_timeout: LastingDuration | None = None
    stop_grace: Duration | None = None
    stall_after: LastingDuration | None = None
    drain_timeout: Duration | None = None

    @field_validator("main", mode="before")
    @classmethod
    def _main_by_name(cls, value: object) -> str:
        return _known(str(value)).name

    @field_validator("main_scenario", mode="before")
    @classmethod
    def _scenario_in_any_case(cls, value: object) -> object:
        return Scenario.named(str(value)) or value

    @field_validator("background", mode="before")
    @classmethod
    def _background_by_name(cls, value: object) -> tuple[str, ...]:
        if not isinstance(value, str | list | tuple):
            raise ValueError("not a list of workloads; as bert,dlrm or one of " + ", ".join(catalog.MACROS))

        words = value.split(",") if isinstance(value, str) else [str(word) for word in value]
        names: list[str] = []
        for word in (word.strip() for word in words):
            macro = catalog.MACROS.get(word.lower())
            if macro is not None and len(words) > 1:
                raise ValueError(f"{word!r} stands for a whole list and cannot be one name of a list")

            names += [_known(word).name] if macro is None else macro

        return tuple(names)

    @field_validator("dcgm")
    @classmethod
    def _dcgm_by_url(cls, url: str | None) -> str | None:
        if url is not None and not re.fullmatch(r"https?://[^/\s]+(/\S*)?", url):
            raise ValueError("not the URL of an exporter; as http://localhost:9400/metrics")

        return url

    @field_validator("background_duration", mode="before")
    @classmethod
    def _automatic_or_duration(cls, value: object) -> object:
        if value == "automatic":
            return value

        # Checked here: of a union's members, pydantic would complain about the word only.
        return TypeAdapter(LastingDuration).validate_python(value)

    @field_validator("batch_size", "weights", "data", mode="before")
    @classmethod
    def _by_workload_name(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value

        by_name: dict[str, object] = {}
        for alias, item in value.items():
            name = _known(str(alias)).name
            if name in by_name:
                raise ValueError(f"{name} is given twice")

            by_name[name] = item

        return by_name

    @field_validator("weights", "data")
    @classmethod
    def _paths_exist(cls, paths: dict[str, Path]) -> dict[str, Path]:
        for name, path in paths.items():
            if not path.exists():
                raise ValueError(f"for {name}: there is no {path}")

        return paths

    @field_validator("weights")
    @classmethod
    def _weights_are_taken(cls, paths: dict[str, Path]) -> dict[str, Path]:
        for name in paths:
            parameters = catalog.entry(name).parameters  # of own models none are known
            if parameters and not any(parameters.values()):
                raise ValueError(f"{name} has no weights, it computes no model")

        return paths

    @field_validator("data")
    @classmethod
    def _data_can_be_read(cls, paths: dict[str, Path]) -> dict[str, Path]:
        for name in paths:
            if not catalog.entry(name).reads_data:
                readers = ", ".join(entry.name for entry in catalog.CATALOG.values() if entry.reads_data)
                raise ValueError(f"{name} reads no data folder, its inputs are synthetic; {readers} read one")

        return paths

    @model_validator(mode="after")
    def _fits_together(self) -> "RunSpec":
        entry = catalog.entry(self.main)
        if self.main_scenario not in entry.scenarios:
            possible = ", ".join(entry.scenarios)
            message = f"{self.main} does not run under {self.main_scenario}; it runs under {possible}"
            raise Contradiction(message, "main", "main_scenario")

        if self.main_mode == "performance" and (self.accuracy_target != "auto" or self.fidelity_samples):
            raise Contradiction(
                "a performance run judges no answers: --accuracy-target and --fidelity-samples are for "
                "--main-mode accuracy",
                *("main_mode", "accuracy_target", "fidelity_samples"),
            )

        if self.main_mode == "accuracy" and entry.trains:
            message = f"{self.main} has no accuracy: its answers are losses, which fall as it learns"
            raise Contradiction(message, "main", "main_mode")

        if self.main_mode == "accuracy" and self.main_duration is not None:
            message = (
                "an accuracy run takes each sample once, however long that is; leave --main-duration out"
            )
            raise Contradiction(message, "main_mode", "main_duration")

        return self


def parse_run(asked: dict[str, Any], typed: Mapping[str, str] = MappingProxyType({})) -> RunSpec:
    """The run that ``asked`` (option → value, unset options left out) describes.

    Args:
        typed: what stands on the command line, where that is not the option of that name: for the message.

    Raises:
        SpecError: one message for the first thing wrong.
    """
    try:
        return RunSpec.model_validate(asked)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        message = str(first["msg"]).removeprefix("Value error, ")
        cause = first.get("ctx", {}).get("error")
        options = cause.options if isinstance(cause, Contradiction) else (str(first["loc"][0]),)
        raise SpecError(
            asked=_as_asked(options, asked, typed),
            found=message,
            do="correct it; `hetero-mig --help` lists every option",
        ) from None


def _as_asked(options: tuple[str, ...], asked: dict[str, Any], typed: Mapping[str, str]) -> str:
    """The options at fault as they were given, those that were; all where none was."""
    words: list[str] = []
    for option in [one for one in options if one in asked or one in typed] or options:
        if option in typed:
            words.append(typed[option])
            continue

        words.append("--" + option.replace("_", "-"))
        value = asked.get(option, "")
        if isinstance(value, dict):
            value = ",".join(f"{name}={item}" for name, item in value.items())

        words.append(str(value))

    return " ".join(words).strip()


def _known(name: str) -> catalog.Entry:
    try:
        entry = catalog.find(name)
    except WorkloadError as error:
        raise ValueError(str(error)) from None

    if entry is None:
        raise ValueError(
            f"there is no workload {name!r}; there are {', '.join(catalog.CATALOG)}, and your own as FILE.py:CLASS or "
            "hf:FOLDER"
        )

    return entry
