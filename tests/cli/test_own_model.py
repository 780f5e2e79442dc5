"""A model of the user's own from the command line: the example of the documentation, and each way of being wrong."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.result import Result
from tests.cli.program import QUICK, call
from tests.house import ROOT

EXAMPLE = f"{ROOT / 'examples' / 'my_workload.py'}:MyWorkload"
ON_CPU = ("--slices", "cpu", *QUICK)

PLAIN = """
import numpy as np

class Plain:
    def __init__(self, name, options):
        self.total_sample_count = 16
        self.notes = ["computes nothing"]

    def load(self):
        pass

    def load_samples(self, indices):
        pass

    def unload_samples(self, indices):
        pass

    def predict(self, indices):
        return np.zeros((len(indices), 1), np.float32)

    def reference(self, indices):
        return self.predict(indices)
"""


def written(folder: Path, text: str = PLAIN) -> str:
    """The reference of class Plain in a file of that text."""
    (folder / "mine.py").write_text(text)
    return f"{folder / 'mine.py'}:Plain"


# ---------------------------------------------------------------------- as it should be


@pytest.fixture
def transformers_folder(tmp_path: Path) -> str:
    """A DistilBERT with nothing but a configuration."""
    config = {
        "architectures": ["DistilBertForSequenceClassification"],
        "model_type": "distilbert",
        "vocab_size": 99,
        "dim": 16,
        "hidden_dim": 32,
        "n_layers": 1,
        "n_heads": 2,
    }
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "config.json").write_text(json.dumps(config))
    return f"hf:{tmp_path / 'tiny'}"


def judged_twice(folder: Path, *arguments: str) -> Result:
    """The result of a run that ended VALID, and was found so again."""
    done = call(*arguments, *ON_CPU, "--output", str(folder), "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    result = Result.model_validate_json(done.stdout)
    assert all(one.samples_in_main_window > 0 for one in result.background)
    again = call("validate", str(folder), "--json")
    assert again.returncode == 0, again.stderr
    assert Result.model_validate_json(again.stdout) == result
    return result


def test_the_example_is_main_under_offline_beside_a_transformers_folder(
    tmp_path: Path, transformers_folder: str
):
    result = judged_twice(tmp_path / "run", "--main", EXAMPLE, "--background", transformers_folder)
    assert result.main.workload == "my_workload.MyWorkload"
    assert any(f"code: {EXAMPLE}, sha256 " in note for note in result.main.notes)
    assert [one.workload for one in result.background] == ["hf-tiny"]
    assert any("random, seed 0" in note for note in result.background[0].notes)


def test_the_example_is_main_under_server_and_background_too(tmp_path: Path):
    server = ("--main-scenario", "Server", "--target-qps", "200")
    result = judged_twice(tmp_path / "run", "--main", EXAMPLE, *server, "--background", "fixed")
    assert (result.main.scenario, result.main.loadgen_valid) == ("Server", True)
    result = judged_twice(tmp_path / "run2", "--main", "null", "--background", EXAMPLE)
    assert [one.workload for one in result.background] == ["my_workload.MyWorkload"]


@pytest.mark.slow
def test_a_transformers_folder_is_main_under_server(tmp_path: Path, transformers_folder: str):
    server = ("--main-scenario", "Server", "--target-qps", "200")
    assert judged_twice(tmp_path / "run", "--main", transformers_folder, *server).main.workload == "hf-tiny"


def test_the_page_shows_the_example_which_has_under_40_lines():
    text = (ROOT / "examples" / "my_workload.py").read_text()
    assert len(text.splitlines()) < 40
    assert text in (ROOT / "docs" / "own-model.md").read_text()


@pytest.mark.parametrize(("gives", "code"), [("ones", 0), ("zeros", 1)])
def test_an_accuracy_run_holds_predict_against_reference(tmp_path: Path, gives: str, code: int):
    text = PLAIN.replace("return self.predict(indices)", "return np.ones((len(indices), 1), np.float32)")
    mine = written(tmp_path, text.replace("np.zeros", f"np.{gives}"))
    arguments = ("--main", mine, "--background", "none", "--main-mode", "accuracy", "--preset", "quick")
    done = call(*arguments, "--slices", "cpu", "--output", str(tmp_path / "run"), "--json")
    assert done.returncode == code, done.stdout + done.stderr
    quality = Result.model_validate_json(done.stdout).main.accuracy
    assert quality is not None
    assert (quality.kind, quality.samples, quality.reached) == ("fidelity", 16, code == 0)


def test_options_reach_it_by_reference_and_by_the_name_it_is_given(tmp_path: Path):
    mine = written(tmp_path)
    (tmp_path / "data").mkdir()
    arguments = (
        "--main",
        mine,
        "--background",
        "null",
        "--batch-size",
        "mine.Plain=3",
        "--data",
        f"{mine}={tmp_path}",
    )
    done = call(*arguments, *ON_CPU, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    main = json.loads(done.stdout)["main"]
    assert main["name"] == "main-mine.Plain"
    assert (main["options"]["batch_size"], main["options"]["data"]) == (3, str(tmp_path))


def test_mains_own_model_is_not_in_the_background_however_it_is_written(tmp_path: Path):
    mine = written(tmp_path)
    (tmp_path / "link.py").symlink_to("mine.py")
    same = f"{tmp_path}/./link.py:Plain"
    done = call("--main", mine, "--background", f"{same},null", *ON_CPU, "--dry-run", "--json")
    assert done.returncode == 0, done.stderr
    assert [one["workload"] for one in json.loads(done.stdout)["background"]] == ["null"]
    alone = call("--main", mine, "--background", same, *ON_CPU)
    assert alone.returncode == 2
    assert "main is mine.Plain itself" in alone.stderr


def test_the_launcher_neither_imports_it_nor_torch(tmp_path: Path):
    mine = written(tmp_path, "import torch\nprint('imported here')\n" + PLAIN)
    program = (
        "import sys\nfrom scheduler import cli\n"
        f"sys.argv = ['hetero-mig', '--main', {mine!r}, '--slices', 'cpu', '--dry-run']\n"
        "try:\n    cli.main()\nexcept SystemExit as end:\n    code = end.code\n"
        "print(code, [name for name in ('torch', 'mine', 'numpy') if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip().splitlines()[-1] == "0 []"
    assert "imported here" not in done.stdout


# ---------------------------------------------------------------------- before anything starts


def without(method: str) -> str:
    """The file without one of its methods."""
    head, _, rest = PLAIN.partition(f"    def {method}(")
    assert rest, method
    return head + rest.partition("\n\n")[2]


WRONG = [
    ("no file", None, "there is no file"),
    ("no class", "class Other: ...", "has no class Plain; its classes are Other"),
    ("syntax error", "class Plain:\n    def load(self:\n        pass\n", "mine.py:2: SyntaxError"),
    ("missing method", without("unload_samples"), "mine.py:4: Plain lacks unload_samples(indices)"),
]


@pytest.mark.parametrize(("text", "says"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG])
def test_what_can_be_seen_without_running_it_is_refused_at_once(tmp_path: Path, text: str | None, says: str):
    mine = f"{tmp_path / 'mine.py'}:Plain" if text is None else written(tmp_path, text)
    done = call("--main", mine, *ON_CPU, "--output", str(tmp_path / "run"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.startswith(f"asked: --main {mine}\nfound: ")
    assert says in done.stderr
    assert not (tmp_path / "run").exists()


def test_scenarios_that_the_class_excludes_are_refused(tmp_path: Path):
    mine = written(
        tmp_path, PLAIN.replace("Plain:\n", "Plain:\n    SCENARIOS = ('Offline', 'SingleStream')\n")
    )
    done = call("--main", mine, "--main-scenario", "server", *ON_CPU)
    assert done.returncode == 2
    assert "it runs under Offline, SingleStream" in done.stderr


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path):
    done = call("--main", f"hf:{tmp_path}", *ON_CPU)
    assert done.returncode == 2
    assert "has no config.json" in done.stderr


# ---------------------------------------------------------------------- once it runs

ZEROS = "np.zeros((len(indices), 1), np.float32)"
BROKEN = [
    (
        "import of a stranger",
        "import no_such_module\n" + PLAIN,
        "mine.py:1: ModuleNotFoundError: No module named",
    ),
    ("exit at import", PLAIN + "\nraise SystemExit('bye')\n", "SystemExit: bye"),
    (
        "raises in load",
        PLAIN.replace("pass", "open('nowhere.bin')", 1),
        "mine.py:10: in load: FileNotFoundError",
    ),
    ("raises in predict", PLAIN.replace(ZEROS, "{}[0]", 1), "mine.py:19: in predict: KeyError"),
    (
        "output count",
        PLAIN.replace(ZEROS, "np.zeros((3, 1))", 1),
        "predict gave an array of shape (3, 1) for 8 samples",
    ),
]


@pytest.mark.parametrize(("text", "says"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_what_shows_in_the_worker_ends_with_exit_2_and_names_file_and_line(
    tmp_path: Path, text: str, says: str
):
    mine = written(tmp_path, text)
    done = call("--main", mine, "--background", "none", *ON_CPU, "--output", str(tmp_path / "run"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert says in done.stdout.replace("\n", " ")
    assert "Traceback" not in done.stdout + done.stderr


def test_a_background_of_ones_own_that_breaks_is_told_likewise(tmp_path: Path):
    mine = written(tmp_path, PLAIN.replace(ZEROS, "{}[0]", 1))
    done = call("--main", "null", "--background", mine, *ON_CPU, "--output", str(tmp_path / "run"))
    assert done.returncode == 2, done.stdout + done.stderr
    assert "mine.py:19: in predict: KeyError: 0" in done.stdout
