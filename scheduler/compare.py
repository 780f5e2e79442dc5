"""Results as their folders tell them: read, and held one against the other."""

from pathlib import Path

from scheduler import comparison, judging
from scheduler.comparison import Compared
from scheduler.conditions import Measured, clocks
from scheduler.derating import Derating
from scheduler.errors import SpecError
from scheduler.record import RunFolder


def compare(a: Path, b: Path, *, max_regression: float | None, max_p99_regression: float | None) -> Compared:
    """The result in B against that in A; limits are fractions, None where none is asked for.

    Raises:
        SpecError: one of them is no result, or they are not of one kind.
        FolderDamaged: a file of one cannot be read.
    """
    one, other = read(a), read(b)
    if isinstance(one, Measured) and isinstance(other, Measured):
        rows, conditions = comparison.runs(one, other)
        verdicts = one.result.verdict, other.result.verdict
    elif isinstance(one, Derating) and isinstance(other, Derating):
        rows, conditions = comparison.deratings(one, other, (_first_run(a, one), _first_run(b, other)))
        verdicts = one.verdict, other.verdict
    else:
        raise SpecError(
            asked=f"compare {a} {b}",
            found="one is a run, the other a derating",
            do="name two of a kind; the runs of a derating are in its runs/",
        )

    return Compared(
        a=str(a),
        b=str(b),
        verdicts=verdicts,
        rows=rows,
        conditions=conditions,
        regressions=comparison.regressions(rows, verdicts, max_regression, max_p99_regression, conditions),
    )


def read(path: Path) -> Measured | Derating:
    """The run, or the derating, in a folder.

    Raises:
        SpecError: it holds no result of either kind.
        FolderDamaged: it does, and it cannot be read.
    """
    folder = RunFolder(path)
    if not folder.has_result():
        raise SpecError(
            asked=f"the result in {path}",
            found="there is no result.json: not a folder of results, or the run was cut short",
            do="name the folder of a run or of a derating that came to its end",
        )

    kind = folder.result().get("kind")
    if kind not in ("hetero", "baseline", "derate"):
        raise SpecError(
            asked=f"the result in {path}",
            found=f"its kind is {kind!r}",
            do="name the folder of a run or of a derating",
        )

    if kind == "derate":
        return judging.understood(Derating, folder.result(), f"result.json of {path}")

    return measured(folder)


def run_in(path: Path) -> Measured:
    """The run in a folder; of a derating, its last run, which is main in company.

    Raises:
        SpecError, FolderDamaged: as ``read``.
    """
    found = read(path)
    if isinstance(found, Measured):
        return found

    return run_in(path / "runs" / found.runs[-1].key)


def _first_run(path: Path, found: Derating) -> Measured | None:
    folder = RunFolder(path / "runs" / found.runs[0].key)
    return measured(folder) if folder.has_result() else None


def measured(folder: RunFolder) -> Measured:
    """One run with its conditions.

    Raises:
        FolderDamaged: a file that is needed cannot be read, or is not one of this version.
    """
    result, told = judging.read_result(folder), judging.read_manifest(folder)
    window = result.main.window
    span = None if window.begin_s is None or window.end_s is None else (window.begin_s, window.end_s)
    return Measured(
        key=folder.path.name,
        manifest=told,
        result=result,
        clocks=clocks(folder.lines("telemetry.jsonl"), told, span),
    )
