"""What a Python file says of a workload class in it, read as text: nothing of the user's is imported here.

The launcher decides with it before anything starts. What text cannot tell (a base class from elsewhere, a name
that is imported or computed) is left to the worker, which imports the file (guest.py).
"""

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workloads.protocol import Scenario, WorkloadError

METHODS = {
    "__init__": ("name", "options"),
    "load": (),
    "load_samples": ("indices",),
    "unload_samples": ("indices",),
    "predict": ("indices",),
    "reference": ("indices",),
}
"""What a Workload (protocol.py) has, and what each is called with beside self."""

ATTRIBUTES = ("total_sample_count", "notes")

ADD_NO_MEMBER = {"object", "ABC", "Generic", "Protocol", "Workload", "Module"}
"""Bases, by the last part of their name, from which a class inherits nothing that a workload needs."""

SHARED_IMPORTS = ("torch", "torchvision")
"""What takes long to import, and is worth importing once for all workers."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
ByName = dict[str, Function | ast.expr | None]
"""The members of a class: its methods, the values of its attributes, None where only an instance has them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassFacts:
    """A workload class as its file describes it."""

    scenarios: tuple[Scenario, ...] | None
    """``SCENARIOS``; None: not said."""
    batch_size: int | None
    """``BATCH_SIZE``."""
    server_target_latency_ms: int | None
    """``SERVER_TARGET_LATENCY_MS``."""
    summary: str
    """First line of the docstring; may be empty."""
    imports: tuple[str, ...]
    """Of SHARED_IMPORTS, what the file imports."""


def read_class(path: Path, name: str) -> ClassFacts:
    """The class ``name`` at the top level of the file.

    Raises:
        WorkloadError: the file cannot be read or is no Python, has no such class, or the class lacks a member
            of a Workload or takes other arguments; names file and line.
    """
    tree = _parsed(path)
    statements = list(_top_level(tree.body))
    classes = {each.name: each for each in statements if isinstance(each, ast.ClassDef)}
    imports = tuple(one for one in SHARED_IMPORTS if one in _imported(statements))
    if name not in classes:
        _refuse_unless_bound(path, name, statements, list(classes))
        return ClassFacts(
            scenarios=None, batch_size=None, server_target_latency_ms=None, summary="", imports=imports
        )

    here = classes[name]
    members, all_known = _members(here, classes)
    _check_methods(path, here, members, all_known)
    if all_known:
        _check_attributes(path, here, members)

    return ClassFacts(
        scenarios=_scenarios(path, name, members.get("SCENARIOS")),
        batch_size=_count(path, name, "BATCH_SIZE", members),
        server_target_latency_ms=_count(path, name, "SERVER_TARGET_LATENCY_MS", members),
        summary=(ast.get_docstring(here) or "").partition("\n")[0].strip(),
        imports=imports,
    )


def _parsed(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except OSError as error:
        raise WorkloadError(f"{path} cannot be read: {error.strerror}") from error
    except SyntaxError as error:
        raise WorkloadError(f"{path}:{error.lineno or 1}: {type(error).__name__}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a null byte; nested too deep
        raise WorkloadError(f"{path} is no Python file: {error}") from error


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that run when the file is imported, those of if, try and with blocks included."""
    for each in body:
        yield each
        if isinstance(each, ast.If | ast.Try | ast.With):
            yield from _top_level(each.body)
            if isinstance(each, ast.If | ast.Try):
                yield from _top_level(each.orelse)

            if isinstance(each, ast.Try):
                yield from _top_level(each.finalbody)
                for handler in each.handlers:
                    yield from _top_level(handler.body)


def _imported(statements: Iterable[ast.stmt]) -> set[str]:
    """Top-level names of the modules that these statements import."""
    modules: list[str] = []
    for each in statements:
        if isinstance(each, ast.Import):
            modules += [alias.name for alias in each.names]
        elif isinstance(each, ast.ImportFrom) and not each.level:
            modules.append(each.module or "")

    return {module.partition(".")[0] for module in modules}


def _refuse_unless_bound(path: Path, name: str, statements: Iterable[ast.stmt], classes: list[str]) -> None:
    """Pass a name that may well be a class of another file."""
    for each in statements:
        if isinstance(each, Function) and each.name == name:
            raise WorkloadError(f"{path}:{each.lineno}: {name} is a function, and a workload is a class")

        bound: list[str] = []
        if isinstance(each, ast.Import | ast.ImportFrom):
            bound = [alias.asname or alias.name.partition(".")[0] for alias in each.names]
        elif isinstance(each, ast.Assign):
            bound = [target.id for target in each.targets if isinstance(target, ast.Name)]

        if name in bound or "*" in bound:
            return

    found = f"its classes are {', '.join(classes)}" if classes else "it has no class at all"
    raise WorkloadError(f"{path} has no class {name}; {found}")


# ---------------------------------------------------------------------- members


def _members(here: ast.ClassDef, classes: dict[str, ast.ClassDef]) -> tuple[ByName, bool]:
    """The members of a class, and whether these are all: no base class is from elsewhere."""
    members, all_known, seen = ByName(), True, set[str]()

    def add(one: ast.ClassDef) -> None:
        nonlocal all_known
        seen.add(one.name)
        for name, value in _own_members(one):
            members.setdefault(name, value)

        for base in one.bases:
            written = ast.unparse(base).partition("[")[0]
            if written in classes:
                if written not in seen:
                    add(classes[written])
            elif written.rpartition(".")[2] not in ADD_NO_MEMBER:
                all_known = False

        all_known = all_known and not one.keywords and not one.decorator_list

    add(here)
    return members, all_known


def _own_members(one: ast.ClassDef) -> Iterator[tuple[str, Function | ast.expr | None]]:
    for each in one.body:
        if isinstance(each, Function):
            yield each.name, each
        elif isinstance(each, ast.Assign):
            for target in each.targets:
                if isinstance(target, ast.Name):
                    yield target.id, each.value
        elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name) and each.value is not None:
            yield each.target.id, each.value

    for method in (each for each in one.body if isinstance(each, Function)):
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                yield node.attr, None


def _check_methods(path: Path, here: ast.ClassDef, members: ByName, all_known: bool) -> None:
    missing = [f"{name}({', '.join(words)})" for name, words in METHODS.items() if name not in members]
    if missing and all_known:
        raise WorkloadError(
            f"{path}:{here.lineno}: {here.name} lacks {', '.join(missing)}; a workload has the members of "
            "workloads.protocol.Workload"
        )

    for name, words in METHODS.items():
        method = members.get(name)
        if isinstance(method, ast.AsyncFunctionDef):
            raise WorkloadError(
                f"{path}:{method.lineno}: {here.name}.{name} is async; a plain method is called"
            )

        if isinstance(method, ast.FunctionDef) and not _takes(method, len(words)):
            takes = ast.unparse(method.args)
            raise WorkloadError(
                f"{path}:{method.lineno}: {here.name}.{name} takes ({takes}), and is called with "
                f"({', '.join(('self', *words))})"
            )


def _takes(method: ast.FunctionDef, count: int) -> bool:
    """Whether it can be called with ``count`` positional arguments beside self."""
    if any(ast.unparse(each) in ("staticmethod", "classmethod") for each in method.decorator_list):
        return True  # seldom, and the worker will see

    args = method.args
    most = len(args.posonlyargs) + len(args.args) - 1
    least = most - len(args.defaults)
    return least <= count and (count <= most or args.vararg is not None) and None not in args.kw_defaults


def _check_attributes(path: Path, here: ast.ClassDef, members: ByName) -> None:
    missing = [name for name in ATTRIBUTES if name not in members]
    if missing:
        raise WorkloadError(
            f"{path}:{here.lineno}: {here.name} never sets {' and '.join('self.' + name for name in missing)}; "
            "a workload has the members of workloads.protocol.Workload"
        )


# ---------------------------------------------------------------------- what the class says of itself


def _scenarios(path: Path, name: str, value: object) -> tuple[Scenario, ...] | None:
    if value is None:
        return None

    by_plain_name = {scenario.value.lower(): scenario for scenario in Scenario}
    found: list[Scenario] = []
    elements = value.elts if isinstance(value, ast.Tuple | ast.List | ast.Set) else []
    for each in elements:
        word = each.attr if isinstance(each, ast.Attribute) else getattr(each, "value", "")
        scenario = by_plain_name.get(re.sub(r"[-_ ]", "", str(word)).lower())
        if scenario is None:
            raise WorkloadError(
                f"{path}:{each.lineno}: {name}.SCENARIOS has {ast.unparse(each)}; there are {', '.join(Scenario)}"
            )

        found.append(scenario)

    if not found:
        raise WorkloadError(
            f"{path}:{getattr(value, 'lineno', 1)}: {name}.SCENARIOS is read without running the file: write a "
            f"tuple of {', '.join(repr(each.value) for each in Scenario)}"
        )

    return tuple(found)


def _count(path: Path, name: str, attribute: str, members: ByName) -> int | None:
    value = members.get(attribute)
    if value is None:
        return None

    number = value.value if isinstance(value, ast.Constant) else None
    if type(number) is not int or number < 1:
        raise WorkloadError(
            f"{path}:{value.lineno}: {name}.{attribute} is read without running the file: write a whole number "
            "of at least 1"
        )

    return number
