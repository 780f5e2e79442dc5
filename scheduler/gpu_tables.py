"""The built-in tables: how each GPU model can be divided, for planning where no driver answers.

One table a file, ``profiles/gpus/NAME.yaml`` (the name in lower case). Each row tells its source and driver,
since sizes differ by a few per cent between boards and drivers; where a driver answers, its answer counts.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import lru_cache
from itertools import takewhile
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

import profiles
from scheduler.errors import SpecError
from scheduler.geometry import Engines, Geometry, GpuInstanceProfile, MemoryPlacement

MEMORY_TOLERANCE = 0.05
"""Between a table's board memory and NVML's total, which loses up to 1 % to ECC and older drivers."""

Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Placements(_Strict):
    """Where a GPU instance may start on an empty GPU, and its size; in memory slices."""

    starts: Annotated[tuple[Count, ...], Field(min_length=1)]
    size: Size


class EngineCounts(_Strict):
    """As geometry.Engines; every key is written, null is unknown."""

    copy_: Annotated[Count | None, Field(alias="copy")]
    decoder: Count | None
    encoder: Count | None
    jpeg: Count | None
    ofa: Count | None


class Row(_Strict):
    """One GPU instance profile; the fields are geometry.GpuInstanceProfile's."""

    name: Annotated[str, Field(pattern=r"^\d+g\.\d+gb([+-][a-z.]+)?$")]
    id: Count
    enum: Count
    compute_slices: Size
    placements: Placements
    most: Size
    memory_mib: Size | None
    sms: Size | None
    engines: EngineCounts
    source: Text
    driver: Text | None
    """The version it was read with, or the oldest that has it; None where the source tells neither."""

    @property
    def profile(self) -> GpuInstanceProfile:
        """The row without its source."""
        engines = self.engines
        return GpuInstanceProfile(
            name=self.name,
            id=self.id,
            enum=self.enum,
            compute_slices=self.compute_slices,
            placements=tuple(
                MemoryPlacement(start, self.placements.size) for start in self.placements.starts
            ),
            most=self.most,
            memory_mib=self.memory_mib,
            sms=self.sms,
            engines=Engines(
                copy=engines.copy_,
                decoder=engines.decoder,
                encoder=engines.encoder,
                jpeg=engines.jpeg,
                ofa=engines.ofa,
            ),
        )


class GpuTable(_Strict):
    """One file of ``profiles/gpus/``."""

    name: Text
    """``A100-80GB``: what ``--gpu`` takes."""
    gpu_names: Annotated[tuple[Text, ...], Field(min_length=1)]
    """NVML's names of the boards that the rows hold for, the typical one first."""
    aliases: tuple[Text, ...] = ()
    """What else ``--gpu`` takes."""
    pci_device_ids: tuple[Annotated[str, Field(pattern=r"^0x[0-9A-F]{4}10DE$")], ...]
    """Boards that offer profiles of these names, as mig-parted's ``device-filter`` wants them: those of
    ``gpu_names``, and their siblings for other markets, whose SMs and MiB may differ."""
    memory_mib: Size
    """Of the board, as NVML tells it without MIG."""
    compute_capability: Annotated[str, Field(pattern=r"^\d+\.\d$")]
    profiles: Annotated[tuple[Row, ...], Field(min_length=1)]
    """Ascending by ``enum``."""

    @model_validator(mode="after")
    def _rows_tell_apart(self) -> Self:
        enums = [row.enum for row in self.profiles]
        if enums != sorted(set(enums)):
            raise ValueError(f"the rows are not ascending by enum: {enums}")

        for what in ("name", "id"):
            values = [getattr(row, what) for row in self.profiles]
            if len(set(values)) < len(values):
                raise ValueError(f"two rows of one {what}: {values}")

        for row in self.profiles:
            if list(row.placements.starts) != sorted(set(row.placements.starts)):
                raise ValueError(f"the starts of {row.name} are not ascending: {row.placements.starts}")

        return self

    def geometry(self, gpu_name: str | None = None) -> Geometry:
        """The table as planning takes it, of this board or of the typical one."""
        return Geometry(
            gpu_name=gpu_name or self.gpu_names[0],
            profiles=tuple(row.profile for row in self.profiles),
            source=f"built-in table {self.name} ({self._origins})",
        )

    @property
    def _origins(self) -> str:
        origins = list(dict.fromkeys(map(_origin, self.profiles)))
        return origins[0] if len(origins) == 1 else f"{len(origins)} sources, told with each row"


def table_of(document: object) -> GpuTable:
    """The table that a parsed document holds.

    Raises:
        pydantic.ValidationError: it holds none; a broken file of this package, or a broken test.
    """
    return GpuTable.model_validate(document)


@lru_cache(maxsize=1)
def tables() -> Mapping[str, GpuTable]:
    """Every built-in table by its name, in the order of the names."""
    found = [table_of(profiles.read_yaml(f"gpus/{stem}.yaml")) for stem in profiles.yaml_names("gpus")]
    return MappingProxyType({table.name: table for table in sorted(found, key=lambda each: each.name)})


def known() -> tuple[str, ...]:
    """The names that ``--gpu`` takes: ``A100-80GB``."""
    return tuple(tables())


def table_named(text: str) -> GpuTable:
    """The table that ``--gpu`` names: by its name, an alias, a name of NVML's, or the first words of its name.

    Upper and lower case, ``NVIDIA`` in front, and blanks, ``-`` or ``_`` between words make no difference. Words
    are compared whole: ``A10`` is no ``A100``.

    Raises:
        SpecError: no table has this name, or several begin with it.
    """
    words = _words(text)
    exact = [table for table in tables().values() if words in map(_words, _names(table))]
    begun = [table for table in tables().values() if words and _words(table.name)[: len(words)] == words]
    matching = exact or begun
    if len(matching) == 1:
        return matching[0]

    names = ", ".join(table.name for table in matching)
    raise SpecError(
        asked=f"--gpu {text}",
        found=f"this may be {names}" if matching else "no built-in table of this GPU",
        do=f"name one of them: --gpu {matching[0].name}" if matching else f"known: {', '.join(known())}",
    )


def named(text: str) -> Geometry:
    """How the GPU that ``--gpu`` names can be divided.

    Raises:
        SpecError: as table_named.
    """
    return table_named(text).geometry()


def table_of_gpu(nvml_name: str, memory_mib: int | None = None) -> GpuTable | None:
    """The table of a board that is present, or none.

    The board's name must be one of the table's ``gpu_names`` (case and ``NVIDIA``, which older drivers leave
    out, aside), and its memory, where it is known, the table's within 5 %.
    """
    fitting = [
        table
        for table in tables().values()
        if _words(nvml_name) in map(_words, table.gpu_names)
        and (memory_mib is None or abs(memory_mib - table.memory_mib) <= MEMORY_TOLERANCE * table.memory_mib)
    ]
    return fitting[0] if len(fitting) == 1 else None


def of_gpu(nvml_name: str, memory_mib: int | None = None) -> Geometry | None:
    """How a board that is present can be divided, when its driver does not tell; None without a table for it."""
    table = table_of_gpu(nvml_name, memory_mib)
    return table.geometry(nvml_name) if table else None


def sources(name: str) -> dict[str, str]:
    """Where each row of a table comes from: profile name → source and driver.

    Raises:
        SpecError: as table_named.
    """
    return {row.name: _origin(row) for row in table_named(name).profiles}


def as_yaml(geometry: Geometry, about: Mapping[str, Any], source: str, driver: str) -> str:
    """What a driver told of a board, in the format of ``profiles/gpus/``.

    A profile without a placement, which a driver that tells no placements leaves, is left out.

    Args:
        about: the fields above ``profiles``, as GpuTable has them.
        source: of each row.
        driver: its version.
    """
    lines = [f"{key}: {_flow(value)}" for key, value in about.items()]
    lines.append("profiles:")
    for profile in (each for each in geometry.profiles if each.placements):
        lines += [f"  {'-' if at == 0 else ' '} {field}" for at, field in enumerate(_fields(profile))]
        lines += [f"    source: {_flow(source)}", f"    driver: {_flow(driver)}"]

    return "\n".join(lines) + "\n"


def _fields(profile: GpuInstanceProfile) -> Iterator[str]:
    starts = [place.start for place in profile.placements]
    yield f"name: {profile.name}"
    yield f"id: {profile.id}"
    yield f"enum: {profile.enum}"
    yield f"compute_slices: {profile.compute_slices}"
    yield f"placements: {_flow({'starts': starts, 'size': profile.placements[0].size})}"
    yield f"most: {profile.most}"
    yield f"memory_mib: {_flow(profile.memory_mib)}"
    yield f"sms: {_flow(profile.sms)}"
    yield f"engines: {_flow(asdict(profile.engines))}"


def _flow(value: object) -> str:
    """A value in YAML's short form; texts in quotes, as ``9.0`` and ``560.35`` would be numbers."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(each)}" for key, each in value.items()) + "}"

    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"

    return json.dumps(value, ensure_ascii=False)


def _origin(row: Row) -> str:
    return f"{row.source}, driver {row.driver or 'not told'}"


def _names(table: GpuTable) -> tuple[str, ...]:
    return (table.name, *table.aliases, *table.gpu_names)


def _words(text: str) -> tuple[str, ...]:
    """``NVIDIA A100-SXM4-80GB`` → a100, sxm4, 80gb."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    vendor = list(takewhile(lambda word: word == "nvidia", words))
    return tuple(words[len(vendor) :])
