"""An audit on a terminal: what will run, and what was found."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scheduler import audit_rules
from scheduler.assignment import Plan
from scheduler.audit import Asked, checks_of
from scheduler.clock import Clock
from scheduler.record import RunFolder
from scheduler.report.text import show_plan
from scheduler.run import Watch
from scheduler.series import Watching
from scheduler.spec import loadgen_round

_TELLS = {
    "performance": "the performance run that the test is held against",
    "accuracy": "each sample once: the answers that the test's are held against",
    "TEST01": "a performance run that logs some of its answers",
    "TEST04": "one sample again and again",
    "TEST04-A": "each loaded sample once",
    "TEST04-B": "one sample again and again",
    "TEST05": "other seeds than the round's",
}


def show_steps(asked: Asked, plan: Plan, console: Console) -> None:
    """The plan of the performance run, and the runs that the audit is made of."""
    show_plan(plan, console)
    round_ = loadgen_round(asked.spec.round)
    console.print(f"{asked.test} of round {round_.round}:", highlight=False)
    for key in audit_rules.steps(asked.test, round_):
        there = f", as it is in {asked.given[key]}" if key in asked.given else ""
        console.print(f"  {key:<12} {_TELLS[key]}{there}", markup=False, highlight=False, soft_wrap=True)

    if asked.test not in round_.of(plan.main.workload).audits:
        console.print(
            f"note: round {round_.round} does not ask {asked.test} of {plan.main.workload}",
            highlight=False,
            soft_wrap=True,
        )


def headed(watching: Watching, console: Console) -> Watching:
    """The same, with the run's key above what it shows."""

    def watch(plan: Plan, folder: RunFolder, clock: Clock) -> AbstractContextManager[Watch]:
        console.print(f"{folder.path.name}:", highlight=False)
        return watching(plan, folder, clock)

    return watch


def show_answer(answer: Mapping[str, Any], path: Path, console: Console) -> None:
    """The verdict, and each check behind it."""
    main = answer["main"]
    colour = "green" if answer["verdict"] == "PASS" else "red"
    company = f" beside {', '.join(answer['background'])}" if answer["background"] else " alone"
    console.print()
    console.print(
        f"[bold {colour}]{answer['verdict']}[/] {answer['test']} (round {answer['round']}) of {main['workload']}, "
        f"{main['scenario']}{company} on {main['slice']} ({main['size']}, {main['precision']})",
        highlight=False,
    )
    table = Table.grid(padding=(0, 2, 0, 0))
    for check in checks_of(answer):
        sign, colour = ("pass", "green") if check.passed else ("FAIL", "red")
        if not check.decides and not check.passed:
            sign, colour = "note", "yellow"

        table.add_row(Text(f"  {sign}", colour), Text(f"{check.what}: {check.message}"))

    console.print(table, highlight=False)
    console.print(f"  folder: {path}", markup=False, highlight=False, soft_wrap=True)
