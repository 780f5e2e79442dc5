"""Workloads that are not of the catalogue: a class in a file, an installed entry point, a transformers folder.

``FILE.py:CLASS``, the entry point's name, ``hf:FOLDER``. What the launcher has to know is read from text, JSON
and metadata; nothing of the user's is imported before the worker does (guest.py). Imports no torch.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from importlib import metadata
from importlib.machinery import ModuleSpec
from pathlib import Path

from workloads.hf_config import SEQUENCE, HfConfig, read_config
from workloads.own_class import ClassFacts, read_class
from workloads.protocol import Scenario, Size, WorkloadError

GROUP = "hetero_mig.workloads"
"""Group of entry points: each a name and ``package.module:Class``."""

FILE, ENTRY_POINT, HF = "file", "entry-point", "hf"
"""Kinds, and the prefixes of their ``code``."""

BATCH_SIZE: dict[tuple[str, Size], int] = {
    ("cpu", "full"): 1,
    ("cpu", "small"): 8,
    ("cuda", "full"): 32,
    ("cuda", "small"): 32,
}
"""Where the class does not say: small enough for a model of some GB on a slice of 16."""

_IN_FILE = re.compile(r"(?P<file>.*\.py)(?::(?P<name>.*))?", re.DOTALL)
_ODD = re.compile(r"[^\w.-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """One such workload, as it is before anything is imported."""

    name: str
    """Fit for the name of a folder: ``my_workload.MyWorkload``, the entry point's name, ``hf-FOLDER``."""
    code: str
    """``file:/PATH.py:CLASS``, ``entry-point:MODULE:CLASS`` or ``hf:/PATH``: what the worker makes it from."""
    identity: str
    """The same for the same model, however it was asked for."""
    task: str
    sizes: dict[Size, str]
    scenarios: tuple[Scenario, ...]
    batch_size: dict[tuple[str, Size], int]
    server_target_latency_ms: int | None
    """None: as the round's file has it for own models."""
    imports: tuple[str, ...]
    reads_data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EntryPoint:
    """A workload that an installed distribution offers."""

    name: str
    value: str
    distribution: str


_KNOWN: dict[str, Own] = {}
"""What was found so far in this process, by name."""


def is_reference(word: str) -> bool:
    """Whether it has the form of a file's class or of a folder, there or not."""
    return word.startswith(f"{HF}:") or _IN_FILE.fullmatch(word) is not None


def names_of(words: Sequence[str]) -> set[str]:
    """The names that these references (the other words are passed over) are given, if no two share one."""
    names: set[str] = set()
    for word in (word.strip() for word in words):
        try:
            names |= {_name_of(word)} if is_reference(word) else set()
        except WorkloadError:  # find() will say so
            pass

    return names


def find(word: str) -> Own | None:
    """The workload by its reference, or by the name it was given in this process; None: there is none.

    Raises:
        WorkloadError: a reference to something that is no workload; says what, where, and what is wanted.
    """
    if word in _KNOWN:
        return _KNOWN[word]

    if word.startswith(f"{HF}:"):
        return _remember(_in_folder(word))

    if _IN_FILE.fullmatch(word):
        return _remember(_in_file(word))

    points = [each for each in entry_points() if plain(each.name) == plain(word)]
    return _remember(_installed(points)) if points else None


def entry_points() -> list[EntryPoint]:
    """All that is installed in the group, by name."""
    found = {
        EntryPoint(
            name=each.name, value=each.value, distribution="" if each.dist is None else each.dist.name
        ): None
        for each in metadata.entry_points(group=GROUP)
    }
    return sorted(found, key=lambda each: (each.name, each.value))


def is_entry_point(word: str) -> bool:
    """Whether something installed has that name."""
    return any(plain(each.name) == plain(word) for each in entry_points())


def known(name: str) -> Own:
    """The workload that ``find`` gave this name.

    Raises:
        KeyError: none.
    """
    return _KNOWN[name]


def plain(name: str) -> str:
    """A name as it is compared: in lower case, with hyphens."""
    return name.strip().lower().replace("_", "-")


def _remember(found: Own) -> Own:
    """Keep it under its name; under another one where the name is taken by another model."""
    for name, known in _KNOWN.items():
        if known.identity == found.identity:
            _KNOWN[name] = found = replace(found, name=name)
            return found

    if found.name in _KNOWN:
        found = replace(found, name=f"{found.name}-{sha256(found.identity.encode()).hexdigest()[:6]}")

    _KNOWN[found.name] = found
    return found


def _name_of(reference: str) -> str:
    if reference.startswith(f"{HF}:"):
        return _ODD.sub("-", f"{HF}-{_path(reference.removeprefix(f'{HF}:')).name}")

    file, _, name = reference.rpartition(":")
    return _ODD.sub("-", f"{Path(file).stem}.{name}")


def _path(written: str) -> Path:
    try:
        return Path(written).expanduser().resolve()
    except (RuntimeError, ValueError, OSError) as error:  # no such user; a null byte; a circle of links
        raise WorkloadError(f"{written!r} is no path: {error}") from error


# ---------------------------------------------------------------------- the three kinds


def _in_file(reference: str) -> Own:
    file, _, name = reference.rpartition(":") if not reference.endswith(".py") else (reference, "", "")
    path = _path(file)
    if not path.is_file():
        raise WorkloadError(f"there is no file {path}")

    if not name.isidentifier():
        raise WorkloadError(
            f"{reference} names no class; write {file}:CLASS, the class in it that is the workload"
        )

    return _of_class(
        read_class(path, name),
        name=_name_of(reference),
        code=f"{FILE}:{path}:{name}",
        identity=f"{path}:{name}",
        origin=f"{path.name}:{name}",
    )


def _installed(points: Sequence[EntryPoint]) -> Own:
    one = points[0]
    if len({each.value for each in points}) > 1:
        by = "; ".join(f"{each.value} of {each.distribution}" for each in points)
        raise WorkloadError(f"entry point {one.name} is offered more than once: {by}; uninstall all but one")

    module, _, name = one.value.partition(":")
    module, name = module.strip(), name.strip()
    if not name.isidentifier():
        raise WorkloadError(
            f"entry point {one.name} of {one.distribution} is {one.value}; MODULE:CLASS is wanted"
        )

    spec = module_spec(module)
    if spec is None:
        raise WorkloadError(
            f"entry point {one.name} of {one.distribution} is {one.value}, and there is no module {module}; is the "
            "distribution installed whole?"
        )

    source = Path(spec.origin).resolve() if spec.origin and spec.origin.endswith(".py") else None
    nothing_known = ClassFacts(
        scenarios=None, batch_size=None, server_target_latency_ms=None, summary="", imports=("torch",)
    )
    return _of_class(
        nothing_known if source is None else read_class(source, name),
        name=_ODD.sub("-", one.name),
        code=f"{ENTRY_POINT}:{module}:{name}",
        identity=f"{source or module}:{name}",
        origin=f"{one.value} of {one.distribution}",
    )


def module_spec(module: str) -> ModuleSpec | None:
    """Where a module is; unlike importlib.util.find_spec this imports no package around it."""
    parts, found, path = module.split("."), None, None
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
        found = next((spec for each in finders if (spec := each.find_spec(name, path, None))), None)
        if found is None:
            return None

        path = found.submodule_search_locations
        if path is None and count < len(parts):
            return None

    return found


def _of_class(facts: ClassFacts, *, name: str, code: str, identity: str, origin: str) -> Own:
    return Own(
        name=name,
        code=code,
        identity=identity,
        task=f"{facts.summary} ({origin})" if facts.summary else origin,
        sizes={"full": "what the class makes of it", "small": "what the class makes of it"},
        scenarios=facts.scenarios or tuple(Scenario),
        batch_size=dict.fromkeys(BATCH_SIZE, facts.batch_size) if facts.batch_size else dict(BATCH_SIZE),
        server_target_latency_ms=facts.server_target_latency_ms,
        imports=facts.imports,
        reads_data="what the class makes of options.data",
    )


def _in_folder(reference: str) -> Own:
    folder = _path(reference.removeprefix(f"{HF}:"))
    config = read_config(folder)
    return Own(
        name=_name_of(reference),
        code=f"{HF}:{folder}",
        identity=str(folder),
        task=f"{config.task} ({config.architecture})",
        sizes={size: _samples(config, size) for size in SEQUENCE},
        scenarios=tuple(Scenario),
        batch_size=dict(BATCH_SIZE),
        server_target_latency_ms=None,
        imports=("torch", "transformers.modeling_utils"),
        reads_data="a folder of JPEG or PNG images"
        if config.side
        else "UTF-8 text, for the folder's own tokenizer",
    )


def _samples(config: HfConfig, size: Size) -> str:
    return f"3×{config.side}×{config.side}" if config.side else f"{config.tokens(size)} tokens"
