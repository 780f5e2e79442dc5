"""Under which conditions a run was measured, and in which of them two runs differ. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isclose
from statistics import fmean
from typing import Any

from scheduler.result import MainResult, Manifest, Result, SliceRecord
from workloads.protocol import Scenario

NO_THROTTLING = ("gpu_idle", "applications_clocks_setting")
ROUNDED = 1e-4
"""LoadGen logs a rate with six digits, and derives numbers of samples from it."""
DERIVED = ("target_qps", "samples_per_query", "min_sample_count")
"""The settings that are the same where they agree to that. Of Offline they are no condition: they only say how many
samples LoadGen makes, so that a test lasts its ``min_duration_ms``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Clocks:
    """What main's GPU did in main's window; None where there is no GPU or it was not sampled."""

    sm_mhz: float | None = None
    """Mean of the samples."""
    throttled: tuple[str, ...] = ()
    """nvidia-smi's words for what held them down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One run as its folder tells it."""

    key: str
    """The folder's name."""
    manifest: Manifest
    result: Result
    clocks: Clocks = field(default_factory=Clocks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One condition that two runs do not share."""

    name: str
    one: str
    other: str

    def __str__(self) -> str:
        return f"{self.name}: {self.one} / {self.other}"


def differences(one: Measured, other: Measured, without: Sequence[str] = ()) -> list[Difference]:
    """The conditions of two runs that are not the same, but for those that begin with a name in ``without``."""
    here, there = conditions(one), conditions(other)
    return [
        Difference(name=name, one=_word(here.get(name)), other=_word(there.get(name)))
        for name in {**here, **there}
        if not name.startswith(tuple(without)) and not _same(name, here.get(name), there.get(name))
    ]


def conditions(run: Measured) -> dict[str, Any]:
    """By name: what, of what size, with which settings, on which slice, beside whom, on which machine."""
    main, planned, host = run.result.main, run.manifest.main, run.manifest.host
    slice_ = _main_slice(run)
    gpu = gpu_settings(run)
    return {
        "kind": run.result.kind,
        "workload": main.workload,
        "size": main.size,
        "precision": main.precision,
        "batch size": main.batch_size,
        "engine": run.manifest.spec.get("engine", "auto"),
        "scenario": str(main.scenario),
        "mode": main.mode,
        "score": main.metric.name if main.metric else None,
        "preset": run.result.preset,
        "data": planned.data,
        "weights": planned.weights,
        "seed": run.manifest.spec.get("seed", 0),
        **{f"setting {name}": value for name, value in _load(main).items()},
        "slice kind": slice_.kind if slice_ else None,
        "slice profile": slice_.name if slice_ and slice_.kind != "cpu" else None,
        "slice": (slice_.uuid or slice_.id) if slice_ else main.slice,
        "slice cores": slice_.cores if slice_ else None,
        "slice SMs": slice_.sms if slice_ else None,
        "slice memory MiB": slice_.memory_mib if slice_ else None,
        "background": ", ".join(f"{one.workload} on {one.slice}" for one in run.result.background) or "none",
        "machine": host.get("hostname"),
        "CPU": host.get("cpu_model"),
        "kernel": host.get("kernel"),
        "python": host.get("python"),
        **{f"version of {name}": value for name, value in (host.get("versions") or {}).items()},
        **{f"driver {name}": value for name, value in (run.manifest.gpus.get("driver") or {}).items()},
        **{f"GPU {name}": value for name, value in gpu.items()},
    }


def clocks(samples: Sequence[Mapping[str, Any]], run: Manifest, window: tuple[float, float] | None) -> Clocks:
    """What the lines of ``telemetry.jsonl`` within main's window say of its GPU."""
    uuid = gpu_of(run)
    told = [
        sample
        for line in samples
        if uuid and window and window[0] <= line["at_s"] <= window[1]
        for sample in [(line.get("gpus") or {}).get(uuid)]
        if sample
    ]
    mhz = [sample["sm_clock_mhz"] for sample in told if sample.get("sm_clock_mhz") is not None]
    words = {word for sample in told for word in sample.get("throttle_reasons") or ()}
    return Clocks(
        sm_mhz=fmean(mhz) if mhz else None,
        throttled=tuple(sorted(words - set(NO_THROTTLING))),
    )


def gpu_of(run: Manifest) -> str | None:
    """UUID of the GPU that main's slice is on; None on CPU cores, and where the record does not tell it."""
    found = next((one for one in run.slices if one.id == run.main.slice), None)
    if found is not None and found.placement is not None:
        return found.placement.gpu_uuid

    return found.uuid if found is not None and found.kind == "gpu" else None


def _load(main: MainResult) -> dict[str, Any]:
    """The effective settings, but for those that under Offline follow from how fast main is."""
    no_load = DERIVED if main.scenario is Scenario.OFFLINE else ()
    return {name: value for name, value in main.settings.items() if name not in no_load}


def _main_slice(run: Measured) -> SliceRecord | None:
    return next((one for one in run.result.slices if one.id == run.result.main.slice), None)


def gpu_settings(run: Measured) -> Mapping[str, Any]:
    """How main's GPU was set up, by the fields of ``nvml.GpuSettings``; empty where main was on CPU cores."""
    settings: Mapping[str, Any] = (run.manifest.gpus.get("settings") or {}).get(gpu_of(run.manifest)) or {}
    return settings


def _same(name: str, one: Any, other: Any) -> bool:
    derived = name.removeprefix("setting ") in DERIVED
    if derived and isinstance(one, int | float) and isinstance(other, int | float):
        return isclose(one, other, rel_tol=ROUNDED)

    return bool(one == other)


def _word(value: Any) -> str:
    return "–" if value is None else str(value)
