"""The command line of MLPerf's HeteroMIG harness, launch_heterogeneous_mig.py, said in words of this program.

Where its document and its code disagree the document is followed, and a note says so. Pure.

The document: closed/NVIDIA/documentation/heterogeneous_mig.md of MLPerf's results (v1.1 in
mlcommons/inference_results_v1.1); before it closed/NVIDIA/scripts/launch_heterogeneous_mig.md (v1.0).
"""

import argparse
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

from scheduler.errors import SpecError
from workloads import catalog
from workloads.protocol import WorkloadError

SCRIPT = "launch_heterogeneous_mig.py"
DEFAULT_MS = 600_000
"""Of main's duration and of the start buffer."""
END_BUFFER_MS = 30_000
ITS_NAMES = {
    "--main": "--main_benchmark",
    "--main-scenario": "--main_scenario",
    "--background": "--background_benchmarks",
}
AUDITS = {f"run_audit_test{number}": f"TEST{number}" for number in ("01", "04", "05")}
TAKES_OPTIONS = ("--main_benchmark_runargs", "--main_benchmark_args", "--main_benchmark_cmd_prefix")
"""Their value looks like an option itself; argparse takes it only after a ``=``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Translation:
    """What to call in its place."""

    arguments: tuple[str, ...]
    """Of ``hetero-mig``."""
    notes: tuple[str, ...]
    """Where this is not what the predecessor's code did."""

    @property
    def command(self) -> str:
        return shlex.join(("hetero-mig", *self.arguments))


def in_its_words(asked: str) -> str:
    """What a refusal says was asked, with the predecessor's name for each option whose value is passed on as it is."""
    return re.sub(rf"(?<!\S)({'|'.join(ITS_NAMES)}) (?=[^-])", lambda found: f"{ITS_NAMES[found[1]]}=", asked)


def asks_for_help(words: Sequence[str]) -> bool:
    """Whether ``--help`` is among them, before any ``--``."""
    return bool({"-h", "--help"} & set(_divided(words)[0]))


def help_text() -> str:
    """What ``--help`` tells."""
    return _parser().format_help()


def translate(words: Sequence[str]) -> Translation:
    """The call of ``hetero-mig`` that does what these words asked of the predecessor.

    Args:
        words: its command line, without the script's name; what follows a ``--`` is passed on as it is.

    Raises:
        SpecError: they are not its options, or ask for what cannot be done here.
    """
    its, ours = _divided(words)
    asked = _parser().parse_args(list(_with_their_values(its)))
    said = _Said()
    if any(word.startswith("--main_benchmark_args") for word in its):
        said.note(
            "--main_benchmark_args: the document of v1.0 calls --main_benchmark_runargs so; its code refused it"
        )

    if asked.main_benchmark_cmd_prefix:
        _refuse_prefix(asked.main_benchmark_cmd_prefix)

    runargs = _runargs(asked.main_benchmark_runargs)
    _say_main(asked, runargs, said)
    _say_runargs(asked, runargs, said)
    _say_background(asked, said)
    _say_waits(asked, said)
    if asked.lenient:
        said.say("--on-breach", "record")
        said.note("--lenient: the run goes on after a breach of the overlap, and is INVALID all the same")

    said.words += [*["--dry-run"] * asked.dryrun]
    said.words += [*["--verbose"] * (asked.verbose or asked.verbose_all or asked.debug)]
    return Translation(arguments=(*said.words, *ours), notes=tuple(said.notes))


@dataclass(slots=True)
class _Said:
    words: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def say(self, option: str, value: object) -> None:
        self.words += [option, str(value)]

    def note(self, text: str) -> None:
        self.notes.append(text)


# --- what it was asked ------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SpecError(
            asked=f"{self.prog} as MLPerf's HeteroMIG harness takes it",
            found=message,
            do=f"correct it; `{SCRIPT} --help` lists its options, `hetero-mig --help` this program's own",
        )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=SCRIPT,
        add_help=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=100),
        description="Takes the command line of MLPerf's HeteroMIG harness and runs it with hetero-mig; the "
        "command that does so is printed first.",
        epilog="What follows a -- goes to hetero-mig as it is: … -- --slices cpu:7 --output results/first",
    )
    add = parser.add_argument
    add("-h", "--help", action="store_true", help="show this and exit")
    add("--main_benchmark", default="resnet50", metavar="NAME", help="default: resnet50")
    add("--main_scenario", type=str.lower, default="offline", choices=SCENARIOS, help="default: offline")
    add("--main_action", default="run_harness", choices=("run_harness", *AUDITS), help="a run, or an audit")
    add("--main_benchmark_duration", type=_milliseconds, metavar="MS", help=f"default: {DEFAULT_MS}")
    add("--main_benchmark_runargs", "--main_benchmark_args", default="", metavar="ARGS",
        help="more for main, as '--test_mode=AccuracyOnly' or '--min_query_count=1'")  # fmt: skip
    add("--main_benchmark_cmd_prefix", default="", metavar="CMD", help="refused: main is no command here")
    add("--start_time_buffer", type=_milliseconds, metavar="MS",
        help=f"wait after all background benchmarks have started; default: {DEFAULT_MS}")  # fmt: skip
    add("--main_benchmark_immediate_start", type=_truth, metavar="BOOL",
        help="True: start main at once, with the start time buffer as the longest wait")  # fmt: skip
    add("--end_time_buffer_min", type=_milliseconds, default=END_BUFFER_MS, metavar="MS",
        help=f"how long background must outlive main; default: {END_BUFFER_MS}")  # fmt: skip
    add("--background_benchmarks", default="all", metavar="NAMES",
        help="NAME[,NAME…], all, none, edge, datacenter; default: all")  # fmt: skip
    add("--background_benchmark_duration", type=_milliseconds_or_automatic, default="automatic", metavar="MS",
        help="default: automatic")  # fmt: skip
    add("--background_benchmark_timeout", type=_milliseconds, metavar="MS", help="if that is automatic")
    for flag in ("--lenient", "--dryrun", "--verbose", "--verbose_all", "--debug"):
        add(flag, action="store_true")

    return parser


SCENARIOS = ("singlestream", "multistream", "offline", "server")


def _runargs(text: str) -> argparse.Namespace:
    """Of NVIDIA's RUN_ARGS those that have a meaning here."""
    parser = _Parser(prog="--main_benchmark_runargs", add_help=False)
    parser.add_argument("--test_mode", choices=("PerformanceOnly", "AccuracyOnly"), default="PerformanceOnly")
    parser.add_argument("--min_query_count", type=int)
    parser.add_argument("--min_duration", type=_milliseconds)
    parser.add_argument("--server_target_qps", type=float)
    parser.add_argument("--offline_expected_qps", type=float)
    parser.add_argument("--gpu_batch_size", type=int)
    parser.add_argument("--config_ver")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--verbose_nvtx", action="store_true")
    try:
        words = shlex.split(text)
    except ValueError as error:
        parser.error(f"{text!r}: {error}")

    return parser.parse_args(words)


def _divided(words: Sequence[str]) -> tuple[list[str], list[str]]:
    at = list(words).index("--") if "--" in words else len(words)
    return list(words[:at]), list(words[at + 1 :])


def _with_their_values(words: Sequence[str]) -> list[str]:
    joined: list[str] = []
    for word in words:
        if joined and joined[-1] in TAKES_OPTIONS:
            joined[-1] += f"={word}"
        else:
            joined.append(word)

    return joined


def _converter(check: Callable[[str], bool], what: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if not check(text):
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}")

        return text

    return convert


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _milliseconds(text: str) -> int:
    return int(_converter(_is_count, "a number of milliseconds, as 600000")(text))


def _milliseconds_or_automatic(text: str) -> str:
    return _converter(
        lambda text: _is_count(text) or text == "automatic", "automatic, or a number of milliseconds"
    )(text.lower())


def _truth(text: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    return words[_converter(lambda text: text in words, "True or False")(text.lower())]


# --- what that is here ------------------------------------------------------------------------------


def _say_main(asked: argparse.Namespace, runargs: argparse.Namespace, said: _Said) -> None:
    test = AUDITS.get(asked.main_action)
    accuracy = runargs.test_mode == "AccuracyOnly"
    if test is not None:
        if accuracy:
            raise SpecError(
                asked=f"--main_action={asked.main_action} with --test_mode=AccuracyOnly",
                found="an audit makes its performance and accuracy runs itself",
                do="leave one of the two out",
            )

        said.words += ["audit", test]

    said.say("--main", asked.main_benchmark)
    said.say("--main-scenario", asked.main_scenario)
    given = asked.main_benchmark_duration if runargs.min_duration is None else runargs.min_duration
    if not accuracy:
        said.say("--main-duration", _duration(DEFAULT_MS if given is None else given))
        return

    said.say("--main-mode", "accuracy")
    if given is not None:
        said.note("main's duration is left out: an accuracy run takes each sample once, however long that is")


def _say_runargs(asked: argparse.Namespace, runargs: argparse.Namespace, said: _Said) -> None:
    for option, scenario in (("server_target_qps", "server"), ("offline_expected_qps", "offline")):
        rate = getattr(runargs, option)
        if rate is not None and asked.main_scenario == scenario:
            said.say("--target-qps", f"{rate:.15g}")
        elif rate is not None:
            said.note(f"--{option} is left out: main runs under {asked.main_scenario}")

    if runargs.min_query_count is not None:
        said.say("--main-min-query-count", runargs.min_query_count)
        if asked.main_scenario != "offline":
            said.note(
                "--min_query_count: never less than what LoadGen's early stopping needs to call a run VALID"
            )

    if runargs.gpu_batch_size is not None:
        said.say("--batch-size", runargs.gpu_batch_size)

    if runargs.config_ver is not None:
        target = "99.9" if "high_accuracy" in runargs.config_ver else "99"
        if runargs.test_mode == "AccuracyOnly":
            said.say("--accuracy-target", target)
        else:
            said.note(
                f"--config_ver={runargs.config_ver} is left out: an accuracy run is held against a target "
                f"({target} %), a performance run is not; --precision says how main computes"
            )


def _say_background(asked: argparse.Namespace, said: _Said) -> None:
    names = asked.background_benchmarks
    if names.lower() == "server":
        names = "datacenter"
        said.note("--background_benchmarks=server: what the document of v1.0 calls datacenter")

    said.say("--background", names)
    main = _model(asked.main_benchmark)
    if main in (*catalog.MACROS.get(names.lower(), ()), *map(_model, names.split(","))):
        said.note(
            f"{main} is left out of the background: the document says never main's own model; its code left it in "
            "where there were slices enough, or where it was asked for by another name"
        )


def _say_waits(asked: argparse.Namespace, said: _Said) -> None:
    if asked.background_benchmarks.lower() == "none":
        return

    buffer_ms = DEFAULT_MS if asked.start_time_buffer is None else asked.start_time_buffer
    if asked.main_benchmark_immediate_start:
        said.words += ["--start-timeout", _duration(buffer_ms), "--start-buffer", "0s"]
        said.note(
            "--main_benchmark_immediate_start=True: main starts once all background benchmarks issue, for which "
            "--start_time_buffer is the longest wait"
        )
    else:
        said.say("--start-buffer", _duration(buffer_ms))
        said.note(
            f"--start_time_buffer={buffer_ms}: waited after the last background benchmark issues, as the document "
            "says; its code took it for the longest wait until then (here --start-timeout), and did not wait"
        )

    if asked.main_benchmark_immediate_start is False:
        said.note("--main_benchmark_immediate_start=False: its code took any value for True")

    said.say("--end-buffer", _duration(asked.end_time_buffer_min))
    timeout_ms = asked.background_benchmark_timeout
    if asked.background_benchmark_duration != "automatic":
        lasting = _duration(int(asked.background_benchmark_duration))
        said.words += ["--background-duration", lasting, "--on-main-end", "drain"]
        said.note(
            f"--background_benchmark_duration: its code failed with NameError; here they issue for {lasting}"
        )
        if timeout_ms is not None:
            said.note("--background_benchmark_timeout is left out: it is for an automatic duration")
    elif timeout_ms is not None:
        said.say("--main-timeout", _duration(timeout_ms))
        said.note(
            "--background_benchmark_timeout: here background lasts until main has ended, so it bounds main"
        )


def _refuse_prefix(prefix: str) -> NoReturn:
    raise SpecError(
        asked=f"--main_benchmark_cmd_prefix={shlex.quote(prefix)}",
        found="main is forked from a process that has the libraries loaded; no command line of its own is there to put "
        "it before, and no shell",
        do=f"leave it out; to profile a run put it before the whole command: {prefix} hetero-mig …",
    )


def _model(name: str) -> str:
    """The catalogue's name for it; what is no name of anything stays, for the run to refuse."""
    try:
        entry = catalog.find(name)
    except WorkloadError:
        return name

    return name if entry is None else entry.name


def _duration(milliseconds: int) -> str:
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"
