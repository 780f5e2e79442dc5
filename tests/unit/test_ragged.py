"""Answers of differing lengths in one array are the list of their arrays, and lie where LoadGen is told."""

from ctypes import string_at

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.loadgen import Responses
from workloads.ragged import Ragged

LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


def ragged(lengths: list[int]) -> Ragged:
    return Ragged(np.arange(sum(lengths), dtype=np.float32), np.array(lengths))


@given(LENGTHS, st.data())
def test_it_is_the_list_of_its_arrays(lengths: list[int], data: st.DataObject):
    found = ragged(lengths)
    expected = np.split(found.flat, np.cumsum(lengths)[:-1])
    assert [each.tolist() for each in found] == [each.tolist() for each in expected]
    which = data.draw(st.integers(-len(lengths), len(lengths) - 1))
    assert found[which].tolist() == expected[which].tolist()
    count = data.draw(st.integers(1, len(lengths)))
    assert [each.tolist() for each in found[:count]] == [each.tolist() for each in expected[:count]]


@given(LENGTHS)
def test_loadgen_is_told_where_each_answer_lies(lengths: list[int]):
    found = ragged(lengths)
    responses = Responses(12)
    told = responses._pointing(range(100, 100 + len(lengths)), found)
    assert [one.id for one in told] == list(range(100, 100 + len(lengths)))
    assert [string_at(one.data, one.size) for one in told] == [each.tobytes() for each in found]
    assert responses.dtype == "float32"


def test_only_the_first_so_many_can_be_taken_together():
    with pytest.raises(AssertionError, match="first so many"):
        ragged([1, 2])[1:]
