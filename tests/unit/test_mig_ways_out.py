"""What ends a change of layouts and is not the driver: signals, faults, others at work; and what is not seen."""

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest

from scheduler import checkpoint, layout_files, mig, mig_plan, nvml
from scheduler.checkpoint import Shelf
from scheduler.errors import LayoutLeft, LayoutUnchanged, NoPermission
from scheduler.geometry import layout_of, state_of
from scheduler.mig import Patience
from scheduler.mig_changes import Change, changes, changes_to
from scheduler.nvml_mig import NvmlMig
from tests.boards import A100_80
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu, Instance

AT_ONCE = Patience(tries=3, every_s=0.0)
TWO_3G = FakeGpu(board=A100_80, mig=True, instances=(Instance("3g.40gb", 0), Instance("3g.40gb", 4)))
THREE_PARTS = FakeGpu(board=A100_80, mig=True, instances=(Instance("3g.40gb", 0, (1, 1, 1)),))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "state")


def wanted(driver: NvmlMig, text: str) -> list[Change]:
    gpus = driver.gpus()
    targets = mig_plan.targets(text, gpus, gpus)
    return changes(gpus, targets, mig.busy_devices(driver, gpus), text)


def at_first_create(what: Callable[[], None]) -> Callable[[str], None]:
    """For FakeGpus.failing: does it once, and lets every call through."""
    done: list[str] = []

    def failing(name: str) -> None:
        if name == "nvmlDeviceCreateGpuInstanceWithPlacement" and not done:
            done.append(name)
            what()

    return failing


def test_a_stop_signal_while_the_layout_of_a_run_is_made_undoes_it(shelf: Shelf):
    fake = FakeGpus(TWO_3G)
    fake.failing = at_first_create(lambda: os.kill(os.getpid(), signal.SIGINT))
    with nvml.open(fake) as library:
        driver = NvmlMig(library)
        before = state_of(driver.gpus()[0])
        asked = wanted(driver, "2g.20gb*3")
        with pytest.raises(KeyboardInterrupt), mig.applied(driver, asked, shelf, "a run", patience=AT_ONCE):
            pytest.fail("the signal waits no longer than until the layout is whole")

        assert state_of(driver.gpus()[0]) == before
        assert shelf.waiting() is None


def test_a_second_thread_does_not_hear_the_signal_before_its_time(shelf: Shelf):
    """The kernel gives a signal to any thread that does not block it; Python runs its handler in the main one."""
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    try:
        fake = FakeGpus(TWO_3G)
        fake.failing = at_first_create(lambda: os.kill(os.getpid(), signal.SIGINT))
        with nvml.open(fake) as library:
            driver = NvmlMig(library)
            asked = wanted(driver, "2g.20gb*3")
            with pytest.raises(KeyboardInterrupt):
                mig.apply(driver, asked, shelf, "test", patience=AT_ONCE)

            assert layout_of(driver.gpus()[0].instances) == asked[0].to.layout
            assert shelf.waiting() is None
    finally:
        ended.set()
        other.join()


def test_a_signal_that_ends_the_process_waits_until_nothing_waits_to_be_restored(shelf: Shelf):
    """SIGTERM has no handler in `mig apply`: it kills, but not before the change is whole and off the shelf."""
    fake = FakeGpus(TWO_3G)
    fake.failing = at_first_create(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with nvml.open(fake) as library:
        driver = NvmlMig(library)
        asked = wanted(driver, "2g.20gb*3")
        read_end, write_end = os.pipe()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            mig.apply(
                driver, asked, shelf, "test", lambda line: os.write(write_end, f"{line}\n".encode()) and None
            )
            os._exit(0)

        os.close(write_end)
        with os.fdopen(read_end) as told:
            last = told.read().splitlines()[-1]

        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        assert last.startswith("GPU 0: create MIG device 2g.20gb")
        assert not shelf.path.exists()


def test_a_fault_of_this_program_in_the_middle_leaves_what_was_there_on_the_shelf(shelf: Shelf):
    told: list[str] = []

    def faulty(line: str) -> None:
        told.append(line)
        if len(told) == 4:
            raise ZeroDivisionError

    with nvml.open(FakeGpus(TWO_3G)) as library:
        driver = NvmlMig(library)
        before = state_of(driver.gpus()[0])
        with pytest.raises(ZeroDivisionError):
            mig.apply(driver, wanted(driver, "7g.80gb"), shelf, "test", faulty, AT_ONCE)

        kept = shelf.waiting()
        assert kept is not None
        back = changes_to(driver.gpus(), kept.states(), "restore")
        mig.restore(driver, back, shelf, "restore", patience=AT_ONCE)
        assert state_of(driver.gpus()[0]) == before


def apply_for_a_run(*arguments: Any, **options: Any) -> None:
    with mig.applied(*arguments, **options):
        pytest.fail("it was applied")


@pytest.mark.parametrize("change", [mig.apply, mig.restore, apply_for_a_run])
def test_what_was_worked_out_before_another_changed_the_gpu_is_not_done(
    change: Callable[..., None], shelf: Shelf
):
    """Else a failure, or the end of a run, would bring back what the other one has done away with."""
    with nvml.open(FakeGpus(TWO_3G)) as library:
        driver = NvmlMig(library)
        late = wanted(driver, "7g.80gb")
        mig.apply(driver, wanted(driver, "1g.10gb*7"), shelf, "the other", patience=AT_ONCE)
        found = layout_of(driver.gpus()[0].instances)
        with pytest.raises(LayoutUnchanged, match=r"changed meanwhile.*3g\.40gb at 0.*1g\.10gb at 0"):
            change(driver, late, shelf, "late", patience=AT_ONCE)

        assert layout_of(driver.gpus()[0].instances) == found
        assert shelf.waiting() is None


# ---------------------------------------------------------------------- what this user may not see


def test_no_checkpoint_is_taken_of_instances_that_are_not_seen():
    """It would say that there are none, and a restore would destroy all."""
    with nvml.open(FakeGpus(TWO_3G, privileged=False)) as library:
        gpus = NvmlMig(library).gpus()
        with pytest.raises(NoPermission, match="a checkpoint of GPU 0"):
            checkpoint.take(gpus, "by hand")


def test_an_instance_that_is_not_seen_is_not_said_to_be_absent():
    with nvml.open(FakeGpus(TWO_3G, privileged=False)) as library:
        gpus = NvmlMig(library).gpus()
        with pytest.raises(NoPermission, match="the instance gpu0:gi1"):
            mig_plan.without(gpus, ["gpu0:gi1"])


def test_refused_compute_profiles_are_not_taken_for_empty_gpu_instances():
    refusing = {"nvmlGpuInstanceGetComputeInstanceProfileInfo": int(pynvml.NVML_ERROR_NO_PERMISSION)}
    with nvml.open(FakeGpus(TWO_3G, refusing=refusing)) as library:
        [gpu] = NvmlMig(library).gpus()

    assert gpu.instances == ()
    assert "NO_PERMISSION" in gpu.instances_error


def test_a_mig_device_whose_uuid_is_not_seen_goes_alone():
    """Not with its whole GPU instance."""
    with nvml.open(FakeGpus(THREE_PARTS)) as library:
        gpu = NvmlMig(library).gpus()[0]

    [instance] = gpu.instances
    unseen = tuple(replace(each, uuid=None, mig_index=None) for each in instance.compute)
    gpu = replace(gpu, instances=(replace(instance, compute=unseen),))
    left = mig_plan.without([gpu], [f"gpu0:gi{instance.id}:ci{unseen[1].id}"])
    [placed] = left[gpu.uuid].layout
    assert [each.start for each in placed.compute] == [0, 2]


def test_an_export_of_one_gpu_of_two_does_not_say_all():
    with nvml.open(FakeGpus(TWO_3G, TWO_3G)) as library:
        gpus = NvmlMig(library).gpus()

    one = mig_plan.exported(gpus, "one", gpus[1:])
    assert [each.devices for each in one.configs["one"]] == [(1,)]
    assert list(layout_files.for_gpus(one.configs["one"], gpus)) == [gpus[1].uuid]
    assert [each.devices for each in mig_plan.exported(gpus, "both").configs["both"]] == ["all"]


# ---------------------------------------------------------------------- where what was there is kept


def test_a_damaged_file_on_the_shelf_says_how_to_give_it_up(shelf: Shelf):
    shelf.folder.mkdir()
    shelf.path.write_text("{")
    with pytest.raises(LayoutLeft, match=r"(?s)cannot be read.*restore --discard"):
        shelf.waiting()


def test_a_user_without_a_home_has_nothing_waiting(monkeypatch: pytest.MonkeyPatch):
    def nobody(_uid: int) -> None:
        raise KeyError

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", nobody)
    shelf = Shelf(checkpoint.state_folder({}))
    assert shelf.waiting() is None
