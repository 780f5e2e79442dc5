"""A run, or a series of runs, as pandas tables: for reports and notebooks. The one door to pandas.

Times are seconds on the run's monotonic clock, whose zero is the manifest's ``clock_zero``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from scheduler.errors import FolderDamaged, NoRun
from scheduler.judging import OF_A_MAIN, judge
from scheduler.record import RunFolder, is_series
from scheduler.result import BenchmarkRecord, Manifest, Result, first_fault
from scheduler.series import ASIDE, verdict_in
from scheduler.story import BenchmarkStory, RunStory, Story, read_story, until_the_next
from workloads.progress import read_history
from workloads.protocol import Scenario
from workloads.queries import read_queries

PERCENTILES = {"p50": 50.0, "p90": 90.0, "p95": 95.0, "p99": 99.0, "p99.9": 99.9}
RATE_BINS = 240
"""Of a benchmark's time, where its rate is told: a picture shows no more."""
TELEMETRY_SCOPES = {"host": "host", "gpus": "gpu", "slices": "slice", "workers": "worker"}
"""Of a telemetry line's parts, by the name of what each is about."""


@dataclass(frozen=True, slots=True)
class Benchmark:
    """What a benchmark is, and when it came how far, s; None: it did not."""

    name: str
    role: str
    workload: str
    slice: str
    size: str
    precision: str
    batch_size: int
    scenario: str
    launched_s: float | None
    ready_s: float | None
    first_issue_s: float | None
    issuing_s: float | None
    """When its first batch was complete."""
    last_completion_s: float | None
    finished_s: float | None
    exited_s: float | None
    samples: int
    filler_samples: int


@dataclass(frozen=True)
class RunTables:
    """One run folder, read; the tables are made when they are asked for."""

    folder: RunFolder
    manifest: Manifest
    result: Result
    cut_short: bool
    """There is no result.json: ``result`` is what the rest of the folder says."""
    story: Story

    @property
    def name(self) -> str:
        """What the folder is called; of a trial its own within that of its run."""
        name = self.folder.path.resolve().name
        return name if self.manifest.first_main is None else f"{name}/{self.manifest.main.name}"

    @cached_property
    def until_s(self) -> float:
        """When what is told of ends: a trial's run goes on with the next."""
        return np.inf if self.manifest.first_main is None else max((at for at, _ in self.story), default=0.0)

    @cached_property
    def told(self) -> RunStory:
        """The events, sorted by benchmark."""
        return read_story(self.story)

    @cached_property
    def each(self) -> list[Benchmark]:
        """The benchmarks, main first."""
        return [self._benchmark(one) for one in self._planned]

    @cached_property
    def benchmarks(self) -> pd.DataFrame:
        """A row a benchmark, main first: the fields of ``Benchmark``."""
        return pd.DataFrame.from_records([asdict(one) for one in self.each])

    @cached_property
    def events(self) -> pd.DataFrame:
        """at_handled_s, at_s (NaN for actions), what, benchmark, fields: every event and action, in order."""
        rows = []
        for at_handled, what in self.story:
            fields = {name: getattr(what, name) for name in what.__dataclass_fields__}
            rows.append(
                {
                    "at_handled_s": at_handled,
                    "at_s": fields.pop("at", np.nan),
                    "what": type(what).__name__,
                    "benchmark": fields.pop("name", ""),
                    "fields": fields,
                }
            )

        return pd.DataFrame.from_records(
            rows, columns=["at_handled_s", "at_s", "what", "benchmark", "fields"]
        )

    @cached_property
    def telemetry(self) -> pd.DataFrame:
        """at_s, scope (host, gpu, slice, worker), id, quantity, value: a row a figure that was available."""
        rows = [
            (float(line.get("at_s", line.get("at", np.nan))), *figure)
            for line in self.folder.lines("telemetry.jsonl")
            for figure in _figures(line)
        ]
        ours = {one.name for one in self._planned}
        rows = [row for row in rows if not row[0] > self.until_s and (row[1] != "worker" or row[2] in ours)]
        return pd.DataFrame.from_records(rows, columns=["at_s", "scope", "id", "quantity", "value"])

    @cached_property
    def unavailable(self) -> dict[str, str]:
        """Why a figure of the telemetry is not there, by ``PART.NAME.COLUMN``."""
        if not (self.folder.path / "telemetry.json").exists():
            return {}

        told = self.folder.read_json("telemetry.json").get("unavailable")
        return {str(what): str(why) for what, why in told.items()} if isinstance(told, dict) else {}

    @property
    def calibrated_qps(self) -> float | None:
        """The rate that main's test ran with, as LoadGen had it; None where LoadGen left none."""
        found = self.result.main.settings.get("target_qps")
        return float(found) if isinstance(found, int | float) and found > 0 else None

    @cached_property
    def latencies(self) -> pd.DataFrame:
        """benchmark, issued_s, latency_ms: a row a query of main, as its process saw it.

        None under Offline, where all samples are one query: see ``completions``.
        """
        main = self.manifest.main
        queries = read_queries(self.folder.path / main.name)
        if queries is None or main.scenario is Scenario.OFFLINE:
            return pd.DataFrame(
                {"benchmark": [], "issued_s": np.empty(0), "latency_ms": np.empty(0)},
            )

        issued_ns, completed_ns = np.asarray(queries.issued_ns), np.asarray(queries.completed_ns)
        return pd.DataFrame(
            {
                "benchmark": main.name,
                "issued_s": self._seconds(issued_ns),
                "latency_ms": (completed_ns - issued_ns) / 1e6,
            }
        )

    @cached_property
    def completions(self) -> pd.DataFrame:
        """benchmark, at_s, samples, filler_samples, longest_batch_ms: a row for each 10 ms or more, of every benchmark.

        Samples are those since the row before, completed by ``at_s``.
        """
        parts = []
        for one in self._planned:
            records = np.array(read_history(self.folder.path / one.name)[:], dtype=np.int64).reshape(-1, 6)
            parts.append(
                pd.DataFrame(
                    {
                        "benchmark": one.name,
                        "at_s": self._seconds(records[:, 0]),
                        "samples": np.diff(records[:, 1], prepend=0),
                        "filler_samples": np.diff(records[:, 2], prepend=0),
                        "longest_batch_ms": records[:, 5] / 1e6,
                    }
                )
            )

        found = pd.concat(parts, ignore_index=True)
        return found[found["at_s"] <= self.until_s].reset_index(drop=True)

    def rates(self, benchmark: str, bins: int = RATE_BINS) -> pd.DataFrame:
        """begin_s, end_s, samples_per_s, filler_samples_per_s: of a benchmark, over time.

        Each row is at least as long as a batch: what completes at once was worked on since the row before.
        """
        rows = self.completions[self.completions["benchmark"] == benchmark]
        begin_s = self._first_issue_s(benchmark)
        if rows.empty or begin_s is None:
            return pd.DataFrame({"begin_s": [], "end_s": [], "samples_per_s": [], "filler_samples_per_s": []})

        ends_s = rows["at_s"].to_numpy()
        edges = np.linspace(begin_s, ends_s[-1], min(bins, len(rows)) + 1)[1:]
        last = np.unique(np.searchsorted(ends_s, edges, side="right") - 1)
        last = last[last >= 0]
        until_s = ends_s[last]
        since_s = np.concatenate(([begin_s], until_s[:-1]))
        lasted_s = np.maximum(until_s - since_s, 1e-9)
        return pd.DataFrame(
            {
                "begin_s": since_s,
                "end_s": until_s,
                "samples_per_s": _between(rows["samples"].to_numpy(), last) / lasted_s,
                "filler_samples_per_s": _between(rows["filler_samples"].to_numpy(), last) / lasted_s,
            }
        )

    def percentiles(self) -> dict[str, float]:
        """Mean and percentiles of main's latencies, ms, as numpy has them of the raw samples; empty without."""
        latency_ms = self.latencies["latency_ms"].to_numpy()
        if not len(latency_ms):
            return {}

        found = np.percentile(latency_ms, list(PERCENTILES.values()))
        return {"mean": float(latency_ms.mean()), **dict(zip(PERCENTILES, found.tolist(), strict=True))}

    @property
    def _planned(self) -> Iterable[BenchmarkRecord]:
        return (self.manifest.main, *self.manifest.background)

    def _benchmark(self, planned: BenchmarkRecord) -> Benchmark:
        told = self.told.benchmarks.get(planned.name, BenchmarkStory())
        mine = self.completions[self.completions["benchmark"] == planned.name]
        return Benchmark(
            name=planned.name,
            role=planned.role,
            workload=planned.workload,
            slice=planned.slice,
            size=planned.size,
            precision=planned.precision,
            batch_size=planned.batch_size,
            scenario=str(planned.scenario),
            launched_s=told.launched_at,
            ready_s=None if told.ready is None else told.ready.at,
            first_issue_s=None if told.issuing is None else told.issuing.first_issue_at,
            issuing_s=None if told.issuing is None else told.issuing.at,
            last_completion_s=None if mine.empty else float(mine["at_s"].iloc[-1]),
            finished_s=None if told.finished is None else told.finished.at,
            exited_s=None if told.exited is None else told.exited.at,
            samples=int(mine["samples"].sum()),
            filler_samples=int(mine["filler_samples"].sum()),
        )

    def _first_issue_s(self, name: str) -> float | None:
        told = self.told.benchmarks.get(name)
        return None if told is None or told.issuing is None else told.issuing.first_issue_at

    def _seconds(self, monotonic_ns: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        zero_ns = self.manifest.clock_zero.monotonic_ns
        return np.asarray((monotonic_ns.astype(np.int64) - zero_ns) / 1e9, dtype=np.float64)


@dataclass(frozen=True)
class SeriesTables:
    """Several runs that answer one question, read."""

    path: Path
    question: Mapping[str, Any]
    answer: Mapping[str, Any] | None
    """result.json; None: the series has not come to its answer."""
    runs: Mapping[str, Path]
    """Those that came to a verdict, by key; of a finished series those that could not run as well."""

    @property
    def command(self) -> str:
        """derate, tune, matrix, profile …"""
        return str(self.question.get("command", "series"))

    @cached_property
    def results(self) -> pd.DataFrame:
        """A row a run: key, verdict, workload, scenario, slice, metric, value, unit, latencies in ms.

        Empty where the series is not made of runs: a profile's rows are in ``answer``.
        """
        found = [(key, RunFolder(path).result()) for key, path in self.runs.items()]
        return pd.DataFrame.from_records([_run_row(key, result) for key, result in found if "main" in result])


def load(path: Path | str) -> RunTables:
    """Read a run folder, or that of one trial of a tuning.

    Raises:
        NoRun: it is no run folder.
        FolderDamaged: a file that judging needs cannot be read.
    """
    place = Path(path)
    if is_series(place):
        raise NoRun(
            asked=f"the tables of {path} as of one run",
            found="it is a series of runs",
            do="read it with load_series, or load one of the folders in its runs/ folder",
        )

    try:
        return _trial(place) if (place / OF_A_MAIN).exists() else _run(RunFolder(place))
    except ValidationError as error:
        raise FolderDamaged(
            asked=f"a report of {path}",
            found=first_fault(error),
            do="name the folder of a run, as this version leaves it",
        ) from None


def _run(folder: RunFolder) -> RunTables:
    manifest = Manifest.model_validate(folder.manifest())
    result = Result.model_validate(folder.result()) if folder.has_result() else judge(folder)
    return RunTables(folder, manifest, result, not folder.has_result(), folder.story())


def _trial(place: Path) -> RunTables:
    """A trial with the background that it had: what its run's folder tells of the two."""
    trial, run = RunFolder(place), RunFolder(place.resolve().parent)
    main = BenchmarkRecord.model_validate(trial.read_json(OF_A_MAIN))
    manifest = Manifest.model_validate(run.manifest()).model_copy(update={"main": main})
    ours = {"", main.name, *(one.name for one in manifest.background)}
    story = [
        (at, what) for at, what in until_the_next(run.story(), main.name) if getattr(what, "name", "") in ours
    ]
    return RunTables(run, manifest, Result.model_validate(trial.result()), False, story)


def trials_in(path: Path) -> list[Path]:
    """The folders of the trials that were judged, in order; none but in a run of a tuning."""
    return sorted(one.parent for one in path.glob(f"*/{OF_A_MAIN}"))


def load_series(path: Path | str) -> SeriesTables:
    """Read the folder of a series.

    Raises:
        NoRun: it is none.
        FolderDamaged: it cannot be read.
    """
    place = Path(path)
    if not is_series(place):
        raise NoRun(
            asked=f"the tables of {path} as of a series of runs",
            found="there is no series.json in it",
            do="name the folder of a series; one run is read with load",
        )

    folder = RunFolder(place)
    asked = folder.read_json("series.json")
    answer = folder.result() if folder.has_result() else None
    runs = {
        one.name: one
        for one in sorted((place / "runs").glob("*"))
        if (one / "result.json").exists() and not ASIDE.search(one.name)
        if answer is not None or _is_done(RunFolder(one))
    }
    return SeriesTables(path=place, question=dict(asked.get("question", {})), answer=answer, runs=runs)


def _is_done(folder: RunFolder) -> bool:
    """Whether it is not made again: a run that was stopped, or could not run, has a result too."""
    if "main" not in folder.result():  # a profile's step, which has one only at its end
        return True

    return verdict_in(folder) is not None


def _run_row(key: str, result: Mapping[str, Any]) -> dict[str, Any]:
    main = result["main"]
    metric = main.get("metric") or {}
    return {
        "key": key,
        "verdict": result.get("verdict"),
        **{name: main.get(name) for name in ("workload", "scenario", "slice")},
        "metric": metric.get("name"),
        "value": metric.get("value"),
        "unit": metric.get("unit"),
        **(main.get("latency_ms") or {}),
    }


def _figures(line: Mapping[str, Any]) -> Iterable[tuple[str, str, str, float]]:
    """Every number of a telemetry line, with what it is of."""
    for part, scope in TELEMETRY_SCOPES.items():
        content = line.get(part)
        if not isinstance(content, Mapping):
            continue

        things = {"": content} if part == "host" else content
        for thing, figures in things.items():
            for quantity, value in _numbers(figures):
                yield scope, str(thing), quantity, value

    for quantity, value in _numbers({k: v for k, v in line.items() if k.startswith(("host_", "launcher_"))}):
        yield "host", "", quantity, value


def _numbers(figures: object, prefix: str = "") -> Iterable[tuple[str, float]]:
    for name, value in figures.items() if isinstance(figures, Mapping) else ():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}.")
        elif isinstance(value, bool | int | float):
            yield f"{prefix}{name}", float(value)


def _between(counts: npt.NDArray[Any], last: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The sums of ``counts`` up to each of the places in ``last``, from the one before."""
    total = np.cumsum(counts)[last]
    return np.asarray(np.diff(total, prepend=0), dtype=np.float64)
