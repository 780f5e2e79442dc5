"""MLPerf's published results of single MIG slices, alone and as HeteroMIG's main benchmark.

``profiles/published/hetero.csv``: read from the summaries in the rounds' result repositories (``path`` says which
file). Times there are in ns, durations in ms; what a scenario does not have is empty.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log
from statistics import fmean
from typing import Any

import profiles
from scheduler.conditions import Difference, Measured, gpu_settings
from scheduler.errors import SpecError
from workloads.protocol import Scenario

SYSTEM = re.compile(
    r"(?:(?P<machine>.+?)[-_])??(?P<gpu>A30|A100(?:[-_](?:SXM|PCIE)[-_]80GB|_v4)?)"
    r"(?:[-_](?:MIG_(?P<devices>\d+)x(?P<profile>\d+g\.\d+gb)|(?P<unnamed>\d+)xMIG|MIG_(?P<azure>\d+g_\d+gb))"
    r"|x(?P<whole>\d+))"
    r"_TRT(?P<triton>_Triton)?(?P<hetero>_HeteroMultiUse)?"
)
"""``DGX-A100_A100-SXM-80GB-MIG_1x1g.10gb_TRT_HeteroMultiUse``, ``A30x1_TRT``, ``NC96ads_A100_v4_MIG_1g_10gb_TRT``."""


LONG = "600 s or more"


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """What a submitter's system name says."""

    name: str
    gpu: str
    profile: str | None
    """Of the MIG devices; None: whole GPUs, or MIG devices of which the name does not say."""
    slices: int
    """MIG devices, or whole GPUs, that worked together."""
    mig: bool
    triton: bool
    hetero: bool
    """HeteroMIG: the other slices of the GPU worked too."""

    @property
    def where(self) -> str:
        """``A30, MIG 1g.6gb``."""
        if not self.mig:
            return f"{self.gpu} × {self.slices}"

        times = "" if self.slices == 1 else f" × {self.slices}"
        return f"{self.gpu}, MIG {self.profile or 'slice'}{times}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One published run; all of them are VALID."""

    round: str
    organisation: str
    system: System
    benchmark: str
    """``bert-99.9``"""
    scenario: Scenario
    samples_per_s: float | None
    """Of Offline; of Server the rate asked for, which its submitter chose (and with which it was VALID). None of the
    streams, and of eight Offline rows of 3d-unet, whose summaries are those of their SingleStream runs."""
    mean_ms: float
    p90_ms: float
    p99_ms: float
    """Of single queries; under Offline from the test's start."""
    target_qps: float
    min_duration_s: float
    min_query_count: int
    path: str

    @property
    def workload(self) -> str:
        """``bert`` of ``bert-99.9``."""
        return re.sub(r"-99(\.9)?$", "", self.benchmark)

    @property
    def score(self) -> tuple[float | None, str]:
        """By the scenario: samples/s, or ms at the percentile that counts."""
        match self.scenario:
            case Scenario.SINGLE_STREAM:
                return self.p90_ms, "ms p90"
            case Scenario.MULTI_STREAM:
                return self.p99_ms, "ms p99"
            case _:
                return self.samples_per_s, "samples/s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A published slice alone, in company, or both; one of them is there."""

    alone: Published | None
    hetero: Published | None
    benchmarks: tuple[str, ...]
    """``dlrm-99``, ``dlrm-99.9``: more than one where one run was submitted under both accuracy targets."""

    @property
    def either(self) -> Published:
        found = self.hetero or self.alone
        assert found is not None
        return found

    @property
    def derating(self) -> float | None:
        """In company ÷ alone, of the score. Server's is of two chosen rates."""
        alone = self.alone.score[0] if self.alone is not None else None
        hetero = self.hetero.score[0] if self.hetero is not None else None
        return hetero / alone if alone and hetero else None


def rows() -> list[Published]:
    """Every published row, in the file's order."""
    return [_row(row) for row in csv.DictReader(profiles.text_of("published/hetero.csv").splitlines())]


def parse_system(name: str) -> System:
    """What a system's name says.

    Raises:
        ValueError: it is written in none of the known ways.
    """
    found = SYSTEM.fullmatch(name)
    if found is None:
        raise ValueError(f"{name} is no system's name as MLPerf's submitters of MIG slices write them")

    azure = found["azure"]
    return System(
        name=name,
        gpu=found["gpu"].replace("_v4", "").replace("_", "-"),
        profile=azure.replace("_", ".") if azure else found["profile"],
        slices=int(found["devices"] or found["unnamed"] or found["whole"] or 1),
        mig=found["whole"] is None,
        triton=found["triton"] is not None,
        hetero=found["hetero"] is not None,
    )


def references(published: Sequence[Published]) -> list[Reference]:
    """Single slices, each alone and in company as far as both are published; alone and hetero are of one round,
    organisation, system and benchmark.

    A run that was submitted under both accuracy targets (dlrm, 3d-unet) is there once.
    """
    slices = [one for one in published if one.system.mig and one.system.slices == 1]
    alone = {_same_but_for_company(one): one for one in slices if not one.system.hetero}
    hetero = {_same_but_for_company(one): one for one in slices if one.system.hetero}
    by_figures: dict[tuple[object, ...], Reference] = {}
    for key in sorted({**hetero, **alone}):
        found = Reference(alone=alone.get(key), hetero=hetero.get(key), benchmarks=(key[3],))
        twin = by_figures.get(_figures(found))
        benchmarks = found.benchmarks if twin is None else (*twin.benchmarks, *found.benchmarks)
        by_figures[_figures(found)] = replace(found, benchmarks=benchmarks)

    return list(by_figures.values())


def check(every: Iterable[Reference], *, workload: str | None, round_: str | None) -> None:
    """Refuse what nothing is published of.

    Args:
        workload: by the catalogue's name, or MLPerf's benchmark.

    Raises:
        SpecError: no single slice of that workload, or of that round; it names those that there are.
    """
    listed = list(every)
    told = (
        ("--workload", workload, [name for one in listed for name in (one.either.workload, *one.benchmarks)]),
        ("--round", round_, [one.either.round for one in listed]),
    )
    for option, asked, there in told:
        if asked is not None and asked not in there:
            raise SpecError(
                asked=f"reference {option} {asked}",
                found="MLPerf has published no single MIG slice of that",
                do=f"take one of {', '.join(sorted(set(there)))}",
            )


def matching(
    found: Iterable[Reference],
    *,
    workload: str | None = None,
    scenario: str | None = None,
    system: str | None = None,
    round_: str | None = None,
) -> list[Reference]:
    """Those of a workload (or benchmark), scenario and round, with ``system`` anywhere in the system's name."""

    def fits(found: Reference) -> bool:
        one = found.either
        return (
            (workload is None or workload in (one.workload, *found.benchmarks))
            and (scenario is None or scenario == one.scenario)
            and (round_ is None or round_ == one.round)
            and (system is None or system.lower() in one.system.name.lower())
        )

    return [one for one in found if fits(one)]


def geometric_mean(found: Iterable[Reference]) -> float | None:
    """Of the deratings, where there are any."""
    deratings = [one.derating for one in found if one.derating is not None]
    return exp(fmean(map(log, deratings))) if deratings else None


def as_json(found: Sequence[Reference], run: Measured | None) -> dict[str, Any]:
    """The published results, and in what a run of one's own differs from them, ready for JSON."""
    return {
        "published": [
            {
                "benchmarks": one.benchmarks,
                "scenario": one.either.scenario,
                "alone": None if one.alone is None else asdict(one.alone),
                "hetero": None if one.hetero is None else asdict(one.hetero),
                "derating": one.derating,
            }
            for one in found
        ],
        "yours": None if run is None else run.result.model_dump(mode="json"),
        "differs": [] if run is None else [asdict(one) for one in differences(run)],
    }


def differences(run: Measured) -> list[Difference]:
    """In what a run of one's own differs from every published one: none of them is comparable without these."""
    main, planned = run.result.main, run.manifest.main
    where = next((one for one in run.result.slices if one.id == main.slice), None)
    lasted_s = main.settings.get("min_duration_ms", 0) / 1000
    hardware = gpu_settings(run).get("name") or (where.name if where else main.slice)
    told = [
        ("hardware", hardware, "A100 or A30, as listed"),
        ("slice", f"{where.kind} {where.name}" if where else "–", "one MIG slice of 1g"),
        ("software", f"torch {run.manifest.host.get('versions', {}).get('torch')}", "TensorRT"),
        ("precision", main.precision, "the submitter's (int8 or fp16; the summaries do not say)"),
        ("size", main.size, "full"),
        ("minimum duration", f"{lasted_s:g} s" if lasted_s < 600 else LONG, LONG),
        ("samples in memory", str(main.settings.get("performance_sample_count", "–")), "the round's"),
        ("weights", str(planned.weights or "random, from the seed"), "MLPerf's, trained"),
        ("inputs", str(planned.data or "synthetic, from the seed"), "MLPerf's data set"),
        (
            "rules",
            "as MLPerf's" if run.result.comparable_to_mlperf else "not MLPerf-length",
            "MLPerf's, reviewed",
        ),
    ]
    return [Difference(name=name, one=one, other=other) for name, one, other in told if one != other]


def _figures(found: Reference) -> tuple[object, ...]:
    one = found.either
    times = [(each.p90_ms, each.p99_ms) for each in (found.alone, found.hetero) if each is not None]
    return one.round, one.organisation, one.system.name, one.workload, one.scenario, *times


def _same_but_for_company(one: Published) -> tuple[str, str, str, str, Scenario]:
    system = one.system.name.removesuffix("_HeteroMultiUse")
    return one.round, one.organisation, system, one.benchmark, one.scenario


def _row(row: dict[str, str]) -> Published:
    rate = row["sps"] or row["sched"]
    return Published(
        round=row["round"],
        organisation=row["org"],
        system=parse_system(row["system"]),
        benchmark=row["bench"],
        scenario=Scenario(row["scen"]),
        samples_per_s=float(rate) if rate else None,
        mean_ms=float(row["mean"]) / 1e6,
        p90_ms=float(row["p90"]) / 1e6,
        p99_ms=float(row["p99"]) / 1e6,
        target_qps=float(row["target_qps"]),
        min_duration_s=float(row["mindur"]) / 1000,
        min_query_count=int(row["minq"]),
        path=row["path"],
    )
