"""mig-parted's v1 documents: what is read, what is refused and how, what is written, and for which GPU."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scheduler import gpu_tables, layout
from scheduler.errors import SpecError
from scheduler.geometry import GpuMig
from scheduler.layout import GpuTarget
from scheduler.layout_files import (
    Document,
    Entry,
    absent,
    for_gpus,
    read,
    select,
    shipped,
    shipped_names,
    split_reference,
    write,
)

EXAMPLE = (Path(__file__).parent / "mig_parted_example.yaml").read_text()
H200, A100 = 0x233510DE, 0x20B010DE


def gpu(index: int, *, model: int = H200, capable: bool = True, board: int | None = None) -> GpuMig:
    return GpuMig(
        index=index,
        uuid=f"GPU-{index}",
        name="NVIDIA H200" if model == H200 else "NVIDIA A100-SXM4-40GB",
        pci_device_id=model,
        pci_address=f"0000:{index:02x}:00.0",
        minor=index,
        capable=capable,
        enabled=False,
        pending=False,
        resetless=True,
        geometry=None,
        instances=(),
        pci_subsystem_id=board,
    )


def enabled(devices: Literal["all"] | tuple[int, ...] = "all", *device_filter: str, **profiles: int) -> Entry:
    """``enabled("all", _1g_18gb=7)``"""
    named = {name.strip("_").replace("_", "."): count for name, count in profiles.items()}
    return Entry(device_filter=device_filter, devices=devices, mig_enabled=True, mig_devices=named)


DISABLED = Entry(mig_enabled=False)


def document(**entry: Any) -> str:
    """One label ``a`` with one entry; a field that is ``...`` is left out."""
    fields = {"devices": "all", "mig-enabled": True, "mig-devices": {"1g.10gb": 7}}
    fields |= {name.replace("_", "-"): value for name, value in entry.items()}
    kept = {name: value for name, value in fields.items() if value is not ...}
    return json.dumps({"version": "v1", "mig-configs": {"a": [kept]}})


def only(text: str) -> Entry:
    (entry,) = read(text, "x.yaml").configs["a"]
    return entry


# --- reading


def test_the_example_with_every_key_is_read():
    configs = read(EXAMPLE, "example").configs

    assert list(configs) == list(yaml.safe_load(EXAMPLE)["mig-configs"])
    assert configs["all-disabled"] == (DISABLED,)
    assert configs["all-enabled"] == (enabled(),)
    assert configs["all-balanced"][1] == enabled("all", "0x233510DE", _1g_18gb=2, _2g_35gb=1, _3g_71gb=1)
    assert configs["all-balanced"][0].device_filter[3] == "0x20F610DE"
    assert configs["media"][0].mig_devices == {"1g.18gb+me": 1, "1g.18gb": 6}
    assert configs["half-and-half"][1] == enabled((2, 3), _3g_71gb=2)


def test_names_come_as_the_driver_writes_them_and_none_of_a_name_is_not_there():
    parts = read(EXAMPLE, "example").configs["parts"][0]

    assert parts.mig_devices == {"1c.3g.71gb": 1, "2c.3g.71gb": 1, "1g.18gb": 1}


def test_the_same_document_in_json_even_with_tabs_and_a_comma_too_many():
    as_json = json.dumps(yaml.safe_load(EXAMPLE), indent="\t").replace("\n}", ",\n}")

    assert read(as_json, "example.json") == read(EXAMPLE, "example.yaml")


def test_a_filter_may_be_one_text_or_none():
    assert only(document(device_filter="0x1")).device_filter == ("0x1",)
    assert only(document(device_filter="")).device_filter == ()
    assert only(document(device_filter=[])).device_filter == ()


def test_a_document_without_labels_is_one():
    assert read("version: v1", "x") == Document({})


@pytest.mark.parametrize(
    ("entry", "at", "found"),
    [
        ({"devices": ...}, "", "no field 'devices'"),
        ({"mig_enabled": ...}, "", "no field 'mig-enabled'"),
        ({"mig_devices": ...}, "", "no mig-devices, with mig-enabled: true"),
        ({"mig_devices": None}, "", "no mig-devices, with mig-enabled: true"),
        ({"mig_enabled": False}, "", "mig-devices, with mig-enabled: false"),
        ({"bogus": 1}, "", "the unknown field 'bogus'"),
        ({"devices": "some"}, ": devices", "'some'"),
        ({"devices": 0}, ": devices", "0"),
        ({"devices": {}}, ": devices", "{}"),
        ({"devices": [0, "1"]}, ": devices", "[0, '1']"),
        ({"devices": [True]}, ": devices", "[True]"),
        ({"devices": [-1]}, ": devices", "[-1]"),
        ({"mig_enabled": "true"}, ": mig-enabled", "'true'"),
        ({"mig_enabled": None}, ": mig-enabled", "nothing"),
        ({"device_filter": 0x233510DE}, ": device-filter", str(0x233510DE)),
        ({"device_filter": ["0x1", 2]}, ": device-filter", "['0x1', 2]"),
        ({"mig_devices": ["1g.10gb"]}, ": mig-devices", "['1g.10gb']"),
        ({"mig_devices": {"bogus": 2}}, ": mig-devices", "the name 'bogus'"),
        ({"mig_devices": {"1g.10gb": -1}}, ": mig-devices", "-1 of 1g.10gb"),
        ({"mig_devices": {"1g.10gb": 1.5}}, ": mig-devices", "1.5 of 1g.10gb"),
        ({"mig_devices": {"1g.10gb": True}}, ": mig-devices", "True of 1g.10gb"),
        ({"mig_devices": {"1g.10gb": None}}, ": mig-devices", "nothing of 1g.10gb"),
    ],
)
def test_an_entry_is_refused_with_file_label_number_and_field(entry: dict[str, Any], at: str, found: str):
    with pytest.raises(SpecError) as refused:
        read(document(**entry), "my.yaml")

    assert refused.value.asked == f"the layouts of my.yaml: label 'a', entry 1{at}"
    assert refused.value.found == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "nothing"),
        ("[]", "[]"),
        ("mig-configs: {}", "no field 'version'"),
        ("version: v2", "'v2'"),
        ("version: 1", "1"),
        ("{version: v1, bogus: field}", "the unknown field 'bogus'"),
        ("{version: v1, mig-configs: {}}", "{}"),
        ("{version: v1, mig-configs: []}", "[]"),
        ("{version: v1, mig-configs: {a: []}}", "[]"),
        ("{version: v1, mig-configs: {a: {devices: all}}}", "{'devices': 'all'}"),
        ("{version: v1, mig-configs: {a: [all]}}", "'all'"),
        ("{version: v1, mig-configs: {true: [all]}}", "the label True"),
        ("version: [", "this is not YAML"),
        ("version: 2026-13-45", "this is not YAML"),
        ("version: !!python/object/apply:os.getcwd []", "this is not YAML"),
        ("version: v1\nversion: v1", "the key 'version' stands twice"),
    ],
)
def test_a_document_is_refused_with_what_was_found(text: str, found: str):
    with pytest.raises(SpecError) as refused:
        read(text, "my.yaml")

    assert "my.yaml" in refused.value.asked
    assert found in refused.value.found


def test_a_label_that_stands_twice_is_refused_with_its_line():
    label = "  a: [{devices: all, mig-enabled: false}]\n"

    with pytest.raises(SpecError, match=r"'a' stands twice(.|\n)*line 4"):
        read("version: v1\nmig-configs:\n" + label + label, "my.yaml")


FIELDS = ["version", "mig-configs", "a", "devices", "mig-enabled", "mig-devices", "device-filter"]
CONTENT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda each: st.lists(each) | st.dictionaries(st.sampled_from(FIELDS), each),
)


@given(CONTENT.filter(lambda each: not isinstance(each, dict) or each.get("version") != "v1"))
def test_anything_else_is_refused_and_never_with_a_traceback(content: Any):
    with pytest.raises(SpecError):
        read(json.dumps(content), "x")


@given(CONTENT.filter(lambda each: not isinstance(each, dict) or not {"devices", "mig-enabled"} <= set(each)))
def test_any_other_entry_is_refused_with_its_number(content: Any):
    with pytest.raises(SpecError, match="label 'a', entry 1"):
        read(json.dumps({"version": "v1", "mig-configs": {"a": [content]}}), "x")


# --- writing

GEOMETRY = gpu_tables.named("H200-141GB")
NAMES = st.sampled_from([*(each.name for each in GEOMETRY.profiles), "1c.3g.71gb", "2c.3g.71gb"])
ENTRIES = st.builds(
    Entry,
    device_filter=st.lists(st.sampled_from(["0x233510DE", "0x20B010DE:0x13AB10DE"]), max_size=2).map(tuple),
    devices=st.just("all") | st.lists(st.integers(0, 15), max_size=4).map(tuple),
    mig_enabled=st.just(True),
    mig_devices=st.dictionaries(NAMES, st.integers(1, 7)),
) | st.builds(
    Entry, devices=st.just("all") | st.lists(st.integers(0, 15)).map(tuple), mig_enabled=st.just(False)
)
LABELS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.dictionaries(LABELS, st.lists(ENTRIES, min_size=1, max_size=3).map(tuple), min_size=1, max_size=4))
def test_what_is_written_is_read_the_same_and_in_the_same_order(configs: dict[str, tuple[Entry, ...]]):
    again = read(write(configs), "written").configs

    assert again == configs
    assert list(again) == list(configs)


def test_what_is_written_looks_as_mig_parted_writes_it():
    entries = (enabled((0, 2), "0x233510DE", _1g_18gb=1, _3g_71gb=1), replace(DISABLED, devices=(1,)))

    assert write({"current": entries}).splitlines() == [
        "version: v1",
        "mig-configs:",
        '  "current":',
        '    - device-filter: ["0x233510DE"]',
        "      devices: [0, 2]",
        "      mig-enabled: true",
        "      mig-devices:",
        '        "3g.71gb": 1',
        '        "1g.18gb": 1',
        "    - devices: [1]",
        "      mig-enabled: false",
        "      mig-devices: {}",
    ]


@pytest.mark.parametrize("configs", [{}, {"a": ()}])
def test_what_mig_parted_would_refuse_is_not_written(configs: Mapping[str, tuple[Entry, ...]]):
    with pytest.raises(SpecError):
        write(configs)


# --- labels and references


def test_a_label_that_is_not_there_is_answered_with_those_that_are():
    with pytest.raises(SpecError) as refused:
        select(read(EXAMPLE, "my.yaml"), "all-balancd", "my.yaml")

    assert refused.value.asked == "the layout my.yaml#all-balancd"
    assert refused.value.do.startswith("perhaps all-balanced")
    assert "half-and-half" in refused.value.do


def test_without_a_label_the_only_one_is_taken():
    assert select(read(document(), "x"), "", "x") == (enabled(_1g_10gb=7),)

    with pytest.raises(SpecError, match="8 labels"):
        select(read(EXAMPLE, "x"), "", "x")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("h200-141gb#all-1g", ("h200-141gb", "all-1g")),
        ("/etc/mig#1/config.yaml#a b", ("/etc/mig#1/config.yaml", "a b")),
        ("config.yaml", ("config.yaml", "")),
        ("config.yaml#", ("config.yaml", "")),
    ],
)
def test_a_reference_is_a_file_and_a_label(text: str, parts: tuple[str, str]):
    assert split_reference(text) == parts


@pytest.mark.parametrize("text", ["", "#all-1g"])
def test_a_reference_without_a_file_is_refused(text: str):
    with pytest.raises(SpecError):
        split_reference(text)


def test_files_that_are_not_shipped_are_not_found():
    assert shipped("../presets") is None
    assert shipped("no-such-gpu.yaml") is None


def test_shipped_files_are_found_by_name_and_are_documents():
    for name in shipped_names():
        text = shipped(name)

        assert text is not None
        assert shipped(f"{name}.yaml") == text
        assert read(text, name).configs


# --- which GPU is to become what


def test_all_names_every_gpu_and_an_index_one():
    target = GpuTarget(mig_enabled=True, devices={"1g.18gb": 7})

    assert for_gpus([enabled(_1g_18gb=7)], [gpu(0), gpu(1)]) == {"GPU-0": target, "GPU-1": target}
    assert for_gpus([enabled((1,), _1g_18gb=7)], [gpu(0), gpu(1)]) == {"GPU-1": target}


@pytest.mark.parametrize("device_filter", ["0x233510DE", "0x233510de", "0X233510DE", str(H200)])
def test_a_filter_names_models_however_it_is_spelled(device_filter: str):
    targets = for_gpus([enabled("all", device_filter, _1g_18gb=7)], [gpu(0, model=A100), gpu(1)])

    assert list(targets) == ["GPU-1"]


def test_a_filter_may_name_the_board():
    entry = enabled("all", "0x233510DE:0x18BE10DE", _7g_141gb=1)
    gpus = [gpu(0, board=0x18BE10DE), gpu(1, board=0x18BF10DE), gpu(2)]

    assert list(for_gpus([entry], gpus)) == ["GPU-0"]


def test_entries_for_other_models_are_passed_over():
    balanced = read(EXAMPLE, "x").configs["all-balanced"]

    targets = for_gpus(balanced, [gpu(0)])

    assert targets == {"GPU-0": GpuTarget(mig_enabled=True, devices=balanced[1].mig_devices or {})}


def test_indices_of_another_model_are_not_missed():
    entries = [enabled((0, 1, 7), "0x20B010DE", _7g_40gb=1), enabled("all", "0x233510DE", _7g_141gb=1)]

    assert list(for_gpus(entries, [gpu(0)])) == ["GPU-0"]


def test_indices_of_a_larger_machine_are_passed_over_and_told():
    """mig-parted's own custom-config names eight GPUs, and loads on a machine with two."""
    entries = [enabled((0, 1, 2, 3), _1g_18gb=7), enabled((4, 5, 6, 7), _7g_141gb=1)]
    assert list(for_gpus(entries, [gpu(0), gpu(1)])) == ["GPU-0", "GPU-1"]
    assert absent(entries, [gpu(0), gpu(1)]) == [2, 3, 4, 5, 6, 7]


def test_disabling_names_a_gpu_without_mig_in_vain():
    assert for_gpus([DISABLED], [gpu(0, capable=False)]) == {}
    assert for_gpus([DISABLED], [gpu(0), gpu(1, capable=False)]) == {
        "GPU-0": GpuTarget(mig_enabled=False, devices={})
    }


def test_all_passes_over_gpus_without_mig():
    assert list(for_gpus([enabled(_1g_18gb=7)], [gpu(0, capable=False), gpu(1)])) == ["GPU-1"]


def test_two_entries_that_say_the_same_of_a_gpu_are_one():
    assert list(for_gpus([enabled(_1g_18gb=7), enabled((0,), _1g_18gb=7)], [gpu(0)])) == ["GPU-0"]


@pytest.mark.parametrize(
    ("entries", "gpus", "found"),
    [
        ([enabled((3,), _1g_18gb=7)], [gpu(0), gpu(1)], "there is no GPU 3"),
        ([enabled("all", "0x20B010DE", _1g_5gb=7)], [gpu(0)], "none of its entries is for a GPU here"),
        ([enabled(_1g_18gb=7)], [gpu(0, capable=False)], "none of its entries is for a GPU here"),
        ([enabled((), _1g_18gb=7)], [gpu(0)], "none of its entries is for a GPU here"),
        ([enabled(_1g_18gb=7)], [], "none of its entries is for a GPU here"),
        ([enabled((0,), _1g_18gb=7)], [gpu(0, capable=False)], "GPU 0 (NVIDIA H200) knows no MIG"),
        ([enabled("all", "H200", _1g_18gb=7)], [gpu(0)], "'H200' is not a PCI id"),
        ([enabled(_1g_18gb=7), DISABLED], [gpu(0)], "GPU 0 (NVIDIA H200) is to be otherwise"),
    ],
)
def test_what_cannot_be_meant_is_refused(entries: list[Entry], gpus: list[GpuMig], found: str):
    with pytest.raises(SpecError) as refused:
        for_gpus(entries, gpus, "my.yaml#a")

    assert "my.yaml#a" in refused.value.asked
    assert found in refused.value.found


def test_a_layout_for_other_gpus_is_answered_with_the_ids_of_those_here():
    with pytest.raises(SpecError, match="GPU 0 NVIDIA H200 0x233510DE"):
        for_gpus([enabled("all", "0x20B010DE", _1g_5gb=7)], [gpu(0)])


def test_a_document_and_a_line_of_text_ask_for_the_same_instances():
    (entry,) = read(EXAMPLE, "x").configs["parts"]
    by_text = layout.parse_devices("1c.3g.71gb,2c.3g.71gb,1g.18gb", GEOMETRY)

    assert layout.instances_of(entry.mig_devices or {}, GEOMETRY) == layout.instances_of(by_text, GEOMETRY)
