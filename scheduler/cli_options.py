"""The options that every command which measures has in common, and what they make of them before it starts."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from rich.console import Console

    from scheduler.assignment import Plan
    from scheduler.metrics import RunMetrics
    from scheduler.series import Watching
    from scheduler.slices import Machine
    from scheduler.spec import RunSpec

Command = TypeVar("Command", bound=Callable[..., object])


class Decorator(Protocol):
    """What click.option returns."""

    def __call__(self, command: Command, /) -> Command:
        """The command, with one more option."""


def _scenario(_context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None

    from workloads.protocol import Scenario

    found = Scenario.named(value)
    if found is None:
        there = ", ".join(Scenario)
        raise click.BadParameter(f"there is no scenario {value!r}; there are {there}", param=option)

    return found.value


def scenario_option(*names: str, **told: Any) -> Decorator:
    """An option that takes a scenario in any case."""
    return click.option(*names, metavar="SCENARIO", callback=_scenario, **told)


DURATION = "DURATION"
PLAIN_WIDTH = 120
"""Columns, where there is no terminal to ask."""

RUN: Mapping[str, Decorator] = {
    "main": click.option(
        "--main",
        metavar="NAME",
        help="The main benchmark: a workload, by name or alias (see `workloads`), or your own: "
        "FILE.py:CLASS, hf:FOLDER.",
    ),
    "main_scenario": scenario_option(
        "--main-scenario",
        help="Offline (default), Server, SingleStream or MultiStream, as far as the workload has them.",
    ),
    "main_mode": click.option(
        "--main-mode",
        type=click.Choice(["performance", "accuracy"]),
        help="performance (default): how fast; accuracy: each sample once, and how good the answers are.",
    ),
    "accuracy_target": click.option(
        "--accuracy-target",
        type=click.Choice(["auto", "99", "99.9"]),
        help="Of the reference, in %, that an accuracy run must reach (auto: 99.9 for 3d-unet and dlrm, else 99).",
    ),
    "fidelity_samples": click.option(
        "--fidelity-samples",
        type=int,
        metavar="N",
        help="How many answers of an accuracy run are held against the same weights in fp32.",
    ),
    "main_duration": click.option(
        "--main-duration", metavar=DURATION, help="LoadGen's min_duration for main."
    ),
    "main_min_query_count": click.option(
        "--main-min-query-count",
        type=int,
        metavar="N",
        help="LoadGen's min_query_count for main (default: the round's, or the quick preset's); never less than its "
        "early stopping needs.",
    ),
    "main_slice": click.option(
        "--main-slice",
        metavar="ID",
        help="The slice for main, by id, UUID or MIG profile, of which it takes the first (default: the first slice).",
    ),
    "target_qps": click.option(
        "--target-qps",
        type=float,
        metavar="QPS",
        help="Main's rate: server_target_qps, offline_expected_qps, or the streams' expected queries/s. "
        "Without it a short calibration on the slice picks it.",
    ),
    "background": click.option(
        "--background",
        metavar="NAMES",
        help="Background benchmarks: NAME[,NAME…], or all, none, edge, datacenter. Main's own model is left out.",
    ),
    "background_duration": click.option(
        "--background-duration",
        metavar=f"automatic|{DURATION}",
        help="How long background issues; automatic (default): until main has ended.",
    ),
    "on_main_end": click.option(
        "--on-main-end",
        type=click.Choice(["kill", "drain"]),
        help="Kill background (default), or let it finish.",
    ),
    "on_breach": click.option(
        "--on-breach",
        type=click.Choice(["stop", "record"]),
        help="When a background benchmark breaks the overlap: stop at once (default), or go on; INVALID either way.",
    ),
    "slices": click.option(
        "--slices",
        metavar="WHICH",
        help="auto (default), mig, gpu, cpu[:N], or ID,ID… as `slices` lists them.",
    ),
    "layout": click.option(
        "--layout",
        metavar="FILE#LABEL",
        help="Divide GPUs so for the time of the run (see `mig plan`); what was there before is restored after it.",
    ),
    "start_timeout": click.option(
        "--start-timeout",
        metavar=DURATION,
        help="Longest wait for all background to issue (what NVIDIA's --start_time_buffer does).",
    ),
    "start_buffer": click.option(
        "--start-buffer",
        metavar=DURATION,
        help="Pause after the last background issues (what NVIDIA's --start_time_buffer is documented as).",
    ),
    "end_buffer": click.option(
        "--end-buffer", metavar=DURATION, help="How long background must outlive main."
    ),
    "main_timeout": click.option(
        "--main-timeout", metavar=DURATION, help="Longest time for main, from its launch."
    ),
    "drain_timeout": click.option(
        "--drain-timeout", metavar=DURATION, help="Longest wait for background to finish the test in hand."
    ),
    "stop_grace": click.option(
        "--stop-grace", metavar=DURATION, help="Between asking a process to stop and killing it."
    ),
    "stall_after": click.option(
        "--stall-after", metavar=DURATION, help="Background that completes nothing for this long has stalled."
    ),
    "preset": click.option(
        "--preset",
        type=click.Choice(["auto", "quick", "mlperf"]),
        help="mlperf: 600 s, full models, the round's counts; quick: seconds, not MLPerf-length. "
        "auto (default): mlperf on GPU slices, quick on CPU slices.",
    ),
    "round": click.option(
        "--round",
        type=click.Choice(["v2.0", "v4.1", "v6.1"]),
        help="The MLPerf round whose seeds, counts and limits are taken (default v2.0, the last of HeteroMIG).",
    ),
    "size": click.option(
        "--size", type=click.Choice(["auto", "full", "small"]), help="Of the models (default: as the preset)."
    ),
    "precision": click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "tf32", "bf16", "fp16", "fp8", "int8"]),
        help="Default: fp16 on GPU, fp32 on CPU. Background that cannot compute so takes the default.",
    ),
    "engine": click.option(
        "--engine",
        type=click.Choice(["auto", "eager", "graph", "compile"]),
        help="How networks run: eager, as CUDA graphs (default on GPU), or compiled as well.",
    ),
    "batch_size": click.option(
        "--batch-size", multiple=True, metavar="[NAME=]N", help="Most samples at once; without NAME, of main."
    ),
    "weights": click.option(
        "--weights",
        multiple=True,
        metavar="[NAME=]PATH",
        help="Weights file or folder; without NAME, of main.",
    ),
    "data": click.option(
        "--data", multiple=True, metavar="[NAME=]DIR", help="Folder of real inputs; without NAME, of main."
    ),
    "telemetry": click.option(
        "--telemetry",
        metavar="off|RATE",
        help="Samples of host, workers, slices and GPUs: 10hz (default), 1s, off.",
    ),
    "dcgm": click.option(
        "--dcgm",
        metavar="URL",
        help="Take the slices' activity from a running dcgm-exporter (NVML tells it of Hopper and newer only).",
    ),
    "seed": click.option(
        "--seed", type=int, help="Rotates the assignment and seeds weights and inputs (default 0)."
    ),
}
"""What is run: by field of RunSpec."""

SHOW: Mapping[str, Decorator] = {
    "output": click.option(
        "--output",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Run folder (default results/<utc>-…).",
    ),
    "as_json": click.option(
        "--json", "as_json", is_flag=True, help="result.json to stdout, everything else to stderr."
    ),
    "dry_run": click.option("--dry-run", is_flag=True, help="Print the plan and start nothing."),
    "quiet": click.option("-q", "--quiet", is_flag=True, help="No plan and no progress: the result alone."),
    "verbose": click.option(
        "-v", "--verbose", is_flag=True, help="Plain lines for every event, also on a terminal."
    ),
}
"""Where a run is kept and how it is shown."""

METRICS: Mapping[str, Decorator] = {
    "metrics_port": click.option(
        "--metrics-port",
        metavar="[ADDRESS:]PORT",
        help="Serve the run's metrics to Prometheus while it lasts; without ADDRESS to this machine alone.",
    ),
    "metrics_textfile": click.option(
        "--metrics-textfile",
        type=click.Path(path_type=Path),
        metavar="FILE.prom",
        help="Write them every 5 s, for node-exporter; the file goes when the run ends.",
    ),
}
"""How a run is told to Prometheus."""


def run_options(*without: str) -> Decorator:
    """The options of a run and of how it is shown, but for those named, which the command sets itself."""
    return options({name: option for name, option in {**RUN, **SHOW}.items() if name not in without})


def options(named: Mapping[str, Decorator]) -> Decorator:
    """All of these, listed by ``--help`` in their order."""

    def decorate(command: Command) -> Command:
        for option in reversed(list(named.values())):
            command = option(command)

        return command

    return decorate


def spec_of(options: Mapping[str, Any], typed: Mapping[str, str] = MappingProxyType({})) -> "RunSpec":
    """The run that a command's options ask for; options that are no field of it are passed over.

    Args:
        typed: as ``parse_run`` takes it.

    Raises:
        SpecError: they do not fit together.
    """
    from scheduler.spec import RunSpec, parse_run

    asked = {
        name: value
        for name, value in options.items()
        if name in RunSpec.model_fields and value is not None and value != ()
    }
    for option in ("batch_size", "weights", "data"):
        if option in asked:
            asked[option] = _by_name(option, asked[option], asked["main"], asked.get("background", ""))

    return parse_run(asked, typed)


def _by_name(option: str, items: tuple[str, ...], main: str, background: str) -> dict[str, str]:
    from workloads.catalog import names_one

    references = [main, *background.split(",")]
    named: dict[str, str] = {}
    for item in items:
        before, equals, after = item.partition("=")
        name, value = (before, after) if equals and names_one(before, references) else (main, item)
        if name in named:
            raise click.UsageError(f"--{option.replace('_', '-')} is given twice for {name}")

        named[name] = value

    return named


@contextmanager
def metrics_of(options: Mapping[str, Any]) -> Iterator["RunMetrics | None"]:
    """Where the run's metrics are told, until the ``with`` is left; None where nowhere.

    Raises:
        SpecError: the port or the file cannot be had.
    """
    port, textfile = options["metrics_port"], options["metrics_textfile"]
    if options["dry_run"] or (port is None and textfile is None):
        yield None
        return

    from scheduler import metrics

    with metrics.published(port, textfile) as told:
        yield told


def read_machine() -> "Machine":
    """What this machine has."""
    from scheduler import nvml
    from scheduler.host import Host

    return nvml.read_machine(Host())


def plan_of(spec: "RunSpec", machine: "Machine") -> "Plan":
    """Which benchmark runs on which slice.

    Raises:
        SpecError, SliceError: it cannot be done here.
    """
    from scheduler import assignment, selection
    from scheduler.spec import loadgen_round, presets

    slices = selection.slices_on(machine, spec.slices, assignment.benchmark_count(spec))
    return assignment.assign(spec, slices, presets(), loadgen_round(spec.round))


def watching(console: "Console", *, plain: bool = False) -> "Watching":
    """Shows each run of a series as one run is shown."""
    from scheduler.report.live import LiveView

    return lambda plan, folder, clock: LiveView(plan, folder, clock, console, plain=plain)


def console_of(*, stderr: bool = False, quiet: bool = False) -> "Console":
    """Where people read; as wide as the terminal, or ``PLAIN_WIDTH``."""
    from scheduler.report.text import Terminal

    console = Terminal(stderr=stderr, quiet=quiet)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH

    return console
