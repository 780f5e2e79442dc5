"""``hetero-mig tune``: the highest rate at which main keeps its latency, alone and in company."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scheduler.cli_mig import offer_what_was_left
from scheduler.cli_options import (
    DURATION,
    console_of,
    plan_of,
    read_machine,
    run_options,
    scenario_option,
    spec_of,
)

if TYPE_CHECKING:
    from scheduler.assignment import Plan
    from scheduler.tuning import Asked, TuneResult

SHARE_SCREENED = 0.05
"""Of the full length, what a screening trial lasts unless --screening says otherwise."""
SHORTEST_SCREENING_S = 1.0


@click.command()
@scenario_option(
    "--main-scenario",
    "--scenario",
    "main_scenario",
    default="Server",
    help="Server (default): the highest target QPS that is VALID. Offline, SingleStream, MultiStream: the rate to "
    "tell LoadGen so that the test is VALID and no longer than it must be.",
)
@click.option(
    "--confirm",
    type=click.IntRange(min=1),
    default=1,
    metavar="N",
    help="Full-length VALID trials that prove a rate (default 1).",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0, 50, min_open=True),
    default=1.0,
    metavar="PERCENT",
    help="How near to the highest rate the answer is to be (default 1).",
)
@click.option(
    "--screening",
    metavar=DURATION,
    help="Length of the short trials that close the bracket (default: a twentieth of --main-duration, at least 1 s).",
)
@click.option(
    "--max-time",
    metavar=DURATION,
    help="Make no trial that by its length would end later (loading and calibration are not counted before they "
    "happen); the answer is the best proven by then.",
)
@click.option(
    "--baseline-qps",
    type=click.FloatRange(0, min_open=True),
    metavar="QPS",
    help="Main's rate alone is known: search in company only, from there.",
)
@run_options(
    *("main_scenario", "main_mode", "accuracy_target", "fidelity_samples"),
    *("background_duration", "on_breach", "layout"),
)
@click.pass_context
def tune(context: click.Context, /, **options: Any) -> None:
    """Find the highest rate that main holds: alone on its slice, then while the background runs.

    \b
    hetero-mig tune --main resnet50 --scenario server --background datacenter

    The background is kept running from trial to trial. --target-qps says where to begin. The same command goes on
    with a tuning that was cut short. Exit code: 0 found, 1 no rate is VALID, 2 asked wrongly, 3 could not run,
    130/143 stopped.
    """
    if options["main"] is None:
        raise click.UsageError("--main is missing: name the workload to tune")

    context.exit(_tune(options))


def _tune(options: dict[str, Any]) -> int:
    console = console_of(stderr=options["as_json"], quiet=options["quiet"])
    spec = spec_of(options)
    if not options["dry_run"]:
        offer_what_was_left()

    machine = read_machine()  # after that offer, which changes what is here
    plan = plan_of(spec, machine)
    asked = _asked(options, plan)

    from scheduler.report import text

    text.show_plan(plan, console)
    if options["dry_run"]:
        return 0

    from scheduler import inspection, series
    from scheduler.report.tune import TuneView, show_tuning
    from scheduler.tune import Journal, Tuning

    inspection.check_data(plan)
    slices = [*(one.slice for one in plan.all), *plan.idle]
    question = series.question("tune", _question(spec.model_dump(mode="json"), asked), slices)
    folder = series.place(options["output"], f"tune-{plan.main.workload}", question)
    with series.opened(folder, question) as runs:
        result = _answered(runs.answer(), folder)
        if result is None:
            view = TuneView(plan, asked, console, plain=options["verbose"])
            journal = Journal(runs)
            view.goes_on(journal.trials)
            result = Tuning(
                plan=plan, spec=spec, asked=asked, machine=machine, runs=runs, journal=journal, show=view
            ).carry_out()

    if options["as_json"]:
        click.echo(result.model_dump_json(indent=2))

    console.quiet = False
    show_tuning(result, console)
    console.print(f"  folder: {folder}", markup=False, highlight=False, soft_wrap=True)
    asked_for = result.hetero if plan.background else result.baseline
    return 0 if asked_for is not None and asked_for.qps is not None else 1


def _answered(answer: dict[str, Any] | None, folder: Path) -> "TuneResult | None":
    """An answer that is there already, unless more time may give a better one."""
    from scheduler import judging
    from scheduler.tuning import TuneResult

    result = None if answer is None else judging.understood(TuneResult, answer, f"result.json of {folder}")
    return None if result is None or result.ended == "out of time" else result


def _asked(options: dict[str, Any], plan: "Plan") -> "Asked":
    """How to search.

    Raises:
        SpecError: an option does not fit.
    """
    from scheduler.errors import SpecError
    from scheduler.tuning import Asked

    full_s = plan.main.settings.min_duration_ms / 1e3
    screening_s = _duration(options, "screening")
    if screening_s is None:
        screening_s = min(full_s, max(SHORTEST_SCREENING_S, SHARE_SCREENED * full_s))
    elif screening_s > full_s:
        raise SpecError(
            asked=f"--screening {options['screening']}",
            found=f"a full-length trial lasts {full_s:g} s",
            do="make it shorter than that, or give a longer --main-duration",
        )

    for name in ("tolerance", "baseline_qps"):
        if options[name] is not None and not math.isfinite(options[name]):
            raise SpecError(
                asked=f"--{name.replace('_', '-')} {options[name]}",
                found="that is no finite number",
                do="give one",
            )

    if options["baseline_qps"] is not None and not plan.background:
        raise SpecError(
            asked=f"--baseline-qps {options['baseline_qps']:g}",
            found="there is no background, so nothing is left to search for",
            do="name a --background, or leave --baseline-qps out",
        )

    return Asked(
        confirm=options["confirm"],
        tolerance=options["tolerance"] / 100,
        screening_s=screening_s,
        max_time_s=_duration(options, "max_time"),
        baseline_qps=options["baseline_qps"],
    )


def _duration(options: dict[str, Any], name: str) -> float | None:
    from scheduler.errors import SpecError
    from scheduler.spec import parse_duration

    if options[name] is None:
        return None

    option = f"--{name.replace('_', '-')} {options[name]}"
    try:
        seconds = parse_duration(options[name])
    except ValueError as error:
        raise SpecError(
            asked=option, found=str(error), do="correct it; `hetero-mig tune --help` lists every option"
        ) from None

    if not seconds:
        raise SpecError(asked=option, found="that is no time at all", do="give a longer one, as 30s")

    return seconds


def _question(spec: dict[str, Any], asked: "Asked") -> dict[str, Any]:
    """What two sittings must have in common: all but how long this one may take."""
    return {
        **spec,
        "confirm": asked.confirm,
        "tolerance": asked.tolerance,
        "screening_s": asked.screening_s,
        "baseline_qps": asked.baseline_qps,
    }
