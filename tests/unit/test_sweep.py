"""The cells of a profile, and one step of it while it runs."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.assignment import Assignment, assign
from scheduler.events import (
    Action,
    DeadlinePassed,
    Event,
    Exited,
    Failed,
    Finished,
    Issuing,
    Kill,
    Launch,
    Ready,
    Stalled,
    Stop,
    StopRequested,
)
from scheduler.selection import slices_on
from scheduler.slices import Machine, MigSlice
from scheduler.spec import loadgen_round, parse_run, presets
from scheduler.sweep import GROUPS, STOP_GRACE_S, Attempt, Begin, Grid, Step, group_of, steps
from workloads import catalog

LENGTHS = {"null": None, "minilm": 512}


def on_slices(workload: str, slices: str = "cpu:2") -> list[Assignment]:
    spec = parse_run({"main": workload})
    machine = Machine(cores=(0, 1), memory_mib=4096)
    return [assign(spec, (one,), presets(), loadgen_round()).main for one in slices_on(machine, slices, 1)]


def names(found: Iterator[Step]) -> list[str]:
    return [step.key for step in found]


def test_every_combination_is_one_step_and_slices_change_fastest():
    grid = Grid(batch_sizes=(1, 4), concurrency=(1, 2), arrival_rates_per_s=(0.5,))
    assert names(steps([on_slices("null")], grid, together=False, takes_lengths=LENGTHS)) == [
        f"null-b{size}-{load}-{where}"
        for load, size, where in product(("c1", "c2", "r0.5"), (1, 4), ("cpu0", "cpu1"))
    ]


def test_rates_that_differ_have_names_that_differ():
    grid = Grid(concurrency=(), arrival_rates_per_s=(2.0, 1234567.0, 1234568.0, 0.1), batch_sizes=(1,))
    assert names(steps([on_slices("null", "cpu:1")], grid, together=False, takes_lengths=LENGTHS)) == [
        f"null-b1-{rate}-cpu0" for rate in ("r2", "r1234567", "r1234568", "r0.1")
    ]


def test_models_of_ones_own_have_names_of_their_own_and_none_is_too_long():
    paths = ("a b.py:Net", "a-b.py:Net", f"{'x' * 300}/one.py:Net", f"{'x' * 300}/two.py:Net")
    alike = [[replace(one, workload=path) for one in on_slices("null", "cpu:1")] for path in paths]
    found = names(steps(alike, Grid(), together=False, takes_lengths=dict.fromkeys(paths)))
    assert len(set(found)) == len(paths)
    assert max(map(len, found)) < 200


def test_together_is_one_step_of_all_slices():
    (step,) = steps([on_slices("null")], Grid(batch_sizes=(8,)), together=True, takes_lengths=LENGTHS)
    assert step.key == "null-b8-c1-together"
    assert step.names == ["null-b8-c1-cpu0", "null-b8-c1-cpu1"]
    assert {cell.assignment.options.batch_size for cell in step.cells} == {8}


def test_lengths_are_for_those_that_can_choose():
    workloads = [on_slices("null", "cpu"), on_slices("minilm", "cpu")]
    grid = Grid(batch_sizes=(1,), sequence_lengths=(16, 64))
    found = list(steps(workloads, grid, together=False, takes_lengths=LENGTHS))
    assert [step.key for step in found] == [
        "null-b1-c1-cpu0",
        "minilm-b1-s16-c1-cpu0",
        "minilm-b1-s64-c1-cpu0",
    ]
    assert [step.cells[0].assignment.options.sequence_length for step in found] == [None, 16, 64]


def test_a_workload_has_its_own_batch_size_where_none_is_asked():
    (step,) = steps([on_slices("null", "cpu")], Grid(), together=False, takes_lengths=LENGTHS)
    assert step.key == "null-b1024-c1-cpu0"


def test_a_layout_is_part_of_the_key_and_keys_are_names_of_folders():
    (step,) = steps(
        [on_slices("null", "cpu")], Grid(), together=False, takes_lengths=LENGTHS, layout="a/b.yaml#1g*7"
    )
    assert step.key == "a-b.yaml-1g-7-null-b1024-c1-cpu0"


def test_a_mig_device_is_named_by_its_place_for_its_ids_change_with_every_layout():
    keys = set()
    for instance in (7, 9):
        (one,) = on_slices("null", "cpu")
        device = MigSlice(
            id=f"gpu0:gi{instance}:ci0",
            name="1g.18gb",
            uuid=f"MIG-{instance}",
            gpu_uuid="GPU-1",
            gpu_index=0,
            gpu_name="H200",
            gpu_instance_id=instance,
            compute_instance_id=0,
            gi_profile_id=19,
            placement_start=5,
            placement_size=1,
            sms=16,
            memory_mib=16384,
            cores=(0,),
        )
        (step,) = steps([[replace(one, slice=device)]], Grid(), together=False, takes_lengths=LENGTHS)
        keys.add(step.key)

    assert keys == {"null-b1024-c1-gpu0-1g.18gb-5.0"}


def test_the_groups_are_of_the_catalogue():
    for group, members in GROUPS.items():
        assert {group_of(name) for name in members} == {group}
        assert {catalog.CATALOG[name].trains for name in members} == {group.endswith("train")}

    assert group_of("dlrm") == "other"


# ---------------------------------------------------------------------- one step


def began(*cells: str) -> Attempt:
    attempt = Attempt(cells, warm_within_s=100)
    assert attempt.begin(0.0) == [Launch(name) for name in cells]
    assert attempt.deadline == 100
    return attempt


def told(attempt: Attempt, *happened: Event) -> list[list[Action | Begin]]:
    return [attempt.handle(event) for event in happened]


def test_all_begin_when_the_last_is_warm():
    attempt = began("a", "b")
    assert told(attempt, Ready("a", 1), Ready("b", 1), Issuing("a", 2, 2)) == [[], [], []]
    assert attempt.handle(Issuing("b", 3, 3)) == [Begin("a"), Begin("b")]
    assert attempt.deadline is None
    assert told(attempt, Finished("a", 9), Exited("a", 9, 0), Finished("b", 9), Exited("b", 9, 0))[-1] == []
    assert attempt.over
    assert [one.stopped for one in attempt.outcomes.values()] == ["", ""]


def test_one_that_runs_out_of_memory_leaves_the_others_to_go_on():
    attempt = began("a", "b")
    told(attempt, Issuing("a", 2, 2), Failed("b", 3, "memory", "too little"))
    assert attempt.handle(Exited("b", 3, 70)) == [Begin("a")]
    assert attempt.outcomes["b"].failed is not None


def test_one_that_is_not_warm_in_time_is_stopped_then_killed_then_given_up():
    attempt = began("a", "b")
    told(attempt, Issuing("a", 2, 2))
    assert attempt.handle(DeadlinePassed(100)) == [Stop("b")]
    assert attempt.outcomes["b"].stopped == "it was not warm within 100 s"
    assert attempt.deadline == 100 + STOP_GRACE_S
    assert attempt.handle(DeadlinePassed(attempt.deadline)) == [Kill("b")]
    assert attempt.handle(Exited("b", 106, -9)) == [Begin("a")]
    assert attempt.deadline is None


def test_a_process_that_the_kernel_holds_does_not_hold_the_profile():
    attempt = began("a")
    told(attempt, StopRequested(1, "SIGINT"), DeadlinePassed(1 + STOP_GRACE_S))
    assert attempt.deadline is not None
    attempt.handle(DeadlinePassed(attempt.deadline))
    assert attempt.over
    assert attempt.alive == ["a"]


def test_a_stall_ends_one_cell_and_a_signal_ends_all():
    attempt = began("a", "b")
    told(attempt, Issuing("a", 1, 1), Issuing("b", 1, 1))
    assert attempt.handle(Stalled("a", 70, 9.0)) == [Stop("a")]
    assert attempt.outcomes["a"].stopped == "it completed nothing for 61 s"
    assert attempt.handle(StopRequested(71, "SIGTERM")) == [Stop("b")]
    assert attempt.handle(StopRequested(72, "SIGINT")) == []
    assert attempt.stop_reason == "SIGTERM"


EVENTS = ("ready", "issuing", "finished", "failed", "exited", "stalled")


@given(
    st.lists(st.tuples(st.sampled_from((*EVENTS, "stop", "deadline")), st.sampled_from("abc")), max_size=25)
)
def test_whatever_happens_it_acts_on_the_living_and_comes_to_an_end(happened: list[tuple[str, str]]):
    attempt, now = began("a", "b", "c"), 0.0
    begun: list[str] = []
    for what, name in [*happened, *[("deadline", "")] * 12]:
        if attempt.over:
            break

        now = max(now + 1, attempt.deadline or 0) if what == "deadline" else now + 1
        if what in EVENTS and name not in attempt.alive:
            continue  # nothing is heard of the dead

        if what == "deadline" and attempt.deadline is None:
            what, name = "exited", attempt.alive[0]  # measuring ends by itself

        for action in attempt.handle(_event(what, name, now)):
            assert action.name in attempt.alive
            if isinstance(action, Begin):
                begun.append(action.name)

    assert attempt.over
    assert len(begun) == len(set(begun))


def _event(what: str, name: str, at: float) -> Event:
    found: dict[str, Event] = {
        "ready": Ready(name, at),
        "issuing": Issuing(name, at, at),
        "finished": Finished(name, at),
        "failed": Failed(name, at, "memory", "too little"),
        "exited": Exited(name, at, 0),
        "stalled": Stalled(name, at, 0.0),
        "stop": StopRequested(at, "SIGINT"),
        "deadline": DeadlinePassed(at),
    }
    return found[what]


def test_a_grid_asks_each_load_once():
    loads = Grid(concurrency=(1, 8), arrival_rates_per_s=(2.5,), seconds=3, seed=7).loads
    assert [(load.concurrency, load.arrival_rate_per_s) for load in loads] == [
        (1, None),
        (8, None),
        (None, 2.5),
    ]
    assert {(load.seconds, load.seed) for load in loads} == {(3, 7)}


@pytest.mark.parametrize("together", [False, True])
def test_names_are_unique(together: bool):
    grid = Grid(
        batch_sizes=(1, 2), sequence_lengths=(16, 32), concurrency=(1, 2), arrival_rates_per_s=(1, 10)
    )
    workloads = [on_slices("null"), on_slices("minilm")]
    found = list(steps(workloads, grid, together=together, takes_lengths=LENGTHS))
    cells = [name for step in found for name in step.names]
    assert len(cells) == len(set(cells))
    assert len({step.key for step in found}) == len(found)
