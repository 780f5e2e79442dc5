"""What a report says of each kind of answer as a person would, where that is not a table of its fields."""

from collections.abc import Mapping, Sequence
from typing import Any

from scheduler import judging, pairs
from scheduler.record import RunFolder
from scheduler.report.derate import reach, which_way
from scheduler.report.document import Cell, Table, shown
from scheduler.report.matrix import floor
from scheduler.report.tables import SeriesTables
from scheduler.report.tune import WORDS, counted
from scheduler.search import Found
from scheduler.tune import trials_of
from scheduler.tuning import Asked, Of, Outcome, TrialRecord, next_step, outcome
from workloads.protocol import Scenario

Answer = Mapping[str, Any]


def title(series: SeriesTables, answer: Answer) -> str:
    """What was asked of what, and the folder's name."""
    main = answer.get("main")
    told = main if isinstance(main, Mapping) else answer
    of = ", ".join(str(told[name]) for name in ("workload", "scenario") if told.get(name))
    return f"{series.command}{' of ' if of else ''}{of}: {series.path.resolve().name}"


# --- the lead ---------------------------------------------------------------------------------------


def lead(series: SeriesTables, answer: Answer) -> str:
    """The answer in a sentence or two; of a series without one how far it is."""
    if series.answer is None:
        so_far = f" So far: {_of_tuning(answer)}" if answer.get("trials") else ""
        done = f"{_progress(series, answer)}; there is no answer yet."
        return f"{done}{so_far} The same command goes on from there."

    match answer.get("kind"):
        case "derate":
            return _of_derating(answer)
        case "tune":
            return _of_tuning(answer)
        case "matrix":
            names, where = ", ".join(answer["workloads"]), answer["main_slice"]
            return f"{names}: each on {where} beside each on every other slice, preset {answer['preset']}."
        case "profile":
            rows = answer.get("rows") or []
            measured = sum(one["status"] == "measured" for one in rows)
            return f"{len(rows)} cells, {measured} of them measured."
        case _:
            return f"{_number(len(series.runs), 'part')}."


def _progress(series: SeriesTables, answer: Answer) -> str:
    asked, done = series.question.get("asked", {}), len(series.runs)
    match series.command:
        case "tune":
            return f"{_number(len(answer.get('trials') or ()), 'trial')} judged"
        case "matrix" if asked.get("workloads") and asked.get("repeats"):
            return f"{done} of {len(pairs.order(asked['workloads'], asked['repeats']))} runs are done"
        case "profile":
            return f"{_number(done, 'step')} measured"
        case _:
            return f"{_number(done, 'run')} done"


def _number(count: int, of: str) -> str:
    return f"{count} {of}" if count == 1 else f"{count} {of}s"


def _of_derating(answer: Answer) -> str:
    main, told, beside = answer.get("main") or {}, answer.get("ratios") or [], answer.get("background") or {}
    lasting = main.get("min_duration_s")
    conditions = [
        *(str(main[name]) for name in ("size", "precision") if main.get(name)),
        *([f"batch ≤ {main['batch_size']}"] if main.get("batch_size") else ()),
        *([] if lasting is None else [f"{lasting:g} s or more a run"]),
        *([f"target_qps {shown(main['target_qps'])} in every run"] if main.get("target_qps") else ()),
    ]
    company = ", ".join(f"{workload} on {where}" for where, workload in beside.items()) or "nothing"
    on = f"{main.get('workload')} on {main.get('slice')} ({', '.join(conditions)}) beside {company}"
    if not told:
        return f"{on}: nothing is compared."

    first, pairs_ = told[0], _number(answer.get("pairs") or 0, "pair")
    interval = f" ({reach(first['interval'])})" if first.get("interval") else ""
    return (
        f"{on}, {pairs_}, preset {answer.get('preset')}. In company ÷ alone: {first['figure']} "
        f"{first['ratio']:.3f}{interval}, {_words(first)}."
    )


def _words(one: Answer) -> str:
    return f"{one.get('words', '')}{which_way(one.get('decision', ''), one['ratio'], one.get('better', ''))}"


def _of_tuning(answer: Answer) -> str:
    beside = ", ".join(answer.get("background") or [])
    told = []
    for of, words in WORDS.items():
        if answer.get(of):
            rate = answer[of].get("qps")
            told.append(f"{words} {'no rate is proven' if rate is None else shown(float(rate)) + '/s'}")

    if answer.get("derating") is not None:
        told.append(f"derating {shown(answer['derating'])}")

    return (
        f"{answer['workload']} on {answer['slice']}{beside and ' beside '}{beside}, {answer['scenario']}, "
        f"preset {answer['preset']}: {'; '.join(told)}."
    )


# --- tables -----------------------------------------------------------------------------------------


def ratios(answer: Answer) -> Table | None:
    """A derating's figures: alone, in company, their ratio, and what that says."""
    told: Sequence[Answer] = answer.get("ratios") or []
    if not told:
        return None

    rows: list[tuple[Cell, ...]] = [
        (
            str(one["figure"]).replace("p999", "p99.9"),
            one.get("unit"),
            one.get("baseline"),
            one.get("hetero"),
            round(one["ratio"], 3),
            reach(one.get("interval")) or None,
            _words(one),
        )
        for one in told
    ]
    at, margin = told[0].get("confidence") or 0, told[0].get("margin") or 0
    caption = f"Intervals at {at:.0%}; what is within {100 * margin:g} % does not matter."
    return Table(("figure", "unit", "alone", "in company", "ratio", "interval", "in words"), rows, caption)


def rates(answer: Answer) -> Table | None:
    """What each search of a tuning found."""
    if answer.get("kind") != "tune":
        return None

    rows = [_outcome(words, answer[of]) for of, words in WORDS.items() if answer.get(of)]
    headings = (
        "",
        "proven, 1/s",
        "score",
        "latency, ms",
        "VALID at, 1/s",
        "INVALID at, 1/s",
        "trials",
        "why",
    )
    return Table(headings, rows) if rows else None


def _outcome(words: str, told: Answer) -> tuple[Cell, ...]:
    one = judging.understood(Outcome, {"why": "", **told}, "the rates of a tuning")
    return (
        words,
        "none" if one.qps is None else one.qps,
        None if one.metric is None else f"{shown(one.metric.value)} {one.metric.unit}",
        *(one.latency_ms, one.low, one.high),
        counted(one) or None,
        one.why,
    )


def readable(name: str, records: Sequence[Answer]) -> Sequence[Answer]:
    """Records as they are told: noise floors with their unit, searches by what they are of."""
    match name:
        case "baselines":
            return [{**one, "noise_floor": floor(one.get("noise_floor"))} for one in records]
        case "trials":
            return [{**one, "of": WORDS[one["of"]]} for one in records]
        case _:
            return records


# --- without an answer ------------------------------------------------------------------------------


def so_far(series: SeriesTables) -> Answer:
    """What a series without an answer has of one: the trials of a tuning and what they prove; else nothing.

    Raises:
        FolderDamaged: they cannot be read.
    """
    trials = trials_of(RunFolder(series.path)) if series.command == "tune" else []
    if not trials:
        return {}

    asked = series.question["asked"]
    terms = {name: asked[name] for name in ("confirm", "tolerance", "screening_s", "baseline_qps")}
    how = Asked(**terms, max_time_s=None)
    planned = judging.read_manifest(RunFolder(series.path / "runs" / trials[-1].run))
    main = planned.main
    return {
        "kind": "tune",
        **{name: getattr(main, name) for name in ("workload", "scenario", "slice", "size", "precision")},
        "preset": planned.preset,
        "background": [one.workload for one in planned.background],
        **{of: _outcome_so_far(of, main.scenario, how, trials) for of in WORDS},
        "trials": [one.model_dump(mode="json") for one in trials],
    }


def _outcome_so_far(
    of: Of, scenario: Scenario, asked: Asked, trials: Sequence[TrialRecord]
) -> dict[str, Any] | None:
    if of == "baseline" and asked.baseline_qps is not None:
        return Outcome(qps=asked.baseline_qps, given=True, why="given, not measured").model_dump()

    mine = [one for one in trials if one.of == of]
    if not mine:
        return None

    found = outcome(scenario, asked, mine)
    over = isinstance(next_step(scenario, asked, None, mine), Found)
    return found.model_dump() if over else found.model_dump() | {"why": "the search goes on"}
