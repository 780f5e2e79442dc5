"""``hetero-mig mig …`` and ``--layout`` from the command line, on fake GPUs whose state outlives the program."""

import json
import os
import signal
from pathlib import Path

import pytest
import yaml

from scheduler import capabilities
from tests.cli.machine import Machine
from tests.cli.program import QUICK, call, wait_until

TWO_3G = [("3g.71gb", 0), ("3g.71gb", 4)]
ON_CPU = ("--slices", "cpu:2", "--main", "null", "--background", "fixed", *QUICK)
"""Where no GPU could compute, a run's slices are CPU cores; the layout is made and undone all the same."""
LONG = (*ON_CPU, "--main-scenario", "SingleStream", "--main-duration", "60s", "--target-qps", "10")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path, ("H200", TWO_3G))


def test_status_shows_modes_instances_uuids_and_rights(machine: Machine):
    done = machine.call("mig", "status")
    assert done.returncode == 0, done.stderr
    for part in (
        "NVIDIA H200",
        "MIG enabled",
        "gpu0:gi1:ci0",
        "3g.71gb",
        "MIG-GPU-",
        "1 wasted",
        "this user may",
    ):
        assert part in done.stdout

    told = json.loads(machine.call("mig", "status", "--json").stdout)
    [gpu] = told["gpus"]
    assert gpu["mig_mode"] == {"current": True, "pending": True, "waits": None}
    assert [each["profile"] for each in gpu["gpu_instances"]] == ["3g.71gb", "3g.71gb"]
    assert gpu["gpu_instances"][1]["placement"] == {"start": 4, "size": 4}
    assert gpu["room"]["wasted_compute_slices"] == 1
    assert set(told["rights"]) == {"config", "monitor", "mode"}


def test_profiles_show_what_is_free_on_the_gpu_that_is_named(tmp_path: Path):
    two = Machine(tmp_path, ("H200", []), ("H200", TWO_3G))
    done = two.call("mig", "profiles", "--gpu", "1", "--json")
    assert done.returncode == 0, done.stderr
    [gpu] = json.loads(done.stdout)["gpus"]
    assert (gpu["index"], gpu["free"]["9"], len(gpu["gpu_instances"])) == (1, 0, 2)
    text = two.call("mig", "profiles").stdout
    assert "2/2 0/2" in text
    assert "1c.3g.71gb" in text
    assert json.loads(two.call("mig", "profiles", "--gpu", "A30", "--json").stdout)["gpus"] == []


def test_apply_assert_export_and_destroy(machine: Machine, tmp_path: Path):
    dry = machine.call("mig", "apply", "3g.71gb,2g.35gb,1g.18gb", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "stays    GPU instance 3g.71gb at memory slice 0" in dry.stdout
    assert machine.layout() == TWO_3G

    done = machine.call("mig", "apply", "3g.71gb,2g.35gb,1g.18gb")
    assert done.returncode == 0, done.stderr
    assert machine.layout() == [("3g.71gb", 0), ("2g.35gb", 4), ("1g.18gb", 6)]
    assert machine.call("mig", "assert", "9,14,19").returncode == 0
    differing = machine.call("mig", "assert", "9,14,19,19")
    assert (differing.returncode, differing.stdout) == (1, "GPU 0: missing 1g.18gb\n")
    assert machine.call("mig", "assert", "9,14").stdout == "GPU 0: too many 1g.18gb\n"
    assert machine.call("mig", "assert", "7g.141gb", "--mode-only").returncode == 0
    assert machine.call("mig", "assert", "h200-141gb#all-disabled", "--mode-only").returncode == 1

    exported = tmp_path / "layout.yaml"
    assert machine.call("mig", "export", "--label", "mine", "-o", str(exported)).returncode == 0
    assert yaml.safe_load(exported.read_text())["mig-configs"]["mine"] == [
        {"devices": "all", "mig-enabled": True, "mig-devices": {"3g.71gb": 1, "2g.35gb": 1, "1g.18gb": 1}}
    ]
    assert machine.call("mig", "assert", f"{exported}#mine").returncode == 0

    assert machine.call("mig", "destroy", "gpu0:gi1").returncode == 0
    assert machine.layout() == [("2g.35gb", 4), ("1g.18gb", 6)]
    assert machine.call("mig", "destroy", "--all").returncode == 0
    assert machine.layout() == []


def test_an_apply_goes_on_when_nobody_reads_what_it_tells(machine: Machine):
    """``mig apply LAYOUT |& head -1``"""
    read_end, write_end = os.pipe()
    os.close(read_end)
    program = machine.start("mig", "apply", "7g.141gb", stderr=write_end)
    os.close(write_end)
    assert program.wait(30) == 0
    assert machine.layout() == [("7g.141gb", 0)]


def test_a_gpu_instance_that_nothing_can_run_on_is_told_by_assert_and_export(machine: Machine):
    assert machine.call("mig", "destroy", "gpu0:gi1:ci0").returncode == 0
    assert machine.layout() == TWO_3G
    done = machine.call("mig", "assert", "3g.71gb")
    assert (done.returncode, done.stdout) == (1, "GPU 0: without a compute instance: gpu0:gi1\n")
    exported = machine.call("mig", "export")
    assert yaml.safe_load(exported.stdout)["mig-configs"]["current"][0]["mig-devices"] == {"3g.71gb": 1}
    assert exported.stderr == "left out, GPU 0: without a compute instance: gpu0:gi1\n"


def test_checkpoint_and_restore(machine: Machine, tmp_path: Path):
    kept = str(tmp_path / "kept.json")
    assert machine.call("mig", "checkpoint", kept).returncode == 0
    assert machine.call("mig", "apply", "h200-141gb#all-1g").returncode == 0
    assert len(machine.layout()) == 7
    assert machine.call("mig", "restore", kept).returncode == 0
    assert machine.layout() == TWO_3G
    assert "nothing waits" in machine.call("mig", "restore").stdout

    elsewhere = Path(kept).read_text().replace("GPU-", "GPU-0")
    Path(kept).write_text(elsewhere)
    done = machine.call("mig", "restore", kept)
    assert done.returncode == 2
    assert "is not on this machine" in done.stderr


may_switch = pytest.mark.skipif(
    capabilities.read().mode.allowed is False,
    reason="this machine has a driver, and this user may not switch MIG's mode: that is told before anything else",
)
"""The rights and the holders are this machine's own, also where the GPUs are fake."""


@may_switch
def test_enable_and_disable_on_hopper(tmp_path: Path):
    machine = Machine(tmp_path, ("H200", None))
    done = machine.call("mig", "enable")
    assert done.returncode == 0, done.stderr
    assert machine.mig()
    assert "no instance" in done.stderr
    assert "already" in machine.call("mig", "enable").stderr
    assert machine.call("mig", "disable").returncode == 0
    assert not machine.mig()


@may_switch
def test_disabling_with_instances_is_refused_before_it_is_tried(machine: Machine):
    done = machine.call("mig", "disable")
    assert done.returncode == 3
    assert "hetero-mig mig destroy" in done.stderr
    assert machine.mig()
    assert machine.layout() == TWO_3G


@may_switch
def test_enabling_on_ampere_says_that_it_waits(tmp_path: Path):
    done = Machine(tmp_path, ("A100_80", None)).call("mig", "enable")
    assert done.returncode == 3
    assert "will be enabled after a reset" in done.stderr
    assert "--reset" in done.stderr


def test_env_prints_lines_that_name_the_slice(machine: Machine):
    uuid = json.loads(machine.call("slices", "--json").stdout)[0]["uuid"]
    assert machine.call("mig", "env", "gpu0:gi1:ci0").stdout == f"export CUDA_VISIBLE_DEVICES={uuid}\n"
    assert f"device={uuid}" in machine.call("mig", "env", uuid, "--docker").stdout
    pod = yaml.safe_load(machine.call("mig", "env", uuid, "--k8s").stdout)
    assert pod["spec"]["containers"][0]["resources"]["limits"] == {"nvidia.com/mig-3g.71gb": 1}
    wrong = machine.call("mig", "env", "gpu7")
    assert wrong.returncode == 2
    assert "gpu0:gi1:ci0" in wrong.stderr


@pytest.mark.parametrize("command", ["status", "profiles"])
def test_a_terminal_that_knows_ascii_alone_is_shown_all(command: str, machine: Machine):
    done = machine.call("mig", command, environ={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert "3g.71gb" in done.stdout
    assert done.stdout.isascii()


def test_a_machine_without_mig_is_not_said_to_be_switched(tmp_path: Path):
    old = Machine(tmp_path, ("T4", None))
    for arguments in (("enable",), ("profiles", "--gpu", "0")):
        done = old.call("mig", *arguments)
        assert done.returncode in (2, 3)
        assert "GPU 0 (Tesla T4) knows no MIG" in done.stderr


# ---------------------------------------------------------------------- without a GPU


def test_plan_needs_no_gpu():
    done = call("mig", "plan", "3g.71gb,2g.35gb,1g.18gb*2", "--gpu", "H200", "--json")
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert plan["possible"]
    assert [(each["profile"], each["placement"]["start"]) for each in plan["instances"]] == [
        ("3g.71gb", 4),
        ("2g.35gb", 2),
        ("1g.18gb", 1),
        ("1g.18gb", 0),
    ]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        ("4g.40gb*2", "8 compute slices, the GPU has 7"),
        ("1g.10gb+me*2", "asked for twice, the GPU takes it once"),
        ("3g.40gb*2,1g.10gb*2", "8 compute slices"),
    ],
)
def test_what_cannot_be_had_exits_1_with_the_reason_and_the_nearest(asked: str, reason: str):
    done = call("mig", "plan", asked, "--gpu", "A100-80GB")
    assert done.returncode == 1
    assert reason in done.stdout
    assert "nearest: " in done.stdout


@pytest.mark.parametrize("order", ["9,19,14,19", "19,19,14,9"])
def test_the_documented_sequences_have_room(order: str):
    assert call("mig", "plan", order, "--gpu", "A100-80GB").returncode == 0


def test_shipped_layouts_can_be_planned_by_name(tmp_path: Path):
    assert "3g.20gb" in Machine(tmp_path).call("mig", "plan", "a100-40gb#balanced").stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("plan", "3g.71gb", "--gpu", "A100-80GB"), "3g.40gb"),
        (("plan", "3g.71gb", "--gpu", "A100"), "A100-40GB, A100-80GB"),
        (("plan", "nowhere.yaml#x", "--gpu", "A30"), "nowhere.yaml"),
        (("plan", "a30#nothing", "--gpu", "A30"), "its labels:"),
        (("plan", "1g.6gb*0", "--gpu", "A30"), "1g.6gb"),
        (("profiles", "--gpu", "Voodoo"), "known:"),
        (("destroy",), "--all"),
    ],
)
def test_bad_input_gets_one_message_and_exit_2(arguments: tuple[str, ...], part: str):
    done = call("mig", *arguments)
    assert done.returncode == 2, done.stdout
    assert part in done.stderr
    assert "Traceback" not in done.stderr


# ---------------------------------------------------------------------- for the time of a run


def test_a_run_has_its_layout_and_leaves_the_former(machine: Machine, tmp_path: Path):
    done = machine.call(*ON_CPU, "--layout", "h200-141gb#balanced", "--output", str(tmp_path / "run"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "VALID" in done.stdout
    assert "layout h200-141gb#balanced: made for this run" in done.stdout
    assert "create MIG device 2g.35gb" in done.stderr
    assert "what was there before the run is there again" in done.stderr
    assert machine.layout() == TWO_3G


def test_a_dry_run_shows_the_layout_and_changes_nothing(machine: Machine):
    done = machine.call(
        "--main",
        "null",
        "--background",
        "fixed",
        "--layout",
        "3g.71gb,2g.35gb",
        "--main-slice",
        "2g.35gb",
        "--dry-run",
    )
    assert done.returncode == 0, done.stderr
    assert "create   MIG device 2g.35gb" in done.stdout
    assert "gpu0:2g.35gb@" in done.stdout
    assert machine.layout() == TWO_3G


def test_a_run_that_cannot_start_leaves_the_former_layout(machine: Machine, tmp_path: Path):
    """There is no CUDA on these fake slices: the workers say so, and the layout is undone."""
    done = machine.call(
        "--main",
        "null",
        "--background",
        "none",
        *QUICK,
        "--layout",
        "7g.141gb",
        "--output",
        str(tmp_path / "run"),
    )
    assert done.returncode == 3, done.stdout + done.stderr
    assert "CUDA" in done.stdout
    assert machine.layout() == TWO_3G


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_undoes_the_layout(stop: signal.Signals, machine: Machine, tmp_path: Path):
    folder = tmp_path / "run"
    program = machine.start(*LONG, "--layout", "7g.141gb", "--output", str(folder))
    wait_until(program, folder, "Issuing", "main")
    assert machine.layout() == [("7g.141gb", 0)]
    program.send_signal(stop)
    assert program.wait(30) == 128 + stop
    assert machine.layout() == TWO_3G


def test_what_a_killed_launcher_left_is_offered_and_restored(machine: Machine, tmp_path: Path):
    folder = tmp_path / "run"
    program = machine.start(*LONG, "--layout", "7g.141gb", "--output", str(folder))
    wait_until(program, folder, "Issuing", "main")
    os.kill(program.pid, signal.SIGKILL)
    program.wait(30)
    assert machine.layout() == [("7g.141gb", 0)]

    assert "hetero-mig mig restore" in machine.call("mig", "status").stderr
    another = machine.call(*ON_CPU, "--layout", "1g.18gb*7", "--output", str(tmp_path / "another"))
    assert another.returncode == 3
    assert "never restored" in another.stderr
    assert not (tmp_path / "another").exists()

    done = machine.call("mig", "restore")
    assert done.returncode == 0, done.stderr
    assert machine.layout() == TWO_3G
    assert "never restored" not in machine.call("mig", "status").stderr


def test_a_run_on_mig_devices_sees_what_was_restored_at_its_start(machine: Machine, tmp_path: Path):
    """The answer yes changes the MIG devices, so they are looked at afterwards."""
    kept, left = tmp_path / "kept.json", machine.state / "hetero-mig" / "before.json"
    assert machine.call("mig", "checkpoint", str(kept)).returncode == 0
    assert machine.call("mig", "apply", "7g.141gb").returncode == 0
    kept.rename(left)

    folder = tmp_path / "run"
    on_mig = ("--slices", "mig", "--main", "null", "--background", "none", *QUICK)
    _, told = machine.call_on_terminal("y\n", *on_mig, "--output", str(folder))
    assert machine.layout() == TWO_3G
    assert "3g.71gb" in (folder / "manifest.json").read_text()
    assert "7g.141gb" not in (folder / "manifest.json").read_text(), told


def test_a_layout_that_says_nothing_of_the_gpus_here_is_no_plan(machine: Machine):
    done = machine.call("mig", "plan", "h200-141gb#all-disabled")
    assert (done.returncode, done.stdout) == (2, "")
    assert "MIG is disabled there" in done.stderr
