"""The repository keeps the rules of the house (house.py), and each rule sees what breaks it."""

import re
from typing import get_args

import pytest

from scheduler.lifecycle import BreachCode
from tests import house
from tests.house import RULES, Rule, Source, circle, loaded_by, read_tree


@pytest.fixture(scope="module")
def tree() -> list[Source]:
    return list(read_tree())


@pytest.fixture(scope="module")
def program(tree: list[Source]) -> list[Source]:
    return [source for source in tree if source.is_of_the_program]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Rule, tree: list[Source]) -> None:
    complaints = [complaint for source in tree for complaint in rule(source)]
    if complaints:
        pytest.fail("\n".join([f"{rule.__name__.replace('_', ' ')}:", *complaints]), pytrace=False)


def test_no_import_circle(program: list[Source]) -> None:
    assert circle(program) == []


def test_the_launcher_never_loads_torch(program: list[Source]) -> None:
    modules = [source.module for source in program if source.module.startswith("scheduler")]
    loaded = {module: loaded_by(module, program) for module in modules}
    assert {
        (module, loaded[module][name])
        for module in modules
        for name in house.TORCH_FAMILY
        if name in loaded[module]
    } == set()


@pytest.mark.parametrize("start", ["scheduler.cli", "scheduler.worker"])
def test_help_and_workers_load_nothing_slow(start: str, program: list[Source]) -> None:
    loaded = loaded_by(start, program)
    assert {name: loaded[name] for name in house.SLOW_TO_IMPORT if name in loaded} == {}


BROKEN: tuple[tuple[Rule, str, str], ...] = (
    (house.every_scheduler_file_is_on_a_floor, "scheduler/attic.py", "1"),
    (house.imports_go_down_or_left, "scheduler/errors.py", "from scheduler import slices"),
    (
        house.imports_go_down_or_left,
        "scheduler/verdict.py",
        "def f():\n    from scheduler.clock import Clock",
    ),
    (house.imports_go_down_or_left, "scheduler/record.py", "from .run import run"),
    (house.imports_go_down_or_left, "scheduler/report/live.py", "import scheduler.cli"),
    (
        house.scheduler_uses_the_words_of_workloads_alone,
        "scheduler/run.py",
        "from workloads.loadgen import measure",
    ),
    (
        house.scheduler_uses_the_words_of_workloads_alone,
        "scheduler/worker.py",
        "from workloads import loadgen",
    ),
    (house.workloads_and_profiles_know_nothing_above_them, "workloads/bert.py", "import scheduler.clock"),
    (
        house.workloads_and_profiles_know_nothing_above_them,
        "profiles/__init__.py",
        "from workloads import catalog",
    ),
    (house.each_library_has_one_door, "scheduler/mig.py", "def f():\n    import pynvml"),
    (house.each_library_has_one_door, "workloads/bert.py", "importlib.import_module('mlperf_loadgen')"),
    (house.each_library_has_one_door, "scheduler/run.py", "from click import echo"),
    (house.decisions_are_pure, "scheduler/verdict.py", "import os"),
    (house.decisions_are_pure, "scheduler/assignment.py", "Path('x').read_text()"),
    (house.only_the_supervisor_kills, "scheduler/run.py", "os.killpg(1, 9)"),
    (house.only_the_supervisor_kills, "workloads/bert.py", "from os import kill"),
    (house.only_the_supervisor_kills, "scheduler/mps.py", "daemon.terminate()"),
    (house.only_the_clock_reads_time, "scheduler/run.py", "from time import monotonic"),
    (house.only_the_clock_reads_time, "scheduler/record.py", "datetime.now(UTC)"),
    (house.broad_excepts_are_three, "scheduler/run.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (
        house.broad_excepts_are_three,
        "workloads/bert.py",
        "try:\n    f()\nexcept (OSError, BaseException):\n    pass",
    ),
    (house.broad_excepts_are_three, "scheduler/mig.py", "try:\n    f()\nexcept:\n    pass"),
    (house.broad_excepts_are_three, "scheduler/mig.py", "with contextlib.suppress(Exception):\n    f()"),
    (house.broad_excepts_are_three, "scheduler/cli.py", "try:\n    f()\nexcept Exception:\n    pass\n" * 2),
    (house.only_the_cli_exits, "scheduler/run.py", "sys.exit(3)"),
    (house.only_the_cli_exits, "workloads/bert.py", "raise SystemExit"),
    (house.no_mock_and_no_sleep_in_a_test, "tests/unit/test_x.py", "from unittest.mock import patch"),
    (house.no_mock_and_no_sleep_in_a_test, "tests/unit/test_x.py", "time.sleep(1)"),
    (house.nothing_is_unfinished, "README.md", "TO" + "DO: write this"),
    (house.no_path_of_one_machine, "docs/x.md", "see /" + "home/jo/notes"),
    (house.no_registry_is_named, "scripts/install", "pip install --index" + "-url x"),
    (house.type_ignores_say_why, "scheduler/run.py", "x = f()  # type: " + "ignore[misc]"),
    (house.files_have_at_most_500_lines, "scheduler/run.py", "x = 1\n" * 501),
    (house.bodies_have_at_most_60_lines, "scheduler/run.py", "def f():\n" + "    x = 1\n" * 61),
    (house.names_say_something, "scheduler/run.py", "class RunManager: ..."),
    (house.names_say_something, "workloads/utils.py", "1"),
)


@pytest.mark.parametrize(
    ("rule", "path", "text"), BROKEN, ids=[f"{rule.__name__}-{path}" for rule, path, _ in BROKEN]
)
def test_rule_sees_what_breaks_it(rule: Rule, path: str, text: str) -> None:
    assert [complaint.split(":")[0] for complaint in rule(Source(path, text))] == [path]


def test_every_rule_was_tried() -> None:
    assert {rule for rule, _, _ in BROKEN} == set(RULES)


def test_a_circle_is_seen() -> None:
    sources = [
        Source("scheduler/a.py", "from scheduler import b"),
        Source("scheduler/b.py", "def f():\n    from scheduler.a import g"),
    ]
    assert set(circle(sources)) == {"scheduler.a", "scheduler.b"}


def test_what_is_loaded_is_followed_through_modules_but_not_into_functions() -> None:
    sources = [
        Source("scheduler/__init__.py", ""),
        Source("scheduler/a.py", "from scheduler.b import f\ndef g():\n    import pandas"),
        Source("scheduler/b.py", "if TYPE_CHECKING:\n    import numpy\nimport torch.nn"),
    ]
    assert loaded_by("scheduler.a", sources) == {"torch": "scheduler/b.py"}


def test_the_whole_tree_was_read(tree: list[Source]) -> None:
    paths = {source.path for source in tree}
    assert {"scheduler/errors.py", "tests/test_house.py", "scripts/install", ".ci/run", "README.md"} <= paths


def test_the_page_of_faults_has_all_twenty_and_names_tests_that_exist() -> None:
    page = (house.ROOT / "docs" / "faults.md").read_text(encoding="utf-8")
    assert [int(number) for number in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)] == list(range(1, 21))
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(test_\w+))?`", page)
    assert len(named) > 20
    missing = [
        f"{path}::{test}"
        for path, test in named
        if not (house.ROOT / path).exists()
        or (test and f"def {test}(" not in (house.ROOT / path).read_text(encoding="utf-8"))
    ]
    assert missing == []


def test_the_page_of_the_run_folder_names_every_finding() -> None:
    judges = [
        house.ROOT / "scheduler" / name for name in ("verdict.py", "quality.py", "idleness.py", "activity.py")
    ]
    verdict = "".join(path.read_text(encoding="utf-8") for path in judges)
    codes = {*get_args(BreachCode), *re.findall(r'code="([a-z-]+)"', verdict)}
    page = (house.ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    table = page[page.index("## Findings") :]
    assert {code for code in codes if f"`{code}`" not in table} == set()
    assert set(re.findall(r"`([a-z]+-[a-z-]+)`", table)) - codes == set()
