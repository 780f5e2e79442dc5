"""What a person asks of MIG, worked out: which GPUs, what of them, and what that takes."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scheduler import gpu_tables, layout, layout_files, placement, selection
from scheduler.capabilities import Rights
from scheduler.errors import GpuError, NvmlMissing, SpecError
from scheduler.geometry import (
    ComputeInstance,
    Geometry,
    GpuInstance,
    GpuMig,
    GpuState,
    MemoryPlacement,
    PlacedInstance,
    WantedInstance,
)
from scheduler.launch_lines import COMMAND, Form, launch_lines
from scheduler.layout import GpuTarget
from scheduler.layout_files import Document, Entry
from scheduler.mig_changes import mode_word, refuse_unseen
from scheduler.placement import Room
from scheduler.slices import Machine


@dataclass(frozen=True, slots=True, kw_only=True)
class LayoutPlan:
    """Whether a GPU can have a layout, and how."""

    geometry: Geometry
    devices: Mapping[str, int]
    instances: tuple[tuple[WantedInstance, MemoryPlacement], ...]
    """In the order of creation, the largest first; empty where there is no room."""
    why_not: str
    """Every rule that the layout breaks; empty where there is room."""
    nearest: tuple[Mapping[str, int], ...]
    """Where there is no room: what there is room for."""

    @property
    def room(self) -> Room:
        """What it leaves."""
        placed = [
            PlacedInstance(profile_id=each.profile.id, placement=where, compute=each.compute)
            for each, where in self.instances
        ]
        return placement.room_left(self.geometry, placed)

    @property
    def creation(self) -> str:
        """The argument of ``nvidia-smi mig -cgi`` that does the same: ``9:4,14:0,19:3``."""
        return ",".join(f"{each.profile.id}:{where.start}" for each, where in self.instances)


def chosen(gpus: Sequence[GpuMig], asked: str | None) -> tuple[GpuMig, ...]:
    """The GPUs that ``--gpu`` names: all, or a list of indices and UUIDs.

    Raises:
        SpecError: one is not there.
    """
    if asked is None or asked.strip().lower() == "all":
        return tuple(gpus)

    found = []
    for word in (each.strip() for each in asked.split(",")):
        matching = [gpu for gpu in gpus if word.lower() in _names(gpu)]
        if not matching:
            here = ", ".join(f"{gpu.index} ({gpu.name}, {gpu.uuid})" for gpu in gpus) or "none"
            raise SpecError(
                asked=f"--gpu {asked}",
                found=f"no GPU {word!r} that this user may use",
                do=f"name GPUs by index or UUID; here: {here}",
            )

        found += [gpu for gpu in matching if gpu not in found]

    return tuple(found)


def names_gpus(gpus: Sequence[GpuMig], asked: str | None) -> bool:
    """Whether ``--gpu`` names GPUs that are here, or all of them; or else a model."""
    if asked is None:
        return True

    words = {"all"}.union(*map(_names, gpus))
    return all(each.strip().lower() in words for each in asked.split(","))


def geometry(gpus: Sequence[GpuMig] | GpuError, asked: str | None) -> Geometry:
    """How the GPU that is asked about can be divided: one that is here, else a model of the built-in tables.

    Args:
        gpus: those of this machine, or why there are none.
        asked: ``--gpu``: index, UUID or the name of a model; None for the one there is.

    Raises:
        SpecError: no such GPU and no such table; nothing was named, and there is no GPU or several kinds.
    """
    here = () if isinstance(gpus, GpuError) else tuple(gpu for gpu in gpus if gpu.capable)
    if asked is not None:
        for gpu in here:
            if asked.lower() in _names(gpu):
                return _geometry_here(gpu)

        if asked.isdecimal() or asked.lower().startswith("gpu"):
            raise _not_of_a_gpu_here(gpus, asked)

        return gpu_tables.named(asked)

    if not here:
        why = gpus.found if isinstance(gpus, GpuError) else "no GPU here knows MIG"
        if isinstance(gpus, GpuError) and not isinstance(gpus, NvmlMissing):
            why = f"the GPUs cannot be read: {why}"

        raise SpecError(
            asked="how a GPU can be divided",
            found=why,
            do=f"name a model: --gpu {' | '.join(gpu_tables.known())}",
        )

    if len({gpu.name for gpu in here}) > 1:
        raise SpecError(
            asked="how a GPU can be divided",
            found="several kinds of GPU here: " + ", ".join(f"{gpu.index} {gpu.name}" for gpu in here),
            do="name one: --gpu INDEX",
        )

    return _geometry_here(here[0])


def plan(geometry: Geometry, devices: Mapping[str, int]) -> LayoutPlan:
    """Whether an empty GPU has room for these MIG devices, and where they lie."""
    wanted = sorted(
        layout.instances_of(devices, geometry),
        key=lambda each: (-each.profile.placements[0].size, -each.profile.compute_slices, each.profile.id),
    )
    profiles = [each.profile for each in wanted]
    places = placement.place(geometry, profiles)
    return LayoutPlan(
        geometry=geometry,
        devices=dict(devices),
        instances=tuple(zip(wanted, places, strict=True)) if places is not None else (),
        why_not=placement.why_not(geometry, profiles),
        nearest=() if places is not None else tuple(placement.nearest(geometry, profiles)),
    )


def document(reference: str) -> tuple[tuple[Entry, ...], str]:
    """The entries of ``FILE#LABEL``, and what to call them in messages. FILE is a path or a file that is shipped.

    Raises:
        SpecError: no such file or label, or it is not mig-parted's format.
    """
    file, label = layout_files.split_reference(reference)
    shipped = None if Path(file).is_file() else layout_files.shipped(file)
    text = _text(Path(file), reference) if shipped is None else shipped
    return layout_files.select(layout_files.read(text, file), label, file), reference


def is_reference(asked: str) -> bool:
    """Whether a layout is asked for by file, or by its MIG devices (``3g.71gb,1g.18gb*2``, ``9,19,19``)."""
    return "#" in asked or os.sep in asked or Path(asked).suffix in (".yaml", ".yml", ".json")


def targets(asked: str, gpus: Sequence[GpuMig], only: Sequence[GpuMig]) -> dict[str, GpuTarget]:
    """What each GPU is to become, by UUID.

    Args:
        asked: ``FILE#LABEL``, or MIG devices.
        gpus: of this machine: a document's indices count these.
        only: the GPUs to change; those that a document names besides stay as they are.

    Raises:
        SpecError: it is no layout, or names what these GPUs do not have.
    """
    if is_reference(asked):
        entries, where = document(asked)
        found = layout_files.for_gpus(entries, gpus, where)
        mine = {gpu.uuid for gpu in only}
        return {uuid: target for uuid, target in found.items() if uuid in mine}

    capable = [gpu for gpu in only if gpu.capable]
    if len(capable) != 1:
        raise SpecError(
            asked=f"the layout {asked}",
            found=f"{len(capable)} GPUs here know MIG" if capable else "no GPU here knows MIG",
            do="say which GPU is to have it: --gpu INDEX"
            if capable
            else "see what is here: hetero-mig mig status",
        )

    devices = layout.parse_devices(asked, _geometry_here(capable[0]))
    return {capable[0].uuid: GpuTarget(mig_enabled=True, devices=devices)}


def passed_over(asked: str, gpus: Sequence[GpuMig]) -> list[int]:
    """Indices that a document names and no GPU here has: it was written for a larger machine."""
    return layout_files.absent(document(asked)[0], gpus) if is_reference(asked) else []


def exported(gpus: Sequence[GpuMig], label: str, only: Sequence[GpuMig] | None = None) -> Document:
    """What these GPUs are, as a layout document; GPUs that are alike share an entry.

    Args:
        gpus: of this machine: ``all`` is said of nothing less.
        label: in the document.
        only: the GPUs to write; all of them by default.

    Raises:
        SpecError: none of them knows MIG.
        NoPermission: the instances of one cannot be read.
    """
    alike: dict[tuple[bool, tuple[tuple[str, int], ...]], list[GpuMig]] = {}
    for gpu in gpus if only is None else only:
        if gpu.capable:
            alike.setdefault((gpu.enabled, tuple(sorted(devices_of(gpu).items()))), []).append(gpu)

    entries = tuple(
        Entry(
            devices="all" if len(same) == len(gpus) else tuple(gpu.index for gpu in same),
            mig_enabled=enabled,
            mig_devices=dict(devices) if enabled else None,
        )
        for (enabled, devices), same in alike.items()
    )
    if not entries:
        raise SpecError(
            asked="export the layouts of this machine",
            found="no GPU here knows MIG",
            do="see what is here: hetero-mig mig status",
        )

    return Document({label: entries})


def devices_of(gpu: GpuMig) -> Counter[str]:
    """The MIG devices on a GPU, by name.

    Raises:
        NoPermission: they cannot be read.
    """
    refuse_unseen(gpu, f"the layout of GPU {gpu.index}")
    return layout.devices_of(gpu.instances, _geometry_here(gpu)) if gpu.enabled else Counter()


def differences(
    gpus: Sequence[GpuMig], targets: Mapping[str, GpuTarget], mode_only: bool = False
) -> list[str]:
    """What is not as it is to be, a line each; empty where all is."""
    found = []
    for gpu in gpus:
        if gpu.uuid not in targets:
            continue

        target = targets[gpu.uuid]
        if gpu.enabled != target.mig_enabled:
            found.append(
                f"GPU {gpu.index}: MIG is {mode_word(gpu.enabled)}, it is to be {mode_word(target.mig_enabled)}"
            )
        elif not mode_only and target.mig_enabled:
            there, wanted = devices_of(gpu), Counter(target.devices)
            if missing := wanted - there:
                found.append(f"GPU {gpu.index}: missing {layout.text_of(missing)}")

            if surplus := there - wanted:
                found.append(f"GPU {gpu.index}: too many {layout.text_of(surplus)}")

            found += bare(gpu)

    return found


def bare(gpu: GpuMig) -> list[str]:
    """A line for the GPU instances without a compute instance, which no layout document can tell of; none for none."""
    names = [f"gpu{gpu.index}:gi{each.id}" for each in gpu.instances if not each.compute]
    return [f"GPU {gpu.index}: without a compute instance: {', '.join(names)}"] if names else []


def plans(gpus: Sequence[GpuMig] | GpuError, asked: str, gpu: str | None) -> list[LayoutPlan]:
    """Whether the GPUs have room for a layout: one plan for MIG devices, one for each kind of target in a document.

    Args:
        gpus: those of this machine, or why there are none.
        asked: ``FILE#LABEL``, or MIG devices.
        gpu: ``--gpu``: index, UUID or the name of a model.

    Raises:
        SpecError: it is no layout, names what the GPU does not have, or says nothing of it.
    """
    if not is_reference(asked):
        of = geometry(gpus, gpu)
        return [plan(of, layout.parse_devices(asked, of))]

    entries, where = document(asked)
    here = [] if isinstance(gpus, GpuError) else [each for each in gpus if each.capable]
    if here and names_gpus(here, gpu):
        found = layout_files.for_gpus(entries, here, where)
        mine = chosen(here, gpu)
        unlike: dict[tuple[str, tuple[tuple[str, int], ...]], LayoutPlan] = {}
        for each in mine:
            target = found.get(each.uuid)
            if target is not None and target.mig_enabled:
                key = (each.name, tuple(sorted(target.devices.items())))
                unlike.setdefault(key, plan(_geometry_here(each), target.devices))

        if not unlike:
            raise _says_nothing_of(where, ", ".join(f"GPU {each.index} ({each.name})" for each in mine))

        return list(unlike.values())

    model = gpu if gpu is not None else _model_of(where)
    table = gpu_tables.table_named(model)
    ids = {int(each, 16) for each in table.pci_device_ids}
    fitting = [each for each in entries if each.mig_enabled and _is_for(each, ids)]
    if not fitting:
        raise _says_nothing_of(where, f"a {table.name}")

    return [plan(table.geometry(), each.mig_devices or {}) for each in fitting]


def without(gpus: Sequence[GpuMig], words: Sequence[str]) -> dict[str, GpuState]:
    """What is left of these GPUs once the named instances are gone.

    Raises:
        SpecError: one of them is not there.
    """
    layouts = {gpu.uuid: {each.id: each.placed for each in gpu.instances} for gpu in gpus}
    touched: dict[str, GpuMig] = {}
    for word in words:
        gpu, instance, device = instance_named(gpus, word)
        touched[gpu.uuid] = gpu
        there = layouts[gpu.uuid].get(instance.id)
        if device is None:
            layouts[gpu.uuid].pop(instance.id, None)
        elif there is not None:
            inside = tuple(each for each in there.compute if each != device.placement)
            layouts[gpu.uuid][instance.id] = replace(there, compute=inside)

    return {uuid: GpuState(gpu.enabled, frozenset(layouts[uuid].values())) for uuid, gpu in touched.items()}


def emptied(gpus: Sequence[GpuMig]) -> dict[str, GpuState]:
    """These GPUs, under MIG, without any instance."""
    return {gpu.uuid: GpuState(True, frozenset()) for gpu in gpus if gpu.enabled}


def instance_named(gpus: Sequence[GpuMig], word: str) -> tuple[GpuMig, GpuInstance, ComputeInstance | None]:
    """The GPU instance that ``gpu0:gi7``, ``gpu0:gi7:ci0`` or a MIG device's UUID names, and the compute instance
    if only that is meant.

    Raises:
        SpecError: there is none.
        NoPermission: the instances of one of these GPUs cannot be read.
    """
    for gpu in gpus:
        for instance in gpu.instances:
            if word.lower() == f"gpu{gpu.index}:gi{instance.id}":
                return gpu, instance, None

            for each in instance.compute:
                names = (
                    f"gpu{gpu.index}:gi{instance.id}:ci{each.id}",
                    (each.uuid or "").lower(),
                    f"mig-{gpu.uuid}/{instance.id}/{each.id}".lower(),
                )
                if word.lower() in names:
                    return gpu, instance, each

    for gpu in gpus:
        refuse_unseen(gpu, f"the instance {word}")

    there = [f"gpu{gpu.index}:gi{instance.id}" for gpu in gpus for instance in gpu.instances]
    raise SpecError(
        asked=f"the instance {word}",
        found="it is not there",
        do=f"name one that is: {', '.join(there) or 'there is none'}",
    )


def lines_for(
    machine: Machine,
    gpus: Sequence[GpuMig],
    rights: Rights,
    word: str,
    form: Form,
    image: str | None = None,
    command: Sequence[str] = (),
) -> str:
    """The lines that put a workload on the slice that ``word`` names (see launch_lines).

    Raises:
        SpecError: there is no such slice, or it is no GPU's.
    """
    offered = selection.offered(machine)
    found = next(
        (each for each in offered if word.lower() in (name.lower() for name in selection.names_of(each))),
        None,
    )
    if found is None:
        raise SpecError(
            asked=f"the slice {word}",
            found="it is not there",
            do=f"name one that is: {', '.join(each.id for each in offered if each.kind != 'cpu') or 'there is none'}",
        )

    index: int | None = None
    files: tuple[str, ...] = ()
    for gpu in gpus:
        for instance in gpu.instances:
            device = next((each for each in instance.compute if each.uuid == found.uuid), None)
            if device is not None:
                index = device.mig_index
                files = (
                    rights.device_files(gpu.minor, instance.id, device.id) if gpu.minor is not None else ()
                )

    return launch_lines(
        found, form, mig_index=index, image=image, command=command or COMMAND, device_files=files
    )


def _names(gpu: GpuMig) -> set[str]:
    """What ``--gpu`` may call a GPU, in lower case."""
    return {str(gpu.index), gpu.uuid.lower(), f"gpu{gpu.index}"}


def _not_of_a_gpu_here(gpus: Sequence[GpuMig] | GpuError, asked: str) -> SpecError:
    """The error for ``--gpu`` with an index or a UUID where no GPU has it that knows MIG."""
    known = " | ".join(gpu_tables.known())
    if isinstance(gpus, GpuError):
        return SpecError(asked=f"--gpu {asked}", found=gpus.found, do=f"name a model: --gpu {known}")

    found = ", ".join(f"GPU {gpu.index} ({gpu.name}) knows no MIG" for gpu in chosen(gpus, asked))
    return SpecError(asked=f"--gpu {asked}", found=found, do=f"name another GPU, or a model: --gpu {known}")


def _is_for(entry: Entry, ids: set[int]) -> bool:
    return not entry.device_filter or any(
        int(each.partition(":")[0], 0) in ids for each in entry.device_filter
    )


def _says_nothing_of(reference: str, gpus: str) -> SpecError:
    return SpecError(
        asked=f"the layout {reference} on {gpus}",
        found="no entry of it is for this GPU, or MIG is disabled there",
        do="adapt its devices or its device-filter, or name another GPU",
    )


def _model_of(reference: str) -> str:
    """The model that a shipped file of layouts is for, by its name."""
    file, _ = layout_files.split_reference(reference)
    if not Path(file).is_file():
        return file.removesuffix(".yaml")

    raise SpecError(
        asked=f"whether a GPU has room for {reference}",
        found="no GPU here knows MIG, and the file does not say which model it is for",
        do=f"name a model: --gpu {' | '.join(gpu_tables.known())}",
    )


def _geometry_here(gpu: GpuMig) -> Geometry:
    found = gpu.geometry or gpu_tables.of_gpu(gpu.name)
    if found is None:
        raise SpecError(
            asked=f"how GPU {gpu.index} ({gpu.name}) can be divided",
            found="its driver does not say, and there is no built-in table for it",
            do=f"name a model: --gpu {' | '.join(gpu_tables.known())}",
        )

    return found


def _text(path: Path, reference: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            asked=f"the layout {reference}",
            found=f"{path} cannot be read: {error}",
            do=f"write FILE#LABEL; FILE is a path, or one of {', '.join(layout_files.shipped_names())}",
        ) from error
