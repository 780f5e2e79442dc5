"""What `mig env` prints: the lines that put a workload on one slice, for a shell, Docker, Compose, Kubernetes,
Slurm and Triton. Pure.

A shell, Docker, Compose and Triton get the slice itself, by UUID: indices are given anew when a layout changes.
Kubernetes and Slurm hand out any free slice of a kind, and their lines say so.
"""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import yaml

from scheduler.errors import SpecError
from scheduler.layout import parse_name
from scheduler.slices import CpuSlice, GpuSlice, MigSlice, Slice

Form = Literal["shell", "docker", "compose", "k8s", "slurm", "triton"]

IMAGE = "nvidia/cuda:12.9.1-base-ubuntu24.04"
"""Small, and with COMMAND it shows which slice it got."""
COMMAND = ("nvidia-smi", "-L")

TRITON_PORTS = {"HTTP": 8000, "gRPC": 8001, "metrics": 8002}
"""Triton's own, inside its container (Triton's quick start)."""
_SLICES_OF_A_GPU = 128  # ids of GPU instances are below 16, of compute instances below 8


@dataclass(frozen=True, slots=True)
class _Workload:
    """A slice, and what is to run on it."""

    slice_: MigSlice | GpuSlice
    mig_index: int | None
    image: str | None
    command: Sequence[str]
    device_files: Sequence[str]

    @property
    def name(self) -> str:
        """The slice's id as a name that Docker, Kubernetes and Slurm all take: ``gpu0-gi7-ci0``."""
        return re.sub(r"[^a-z0-9]+", "-", self.slice_.id.lower()).strip("-")


def launch_lines(
    slice_: Slice,
    form: Form,
    *,
    mig_index: int | None = None,
    image: str | None = None,
    command: Sequence[str] = COMMAND,
    device_files: Sequence[str] = (),
) -> str:
    """The lines that put a workload on ``slice_``; the last one ends with a newline.

    Args:
        slice_: a MIG device or a whole GPU.
        form: whose lines.
        mig_index: of the MIG device on its GPU; with it, Docker's line by index is shown as well.
        image: of the container; what shows the slice if none is named. Triton's has to be named, or set as
            TRITON_IMAGE where the line is run.
        command: what runs; not for the shell form, and not for Triton, whose server it is.
        device_files: the GPU's, the GPU instance's and the compute instance's; with them, Slurm's lines are
            for this very slice.

    Raises:
        SpecError: a set of CPU cores, which needs none of this; or Kubernetes and a part of a GPU instance.
    """
    if isinstance(slice_, CpuSlice):
        raise SpecError(
            asked=f"--{form} lines for {slice_.id}",
            found="it is a set of CPU cores, not a GPU or a part of one",
            do="name a MIG device or a GPU of `hetero-mig slices`; for cores, taskset -c is enough",
        )

    lines = {
        "shell": _shell,
        "docker": _docker,
        "compose": _compose,
        "k8s": _k8s,
        "slurm": _slurm,
        "triton": _triton,
    }
    if form not in lines:
        raise SpecError(
            asked=f"lines of the form {form!r}", found="no such form", do=f"take {', '.join(get_args(Form))}"
        )

    return lines[form](_Workload(slice_, mig_index, image, command, device_files)) + "\n"


def triton_ports(slice_: MigSlice | GpuSlice) -> dict[str, int]:
    """Ports on the host for a Triton server on this slice: no other slice of the machine gets the same."""
    number = slice_.gpu_index * _SLICES_OF_A_GPU
    if isinstance(slice_, MigSlice):
        number += slice_.gpu_instance_id * 8 + slice_.compute_instance_id

    return {name: port + number * len(TRITON_PORTS) for name, port in TRITON_PORTS.items()}


def _shell(workload: _Workload) -> str:
    return f"export CUDA_VISIBLE_DEVICES={shlex.quote(workload.slice_.uuid)}"


def _docker(workload: _Workload) -> str:
    what = [workload.image or IMAGE, *workload.command]
    line = shlex.join(["docker", "run", "--rm", "--gpus", f"device={workload.slice_.uuid}", *what])
    if workload.mig_index is None:
        return line

    # Docker splits the value at commas, so NVIDIA's own examples quote it twice.
    by_index = f'"device={workload.slice_.gpu_index}:{workload.mig_index}"'
    return f"{line}\n# by index, until the layout changes: " + shlex.join(
        ["docker", "run", "--rm", "--gpus", by_index, *what]
    )


def _compose(workload: _Workload) -> str:
    uuid = workload.slice_.uuid
    device = {"driver": "nvidia", "device_ids": [uuid], "capabilities": ["gpu"]}
    service = {
        "image": workload.image or IMAGE,
        "command": [word.replace("$", "$$") for word in workload.command],  # $$ is Compose's $
        "environment": {"NVIDIA_VISIBLE_DEVICES": uuid},
        "deploy": {"resources": {"reservations": {"devices": [device]}}},
    }
    return _yaml({"services": {workload.name: service}})


def _k8s(workload: _Workload) -> str:
    slice_ = workload.slice_
    resource, note = "nvidia.com/gpu", "# Kubernetes picks any free GPU"
    if isinstance(slice_, MigSlice):
        resource = f"nvidia.com/mig-{_whole_instance(slice_).replace('+', '.')}"
        note = (
            f"# for a device plugin with MIG_STRATEGY=mixed (with single, the resource is nvidia.com/gpu)\n"
            f"# Kubernetes picks any free {slice_.name}"
        )

    container = {
        "name": "workload",
        "image": workload.image or IMAGE,
        "command": [*workload.command],
        "resources": {"limits": {resource: 1}},
    }
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"on-{workload.name}"},
        "spec": {"restartPolicy": "Never", "containers": [container]},
    }
    return f"{note}: a pod cannot ask for {slice_.uuid} itself\n{_yaml(pod)}"


def _whole_instance(slice_: MigSlice) -> str:
    """The profile's name, if the slice is all of its GPU instance.

    NVIDIA's device plugin makes resources of those alone, and stops at a MIG device that is a part
    (k8s-device-plugin: AddDefaultResourcesToConfig leaves out profiles whose C and G differ).
    """
    request = parse_name(slice_.name)
    if request is not None and request.compute_slices != request.slices:
        raise SpecError(
            asked=f"--k8s lines for {slice_.id}",
            found=f"{slice_.name} is a part of a GPU instance; NVIDIA's device plugin offers whole ones only",
            do=f"give the GPU instance one compute instance ({request.profile_name}), or use --docker",
        )

    return slice_.name


def _slurm(workload: _Workload) -> str:
    if workload.device_files:
        type_ = workload.name.replace("-", "_")
        files = ",".join(workload.device_files)
        notes = [
            f"# slurm.conf: GresTypes=gpu, and Gres=gpu:{type_}:1 on the line of this node",
            f"# gres.conf:  Name=gpu Type={type_} MultipleFiles={files}",
            "# the type is this slice alone; a new layout has other files",
            f"# with AutoDetect=nvml instead, any free one of its kind: --gres=gpu:{_slurm_type(workload.slice_)}:1",
        ]
    else:
        type_ = _slurm_type(workload.slice_)
        notes = [
            f"# slurm.conf: GresTypes=gpu, and Gres=gpu:{type_}:COUNT on the line of this node",
            "# gres.conf:  AutoDetect=nvml",
            "# Slurm picks any free one of the type, made of GPU, slices and memory; `slurmd -G` shows its types",
        ]

    return "\n".join([*notes, shlex.join(["srun", f"--gres=gpu:{type_}:1", *workload.command])])


def _slurm_type(slice_: MigSlice | GpuSlice) -> str:
    """The type that Slurm's AutoDetect=nvml gives it (gpu_nvml.c): GPU name, and for MIG its slices and GiB.

    The GiB are rounded from what NVML says of the memory, so they can differ from the profile's name, and
    neither ``+me`` nor a ``c`` part is in it.
    """
    name = slice_.gpu_name if isinstance(slice_, MigSlice) else slice_.name
    type_ = name.lower().replace(" ", "_")
    request = parse_name(slice_.name) if isinstance(slice_, MigSlice) else None
    if request is None:
        return type_

    return f"{type_.partition('-')[0]}_{request.slices}g.{(slice_.memory_mib + 512) // 1024}gb"


def _triton(workload: _Workload) -> str:
    ports = triton_ports(workload.slice_)
    image = (
        '"${TRITON_IMAGE:?name the image of Triton}"'
        if workload.image is None
        else shlex.quote(workload.image)
    )
    start = ["docker", "run", "--rm", "--name", f"triton-{workload.name}"]
    start += ["--gpus", f"device={workload.slice_.uuid}"]
    start += [word for name, inside in TRITON_PORTS.items() for word in ("-p", f"{ports[name]}:{inside}")]
    told = ", ".join(f"{name} {port}" for name, port in ports.items())
    return (
        f"# on the host: {told}; in the container the slice is GPU 0\n"
        f'{shlex.join(start)} -v "${{MODELS:?name the folder of the model repository}}":/models {image} '
        "tritonserver --model-repository=/models"
    )


def _yaml(content: dict[str, Any]) -> str:
    return str(yaml.safe_dump(content, sort_keys=False, width=10_000)).rstrip("\n")
