"""Which benchmark on which slice, with what settings."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.assignment import Plan, assign, benchmark_count, plan_as_json
from scheduler.errors import SpecError
from scheduler.selection import slices_on
from scheduler.slices import CpuSlice, Gpu, Machine, MigSlice, Slice
from scheduler.spec import loadgen_round, parse_run, presets
from workloads.catalog import CATALOG
from workloads.protocol import Scenario

PRESETS = presets()
ROUND = loadgen_round()
MLPERF = [name for name, workload in ROUND.workloads.items() if workload.accuracy is not None]


def cpu_slices(count: int, cores: int = 64) -> tuple[Slice, ...]:
    there = Machine(cores=tuple(range(cores)), memory_mib=64_000)
    return slices_on(there, f"cpu:{count}", 1)


def mig_slice(gpu: int, gi: int) -> MigSlice:
    return MigSlice(
        id=f"gpu{gpu}:gi{gi}:ci0",
        name="1g.10gb",
        uuid=f"MIG-{gpu}-{gi}",
        gpu_uuid=f"GPU-{gpu}",
        gpu_index=gpu,
        gpu_name="NVIDIA A100",
        gpu_instance_id=gi,
        compute_instance_id=0,
        gi_profile_id=19,
        placement_start=gi,
        placement_size=1,
        sms=14,
        memory_mib=9728,
        cores=(2 * gi, 2 * gi + 1),
    )


SEVEN_MIG = tuple(mig_slice(0, gi) for gi in range(7))
TWO_GPUS = SEVEN_MIG[:3] + tuple(mig_slice(1, gi) for gi in range(3, 7))


def plan(slices: tuple[Slice, ...], main: str = "resnet50", **asked: Any) -> Plan:
    return assign(parse_run({"main": main, **asked}), slices, PRESETS, ROUND)


def where(plan_: Plan) -> list[tuple[str, str]]:
    return [(each.workload, each.slice.id) for each in plan_.all]


# --- which on which


def test_main_on_the_first_slice_and_the_names_in_turn_on_the_others_of_all_gpus():
    assert where(plan(TWO_GPUS, background="bert,dlrm")) == [
        ("resnet50", "gpu0:gi0:ci0"),
        ("bert", "gpu0:gi1:ci0"),
        ("dlrm", "gpu0:gi2:ci0"),
        ("bert", "gpu1:gi3:ci0"),
        ("dlrm", "gpu1:gi4:ci0"),
        ("bert", "gpu1:gi5:ci0"),
        ("dlrm", "gpu1:gi6:ci0"),
    ]


def test_the_seed_rotates_the_names():
    orders = [
        [each.workload for each in plan(cpu_slices(4), background="bert,dlrm,rnnt", seed=seed).background]
        for seed in range(4)
    ]

    assert orders == [
        ["bert", "dlrm", "rnnt"],
        ["dlrm", "rnnt", "bert"],
        ["rnnt", "bert", "dlrm"],
        ["bert", "dlrm", "rnnt"],
    ]


def test_a_name_given_twice_has_two_turns():
    decided = plan(cpu_slices(7), background="bert,bert,dlrm")

    assert Counter(each.workload for each in decided.background) == {"bert": 4, "dlrm": 2}


def test_every_benchmark_has_a_name_of_its_own():
    decided = plan(SEVEN_MIG, background="bert,dlrm")

    assert [each.name for each in decided.all][:3] == [
        "main-resnet50",
        "background-1-bert",
        "background-2-dlrm",
    ]
    assert len({each.name for each in decided.all}) == 7
    assert [each.role for each in decided.all] == ["main"] + ["background"] * 6


@pytest.mark.parametrize("asked", ["gpu0:gi3:ci0", "MIG-0-3", "mig-0-3", "MIG-GPU-0/3/0"])
def test_main_slice_by_id_or_uuid(asked: str):
    decided = plan(SEVEN_MIG, background="bert", main_slice=asked)

    assert decided.main.slice is SEVEN_MIG[3]
    assert [each.slice for each in decided.background] == [*SEVEN_MIG[:3], *SEVEN_MIG[4:]]


def test_an_unknown_main_slice_is_refused_with_those_there_are():
    with pytest.raises(SpecError, match="cpu0, cpu1, cpu2"):
        plan(cpu_slices(3), main_slice="cpu3")


# The predecessor's documented 7-slice `datacenter` command ran main's own model in the background, and an
# alias defeated its rule (fault 13 of FACTS.md).
@pytest.mark.parametrize("main", ["resnet50", "resnet", "ResNet-50"])
@pytest.mark.parametrize("background", ["datacenter", "all", "resnet50-v1.5,bert", "bert,resnet"])
def test_mains_own_model_is_never_in_the_background_by_any_alias(main: str, background: str):
    decided = plan(SEVEN_MIG, main=main, background=background)

    assert decided.main.workload == "resnet50"
    assert "resnet50" not in [each.workload for each in decided.background]
    assert any("resnet50 is left out of the background" in note for note in decided.notes)


def test_a_list_of_mains_own_model_alone_is_refused():
    with pytest.raises(SpecError, match="main's model is never in the background"):
        plan(SEVEN_MIG, main="resnet50", background="resnet")


# The predecessor cut long lists silently and left spare slices idle (fault 14 of FACTS.md).
@pytest.mark.parametrize(
    ("slices", "do"),
    [
        (cpu_slices(3), "name at most 2, or use more slices (--slices cpu:6)"),
        (SEVEN_MIG[:4], "name at most 3, or use more slices (another MIG layout, or --slices cpu)"),
        (SEVEN_MIG[:1], "ask for --background none, or use more slices (another MIG layout"),
    ],
)
def test_a_list_longer_than_the_slices_is_refused_not_cut(slices: tuple[Slice, ...], do: str):
    with pytest.raises(SpecError) as refusal:
        plan(slices, background="datacenter")

    assert "3d-unet,bert,dlrm,rnnt,ssd-resnet34 (5 beside main)" in refusal.value.asked
    assert refusal.value.found == f"slices beside main's: {len(slices) - 1}"
    assert do in refusal.value.do


@pytest.mark.parametrize("background", ["datacenter", "edge", "all", "none", "bert", "bert,bert,dlrm"])
@pytest.mark.parametrize("main", list(CATALOG))
def test_cpu_slices_are_as_many_as_benchmarks(main: str, background: str):
    spec = parse_run({"main": main, "background": background})
    if main == background:
        assert benchmark_count(spec) == 1
        return

    decided = assign(spec, cpu_slices(benchmark_count(spec)), PRESETS, ROUND)

    assert len(decided.all) == benchmark_count(spec)
    assert decided.idle == ()


def test_without_background_the_other_slices_stay_idle():
    decided = plan(SEVEN_MIG, main_slice="gpu0:gi1:ci0")

    assert decided.background == ()
    assert decided.idle == (SEVEN_MIG[0], *SEVEN_MIG[2:])


@given(
    main=st.sampled_from(sorted(CATALOG)),
    names=st.lists(st.sampled_from(sorted(CATALOG)), max_size=8),
    slices=st.integers(1, 16),
    main_index=st.integers(0, 15),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_spread(main: str, names: list[str], slices: int, main_index: int, seed: int):
    there = cpu_slices(slices)
    asked = {"main": main, "background": names, "seed": seed, "main_slice": there[main_index % slices].id}
    wanted = Counter(name for name in names if name != main)

    try:
        decided = assign(parse_run(asked), there, PRESETS, ROUND)
    except SpecError:
        assert wanted.total() > slices - 1 or (names and not wanted)
        return

    assert decided == assign(parse_run(asked), there, PRESETS, ROUND)
    assert decided.main.slice is there[main_index % slices]
    assert main not in [each.workload for each in decided.background]
    placed = [each.slice.id for each in decided.all] + [each.id for each in decided.idle]
    assert sorted(placed) == sorted(each.id for each in there)
    turns = Counter(each.workload for each in decided.background)
    assert set(turns) == set(wanted)
    if wanted:
        assert decided.idle == ()
        if set(wanted.values()) == {1}:
            assert max(turns.values()) - min(turns.values()) <= 1

        # With names given more than once, it is the turns of an entry of the list that differ by one at most.
        least = (slices - 1) // wanted.total()
        assert all(least * wanted[name] <= turns[name] <= (least + 1) * wanted[name] for name in wanted)

    for each in decided.all:
        assert each.settings.min_duration_ms >= 1
        assert 0 <= each.settings.qsl_rng_seed < 2**64


# --- settings


def test_quick_on_cpu_slices_mlperf_on_gpu_slices():
    on_cpu, on_gpu = plan(cpu_slices(2), background="bert"), plan(SEVEN_MIG[:2], background="bert")

    assert (on_cpu.preset, on_gpu.preset) == ("quick", "mlperf")
    assert [each.options.size for each in (*on_cpu.all, *on_gpu.all)] == ["small", "small", "full", "full"]
    assert [each.options.device for each in (*on_cpu.all, *on_gpu.all)] == ["cpu", "cpu", "cuda", "cuda"]
    assert [each.options.precision for each in (*on_cpu.all, *on_gpu.all)] == ["fp32", "fp32", "fp16", "fp16"]
    assert plan(SEVEN_MIG, preset="quick").preset == "quick"


def test_main_has_the_rounds_own_settings_under_mlperf():
    decided = plan(SEVEN_MIG, main="bert", main_scenario="server", target_qps=120, background="3d-unet")
    main = decided.main.settings

    assert (main.scenario, main.target_qps, main.conf_model) == (Scenario.SERVER, 120, "bert")
    assert (main.min_duration_ms, main.min_query_count, main.performance_sample_count) == (
        600_000,
        459,
        10833,
    )
    assert (main.server_target_latency_ns, main.target_latency_percentile) == (130_000_000, 0.99)
    assert main.qsl_rng_seed == 6655344265603136530
    assert main.sample_index_rng_seed == 15863379492028895792
    assert main.schedule_rng_seed == 12662793979680847247
    assert decided.comparable_to_mlperf
    assert [note[:23] for note in decided.notes] == ["smaller default batches"]


@pytest.mark.parametrize(
    ("scenario", "counts", "quick_counts", "percentile"),
    [
        ("Offline", 24576, 1, None),
        ("SingleStream", 64, 64, 0.90),
        ("MultiStream", 662, 662, 0.99),
        ("Server", 459, 459, 0.99),
    ],
)
def test_counts_and_percentiles(scenario: str, counts: int, quick_counts: int, percentile: float | None):
    mlperf = plan(SEVEN_MIG, main_scenario=scenario).main.settings
    quick = plan(cpu_slices(1), main_scenario=scenario).main.settings

    assert (mlperf.min_query_count, quick.min_query_count) == (counts, quick_counts)
    assert mlperf.target_latency_percentile == quick.target_latency_percentile == percentile


def test_background_is_offline_in_tests_of_the_presets_length_whatever_main_does():
    decided = plan(SEVEN_MIG, main_scenario="Server", target_qps=10, main_duration="1h", background="3d-unet")
    background = decided.background[0]

    assert background.settings.scenario is Scenario.OFFLINE
    assert (background.settings.min_duration_ms, background.settings.min_query_count) == (60_000, 1)
    assert background.settings.target_qps is None
    assert background.settings.server_target_latency_ns is None
    assert background.settings.sample_concatenate_permutation
    assert background.duration_s is None


def test_an_explicit_background_duration_is_the_backgrounds_alone():
    decided = plan(cpu_slices(2), background="bert", background_duration="90s")

    assert decided.background[0].duration_s == 90
    assert decided.main.duration_s is None


@pytest.mark.parametrize(
    ("asked", "slices", "samples"),
    [
        ({"main": "resnet50"}, SEVEN_MIG, 1024),
        ({"main": "resnet50", "preset": "quick"}, SEVEN_MIG, 256),
        ({"main": "resnet50", "size": "small"}, SEVEN_MIG, 256),
        ({"main": "ssd-resnet34"}, cpu_slices(1), 64),
        ({"main": "3d-unet"}, SEVEN_MIG, 42),
        ({"main": "3d-unet", "preset": "quick"}, SEVEN_MIG, 4),
        ({"main": "dlrm"}, cpu_slices(1), 204_800),
    ],
)
def test_few_samples_in_memory_unless_full_and_mlperf(
    asked: dict[str, str], slices: tuple[Slice, ...], samples: int
):
    assert plan(slices, **asked).main.settings.performance_sample_count == samples


def test_a_cpu_slice_has_longer_to_answer_and_says_so():
    on_cpu = plan(cpu_slices(1), main_scenario="Server")
    patient = plan(cpu_slices(1), main="rnnt", main_scenario="Server")
    on_gpu = plan(SEVEN_MIG, main_scenario="Server", preset="quick")

    assert on_cpu.main.settings.server_target_latency_ns == 500_000_000
    assert "Server latency limit on CPU cores: 500 ms, not 15 ms" in on_cpu.notes
    assert patient.main.settings.server_target_latency_ns == 1_000_000_000
    assert not any("latency limit" in note for note in (*patient.notes, *on_gpu.notes))
    assert on_gpu.main.settings.server_target_latency_ns == 15_000_000


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"preset": "quick"}, "10 s where MLPerf asks for 600 s; fewer samples than the round's"),
        ({"main_duration": "599s"}, "599 s where MLPerf asks for 600 s"),
        ({"size": "small"}, "the small model"),
        ({"seed": 3}, "seeds moved by 3"),
        ({"main": "null"}, "null is not a benchmark of round v2.0"),
    ],
)
def test_what_is_not_comparable_to_mlperf_says_why(asked: dict[str, Any], why: str):
    decided = plan(SEVEN_MIG, **asked)

    assert not decided.comparable_to_mlperf
    assert f"not comparable to MLPerf: {why}" in decided.notes


def test_the_seed_moves_all_seeds_and_loadgens_wrap_as_they_are_unsigned_64_bit():
    last = ROUND.model_copy(update={"qsl_rng_seed": 2**64 - 1})
    main = assign(parse_run({"main": "resnet50", "seed": 6}), SEVEN_MIG, PRESETS, last).main

    assert main.settings.qsl_rng_seed == 5
    assert main.settings.schedule_rng_seed == 12662793979680847247 + 6
    assert main.options.seed == 6


def test_options_by_workload_name(tmp_path: Path):
    decided = plan(
        cpu_slices(3),
        background="bert,dlrm",
        batch_size={"bert-99": 3},
        weights={"dlrm": str(tmp_path)},
        data={"resnet": str(tmp_path)},
        precision="bf16",
    )
    main, bert, dlrm = (each.options for each in decided.all)

    assert (main.batch_size, bert.batch_size) == (CATALOG["resnet50"].batch_size["cpu", "small"], 3)
    assert (main.data, bert.data, dlrm.data) == (tmp_path, None, None)
    assert (main.weights, bert.weights, dlrm.weights) == (None, None, tmp_path)
    assert {main.precision, bert.precision, dlrm.precision} == {"bf16"}


@pytest.mark.parametrize("option", ["batch_size", "weights"])
def test_an_option_for_a_workload_that_does_not_run_is_refused(option: str, tmp_path: Path):
    value = 3 if option == "batch_size" else str(tmp_path)
    with pytest.raises(SpecError, match="rnnt is not in this run, which runs bert, resnet50") as refusal:
        plan(cpu_slices(2), background="bert", **{option: {"rnn-t": value}})

    assert refusal.value.asked.startswith(f"--{option.replace('_', '-')} rnnt=")


def test_fp16_on_cpu_is_refused():
    with pytest.raises(SpecError, match="--precision fp16 on CPU slices"):
        plan(cpu_slices(1), precision="fp16")


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"main": "resnet50", "precision": "int8"}, "computes in fp32, tf32, bf16, fp16"),
        ({"main": "bert", "precision": "fp8"}, "CPUs have no products in fp8"),
        ({"main": "bert", "precision": "tf32"}, "tensor cores"),
    ],
)
def test_a_precision_that_main_or_its_device_has_not_is_refused(asked: dict[str, str], found: str):
    with pytest.raises(SpecError, match=f"--precision {asked['precision']}") as refusal:
        plan(cpu_slices(1), **asked)

    assert found in refusal.value.found


def test_background_without_mains_precision_takes_the_default_and_a_note_says_so():
    decided = plan(SEVEN_MIG[:3], main="bert", background="resnet50,minilm", precision="fp8")
    assert [each.options.precision for each in decided.all] == ["fp8", "fp16", "fp8"]
    assert any("no fp8 in the background of resnet50" in note for note in decided.notes)


def test_threads_and_memory_are_the_slices_fair_share():
    roomy, tight = (plan(cpu_slices(4, cores=cores), background="bert,dlrm,rnnt") for cores in (10, 2))
    on_mig = plan(SEVEN_MIG, background="bert")
    overlapping = tuple(CpuSlice(id=f"s{n}", cores=tuple(range(6)), memory_mib=900) for n in range(3))

    assert [each.options.threads for each in roomy.all] == [3, 3, 2, 2]
    assert [each.options.threads for each in tight.all] == [1, 1, 1, 1]
    assert [each.options.threads for each in plan(overlapping, background="bert,dlrm").all] == [2, 2, 2]
    assert [each.options.memory_mib for each in roomy.all] == [16_000] * 4
    assert [each.options.memory_mib for each in on_mig.all] == [9728] * 7
    assert plan(cpu_slices(4)).main.options.memory_mib == 64_000, "idle slices take none"
    assert "4 benchmarks share 2 CPU cores" in " ".join(tight.notes)
    assert not any("share" in note for note in (*roomy.notes, *on_mig.notes))


# --- windows


def test_windows_are_the_presets_and_those_asked_for_in_their_place():
    windows = plan(cpu_slices(2), background="bert", start_buffer="0s", stop_grace="1500ms").windows

    assert (windows.start_buffer_s, windows.stop_grace_s) == (0, 1.5)
    assert windows.start_timeout_s == PRESETS["quick"].start_timeout_s


def test_a_longer_main_lengthens_its_timeout_unless_that_is_asked_for():
    assert plan(SEVEN_MIG, main_duration="3h").windows.main_timeout_s == 7200 + 2.5 * (10800 - 600)
    assert plan(SEVEN_MIG, main_duration="1m").windows.main_timeout_s == 7200
    assert plan(SEVEN_MIG, main_timeout="11m").windows.main_timeout_s == 660
    with pytest.raises(SpecError, match="--main-timeout of 600 s"):
        plan(SEVEN_MIG, main_timeout="10m")


# --- the round's data, the plan as JSON


def test_the_round_has_every_workload_with_what_its_scenarios_need():
    assert set(ROUND.workloads) == set(CATALOG)
    for name, entry in CATALOG.items():
        assert (ROUND.workloads[name].server_target_latency_ms is not None) == (
            Scenario.SERVER in entry.scenarios
        ), name

    assert MLPERF == ["resnet50", "ssd-resnet34", "ssd-mobilenet", "bert", "dlrm", "3d-unet", "rnnt"]
    assert set(ROUND.min_query_count) == set(ROUND.quick.min_query_count) == set(Scenario)


@pytest.mark.parametrize("main", MLPERF)
def test_every_main_under_every_scenario_it_has(main: str):
    for scenario in CATALOG[main].scenarios:
        for slices in (SEVEN_MIG, cpu_slices(8)):
            decided = plan(slices, main=main, main_scenario=scenario, background="all")

            assert len(decided.all) == len(slices)
            assert decided.main.settings.scenario is scenario
            assert (decided.main.settings.server_target_latency_ns is None) == (scenario != Scenario.SERVER)


def test_the_plan_as_json_survives_json_and_describes_each_slice_once(tmp_path: Path):
    decided = plan(SEVEN_MIG[:3], background="bert", data={"resnet50": str(tmp_path)})
    told = json.loads(json.dumps(plan_as_json(decided)))

    assert told == plan_as_json(decided)
    assert [each["id"] for each in told["slices"]] == [each.id for each in SEVEN_MIG[:3]]
    assert told["slices"][1] == {
        "id": "gpu0:gi1:ci0",
        "kind": "mig",
        "name": "1g.10gb",
        "uuid": "MIG-0-1",
        "sms": 14,
        "memory_mib": 9728,
        "numa_node": None,
        "cores": [2, 3],
        "shared_with": [],
        "placement": {"gpu_uuid": "GPU-0", "start": 1, "size": 1},
    }
    assert told["main"]["slice"] == "gpu0:gi0:ci0"
    assert told["main"]["options"]["data"] == str(tmp_path)
    assert told["background"][1]["settings"]["scenario"] == "Offline"
    assert told["background"][1]["name"] == "background-2-bert"
    assert told["windows"]["start_buffer_s"] == 600
    assert told["preset"] == "mlperf"
    assert told["idle"] == []
    assert plan_as_json(plan(SEVEN_MIG))["idle"] == [each.id for each in SEVEN_MIG[1:]]
    assert plan_as_json(plan(cpu_slices(1)))["slices"][0]["uuid"] is None


def test_one_machine_to_one_plan_from_end_to_end():
    near = (0, 1, 2, 3)
    gpu = Gpu(
        index=0,
        uuid="GPU-0",
        name="NVIDIA A100",
        memory_mib=81920,
        sms=108,
        mig_enabled=True,
        mig_devices=SEVEN_MIG[:2],
        cores=near,
        numa_node=0,
    )
    spec = parse_run({"main": "resnet50", "background": "bert"})
    slices = slices_on(
        Machine(cores=tuple(range(8)), memory_mib=1, gpus=(gpu,)), spec.slices, benchmark_count(spec)
    )

    decided = assign(spec, slices, PRESETS, ROUND)

    assert where(decided) == [("resnet50", "gpu0:gi0:ci0"), ("bert", "gpu0:gi1:ci0")]
    assert [each.options.threads for each in decided.all] == [2, 2]
