"""Layouts applied and undone on fake GPUs that refuse as the driver does: the target or the former, never between."""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

import pynvml
import pytest

from scheduler import checkpoint, layout, layout_files, mig, mig_plan, nvml
from scheduler.checkpoint import Shelf
from scheduler.errors import (
    DevicesInUse,
    HeteroMigError,
    LayoutBetween,
    LayoutLeft,
    LayoutsLocked,
    LayoutUnchanged,
    NotSupported,
    SpecError,
)
from scheduler.geometry import GpuMig, layout_of, state_of
from scheduler.layout import GpuTarget
from scheduler.mig import Patience
from scheduler.mig_changes import Change, changes, changes_to
from scheduler.nvml_mig import NvmlMig
from scheduler.placement import possible
from tests.boards import A30, A100_40, A100_80, H100, H200, T4, Board, of_table
from tests.fake_library import loaded
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance

AT_ONCE = Patience(tries=3, every_s=0.0)
TWO_3G = FakeGpu(board=A100_80, mig=True, instances=(Instance("3g.40gb", 0), Instance("3g.40gb", 4)))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "state")


@contextmanager
def opened(fake: FakeGpus) -> Iterator[NvmlMig]:
    with nvml.open(fake) as library:
        yield NvmlMig(library)


def wanted(driver: NvmlMig, text: str, gpu: int = 0) -> list[Change]:
    gpus = driver.gpus()
    targets = mig_plan.targets(text, gpus, [gpus[gpu]])
    return changes(gpus, targets, mig.busy_devices(driver, gpus), text)


def devices(driver: NvmlMig, gpu: int = 0) -> str:
    return layout.text_of(mig_plan.devices_of(driver.gpus()[gpu]))


def uuids(gpu: GpuMig) -> list[str]:
    return [each.uuid for instance in gpu.instances for each in instance.compute if each.uuid]


# ---------------------------------------------------------------------- the smallest change


def test_a_process_on_what_stays_lives_on(shelf: Shelf):
    """2×3g to 3g + 2g + 1g: only the idle 3g goes; whoever runs on the other one is not disturbed."""
    fake = FakeGpus(TWO_3G)
    with opened(fake) as driver:
        second = uuids(driver.gpus()[0])[1]
        fake.run(second, os.getpid())
        mig.apply(driver, wanted(driver, "3g.40gb,2g.20gb,1g.10gb"), shelf, "test", patience=AT_ONCE)
        assert devices(driver) == "3g.40gb,2g.20gb,1g.10gb"
        assert second in uuids(driver.gpus()[0])
        assert [each.pid for each in driver.processes(second)] == [os.getpid()]
        assert fake.changes.count("nvmlGpuInstanceDestroy") == 1
        assert fake.changes.count("nvmlComputeInstanceDestroy") == 1


def test_applying_what_is_there_changes_nothing(shelf: Shelf):
    fake = FakeGpus(TWO_3G)
    with opened(fake) as driver:
        mig.apply(driver, wanted(driver, "3g.40gb*2"), shelf, "test", patience=AT_ONCE)

    assert fake.changes == []


def test_what_is_in_use_is_named_before_anything_changes(shelf: Shelf):
    fake = FakeGpus(TWO_3G)
    with opened(fake) as driver:
        for uuid in uuids(driver.gpus()[0]):
            fake.run(uuid, os.getpid())

        with pytest.raises(DevicesInUse, match=rf"(?s)pid {os.getpid()}.*nothing was changed"):
            mig.apply(driver, wanted(driver, "7g.80gb"), shelf, "test", patience=AT_ONCE)

    assert fake.changes == []
    assert shelf.waiting() is None


def test_a_process_that_lets_go_is_waited_for(shelf: Shelf):
    """It is no longer listed, and the driver still answers IN_USE for a moment."""
    fake = FakeGpus(TWO_3G)
    asked = {"nvmlComputeInstanceDestroy": 2}

    def lingering(name: str) -> int | None:
        if asked.get(name, 0) > 0:
            asked[name] -= 1
            return int(pynvml.NVML_ERROR_IN_USE)

        return None

    fake.failing = lingering
    with opened(fake) as driver:
        mig.apply(driver, wanted(driver, "7g.80gb"), shelf, "test", patience=AT_ONCE)
        assert devices(driver) == "7g.80gb"


def test_a_mode_that_waits_for_a_reset_is_taken_back(shelf: Shelf):
    """Ampere: enabling does not take effect, so the layout cannot be had now, and nothing is left pending."""
    fake = FakeGpus(FakeGpu(board=A100_80))
    with opened(fake) as driver:
        with pytest.raises(LayoutUnchanged, match="after a reset"):
            mig.apply(driver, wanted(driver, "3g.40gb*2"), shelf, "test", patience=AT_ONCE)

        gpu = driver.gpus()[0]
        assert (gpu.enabled, gpu.pending) == (False, False)


def test_hopper_gets_mode_and_instances_in_one_go(shelf: Shelf):
    fake = FakeGpus(FakeGpu(board=H200))
    with opened(fake) as driver:
        mig.apply(driver, wanted(driver, "h200-141gb#balanced"), shelf, "test", patience=AT_ONCE)
        assert devices(driver) == "3g.71gb,2g.35gb,1g.18gb*2"
        mig.apply(driver, wanted(driver, "h200-141gb#all-disabled"), shelf, "test", patience=AT_ONCE)
        assert not driver.gpus()[0].enabled


def test_a_gpu_without_mig_cannot_have_a_layout():
    with opened(FakeGpus(FakeGpu(board=T4), FakeGpu(board=H200))) as driver:
        gpus = driver.gpus()
        with pytest.raises(NotSupported, match="knows no MIG"):
            changes(gpus, {gpus[0].uuid: GpuTarget(mig_enabled=True, devices={"1g.5gb": 1})}, (), "test")


def test_no_room_says_why_and_what_else(shelf: Shelf):
    with opened(FakeGpus(TWO_3G)) as driver, pytest.raises(SpecError) as caught:
        wanted(driver, "4g.40gb*2")

    assert "8 compute slices, the GPU has 7" in caught.value.found
    assert "4g.40gb,3g.40gb" in caught.value.do


def test_a_plain_user_is_refused_and_nothing_changes(shelf: Shelf):
    fake = FakeGpus(TWO_3G, may_change=False)
    with opened(fake) as driver:
        before = layout_of(driver.gpus()[0].instances)
        with pytest.raises(LayoutUnchanged, match=r"NO_PERMISSION.*nothing was changed"):
            mig.apply(driver, wanted(driver, "7g.80gb"), shelf, "test", patience=AT_ONCE)

        assert layout_of(driver.gpus()[0].instances) == before


# ---------------------------------------------------------------------- all or nothing


@pytest.mark.parametrize(("face", "step"), [("module", 11), ("library", 67)])
def test_a_failure_at_any_call_leaves_the_target_or_what_was_there(face: str, step: int, tmp_path: Path):
    """One call of an apply fails, reads too: every eleventh of them in turn, or by a slower way every 67th."""
    total = _calls_of_an_apply(tmp_path)
    outcomes = set()
    for n in range(1, total + 1, step):
        fake = FakeGpus(
            FakeGpu(
                board=A100_80, mig=True, instances=(Instance("3g.40gb", 0, (2, 1)), Instance("1g.10gb+me", 6))
            ),
            fail_call=(n, pynvml.NVML_ERROR_UNKNOWN),
        )
        if face == "library":
            with loaded(fake) as library, nvml.open(library) as real:
                outcomes.add(_either(NvmlMig(real), Shelf(tmp_path / f"{face}{n}")))
        else:
            try:
                with opened(fake) as driver:
                    outcomes.add(_either(driver, Shelf(tmp_path / f"{face}{n}")))
            except HeteroMigError:
                outcomes.add("never began")  # the failing call was one of the reads before

    assert "former" in outcomes
    assert outcomes <= {"target", "former", "never began"}


def _calls_of_an_apply(folder: Path) -> int:
    fake = FakeGpus(
        FakeGpu(
            board=A100_80, mig=True, instances=(Instance("3g.40gb", 0, (2, 1)), Instance("1g.10gb+me", 6))
        )
    )
    with opened(fake) as driver:
        mig.apply(
            driver, wanted(driver, "4g.40gb,1g.20gb,1g.10gb*2"), Shelf(folder), "test", patience=AT_ONCE
        )
        return len(fake.calls)


def _either(driver: NvmlMig, shelf: Shelf) -> str:
    try:
        asked = wanted(driver, "4g.40gb,1g.20gb,1g.10gb*2")
    except HeteroMigError:
        return "never began"

    before = state_of(asked[0].gpu)
    try:
        mig.apply(driver, asked, shelf, "test", patience=AT_ONCE)
    except LayoutUnchanged:
        assert state_of(driver.gpus()[0]) == before
        assert shelf.waiting() is None
        return "former"

    assert devices(driver) == "4g.40gb,1g.20gb,1g.10gb*2"
    return "target"


ERRORS = (
    pynvml.NVML_ERROR_UNKNOWN,
    pynvml.NVML_ERROR_INSUFFICIENT_RESOURCES,
    pynvml.NVML_ERROR_IN_USE,
    pynvml.NVML_ERROR_NO_PERMISSION,
    pynvml.NVML_ERROR_TIMEOUT,
)
CHANGING = (
    "nvmlDeviceCreateGpuInstanceWithPlacement",
    "nvmlGpuInstanceCreateComputeInstanceWithPlacement",
    "nvmlGpuInstanceDestroy",
    "nvmlComputeInstanceDestroy",
    "nvmlDeviceSetMigMode",
    "nvmlGpuInstanceGetInfo",
)


@pytest.mark.parametrize("board", [A100_40, H100, A30], ids=lambda board: board.name)
def test_random_sequences_with_random_failures_never_end_in_between(board: Board, tmp_path: Path):
    """170 sequences a board, of applies, destroys and restores on two GPUs at once, any of which may fail; failures
    come singly or, more rarely, two in a row: the way back bears as many."""
    failed = succeeded = 0
    for seed in range(170):
        chance = Random(seed)
        fake = FakeGpus(
            FakeGpu(board=board, mig=True), FakeGpu(board=board, mig=True), fresh_uuids=chance.random() < 0.5
        )
        shelf = Shelf(tmp_path / str(seed))
        with opened(fake) as driver:
            kept = checkpoint.take(driver.gpus(), "the beginning")
            for _ in range(4):
                asked = _random_change(chance, driver, kept)
                before = {gpu.uuid: state_of(gpu) for gpu in driver.gpus()}
                target = before | {change.gpu.uuid: change.to for change in asked}
                _arm(fake, chance)
                try:
                    mig.apply(driver, asked, shelf, "test", patience=Patience(1, 0.0))
                except (LayoutUnchanged, DevicesInUse):
                    expected = before
                    failed += 1
                else:
                    expected = target
                    succeeded += 1

                fake.failing = None
                assert {gpu.uuid: state_of(gpu) for gpu in driver.gpus()} == expected, seed
                assert shelf.waiting() is None
                if chance.random() < 0.2:
                    kept = checkpoint.take(driver.gpus(), "a later moment")

    assert failed > 50
    assert succeeded > 200


def _random_change(chance: Random, driver: NvmlMig, kept: checkpoint.Checkpoint) -> list[Change]:
    gpus = driver.gpus()
    what = chance.choice(["apply", "apply", "apply", "destroy", "restore"])
    if what == "restore":
        return changes_to(gpus, kept.states(), "restore")

    if what == "destroy":
        instances = [f"gpu{gpu.index}:gi{each.id}" for gpu in gpus for each in gpu.instances]
        words = chance.sample(instances, min(len(instances), 2))
        return changes_to(gpus, mig_plan.without(gpus, words), "destroy")

    targets = {}
    for gpu in gpus:
        assert gpu.geometry is not None
        names = chance.choice(sorted(possible(gpu.geometry)))
        wanted_devices = {name: names.count(name) for name in names}
        targets[gpu.uuid] = GpuTarget(mig_enabled=True, devices=wanted_devices)

    return changes(gpus, targets, (), "apply")


def _arm(fake: FakeGpus, chance: Random) -> None:
    """Some changing call to come fails, perhaps the next one too."""
    if chance.random() < 0.4:
        return

    countdown, times = chance.randrange(1, 12), chance.choice([1, 1, 1, 2])
    code = chance.choice(ERRORS)

    def failing(name: str) -> int | None:
        nonlocal countdown, times
        if name not in CHANGING:
            return None

        countdown -= 1
        if countdown <= 0 < times:
            times -= 1
            return int(code)

        return None

    fake.failing = failing


def test_when_the_way_back_fails_too_it_waits_on_the_shelf(shelf: Shelf):
    """The driver stops creating for good: the error says so, and a later restore puts everything back."""
    fake = FakeGpus(TWO_3G)
    fake.failing = lambda name: (
        int(pynvml.NVML_ERROR_UNKNOWN) if name.startswith("nvmlDeviceCreateGpu") else None
    )
    with opened(fake) as driver:
        before = state_of(driver.gpus()[0])
        with pytest.raises(LayoutBetween, match="neither the one asked for nor the one before"):
            mig.apply(driver, wanted(driver, "7g.80gb"), shelf, "test", patience=AT_ONCE)

        fake.failing = None
        with pytest.raises(LayoutLeft):
            mig.apply(driver, wanted(driver, "1g.10gb"), shelf, "another", patience=AT_ONCE)

        kept = shelf.waiting()
        assert kept is not None
        back = changes_to(driver.gpus(), kept.states(), "restore")
        mig.restore(driver, back, shelf, "restore", patience=AT_ONCE)
        assert state_of(driver.gpus()[0]) == before
        assert shelf.waiting() is None


# ---------------------------------------------------------------------- shipped layouts


BOARDS = {"a100-40gb": A100_40, "a100-80gb": A100_80, "a30": A30, "h100-80gb": H100, "h200-141gb": H200}
SHIPPED = [
    (BOARDS.get(file) or of_table(file), file, label)
    for file in layout_files.shipped_names()
    for label in layout_files.read(layout_files.shipped(file) or "", file).configs
]


@pytest.mark.parametrize(
    ("board", "file", "label"), SHIPPED, ids=lambda value: str(getattr(value, "name", value))
)
def test_apply_export_assert_is_the_identity(
    board: Board, file: str, label: str, shelf: Shelf, tmp_path: Path
):
    fake = FakeGpus(
        FakeGpu(board=board, mig=label != "all-disabled"), FakeGpu(board=board, mig=label != "all-disabled")
    )
    asked = f"{file}#{label}"
    with opened(fake) as driver:
        gpus = driver.gpus()
        targets = mig_plan.targets(asked, gpus, gpus)
        assert len(targets) == 2
        mig.apply(driver, changes(gpus, targets, (), asked), shelf, asked, patience=AT_ONCE)

        exported = tmp_path / "out.yaml"
        exported.write_text(layout_files.write(mig_plan.exported(driver.gpus(), "current").configs))
        again = mig_plan.targets(f"{exported}#current", driver.gpus(), driver.gpus())
        assert mig_plan.differences(driver.gpus(), targets) == []
        assert mig_plan.differences(driver.gpus(), again) == []
        assert all(change.is_none for change in changes(driver.gpus(), again, (), "again"))


def test_every_shipped_layout_of_every_model_has_room():
    from scheduler import gpu_tables

    checked = 0
    for file in layout_files.shipped_names():
        for label, entries in layout_files.read(layout_files.shipped(file) or "", file).configs.items():
            for entry in entries:
                if entry.mig_enabled:
                    found = mig_plan.plan(gpu_tables.named(file), entry.mig_devices or {})
                    assert found.why_not == "", f"{file}#{label}"
                    assert found.instances
                    checked += 1

    assert checked > 100


# ---------------------------------------------------------------------- for the time of a run


def test_inside_it_is_applied_and_afterwards_it_is_as_before(shelf: Shelf):
    fake = FakeGpus(TWO_3G)
    with opened(fake) as driver:
        before = state_of(driver.gpus()[0])
        with mig.applied(driver, wanted(driver, "7g.80gb"), shelf, "a run", patience=AT_ONCE):
            assert devices(driver) == "7g.80gb"
            assert shelf.waiting() is None  # its owner lives
            assert json.loads(shelf.path.read_text())["gpus"][0]["instances"]

        assert state_of(driver.gpus()[0]) == before
        assert shelf.waiting() is None


def test_an_error_inside_undoes_it_too(shelf: Shelf):
    with opened(FakeGpus(TWO_3G)) as driver:
        before = state_of(driver.gpus()[0])
        with (
            pytest.raises(ZeroDivisionError),
            mig.applied(driver, wanted(driver, "7g.80gb"), shelf, "a run", patience=AT_ONCE),
        ):
            raise ZeroDivisionError

        assert state_of(driver.gpus()[0]) == before


def test_a_stop_signal_during_a_change_waits_until_it_is_whole(shelf: Shelf):
    """SIGINT arrives at the first create: the change goes on to its end, then the signal is heard."""
    fake = FakeGpus(TWO_3G)

    def interrupting(name: str) -> None:
        if name == "nvmlDeviceCreateGpuInstanceWithPlacement":
            os.kill(os.getpid(), signal.SIGINT)

    fake.failing = interrupting
    with opened(fake) as driver:
        asked = wanted(driver, "2g.20gb*3")
        with pytest.raises(KeyboardInterrupt):
            mig.apply(driver, asked, shelf, "test", patience=AT_ONCE)

        assert devices(driver) == "2g.20gb*3"
        assert shelf.waiting() is None


def test_only_one_process_changes_layouts(shelf: Shelf):
    with opened(FakeGpus(TWO_3G)) as driver, shelf.locked("the first"), pytest.raises(LayoutsLocked):
        mig.apply(driver, wanted(driver, "7g.80gb"), shelf, "the second", patience=AT_ONCE)


def test_what_a_killed_process_left_is_there_for_the_next(shelf: Shelf):
    """A child applies a layout for a run and is killed inside: the lock is free, what was there waits."""
    fake = FakeGpus(TWO_3G)
    with opened(fake) as driver:
        before = state_of(driver.gpus()[0])
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            with mig.applied(driver, wanted(driver, "7g.80gb"), shelf, "a run", patience=AT_ONCE):
                os.write(write_end, b"inside")
                signal.pause()

        os.close(write_end)
        assert os.read(read_end, 6) == b"inside"
        os.close(read_end)
        assert shelf.waiting() is None  # it lives
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

        kept = shelf.waiting()
        assert kept is not None
        assert kept.states() == {driver.gpus()[0].uuid: before}
        assert kept.reason == "a run"
