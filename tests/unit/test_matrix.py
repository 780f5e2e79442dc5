"""The plans of a matrix's runs."""

from dataclasses import replace
from typing import Any

import pytest

from scheduler.errors import SpecError
from scheduler.matrix import Asked, check, plan_of
from scheduler.pairs import PairRun
from scheduler.run import manifest
from scheduler.selection import slices_on
from scheduler.slices import Machine
from scheduler.spec import parse_run
from workloads.protocol import WorkloadOptions

NAMES = ("resnet50", "bert", "dlrm")


def asked(slices: str = "cpu:4", cores: int = 8, names: tuple[str, ...] = NAMES, **options: Any) -> Asked:
    machine = Machine(cores=tuple(range(cores)), memory_mib=64_000)
    spec = parse_run({"main": names[0], "background": ",".join(names), **options})
    return Asked(spec=spec, workloads=names, slices=slices_on(machine, slices, 2), repeats=2)


def test_the_background_of_a_cell_is_on_every_other_slice_also_mains_own_model():
    for background in NAMES:
        _, plan = plan_of(asked(), PairRun("bert", background))
        assert plan.main.workload == "bert"
        assert [(one.workload, one.slice.id) for one in plan.background] == [
            (background, "cpu1"),
            (background, "cpu2"),
            (background, "cpu3"),
        ]
        assert not any("left out" in note for note in plan.notes)


@pytest.mark.parametrize("cores", [8, 2])
def test_main_is_the_same_alone_and_in_company_also_on_shared_cores(cores: int):
    for main in NAMES:
        of_cells = {plan_of(asked(cores=cores), PairRun(main, other))[1].main for other in NAMES}
        spec, alone = plan_of(asked(cores=cores), PairRun(main, None, 2))
        assert of_cells == {alone.main}
        assert (alone.background, spec.background) == ((), ())
        assert [one.id for one in alone.idle] == ["cpu1", "cpu2", "cpu3"]


def test_options_by_name_go_with_their_workload():
    several = asked(batch_size={"bert": 3, "dlrm": 5}, seed=4)
    _, plan = plan_of(several, PairRun("bert", "dlrm"))
    assert [one.options.batch_size for one in plan.all] == [3, 5, 5, 5]
    _, other = plan_of(several, PairRun("resnet50", "resnet50"))
    assert len({replace(one.options, memory_mib=0) for one in other.all}) == 1
    assert isinstance(other.main.options, WorkloadOptions)


def test_the_manifest_says_which_kind_a_run_is():
    about: dict[str, Any] = {"host": {}, "gpus": {}}
    from scheduler.clock import Clock

    kinds = []
    for run in (PairRun("bert", None), PairRun("bert", "bert")):
        spec, plan = plan_of(asked(), run)
        kinds.append(manifest(plan, spec, about, Clock.start()).kind)

    assert kinds == ["baseline", "hetero"]


def test_all_plans_are_looked_at_before_the_first_run():
    assert len(check(asked())) == 3 * 3 + 2 * 3
    with pytest.raises(SpecError, match="slices beside main's: 0"):
        check(asked("cpu:1"))

    with pytest.raises(SpecError, match="the slices of this run are"):
        check(asked(main_slice="cpu9"))
