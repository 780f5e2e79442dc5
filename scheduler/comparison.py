"""Two results side by side: figures with their change, the conditions that differ, and what got worse. Pure."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from scheduler.conditions import Measured, differences
from scheduler.derating import Derating
from workloads.protocol import Scenario

SCHEMA_VERSION = 1
FOLLOW_FROM_THE_RATE = ("setting samples_per_query", "setting min_sample_count")
WHAT_IS_MEASURED = ("workload", "scenario")
LATENCIES = ("mean", "p50", "p90", "p95", "p99", "p999")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(_Record):
    """One figure in A and in B."""

    figure: str
    unit: str
    better: Literal["more", "less", "neither"]
    a: float | None
    b: float | None
    change: float | None
    """B ÷ A − 1; None where one of them is missing."""

    @property
    def worsening(self) -> float | None:
        """The change in the worse direction: 0.05 is 5 % worse; negative where B is better."""
        if self.change is None or self.better == "neither":
            return None

        return -self.change if self.better == "more" else self.change


class Condition(_Record):
    """A condition that A and B do not share."""

    name: str
    a: str
    b: str


class Compared(_Record):
    """``hetero-mig compare --json``."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["compare"] = "compare"
    a: str
    """The folder."""
    b: str
    verdicts: tuple[str, str]
    rows: list[Row]
    """The main figure first."""
    conditions: list[Condition]
    regressions: list[str]
    """Why the limits asked for are not kept; empty where they are, or none was asked for."""


def runs(a: Measured, b: Measured) -> tuple[list[Row], list[Condition]]:
    """Two runs: main's score and latencies, and the rate of each background benchmark."""
    found = differences(a, b, FOLLOW_FROM_THE_RATE)
    conditions = [Condition(name=one.name, a=one.one, b=one.other) for one in found]
    return [*_of_main(a, b), *_of_background(a, b)], conditions


def deratings(
    a: Derating, b: Derating, firsts: tuple[Measured | None, Measured | None] = (None, None)
) -> tuple[list[Row], list[Condition]]:
    """Two deratings: of each figure the ratio, and what it was alone and in company.

    Args:
        firsts: the first run of each, which tells its machine and versions; None where its folder is not kept.
    """
    here, there = ({one.figure: one for one in each.ratios} for each in (a, b))
    rows = []
    for figure in (figure for figure in here if figure in there):
        one, other, name = here[figure], there[figure], figure.replace("p999", "p99.9")
        rows += [
            _row(f"{name}, ratio", "", one.better, one.ratio, other.ratio),
            _row(f"{name}, alone", one.unit, one.better, one.baseline, other.baseline),
            _row(f"{name}, company", one.unit, one.better, one.hetero, other.hetero),
        ]

    conditions = list(_unlike(_conditions_of(a), _conditions_of(b)))
    one_run, other_run = firsts
    if one_run is None or other_run is None:
        told = ["not known" if run is None else "in its runs/" for run in firsts]
        return rows, [*conditions, Condition(name="machine and versions", a=told[0], b=told[1])]

    of_the_question = [one for one in conditions if one.name in ("background", "pairs", "slices")]
    return rows, [*of_the_question, *runs(one_run, other_run)[1]]


def regressions(
    rows: Sequence[Row],
    verdicts: tuple[str, str],
    most: float | None,
    most_p99: float | None,
    conditions: Sequence[Condition] = (),
) -> list[str]:
    """Where B is worse than A by more than asked, or cannot be held against it.

    Args:
        most: of the main figure, as a fraction; None: not asked for.
        most_p99: of main's latency p99.
        conditions: in which the two differ; figures of two workloads or scenarios are no regression of one another.
    """
    if most is None and most_p99 is None:
        return []

    found = [f"{name} is INVALID" for name, verdict in zip("AB", verdicts, strict=True) if verdict != "VALID"]
    found += [
        f"{one.name} is {one.a} in A and {one.b} in B" for one in conditions if one.name in WHAT_IS_MEASURED
    ]
    p99 = next((row for row in rows if row.figure.startswith("latency p99") and ".9" not in row.figure), None)
    for row, limit, what in (
        (rows[0] if rows else None, most, "main figure"),
        (p99, most_p99, "latency p99"),
    ):
        if limit is None:
            continue

        if row is None or row.worsening is None:
            found.append(f"no {what} in both")
        elif row.worsening > limit:
            found.append(f"{row.figure} is {row.worsening:.1%} worse, and {limit:.1%} was allowed")

    return found


def _of_main(a: Measured, b: Measured) -> Iterator[Row]:
    one, other = a.result.main, b.result.main
    scores = {metric.name: metric for metric in (one.metric, other.metric) if metric is not None}
    for name, metric in scores.items():
        values = [
            each.metric.value if each.metric and each.metric.name == name else None for each in (one, other)
        ]
        yield _row(name, metric.unit, "less" if metric.unit == "ms" else "more", *values)

    # An Offline latency counts from the test's start: it is how long the test was set to last.
    offline = Scenario.OFFLINE in (one.scenario, other.scenario)
    for name in LATENCIES:
        here, there = getattr(one.latency_ms, name), getattr(other.latency_ms, name)
        if here is not None or there is not None:
            figure = f"latency {name.replace('p999', 'p99.9')}"
            yield _row(figure, "ms", "neither" if offline else "less", here, there)

    answers = {
        f"{told.kind}, {told.metric}": told for told in (one.accuracy, other.accuracy) if told is not None
    }
    for name, told in answers.items():
        alike = [
            each.accuracy.value
            if each.accuracy and f"{each.accuracy.kind}, {each.accuracy.metric}" == name
            else None
            for each in (one, other)
        ]
        yield _row(name, told.unit, "more", *alike)


def _of_background(a: Measured, b: Measured) -> Iterator[Row]:
    """By slice and workload; told, not judged: a background that works less burdens main less."""
    here, there = (
        {(one.slice, one.workload): one.samples_per_s_in_main_window for one in run.result.background}
        for run in (a, b)
    )
    for slice_, workload in {**here, **there}:
        key = slice_, workload
        yield _row(f"{workload} on {slice_}", "samples/s", "neither", here.get(key), there.get(key))


def _row(
    figure: str, unit: str, better: Literal["more", "less", "neither"], a: float | None, b: float | None
) -> Row:
    change = b / a - 1 if a and b is not None else None
    return Row(figure=figure, unit=unit, better=better, a=a, b=b, change=change)


def _conditions_of(one: Derating) -> Mapping[str, Any]:
    return {
        **one.main.model_dump(mode="json"),
        "preset": one.preset,
        "background": ", ".join(f"{name} on {where}" for where, name in one.background.items()),
        "pairs": one.pairs,
        "slices": "; ".join(f"{each.id} {each.name} {each.uuid or ''}".strip() for each in one.slices),
    }


def _unlike(one: Mapping[str, Any], other: Mapping[str, Any]) -> Iterable[Condition]:
    for name in one:
        if one[name] != other[name]:
            yield Condition(name=name.replace("_", " "), a=str(one[name]), b=str(other[name]))
