"""The predecessor's command line: the commands of NVIDIA's documents verbatim, every option, what is refused.

closed/NVIDIA/documentation/heterogeneous_mig.md in mlcommons/inference_results_v1.1 at 912dcdb (kept unchanged in these
commands up to v5.1), and before it closed/NVIDIA/scripts/launch_heterogeneous_mig.md in
mlcommons/inference_results_v1.0 at cd4f7a9.
"""

import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.assignment import assign
from scheduler.errors import SpecError
from scheduler.predecessor import Translation, asks_for_help, help_text, in_its_words, translate
from scheduler.selection import slices_on
from scheduler.slices import Machine
from scheduler.spec import loadgen_round, parse_run, presets
from tests.documents import HETEROGENEOUS_MIG_MD, LAUNCH_HETEROGENEOUS_MIG_MD, words_of

COMPANY = "--background datacenter --start-buffer 600s --end-buffer 30s"


def said(command: str) -> Translation:
    return translate(shlex.split(command))


def notes(command: str) -> str:
    return "\n".join(said(command).notes)


@pytest.mark.parametrize(
    ("command", "here"),
    [
        (
            HETEROGENEOUS_MIG_MD["performance"],
            f"--main ssd-resnet34 --main-scenario server --main-duration 600s {COMPANY}",
        ),
        (
            HETEROGENEOUS_MIG_MD["accuracy"],
            f"--main ssd-resnet34 --main-scenario server --main-mode accuracy {COMPANY}",
        ),
        (
            HETEROGENEOUS_MIG_MD["audit"],
            f"audit TEST01 --main ssd-resnet34 --main-scenario server --main-duration 600s {COMPANY}",
        ),
        (
            LAUNCH_HETEROGENEOUS_MIG_MD["performance"],
            f"--main ssd-resnet34 --main-scenario server --main-duration 600s {COMPANY}",
        ),
        (
            LAUNCH_HETEROGENEOUS_MIG_MD["accuracy"],
            f"--main ssd-resnet34 --main-scenario server --main-mode accuracy {COMPANY}",
        ),
        (
            LAUNCH_HETEROGENEOUS_MIG_MD["audit"],
            f"audit TEST01 --main resnet50 --main-scenario offline --main-duration 600s {COMPANY}",
        ),
    ],
)
def test_the_commands_of_nvidias_documents(command: str, here: str):
    assert translate(words_of(command)).command == f"hetero-mig {here}"


def test_the_documents_help_lists_all_its_options():
    assert asks_for_help(words_of(HETEROGENEOUS_MIG_MD["help"]))
    assert not asks_for_help(["--dryrun", "--", "--help"])
    options = set(re.findall(r"--[a-z]\w+", help_text()))
    assert {
        "--main_benchmark", "--main_scenario", "--main_action", "--main_benchmark_duration",
        "--main_benchmark_runargs", "--main_benchmark_cmd_prefix", "--start_time_buffer",
        "--main_benchmark_immediate_start", "--end_time_buffer_min", "--background_benchmarks",
        "--background_benchmark_duration", "--background_benchmark_timeout", "--lenient", "--dryrun", "--verbose",
        "--verbose_all", "--debug",
    } <= options  # fmt: skip


def test_without_any_option_its_defaults_hold():
    assert said("").command == (
        "hetero-mig --main resnet50 --main-scenario offline --main-duration 600s --background all "
        "--start-buffer 600s --end-buffer 30s"
    )


@pytest.mark.parametrize(
    ("option", "here"),
    [
        ("--main_benchmark=SSD-Large --background_benchmarks=none", "--main SSD-Large"),
        ("--main_scenario SingleStream", "--main-scenario singlestream"),
        ("--main_action=run_audit_test05", "audit TEST05"),
        ("--main_benchmark_duration 1500", "--main-duration 1500ms"),
        ("--main_benchmark_runargs=--min_query_count=1", "--main-min-query-count 1"),
        ("--main_benchmark_runargs '--min_query_count 1 --verbose'", "--main-min-query-count 1"),
        ("--main_benchmark_runargs --min_duration=60000", "--main-duration 60s"),
        ("--main_benchmark_runargs='--offline_expected_qps=250.5'", "--target-qps 250.5"),
        ("--main_benchmark_runargs='--offline_expected_qps=1234567'", "--target-qps 1234567"),
        ("--main_benchmark_runargs='--test_mode=AccuracyOnly --config_ver=hetero'", "--accuracy-target 99"),
        ("--main_benchmark=no_such_model.py:Any", "--main no_such_model.py:Any"),
        ("--main_benchmark_runargs='--gpu_batch_size=64'", "--batch-size 64"),
        ("--start_time_buffer=0", "--start-buffer 0s"),
        ("--end_time_buffer_min 10", "--end-buffer 10ms"),
        ("--main_benchmark_immediate_start True", "--start-timeout 600s --start-buffer 0s"),
        ("--main_benchmark_immediate_start False", "--start-buffer 600s"),
        ("--background_benchmarks=bert,rnn-t", "--background bert,rnn-t"),
        ("--background_benchmarks=server", "--background datacenter"),
        ("--background_benchmark_duration=90000", "--background-duration 90s --on-main-end drain"),
        ("--background_benchmark_timeout 7200000", "--main-timeout 7200s"),
        ("--lenient", "--on-breach record"),
        ("--dryrun --debug", "--dry-run --verbose"),
        ("--dry", "--dry-run"),
        ("--verbose_all -- --slices cpu:7 --json", "--verbose --slices cpu:7 --json"),
    ],
)
def test_each_option(option: str, here: str):
    assert f" {here}" in said(option).command


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("", "waited after the last background benchmark issues, as the document says; its code took it for"),
        (
            "--main_benchmark=unet --background_benchmarks=3d-unet,bert",
            "3d-unet is left out of the background",
        ),
        ("--main_benchmark_immediate_start=False", "its code took any value for True"),
        ("--lenient", "INVALID all the same"),
        ("--background_benchmark_duration=1000", "its code failed with NameError"),
        ("--main_benchmark_args=--test_mode=AccuracyOnly", "its code refused it"),
        ("--main_scenario=server --main_benchmark_runargs=--min_query_count=1", "early stopping needs"),
        ("--main_benchmark_runargs='--server_target_qps=9'", "left out: main runs under offline"),
        ("--main_benchmark_runargs='--config_ver=hetero_high_accuracy'", "99.9 %"),
        ("--background_benchmark_duration=9 --background_benchmark_timeout=9", "timeout is left out"),
        ("--main_benchmark_duration=9 --main_benchmark_runargs=--test_mode=AccuracyOnly", "each sample once"),
    ],
)
def test_where_it_differs_the_output_says_so(command: str, told: str):
    assert told in notes(command)


def test_with_nothing_in_the_background_no_wait_is_told_of():
    alone = said("--background_benchmarks none")
    assert (alone.command, alone.notes) == (
        "hetero-mig --main resnet50 --main-scenario offline --main-duration 600s --background none",
        (),
    )


@pytest.mark.parametrize(
    ("command", "found"),
    [
        ("--main_benchmark_immediate_start Maybe", "is not True or False"),
        ("--main_benchmark_duration=10m", "is not a number of milliseconds"),
        ("--main_benchmark_duration=-5", "is not a number of milliseconds"),
        ("--background_benchmark_duration=forever", "is not automatic, or a number"),
        ("--main_action=run_audit_test06", "invalid choice"),
        ("--main_scenario=interactive", "invalid choice"),
        ("--main_bench=bert", "ambiguous"),
        ("--gpu 3", "unrecognized arguments"),
        ("--main_benchmark_runargs=--use_graphs=True", "unrecognized arguments"),
        ("--main_benchmark_runargs='\"'", "No closing quotation"),
        ("--main_benchmark_cmd_prefix 'nsys profile'", "main is forked"),
        ("--main_action=run_audit_test01 --main_benchmark_runargs=--test_mode=AccuracyOnly", "itself"),
    ],
)
def test_what_cannot_be_honoured_is_refused(command: str, found: str):
    with pytest.raises(SpecError) as refused:
        said(command)

    assert found in refused.value.found


@pytest.mark.parametrize(
    ("asked", "said_there"),
    [
        ("--main nosuch", "--main_benchmark=nosuch"),
        ("--main dlrm --main-scenario SingleStream", "--main_benchmark=dlrm --main_scenario=SingleStream"),
        ("--background null,null", "--background_benchmarks=null,null"),
        ("--main-slice gpu9", "--main-slice gpu9"),
    ],
)
def test_a_refusal_names_its_own_options(asked: str, said_there: str):
    assert in_its_words(asked) == said_there


@given(
    main=st.sampled_from(["resnet", "ssd-large", "unet", "3dunet", "rnn-t", "BERT", "dlrm"]),
    background=st.sampled_from(["all", "none", "edge", "datacenter", "bert,dlrm", "unet"]),
    milliseconds=st.integers(1, 10**8),
    accuracy=st.booleans(),
)
def test_what_it_says_is_a_run_of_this_program(main: str, background: str, milliseconds: int, accuracy: bool):
    mode = ["--main_benchmark_runargs", "--test_mode=AccuracyOnly"] if accuracy else []
    words = [f"--main_benchmark={main}", "--background_benchmarks", background, *mode]
    translation = translate([*words, f"--main_benchmark_duration={milliseconds}"])
    options = dict(zip(translation.arguments[::2], translation.arguments[1::2], strict=True))
    spec = parse_run({name.removeprefix("--").replace("-", "_"): value for name, value in options.items()})
    assert spec.main_duration == (None if accuracy else pytest.approx(milliseconds / 1000))


def test_the_least_count_of_queries_is_mains_and_fewer_than_the_rounds_are_told():
    slices = slices_on(Machine(cores=(0, 1), memory_mib=64_000), "cpu:2", 1)
    spec = parse_run({"main": "bert", "main_scenario": "server", "preset": "mlperf", "background": "dlrm"})
    few = spec.model_copy(update={"main_min_query_count": 1})
    usual, asked = (assign(one, slices, presets(), loadgen_round()) for one in (spec, few))
    assert asked.main.settings.min_query_count == 1 < usual.main.settings.min_query_count
    assert asked.background[0].settings.min_query_count == usual.background[0].settings.min_query_count
    assert any("fewer samples than the round's" in note for note in asked.notes)
    assert not any("fewer samples" in note for note in usual.notes)
