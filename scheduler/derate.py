"""Main alone and main in company, in turn, on the same slice with the same settings: what does company cost?"""

from collections.abc import Callable, Iterator

from scheduler.assignment import Plan
from scheduler.compare import measured
from scheduler.conditions import Measured
from scheduler.derating import Derating, Pair, alone, answer, rate_of
from scheduler.record import RunFolder
from scheduler.series import Series, Watching
from scheduler.slices import Machine
from scheduler.spec import RunSpec

PlanFor = Callable[[RunSpec], Plan]
"""Main in company on the slices of this question; ``alone`` of it is the baseline."""


def derate(
    runs: Series,
    spec: RunSpec,
    plan_for: PlanFor,
    machine: Machine,
    watching: Watching,
    *,
    repeats: int,
    margin: float,
) -> Derating:
    """Carry out the runs that are not done yet, and write the answer.

    Where the first pair has an INVALID run, none follows: what made it so is there in the others too.

    Raises:
        SeriesCutShort: a run was stopped or could not run; the same call goes on from there.
    """
    pairs: list[Pair] = []
    for pair in _pairs(runs, spec, plan_for, machine, watching, repeats):
        pairs.append(pair)
        if not pairs[0].valid:
            break

    found = answer(pairs, repeats, margin)
    runs.write_answer(found.model_dump(mode="json"))
    return found


def keys(number: int) -> tuple[str, str]:
    """Names of the two run folders of a pair: 01-baseline, 01-hetero."""
    return f"{number:02d}-baseline", f"{number:02d}-hetero"


def _pairs(
    runs: Series,
    spec: RunSpec,
    plan_for: PlanFor,
    machine: Machine,
    watching: Watching,
    repeats: int,
) -> Iterator[Pair]:
    """A B A B …: what drifts slowly is in both of a pair. The first run's rate is that of all, where it is a load."""
    for number in range(1, repeats + 1):
        before, after = keys(number)
        plan = plan_for(spec)
        by_itself = spec.model_copy(update={"background": ()})
        baseline = runs.run(before, alone(plan), by_itself, machine, watching)
        if number == 1 and baseline.verdict == "INVALID":
            yield Pair(_measured(runs, before), None)
            return

        if spec.target_qps is None:
            spec = spec.model_copy(update={"target_qps": rate_of(baseline)})
            plan = plan_for(spec)

        runs.run(after, plan, spec, machine, watching)
        yield Pair(_measured(runs, before), _measured(runs, after))


def _measured(runs: Series, key: str) -> Measured:
    return measured(RunFolder(runs.path / "runs" / key))
