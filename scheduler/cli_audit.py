"""``hetero-mig audit``: MLPerf's compliance tests, alone or in company."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler.cli_options import console_of, plan_of, read_machine, run_options, spec_of, watching

if TYPE_CHECKING:
    from scheduler.slices import Machine
    from scheduler.spec import RunSpec


@click.command()
@click.argument(
    "test",
    type=click.Choice(["TEST01", "TEST04", "TEST05"], case_sensitive=False),
    metavar="TEST01|TEST04|TEST05",
)
@run_options("main_mode", "accuracy_target", "fidelity_samples", "layout")
@click.option(
    "--performance-run",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="A performance run made before with the same options, in place of a new one.",
)
@click.option(
    "--accuracy-run",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    metavar="FOLDER",
    help="TEST01: an accuracy run of the whole data set, made before.",
)
@click.pass_context
def audit(context: click.Context, /, test: str, **options: Any) -> None:
    """Run one of MLPerf's compliance tests, and verify it.

    \b
    hetero-mig audit TEST01 --main resnet50 --round v6.1
    hetero-mig audit TEST05 --main bert --background datacenter

    TEST01: are the answers of a performance run those of the accuracy run? TEST04: are answers kept and given
    again? TEST05: does the speed hang on the round's seeds? The same command goes on where it was cut short,
    and with that folder as --output makes an INVALID performance run again. Exit code: 0 PASS, 1 FAIL.
    """
    if options["main"] is None:
        raise click.UsageError("--main is missing: name the workload to audit")

    context.exit(_audit(test, options))


def _audit(test: str, options: dict[str, Any]) -> int:
    from scheduler import audit as audits
    from scheduler import series
    from scheduler.report import audit as report

    spec, console = spec_of(options), console_of(stderr=options["as_json"], quiet=options["quiet"])
    given = {
        key: options[f"{key}_run"] for key in ("performance", "accuracy") if options[f"{key}_run"] is not None
    }
    machine = read_machine()
    asked = audits.Asked(test=_had_by_the_round(test, spec), spec=spec, machine=machine, given=given)
    plan = plan_of(spec, machine)
    audits.given_runs(asked, lambda one: plan_of(one, machine))
    if options["dry_run"]:
        report.show_steps(asked, plan, console)
        return 0

    question = series.question(
        f"audit {test}",
        {
            **spec.model_dump(mode="json"),
            **{f"{key}_run": str(path.resolve()) for key, path in given.items()},
        },
        [*(one.slice for one in plan.all), *plan.idle],
    )
    name = f"audit-{test.lower()}-{spec.main}-{spec.main_scenario.lower()}"
    path = series.place(options["output"], name, question)
    _look_at_data(spec, machine)
    report.show_steps(asked, plan, console)
    shown = report.headed(watching(console, plain=options["verbose"]), console)
    with series.opened(path, question) as runs:
        answer = audits.audit(asked, lambda one: plan_of(one, machine), runs, shown)

    if options["as_json"]:
        click.echo(json.dumps(answer, indent=2))

    console.quiet = False
    report.show_answer(answer, path, console)
    return 0 if answer["verdict"] == "PASS" else 1


def _had_by_the_round(test: str, spec: "RunSpec") -> Any:
    from scheduler.errors import SpecError
    from scheduler.spec import loadgen_round

    if test == "TEST05" and loadgen_round(spec.round).test05 is None:
        raise SpecError(
            asked=f"audit TEST05 --round {spec.round}",
            found=f"round {spec.round} has no TEST05: it was dropped from v5.0 on",
            do="take --round v4.1 or v2.0, whose seeds for it are known",
        )

    return test


def _look_at_data(spec: "RunSpec", machine: "Machine") -> None:
    from scheduler import inspection

    inspection.check_data(plan_of(spec, machine))
