"""Every workload beside every workload: which runs that takes, in which order, and what their results say. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import fmean, stdev
from typing import Literal

from pydantic import BaseModel, ConfigDict

from scheduler.result import Result, SliceRecord
from scheduler.statistics import t_quantile

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
"""Of a cell that nothing bears on, how often it lies within the noise floor."""
LEAST_REPEATS, REPEATS = 2, 3

Outcome = Literal["VALID", "INVALID", "could not run"]


@dataclass(frozen=True, slots=True)
class PairRun:
    """One run of the matrix."""

    main: str
    background: str | None
    """On every other slice; None: main alone, with nothing on them."""
    number: int = 1
    """Which of its baselines."""

    @property
    def key(self) -> str:
        """The name of its run folder."""
        return (
            f"{self.main}-alone-{self.number}"
            if self.background is None
            else f"{self.main}-beside-{self.background}"
        )

    @property
    def words(self) -> str:
        return (
            f"{self.main} alone, time {self.number}"
            if self.background is None
            else f"{self.main} beside {self.background}"
        )


def order(workloads: Sequence[str], repeats: int) -> tuple[PairRun, ...]:
    """All runs. What drifts while they go on falls on every row, every column and every baseline alike.

    The pairs are taken along the diagonals: each of the n rounds has every main once and every background once.
    The baselines' rounds stand before the first of them, after the last, and evenly between.
    """
    n = len(workloads)
    before_round = [round(turn * n / (repeats - 1)) for turn in range(repeats)]
    runs: list[PairRun] = []
    for shift in range(n + 1):
        for turn in range(repeats):
            if before_round[turn] == shift:
                runs += [PairRun(workloads[(at + turn) % n], None, turn + 1) for at in range(n)]

        if shift < n:
            runs += [PairRun(workloads[at], workloads[(at + shift) % n]) for at in range(n)]

    return tuple(runs)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PairResult(_Record):
    """One run as it came out."""

    main: str
    background: str | None
    outcome: Outcome
    samples_per_s: float | None
    """Of main; None where the run is not VALID: a figure that does not hold is not told."""
    background_samples_per_s: float | None
    """Of all other slices together, within main's window."""
    breaches: list[str]
    warnings: list[str]
    """Codes of what was found besides."""
    run: str
    """Its run folder, within the matrix's."""


class Alone(_Record):
    """A workload alone on main's slice."""

    workload: str
    samples_per_s: float | None
    """The geometric mean of its VALID runs."""
    noise_floor: float | None
    """How far one run lies from it by chance alone: 0.012 is a factor of up to 1.012. None: fewer than two runs."""
    runs: list[PairResult]


class Cell(_Record):
    """One main beside one background."""

    main: str
    background: str
    derating: float | None
    """Of throughput: this run ÷ main's baseline."""
    within_noise: bool | None
    """Whether main's baseline alone scatters as far; None: not known."""
    run: PairResult


class MatrixResult(_Record):
    """``result.json`` of a matrix."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["matrix"] = "matrix"
    verdict: Literal["VALID", "INVALID"]
    """VALID: every run is."""
    started_utc: str
    workloads: list[str]
    preset: str
    main_duration_s: float
    conditions: dict[str, str]
    """By workload: size, precision and batch size of main; background has the same."""
    slices: list[SliceRecord]
    main_slice: str
    repeats: int
    """Baselines of each workload."""
    confidence: float = CONFIDENCE
    """Of the noise floors."""
    notes: list[str]
    baselines: list[Alone]
    cells: list[Cell]
    """Row by row."""

    def cell(self, main: str, background: str) -> Cell:
        n = len(self.workloads)
        return self.cells[self.workloads.index(main) * n + self.workloads.index(background)]

    def baseline(self, main: str) -> Alone:
        return self.baselines[self.workloads.index(main)]


def pair_result(run: PairRun, result: Result, folder: str) -> PairResult:
    """What counts of a run that came to a verdict."""
    metric = result.main.metric
    valid = result.verdict == "VALID" and metric is not None and metric.value > 0
    rates = [one.samples_per_s_in_main_window for one in result.background]
    return PairResult(
        main=run.main,
        background=run.background,
        outcome="VALID" if valid else "INVALID",
        samples_per_s=metric.value if valid and metric is not None else None,
        background_samples_per_s=sum(rate or 0.0 for rate in rates) if valid and rates else None,
        breaches=[found.message for found in result.findings if found.severity == "breach"],
        warnings=[found.code for found in result.findings if found.severity == "warning"],
        run=folder,
    )


def not_run(run: PairRun, why: str, folder: str) -> PairResult:
    """What is told of a run that came to none."""
    return PairResult(
        main=run.main,
        background=run.background,
        outcome="could not run",
        samples_per_s=None,
        background_samples_per_s=None,
        breaches=[why],
        warnings=[],
        run=folder,
    )


def baselines_of(workloads: Sequence[str], results: Mapping[PairRun, PairResult]) -> list[Alone]:
    """Each workload alone, from its runs in their order."""
    found = []
    for workload in workloads:
        runs = [
            result
            for run, result in sorted(results.items(), key=lambda each: each[0].number)
            if run.main == workload and run.background is None
        ]
        logs = [log(run.samples_per_s) for run in runs if run.samples_per_s is not None]
        found.append(
            Alone(
                workload=workload,
                samples_per_s=exp(fmean(logs)) if logs else None,
                noise_floor=noise_floor(logs),
                runs=runs,
            )
        )

    return found


def noise_floor(logs: Sequence[float]) -> float | None:
    """How far one more run lies from the mean of these, at ``CONFIDENCE``, as a ratio less 1; None for fewer than two.

    Args:
        logs: of the throughput of like runs.

    Student's t prediction interval, mean ± t·s·√(1 + 1/n): G. J. Hahn and W. Q. Meeker, Statistical Intervals,
    1991, section 4.2.
    """
    n = len(logs)
    if n < LEAST_REPEATS:
        return None

    return exp(t_quantile(CONFIDENCE, n - 1) * stdev(logs) * sqrt(1 + 1 / n)) - 1


def cells_of(
    workloads: Sequence[str], baselines: Sequence[Alone], results: Mapping[PairRun, PairResult]
) -> list[Cell]:
    """Every main beside every background, row by row."""
    return [
        _cell(baseline, results[PairRun(baseline.workload, background)])
        for baseline in baselines
        for background in workloads
    ]


def _cell(baseline: Alone, run: PairResult) -> Cell:
    derating = within = None
    if run.samples_per_s is not None and baseline.samples_per_s is not None:
        derating = run.samples_per_s / baseline.samples_per_s
        if baseline.noise_floor is not None:
            within = abs(log(derating)) <= log(1 + baseline.noise_floor)

    return Cell(
        main=baseline.workload,
        background=run.background or "",
        derating=derating,
        within_noise=within,
        run=run,
    )


def time_left_s(durations_s: Sequence[float], left: int) -> float | None:
    """For that many more runs, if they last as those did; None while none has ended."""
    return fmean(durations_s) * left if durations_s else None
