"""Who holds a GPU, as a made-up /proc and a real process tell it."""

import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.holders import (
    Holder,
    Unit,
    describe,
    holders,
    how_to_stop,
    must_stop,
    unit_of,
)
from scheduler.host import INITIAL_PID_NAMESPACE, user_name

ID = "3f2a4b5c6d7e" + "0123456789ab" * 4 + "cdef"
GPU0, GPU1, CTL, UVM = "/dev/nvidia0", "/dev/nvidia1", "/dev/nvidiactl", "/dev/nvidia-uvm"
CAP = "/dev/nvidia-caps/nvidia-cap12"
SELF = 900


class Machine:
    """A made-up /proc: calling it adds a process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self(1, "/sbin/init")
        self(SELF, "hetero-mig mig enable", CTL, GPU0)
        (root / "proc/self").symlink_to(str(SELF))

    def __call__(self, pid: int, command: str, *files: str, uid: int = 0, cgroup: str = "0::/\n") -> Path:
        folder = self.root / "proc" / str(pid)
        (folder / "fd").mkdir(parents=True)
        (folder / "cmdline").write_text(command.replace(" ", "\0") + "\0")
        (folder / "comm").write_text(command.split()[0].rpartition("/")[2][:15] + "\n")
        (folder / "status").write_text(f"Name:\tx\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\n")
        (folder / "cgroup").write_text(cgroup)
        for number, file in enumerate(("/dev/null", "socket:[4242]", *files)):
            (folder / "fd" / str(number)).symlink_to(file)

        return folder

    def namespace(self, name: str) -> None:
        (self.root / f"proc/{SELF}/ns").mkdir()
        (self.root / f"proc/{SELF}/ns/pid").symlink_to(name)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_who_has_the_gpu_open_is_named(machine: Machine):
    machine(
        40, "/usr/bin/nv-hostengine -n", CTL, UVM, GPU0, GPU1, cgroup="0::/system.slice/nvidia-dcgm.service\n"
    )
    machine(50, "python train.py --lr 1", CTL, UVM, GPU0, GPU0, CAP, uid=54321)
    machine(60, "python other.py", CTL, UVM, GPU1)
    report = holders(0, machine.root)
    engine, training = report.holders
    assert (engine.pid, engine.user, engine.service) == (40, user_name(0), "nvidia-dcgm.service")
    assert engine.name == "nv-hostengine"
    assert (training.pid, training.user, training.command) == (50, "54321", "python train.py --lr 1")
    assert training.files == (UVM, CAP, GPU0, CTL) if UVM < CAP else training.files == (CAP, UVM, GPU0, CTL)
    assert (report.unreadable, report.blind_spots, report.driver_clients) == (0, (), ())
    assert [each.pid for each in holders(1, machine.root).holders] == [40, 60]


def test_gpu_1_is_not_gpu_10(machine: Machine):
    machine(40, "a", "/dev/nvidia10")
    assert holders(1, machine.root).holders == ()
    assert [each.pid for each in holders(10, machine.root).holders] == [40]


def test_the_driver_alone_is_a_hint_and_only_where_nobody_holds_the_gpu(machine: Machine):
    machine(40, "nvidia-smi daemon", CTL)
    machine(41, "python other.py", CTL, UVM, GPU1)
    machine(42, "bash")
    report = holders(0, machine.root)
    assert report.holders == ()
    assert [each.pid for each in report.driver_clients] == [40]
    machine(50, "python train.py", GPU0)
    assert holders(0, machine.root).driver_clients == ()


def test_a_file_that_was_removed_and_a_mapping_hold_as_well(machine: Machine):
    machine(40, "a", f"{GPU0} (deleted)")
    folder = machine(41, "b")
    (folder / "maps").write_text(
        "7f00-7f10 r-xp 00000000 08:01 99   /usr/lib/libc.so.6\n"
        f"7f20-7f30 rw-s 00000000 00:05 101  {GPU0}\n"
        "7ffc-7ffd rw-p 00000000 00:00 0    [stack]\n"
    )
    assert [each.pid for each in holders(0, machine.root).holders] == [40, 41]


def test_a_process_that_ends_meanwhile_is_left_out(machine: Machine):
    machine(40, "a", GPU0)
    (machine.root / "proc/41").mkdir()  # its folder was listed, its files are gone
    assert [each.pid for each in holders(0, machine.root).holders] == [40]


def test_a_process_without_command_line_is_called_by_its_name(machine: Machine):
    folder = machine(40, "Xorg", GPU0)
    (folder / "cmdline").write_text("")
    (holder,) = holders(0, machine.root).holders
    assert (holder.command, holder.name) == ("[Xorg]", "Xorg")


def test_hidden_processes_are_told(machine: Machine):
    machine.namespace(INITIAL_PID_NAMESPACE)
    assert holders(0, machine.root).blind_spots == ()
    (machine.root / f"proc/{SELF}/ns/pid").unlink()
    (machine.root / f"proc/{SELF}/ns").rmdir()
    machine.namespace("pid:[4026532281]")
    (spot,) = holders(0, machine.root).blind_spots
    assert "container" in spot


def test_hidepid_is_told(tmp_path: Path):
    (tmp_path / "proc").mkdir()
    (spot,) = holders(0, tmp_path).blind_spots
    assert "hidepid" in spot


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_processes_of_others_are_counted_where_they_may_not_be_seen():
    """Seen by a plain user of this machine, for whom this very process is one of another's."""
    code = (
        "import os; from scheduler.holders import holders\n"
        "os.setgroups([]); os.setgid(54321); os.setuid(54321)\n"
        "report = holders(0); print(report.unreadable, *report.blind_spots, sep='|')"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    number, spot, *_ = told.split("|")
    assert int(number) >= 1
    assert spot.startswith(number)
    assert "could not be looked into: of other users; run as root" in spot


@pytest.fixture
def child(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A real process that has opened a file and says so."""
    file = tmp_path / "device"
    file.write_bytes(bytes(mmap.PAGESIZE))
    code = "import sys; held = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(file)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process, file
        process.communicate()


def test_a_real_process_is_found_by_its_open_file(child: tuple[subprocess.Popen[str], Path]):
    process, file = child
    with file.open("rb"):  # this process holds it too, and is left out
        (holder,) = holders(0, device_file=str(file)).holders

    assert holder.pid == process.pid
    assert holder.user == user_name(os.geteuid())
    assert holder.name == Path(sys.executable).name
    assert str(file) in holder.command
    assert holder.files == (str(file),)


def test_a_real_process_is_not_found_once_it_has_ended(child: tuple[subprocess.Popen[str], Path]):
    process, file = child
    process.communicate()
    assert holders(0, device_file=str(file)).holders == ()


def test_nvmls_pids_are_described_in_their_order(machine: Machine):
    machine(40, "a", GPU0)
    machine(41, "b", GPU0, uid=54321)
    machine(42, "c")
    later, gone, first, idle = describe([41, 77, 40, 42], machine.root)
    assert [(each.command, each.visible) for each in (later, first, idle)] == [
        ("b", True),
        ("a", True),
        ("c", True),
    ]
    assert (gone.pid, gone.visible, gone.user) == (77, False, "")
    assert "not visible here" in str(gone)
    assert "ps -p 77" in how_to_stop(gone)


def test_in_a_container_a_pid_of_the_host_is_not_taken_for_one_of_its_own(machine: Machine):
    machine.namespace("pid:[4026532281]")
    machine(40, "a", GPU0)
    machine(42, "sshd")
    assert [each.visible for each in describe([40, 42], machine.root)] == [True, False]


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/nvidia-dcgm.service\n", Unit("service", "nvidia-dcgm.service")),
        ("0::/system.slice/nvidia.slice/nvsm-core.service/worker\n", Unit("service", "nvsm-core.service")),
        ("3:cpu:/\n1:name=systemd:/system.slice/gdm.service\n0::/\n", Unit("service", "gdm.service")),
        ("0::/system.slice/system-x.slice/x@1.service\n", Unit("service", "x@1.service")),
        ("0::/user.slice/user-1000.slice/session-3.scope\n", None),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/vte-1.scope\n", None),
        (
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/lab.service\n",
            Unit("user service", "lab.service"),
        ),
        (f"0::/system.slice/docker-{ID}.scope\n", Unit("docker", ID[:12])),
        (f"4:memory:/docker/{ID}\n", Unit("docker", ID[:12])),
        (f"0::/machine.slice/libpod-{ID}.scope/container\n", Unit("podman", ID[:12])),
        (f"0::/system.slice/nerdctl-{ID}.scope\n", Unit("nerdctl", ID[:12])),
        (
            f"0::/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{ID}.scope\n",
            Unit("Kubernetes container", ID[:12]),
        ),
        (
            f"0::/kubepods.slice/kubepods-pod1_2.slice/docker-{ID}.scope\n",
            Unit("Kubernetes container", ID[:12]),
        ),
        (
            f"0::/kubepods.slice/kubepods-pod1_2.slice/crio-{ID}.scope\n",
            Unit("Kubernetes container", ID[:12]),
        ),
        (f"4:memory:/kubepods/besteffort/pod1-2/{ID}\n", Unit("Kubernetes container", ID[:12])),
        (
            f"1:cpu:/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{ID}\n",
            Unit("Kubernetes container", ID[:12]),
        ),
        ("0::/system.slice/slurmstepd.scope/job_42/step_0/user/task_0\n", Unit("Slurm job", "42")),
        ("4:memory:/slurm/uid_1000/job_42/step_batch\n", Unit("Slurm job", "42")),
        ("0::/\n", None),
        ("0::/init.scope\n", None),
        ("", None),
    ],
)
def test_a_control_group_tells_what_a_process_belongs_to(cgroup: str, unit: Unit | None):
    assert unit_of(cgroup) == unit


def held_by(command: str, unit: Unit | None = None) -> Holder:
    return Holder(pid=40, user="ada", command=command, unit=unit)


@pytest.mark.parametrize(
    ("holder", "command"),
    [
        (
            held_by("/usr/bin/nv-hostengine -n", Unit("service", "nvidia-dcgm.service")),
            "sudo systemctl stop nvidia-dcgm.service",
        ),
        (
            held_by("/usr/bin/nv-hostengine -n", Unit("service", "dcgm.service")),
            "sudo systemctl stop dcgm.service",
        ),
        (held_by("nv-hostengine"), "sudo nv-hostengine --term"),
        (held_by("nv-hostengine -n", Unit("docker", ID[:12])), f"docker stop {ID[:12]}"),
        (
            held_by("/usr/bin/python3 nvsm", Unit("service", "nvsm-core.service")),
            "sudo systemctl stop nvsm.service",
        ),
        (
            held_by("/usr/lib/xorg/Xorg vt2", Unit("service", "gdm.service")),
            "sudo systemctl stop display-manager.service",
        ),
        (held_by("/usr/lib/xorg/Xorg vt2"), "sudo systemctl stop display-manager.service"),
        (
            held_by("/usr/bin/gnome-shell", Unit("user service", "org.gnome.Shell@wayland.service")),
            "sudo systemctl stop display-manager.service",
        ),
        (held_by("nvidia-cuda-mps-server"), "echo quit | nvidia-cuda-mps-control"),
        (held_by("python serve.py", Unit("service", "triton.service")), "sudo systemctl stop triton.service"),
        (
            held_by("jupyter", Unit("user service", "lab.service")),
            "systemctl --user stop lab.service (as ada)",
        ),
        (held_by("python t.py", Unit("podman", ID[:12])), f"podman stop {ID[:12]}"),
        (held_by("python t.py", Unit("Slurm job", "42")), "scancel 42"),
        (
            held_by("/usr/bin/dcgm-exporter", Unit("Kubernetes container", ID[:12])),
            "kubectl label node NODE nvidia.com/gpu.deploy.dcgm-exporter=false",
        ),
        (
            held_by("nvidia-device-plugin", Unit("Kubernetes container", ID[:12])),
            "kubectl label node NODE nvidia.com/gpu.deploy.device-plugin=false",
        ),
        (held_by("python t.py", Unit("Kubernetes container", ID[:12])), f"crictl ps --id {ID[:12]}"),
        (held_by("/opt/venv/bin/python train.py"), "kill 40 (it is ada's python)"),
    ],
)
def test_the_command_that_stops_a_holder(holder: Holder, command: str):
    assert how_to_stop(holder).startswith(command)
    assert must_stop(holder)


@pytest.mark.parametrize(
    "holder",
    [
        held_by("/usr/bin/nvidia-persistenced --user x", Unit("service", "nvidia-persistenced.service")),
        held_by("/usr/bin/nvidia-persistenced", Unit("Kubernetes container", ID[:12])),
        held_by("/usr/bin/nv-fabricmanager -c x", Unit("service", "nvidia-fabricmanager.service")),
        held_by("/usr/bin/nv-fabricmanager"),
    ],
)
def test_the_drivers_own_daemons_are_left_running(holder: Holder):
    assert not must_stop(holder)
    assert "kill" not in how_to_stop(holder)
    assert "systemctl stop" not in how_to_stop(holder)


@given(
    st.builds(
        Holder,
        pid=st.integers(1, 1 << 22),
        user=st.sampled_from(["", "ada", "root"]),
        command=st.text(st.characters(codec="ascii")),
        unit=st.none()
        | st.builds(
            Unit,
            st.sampled_from(
                [
                    "service",
                    "user service",
                    "Kubernetes container",
                    "docker",
                    "podman",
                    "nerdctl",
                    "Slurm job",
                ]
            ),
            st.from_regex(r"[a-z0-9{}.-]{1,20}", fullmatch=True),
        ),
    )
)
def test_every_holder_is_told_how_to_stop_and_none_by_a_line_too_long(holder: Holder):
    assert how_to_stop(holder)
    assert str(holder.pid) in str(holder)
    assert len(str(holder)) < 160


def test_nvidia_drm_is_seen_without_a_process(machine: Machine):
    assert not holders(0, machine.root).drm
    (machine.root / "sys/module/nvidia_drm").mkdir(parents=True)
    assert holders(0, machine.root).drm
