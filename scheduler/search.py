"""The search for the highest rate whose Server test is VALID: trials so far in, the next one or the answer out.

Pure, and without memory: whoever goes on with a journal of trials is told the same as whoever never stopped.

Screening trials are short. They close a bracket around the rate at which the percentile of latency meets its limit:
outwards from the hint until one is VALID and one is not, then inwards, to where a straight line through the two
latencies (logarithms of both) meets the limit. Confirmation trials are full-length, and only they prove: a rate is
proven by as many VALID ones as were asked for, and one INVALID settles it for good, however many were VALID before.
They start a little below where the line meets the limit, and go down or up from there. The search is over when the
lowest rate that failed is hardly above the highest that is proven, or the proven one's own latency says that there is
less room than the tolerance.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Kind = Literal["screening", "confirmation"]

FIRST_STEP = 1.1
"""From the hint outwards; each further step is the square of the one before, `LONGEST_STEP` at most."""
LONGEST_STEP = 2.0
OF_CAPACITY = 0.95
"""Of the rate that an overloaded slice completed: a latency limit is hardly ever held above it."""
FARTHEST = 1000.0
"""Times the hint, or one in so many of it: beyond it nothing is looked for."""
CLOSE = 2.0
"""A bracket of so many tolerances is closed enough to be confirmed in."""
MARGIN = 0.2
"""Of the tolerance, below where VALID ends as far as is known: there a full-length trial is made."""
NO_ROOM = 0.7
"""Of the tolerance: a proven rate whose latency meets the limit so little above it is the highest."""
NO_GAIN = 0.4
"""Of the tolerance: a proven rate so near to where VALID ends is the highest, wherever its latency meets the limit."""
STEEPEST = 1.5
"""Latencies of more limits than this count as this: a queue that grows only says that it does."""
INNER = 0.15
"""Of a bracket, at each end: where no trial is made, as it would tell little."""


SURE_SIGMAS = 2.326
"""Of a 99 % confidence, one-sided, as early stopping has it."""
TAIL = 1000
"""LoadGen tells the latency that one query in so many exceeds, and none farther out."""
MOST_SIZINGS = 5
HOPELESS_LIMITS, HOPELESS_QUERIES = 4, 100
"""No slice is known that answers more than four times the rate asked when it hurries; some queries may always wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One trial, as the search sees it."""

    rate: float
    """Told to LoadGen: queries a second."""
    kind: Kind
    valid: bool
    completed: float | None = None
    """Queries a second that were answered."""
    latency_share: float | None = None
    """The percentile of latency that the limit is for, in limits."""
    held_share: float | None = None
    """The latency that early stopping holds against the limit, in limits (``held_share``); None: as the one above."""
    cut: bool = False
    """Ended early because too many queries waited. It is INVALID, whatever the rest says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bracket:
    """What is known: the highest rate that was VALID, the lowest above it that was not."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """The trial to make next."""

    rate: float
    """0: what a calibration on the slice picks."""
    kind: Kind
    bracket: Bracket


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The search is over."""

    rate: float | None
    """The highest proven; None: none is."""
    bracket: Bracket
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What is searched for."""

    hint: float
    """Where to begin; 0: with what a calibration on the slice picks."""
    tolerance: float
    """0.01: the answer is to be within 1 % of the highest."""
    confirm: int
    """Full-length VALID trials that prove a rate."""


ShareOf = Callable[[Trial], float | None]


@dataclass(frozen=True, slots=True)
class _Known:
    """The trials, sorted by what they settle."""

    screening: Sequence[Trial]
    confirmations: Sequence[Trial]
    proven: float | None
    half_proven: float | None
    """The highest with some VALID full-length trials and none INVALID, where that is not enough."""
    ceiling: float | None
    """The lowest with an INVALID full-length trial."""


def next_step(terms: Terms, trials: Sequence[Trial]) -> Try | Found:
    """The next trial of a Server, or the answer."""
    if trials and not terms.hint:
        terms = replace(terms, hint=trials[0].rate)

    known = _known(terms, trials)
    if known.half_proven is not None:
        return _confirm(known, known.half_proven)

    if known.proven is not None:
        return _above(terms, known, known.proven)

    if known.ceiling is not None:
        return _below(terms, known, known.ceiling)

    return _screen(terms, known)


def next_sizing(terms: Terms, trials: Sequence[Trial], share: float) -> Try | Found:
    """The next trial of a scenario whose rate only sizes the test, or the answer: the rate told to LoadGen.

    One short trial measures the rate; full-length ones are told ``share`` of what the last one measured, and more
    where that was INVALID.
    """
    confirmations = [one for one in trials if one.kind == "confirmation"]
    failed = [one for one in confirmations if not _holds(one)]
    around = Bracket(low=max((one.rate for one in failed), default=None))
    if not trials:
        return Try(rate=terms.hint, kind="screening", bracket=around)

    last = trials[-1]
    held = [one for one in confirmations if _holds(one) and one.rate == last.rate]
    if _holds(last) and len(held) >= terms.confirm:
        return Found(rate=last.rate, bracket=around, why="the full-length test is VALID")

    if held and _holds(last):
        return Try(rate=last.rate, kind="confirmation", bracket=around)

    if len(failed) >= MOST_SIZINGS:
        return Found(rate=None, bracket=around, why=f"{MOST_SIZINGS} full-length tests were INVALID")

    wanted = share * (last.completed or last.rate)
    if last.kind == "confirmation":
        wanted = max(wanted, last.rate * FIRST_STEP)

    return Try(rate=wanted, kind="confirmation", bracket=around)


def most_waiting(
    rate: float, duration_s: float, least_queries: int, limit_s: float, percentile: float
) -> int:
    """How many queries may wait before a Server trial is hopeless, and cut.

    Of so many more than `HOPELESS_LIMITS` limits' worth, more will be late than the whole trial may have.
    """
    queries = max(rate * duration_s, least_queries)
    return math.ceil(HOPELESS_LIMITS * rate * limit_s + (1 - percentile) * queries) + HOPELESS_QUERIES


def held_share(latency_share: float, tail_share: float, percentile: float, queries: float) -> float:
    """The latency that must keep the limit for a Server test of so many queries to be VALID, in limits.

    Early stopping asks for fewer late queries than the percentile allows, by as many standard deviations as are
    99 % sure: the fewer queries, the nearer to the tail is what is held against the limit. Between the percentile and
    the tail the latency is taken to grow by the same factor for each factor that the queries above it get fewer.

    Args:
        latency_share: the percentile of latency, in limits.
        tail_share: the latency that one query in `TAIL` exceeds, in limits.
        percentile: of the queries, 0.99: how many must keep the limit.
        queries: of the test that is to be VALID.
    """
    late = 1 - percentile
    most = late - SURE_SIGMAS * math.sqrt(late * percentile / queries)
    if percentile >= 1 - 1 / TAIL:
        return latency_share

    part = 1.0 if most <= 1 / TAIL else math.log(late / most) / math.log(late * TAIL)
    return float(latency_share * max(1.0, tail_share / latency_share) ** part)


def proven(terms: Terms, trials: Sequence[Trial]) -> float | None:
    """The highest rate proven so far: what a search that must end now has found."""
    return _known(terms, trials).proven


def bracket(terms: Terms, trials: Sequence[Trial]) -> Bracket:
    """What is known so far."""
    return _bracket(_known(terms, trials))


def _measured(trial: Trial) -> float | None:
    return trial.latency_share


def _held(trial: Trial) -> float | None:
    return trial.held_share or trial.latency_share


# ---------------------------------------------------------------------- full-length trials


def _above(terms: Terms, known: _Known, best: float) -> Try | Found:
    """A rate is proven: is there room above it?"""
    around, tolerance = _bracket(known), terms.tolerance
    if known.ceiling is not None and known.ceiling <= best * (1 + NO_GAIN * tolerance):
        return Found(rate=best, bracket=around, why="a full-length trial hardly above it was INVALID")

    # Where VALID ends, and where the percentile itself meets the limit, which is what is looked for: the fewer queries
    # a test has, the farther it is above, and the more of the tolerance is used up by that.
    crossing, capacity = _said(known, best, _held), _said(known, best, _measured)
    if crossing is not None and (
        crossing <= best * (1 + NO_GAIN * tolerance)
        or (capacity or crossing) <= best * (1 + NO_ROOM * tolerance)
    ):
        return Found(rate=best, bracket=around, why="its latency leaves less than a tolerance of room")

    if best >= terms.hint * FARTHEST:
        return Found(rate=best, bracket=around, why=f"more than {FARTHEST:g} times the hint was not tried")

    if known.ceiling is not None:
        wanted = math.sqrt(best * known.ceiling) if crossing is None else crossing / (1 + MARGIN * tolerance)
        return _confirm(known, _inside(wanted, best, known.ceiling))

    wanted = best * (1 + 2 * CLOSE * tolerance) if crossing is None else crossing / (1 + MARGIN * tolerance)
    return _confirm(known, min(max(wanted, best * (1 + tolerance / 2)), best * FIRST_STEP))


def _below(terms: Terms, known: _Known, ceiling: float) -> Try | Found:
    """All that was confirmed has failed: go down, as far as its latency says, but not past what held in short."""
    around, tolerance = _bracket(known), terms.tolerance
    crossing = _crossing_from(known, ceiling)
    wanted = ceiling / (1 + CLOSE * tolerance) if crossing is None else crossing / (1 + MARGIN * tolerance)
    held = 0.0 if around.low is None else around.low / (1 + CLOSE * tolerance)
    wanted = max(wanted, held, ceiling / FIRST_STEP)
    if wanted < terms.hint / FARTHEST:
        return Found(rate=None, bracket=around, why=f"no rate down to {1 / FARTHEST:g} of the hint is VALID")

    # Twice the step after each failure: short trials that were all too high must not be believed step by step.
    failed = sum(not _holds(one) for one in known.confirmations)
    step = min(1 + tolerance / 2 * 2 ** (failed - 1), FIRST_STEP)
    return _confirm(known, min(wanted, ceiling / step))


def _inside(wanted: float, low: float, high: float) -> float:
    """The rate wanted, but not so near an end of the bracket that a trial would tell little."""
    margin: float = (high / low) ** INNER
    return min(max(wanted, low * margin), high / margin)


def _confirm(known: _Known, rate: float) -> Try:
    return Try(rate=rate, kind="confirmation", bracket=_bracket(known))


# ---------------------------------------------------------------------- short trials


def _screen(terms: Terms, known: _Known) -> Try | Found:
    around = _bracket(known)
    if not known.screening:
        return Try(rate=terms.hint, kind="screening", bracket=around)

    if around.low is None or around.high is None:
        return _outwards(terms, known, around)

    crossing = _crossing(known, around) or math.sqrt(around.low * around.high)
    if around.high <= around.low * (1 + CLOSE * terms.tolerance):
        return _confirm(known, max(around.low, crossing / (1 + MARGIN * terms.tolerance)))

    return Try(rate=_inside(crossing, around.low, around.high), kind="screening", bracket=around)


def _outwards(terms: Terms, known: _Known, around: Bracket) -> Try | Found:
    step = min(FIRST_STEP**2 ** (len(known.screening) - 1), LONGEST_STEP)
    if around.high is None:
        assert around.low is not None  # there is a trial, and it is VALID or it is not
        rate = around.low * step
    else:
        rate = around.high / step
        completed = [one.completed for one in known.screening if one.rate == around.high and one.completed]
        rate = min([rate, *(OF_CAPACITY * one for one in completed)])

    if not terms.hint / FARTHEST <= rate <= terms.hint * FARTHEST:
        every = "INVALID" if around.low is None else "VALID"
        return Found(rate=None, bracket=around, why=f"every rate from the hint to {rate:.3g} is {every}")

    return Try(rate=rate, kind="screening", bracket=around)


# ---------------------------------------------------------------------- what the trials say


def _known(terms: Terms, trials: Sequence[Trial]) -> _Known:
    confirmations = [one for one in trials if one.kind == "confirmation"]
    ceiling = min((one.rate for one in confirmations if not _holds(one)), default=None)
    held = Counter(
        one.rate for one in confirmations if _holds(one) and (ceiling is None or one.rate < ceiling)
    )
    enough = [rate for rate, count in held.items() if count >= terms.confirm]
    return _Known(
        screening=[one for one in trials if one.kind == "screening"],
        confirmations=confirmations,
        proven=max(enough, default=None),
        half_proven=max((rate for rate in held if rate not in enough), default=None),
        ceiling=ceiling,
    )


def _holds(trial: Trial) -> bool:
    return trial.valid and not trial.cut


def _bracket(known: _Known) -> Bracket:
    """Full-length trials overrule short ones."""
    ceiling, floor = known.ceiling or math.inf, known.proven or 0.0
    high = min([ceiling, *(one.rate for one in known.screening if not _holds(one) and one.rate > floor)])
    held = (one.rate for one in (*known.screening, *known.confirmations) if _holds(one))
    low = max((rate for rate in held if rate < high), default=None)
    return Bracket(low=low, high=None if math.isinf(high) else high)


def _crossing(known: _Known, around: Bracket) -> float | None:
    """Where the line through the bracket's ends meets the limit; None where there is no bracket."""
    if around.low is None or around.high is None:
        return None

    below = _share(known, around.low, _held, default=1 / STEEPEST, most=1.0)
    above = _share(known, around.high, _held, default=STEEPEST, least=1.0)
    if below >= above:  # both at the limit
        return around.low

    part = -math.log(below) / (math.log(above) - math.log(below))
    return float(around.low * (around.high / around.low) ** part)


def _said(known: _Known, best: float, share_of: ShareOf) -> float | None:
    """Where the limit is met, as the proven trial says or the lowest that failed.

    Whichever says that it is farther is believed, as that can be tried.
    """
    said = [_crossing_from(known, rate, share_of) for rate in (best, known.ceiling) if rate is not None]
    return max((rate for rate in said if rate is not None), default=None)


def _crossing_from(known: _Known, rate: float, share_of: ShareOf = _held) -> float | None:
    """Where the limit is met, from a full-length trial along the slope of all trials near the limit."""
    slope = _slope(known)
    share = _share(known, rate, share_of, default=1.0)
    return None if slope is None else float(rate * share ** (-1 / slope))


def _slope(known: _Known) -> float | None:
    """Of latency over rate, both as logarithms: least squares within each kind, since short trials are off together."""
    above, below = 0.0, 0.0
    for trials in (known.screening, known.confirmations):
        near = [(one.rate, share) for one in trials if not one.cut and (share := _held(one))]
        points = [(math.log(rate), math.log(share)) for rate, share in near]
        points = [(rate, share) for rate, share in points if abs(share) <= math.log(STEEPEST)]
        if len(points) > 1:
            mean_rate, mean_share = (sum(axis) / len(points) for axis in zip(*points, strict=True))
            above += sum((rate - mean_rate) * (share - mean_share) for rate, share in points)
            below += sum((rate - mean_rate) ** 2 for rate, _ in points)

    return above / below if above > 0 and below > 0 else None


def _share(
    known: _Known,
    rate: float,
    share_of: ShareOf,
    *,
    default: float,
    least: float = 1 / STEEPEST**4,
    most: float = STEEPEST,
) -> float:
    """The latency at that rate, in limits: of full-length trials where there are any."""
    shares = _shares(known.confirmations, rate, share_of) or _shares(known.screening, rate, share_of)
    mean = math.exp(sum(map(math.log, shares)) / len(shares)) if shares else default
    return min(max(mean, least), most)


def _shares(trials: Iterable[Trial], rate: float, share_of: ShareOf) -> list[float]:
    return [share for one in trials if one.rate == rate and (share := share_of(one))]
