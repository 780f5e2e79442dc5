"""A matrix: each workload on main's slice, beside each workload on all other slices, and alone."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from scheduler import assignment, inspection, pairs
from scheduler.assignment import Plan
from scheduler.errors import SeriesCutShort
from scheduler.pairs import MatrixResult, PairResult, PairRun
from scheduler.result import Result, SliceRecord
from scheduler.series import Series, Watching
from scheduler.slices import Machine, Slice
from scheduler.spec import RunSpec, loadgen_round, presets

NOT_COMPARABLE = "not comparable to MLPerf"
COULD_NOT_RUN = 3
"""Exit code of a run that failed by itself; the matrix goes on without it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What is to be measured, on what."""

    spec: RunSpec
    """What all runs have in common; of its main and background only those of a run count."""
    workloads: tuple[str, ...]
    slices: tuple[Slice, ...]
    """Main's is the same in all runs; the background is on all others."""
    repeats: int
    """Baselines of each workload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Before a run."""

    run: PairRun
    number: int
    """Of ``runs``, from 1."""
    runs: int
    left_s: float | None
    """For what is left, this run included, from how long those before it took; None before the first."""


def plan_of(asked: Asked, run: PairRun) -> tuple[RunSpec, Plan]:
    """The spec and plan of one run. Main's options and settings are the same alone and in company.

    Raises:
        SpecError: it does not fit together.
    """
    spec = _spec_of(asked, run, run.background or run.main)
    in_company = _assigned(asked, spec)
    if run.background is not None:
        return spec, in_company

    spec = spec.model_copy(update={"background": ()})
    return spec, replace(_assigned(asked, spec), main=in_company.main)


def measure(
    asked: Asked,
    series: Series,
    machine: Machine,
    watching: Watching,
    tell: Callable[[Progress], None],
) -> MatrixResult:
    """Carry out what runs the series does not have yet; whoever calls writes the answer down.

    Raises:
        SeriesCutShort: a run was stopped; the same command goes on from there.
    """
    runs = pairs.order(asked.workloads, asked.repeats)
    found: dict[PairRun, PairResult] = {}
    results: list[Result] = []
    durations_s: list[float] = []
    for number, run in enumerate(runs, start=1):
        left_s = pairs.time_left_s(durations_s, len(runs) - number + 1)
        if series.finished(run.key) is None:
            tell(Progress(run=run, number=number, runs=len(runs), left_s=left_s))

        spec, plan = plan_of(asked, run)
        try:
            result = series.run(run.key, plan, spec, machine, watching)
        except SeriesCutShort as error:
            if error.exit_code != COULD_NOT_RUN:
                raise

            found[run] = pairs.not_run(run, error.found, f"runs/{run.key}")
            continue

        found[run] = pairs.pair_result(run, result, f"runs/{run.key}")
        results.append(result)
        durations_s.append(_lasted_s(series, run))

    return _answer(asked, found, results)


def check(asked: Asked) -> list[Plan]:
    """The plan of every run, so that what does not fit together is refused before the first of them.

    Raises:
        SpecError: it does not.
    """
    plans = [plan_of(asked, run)[1] for run in pairs.order(asked.workloads, asked.repeats)]
    for plan in plans[: len(asked.workloads)]:
        inspection.check_data(plan)

    return plans


def _spec_of(asked: Asked, run: PairRun, background: str) -> RunSpec:
    """Main and background in place; options by name only of these two."""

    def of_these(by_name: Mapping[str, object]) -> dict[str, object]:
        return {name: value for name, value in by_name.items() if name in (run.main, background)}

    spec = asked.spec
    return spec.model_copy(
        update={
            "main": run.main,
            "background": (background,),
            "batch_size": of_these(spec.batch_size),
            "weights": of_these(spec.weights),
            "data": of_these(spec.data),
        }
    )


def _assigned(asked: Asked, spec: RunSpec) -> Plan:
    return assignment.assign(spec, asked.slices, presets(), loadgen_round(spec.round), beside_itself=True)


def _notes(results: Sequence[Result]) -> list[str]:
    """Each once; why a run is not comparable to MLPerf differs from pair to pair, and is told in its folder."""
    notes = list(dict.fromkeys(note for result in results for note in result.notes))
    told = [note for note in notes if not note.startswith(NOT_COMPARABLE)]
    if len(told) < len(notes):
        told.append(f"{NOT_COMPARABLE}; each run's result.json says why")

    return told


def _lasted_s(series: Series, run: PairRun) -> float:
    done = series.finished(run.key)
    return max((at for at, _ in done[0].story()), default=0.0) if done else 0.0


def _answer(asked: Asked, found: Mapping[PairRun, PairResult], results: Sequence[Result]) -> MatrixResult:
    _, plan = plan_of(asked, PairRun(asked.workloads[0], asked.workloads[0]))
    baselines = pairs.baselines_of(asked.workloads, found)
    mains = {run.main: plan_of(asked, run)[1].main for run in found}
    return MatrixResult(
        verdict="VALID" if all(one.outcome == "VALID" for one in found.values()) else "INVALID",
        started_utc=min((result.started_utc for result in results), default=""),
        workloads=list(asked.workloads),
        preset=plan.preset,
        main_duration_s=plan.main.settings.min_duration_ms / 1000,
        conditions={
            name: f"{main.options.size} {main.options.precision} ≤{main.options.batch_size}"
            for name, main in mains.items()
        },
        slices=[SliceRecord.model_validate(assignment.slice_as_json(one)) for one in asked.slices],
        main_slice=plan.main.slice.id,
        repeats=asked.repeats,
        notes=_notes(results),
        baselines=baselines,
        cells=pairs.cells_of(asked.workloads, baselines, found),
    )
