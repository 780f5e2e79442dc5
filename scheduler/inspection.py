"""What is looked at before a run starts anything: the data it is to read, the host and the GPUs."""

from dataclasses import asdict
from typing import Any

from scheduler import nvml
from scheduler.assignment import Plan
from scheduler.errors import GpuError, SpecError
from scheduler.host import Host
from scheduler.slices import Machine
from workloads.protocol import WorkloadError


def check_data(plan: Plan) -> None:
    """Look through every data folder of the plan.

    Raises:
        SpecError: one cannot be used.
    """
    from workloads import data_sets

    for one in plan.all:
        if one.options.data is None:
            continue

        try:
            data_sets.inspect(one.workload, one.options.data)
        except WorkloadError as error:
            raise SpecError(
                asked=f"--data {one.options.data} for {one.workload}",
                found=str(error),
                do="mend or remove these files, then run again; nothing was started",
            ) from None


def about(machine: Machine) -> dict[str, Any]:
    """``host`` and ``gpus`` of the manifest."""
    gpus: dict[str, Any] = {}
    if machine.gpus:
        with nvml.open() as library:
            gpus = {
                "driver": library.driver(),
                "settings": {gpu.uuid: asdict(library.settings(gpu.uuid)) for gpu in machine.gpus},
                "foreign_processes": _foreign_processes(library, machine),
                "at_start": {gpu.uuid: asdict(library.sample(gpu.uuid)) for gpu in machine.gpus},
            }

    return {"host": Host().describe(), "gpus": gpus}


def _foreign_processes(library: nvml.Nvml, machine: Machine) -> dict[str, list[int]]:
    """Who computes on a GPU before anything of ours does: pids by UUID, where the driver tells this user."""
    found: dict[str, list[int]] = {}
    for gpu in machine.gpus:
        try:
            pids = [one.pid for one in library.processes(gpu.uuid)]
        except GpuError:
            continue

        if pids:
            found[gpu.uuid] = pids

    return found
