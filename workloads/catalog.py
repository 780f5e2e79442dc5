"""The workloads by name: the entries (entries.py), macros, and the user's own models (own.py). Imports no torch."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from workloads import own
from workloads.entries import ALL_SCENARIOS, ENTRIES, FLOATS, OF_LINEAR_LAYERS, Entry
from workloads.protocol import Workload, WorkloadError, WorkloadOptions

__all__ = [
    "ALL_SCENARIOS",
    "CATALOG",
    "MACROS",
    "Entry",
    "blame",
    "build",
    "construct",
    "entry",
    "find",
    "has_random_weights",
    "listed",
    "names_one",
]

CATALOG: dict[str, Entry] = {entry.name: entry for entry in ENTRIES}

MACROS: dict[str, tuple[str, ...]] = {
    "datacenter": ("3d-unet", "bert", "dlrm", "resnet50", "rnnt", "ssd-resnet34"),
    "edge": ("3d-unet", "bert", "resnet50", "rnnt", "ssd-mobilenet", "ssd-resnet34"),
    "all": ("3d-unet", "bert", "dlrm", "resnet50", "rnnt", "ssd-mobilenet", "ssd-resnet34"),
    "none": (),
}
"""As in MLPerf's HeteroMIG harness."""


def find(name: str) -> Entry | None:
    """The workload by its name or any alias, whatever the case, or an own model by its reference; None: no such one.

    Raises:
        WorkloadError: a reference (``FILE.py:CLASS``, ``hf:FOLDER``, an entry point) to something that is no workload.
    """
    wanted = own.plain(name)
    for entry in CATALOG.values():
        if wanted == entry.name or wanted in entry.aliases:
            return entry

    found = own.find(name.strip())
    return None if found is None else _entry(found)


def names_one(word: str, references: Sequence[str] = ()) -> bool:
    """Whether ``word`` names a workload, or has the form of a reference to one; looks into no file.

    Args:
        references: as given beside it; ``word`` may also be the name that an own model among them is given.
    """
    known = any(own.plain(word) in (entry.name, *entry.aliases) for entry in CATALOG.values())
    return known or own.is_reference(word) or word in own.names_of(references) or own.is_entry_point(word)


def entry(name: str) -> Entry:
    """The workload of that very name, of the catalogue or an own model that ``find`` has met.

    Raises:
        KeyError: there is none.
    """
    return CATALOG[name] if name in CATALOG else _entry(own.known(name))


def has_random_weights(workload: str, weights: object) -> bool:
    """Whether it is known that they are: the catalogue's workloads draw theirs where none are named, and an own
    model may bring its own."""
    known = CATALOG.get(workload)
    return weights is None and known is not None and any(known.parameters.values())


def listed() -> tuple[list[Entry], list[str]]:
    """All workloads that have a name, entry points too; and what is wrong with those that cannot be used."""
    entries, problems = list(CATALOG.values()), list[str]()
    for point in own.entry_points():
        try:
            found = find(point.name)
        except WorkloadError as error:
            problems.append(str(error))
            continue

        if found is None or found.name in CATALOG:
            problems.append(
                f"entry point {point.name} of {point.distribution} is hidden: a workload here has its name"
            )
        elif found not in entries:
            entries.append(found)

    return entries, problems


def _entry(found: own.Own) -> Entry:
    return Entry(
        name=found.name,
        scenarios=found.scenarios,
        code=found.code,
        imports=found.imports,
        reads_data=found.reads_data,
        task=found.task,
        sizes=found.sizes,
        parameters={},
        flops_per_sample={},
        batch_size=found.batch_size,
        precisions=OF_LINEAR_LAYERS if found.code.startswith(f"{own.HF}:") else FLOATS,
        server_target_latency_ms=found.server_target_latency_ms,
    )


def build(name: str, options: WorkloadOptions) -> Workload:
    """Construct a workload (not loaded yet). Imports its module, and torch with it."""
    return construct(entry(name).code, name, options)


def construct(code: str, name: str, options: WorkloadOptions) -> Workload:
    """The same from ``Entry.code``: what a worker is told.

    Raises:
        WorkloadError: an own model that is no workload; what importing it raises goes through (see blame()).
    """
    kind, _, rest = code.partition(":")
    if kind == own.HF:
        return import_module("workloads.hf").HfModel(name, options, Path(rest))  # type: ignore[no-any-return]  # late

    if kind in (own.FILE, own.ENTRY_POINT):
        return import_module("workloads.guest").construct(code, name, options)  # type: ignore[no-any-return]  # late

    workload: Workload = getattr(import_module(kind), rest)(name, options)
    return workload


def blame(code: str, error: BaseException) -> str | None:
    """``FILE:LINE: …`` where an error came out of an own model's code; None where it did not."""
    if not code.startswith((f"{own.FILE}:", f"{own.ENTRY_POINT}:")):
        return None

    message: str | None = import_module("workloads.guest").blame(code, error)
    return message
