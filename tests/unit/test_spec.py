"""What the user asks: durations, aliases, macros, and one clear message for what is wrong."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import profiles
from scheduler.cli_build import names_of
from scheduler.errors import SpecError
from scheduler.spec import LoadgenRound, RunSpec, Windows, loadgen_round, parse_duration, parse_run, presets
from workloads import catalog
from workloads.protocol import Scenario


def run(**asked: Any) -> RunSpec:
    return parse_run({"main": "resnet50", **asked})


# --- durations


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("10m", 600), ("1.5h", 5400), ("600000ms", 600), ("0s", 0), (" 2s ", 2), ("0.25s", 0.25)],
)
def test_durations(written: str, seconds: float):
    assert parse_duration(written) == pytest.approx(seconds)


@pytest.mark.parametrize("written", ["600000", "90", 90, 1.5, "0"])
def test_a_bare_number_is_refused_with_the_reason(written: object):
    """The predecessor's options were in milliseconds, most tools' are in seconds."""
    with pytest.raises(ValueError, match="could be seconds or milliseconds"):
        parse_duration(written)


@pytest.mark.parametrize("written", ["", "s", "ten minutes", "-5s", "1e3s", "5 m", "5M", "1h30m", None, True])
def test_what_is_no_duration(written: object):
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(written)


@given(st.floats(0.001, 1e6), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)]))
def test_any_number_in_any_unit(number: float, unit: tuple[str, float]):
    assert parse_duration(f"{number:.9f}{unit[0]}") == pytest.approx(number * unit[1], rel=1e-6)


# --- names


@pytest.mark.parametrize(
    ("alias", "name"),
    [
        ("resnet", "resnet50"),
        ("ResNet-50", "resnet50"),
        ("ssd_large", "ssd-resnet34"),
        ("ssd-small", "ssd-mobilenet"),
        ("BERT-99.9", "bert"),
        ("3dunet", "3d-unet"),
        ("unet", "3d-unet"),
        ("3d_unet", "3d-unet"),
        ("rnn-t", "rnnt"),
        (" dlrm ", "dlrm"),
    ],
)
def test_aliases_name_the_same_workload_everywhere(alias: str, name: str):
    spec = run(main=alias, background=[alias], batch_size={alias: 2})

    assert (spec.main, spec.background, spec.batch_size) == (name, (name,), {name: 2})


def test_no_alias_names_two_workloads_or_a_macro():
    names = [name for entry in catalog.CATALOG.values() for name in (entry.name, *entry.aliases)]

    assert len(set(names)) == len(names)
    assert not set(names) & set(catalog.MACROS)


@pytest.mark.parametrize("macro", list(catalog.MACROS))
def test_macros_stand_for_lists(macro: str):
    assert run(background=macro).background == catalog.MACROS[macro]
    assert run(background=f" {macro.upper()} ").background == catalog.MACROS[macro]
    assert set(catalog.MACROS[macro]) <= set(catalog.CATALOG)


def test_a_list_keeps_its_order_and_its_repetitions():
    assert run(background="dlrm, bert-99,dlrm").background == ("dlrm", "bert", "dlrm")


@pytest.mark.parametrize("written", ["server", "SERVER", "Server"])
def test_scenarios_in_any_case(written: str):
    assert run(main_scenario=written).main_scenario is Scenario.SERVER


@pytest.mark.parametrize("written", ["singlestream", "single-stream", "single_stream", "SingleStream"])
def test_scenarios_with_or_without_a_hyphen(written: str):
    assert run(main_scenario=written).main_scenario is Scenario.SINGLE_STREAM


@pytest.mark.parametrize("name", list(catalog.CATALOG))
def test_main_runs_under_the_scenarios_of_the_catalogue_and_no_others(name: str):
    for scenario in Scenario:
        if scenario in catalog.CATALOG[name].scenarios:
            assert run(main=name, main_scenario=scenario).main_scenario is scenario
        else:
            with pytest.raises(SpecError, match=f"{name} does not run under {scenario}; it runs under"):
                run(main=name, main_scenario=scenario)


# --- what is wrong, in the user's words


@pytest.mark.parametrize(
    ("asked", "option", "found"),
    [
        ({"main": "resnext"}, "--main resnext", "there is no workload 'resnext'; there are resnet50,"),
        ({"main_duration": "10"}, "--main-duration 10", "could be seconds or milliseconds"),
        ({"main_duration": "0s"}, "--main-duration 0s", "greater than 0"),
        ({"stall_after": "0s"}, "--stall-after 0s", "greater than 0"),
        ({"stop_grace": "9" * 400 + "s"}, "--stop-grace 99", "finite"),
        ({"main_scenario": "batch"}, "--main-scenario batch", "'SingleStream', 'MultiStream', 'Server' or"),
        ({"background": "bert,all"}, "--background bert,all", "'all' stands for a whole list"),
        ({"background": "bert,,dlrm"}, "--background bert,,dlrm", "there is no workload ''"),
        ({"background": ""}, "--background", "there is no workload ''"),
        ({"background": 5}, "--background 5", "not a list of workloads; as bert,dlrm or one of datacenter"),
        ({"background": None}, "--background None", "not a list of workloads"),
        ({"background_duration": "600"}, "--background-duration 600", "could be seconds or milliseconds"),
        ({"background_duration": "auto"}, "--background-duration auto", "not a duration: 'auto'"),
        ({"background_duration": "0s"}, "--background-duration 0s", "greater than 0"),
        ({"target_qps": 0}, "--target-qps 0", "greater than 0"),
        ({"target_qps": "inf"}, "--target-qps inf", "finite"),
        ({"seed": -1}, "--seed -1", "greater than or equal to 0"),
        ({"seed": 2**32}, f"--seed {2**32}", "less than 4294967296"),
        ({"preset": "slow"}, "--preset slow", "'auto', 'quick' or 'mlperf'"),
        ({"precision": "int4"}, "--precision int4", "'fp32', 'tf32', 'bf16', 'fp16', 'fp8' or 'int8'"),
        ({"batch_size": {"bert": 0}}, "--batch-size bert=0", "greater than or equal to 1"),
        ({"batch_size": {"bert": 1, "bert-99": 2}}, "--batch-size bert=1,bert-99=2", "bert is given twice"),
        ({"weights": {"bertt": "."}}, "--weights bertt=.", "there is no workload 'bertt'"),
        ({"weights": ["bert"]}, "--weights ['bert']", "dictionary"),
        ({"data": {"bert": "nowhere/at/all"}}, "--data bert=nowhere", "for bert: there is no nowhere/at/all"),
        (
            {"main": "dlrm", "main_scenario": "single-stream"},
            "--main dlrm --main-scenario single-stream",
            "it runs under Offline, Server",
        ),
        (
            {"main_duration": "9s", "accuracy_target": "99.9"},
            "--accuracy-target 99.9",
            "are for --main-mode accuracy",
        ),
        (
            {"main_mode": "accuracy", "main_duration": "3s"},
            "--main-mode accuracy --main-duration 3s",
            "leave --main-duration out",
        ),
        (
            {"main": "resnet50:train", "main_mode": "accuracy"},
            "--main resnet50:train --main-mode accuracy",
            "has no accuracy",
        ),
        ({"wait": "3s"}, "--wait 3s", "not permitted"),
    ],
)
def test_one_message_names_the_option_as_it_was_given(asked: dict[str, Any], option: str, found: str):
    with pytest.raises(SpecError) as refusal:
        run(**asked)

    assert refusal.value.asked.startswith(option)
    assert found in refusal.value.found
    assert refusal.value.exit_code == 2


def test_a_message_names_what_was_typed_where_that_is_no_option_of_that_name():
    with pytest.raises(SpecError) as refused:
        parse_run({"main": "nosuch"}, {"main": "profile nosuch"})

    assert refused.value.asked == "profile nosuch"
    with pytest.raises(
        SpecError, match=r"asked: --workloads bert,nosuch\nfound: there is no workload 'nosuch'"
    ):
        names_of("bert,nosuch")


def test_main_must_be_named():
    with pytest.raises(SpecError) as refusal:
        parse_run({"background": "bert"})

    assert (refusal.value.asked, refusal.value.found) == ("--main", "Field required")


def test_the_backgrounds_duration_is_automatic_or_a_duration():
    assert run(background_duration="automatic").background_duration == "automatic"
    assert run(background_duration="90s").background_duration == 90


def test_weights_for_what_has_none_are_refused_and_not_passed_over(tmp_path: Path):
    with pytest.raises(SpecError) as caught:
        run(main="null", weights={"null": str(tmp_path)})

    assert "null has no weights, it computes no model" in caught.value.found


def test_paths_that_exist_are_taken(tmp_path: Path):
    assert run(data={"resnet": str(tmp_path)}).data == {"resnet50": tmp_path}


def test_unset_options_are_none_so_that_the_preset_decides():
    spec = run()

    for window in Windows.model_fields:
        assert getattr(spec, window.removesuffix("_s")) is None

    assert (spec.main_duration, spec.target_qps, spec.main_slice) == (None, None, None)
    assert (spec.background, spec.background_duration) == ((), "automatic")


def test_a_spec_does_not_change():
    with pytest.raises(ValueError, match="frozen"):
        run().seed = 3  # type: ignore[misc] # that it is refused is what is tested


# --- the data beside it


def test_presets_and_their_windows():
    assert set(presets()) == {"quick", "mlperf"}
    for preset in presets().values():
        Windows.model_validate({field: getattr(preset, field) for field in Windows.model_fields})
        assert preset.main_timeout_s > preset.main_duration_s

    assert presets()["mlperf"].main_duration_s == 600


def test_the_round_of_the_models():
    round_ = loadgen_round()

    assert round_.round == "v2.0"
    assert round_.min_duration_ms == 600_000
    assert round_.workloads["resnet50"].total_sample_count == 50_000
    accuracy = round_.workloads["bert"].accuracy
    assert accuracy is not None
    assert accuracy.reference * accuracy.targets[1] == pytest.approx(90.783126)


def test_a_misspelt_key_in_the_rounds_data_is_refused():
    data = profiles.read_yaml("loadgen/v2.0.yaml")
    data["workloads"]["bert"]["server_latency_ms"] = 130

    with pytest.raises(ValueError, match="server_latency_ms"):
        LoadgenRound.model_validate(data)
