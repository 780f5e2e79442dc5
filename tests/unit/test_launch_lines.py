"""The lines of `mig env`, each read back by the grammar of the tool that it is for."""

import re
import shlex
import subprocess
from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
import yaml

from scheduler.errors import SpecError
from scheduler.launch_lines import COMMAND, IMAGE, Form, launch_lines, triton_ports
from scheduler.slices import CpuSlice, GpuSlice, MigSlice

FORMS = get_args(Form)
MIG = MigSlice(
    id="gpu1:gi7:ci0",
    name="1g.18gb",
    uuid="MIG-5c89852c-d268-5c4b-8a7b-3b4f0ae4f0a1",
    gpu_uuid="GPU-932bfb2c-849a-2a22-1e84-9eff6bc02b39",
    gpu_index=1,
    gpu_name="NVIDIA H200",
    gpu_instance_id=7,
    compute_instance_id=0,
    gi_profile_id=19,
    placement_start=0,
    placement_size=1,
    sms=16,
    memory_mib=16384,
    cores=(0,),
)
MEDIA = replace(MIG, name="1g.18gb+me", gi_profile_id=20)
PART = replace(
    MIG, id="gpu1:gi2:ci1", name="1c.3g.71gb", memory_mib=71424, gpu_instance_id=2, compute_instance_id=1
)
OLD = replace(MIG, uuid=f"MIG-{MIG.gpu_uuid}/7/0")
GPU = GpuSlice(
    id="gpu0",
    name="NVIDIA A100-SXM4-40GB",
    uuid="GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a77",
    gpu_index=0,
    sms=108,
    memory_mib=40960,
    cores=(0,),
)
CPU = CpuSlice(id="cpu0", cores=(0, 1), memory_mib=64_000)
ON_GPU = (MIG, MEDIA, PART, OLD, GPU)


def words(text: str) -> list[str]:
    """The words of the one command that is no comment, as a shell splits them."""
    return shlex.split(text, comments=True)


def limits(text: str) -> dict[str, int]:
    pod = yaml.safe_load(text)
    (container,) = pod["spec"]["containers"]
    found: dict[str, int] = container["resources"]["limits"]
    return found


@pytest.mark.parametrize("form", ["shell", "docker", "slurm", "triton"])
@pytest.mark.parametrize("slice_", ON_GPU, ids=lambda each: each.name)
def test_what_a_shell_is_given_a_shell_can_parse(slice_: MigSlice | GpuSlice, form: Form):
    text = launch_lines(slice_, form, mig_index=3, command=["sh", "-c", "echo 'a b' $HOME; nvidia-smi"])

    subprocess.run(["sh", "-n"], input=text, text=True, check=True)
    assert text.endswith("\n")


def test_a_shell_pins_the_slice_by_uuid():
    assert launch_lines(MIG, "shell") == f"export CUDA_VISIBLE_DEVICES={MIG.uuid}\n"


def test_a_shell_really_exports_an_old_uuid_as_it_is():
    script = launch_lines(OLD, "shell") + 'printf %s "$CUDA_VISIBLE_DEVICES"'

    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == OLD.uuid


@pytest.mark.parametrize("slice_", ON_GPU, ids=lambda each: each.name)
def test_docker_gets_the_slice_alone_by_uuid(slice_: MigSlice | GpuSlice):
    line = words(launch_lines(slice_, "docker"))

    assert line == ["docker", "run", "--rm", "--gpus", f"device={slice_.uuid}", IMAGE, *COMMAND]


def test_docker_by_index_takes_the_index_that_the_device_has_however_sparse():
    line, by_index = launch_lines(MIG, "docker", mig_index=5).splitlines()

    assert f"device={MIG.uuid}" in line
    assert by_index.startswith("# ")
    assert words(by_index.partition(": ")[2])[4] == '"device=1:5"'


def test_docker_runs_what_is_named():
    line = words(launch_lines(MIG, "docker", image="my/image:1", command=["python", "-c", "print('a b')"]))

    assert line[5:] == ["my/image:1", "python", "-c", "print('a b')"]


@pytest.mark.parametrize("slice_", ON_GPU, ids=lambda each: each.name)
def test_compose_reserves_the_slice_alone(slice_: MigSlice | GpuSlice):
    ((name, service),) = yaml.safe_load(launch_lines(slice_, "compose"))["services"].items()
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]

    assert re.fullmatch(r"[a-zA-Z0-9._-]+", name)  # Compose's grammar of a service's name
    assert service["environment"] == {"NVIDIA_VISIBLE_DEVICES": slice_.uuid}
    assert device == {"driver": "nvidia", "device_ids": [slice_.uuid], "capabilities": ["gpu"]}
    assert service["command"] == [*COMMAND]


def test_compose_does_not_fill_in_a_dollar_of_the_command():
    ((_, service),) = yaml.safe_load(launch_lines(MIG, "compose", command=["echo", "$HOME"]))[
        "services"
    ].items()

    assert service["command"] == ["echo", "$$HOME"]


@pytest.mark.parametrize(
    ("slice_", "resource"),
    [
        (MIG, "nvidia.com/mig-1g.18gb"),
        (MEDIA, "nvidia.com/mig-1g.18gb.me"),
        (replace(MIG, name="1g.24gb-me"), "nvidia.com/mig-1g.24gb-me"),
        (GPU, "nvidia.com/gpu"),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_kubernetes_is_asked_for_one_of_the_kind(slice_: MigSlice | GpuSlice, resource: str):
    text = launch_lines(slice_, "k8s")

    assert limits(text) == {resource: 1}
    assert re.fullmatch(r"nvidia\.com/[a-zA-Z0-9]([a-zA-Z0-9_.-]*[a-zA-Z0-9])?", resource)  # a qualified name
    assert "picks any free" in text.splitlines()[0] + text.splitlines()[1]


def test_a_pod_is_named_as_kubernetes_allows():
    pod: Any = yaml.safe_load(launch_lines(MIG, "k8s"))

    assert (pod["apiVersion"], pod["kind"]) == ("v1", "Pod")
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?", pod["metadata"]["name"])


def test_kubernetes_offers_no_part_of_a_gpu_instance():
    with pytest.raises(SpecError, match=r"1c\.3g\.71gb is a part"):
        launch_lines(PART, "k8s")


@pytest.mark.parametrize(
    ("slice_", "type_"),
    [
        (MIG, "nvidia_h200_1g.16gb"),  # Slurm rounds the memory, the profile's name does not count
        (MEDIA, "nvidia_h200_1g.16gb"),
        (PART, "nvidia_h200_3g.70gb"),
        (
            replace(MIG, gpu_name="NVIDIA A100-SXM4-40GB", name="1g.5gb", memory_mib=4864),
            "nvidia_a100_1g.5gb",
        ),
        (
            replace(MIG, gpu_name="NVIDIA A100-SXM4-80GB", name="3g.40gb", memory_mib=40192),
            "nvidia_a100_3g.39gb",
        ),
        (
            replace(MIG, gpu_name="NVIDIA H100 80GB HBM3", name="3g.40gb", memory_mib=40448),
            "nvidia_h100_80gb_hbm3_3g.40gb",
        ),
        (GPU, "nvidia_a100-sxm4-40gb"),
    ],
    ids=lambda each: each if isinstance(each, str) else None,
)
def test_slurm_is_asked_for_the_type_that_its_autodetection_gives(slice_: MigSlice | GpuSlice, type_: str):
    text = launch_lines(slice_, "slurm")

    assert words(text) == ["srun", f"--gres=gpu:{type_}:1", *COMMAND]
    assert "# gres.conf:  AutoDetect=nvml" in text.splitlines()
    assert f"Gres=gpu:{type_}:COUNT" in text


def test_with_its_device_files_slurm_can_be_asked_for_this_very_slice():
    files = ["/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap66", "/dev/nvidia-caps/nvidia-cap67"]
    text = launch_lines(MIG, "slurm", device_files=files)

    assert f"# gres.conf:  Name=gpu Type=gpu1_gi7_ci0 MultipleFiles={','.join(files)}" in text.splitlines()
    assert words(text)[1] == "--gres=gpu:gpu1_gi7_ci0:1"


def test_triton_serves_on_ports_of_the_slice():
    text = launch_lines(MIG, "triton", image="triton:1")
    line = words(text)
    ports = triton_ports(MIG)

    assert line[line.index("--gpus") + 1] == f"device={MIG.uuid}"
    assert [word for before, word in pairwise(line) if before == "-p"] == [
        f"{ports['HTTP']}:8000",
        f"{ports['gRPC']}:8001",
        f"{ports['metrics']}:8002",
    ]
    assert line[-3:] == ["triton:1", "tritonserver", "--model-repository=/models"]


def test_without_image_and_models_the_triton_line_says_what_to_set():
    text = launch_lines(MIG, "triton")
    ended = subprocess.run(["sh"], input=text, text=True, capture_output=True, env={}, check=False)

    assert ended.returncode != 0
    assert "MODELS: name the folder of the model repository" in ended.stderr


def test_no_two_slices_of_a_machine_have_a_triton_port_in_common():
    slices: list[MigSlice | GpuSlice] = [
        replace(MIG, gpu_index=gpu, gpu_instance_id=gi, compute_instance_id=ci)
        for gpu in range(16)
        for gi in range(16)
        for ci in range(8)
    ]
    ports = [port for each in slices for port in triton_ports(each).values()]

    assert len(set(ports)) == len(ports)
    assert max(ports) < 32768  # below the kernel's own range of ports


def test_each_slice_has_a_service_and_a_container_of_its_own():
    services = [
        next(iter(yaml.safe_load(launch_lines(each, "compose"))["services"])) for each in (MIG, PART, GPU)
    ]
    tritons = [words(launch_lines(each, "triton"))[4] for each in (MIG, PART, GPU)]

    assert services == ["gpu1-gi7-ci0", "gpu1-gi2-ci1", "gpu0"]
    assert tritons == [f"triton-{name}" for name in services]


@pytest.mark.parametrize("form", FORMS)
def test_cpu_cores_need_no_such_line(form: Form):
    with pytest.raises(SpecError, match="a set of CPU cores"):
        launch_lines(CPU, form)


def test_a_form_that_is_none_is_refused():
    with pytest.raises(SpecError, match="take shell, docker, compose, k8s, slurm, triton"):
        launch_lines(MIG, "podman")  # type: ignore[arg-type]  # what a caller without mypy may do
