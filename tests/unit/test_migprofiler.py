"""MIGProfiler's arguments, as written in its README, mean the same here."""

import shlex

import pytest
from click.testing import CliRunner

from scheduler.cli_profile import profile
from scheduler.errors import SpecError
from scheduler.migprofiler import is_meant, translated

README = ("model_name=vision_transformer", "workload=cv_infer", "gpu_i_id=2")


def test_the_readmes_command():
    found = translated(README)
    assert found.workloads == ("vision-transformer",)
    assert found.command == (
        "vision-transformer --batch-sizes 1,2,4,8,16,32 --seconds 60 --slices gpu0:gi2:ci0"
    )
    assert found.options == {
        "batch_sizes": (1, 2, 4, 8, 16, 32),
        "seconds": 60.0,
        "slices": "gpu0:gi2:ci0",
    }


def test_what_its_configuration_overrides():
    words = ["model_name=bert-base", "workload=nlp_infer", "benchmark_plan.fixed_time=5", "seq_length=32"]
    found = translated([*words, "benchmark_plan.batch_sizes=[1, 2]", "save_dir=out", "hydra.run.dir=logs"])
    assert found.command == "bert-base --batch-sizes 1,2 --sequence-lengths 32 --seconds 5 --output out"


@pytest.mark.parametrize(
    ("words", "workload"),
    [
        (("model_name=resnet50", "workload=cv_train"), "resnet50:train"),
        (("model_name=swin_transformer", "workload=cv_infer"), "swin-transformer"),
        (("model_name=distil", "workload=nlp_infer"), "distilbert"),
        (("model_name=distil_v2", "workload=nlp_infer"), "distilbert"),
        (("model_name=bert", "workload=nlp_train"), "bert:train"),
        (("model_name=MiniLM", "workload=nlp_infer"), "minilm"),
        (("model_name=mpnet", "workload=nlp_infer"), "mpnet"),
        (("workload=cv_infer",), "vision-transformer"),
    ],
)
def test_its_models(words: tuple[str, ...], workload: str):
    assert translated(words).workloads == (workload,)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("workload=cv_guess",), "MIGProfiler has no such workload"),
        (("model_name=resnet50", "workload=nlp_infer"), "nlp_infer has bert-base"),
        (("workload=cv_infer", "gpu_i_id=first"), "not a whole number"),
        (("workload=cv_infer", "optimizer.lr=1e-3"), "no counterpart"),
        (("workload=cv_infer", "batch_sizes=[1,two]"), "not a whole number"),
        (("workload=cv_infer", "batch_sizes=[0,1]"), "nothing can be measured so"),
        (("workload=cv_infer", "fixed_time=0"), "nothing can be measured so"),
    ],
)
def test_what_has_no_counterpart_is_refused(words: tuple[str, ...], says: str):
    with pytest.raises(SpecError, match=says):
        translated(words)


def test_a_batch_size_given_twice_is_measured_once():
    assert translated(["workload=cv_infer", "batch_sizes=[4,1,4]"]).options["batch_sizes"] == (4, 1)


def test_own_models_with_an_equals_sign_are_not_taken_for_them():
    assert is_meant(README)
    assert not is_meant(("resnet50", "a=b.py:Model"))


def test_the_new_command_is_one_that_is_understood():
    words = translated(README).command.split()
    with profile.make_context("profile", words) as context:
        assert context.params["batch_sizes"] == translated(README).options["batch_sizes"]
        assert context.params["slices"] == translated(README).options["slices"]

    found = translated([*README, "save_dir=out"])
    with profile.make_context("profile", found.command.split()) as context:
        assert {name: context.params[name] for name in found.options} == found.options

    assert CliRunner().invoke(profile, ["--batch-sizes", "1,x", "null"]).exit_code == 2


def test_an_option_beside_them_holds_in_place_of_a_default_and_is_in_the_new_command():
    given = {"--batch-sizes": ("3",), "--layout": ("a", "b c"), "--dry-run": ()}
    found = translated(["model_name=resnet50", "workload=cv_infer", "fixed_time=5"], given)
    assert found.options == {"seconds": 5.0}
    assert found.command == "resnet50 --batch-sizes 3 --seconds 5 --layout a --layout 'b c' --dry-run"
    found = translated(["workload=nlp_infer", "model_name=mpnet"], {"--sequence-lengths": ("32",)})
    assert ("sequence_lengths" in found.options, found.notes) == (False, ())


@pytest.mark.parametrize(
    ("word", "option", "says"),
    [
        ("gpu_i_id=0", ("--slices", "cpu:1"), "gpu_i_id=0 is --slices gpu0:gi0:ci0"),
        ("batch_sizes=[1,2]", ("--batch-sizes", "3"), "batch_sizes=[1,2] is --batch-sizes 1,2"),
        ("fixed_time=5", ("--seconds", "6"), "fixed_time=5 is --seconds 5"),
        ("save_dir=here", ("--output", "there"), "save_dir=here is --output here"),
    ],
)
def test_two_given_things_that_contradict_each_other_are_refused(
    word: str, option: tuple[str, str], says: str
):
    with pytest.raises(SpecError) as refused:
        translated(["workload=cv_infer", word], {option[0]: (option[1],)})

    assert says in refused.value.found
    assert refused.value.asked == f"{word} and {' '.join(option)}"


def test_the_same_said_twice_is_no_contradiction():
    found = translated(["workload=cv_infer", "batch_sizes=[1, 2]"], {"--batch-sizes": ("1,2",)})
    assert found.command == "vision-transformer --batch-sizes 1,2 --seconds 60"


@pytest.mark.parametrize(
    ("model", "group", "workload"),
    [("bert-base", "nlp_train", "bert:train"), ("mpnet", "cv_infer", "resnet50")],
)
def test_a_model_that_a_workload_has_not_is_answered_with_a_command_that_it_has(
    model: str, group: str, workload: str
):
    with pytest.raises(SpecError) as refused:
        translated([f"model_name={model}", f"workload={group}"])

    command, ours = refused.value.do.removesuffix("; or another of them").split(
        "; in this program's words: hetero-mig profile "
    )
    words = command.removeprefix("hetero-mig profile ").split()
    assert translated(words).workloads == (ours,) == (workload,)


def test_a_folder_said_twice_is_one_folder():
    said = ["workload=cv_infer", "save_dir=out/"]
    assert "--output out" in translated(said, {"--output": ("out",)}).command
    with pytest.raises(SpecError, match="contradict"):
        translated(said, {"--output": ("in",)})


def test_a_length_that_nothing_can_take_is_told():
    [note] = translated(["workload=cv_infer", "sequence_lengths=[64]"]).notes
    assert "vision-transformer cannot choose the length" in note


def test_the_command_that_is_told_is_the_same():
    beside = ["--slices", "cpu:1", "--batch-sizes", "3,1", "--arrival-rate", "2.5", "--seconds", "1.50"]
    words = ["model_name=resnet50", "workload=cv_infer", *beside, "--dry-run"]
    done = CliRunner().invoke(profile, words)
    assert (done.exit_code, "2 steps, 3 s" in done.stdout) == (0, True), done.output
    command = done.stderr.splitlines()[0].partition("hetero-mig profile ")[2]
    assert command.endswith(
        "resnet50 --batch-sizes 3,1 --seconds 1.5 --arrival-rate 2.5 --slices cpu:1 --dry-run"
    )
    assert CliRunner().invoke(profile, shlex.split(command)).stdout == done.stdout
