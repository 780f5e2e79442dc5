"""What is decided about a workload of the user's own before it is imported, and what is held against it after."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from workloads import catalog, own
from workloads.guest import Guest, blame
from workloads.own_class import read_class
from workloads.pipeline import begin_of, lengths_of
from workloads.protocol import Scenario, WorkloadError, WorkloadOptions

OPTIONS = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=4, seed=0, threads=1, memory_mib=64
)
MODEL = '''
import numpy as np

class Model{bases}:
    """Adds one."""

    total_sample_count = 4

    def __init__(self, name, options):
        self.notes = [name]

    def load(self): ...
    def load_samples(self, indices): ...
    def unload_samples(self, indices): ...
    def predict(self, indices):
        return np.array(indices) + 1
    reference = predict
'''
PLAIN = MODEL.format(bases="")

NO_ARGUMENTS = PLAIN.replace("(self, name, options)", "(self)").replace("[name]", "[]")


@pytest.fixture(autouse=True)
def _forgetful(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test begins where a process does, and leaves no module and no path behind."""
    monkeypatch.setattr(own, "_KNOWN", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if "/pytest-" in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def write(path: Path, text: str = PLAIN) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def found(word: str) -> own.Own:
    answer = own.find(word)
    assert answer is not None
    return answer


# ---------------------------------------------------------------------- a file, read as text


def test_a_class_has_the_catalogues_facts(tmp_path: Path):
    text = PLAIN.replace(
        "    total_sample_count",
        "    SCENARIOS = [Scenario.OFFLINE, 'single-stream']\n    BATCH_SIZE: int = 12\n"
        "    SERVER_TARGET_LATENCY_MS = 250\n    total_sample_count",
    )
    entry = catalog.find(f"{write(tmp_path / 'adder.py', 'import torch.nn as nn' + text)}:Model")
    assert entry is not None
    assert (entry.name, entry.task) == ("adder.Model", "Adds one. (adder.py:Model)")
    assert entry.scenarios == (Scenario.OFFLINE, Scenario.SINGLE_STREAM)
    assert set(entry.batch_size.values()) == {12}
    assert (entry.server_target_latency_ms, entry.imports, entry.parameters) == (250, ("torch",), {})
    assert catalog.entry("adder.Model") == entry


def test_a_class_that_says_nothing_has_the_defaults(tmp_path: Path):
    one = found(f"{write(tmp_path / 'adder.py')}:Model")
    assert one.scenarios == tuple(Scenario)
    assert one.batch_size == own.BATCH_SIZE
    assert (one.server_target_latency_ms, one.imports) == (None, ())


@pytest.mark.parametrize("bases", ["", "(object)", "(Workload)", "(nn.Module)", "(Protocol[T], ABC)"])
def test_bases_that_add_no_member_do_not_hide_a_missing_one(tmp_path: Path, bases: str):
    text = MODEL.format(bases=bases).replace("def load(self)", "def lode(self)")
    with pytest.raises(WorkloadError, match=r"m\.py:4: Model lacks load\(\)"):
        read_class(write(tmp_path / "m.py", text), "Model")


@pytest.mark.parametrize(
    "text",
    [
        "from elsewhere import Model",
        "from elsewhere import *",
        "import elsewhere as Model",
        "Model = make()",
        "from elsewhere import Other\nclass Model(Other): ...",
        "@complete\nclass Model: ...",
        "class Model(metaclass=Meta): ...",
        PLAIN.replace("class Model", "class Parent") + "\nclass Model(Parent): ...",
        "if True:\n    try:\n        pass\n    except ImportError:\n        from elsewhere import Model",
    ],
)
def test_what_text_cannot_tell_is_left_to_the_worker(tmp_path: Path, text: str):
    read_class(write(tmp_path / "m.py", text), "Model")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no class Model; it has no class at all"),
        ("def Model(name, options): ...", "m.py:1: Model is a function"),
        ("x = (", r"m.py:1: SyntaxError: '\(' was never closed"),
        ("x = 1\0", "null byte"),
        ("class Model:\n  def load(self): ...", r"m.py:1: Model lacks __init__\(name, options\), load_samples"),
        (PLAIN.replace("(self, name, options)", "(self, options)"), r"is called with \(self, name, options\)"),
        (PLAIN.replace("(self, name, options)", "(self, name, options, *, depth)"), "takes"),
        (PLAIN.replace("def predict(self, indices)", "async def predict(self, indices)"), "predict is async"),
        (PLAIN.replace("total_sample_count", "samples"), "never sets self.total_sample_count"),
        (PLAIN.replace("total_sample_count = 4", "total_sample_count = 4; BATCH_SIZE = 2**4"), "BATCH_SIZE is read w"),
        (PLAIN.replace("total_sample_count = 4", "total_sample_count = 4; BATCH_SIZE = 0"), "at least 1"),
        (PLAIN.replace("total_sample_count = 4", "total_sample_count = 4; SCENARIOS = ALL"), "without running"),
    ],
)  # fmt: skip
def test_what_text_can_tell_names_file_and_line(tmp_path: Path, text: str, says: str):
    with pytest.raises(WorkloadError, match=says):
        read_class(write(tmp_path / "m.py", text), "Model")


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("gone.py:Model", "there is no file"),
        ("m.py", "m.py names no class; write m.py:CLASS"),
        ("m.py:", "names no class"),
        ("m.py:a.b", "names no class"),
        ("~no-such-user-here/m.py:Model", "is no path"),
        ("hf:gone", "gone is no folder"),
    ],
)
def test_references_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, says: str):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "m.py")
    with pytest.raises(WorkloadError, match=says):
        catalog.find(word)


# ---------------------------------------------------------------------- names


def test_the_same_model_has_one_name_however_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "a" / "m.py")
    (tmp_path / "b.py").symlink_to("a/m.py")
    monkeypatch.chdir(tmp_path)
    words = [
        "a/m.py:Model",
        str(tmp_path / "a/m.py:Model"),
        "a/../a/m.py:Model",
        "b.py:Model",
        " a/m.py:Model ",
    ]
    assert {entry.name for word in words if (entry := catalog.find(word)) is not None} == {"m.Model"}


def test_two_models_that_would_share_a_name_do_not(tmp_path: Path):
    one, other = (found(f"{write(tmp_path / folder / 'm.py')}:Model") for folder in "ab")
    assert one.name == "m.Model"
    assert other.name.startswith("m.Model-")
    assert found(f"{tmp_path / 'b' / 'm.py'}:Model").name == other.name


def test_an_option_can_name_it_by_reference_or_name_and_a_path_is_no_name(tmp_path: Path):
    references = ["examples/m.py:Model", "hf:some/tiny model"]
    for word in ("bert-99", "m.Model", "hf-tiny-model", *references):
        assert catalog.names_one(word, references), word

    for word in ("weights/run", "m.Other", "n.Model"):
        assert not catalog.names_one(word, references), word


# ---------------------------------------------------------------------- entry points


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Have a distribution that offers these entry points (lines ``name = value``)."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def installed(distribution: str, lines: str) -> None:
        info = tmp_path / "site" / f"{distribution}-1.0.dist-info"
        write(info / "METADATA", f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        write(info / "entry_points.txt", f"[{own.GROUP}]\n{lines}\n")

    return installed


def test_an_entry_point_is_found_without_importing_its_package(
    tmp_path: Path, install: Callable[[str, str], None]
):
    write(tmp_path / "site" / "shop" / "__init__.py", "raise RuntimeError('imported')")
    write(tmp_path / "site" / "shop" / "models.py")
    install("shop", "My_Adder = shop.models:Model")
    entry = catalog.find("my-adder")
    assert entry is not None
    assert (entry.name, entry.code) == ("My_Adder", "entry-point:shop.models:Model")
    assert entry.task == "Adds one. (shop.models:Model of shop)"
    # The same class asked for as a file is the same model.
    assert found(f"{tmp_path / 'site' / 'shop' / 'models.py'}:Model").name == "My_Adder"
    assert "shop" not in sys.modules


def test_an_entry_point_runs(tmp_path: Path, install: Callable[[str, str], None]):
    write(tmp_path / "site" / "stall.py")
    install("stall", "adder = stall:Model")
    assert catalog.find("adder") is not None
    workload = catalog.build("adder", OPTIONS)
    workload.load()
    assert [int(each) for each in workload.predict([1, 2])] == [2, 3]
    assert workload.notes[0] == "adder"


def test_the_list_has_entry_points_and_says_what_is_wrong_with_others(
    tmp_path: Path, install: Callable[[str, str], None]
):
    write(tmp_path / "site" / "stall.py")
    install("stall", "adder = stall:Model\nresnet = stall:Model\ngone = no_such:Model\nodd = stall")
    install("twin", "twice = stall:Model\n")
    install("other", "twice = stall:Other\n")
    entries, problems = catalog.listed()
    assert [entry.name for entry in entries if entry.name not in catalog.CATALOG] == ["adder"]
    for told, says in zip(
        problems,
        [
            "there is no module no_such",
            "MODULE:CLASS is wanted",
            "resnet of stall is hidden",
            "more than once",
            "more",
        ],
        strict=True,
    ):
        assert says in told


# ---------------------------------------------------------------------- in the worker


def built(path: Path, text: str) -> Guest:
    workload = catalog.construct(f"file:{write(path, text)}:Model", "mine", OPTIONS)
    assert isinstance(workload, Guest)
    return workload


def test_a_file_imports_its_neighbours_and_a_package_its_own(tmp_path: Path):
    write(tmp_path / "neighbour_of_m.py", "ONE = 1")
    built(tmp_path / "m.py", "from neighbour_of_m import ONE\n" + PLAIN)
    write(tmp_path / "shop" / "__init__.py", "")
    write(tmp_path / "shop" / "one.py", "ONE = 1")
    built(tmp_path / "shop" / "m.py", "from .one import ONE\n" + PLAIN)


def test_a_file_named_as_a_module_of_python_does_not_take_its_place(tmp_path: Path):
    import json

    built(tmp_path / "json.py", PLAIN)
    assert sys.modules["json"] is json


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("None", "gave nothing for 2 samples"),
        ("[1, 2]", "gave a list with a int in it"),
        ("np.float32(3)", "gave a float32 for 2"),
        ("np.array(3)", r"gave an array of shape \(\) for 2"),
        ("np.zeros((3, 2))", r"gave an array of shape \(3, 2\) for 2"),
        ("[np.zeros(1)]", "gave a list of 1 for 2"),
        ("np.zeros((4, 2)).T", r"gave an array of shape \(2, 4\) that is not C-contiguous"),
        ("np.array([None, None])", r"gave Python objects \(dtype object\)"),
    ],
)
def test_outputs_that_are_not_one_array_a_sample_are_refused(tmp_path: Path, given: str, says: str):
    workload = built(tmp_path / "m.py", PLAIN.replace("np.array(indices) + 1", given))
    workload.load()
    for ask, name in ((workload.predict, "predict"), (workload.reference, "reference")):
        with pytest.raises(WorkloadError, match=rf"m\.py:Model: {name} {says}"):
            ask([0, 1])


def test_one_array_a_sample_may_also_be_a_list(tmp_path: Path):
    workload = built(
        tmp_path / "m.py", PLAIN.replace("np.array(indices) + 1", "[np.ones(i + 1) for i in indices]")
    )
    workload.load()
    assert [len(each) for each in workload.predict([0, 2])] == [1, 3]


@pytest.mark.parametrize(
    ("was", "instead", "says"),
    [
        ("total_sample_count = 4", "total_sample_count = '4'", "total_sample_count is '4'"),
        ("total_sample_count = 4", "total_sample_count = True", "total_sample_count is True"),
        ("self.notes = [name]", "self.notes = name", "notes is 'mine'"),
        ("self.notes = [name]", "self.notes = [3]", r"notes is \[3\]"),
    ],
)
def test_what_load_leaves_is_checked(tmp_path: Path, was: str, instead: str, says: str):
    workload = built(tmp_path / "m.py", PLAIN.replace(was, instead))
    with pytest.raises(WorkloadError, match=says):
        workload.load()


def test_what_a_workload_may_have_beside_the_protocol_is_passed_through(tmp_path: Path):
    text = PLAIN.replace("self.notes = ", "self.tokens = self.labelled = self.notes = ")
    workload = built(tmp_path / "m.py", text)
    assert workload.labelled == ["mine"]
    assert not hasattr(workload, "tokens")
    assert begin_of(workload) is None
    assert lengths_of(workload) is None


def test_samples_that_differ_in_length_say_so(tmp_path: Path):
    workload = built(tmp_path / "m.py", PLAIN + "\n    def lengths(self, indices): return [5, 6]\n")
    lengths = lengths_of(workload)
    assert lengths is not None
    assert list(lengths([0, 1])) == [5, 6]


def test_batches_in_flight_are_looked_at_too(tmp_path: Path):
    text = PLAIN + "\n    depth = 2\n    def begin(self, indices): return AtHand(self.predict(indices[:2]))\n"
    workload = built(tmp_path / "m.py", "from workloads.engine import AtHand\n" + text)
    workload.load()
    begin = begin_of(workload)
    assert begin is not None
    assert begin([0, 1]).done()
    assert [int(each) for each in begin([0, 1]).result()] == [1, 2]
    with pytest.raises(WorkloadError, match=r"what begin began gave an array of shape \(2,\) for 3 samples"):
        begin([0, 1, 2]).result()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Model = 3", "it is a int once"),
        ("from os import *", "there is no such name"),
        ("from collections import OrderedDict as Model", "lacks load, load_samples"),
        (NO_ARGUMENTS, r"m\.py:Model is constructed with \(name, options\)"),
    ],
)  # fmt: skip
def test_what_only_importing_tells(tmp_path: Path, text: str, says: str):
    with pytest.raises(WorkloadError, match=says):
        built(tmp_path / "m.py", text)


def test_blame_names_the_last_line_of_the_users_own_code(tmp_path: Path):
    helper = write(tmp_path / "helper_of_m.py", "import json\ndef read():\n    return json.loads('{')\n")
    text = "import helper_of_m\n" + PLAIN.replace("def load(self): ...", "def load(self): helper_of_m.read()")
    code = f"file:{tmp_path / 'm.py'}:Model"
    with pytest.raises(ValueError, match="Expecting") as raised:
        built(tmp_path / "m.py", text).load()

    told = blame(code, raised.value)
    assert told is not None
    assert told.startswith(f"{helper}:3: in read: JSONDecodeError: Expecting")
    assert catalog.blame("workloads.null:Null", raised.value) is None
    with pytest.raises(KeyError) as ours:
        own.known("nobody")

    assert blame(code, ours.value) is None


def test_blame_of_a_neighbour_that_is_no_python(tmp_path: Path):
    write(tmp_path / "broken_of_m.py", "x = 1\ndef f(:\n")
    with pytest.raises(SyntaxError) as raised:
        built(tmp_path / "m.py", "import broken_of_m\n" + PLAIN)

    assert blame(f"file:{tmp_path / 'm.py'}:Model", raised.value) == (
        f"{tmp_path / 'broken_of_m.py'}:2: SyntaxError: invalid syntax"
    )
