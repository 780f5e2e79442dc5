"""The rules of the house: who may import whom, which file is the only door to what, and what no file holds.

A rule is a function from one source file to complaints (``path:line: what``). test_house.py holds the
repository against them.
"""

import ast
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("scheduler/", "workloads/", "profiles/")
NOT_OURS = {"results", "build", "dist", "__pycache__"}
TEXT = {"", ".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".csv"}

# fmt: off
FLOORS = (
    [
        "errors", "slices", "geometry", "spec", "events", "result", "columns", "turns",
    ],
    [
        "gpu_tables", "layout", "layout_files", "placement", "reshape", "mig_changes", "selection",
        "arithmetic", "assignment", "launch_lines", "lifecycle", "loadgen_log", "story", "quality",
        "idleness", "activity", "verdict", "conditions", "statistics", "derating", "comparison",
        "pairs", "predecessor", "search", "tuning", "audit_rules", "submission_layout",
        "submission_rules", "submission_text", "arrivals", "steady", "sweep", "profile_row",
        "migprofiler",
    ],
    [
        "clock", "record", "host", "capabilities", "nvml_codes", "nvml", "nvml_mig", "nvml_counters",
        "nvml_gpm", "holders", "preflight", "checkpoint", "orphans", "waiting", "mig", "mps", "proc",
        "dcgm", "telemetry_gpus", "telemetry", "metrics", "preload", "preloaded", "worker",
        "supervisor",
    ],
    [
        "inspection", "judging", "run", "build", "series", "mig_plan", "mig_status", "mig_mode", "mig_run",
        "compare", "published", "derate", "matrix", "tune", "audit", "submission", "profile", "report",
    ],
    [
        "cli_options", "cli_mig", "cli_derate", "cli_compare", "cli_audit", "cli_export", "cli_build",
        "cli_profile", "cli_matrix", "cli_predecessor", "cli_tune", "cli_report", "cli",
    ],
)
# fmt: on
"""Of scheduler/, lowest first. A file imports from floors below and from what is left of it on its own."""

PLACE = {name: (floor, left) for floor, names in enumerate(FLOORS) for left, name in enumerate(names)}

ONE_DOOR = {
    "pynvml": tuple(f"scheduler/{name}.py" for name in ("nvml", "nvml_mig", "nvml_counters", "nvml_gpm")),
    "prometheus_client": ("scheduler/dcgm.py", "scheduler/metrics.py"),
    "mlperf_loadgen": "workloads/loadgen.py",
    "click": "scheduler/cli",
    "pandas": "scheduler/report/",
}
KILLERS = ("scheduler/supervisor.py", "scheduler/orphans.py")
TIME_READERS = ("scheduler/clock.py", "scheduler/worker.py")
BROAD_EXCEPT_ONCE = ("scheduler/worker.py", "scheduler/cli.py", "workloads/loadgen.py")
"""Around a workload, around main, and where LoadGen calls back: it does not survive an exception there."""
WORKLOAD_WORDS = ("protocol", "catalog", "progress", "engine_cache", "queries")
WORKLOAD_WORDS_WITHIN_FUNCTIONS = {
    "scheduler/audit.py": ("accuracy_log",),
    "scheduler/inspection.py": ("data_sets",),
    "scheduler/worker.py": ("load_loop", "loadgen", "quality", "engine_build"),
}
TORCH_FAMILY = ("torch", "torchvision", "transformers", "safetensors", "mlperf_loadgen")
SLOW_TO_IMPORT = (*TORCH_FAMILY, "pandas", "matplotlib", "pynvml")
OUTSIDE_WORLD = [
    "asyncio",
    "io",
    "logging",
    "multiprocessing",
    "os",
    "psutil",
    "shutil",
    "signal",
    "socket",
    "subprocess",
    "sys",
    "tempfile",
    "threading",
    "time",
]
FILE_METHODS = [
    "exists",
    "glob",
    "is_dir",
    "is_file",
    "iterdir",
    "mkdir",
    "open",
    "read_bytes",
    "read_text",
    "stat",
    "write_bytes",
    "write_text",
]

# Joined from pieces, so that this file does not hold what it looks for.
UNFINISHED = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "XX" + "X")) + r")\b")
MACHINE_PATH = re.compile(r"(?<![\w.])/(" + "|".join(("home/[a-z]", "root/", "work/", "farm/")) + ")")
REGISTRY = re.compile(
    "|".join(
        (
            *("pypi" + r"\.org", "python" + "hosted", "download" + r"\.pytorch", "conda" + r"\.anaconda"),
            *("huggingface" + r"\.co\b", "index" + "-url", "find" + "-links", "/" + "simple/"),
        )
    )
)
IGNORE_WITHOUT_REASON = re.compile(r"#\s*type:\s*" + r"ignore(\[[^]]*\])?\s*$")
EMPTY_NAME = re.compile(
    r"^Base|(Manager|Handler|Helpers?|Utils?|Mixin)$|^(base|common|helpers?|manager|utils?)$"
)


@dataclass(frozen=True)
class Import:
    """One imported module or name, with dots: ``scheduler.clock.Clock``."""

    name: str
    line: int
    at_module_level: bool
    for_types_only: bool

    @property
    def top(self) -> str:
        return self.name.split(".")[0]


@dataclass(frozen=True)
class Source:
    """One text file of the repository; ``path`` is relative to it, with ``/``."""

    path: str
    text: str

    @property
    def is_python(self) -> bool:
        return self.path.endswith(".py") or re.match(r"#!.*python", self.text) is not None

    @property
    def is_of_the_program(self) -> bool:
        return self.is_python and self.path.startswith(PACKAGES)

    @property
    def module(self) -> str:
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def floor_name(self) -> str | None:
        """``report`` for scheduler/report/live.py; None outside scheduler/ and for its __init__."""
        parts = self.module.split(".")
        return parts[1] if self.is_of_the_program and parts[0] == "scheduler" and len(parts) > 1 else None

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(ast.parse(self.text)))

    @cached_property
    def imports(self) -> list[Import]:
        return list(_imports(ast.parse(self.text), self, at_module_level=True, for_types_only=False))

    def at(self, line: int, complaint: str) -> str:
        return f"{self.path}:{line}: {complaint}"


def _imports(
    node: ast.AST, source: Source, *, at_module_level: bool, for_types_only: bool
) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        names: list[str] = []
        if isinstance(child, ast.Import):
            names = [alias.name for alias in child.names]
        elif isinstance(child, ast.ImportFrom):
            package = source.module.split(".")
            package = package if source.path.endswith("__init__.py") else package[:-1]
            base = package[: len(package) - child.level + 1] if child.level else []
            names = [".".join([*base, *filter(None, [child.module]), alias.name]) for alias in child.names]
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(
            ("import_module", "__import__")
        ):
            names = [str(word.value) for word in child.args[:1] if isinstance(word, ast.Constant)]

        for name in names:
            yield Import(name, getattr(child, "lineno", 0), at_module_level, for_types_only)

        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        is_type_check = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        yield from _imports(
            child,
            source,
            at_module_level=at_module_level and not is_function,
            for_types_only=for_types_only or is_type_check,
        )


# ---------------------------------------------------------------------- who may import whom


def every_scheduler_file_is_on_a_floor(source: Source) -> Iterator[str]:
    if source.floor_name is not None and source.floor_name not in PLACE:
        yield source.at(1, f"{source.floor_name!r} is on no floor; give it its place in FLOORS")


def imports_go_down_or_left(source: Source) -> Iterator[str]:
    here = PLACE.get(source.floor_name or "")
    if here is None:
        return

    for one in source.imports:
        parts = one.name.split(".")
        there = PLACE.get(parts[1]) if parts[0] == "scheduler" and len(parts) > 1 else None
        if there is not None and parts[1] != source.floor_name and there >= here:
            yield source.at(one.line, f"{one.name} is above, or right of it on its own floor")


def scheduler_uses_the_words_of_workloads_alone(source: Source) -> Iterator[str]:
    if source.floor_name is None:
        return

    within_functions = WORKLOAD_WORDS_WITHIN_FUNCTIONS.get(source.path, ())
    for one in source.imports:
        part = one.name.removeprefix("workloads.").split(".")[0]
        late = part in within_functions and not one.at_module_level
        if one.top == "workloads" and part not in WORKLOAD_WORDS and not late:
            yield source.at(one.line, f"{one.name}: of workloads, only {', '.join(WORKLOAD_WORDS)}")


def workloads_and_profiles_know_nothing_above_them(source: Source) -> Iterator[str]:
    strangers = {"workloads": {"scheduler", "tests"}, "profiles": {"scheduler", "workloads", "tests"}}
    for one in source.imports if source.is_of_the_program else []:
        if one.top in strangers.get(source.module.split(".")[0], {"tests"}):
            yield source.at(one.line, f"{one.name} is not known here")


def each_library_has_one_door(source: Source) -> Iterator[str]:
    for one in source.imports if source.is_of_the_program else []:
        if one.top in ONE_DOOR and not source.path.startswith(ONE_DOOR[one.top]):
            yield source.at(one.line, f"{one.top} is used in {ONE_DOOR[one.top]} alone")


# ---------------------------------------------------------------------- who may do what


def decisions_are_pure(source: Source) -> Iterator[str]:
    if source.floor_name is None or source.floor_name not in FLOORS[1]:
        return

    for one in source.imports:
        if one.top in OUTSIDE_WORLD:
            yield source.at(one.line, f"a decision needs no {one.top}")

    for node in source.nodes:
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("open", "print", "input") or called.rpartition(".")[2] in FILE_METHODS:
                yield source.at(node.lineno, f"a decision does no I/O: {called}()")


def only_the_supervisor_kills(source: Source) -> Iterator[str]:
    if not source.is_of_the_program or source.path in KILLERS:
        return

    words = ("kill", "killpg", "terminate", "send_signal", "pidfd_send_signal", "pthread_kill")
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and node.attr in words:
            yield source.at(node.lineno, f"{ast.unparse(node)}: processes are ended in {KILLERS[0]}")

    for one in source.imports:
        if one.name.rpartition(".")[2] in words:
            yield source.at(one.line, f"{one.name}: processes are ended in {KILLERS[0]}")


def only_the_clock_reads_time(source: Source) -> Iterator[str]:
    if source.floor_name is None or source.path in TIME_READERS:
        return

    for one in source.imports:
        if one.top == "time":
            yield source.at(one.line, f"{one.name}: time comes through {TIME_READERS[0]}")

    for node in source.nodes:
        if isinstance(node, ast.Attribute) and re.search(
            r"\bdate(time)?\.(now|utcnow|today)$", ast.unparse(node)
        ):
            yield source.at(node.lineno, f"{ast.unparse(node)}: time comes through {TIME_READERS[0]}")


def broad_excepts_are_three(source: Source) -> Iterator[str]:
    broad = re.compile(r"\b(Base)?Exception\b")
    found = [
        node.lineno
        for node in (source.nodes if source.is_of_the_program else [])
        if (
            isinstance(node, ast.ExceptHandler)
            and (node.type is None or broad.search(ast.unparse(node.type)))
        )
        or (
            isinstance(node, ast.Call)
            and re.match(r"(contextlib\.)?suppress\(.*\bException", ast.unparse(node))
        )
    ]
    allowed = 1 if source.path in BROAD_EXCEPT_ONCE else 0
    for line in found[allowed:]:
        yield source.at(
            line, f"name the errors; a broad except stands once in {', '.join(BROAD_EXCEPT_ONCE)}"
        )


def only_the_cli_exits(source: Source) -> Iterator[str]:
    if not source.is_of_the_program or source.path == "scheduler/cli.py":
        return

    for node in source.nodes:
        is_call = isinstance(node, ast.Call) and ast.unparse(node.func) in ("sys.exit", "exit", "quit")
        if is_call or (isinstance(node, ast.Name) and node.id == "SystemExit"):
            yield source.at(getattr(node, "lineno", 0), "raise an error of errors.py; only cli.py exits")


def no_mock_and_no_sleep_in_a_test(source: Source) -> Iterator[str]:
    name = source.path.rpartition("/")[
        2
    ]  # what a test starts as another process may sleep: that is its behaviour
    if not source.path.startswith("tests/") or not name.startswith(("test_", "conftest")):
        return

    for one in source.imports:
        if one.name.startswith(("unittest.mock", "mock", "pytest_mock")):
            yield source.at(one.line, "no mocks: a fake refuses as the real thing does")

    for node in source.nodes:
        if isinstance(node, ast.Call) and re.search(r"(^|\.)sleep$", ast.unparse(node.func)):
            yield source.at(node.lineno, "wait for the thing itself, not for time to pass")


# ---------------------------------------------------------------------- what no file holds


def nothing_is_unfinished(source: Source) -> Iterator[str]:
    yield from _lines_with(UNFINISHED, source, "finish it, or open an issue")


def no_path_of_one_machine(source: Source) -> Iterator[str]:
    yield from _lines_with(MACHINE_PATH, source, "a path that exists on one machine")


def no_registry_is_named(source: Source) -> Iterator[str]:
    yield from _lines_with(REGISTRY, source, "where packages come from is the user's own setting")


def type_ignores_say_why(source: Source) -> Iterator[str]:
    if source.is_python:
        yield from _lines_with(IGNORE_WITHOUT_REASON, source, "say why beside it")


def _lines_with(pattern: re.Pattern[str], source: Source, complaint: str) -> Iterator[str]:
    for number, line in enumerate(source.text.splitlines(), 1):
        if found := pattern.search(line):
            yield source.at(number, f"{found[0]!r}: {complaint}")


def files_have_at_most_500_lines(source: Source) -> Iterator[str]:
    length = len(source.text.splitlines())
    if source.is_python and length > 500:
        yield source.at(length, f"{length} lines; a file has one noun")


def bodies_have_at_most_60_lines(source: Source) -> Iterator[str]:
    for node in source.nodes if source.is_python else []:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = (
                node.body[1] if ast.get_docstring(node) is not None and len(node.body) > 1 else node.body[0]
            )
            length = (node.end_lineno or 0) - first.lineno + 1
            if length > 60:
                yield source.at(node.lineno, f"the body of {node.name} has {length} lines")


def names_say_something(source: Source) -> Iterator[str]:
    if not source.is_of_the_program:
        return

    named = [(1, source.module.rpartition(".")[2])]
    named += [(node.lineno, node.name) for node in source.nodes if isinstance(node, ast.ClassDef)]
    for line, name in named:
        if EMPTY_NAME.search(name):
            yield source.at(line, f"{name}: say what it is")


Rule = Callable[[Source], Iterator[str]]
RULES: tuple[Rule, ...] = (
    every_scheduler_file_is_on_a_floor,
    imports_go_down_or_left,
    scheduler_uses_the_words_of_workloads_alone,
    workloads_and_profiles_know_nothing_above_them,
    each_library_has_one_door,
    decisions_are_pure,
    only_the_supervisor_kills,
    only_the_clock_reads_time,
    broad_excepts_are_three,
    only_the_cli_exits,
    no_mock_and_no_sleep_in_a_test,
    nothing_is_unfinished,
    no_path_of_one_machine,
    no_registry_is_named,
    type_ignores_say_why,
    files_have_at_most_500_lines,
    bodies_have_at_most_60_lines,
    names_say_something,
)

# ---------------------------------------------------------------------- rules of the whole tree


def module_of(name: str, modules: Iterable[str]) -> str | None:
    """The module of ours that importing ``name`` loads last; None for a stranger."""
    ours = set(modules)
    parts = name.split(".")
    return next(
        (".".join(parts[:n]) for n in (len(parts), len(parts) - 1, 1) if ".".join(parts[:n]) in ours), None
    )


def circle(sources: Iterable[Source]) -> list[str]:
    """The modules of one import circle, in order; empty if there is none."""
    by_module = {source.module: source for source in sources}
    graph = {
        module: {module_of(one.name, by_module) for one in source.imports} - {None, module}
        for module, source in by_module.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [str(module) for module in error.args[1]]

    return []


def loaded_by(start: str, sources: Iterable[Source]) -> dict[str, str]:
    """What importing the module ``start`` loads: top-level name of each stranger → the file that asks for it."""
    by_module = {source.module: source for source in sources}
    strangers: dict[str, str] = {}
    todo, seen = [start], set[str]()
    while todo:
        module = todo.pop()
        if module in seen:
            continue

        seen.add(module)
        todo += [package for package in [module.rpartition(".")[0]] if package]
        for one in by_module[module].imports:
            if one.at_module_level and not one.for_types_only:
                ours = module_of(one.name, by_module)
                if ours is None:
                    strangers.setdefault(one.top, by_module[module].path)
                else:
                    todo.append(ours)

    return strangers


def read_tree() -> Iterator[Source]:
    for folder, folders, files in os.walk(ROOT):
        hidden = {name for name in folders if name.startswith(".") and name != ".ci"}
        folders[:] = sorted(
            set(folders) - hidden - NOT_OURS - {n for n in folders if n.endswith(".egg-info")}
        )
        for path in (Path(folder, name) for name in sorted(files)):
            if path.suffix in TEXT and not path.name.startswith("."):
                yield Source(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
