"""What layout files say: mig-parted's v1 document read, written, and matched with the GPUs that are there. Pure.

The rules are those of mig-parted's api/spec/v1, pkg/types/device.go and cmd/nvidia-mig-parted/assert; where
this is stricter, the docstring says so.
"""

import difflib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

import profiles
from scheduler.errors import SpecError
from scheduler.geometry import GpuMig
from scheduler.layout import Devices, GpuTarget, parse_name, size_order

_PCI_ID = "0[xX][0-9a-fA-F]{1,8}|[1-9][0-9]{0,9}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a label: these GPUs are to be so."""

    device_filter: tuple[str, ...] = ()
    """PCI ids of GPU models, ``0x233510DE``; empty for any model."""
    devices: Literal["all"] | tuple[int, ...] = "all"
    """Indices of GPUs."""
    mig_enabled: bool
    mig_devices: Devices | None = None
    """None exactly where MIG is to be disabled."""


@dataclass(frozen=True, slots=True)
class Document:
    """A file of layouts."""

    configs: dict[str, tuple[Entry, ...]]
    """By label."""


# ---------------------------------------------------------------------- references


def split_reference(text: str) -> tuple[str, str]:
    """File and label of ``FILE#LABEL``; the label is empty where none is given.

    Raises:
        SpecError: there is no file in it.
    """
    file, sharp, label = text.strip().rpartition("#")
    if not sharp:
        file, label = label, ""

    if not file:
        raise SpecError(
            asked=f"the layout {text!r}",
            found="no file before the #",
            do=f"write FILE#LABEL; FILE is a path, or one of {', '.join(shipped_names())}",
        )

    return file, label


def shipped_names() -> tuple[str, ...]:
    """The layout files that come with this program, without ``.yaml``."""
    return profiles.yaml_names("layouts")


def shipped(name: str) -> str | None:
    """The text of a layout file that comes with this program (``h200-141gb``, with or without ``.yaml``)."""
    bare = name.removesuffix(".yaml")
    return profiles.text_of(f"layouts/{bare}.yaml") if bare in shipped_names() else None


def select(document: Document, label: str, where: str) -> tuple[Entry, ...]:
    """The entries of a label; with no label asked for, of the only one there is, as mig-parted does it.

    Raises:
        SpecError: no such label, or none asked for where there are several.
    """
    labels = list(document.configs)
    if not label and len(labels) == 1:
        return document.configs[labels[0]]

    if label in document.configs:
        return document.configs[label]

    alike = difflib.get_close_matches(label, labels, n=2)
    there = ", ".join(labels) or "none"
    raise SpecError(
        asked=f"the layout {where}#{label}" if label else f"a layout of {where}",
        found=f"there is no label {label!r} in it"
        if label
        else f"{len(labels)} labels in it, and none asked",
        do=(f"perhaps {' or '.join(alike)}? " if alike else "") + f"its labels: {there}",
    )


# ---------------------------------------------------------------------- mig-parted's document


class _StrictLoader(yaml.SafeLoader):
    """YAML, or JSON as a part of it, in which a key that stands twice is an error: one would be lost."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key.value, str):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} stands twice", key.start_mark
                    )

                seen.add(key.value)

        return super().construct_mapping(node, deep)


def read(text: str, where: str) -> Document:
    """A mig-parted v1 document, in YAML or JSON; ``where`` names it in errors.

    Names of MIG devices come back as the driver writes them (``1c.1g.5gb`` is ``1g.5gb``), counts of 0 are
    left out. Stricter than mig-parted: a key may not stand twice, ``mig-enabled`` may not be null, an empty
    file is refused.

    Raises:
        SpecError: with file, label, entry and field of what is not as mig-parted defines it.
    """
    # JSON may be indented with tabs. PyYAML takes none, and no JSON string holds one.
    if text.lstrip().startswith("{"):
        text = text.replace("\t", " ")

    try:
        # A SafeLoader: it makes plain values and no objects.
        root = yaml.load(text, Loader=_StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _wrong(where, f"this is not YAML: {error}", "correct it at the line named") from error

    fields = _fields(root, where, required=("version",), known=("version", "mig-configs"))
    if fields["version"] != "v1":
        raise _wrong(f"{where}: version", f"{fields['version']!r}", "only version v1 is known: version: v1")

    if "mig-configs" not in fields:
        return Document({})

    configs = fields["mig-configs"]
    if not isinstance(configs, dict) or not configs:
        raise _wrong(f"{where}: mig-configs", _shown(configs), "give at least one label with its entries")

    return Document({_label(label, where): _entries(label, each, where) for label, each in configs.items()})


def _label(label: object, where: str) -> str:
    if isinstance(label, bool) or not isinstance(label, str | int):
        raise _wrong(f"{where}: mig-configs", f"the label {label!r}", "put the label in quotes")

    return str(label)


def _entries(label: object, entries: object, where: str) -> tuple[Entry, ...]:
    at = f"{where}: label {str(label)!r}"
    if not isinstance(entries, list) or not entries:
        raise _wrong(
            at, _shown(entries), "give a list of at least one entry, each with devices, mig-enabled …"
        )

    return tuple(_entry(each, f"{at}, entry {number}") for number, each in enumerate(entries, 1))


def _entry(entry: object, at: str) -> Entry:
    known = ("device-filter", "devices", "mig-enabled", "mig-devices")
    fields = _fields(entry, at, required=("devices", "mig-enabled"), known=known)
    enabled = fields["mig-enabled"]
    if not isinstance(enabled, bool):
        raise _wrong(f"{at}: mig-enabled", _shown(enabled), "write true or false")

    devices = _mig_devices(fields.get("mig-devices"), f"{at}: mig-devices")
    if enabled and devices is None:
        raise _wrong(at, "no mig-devices, with mig-enabled: true", "name them, or write mig-devices: {}")

    if not enabled and devices:
        raise _wrong(
            at, "mig-devices, with mig-enabled: false", "leave mig-devices out, or write mig-enabled: true"
        )

    return Entry(
        device_filter=_filter(fields.get("device-filter"), f"{at}: device-filter"),
        devices=_indices(fields["devices"], f"{at}: devices"),
        mig_enabled=enabled,
        mig_devices=devices if enabled else None,
    )


def _filter(value: object, at: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise _wrong(at, _shown(value), 'write a PCI id in quotes, "0x233510DE", or a list of them')

    return tuple(each for each in texts if each or isinstance(value, list))


def _indices(value: object, at: str) -> Literal["all"] | tuple[int, ...]:
    if value == "all":
        return "all"

    if not isinstance(value, list) or not all(type(each) is int and each >= 0 for each in value):
        raise _wrong(at, _shown(value), "write all, or a list of GPU indices: [0, 1]")

    return tuple(value)


def _mig_devices(value: object, at: str) -> Counter[str] | None:
    if value is None:
        return None

    if not isinstance(value, dict):
        raise _wrong(at, _shown(value), 'write names and counts: {"1g.10gb": 7}')

    devices: Counter[str] = Counter()
    for name, count in value.items():
        request = parse_name(name) if isinstance(name, str) else None
        if request is None:
            raise _wrong(at, f"the name {_shown(name)}", "write it as 1g.10gb, 1g.10gb+me or 1c.3g.40gb")

        if type(count) is not int or count < 0:
            raise _wrong(at, f"{_shown(count)} of {name}", "a count is a whole number, 0 or more")

        devices[request.name] += count

    return +devices


def _fields(value: object, at: str, *, required: Sequence[str], known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _wrong(at, _shown(value), f"write the fields {', '.join(known)}")

    unknown = [str(each) for each in value if each not in known]
    missing = [each for each in required if each not in value]
    if unknown:
        raise _wrong(at, f"the unknown field {unknown[0]!r}", f"its fields are {', '.join(known)}")

    if missing:
        raise _wrong(at, f"no field {missing[0]!r}", f"add it; required are {', '.join(required)}")

    return value


def _shown(value: object) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _wrong(at: str, found: str, do: str) -> SpecError:
    return SpecError(asked=f"the layouts of {at}", found=found, do=do)


def write(configs: Mapping[str, Sequence[Entry]]) -> str:
    """A v1 document that mig-parted loads; labels and entries in their order, MIG devices by size.

    Raises:
        SpecError: there is no label, or one without an entry: mig-parted refuses such a document.
    """
    lines = ["version: v1", "mig-configs:"]
    for label, entries in configs.items():
        lines.append(f"  {_quoted(label)}:")
        for entry in entries:
            lines += _entry_lines(entry)

    if not configs or not all(configs.values()):
        raise SpecError(
            asked="a layout document",
            found="a label without an entry" if configs else "no label",
            do="export at least one GPU that knows MIG",
        )

    return "\n".join(lines) + "\n"


def _entry_lines(entry: Entry) -> list[str]:
    devices = entry.devices if entry.devices == "all" else f"[{', '.join(map(str, entry.devices))}]"
    lines = [f"devices: {devices}", f"mig-enabled: {str(entry.mig_enabled).lower()}"]
    if entry.device_filter:
        lines.insert(0, f"device-filter: [{', '.join(map(_quoted, entry.device_filter))}]")

    wanted = sorted((entry.mig_devices or {}).items(), key=lambda each: size_order(each[0]))
    if wanted:
        lines += ["mig-devices:", *(f"  {_quoted(name)}: {count}" for name, count in wanted)]
    else:
        lines.append("mig-devices: {}")

    return [f"    {'- ' if number == 0 else '  '}{line}" for number, line in enumerate(lines)]


def _quoted(text: str) -> str:
    return str(yaml.safe_dump(text, default_style='"', allow_unicode=True, width=10_000)).rstrip("\n")


# ---------------------------------------------------------------------- which GPU is to become what


def for_gpus(
    entries: Sequence[Entry], gpus: Sequence[GpuMig], where: str = "the layout"
) -> dict[str, GpuTarget]:
    """What each GPU is to become, by UUID; a GPU that no entry names is not in it and stays as it is.

    As in mig-parted, an entry whose filter is for other models is passed over, so is an index that no GPU here has
    (``absent`` tells of them), and ``all`` passes over GPUs without MIG. Where mig-parted would make a GPU first
    as one entry says and then as another, this refuses: its own ``assert`` could never hold after that.

    Raises:
        SpecError: no entry is for a GPU here, a filter is not a PCI id, two entries ask different things of one GPU, or
            MIG is asked of a GPU that has none.
    """
    asked = f"the layouts of {where}"
    targets: dict[str, GpuTarget] = {}
    matched = False
    for number, entry in enumerate(entries, 1):
        for gpu in _matched(entry, gpus, f"{asked}, entry {number}"):
            matched = True
            if not gpu.capable and (not entry.mig_enabled or entry.devices == "all"):
                continue

            target = GpuTarget(mig_enabled=entry.mig_enabled, devices=dict(entry.mig_devices or {}))
            if not gpu.capable or targets.setdefault(gpu.uuid, target) != target:
                raise SpecError(
                    asked=f"{asked}, entry {number}",
                    found=f"GPU {gpu.index} ({gpu.name}) "
                    + ("is to be otherwise by an entry before" if gpu.capable else "knows no MIG"),
                    do="name each GPU in one entry" if gpu.capable else "leave that GPU out of devices",
                )

    if not targets and not (matched and all(not entry.mig_enabled for entry in entries)):
        here = ", ".join(
            f"GPU {gpu.index} {gpu.name} 0x{gpu.pci_device_id:08X}" + ("" if gpu.capable else " (no MIG)")
            for gpu in gpus
        )
        raise SpecError(
            asked=asked,
            found="none of its entries is for a GPU here that knows MIG"
            + "".join(f"; there is no GPU {index}" for index in absent(entries, gpus)[:1]),
            do=f"adapt devices and device-filter to what is here: {here or 'no GPU'}",
        )

    return targets


def absent(entries: Sequence[Entry], gpus: Sequence[GpuMig]) -> list[int]:
    """The indices that entries name and no GPU here has, ascending."""
    named = {index for entry in entries if entry.devices != "all" for index in entry.devices}
    return sorted(named - {gpu.index for gpu in gpus})


def _matched(entry: Entry, gpus: Sequence[GpuMig], asked: str) -> list[GpuMig]:
    of_the_model = [gpu for gpu in gpus if _passes(entry.device_filter, gpu, asked)]
    if entry.devices == "all":
        return of_the_model

    return [gpu for gpu in of_the_model if gpu.index in entry.devices]


def _passes(device_filter: Sequence[str], gpu: GpuMig, asked: str) -> bool:
    """Whether the GPU is of a model in the filter: ``0x<device><vendor>[:0x<device><vendor of the board>]``."""
    passes = not device_filter
    for text in device_filter:
        match = re.fullmatch(rf"({_PCI_ID})(?::({_PCI_ID}))?", text)
        if match is None:
            raise SpecError(
                asked=asked,
                found=f"the device-filter {text!r} is not a PCI id",
                do=f'write it as "0x{gpu.pci_device_id:08X}", which is GPU {gpu.index} ({gpu.name})',
            )

        if int(match[1], 0) == gpu.pci_device_id:
            passes |= match[2] is None or int(match[2], 0) == gpu.pci_subsystem_id

    return passes
