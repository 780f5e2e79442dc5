"""MLPerf's published results of single slices: every row is read, and the pairs are the known ones."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from scheduler import published
from scheduler.errors import SpecError
from scheduler.published import Published, Reference, geometric_mean, matching, parse_system, references, rows
from scheduler.report import compare as report
from scheduler.result import Placement
from tests.results import measured
from tests.unit.test_report import holds, shown
from workloads import catalog
from workloads.protocol import Scenario

A100, A30 = "DGX-A100_A100-SXM-80GB-MIG_1x1g.10gb_TRT", "A30-MIG_1x1g.6gb_TRT"


@pytest.fixture(scope="module")
def every() -> list[Published]:
    return rows()


@pytest.fixture(scope="module")
def paired(every: list[Published]) -> list[Reference]:
    return references(every)


def one(paired: list[Reference], system: str, benchmark: str, scenario: Scenario) -> Reference:
    found = matching(paired, workload=benchmark, scenario=scenario, system=system, round_="v2.0")
    [both] = [each for each in found if each.hetero is not None]
    return both


def test_every_row_is_read(every: list[Published]):
    assert len(every) == 493
    assert all(0 < each.p90_ms <= each.p99_ms for each in every)
    assert {each.min_duration_s for each in every} == {600.0, 1800.0, 3600.0}
    assert all(each.path.startswith("closed/") and each.benchmark in each.path for each in every)
    known = {*catalog.CATALOG, "retinanet"}
    assert {each.workload for each in every} <= known
    without = [each.workload for each in every if each.score[0] is None]
    assert without == ["3d-unet"] * 8  # Offline, in the table without a rate


@pytest.mark.parametrize(
    ("name", "where", "triton", "hetero"),
    [
        (f"{A100}_HeteroMultiUse", "A100-SXM-80GB, MIG 1g.10gb", False, True),
        (f"{A30}_Triton", "A30, MIG 1g.6gb", True, False),
        ("A30-MIG_32x1g.6gb_TRT_Triton", "A30, MIG 1g.6gb × 32", True, False),
        ("DGX-A100_A100-SXM-80GBx1_TRT", "A100-SXM-80GB × 1", False, False),
        ("XE8545_A100_SXM_80GB_1xMIG_TRT", "A100-SXM-80GB, MIG slice", False, False),
        ("NC96ads_A100_v4_MIG_1g_10gb_TRT", "A100, MIG 1g.10gb", False, False),
    ],
)
def test_what_a_systems_name_says(name: str, where: str, triton: bool, hetero: bool):
    system = parse_system(name)
    assert (system.where, system.triton, system.hetero) == (where, triton, hetero)


def test_another_name_is_no_system():
    with pytest.raises(ValueError, match="H100x8"):
        parse_system("H100x8_TRT")


# Of MLPerf's v2.0: alone, in company, their ratio.
@pytest.mark.parametrize(
    ("benchmark", "alone", "hetero", "ratio"),
    [
        ("resnet50", 5231.07, 5200.54, 0.994),
        ("ssd-resnet34", 134.913, 133.665, 0.991),
        ("bert-99", 484.021, 483.641, 0.999),
        ("bert-99.9", 246.289, 242.269, 0.984),
        ("rnnt", 1612.2, 1611.78, 1.000),
        ("dlrm-99.9", 40424, 37579.6, 0.930),
    ],
)
def test_offline_on_a_slice_of_an_a100(
    paired: list[Reference], benchmark: str, alone: float, hetero: float, ratio: float
):
    found = one(paired, A100, benchmark, Scenario.OFFLINE)
    assert found.alone is not None
    assert found.hetero is not None
    assert (found.alone.score, found.hetero.score) == ((alone, "samples/s"), (hetero, "samples/s"))
    assert found.derating == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize(
    ("benchmark", "rates", "p99_ms"),
    [
        ("resnet50", (3527.25, 3597.21), (7.56, 8.19)),
        ("bert-99", (379.98, 379.98), (95.81, 105.93)),
        ("bert-99.9", (169.99, 159.99), (112.87, 108.99)),
        ("rnnt", (1349.55, 1320.17), (788.91, 799.47)),
        ("dlrm-99.9", (35988.81, 35988.81), (8.29, 9.00)),
    ],
)
def test_server_on_a_slice_of_an_a100(
    paired: list[Reference], benchmark: str, rates: tuple[float, float], p99_ms: tuple[float, float]
):
    found = one(paired, A100, benchmark, Scenario.SERVER)
    assert found.alone is not None
    assert found.hetero is not None
    assert (found.alone.samples_per_s, found.hetero.samples_per_s) == rates
    assert (found.alone.p99_ms, found.hetero.p99_ms) == pytest.approx(p99_ms, abs=0.005)


@pytest.mark.parametrize(("scenario", "mean"), [(Scenario.OFFLINE, 0.912), (Scenario.SERVER, 0.904)])
def test_the_means_of_the_a30(paired: list[Reference], scenario: Scenario, mean: float):
    found = matching(paired, scenario=scenario, system="A30", round_="v2.0")
    assert geometric_mean(found) == pytest.approx(mean, abs=5e-4)
    assert geometric_mean([]) is None


def test_a_run_submitted_under_both_targets_is_there_once(paired: list[Reference]):
    found = matching(paired, workload="dlrm", scenario=Scenario.OFFLINE, system=A100, round_="v2.0")
    assert [each.benchmarks for each in found if each.hetero] == [("dlrm-99", "dlrm-99.9")]
    assert found == matching(
        paired, workload="dlrm-99", scenario=Scenario.OFFLINE, system=A100, round_="v2.0"
    )


def test_only_single_slices_are_paired(paired: list[Reference]):
    assert all(each.either.system.slices == 1 and each.either.system.mig for each in paired)


def test_a_run_of_ones_own_differs_in_all_that_matters():
    names = {each.name for each in published.differences(measured())}
    assert {
        "hardware",
        "slice",
        "software",
        "precision",
        "size",
        "minimum duration",
        "weights",
        "inputs",
    } <= names


def test_a_run_as_long_as_mlperfs_on_a_mig_slice_is_told_by_its_gpu():
    long = measured(settings={"min_duration_ms": 600_000}, slice="gpu0:gi7:ci0")
    placed = Placement(gpu_uuid="GPU-1", start=0, size=1)
    where = {"id": "gpu0:gi7:ci0", "kind": "mig", "name": "1g.18gb", "uuid": "MIG-1", "placement": placed}
    slices = [long.result.slices[0].model_copy(update=where)]
    manifest = long.manifest.model_copy(
        update={
            "slices": slices,
            "main": long.manifest.main.model_copy(update={"slice": "gpu0:gi7:ci0"}),
            "gpus": {"settings": {"GPU-0": {"name": "another"}, "GPU-1": {"name": "NVIDIA H200"}}},
        }
    )
    own = replace(long, manifest=manifest, result=long.result.model_copy(update={"slices": slices}))
    told = {each.name: each.one for each in published.differences(own)}
    assert (told["hardware"], told["slice"]) == ("NVIDIA H200", "mig 1g.18gb")
    assert "minimum duration" not in told


def test_on_a_terminal_of_80_columns(paired: list[Reference]):
    on = Console(file=io.StringIO(), width=80, color_system=None, force_terminal=False)
    found = matching(paired, workload="resnet50", system="A100-SXM", round_="v2.0")
    report.show_references([each for each in found if each.hetero], on, left_out=4)
    report.show_own(measured(), published.differences(measured()), on)
    holds("reference.txt", shown(on))


@pytest.mark.parametrize(
    ("workload", "round_", "names"),
    [
        ("nonsense", None, "bert-99.9"),
        ("mpnet", None, "resnet50"),
        (None, "v9", "v1.0, v1.1, v2.0, v2.1, v3.0"),
    ],
)
def test_what_nothing_is_published_of_is_refused_naming_what_there_is(
    paired: list[Reference], workload: str | None, round_: str | None, names: str
):
    with pytest.raises(SpecError) as refused:
        published.check(paired, workload=workload, round_=round_)

    assert names in refused.value.do
    published.check(paired, workload="bert", round_="v2.0")
    published.check(paired, workload="3d-unet-99.9", round_=None)
