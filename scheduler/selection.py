"""The slices that ``--slices`` asks for, out of what the machine has. Pure."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from scheduler.errors import NoUsableSlice, SpecError
from scheduler.slices import CpuSlice, Gpu, GpuSlice, Machine, MigSlice, Slice


def slices_on(machine: Machine, asked: str, benchmarks: int) -> tuple[Slice, ...]:
    """The slices that ``--slices`` asks for, with host cores divided among them; main's place is the first.

    ``auto`` is the MIG devices if there are any, else the GPUs if two or more, else CPU cores if there is no
    GPU at all. One GPU without MIG does for main alone.

    Raises:
        SpecError: ``asked`` is not understood, or names what is not there.
        NoUsableSlice: the machine has nothing of that kind.
        GpuError: there is a GPU, but it cannot be read (not when CPU cores are asked for).
    """
    asked = asked.strip()
    kind, _, number = asked.partition(":")
    if kind == "cpu":
        return _cpu_slices(machine, benchmarks if asked == "cpu" else _slice_count(asked, number))

    if kind in ("mps", "timeslice"):
        raise SpecError(
            asked=f"--slices {asked}",
            found="shares of a GPU are not in this version",
            do="use MIG devices, whole GPUs or CPU cores: --slices mig, gpu or cpu",
        )

    if machine.gpu_error is not None:
        raise machine.gpu_error

    if asked == "auto" and not machine.gpus:
        return _cpu_slices(machine, benchmarks)

    return _with_host_cores(_gpu_slices(machine, asked, benchmarks), machine)


def names_of(slice_: Slice) -> list[str]:
    """The names by which a slice can be asked for: its id, its UUID, for a MIG device in both formats."""
    names = [slice_.id]
    if slice_.uuid is not None:
        names.append(slice_.uuid)

    if isinstance(slice_, MigSlice):  # as drivers before 470 write it
        names.append(f"MIG-{slice_.gpu_uuid}/{slice_.gpu_instance_id}/{slice_.compute_instance_id}")

    return names


def offered(machine: Machine) -> tuple[Slice, ...]:
    """All that workloads can be pinned to here: MIG devices, GPUs without MIG, and the CPU cores as one."""
    cpu = CpuSlice(id="cpu", cores=machine.cores, memory_mib=machine.memory_mib)
    return (*_with_host_cores(_all_on_gpus(machine), machine), cpu)


def _slice_count(asked: str, number: str) -> int:
    if not number.isdecimal() or int(number) == 0:
        raise SpecError(
            asked=f"--slices {asked}",
            found=f"{number!r} is not a number of slices",
            do="write cpu for one slice a benchmark, or cpu:4 for four",
        )

    return int(number)


def _cpu_slices(machine: Machine, count: int) -> tuple[CpuSlice, ...]:
    shares = _divided(machine.cores, count)
    ids = [f"cpu{index}" for index in range(count)]
    return tuple(
        CpuSlice(
            id=id_,
            cores=cores,
            memory_mib=machine.memory_mib,
            shared_with=tuple(
                other for other, theirs in zip(ids, shares, strict=True) if other != id_ and theirs == cores
            ),
        )
        for id_, cores in zip(ids, shares, strict=True)
    )


def _divided(cores: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """``count`` contiguous runs whose lengths differ by at most one; with too few cores, one each in turn."""
    if len(cores) < count:
        return [(cores[index % len(cores)],) for index in range(count)]

    length, longer = divmod(len(cores), count)
    ends = [length * index + min(index, longer) for index in range(count + 1)]
    return [cores[begin:end] for begin, end in pairwise(ends)]


def _all_on_gpus(machine: Machine) -> list[GpuSlice | MigSlice]:
    devices = [device for gpu in machine.gpus for device in gpu.mig_devices]
    return [*devices, *(_whole(gpu) for gpu in machine.gpus if not gpu.mig_enabled)]


def _gpu_slices(machine: Machine, asked: str, benchmarks: int) -> list[GpuSlice | MigSlice]:
    there = _all_on_gpus(machine)
    if asked not in ("auto", "mig", "gpu"):
        return _named(machine, asked, there)

    devices = [each for each in there if each.kind == "mig"]
    if devices and asked != "gpu":
        return devices

    whole = [each for each in there if each.kind == "gpu"]
    if asked != "mig" and (len(whole) > 1 or (whole and benchmarks == 1)):
        return whole

    raise _nothing_usable(machine, asked, whole)


def _whole(gpu: Gpu) -> GpuSlice:
    return GpuSlice(
        id=f"gpu{gpu.index}",
        name=gpu.name,
        uuid=gpu.uuid,
        gpu_index=gpu.index,
        sms=gpu.sms,
        memory_mib=gpu.memory_mib,
        cores=gpu.cores,
        numa_node=gpu.numa_node,
    )


def _nothing_usable(machine: Machine, asked: str, whole: Sequence[Slice]) -> NoUsableSlice:
    without_instance = [gpu for gpu in machine.gpus if gpu.mig_enabled and not gpu.mig_devices]
    if not machine.gpus:
        found, do = "no GPU on this machine", "take CPU cores: --slices cpu"
    elif whole and asked != "mig":
        found = f"one GPU without MIG ({whole[0].name}): main and background cannot be kept apart on it"
        do = (
            "enable MIG and create instances on it, use a machine with another GPU, take CPU cores "
            "(--slices cpu), or measure main alone (--background none)"
        )
    elif without_instance:
        indices = ", ".join(str(gpu.index) for gpu in without_instance)
        found = f"MIG is enabled on GPU {indices}, but it has no MIG device"
        do = "create GPU and compute instances (nvidia-smi mig -cgi … -C), disable MIG, or use --slices cpu"
    elif asked == "mig":
        found = "no GPU here has MIG enabled"
        do = "enable MIG and create instances, or use --slices gpu or cpu"
    else:
        found = "every GPU here is divided into MIG devices"
        do = "use the MIG devices (--slices mig), or disable MIG"

    return NoUsableSlice(asked=f"--slices {asked}", found=found, do=do)


def _named(machine: Machine, asked: str, offered: Sequence[GpuSlice | MigSlice]) -> list[GpuSlice | MigSlice]:
    by_name = {name.lower(): each for each in offered for name in names_of(each)}
    chosen: list[GpuSlice | MigSlice] = []
    for word in (word.strip() for word in asked.split(",")):
        found = by_name.get(word.lower())
        if found is None:
            raise _unknown_slice(machine, f"--slices {asked}", word, offered)

        if found in chosen:
            raise SpecError(
                asked=f"--slices {asked}", found=f"{word} is there twice", do="name each slice once"
            )

        chosen.append(found)

    return chosen


def _unknown_slice(machine: Machine, asked: str, word: str, offered: Sequence[Slice]) -> SpecError:
    divided = [gpu for gpu in machine.gpus if gpu.mig_enabled]
    do = "name slices of `hetero-mig slices`" + (
        f": {', '.join(each.id for each in offered)}" if offered else ""
    )
    if word.isdecimal():
        found = (
            f"{word!r} is an index: CUDA, NVML and nvidia-smi do not number GPUs alike, and numbers change "
            "with the environment"
        )
    elif any(word.lower() in (gpu.uuid.lower(), f"gpu{gpu.index}") for gpu in divided):
        found = f"{word} has MIG enabled: only its MIG devices can be used"
    else:
        found = f"no slice {word!r}"
        do += "; CPU slices are made by --slices cpu or cpu:N"

    return SpecError(asked=asked, found=found, do=do)


def _with_host_cores(slices: Sequence[GpuSlice | MigSlice], machine: Machine) -> tuple[Slice, ...]:
    """Divide the host cores near each GPU among the slices that are near the same ones."""
    near = _near(machine)
    neighbours = Counter(near[_gpu_of(each)] for each in slices)
    shares = {cores: iter(_divided(cores, count)) for cores, count in neighbours.items()}
    return tuple(replace(each, cores=next(shares[near[_gpu_of(each)]])) for each in slices)


def _near(machine: Machine) -> dict[str, tuple[int, ...]]:
    """By GPU: the cores near it that this process may use, or all of those where none is."""
    return {
        gpu.uuid: tuple(core for core in machine.cores if core in gpu.cores) or machine.cores
        for gpu in machine.gpus
    }


def _gpu_of(slice_: GpuSlice | MigSlice) -> str:
    return slice_.gpu_uuid if isinstance(slice_, MigSlice) else slice_.uuid
