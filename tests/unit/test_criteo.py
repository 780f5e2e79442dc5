"""Criteo's day 23: pairs read as MLPerf's reference reads them, its own samples, AUC, every malformed kind."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from workloads import criteo
from workloads.criteo import (
    ARRAYS_FILE,
    TABLE_ROWS,
    CriteoLabels,
    area_under_curve,
    convert,
    drawn_bounds,
    inspect,
    open_pairs,
)
from workloads.dlrm import PAIRS, SMALL_ROWS, Dlrm
from workloads.protocol import WorkloadError, WorkloadOptions, output_bytes

SMALL = WorkloadOptions(
    size="small", device="cpu", precision="fp32", batch_size=8, seed=1, threads=1, memory_mib=2048
)
COUNT = 1_000
BINARY = "terabyte_processed_test.bin"


def pairs(count: int = COUNT) -> npt.NDArray[np.int32]:
    random = np.random.default_rng(3)
    clicks = random.integers(0, 2, (count, 1))
    counts = random.integers(0, 500, (count, 13))
    categories = random.integers(0, np.array(TABLE_ROWS), (count, 26))
    return np.concatenate((clicks, counts, categories), axis=1).astype(np.int32)


def write_binary(folder: Path, rows: npt.NDArray[np.int32]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / BINARY).write_bytes(rows.astype("<i4").tobytes())
    return folder


def write_arrays(
    folder: Path, rows: npt.NDArray[np.int32], *, by_columns: bool, dtype: str = "int32"
) -> Path:
    """As data_utils.py leaves them: categories turned from [26, pairs], so that they lie by columns."""
    folder.mkdir(exist_ok=True)
    counts, categories = (rows[:, part].astype(dtype) for part in (criteo.COUNTS, criteo.CATEGORIES))
    if by_columns:
        counts, categories = (np.asfortranarray(each) for each in (counts, categories))

    np.savez_compressed(folder / ARRAYS_FILE, X_int=counts, X_cat=categories, y=rows[:, 0].astype(dtype))
    return folder


def write_partition(folder: Path, lengths: list[int]) -> None:
    ends = np.cumsum(lengths)
    lines = [f"{end - length}, {end}, {length}\n" for end, length in zip(ends, lengths, strict=True)]
    (folder / "sample_partition.txt").write_text("".join(lines))


# ---------------------------------------------------------------------- samples


def test_over_day_23_the_samples_are_mlperfs():
    """89 137 319 test pairs (the reference's README: the second half begins there) make 330 067 samples, and the
    first 100 have the shares of its dist_trace_verification.txt."""
    bounds = drawn_bounds(89_137_319)
    assert len(bounds) - 1 == 330_067
    assert Counter(np.diff(bounds[:101]).tolist()) == {
        length: round(100 * part) for length, part in PAIRS.items()
    }
    assert bounds[-1] == 89_137_319


@given(st.integers(1, 5_000))
def test_drawn_samples_cover_all_pairs(count: int):
    bounds = drawn_bounds(count)
    assert (bounds[0], bounds[-1]) == (0, count)
    assert set(np.diff(bounds)[:-1].tolist()) <= set(PAIRS)
    assert 0 < bounds[-1] - bounds[-2] <= max(PAIRS)


def test_a_partition_file_is_taken_instead(tmp_path: Path):
    folder = write_binary(tmp_path / "criteo", pairs())
    write_partition(folder, [100, 300, 5])
    found = inspect(folder)
    assert found.partition == folder / "sample_partition.txt"
    assert found.bounds.tolist() == [0, 100, 400, 405]
    assert (found.samples, found.pairs) == (3, COUNT)


# ---------------------------------------------------------------------- files


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize("dtype", ["int32", "float64"])
@pytest.mark.parametrize("count", [COUNT, COUNT + 1])
def test_of_the_arrays_the_first_half_is_read(tmp_path: Path, by_columns: bool, dtype: str, count: int):
    rows = pairs(count)
    folder = write_arrays(tmp_path / "criteo", rows, by_columns=by_columns, dtype=dtype)
    half = rows[: (count + 1) // 2]
    assert np.array_equal(open_pairs(folder / ARRAYS_FILE), half)
    assert np.array_equal(open_pairs(folder / ARRAYS_FILE, chunk=77), half)  # the last chunk is not whole
    assert inspect(folder).pairs == len(half)

    binary = convert(str(folder), chunk=77)
    assert binary.read_bytes() == half.astype("<i4").tobytes()
    assert inspect(folder).file == binary
    assert sorted(each.name for each in folder.iterdir()) == [ARRAYS_FILE, BINARY]


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path: Path):
    folder = write_arrays(tmp_path / "criteo", pairs(), by_columns=False)
    whole = (folder / ARRAYS_FILE).read_bytes()
    at = whole.index(b"X_cat.npy") + 5_000  # within the packed array
    (folder / ARRAYS_FILE).write_bytes(whole[:at] + bytes(64) + whole[at + 64 :])
    with pytest.raises(WorkloadError, match=r"day_23_reordered\.npz cannot be read"):
        convert(str(folder))

    assert [each.name for each in folder.iterdir()] == [ARRAYS_FILE]


def test_arrays_too_large_for_memory_are_to_be_converted(tmp_path: Path):
    folder = write_arrays(tmp_path / "criteo", pairs(), by_columns=False)
    with pytest.raises(WorkloadError, match=r"day_23_reordered\.npz unpacks to .*convert\(.*criteo"):
        inspect(folder, most_in_memory=1_000)


# ---------------------------------------------------------------------- score


@pytest.mark.parametrize(
    ("predicted", "positive", "expected"),
    [
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),  # scikit-learn's own example
        ([0.9, 0.8, 0.1], [1, 1, 0], 1.0),
        ([0.1, 0.8, 0.9], [1, 0, 0], 0.0),
        ([0.5, 0.5, 0.5], [1, 0, 0], 0.5),
        ([0.2, 0.5, 0.5, 0.7], [0, 1, 0, 1], 0.875),
        ([np.nan, 0.5], [1, 0], 0.0),
    ],
)
def test_auc_by_hand(predicted: list[float], positive: list[int], expected: float):
    found = area_under_curve(np.array(predicted, dtype=np.float32), np.array(positive, dtype=bool))
    assert found == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=60))
def test_auc_is_the_share_of_pairs_in_order(rated: list[tuple[int, bool]]):
    hits = [rate for rate, hit in rated if hit]
    rest = [rate for rate, hit in rated if not hit]
    if hits and rest:
        won = sum((hit > miss) + (hit == miss) / 2 for hit in hits for miss in rest)
        predicted = np.array([rate for rate, _ in rated], dtype=np.float32)
        found = area_under_curve(predicted, np.array([hit for _, hit in rated]))
        assert found == pytest.approx(won / (len(hits) * len(rest)))


def labels(folder: Path) -> CriteoLabels:
    data = inspect(folder)
    return CriteoLabels(data, open_pairs(data.file))


def test_the_clicks_themselves_score_100(tmp_path: Path):
    rows = pairs()
    folder = write_binary(tmp_path / "criteo", rows)
    write_partition(folder, [100, 300, 600])
    clicks = np.split(rows[:, 0].astype(np.float32), [100, 400])
    score = labels(folder).score({index: each.tobytes() for index, each in enumerate(clicks)})
    assert (score.metric, score.value, score.unit, score.samples) == ("AUC", 100.0, "%", 3)
    assert score.details == {"accuracy": 100.0, "pairs": 1000.0}
    score = labels(folder).score({index: (1 - each).tobytes() for index, each in enumerate(clicks)})
    assert score.value == 0.0


def test_answers_missing_or_of_another_size_are_refused(tmp_path: Path):
    folder = write_binary(tmp_path / "criteo", pairs())
    write_partition(folder, [100, 300])
    with pytest.raises(WorkloadError, match=r"sample 1 has 8 bytes, not the 1200"):
        labels(folder).score({0: bytes(400), 1: bytes(8)})

    with pytest.raises(WorkloadError, match="missing"):
        labels(folder).score({0: bytes(400)})


def test_labels_that_are_all_the_same_are_refused(tmp_path: Path):
    rows = pairs(200)
    rows[:, 0] = 0
    folder = write_binary(tmp_path / "criteo", rows)
    write_partition(folder, [200])
    with pytest.raises(WorkloadError, match=r"all 200 labels are 0"):
        labels(folder).score({0: bytes(800)})


# ---------------------------------------------------------------------- malformed


def nothing(folder: Path) -> None:
    """An empty folder."""


def binary(rows: npt.NDArray[np.int32], cut: int = 0) -> Callable[[Path], None]:
    return lambda folder: (folder / BINARY).write_bytes(rows.tobytes()[: rows.nbytes - cut]) and None


def value(column: int, number: int) -> Callable[[Path], None]:
    rows = pairs(10)
    rows[7, column] = number
    return binary(rows)


def partition(text: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        write_binary(folder, pairs(400))
        (folder / "sample_partition.txt").write_text(text)

    return apply


def arrays(cut: int = 0, **changed: npt.NDArray[np.generic]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        rows = pairs(50)
        whole: dict[str, npt.NDArray[np.generic]] = {
            "X_int": rows[:, 1:14],
            "X_cat": rows[:, 14:],
            "y": rows[:, 0],
            **changed,
        }
        kept = {name: each for name, each in whole.items() if each.size}
        np.savez_compressed(folder / ARRAYS_FILE, allow_pickle=True, **kept)
        file = (folder / ARRAYS_FILE).read_bytes()
        (folder / ARRAYS_FILE).write_bytes(file[: len(file) - cut])

    return apply


NOTHING = np.zeros(0)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (nothing, r"holds none of terabyte_processed_test\.bin"),
        (binary(pairs(0)), r"terabyte_processed_test\.bin has 0 bytes"),
        (binary(pairs(10), cut=8), r"has 1,592 bytes, not a multiple of 160.*copy complete"),
        (value(0, 2), r"y of pair 7 is 2, it must be 0 to 1"),
        (value(3, -1), r"X_int\[2\] of pair 7 is -1, it must be 0 or more"),
        (value(14 + 5, 3), r"X_cat\[5\] of pair 7 is 3, it must be 0 to 2"),
        (value(39, -1), r"X_cat\[25\] of pair 7 is -1"),
        (partition(""), r"sample_partition\.txt is empty"),
        (partition("0, 100, 100\n100, 2"), r"line 2: '100, 2', not three numbers"),
        (partition("0, 100, 100\n200, 300, 100"), r"line 2: '200, 300, 100' does not go on"),
        (partition("0, 100, 99"), r"line 1: .* does not count right"),
        (partition("0, 401, 401"), r"goes to pair 401, .*\.bin holds 400"),
        (arrays(cut=200), r"day_23_reordered\.npz cannot be read .*copy complete"),
        (arrays(y=NOTHING), r"lacks the array y; it holds X_cat, X_int"),
        (arrays(X_int=np.zeros((50, 12), np.int32)), r"X_int is \[50, 12\], not \[pairs, 13\]"),
        (arrays(y=np.zeros((50, 1), np.int32)), r"y is \[50, 1\], not \[pairs\]"),
        (arrays(y=np.zeros(49, np.int32)), r"y 49, X_int 50, X_cat 50 pairs"),
        (arrays(X_int=np.full((50, 13), 0.5)), r"X_int holds values that are no whole numbers"),
        (arrays(y=np.array(["click"] * 50)), r"y holds <U5, not numbers"),
        (arrays(y=np.full(50, 7)), r"y of pair 0 is 7"),
    ],
)
def test_a_malformed_data_set_is_named(tmp_path: Path, make: Callable[[Path], None], complaint: str):
    make(tmp_path)
    with pytest.raises(WorkloadError, match=complaint):
        inspect(tmp_path)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path):
    with pytest.raises(WorkloadError, match="does not exist"):
        inspect(tmp_path / "nowhere")


# ---------------------------------------------------------------------- the workload


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_binary(tmp_path_factory.mktemp("criteo"), pairs())
    write_partition(folder, [100, 300, 200])
    return folder


@pytest.fixture(scope="module")
def dlrm(folder: Path) -> Dlrm:
    dlrm = Dlrm("dlrm", replace(SMALL, data=folder))
    dlrm.load()
    dlrm.load_samples([0, 1, 2])
    return dlrm


def test_dlrm_rates_real_pairs_and_is_scored(dlrm: Dlrm):
    assert dlrm.total_sample_count == 3
    together, alone = dlrm.predict([2, 0, 1]), dlrm.reference([2, 0, 1])
    assert [len(each) for each in together] == [200, 100, 300]
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)

    assert dlrm.labelled is not None
    score = dlrm.labelled.score(dict(zip([2, 0, 1], output_bytes(together), strict=True)))
    assert 30 < score.value < 70  # the weights are random
    notes = "\n".join(dlrm.notes)
    assert "labelled: 600 of its 1,000 user-item pairs as 3 samples of 100 to 300" in notes
    assert "folded onto it (modulo 4,000)" in notes


def test_features_are_the_references(dlrm: Dlrm):
    dense, rows = dlrm._samples[1]
    raw = pairs()[100:400]
    np.testing.assert_allclose(dense.numpy(), np.log(raw[:, 1:14] + 1.0), rtol=1e-6)
    first = 0
    for column, count in enumerate(TABLE_ROWS):
        folded = raw[:, 14 + column] % SMALL_ROWS
        assert torch.equal(rows[:, column], torch.from_numpy(first + folded).int())
        first += min(count, SMALL_ROWS)


def test_samples_are_in_memory_only_while_they_are_loaded(folder: Path):
    dlrm = Dlrm("dlrm", replace(SMALL, data=folder))
    dlrm.load()
    with pytest.raises(KeyError):
        dlrm.predict([0])

    dlrm.load_samples([0, 1, 0])
    dlrm.predict([0, 1])
    dlrm.unload_samples([1, 2])
    dlrm.predict([0])
    with pytest.raises(KeyError):
        dlrm.predict([1])


def test_a_pair_that_inspect_did_not_see_is_checked_when_loaded(tmp_path: Path):
    rows = pairs(2 * criteo.ROWS_CHECKED)  # it looks at every other one
    rows[333, 14 + 12] = 10
    folder = write_binary(tmp_path / "criteo", rows)
    write_partition(folder, [300, 700])
    dlrm = Dlrm("dlrm", replace(SMALL, data=folder))
    dlrm.load()
    dlrm.load_samples([0])
    with pytest.raises(WorkloadError, match=r"X_cat\[12\] of pair 333 is 10, it must be 0 to 9"):
        dlrm.load_samples([1])
