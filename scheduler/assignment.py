"""Which benchmark runs on which slice, and with what settings: from what is asked and what there is to a Plan.

Pure: the same specification on the same machine gives the same plan, before anything is started.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from scheduler.arithmetic import batch_notes, batch_size_of, engine_of, precision_of
from scheduler.errors import SpecError
from scheduler.selection import names_of
from scheduler.slices import Slice
from scheduler.slices import slice_as_json as slice_as_json
from scheduler.spec import AccuracyTerms, LoadgenRound, Preset, RoundWorkload, RunSpec, Windows
from workloads import catalog
from workloads.protocol import (
    DeviceKind,
    LoadgenSettings,
    Scenario,
    Size,
    WorkloadOptions,
)

OFFLINE_LASTS = 2.5
"""An Offline test lasts up to 1.1 (LoadGen) × 1.25 (the calibration) of its duration, and one that was through
early before it up to 1."""

HIGH_ACCURACY = ("3d-unet", "dlrm")
"""MLPerf's HeteroMIG ran these at 99.9 % (``hetero_high_accuracy``), the others at 99 % (``hetero``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One benchmark on one slice."""

    name: str
    """``main-resnet50``, ``background-3-bert``."""
    role: Literal["main", "background"]
    workload: str
    slice: Slice
    options: WorkloadOptions
    settings: LoadgenSettings
    duration_s: float | None = None
    """How long a background benchmark runs; None: for as long as main needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything decided about one run."""

    main: Assignment
    background: tuple[Assignment, ...]
    windows: Windows
    preset: Literal["quick", "mlperf"]
    idle: tuple[Slice, ...]
    """Slices on which nothing runs: all but main's, where there is no background."""
    comparable_to_mlperf: bool
    """As far as settings go: full model, and the round's duration, counts and seeds."""
    notes: tuple[str, ...]
    accuracy: AccuracyTerms | None = None
    """None: main is run for its performance."""

    @property
    def all(self) -> tuple[Assignment, ...]:
        return (self.main, *self.background)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Terms:
    """What holds for every benchmark of the run."""

    spec: RunSpec
    preset_name: Literal["quick", "mlperf"]
    preset: Preset
    round: LoadgenRound
    users: Counter[int]
    """Benchmarks on each host core."""
    benchmarks: int

    @property
    def main_duration_s(self) -> float:
        return self.preset.main_duration_s if self.spec.main_duration is None else self.spec.main_duration

    @property
    def fidelity_samples(self) -> int:
        """At most; a workload of which a quick run takes few samples has no more compared."""
        if self.spec.fidelity_samples is not None:
            return self.spec.fidelity_samples

        workload, quick = self.round.of(self.spec.main), self.round.quick
        if self.preset.mlperf_sample_counts:
            return self.round.fidelity_samples

        return min(quick.fidelity_samples, workload.quick_performance_sample_count or quick.fidelity_samples)


def benchmark_count(spec: RunSpec) -> int:
    """Main and every background name: what ``--slices cpu`` makes one slice each for."""
    return 1 + sum(name != spec.main for name in spec.background)


def assign(
    spec: RunSpec,
    slices: Sequence[Slice],
    presets: Mapping[str, Preset],
    loadgen_round: LoadgenRound,
    *,
    beside_itself: bool = False,
) -> Plan:
    """Main on its slice, background benchmarks spread over all the others as evenly as can be.

    Names of the background take turns over the other slices, in their order, rotated by the seed; a name
    given twice has two turns. ``slices``: at least one. ``beside_itself``: main's own model stays in the background.

    Raises:
        SpecError: it does not fit together; nothing is cut to make it fit.
    """
    main_slice = _main_slice(spec, slices)
    others = tuple(each for each in slices if each is not main_slice)
    names = _background_names(spec, slices, beside_itself)
    placed = list(zip(names, others, strict=False))  # one name a slice, or no name at all
    _all_options_used(spec, {spec.main, *names}, slices)

    used = [main_slice, *(each for _, each in placed)]
    preset_name: Literal["quick", "mlperf"] = (
        ("quick" if main_slice.kind == "cpu" else "mlperf") if spec.preset == "auto" else spec.preset
    )
    terms = _Terms(
        spec=spec,
        preset_name=preset_name,
        preset=presets[preset_name],
        round=loadgen_round,
        users=Counter(core for each in used for core in each.cores),
        benchmarks=len(used),
    )
    main_options = _options(terms, spec.main, main_slice)
    main = Assignment(
        name=f"main-{spec.main}",
        role="main",
        workload=spec.main,
        slice=main_slice,
        options=main_options,
        settings=_main_settings(terms, main_options),
    )
    background = tuple(
        _background(terms, number, name, each) for number, (name, each) in enumerate(placed, start=1)
    )
    shortfalls = _shortfalls(terms, main)
    return Plan(
        main=main,
        background=background,
        windows=_windows(terms),
        preset=preset_name,
        idle=() if names else others,
        comparable_to_mlperf=not shortfalls,
        notes=(
            *_notes(terms, main, shortfalls, left_out=spec.main in set(spec.background) - set(names)),
            *batch_notes(
                spec, [(each.workload, each.options.size, each.slice) for each in (main, *background)]
            ),
        ),
        accuracy=_accuracy_terms(terms) if spec.main_mode == "accuracy" else None,
    )


def _main_slice(spec: RunSpec, slices: Sequence[Slice]) -> Slice:
    if spec.main_slice is None:
        return slices[0]

    wanted = spec.main_slice.strip().lower()
    by_name = [each for each in slices if wanted in (name.lower() for name in names_of(each))]
    by_profile = [each for each in slices if each.kind == "mig" and wanted == each.name.lower()]
    for each in (*by_name, *by_profile):
        return each

    raise SpecError(
        asked=f"--main-slice {spec.main_slice}",
        found=f"the slices of this run are {', '.join(each.id for each in slices)}",
        do="name one of them, by id, UUID or profile (the first of it); `hetero-mig slices` lists them",
    )


def _background_names(spec: RunSpec, slices: Sequence[Slice], beside_itself: bool) -> list[str]:
    """One name for each slice but main's; empty where no background is asked for."""
    if not spec.background:
        return []

    names = [name for name in spec.background if beside_itself or name != spec.main]
    if not names:
        raise SpecError(
            asked=f"--background {','.join(spec.background)}",
            found=f"main is {spec.main} itself, and main's model is never in the background",
            do="name another workload, or --background none",
        )

    room = len(slices) - 1
    if len(names) > room:
        on_cpu = all(each.kind == "cpu" for each in slices)
        wider = f"--slices cpu:{len(names) + 1}" if on_cpu else "another MIG layout, or --slices cpu"
        raise SpecError(
            asked=f"--background {','.join(names)} ({len(names)} beside main)",
            found=f"slices beside main's: {room}",
            do=(f"name at most {room}" if room else "ask for --background none")
            + f", or use more slices ({wider})",
        )

    turn = spec.seed % len(names)
    rotated = names[turn:] + names[:turn]
    return [rotated[index % len(rotated)] for index in range(room)]


def _all_options_used(spec: RunSpec, names: set[str], slices: Sequence[Slice]) -> None:
    asked: dict[str, Mapping[str, object]] = {
        "batch-size": spec.batch_size,
        "weights": spec.weights,
        "data": spec.data,
    }
    for option, by_name in asked.items():
        for name, value in by_name.items():
            if name not in names:
                raise SpecError(
                    asked=f"--{option} {name}={value}",
                    found=f"{name} is not in this run, which runs {', '.join(sorted(names))}",
                    do="leave the option out, or add the workload to the run",
                )

    on_cores = all(each.kind == "cpu" for each in slices)
    if spec.dcgm is not None and (on_cores or not spec.telemetry):
        raise SpecError(
            asked=f"--dcgm {spec.dcgm}",
            found="no slice of this run is on a GPU" if on_cores else "--telemetry off: nothing is sampled",
            do="leave --dcgm out, or take slices of a GPU (--slices mig, gpu)"
            if on_cores
            else "leave one of the two out",
        )


# --- one benchmark --------------------------------------------------------------------------------------


def _background(terms: _Terms, number: int, name: str, slice_: Slice) -> Assignment:
    options = _options(terms, name, slice_)
    duration = terms.spec.background_duration
    return Assignment(
        name=f"background-{number}-{name}",
        role="background",
        workload=name,
        slice=slice_,
        options=options,
        settings=_settings(
            terms,
            name,
            options.size,
            scenario=Scenario.OFFLINE,
            min_duration_s=terms.preset.background_test_duration_s,
            min_query_count=1,
        ),
        duration_s=None if duration == "automatic" else duration,
    )


def _options(terms: _Terms, name: str, slice_: Slice) -> WorkloadOptions:
    spec, device = terms.spec, _device(slice_)
    size: Size = terms.preset.size[device] if spec.size == "auto" else spec.size
    return WorkloadOptions(
        size=size,
        device=device,
        precision=precision_of(spec, name, device),
        engine=engine_of(spec, device),
        batch_size=batch_size_of(spec, name, size, slice_),
        seed=spec.seed,
        # A core of one's own counts whole, one of n benchmarks' a share of 1/n; at least one thread.
        threads=max(1, int(sum(1 / terms.users[core] for core in slice_.cores) + 1e-9)),
        memory_mib=slice_.memory_mib // (terms.benchmarks if device == "cpu" else 1),
        weights=spec.weights.get(name),
        data=spec.data.get(name),
    )


def _device(slice_: Slice) -> DeviceKind:
    return "cpu" if slice_.kind == "cpu" else "cuda"


def _main_settings(terms: _Terms, options: WorkloadOptions) -> LoadgenSettings:
    spec, round_ = terms.spec, terms.round
    least = round_.quick.min_query_count[spec.main_scenario]
    if terms.preset.mlperf_sample_counts:
        least = round_.least_queries(spec.main, spec.main_scenario)

    settings = _settings(
        terms,
        spec.main,
        options.size,
        scenario=spec.main_scenario,
        min_duration_s=terms.main_duration_s,
        min_query_count=spec.main_min_query_count or least,
    )
    limit_ms = round_.of(spec.main).server_target_latency_ms
    if spec.main_scenario is Scenario.SERVER and limit_ms is not None:
        if options.device == "cpu" and not terms.preset.mlperf_sample_counts:
            limit_ms = max(limit_ms, round_.quick.cpu_server_target_latency_ms)

        settings = replace(settings, server_target_latency_ns=limit_ms * 1_000_000)

    if spec.main_mode == "accuracy":
        few = None if terms.preset.mlperf_sample_counts else terms.fidelity_samples
        settings = replace(settings, mode="AccuracyOnly", accuracy_sample_count=few)

    return replace(
        _with_tokens(settings, round_.of(spec.main)),
        target_qps=spec.target_qps,
        target_latency_percentile=round_.target_latency_percentile.get(spec.main_scenario),
    )


def _with_tokens(settings: LoadgenSettings, workload: RoundWorkload) -> LoadgenSettings:
    """With token latencies, where the workload generates texts and is run for its performance."""
    ttft_ms, tpot_ms = workload.server_ttft_latency_ms, workload.server_tpot_latency_ms
    if ttft_ms is None or tpot_ms is None or settings.mode == "AccuracyOnly":
        return settings

    is_server = settings.scenario is Scenario.SERVER
    return replace(
        settings,
        use_token_latencies=True,
        server_ttft_latency_ns=ttft_ms * 1_000_000 if is_server else None,
        server_tpot_latency_ns=tpot_ms * 1_000_000 if is_server else None,
    )


def _accuracy_terms(terms: _Terms) -> AccuracyTerms:
    spec, workload = terms.spec, terms.round.of(terms.spec.main)
    asked = spec.accuracy_target
    if asked == "auto":
        asked = "99.9" if spec.main in HIGH_ACCURACY else "99"

    official, references = workload.accuracy, {}
    if official is not None:
        references = official.reference_by_samples or {workload.total_sample_count or 0: official.reference}

    return AccuracyTerms(
        target={"99": 0.99, "99.9": 0.999}[asked],
        fidelity_samples=terms.fidelity_samples,
        mlperf_metric=None if official is None else official.metric,
        mlperf_reference=references,
    )


def _settings(
    terms: _Terms, name: str, size: Size, *, scenario: Scenario, min_duration_s: float, min_query_count: int
) -> LoadgenSettings:
    round_, workload = terms.round, terms.round.of(name)
    samples = workload.performance_sample_count
    if size == "small" or not terms.preset.mlperf_sample_counts:
        few = workload.quick_performance_sample_count or round_.quick.performance_sample_count
        samples = min(samples, few)

    def seeded(seed: int) -> int:
        return (seed + terms.spec.seed) % 2**64  # LoadGen's seeds are uint64

    return LoadgenSettings(
        conf_model=workload.conf_model,
        scenario=scenario,
        min_duration_ms=max(1, round(min_duration_s * 1000)),
        min_query_count=min_query_count,
        performance_sample_count=samples,
        target_qps=None,
        multi_stream_samples_per_query=round_.multi_stream_samples_per_query,
        sample_concatenate_permutation=workload.sample_concatenate_permutation,
        qsl_rng_seed=seeded(round_.qsl_rng_seed),
        sample_index_rng_seed=seeded(round_.sample_index_rng_seed),
        schedule_rng_seed=seeded(round_.schedule_rng_seed),
    )


# --- the run as a whole ---------------------------------------------------------------------------------


def _windows(terms: _Terms) -> Windows:
    """The preset's windows, those asked for in their place; a longer main lengthens its own timeout."""
    spec, preset, main_s = terms.spec, terms.preset, terms.main_duration_s
    values: dict[str, float] = {}
    for field in Windows.model_fields:
        asked = getattr(spec, field.removesuffix("_s"))
        values[field] = getattr(preset, field) if asked is None else asked

    if spec.main_timeout is None:
        values["main_timeout_s"] += OFFLINE_LASTS * max(0.0, main_s - preset.main_duration_s)
    elif spec.main_timeout <= main_s and spec.main_mode == "performance":
        raise SpecError(
            asked=f"--main-timeout of {spec.main_timeout:g} s",
            found=f"main alone measures for {main_s:g} s, after loading its model",
            do="make it longer, or leave it to the preset",
        )

    return Windows.model_validate(values)


def _shortfalls(terms: _Terms, main: Assignment) -> list[str]:
    """Why the settings are not MLPerf's."""
    minimum_s = terms.round.min_duration_ms / 1000
    least_queries = terms.round.least_queries(main.workload, terms.spec.main_scenario)
    of_the_model = {
        f"{main.workload} is not a benchmark of round {terms.round.round}": (
            terms.round.of(main.workload).accuracy is None
        ),
        "the small model": main.options.size == "small",
    }
    of_accuracy = {
        "random weights": catalog.has_random_weights(main.workload, main.options.weights),
        "synthetic inputs, which have no labels": main.options.data is None,
    }
    of_performance = {
        f"{terms.main_duration_s:g} s where MLPerf asks for {minimum_s:g} s": (
            terms.main_duration_s < minimum_s
        ),
        "fewer samples than the round's": not terms.preset.mlperf_sample_counts
        or (terms.spec.main_min_query_count or least_queries) < least_queries,
        "a start buffer shorter than the preset's": (
            terms.spec.start_buffer is not None and terms.spec.start_buffer < terms.preset.start_buffer_s
        ),
        "a background that is no benchmark of the round": any(
            terms.round.of(name).accuracy is None for name in terms.spec.background
        ),
        f"a background, which round {terms.round.round} has not": (
            bool(terms.spec.background) and not terms.round.hetero_mig
        ),
        f"seeds moved by {terms.spec.seed}": terms.spec.seed != 0,
    }
    reasons = of_the_model | (of_accuracy if terms.spec.main_mode == "accuracy" else of_performance)
    return [reason for reason, holds in reasons.items() if holds]


def _notes(terms: _Terms, main: Assignment, shortfalls: Sequence[str], *, left_out: bool) -> list[str]:
    spec, notes = terms.spec, []
    if spec.layout is not None:
        notes.append(f"layout {spec.layout}: made for this run, and undone after it")

    if shortfalls:
        notes.append(f"not comparable to MLPerf: {'; '.join(shortfalls)}")

    otherwise = [name for name in spec.background if spec.precision not in catalog.entry(name).precisions]
    if spec.precision != "auto" and otherwise:
        notes.append(f"no {spec.precision} in the background of {', '.join(otherwise)}: the default there")

    if left_out:
        notes.append(f"{spec.main} is left out of the background: it is main's own model")

    shared = [core for core, users in terms.users.items() if users > 1]
    if shared:
        notes.append(
            f"{terms.benchmarks} benchmarks share {len(terms.users)} CPU cores: "
            "they disturb each other there, whatever their slices"
        )

    official_ms = terms.round.of(spec.main).server_target_latency_ms or 0
    limit_ns = main.settings.server_target_latency_ns
    if limit_ns not in (None, official_ms * 1_000_000):
        notes.append(f"Server latency limit on CPU cores: {(limit_ns or 0) / 1e6:g} ms, not {official_ms} ms")

    return notes


def plan_as_json(plan: Plan) -> dict[str, Any]:
    """The plan as the manifest and ``--dry-run --json`` tell it; slices are described once, then named."""
    slices = [*(each.slice for each in plan.all), *plan.idle]
    return {
        "preset": plan.preset,
        "comparable_to_mlperf": plan.comparable_to_mlperf,
        "notes": list(plan.notes),
        "windows": plan.windows.model_dump(),
        "accuracy": None if plan.accuracy is None else plan.accuracy.model_dump(mode="json"),
        "main": _assignment_as_json(plan.main),
        "background": [_assignment_as_json(each) for each in plan.background],
        "idle": [each.id for each in plan.idle],
        "slices": [slice_as_json(each) for each in slices],
    }


def settings_as_json(settings: LoadgenSettings) -> dict[str, Any]:
    """The settings by field, with lists as JSON has them."""
    return asdict(settings) | {"batch_times_ns": [list(one) for one in settings.batch_times_ns]}


def _assignment_as_json(assignment: Assignment) -> dict[str, Any]:
    options = asdict(assignment.options)
    return {
        "name": assignment.name,
        "role": assignment.role,
        "workload": assignment.workload,
        "slice": assignment.slice.id,
        "options": {key: str(item) if isinstance(item, Path) else item for key, item in options.items()},
        "settings": settings_as_json(assignment.settings),
        "duration_s": assignment.duration_s,
    }
