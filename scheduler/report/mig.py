"""MIG on a terminal: a GPU's memory slices drawn; instances, profiles, plans and changes as tables."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scheduler import layout
from scheduler.capabilities import Right, Rights
from scheduler.geometry import (
    COMPUTE_SIZES,
    ComputePlacement,
    Geometry,
    GpuInstance,
    GpuMig,
    MemoryPlacement,
    PlacedInstance,
    compute_placements,
    device_name,
)
from scheduler.mig_changes import Change, words
from scheduler.mig_plan import LayoutPlan
from scheduler.mig_status import GpuProfiles, GpuStatus
from scheduler.placement import Room, room_left


def show_status(found: Sequence[GpuStatus], rights: Rights, console: Console) -> None:
    """What is on each GPU, and what this user may do."""
    for status in found:
        _show_gpu(status, console)

    _show_rights(rights, found, console)


def show_profiles(geometry: Geometry, now: Sequence[GpuProfiles], console: Console) -> None:
    """What nvidia-smi's ``mig -lgip`` and ``-lcip`` show; ``now``: the GPUs that are here, none for a table."""
    table = Table(
        title=f"{geometry.gpu_name} ({geometry.source})", title_justify="left", box=None, pad_edge=False
    )
    table.add_column("GPU instance", no_wrap=True)
    free = "free/total" + (f" on GPU {' '.join(str(each.gpu.index) for each in now)}" if len(now) > 1 else "")
    for column in ("id", free, "memory MiB", "SMs", "compute slices", "memory slices"):
        table.add_column(column, justify="right")

    table.add_column("starts", no_wrap=True)
    table.add_column("CE/DEC/ENC/JPEG/OFA", no_wrap=True)
    table.add_column("compute instances")
    for profile in geometry.profiles:
        has = profile.engines
        table.add_row(
            profile.name,
            str(profile.id),
            " ".join(f"{each.free.get(profile.id, '?')}/{profile.most}" for each in now)
            or f"–/{profile.most}",
            _or_unknown(profile.memory_mib),
            _or_unknown(profile.sms),
            str(profile.compute_slices),
            str(profile.placements[0].size),
            " ".join(str(place.start) for place in profile.placements),
            "/".join(map(_or_unknown, (has.copy, has.decoder, has.encoder, has.jpeg, has.ofa))),
            "  ".join(f"{name}×{count}" for name, count in compute_counts(profile.compute_slices)),
        )

    console.print(table, soft_wrap=True)
    if any(each.compute for each in now):
        _show_compute_profiles(geometry, now, console)


def show_plan(plan: LayoutPlan, console: Console) -> None:
    """Whether a layout can be had, where everything lies, and what is wasted; or why not, and what instead."""
    geometry = plan.geometry
    console.print(f"{geometry.gpu_name} ({geometry.source})", highlight=False, soft_wrap=True)
    if plan.why_not:
        console.print(f"  [red]no room[/]: {plan.why_not}", highlight=False, soft_wrap=True)
        for each in plan.nearest:
            console.print(f"  nearest: {layout.text_of(each)}", highlight=False, soft_wrap=True)

        return

    placed = _placed(plan)
    _draw(geometry, placed, plan.room, console)
    table = Table(box=None, pad_edge=False)
    for column in ("  order", "GPU instance", "id", "memory slices", "MIG devices", "memory MiB", "SMs"):
        table.add_column(column, no_wrap=True)

    for at, (wanted, where) in enumerate(plan.instances, 1):
        sizes = [each.size for each in wanted.compute]
        table.add_row(
            f"  {at}",
            wanted.profile.name,
            str(wanted.profile.id),
            _slices(where),
            " + ".join(device_name(wanted.profile, size) for size in sizes) or "none",
            _or_unknown(wanted.profile.memory_mib),
            _or_unknown(wanted.profile.sms),
        )

    console.print(table)
    _show_room(geometry, plan.room, console)
    console.print(
        f"  by hand: nvidia-smi mig -i GPU -cgi {plan.creation}"
        + (" -C" if all(len(wanted.compute) == 1 for wanted, _ in plan.instances) else ", then -cci"),
        highlight=False,
        soft_wrap=True,
    )


def show_changes(changes: Sequence[Change], console: Console) -> None:
    """What an apply will do, and the GPU afterwards."""
    for change in changes:
        gpu = change.gpu
        console.print(f"GPU {gpu.index} {gpu.name}", highlight=False)
        if change.is_none:
            console.print("  is so already: nothing to do")
            continue

        there = {each.placed for each in gpu.instances}
        staying = sorted(there & change.to.layout, key=lambda each: each.placement.start)
        for each in staying:
            console.print(f"  stays    {_instance(change.geometry, each)}", highlight=False)

        if change.switches_mode:
            console.print(f"  mode     {'enable' if change.to.enabled else 'disable'} MIG", highlight=False)

        for step in change.steps:
            verb, _, what = words(step, change.geometry).partition(" ")
            console.print(f"  {verb:<8} {what}", highlight=False)

        if change.to.enabled:
            room = room_left(change.geometry, change.to.layout)
            _draw(change.geometry, list(change.to.layout), room, console)
            _show_room(change.geometry, room, console)


# ---------------------------------------------------------------------- parts


def _show_gpu(status: GpuStatus, console: Console) -> None:
    gpu = status.gpu
    console.print(
        Text.assemble((f"GPU {gpu.index}", "bold"), f"  {gpu.name}  {gpu.uuid}  {_mode(gpu)}"), soft_wrap=True
    )
    if gpu.enabled != gpu.pending:
        _show_pending(status, console)

    if gpu.instances_error:
        console.print(f"  instances: {gpu.instances_error}", highlight=False, soft_wrap=True)
    elif gpu.enabled and status.geometry is not None and status.room is not None:
        _draw(status.geometry, [each.placed for each in gpu.instances], status.room, console)
        if gpu.instances:
            _show_instances(status, status.geometry, console)

        _show_room(status.geometry, status.room, console)

    if not gpu.enabled:
        for holder in status.processes.get(gpu.uuid, ()):
            console.print(f"  in use by {holder}", highlight=False, markup=False, soft_wrap=True)

    console.print()


def _show_pending(status: GpuStatus, console: Console) -> None:
    word = "enabled" if status.gpu.pending else "disabled"
    lines = [f"  to be {word}: waits for a reset of the GPU while nothing uses it, or a reboot"]
    report = status.held_by
    if report is not None:
        lines += [f"  held by {holder}" for holder in report.holders]
        lines += [f"  {spot}" for spot in report.blind_spots]

    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _show_instances(status: GpuStatus, geometry: Geometry, console: Console) -> None:
    """The instances as a table, then what is too long for one: UUIDs in both formats, and who runs on them."""
    gpu = status.gpu
    table = Table(box=None, pad_edge=False)
    for column in ("  slice", "MIG device", "memory slices", "compute slices", "index", "memory MiB", "SMs"):
        table.add_column(column, no_wrap=True)

    names: list[str] = []
    for instance in gpu.instances:
        profile = geometry.of_id(instance.profile_id)
        name = profile.name if profile else f"profile {instance.profile_id}"
        memory = _or_unknown(profile.memory_mib if profile else None)
        if not instance.compute:
            row = (f"  gpu{gpu.index}:gi{instance.id}", f"{name} (no compute instance)")
            table.add_row(*row, _slices(instance.placement), "", "", memory, "")

        for each in instance.compute:
            slice_ = f"gpu{gpu.index}:gi{instance.id}:ci{each.id}"
            table.add_row(
                f"  {slice_}",
                device_name(profile, each.placement.size) if profile else name,
                _slices(instance.placement),
                _slices(each.placement),
                _or_unknown(each.mig_index),
                memory,
                _or_unknown(each.sms),
            )
            names.append(f"  {slice_}  {each.uuid or '?'}  MIG-{gpu.uuid}/{instance.id}/{each.id}")
            names += [f"  {slice_}  used by {one}" for one in status.processes.get(each.uuid or "", ())]

    console.print(table)
    for line in names:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _show_compute_profiles(geometry: Geometry, now: Sequence[GpuProfiles], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in (
        "of the GPU instance",
        "compute instance",
        "id",
        "free/total",
        "SMs",
        "compute slices",
        "starts",
    ):
        table.add_column(column, no_wrap=True)

    for each in now:
        for instance, inside in each.compute:
            for one in inside:
                table.add_row(
                    f"gpu{each.gpu.index}:gi{instance.id}",
                    compute_name(geometry, instance, one.size),
                    str(one.id),
                    f"{_or_unknown(one.free)}/{one.most}",
                    str(one.sms),
                    str(one.size),
                    " ".join(str(place.start) for place in one.placements) or "?",
                )

    console.print()
    console.print(table, soft_wrap=True)


def compute_name(geometry: Geometry, instance: GpuInstance, size: int) -> str:
    profile = geometry.of_id(instance.profile_id)
    return device_name(profile, size) if profile else f"{size}c of profile {instance.profile_id}"


def _show_rights(rights: Rights, found: Sequence[GpuStatus], console: Console) -> None:
    lines = [
        ("create and destroy instances", _right(rights.config)),
        ("see the instances of others", _right(rights.monitor)),
        ("switch MIG on or off", _right(rights.mode)),
    ]
    run_on: dict[str, list[str]] = {}
    for status in found:
        for (instance, device), right in status.access.items():
            answer = "yes" if right.allowed else _right(right)
            run_on.setdefault(answer, []).append(f"gpu{status.gpu.index}:gi{instance}:ci{device}")

    lines += [(f"run on {' '.join(slices)}", answer) for answer, slices in run_on.items()]
    console.print("this user may")
    for what, answer in lines:
        console.print(f"  {what}: {answer}", highlight=False, markup=False, soft_wrap=True)


def _right(right: Right) -> str:
    answer = {True: "yes", False: "no", None: "unknown"}[right.allowed]
    words = f"{answer}, {right.reason}" if right.reason else answer
    words += f"; {right.mismatch}" if right.mismatch else ""
    return f"{words}; {right.do}" if right.do and right.allowed is not True else words


def _draw(geometry: Geometry, placed: Sequence[PlacedInstance], room: Room, console: Console) -> None:
    """The memory slices as a row of boxes: who lies where, what is free, what is wasted."""
    boxes: list[tuple[int, str, str]] = []
    by_start = {each.placement.start: each for each in placed}
    at = 0
    while at < geometry.memory_slices:
        there = by_start.get(at)
        if there is not None:
            profile = geometry.of_id(there.profile_id)
            boxes.append((there.placement.size, profile.name if profile else f"#{there.profile_id}", "cyan"))
            at += there.placement.size
        else:
            wasted = at in room.wasted_memory_slices
            boxes.append((1, "wasted" if wasted else "free", "red" if wasted else "green"))
            at += 1

    # A memory slice is as wide as the names in it need: most drawings are less than 80 columns wide.
    cell = max(-(-len(name) // size) for size, name, _ in boxes)
    widths = [size * cell + size - 1 for size, _, _ in boxes]
    numbers = "".join(f" {slice_:<{cell}}" for slice_ in range(geometry.memory_slices))
    lines = ("+++", "+++", "|") if console.options.ascii_only else ("┌┬┐", "└┴┘", "│")
    top, bottom = (_line(ends, widths) for ends in lines[:2])
    middle = Text(f"  {lines[2]}")
    for width, (_, name, style) in zip(widths, boxes, strict=True):
        middle.append(f"{name:^{width}}", style=style).append(lines[2])

    for each in (f"  {numbers}", top, middle, bottom):
        console.print(each, highlight=False, no_wrap=True, crop=False)


def _line(ends: str, widths: Sequence[int]) -> str:
    """The upper or lower side of the boxes: its left corner, what is between two boxes, its right corner."""
    side = "-" if ends.isascii() else "─"
    return "  " + ends[0] + ends[1].join(side * width for width in widths) + ends[2]


def _show_room(geometry: Geometry, room: Room, console: Console) -> None:
    memory, compute = len(room.free_memory_slices), room.free_compute_slices
    free = (
        f"  free: {memory} of {geometry.memory_slices} memory slices ({len(room.wasted_memory_slices)} wasted), "
        f"{compute} of {geometry.compute_slices} compute slices ({room.wasted_compute_slices} wasted)"
    )
    fits = f"; one more fits of {', '.join(room.fits_also)}" if room.fits_also else "; nothing more fits"
    console.print(free + fits, highlight=False, soft_wrap=True)


def _placed(plan: LayoutPlan) -> list[PlacedInstance]:
    return [
        PlacedInstance(profile_id=wanted.profile.id, placement=where, compute=wanted.compute)
        for wanted, where in plan.instances
    ]


def _instance(geometry: Geometry, placed: PlacedInstance) -> str:
    profile = geometry.of_id(placed.profile_id)
    name = profile.name if profile else f"profile {placed.profile_id}"
    devices = " + ".join(
        device_name(profile, each.size) if profile else f"{each.size}c" for each in placed.compute
    )
    inside = "" if profile and devices == profile.name else f" ({devices or 'no compute instance'})"
    return f"GPU instance {name} at memory slice {placed.placement.start}{inside}"


def compute_counts(compute_slices: int) -> list[tuple[str, int]]:
    return [
        (f"{size}c", len(compute_placements(compute_slices, size)))
        for size in COMPUTE_SIZES.get(compute_slices, (compute_slices,))
    ]


def _slices(where: MemoryPlacement | ComputePlacement) -> str:
    return str(where.start) if where.size == 1 else f"{where.start}-{where.start + where.size - 1}"


def _mode(gpu: GpuMig) -> str:
    if not gpu.capable:
        return "no MIG"

    return "MIG enabled" if gpu.enabled else "MIG disabled"


def _or_unknown(value: object) -> str:
    return "?" if value is None else str(value)
