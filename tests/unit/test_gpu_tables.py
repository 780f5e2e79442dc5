"""The built-in GPU tables agree with what boards say, and every ready layout has room on its GPU."""

import re
from collections import Counter
from collections.abc import Iterator
from itertools import combinations, pairwise, product
from math import ceil
from types import ModuleType
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import profiles
from scheduler import layout_files, nvml
from scheduler.errors import SpecError
from scheduler.geometry import COMPUTE_SIZES, Geometry, GpuInstanceProfile
from scheduler.gpu_tables import GpuTable, as_yaml, known, named, of_gpu, sources, table_of, tables
from scheduler.host import Host
from tests import boards, scripts
from tests.fakes import FakeGpus
from tests.gpu_state import FakeGpu

BOARDS = [boards.A100_40, boards.A100_80, boards.A30, boards.H100, boards.H200]
STEMS = profiles.yaml_names("gpus")
ENGINES = ("decoder", "encoder", "jpeg", "ofa")


def read(stem: str) -> Any:
    return profiles.read_yaml(f"gpus/{stem}.yaml")


def room(geometry: Geometry, counts: Counter[str]) -> bool:
    """By trying every placement: is there a way to lay these GPU instances?"""
    wanted = [(profile, counts[profile.name]) for profile in geometry.profiles if counts[profile.name]]
    if any(count > profile.most for profile, count in wanted):
        return False

    if sum(profile.compute_slices * count for profile, count in wanted) > geometry.compute_slices:
        return False

    for engine in ENGINES:
        there = getattr(geometry.whole.engines, engine)
        used = [getattr(profile.engines, engine) for profile, count in wanted for _ in range(count)]
        if there is not None and None not in used and sum(used) > there:
            return False

    ways = product(*(combinations(profile.placements, count) for profile, count in wanted))
    flat = ([place for some in way for place in some] for way in ways)
    return any(sum(place.size for place in way) == union(way) for way in flat)


def union(way: list[Any]) -> int:
    mask = 0
    for place in way:
        mask |= place.mask

    return mask.bit_count()


def gpu_instances(devices: dict[str, int], geometry: Geometry) -> Counter[str]:
    """How many GPU instances these MIG devices need; those with a ``c`` part of one profile share."""
    counts: Counter[str] = Counter()
    for name, count in devices.items():
        part, _, profile_name = name.rpartition("c.")
        profile = geometry.named(profile_name)
        assert profile is not None, f"{geometry.gpu_name} has no {name}"
        if part:
            assert int(part) in COMPUTE_SIZES[profile.compute_slices]

        counts[profile_name] += ceil(count / (profile.compute_slices // int(part))) if part else count

    return counts


def layouts() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for stem in profiles.yaml_names("layouts"):
        for label, entries in profiles.read_yaml(f"layouts/{stem}.yaml")["mig-configs"].items():
            for entry in entries:
                yield stem, label, entry


LAYOUTS = list(layouts())


# ---------------------------------------------------------------------- tables


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.name)
def test_a_table_has_what_the_board_says(board: boards.Board):
    geometry = of_gpu(board.name, board.memory_mib)
    assert geometry is not None
    ours = {
        profile.name: (
            *(profile.enum, profile.id, profile.compute_slices, profile.placements[0].size),
            tuple(place.start for place in profile.placements),
            *(profile.most, profile.memory_mib, profile.sms),
            tuple(getattr(profile.engines, engine) for engine in ("copy", *ENGINES)),
        )
        for profile in geometry.profiles
    }
    theirs = {
        each.name: (
            *(each.enum, each.id, each.compute_slices, each.memory_slices, each.starts),
            *(each.most, each.memory_mib, each.sms, each.engines),
        )
        for each in board.profiles
    }
    assert ours == theirs
    assert (geometry.memory_slices, geometry.compute_slices) == (board.memory_slices, board.compute_slices)


@pytest.mark.parametrize("stem", STEMS)
def test_each_file_is_a_table_named_as_the_file(stem: str):
    table = table_of(read(stem))
    assert table.name.lower() == stem
    assert tables()[table.name] == table


@pytest.mark.parametrize("name", known())
def test_the_figures_of_a_table_agree_with_each_other(name: str):
    geometry = named(name)
    slices = 1 << geometry.memory_slices
    for profile in geometry.profiles:
        alone, one_more = Counter({profile.name: profile.most}), Counter({profile.name: profile.most + 1})
        assert room(geometry, alone)
        assert not room(geometry, one_more)
        assert all(place.mask < slices for place in profile.placements)
        assert profile.name.startswith(f"{profile.compute_slices}g.")
        assert (
            profile.memory_mib is None
            or gigabytes(profile) * 0.8 < profile.memory_mib / 1000 < gigabytes(profile) * 1.08
        )
        assert (
            profile.sms is None or profile.most * profile.sms <= WHOLE_SMS[tables()[name].compute_capability]
        )

    assert geometry.whole.placements[0].size == geometry.memory_slices
    assert (geometry.whole.memory_mib or 0) <= tables()[name].memory_mib


WHOLE_SMS = {"8.0": 98, "9.0": 132, "10.0": 148, "12.0": 188}
"""The most that any board of this compute capability has under MIG."""


def gigabytes(profile: GpuInstanceProfile) -> int:
    found = re.search(r"\.(\d+)gb", profile.name)
    assert found is not None
    return int(found[1])


@pytest.mark.parametrize("name", known())
def test_every_row_tells_its_source_and_driver(name: str):
    assert list(sources(name)) == [profile.name for profile in named(name).profiles]
    assert all(re.search(r"\w.*, driver .+", source) for source in sources(name).values())


def test_no_name_and_no_pci_id_means_two_tables():
    all_tables = tables().values()
    for values in (
        [each.lower() for table in all_tables for each in {table.name, *table.aliases, *table.gpu_names}],
        [each for table in all_tables for each in table.pci_device_ids],
    ):
        assert [value for value, count in Counter(values).items() if count > 1] == []


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("name", known())
def test_a_table_is_found_by_every_name_it_has(name: str):
    table = tables()[name]
    for text in (name, *table.aliases, *table.gpu_names):
        for spelling in (text, text.lower(), text.upper(), text.replace("-", " "), f" nvidia {text} "):
            assert named(spelling) == table.geometry()


@pytest.mark.parametrize(
    ("text", "name"), [("h200", "H200-141GB"), ("B200", "B200-180GB"), ("rtx pro 6000", "RTX-PRO-6000-96GB")]
)
def test_the_first_words_of_a_name_do_where_one_table_begins_with_them(text: str, name: str):
    assert named(text) == tables()[name].geometry()


def test_an_ambiguous_name_says_which_there_are():
    with pytest.raises(SpecError, match="A100-40GB, A100-80GB") as error:
        named("A100")

    assert "--gpu A100-40GB" in error.value.do


@pytest.mark.parametrize("text", ["A10", "T4", "", "-", "NVIDIA", "A100-80G", "H2000"])
def test_an_unknown_name_lists_the_known(text: str):
    with pytest.raises(SpecError) as error:
        named(text)

    assert all(name in error.value.do for name in known())


FIRST_WORDS = {
    re.split(r"[ -]", each.lower().removeprefix("nvidia "))[0]
    for table in tables().values()
    for each in (table.name, *table.aliases, *table.gpu_names)
}


@given(st.text(max_size=12).filter(lambda text: not FIRST_WORDS & set(re.findall("[a-z0-9]+", text.lower()))))
def test_any_other_text_is_an_unknown_name(text: str):
    with pytest.raises(SpecError) as error:
        named(text)

    assert error.value.asked == f"--gpu {text}"


def test_a_board_is_told_by_its_name_and_memory():
    for table in tables().values():
        for gpu_name in table.gpu_names:
            found = of_gpu(gpu_name, table.memory_mib * 99 // 100)
            assert found is not None
            assert (found.gpu_name, found.profiles) == (gpu_name, table.geometry().profiles)
            assert of_gpu(gpu_name, table.memory_mib * 2) is None
            assert of_gpu(gpu_name) == found


def test_an_older_driver_leaves_the_vendor_out():
    assert (found := of_gpu("A100-SXM4-40GB", 40536)) is not None
    assert found.whole.name == "7g.40gb"


@pytest.mark.parametrize("gpu_name", ["Tesla T4", "NVIDIA GB200", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""])
def test_a_board_without_a_table_has_none(gpu_name: str):
    assert of_gpu(gpu_name, 81559) is None


# ---------------------------------------------------------------------- a broken table


def spoil(document: dict[str, Any], how: str) -> None:
    rows = document["profiles"]
    match how:
        case "no source":
            del rows[0]["source"]
        case "no driver":
            del rows[0]["driver"]
        case "two of one id":
            rows[1]["id"] = rows[0]["id"]
        case "two of one name":
            rows[1]["name"] = rows[0]["name"]
        case "wrong order":
            rows.reverse()
        case "starts in disorder":
            rows[0]["placements"]["starts"].reverse()
        case "no rows":
            rows.clear()
        case "unknown field":
            rows[0]["slices"] = 1
        case "an engine left out":
            del rows[0]["engines"]["jpeg"]
        case "a name that is none":
            rows[0]["name"] = "MIG 1g.18gb"
        case _:
            document["compute_capability"] = 9.0


@pytest.mark.parametrize(
    "how",
    [
        *("no source", "no driver", "two of one id", "two of one name", "wrong order", "starts in disorder"),
        *("no rows", "unknown field", "an engine left out", "a name that is none", "a number for a text"),
    ],
)
def test_a_broken_table_is_refused(how: str):
    document = read("h200-141gb")
    table_of(document)
    spoil(document, how)
    with pytest.raises(pydantic.ValidationError):
        table_of(document)


# ---------------------------------------------------------------------- writing a table


@pytest.mark.parametrize("name", known())
def test_what_is_written_is_read_back(name: str):
    table = tables()[name]
    about = {key: getattr(table, key) for key in GpuTable.model_fields if key != "profiles"}
    again = table_of(yaml.safe_load(as_yaml(table.geometry(), about, "here", "580.65")))
    assert again.geometry().profiles == table.geometry().profiles
    assert [getattr(again, key) for key in about] == list(about.values())
    assert set(sources(name)) == {row.name for row in again.profiles}
    assert {(row.source, row.driver) for row in again.profiles} == {("here", "580.65")}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return scripts.loaded("gpu-table")


@pytest.mark.parametrize("stem", ["h100-80gb", "h200-141gb"])
def test_the_script_writes_a_file_as_it_is_kept(script: ModuleType, stem: str):
    board = {"h100-80gb": boards.H100, "h200-141gb": boards.H200}[stem]
    with nvml.open(FakeGpus(FakeGpu(board=board), driver="580.159.04"), Host()) as gpus:
        written = script.table_text(gpus, 0)

    kept = profiles.text_of(f"gpus/{stem}.yaml")
    assert written == "".join(line for line in kept.splitlines(keepends=True) if not line.startswith("#"))


def test_the_script_writes_a_gpu_without_a_table(script: ModuleType):
    new = boards.Board(**{**vars(boards.H200), "name": "NVIDIA Q1 Ultra", "pci_device_id": 0x9ABC10DE})
    with nvml.open(FakeGpus(FakeGpu(board=boards.T4), FakeGpu(board=new)), Host()) as gpus:
        table = table_of(yaml.safe_load(script.table_text(gpus, 1)))
        with pytest.raises(SystemExit, match="no GPU 0 that knows MIG"):
            script.table_text(gpus, 0)

    assert (table.name, table.gpu_names, table.pci_device_ids) == ("Q1-Ultra", (new.name,), ("0x9ABC10DE",))
    assert table.geometry().profiles == named("H200").profiles


# ---------------------------------------------------------------------- layouts


def test_every_table_has_its_layouts_and_every_layout_file_its_table():
    assert profiles.yaml_names("layouts") == STEMS


@pytest.mark.parametrize(
    ("stem", "label", "entry"), LAYOUTS, ids=[f"{stem}#{label}" for stem, label, _ in LAYOUTS]
)
def test_a_layout_has_room_on_its_gpu(stem: str, label: str, entry: dict[str, Any]):
    table = table_of(read(stem))
    assert entry["devices"] == "all"
    if label == "all-disabled":
        assert entry == {"devices": "all", "mig-enabled": False}
        return

    assert entry["device-filter"] == list(table.pci_device_ids)
    assert entry["mig-enabled"] is True
    assert entry["mig-devices"]
    assert room(table.geometry(), gpu_instances(entry["mig-devices"], table.geometry()))


@pytest.mark.parametrize("stem", STEMS)
def test_a_layout_file_is_what_the_program_reads(stem: str):
    text = profiles.text_of(f"layouts/{stem}.yaml")
    document = layout_files.read(text, stem)
    assert list(document.configs) == [label for file, label, _ in LAYOUTS if file == stem]
    common = {"all-disabled", "all-1g", "all-2g", "balanced", "whole", "hetero-main-2g", "with-media"}
    assert common <= set(document.configs)


@pytest.mark.parametrize("stem", STEMS)
def test_a_comment_says_what_each_label_is_for(stem: str):
    lines = profiles.text_of(f"layouts/{stem}.yaml").splitlines()
    labels = {line.strip(" :"): before for before, line in pairwise(lines) if re.match(r"  \S+:$", line)}
    assert set(labels) == {label for file, label, _ in LAYOUTS if file == stem}
    assert [label for label, before in labels.items() if not re.match(r"  # \w", before)] == []


def test_brute_force_knows_the_documented_refusals():
    geometry = named("A100-40GB")
    for refused in (
        ["4g.20gb"] * 2,
        ["1g.5gb+me"] * 2,
        ["3g.20gb"] * 2 + ["1g.5gb"],
        ["1g.10gb"] * 4 + ["1g.5gb"],
    ):
        assert not room(geometry, Counter(refused))

    assert room(geometry, Counter(["3g.20gb", "1g.5gb", "2g.10gb", "1g.5gb"]))
