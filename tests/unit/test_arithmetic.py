"""Default batch sizes on what is less than the board they were chosen on."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.arithmetic import BOARD_MEMORY_MIB, BOARD_SMS, batch_notes, batch_size_of, share_of_batch
from scheduler.slices import GpuSlice, MigSlice, Slice
from scheduler.spec import parse_run
from tests.unit.test_assignment import cpu_slices, mig_slice

WHOLE = GpuSlice(
    id="gpu0", name="NVIDIA H100", uuid="GPU-0", gpu_index=0, sms=132, memory_mib=81_559, cores=(0,)
)
EIGHTH: MigSlice = replace(mig_slice(0, 7), sms=16, memory_mib=9_984)
BATCH = st.integers(1, 4096)
SMS, MEMORY = st.integers(1, 200), st.integers(1, 200_000)


@given(BATCH, SMS, MEMORY, st.integers(0, 100), st.integers(0, 100_000))
def test_more_of_a_board_takes_no_less_of_the_batch(batch: int, sms: int, memory: int, more: int, room: int):
    here = share_of_batch(batch, sms, memory)
    assert 1 <= here <= share_of_batch(batch, sms + more, memory + room) <= batch
    assert here == batch or here.bit_count() == 1
    assert here <= max(1, batch * memory / BOARD_MEMORY_MIB) or memory >= BOARD_MEMORY_MIB


@given(BATCH)
def test_a_whole_board_takes_all_of_it_and_so_does_what_is_not_known(batch: int):
    assert share_of_batch(batch, BOARD_SMS, 81_559) == batch
    assert share_of_batch(batch, None, None) == batch


@given(st.sampled_from([1 << power for power in range(12)]), SMS)
def test_each_sm_has_as_many_samples_as_on_the_board(batch: int, sms: int):
    here = share_of_batch(batch, sms, None)
    assert here == batch or here / sms >= batch / BOARD_SMS > here / 2 / sms or here == 1


@pytest.mark.parametrize(
    ("name", "slice_", "expected"),
    [
        ("resnet50", WHOLE, 256),
        ("resnet50", replace(WHOLE, sms=132, memory_mib=143_771), 256),
        ("resnet50", EIGHTH, 32),
        ("resnet50", replace(EIGHTH, memory_mib=4_864, sms=14), 16),
        ("resnet50", replace(EIGHTH, memory_mib=40_448, sms=60), 128),
        ("dlrm", EIGHTH, 256),
        ("3d-unet", EIGHTH, 1),
        ("null", EIGHTH, 1024),
        ("resnet50", cpu_slices(1)[0], 8),
    ],
)
def test_a_slice_takes_its_share_of_the_catalogues(name: str, slice_: Slice, expected: int):
    spec = parse_run({"main": name})
    assert batch_size_of(spec, name, "full", slice_) == expected


def test_what_is_asked_for_is_taken_as_it_is_and_needs_no_note():
    spec = parse_run({"main": "resnet50", "background": "bert", "batch_size": {"resnet50": 200}})
    assert batch_size_of(spec, "resnet50", "full", EIGHTH) == 200
    assert batch_notes(spec, [("resnet50", "full", EIGHTH), ("bert", "full", WHOLE)]) == []
    [note] = batch_notes(spec, [("resnet50", "full", EIGHTH), *[("bert", "full", EIGHTH)] * 2])
    assert note.startswith("smaller default batches on 16 SMs and 9,984 MiB: bert 32 (of 256). The")
