"""Criteo Terabyte's day 23 as MLPerf's DLRM reference stores it: found, checked, read by sample, scored.

The reference (mlcommons/inference, recommendation/dlrm/pytorch/python/criteo.py) makes
``terabyte_processed_test.bin`` out of the first half of ``day_23_reordered.npz`` with facebookresearch/dlrm's
data_loader_terabyte.py, ``numpy_to_binary``: one row of 40 int32 a user-item pair, namely the click, 13 counts
and 26 categories. A sample is a run of 100 to 700 pairs. Imports no torch, so that the launcher can use it.
"""

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from workloads.answers import in_order, of_size
from workloads.labelled import Score
from workloads.protocol import WorkloadError

Rows = npt.NDArray[np.int32]

BINARY_FILES = ("terabyte_processed_test.bin", "test_data.bin")
"""As the inference reference and data_loader_terabyte.py name the same file."""

ARRAYS_FILE = "day_23_reordered.npz"
ARRAYS = {"y": 1, "X_int": 13, "X_cat": 26}
"""Its arrays and their columns, in the order that a row has them."""

PARTITION_FILES = ("sample_partition.txt", "dlrm_trace_of_aggregated_samples.txt")
"""Which pairs make each sample: ``start, end, count`` a line. NVIDIA's name for it, and the reference's."""

COUNTS, CATEGORIES = slice(1, 14), slice(14, 40)
COLUMNS = 40
BYTES_PER_PAIR = COLUMNS * 4

# fmt: off
TABLE_ROWS = (
    39884406, 39043, 17289, 7420, 20263, 3, 7120, 1543, 63, 38532951, 2953546, 403346, 10,
    2208, 11938, 155, 4, 976, 14, 39979771, 25641295, 39664984, 585935, 12972, 108, 36,
)
# fmt: on
"""Categories of each of the 26 columns, with ``--max-ind-range 40000000``."""

MOST = np.array([1, *[np.iinfo(np.int32).max] * 13, *(rows - 1 for rows in TABLE_ROWS)], dtype=np.uint32)
"""The largest value of each column of a row."""

QUANTILES = (100, 100, *[200] * 12, 300, 300, 400, 500, 600, 700)
TRACE_SEED = 123
"""The reference draws lengths from these quantiles (tools/dist_quantile.txt) with numpy's legacy generator
(main.py, ``--numpy-rand-seed``): over day 23's 89 137 319 test pairs that gives its 330 067 samples."""

MOST_IN_MEMORY = 2 << 30
"""Bytes of an .npz, unpacked, that are held in memory; a larger one is to be converted once."""

ROWS_CHECKED = 20_000
"""``inspect`` looks at this many rows, evenly spaced; the others are checked when they are loaded."""

CHUNK = 1 << 20
"""Rows converted or judged at once."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Criteo:
    """The pairs of one file and how they make samples."""

    file: Path
    pairs: int
    partition: Path | None
    """None: the samples are drawn as the reference draws them."""
    bounds: npt.NDArray[np.int64]
    """Sample ``i`` is the pairs from ``bounds[i]`` to ``bounds[i + 1]``."""

    @property
    def samples(self) -> int:
        return len(self.bounds) - 1


def inspect(folder: Path, *, most_in_memory: int = MOST_IN_MEMORY) -> Criteo:
    """Find the pairs and the partition of ``folder``, and check them.

    Raises:
        WorkloadError: nothing there, truncated, of another shape, keys missing, values that cannot be; names
            file, and line or pair and column, what was found, and what to do.
    """
    if not folder.is_dir():
        what = "is no folder" if folder.exists() else "does not exist"
        raise WorkloadError(
            f"data folder {folder} {what}; name a folder with {BINARY_FILES[0]} or {ARRAYS_FILE} with --data"
        )

    candidates = [folder / name for name in (*BINARY_FILES, ARRAYS_FILE)]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        raise WorkloadError(
            f"data folder {folder} holds none of {', '.join((*BINARY_FILES, ARRAYS_FILE))}: Criteo Terabyte as "
            "MLPerf's DLRM reference preprocesses it; run that on day 0 to 23, or name another folder"
        )

    table = open_pairs(file, most_in_memory=most_in_memory)
    step = max(1, len(table) // ROWS_CHECKED)
    check_rows(table[::step], file, np.arange(0, len(table), step))
    partition = next((path for name in PARTITION_FILES if (path := folder / name).is_file()), None)
    bounds = drawn_bounds(len(table)) if partition is None else _read_bounds(partition, len(table), file)
    return Criteo(file=file, pairs=len(table), partition=partition, bounds=bounds)


def open_pairs(file: Path, *, most_in_memory: int = MOST_IN_MEMORY, chunk: int = CHUNK) -> Rows:
    """All pairs, int32 [pairs, 40]: a view of the binary file, or an .npz's first half in memory.

    Raises:
        WorkloadError: truncated, of another shape, or an .npz too large for memory.
    """
    if file.suffix == ".npz":
        half, unpacked = _measure(file)
        if unpacked > most_in_memory:
            raise WorkloadError(
                f"{file} unpacks to {unpacked / 2**30:.1f} GiB, and one sample of a packed file cannot be read alone; "
                f"convert it once, to {half * BYTES_PER_PAIR / 2**30:.1f} GiB: "
                f"python -c 'from workloads.criteo import convert; convert(\"{file.parent}\")'"
            )

        rows = np.empty((half, COLUMNS), dtype=np.int32)
        _unpack(file, rows, chunk)
        return rows

    size = file.stat().st_size
    if size == 0 or size % BYTES_PER_PAIR:
        raise WorkloadError(
            f"{file} has {size:,} bytes, not a multiple of {BYTES_PER_PAIR} (40 int32 a pair); is the copy complete?"
        )

    try:
        return np.memmap(file, dtype="<i4", mode="r", shape=(size // BYTES_PER_PAIR, COLUMNS))
    except OSError as error:
        raise WorkloadError(f"{file} cannot be read: {error.strerror}") from error


def check_rows(rows: Rows, file: Path, numbers: npt.NDArray[np.int64]) -> None:
    """Hold these pairs, whose numbers in ``file`` are ``numbers``, against what each column may be.

    Raises:
        WorkloadError: a click that is neither 0 nor 1, a negative count, a category beyond its table.
    """
    if not (rows.view(np.uint32) > MOST).any():  # what is negative is large without a sign
        return

    wrong = np.argwhere(rows.view(np.uint32) > MOST)
    row, column = (int(each) for each in wrong[0])
    name = "y" if column == 0 else f"X_int[{column - 1}]" if column < 14 else f"X_cat[{column - 14}]"
    limit = f"0 to {int(MOST[column]):,}" if column == 0 or column >= 14 else "0 or more"
    raise WorkloadError(
        f"{file}: {name} of pair {int(numbers[row]):,} is {int(rows[row, column]):,}, it must be {limit}; "
        "preprocess day 23 as MLPerf's reference does, with --max-ind-range 40000000"
    )


def drawn_bounds(pairs: int) -> npt.NDArray[np.int64]:
    """The reference's samples (criteo.py, ``samples_to_aggregate_quantile_file``); the last may be cut short."""
    random = np.random.RandomState(TRACE_SEED)  # the generator that numpy.random.seed seeds
    lengths = np.array(QUANTILES)[random.randint(0, len(QUANTILES), size=pairs // min(QUANTILES) + 1)]
    ends = np.cumsum(lengths)
    return np.concatenate(([0], ends[ends < pairs], [pairs])).astype(np.int64)


def _read_bounds(path: Path, pairs: int, file: Path) -> npt.NDArray[np.int64]:
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"partition {path} cannot be read: {error}") from error

    bounds = [0]
    for number, line in enumerate(lines, 1):
        try:
            start, end, count = (int(word) for word in line.split(","))
        except ValueError:
            raise WorkloadError(
                f"partition {path}, line {number}: {line[:60]!r}, not three numbers: start, end, count; "
                "take the reference's, or remove it to have its samples drawn"
            ) from None

        if start != bounds[-1] or end <= start or count != end - start:
            raise WorkloadError(
                f"partition {path}, line {number}: {line!r} does not go on where the line before ends, "
                f"at {bounds[-1]}, or does not count right; is the copy complete?"
            )

        bounds.append(end)

    if len(bounds) == 1:
        raise WorkloadError(f"partition {path} is empty; remove it to have the reference's samples drawn")

    if bounds[-1] > pairs:
        raise WorkloadError(
            f"partition {path} goes to pair {bounds[-1]:,}, {file} holds {pairs:,}: one of the two is truncated"
        )

    return np.array(bounds, dtype=np.int64)


# ---------------------------------------------------------------------- the .npz


def convert(folder: str, *, chunk: int = CHUNK) -> Path:
    """Write ``terabyte_processed_test.bin`` out of ``day_23_reordered.npz``, in chunks; returns it.

    Raises:
        WorkloadError: the .npz is missing, truncated or of another shape, or the disk is full.
    """
    source, target = Path(folder, ARRAYS_FILE), Path(folder, BINARY_FILES[0])
    half, _ = _measure(source)
    unfinished = target.with_suffix(".part")
    try:
        with unfinished.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, half * BYTES_PER_PAIR)

        rows = np.memmap(unfinished, dtype="<i4", mode="r+", shape=(half, COLUMNS))
        _unpack(source, rows, chunk)
        rows.flush()
        unfinished.replace(target)
    except OSError as error:
        raise WorkloadError(
            f"{target} cannot be written ({error.strerror}); it takes {half * BYTES_PER_PAIR / 2**30:.1f} GiB"
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)

    return target


def _measure(file: Path) -> tuple[int, int]:
    """Pairs in the test half, and bytes of all arrays, after holding their shapes against each other."""
    pairs: dict[str, int] = {}
    unpacked = 0
    for name, columns in ARRAYS.items():
        with _array(file, name) as (shape, _, dtype, _):
            wanted = "[pairs]" if columns == 1 else f"[pairs, {columns}]"
            if (len(shape) != 1 and columns == 1) or (columns > 1 and shape[1:] != (columns,)):
                raise WorkloadError(
                    f"{file}: {name} is {list(shape)}, not {wanted}; take the reference's day_23_reordered.npz"
                )

            pairs[name] = shape[0]
            unpacked += shape[0] * columns * dtype.itemsize

    if len(set(pairs.values())) != 1 or not pairs["y"]:
        counts = ", ".join(f"{name} {count:,}" for name, count in pairs.items())
        raise WorkloadError(f"{file}: its arrays hold {counts} pairs; they must be as many, and at least one")

    return (pairs["y"] + 1) // 2, unpacked


@contextmanager
def _array(file: Path, name: str) -> Iterator[tuple[tuple[int, ...], bool, np.dtype[np.generic], IO[bytes]]]:
    """One array of the .npz: its shape, whether it lies by columns, its dtype, and its elements as a stream."""
    try:
        with zipfile.ZipFile(file) as archive:
            if f"{name}.npy" not in archive.namelist():
                found = ", ".join(sorted(each.removesuffix(".npy") for each in archive.namelist()))
                raise WorkloadError(f"{file} lacks the array {name}; it holds {found or 'nothing'}")

            with archive.open(f"{name}.npy") as stream:
                version = np.lib.format.read_magic(stream)
                read = (
                    np.lib.format.read_array_header_1_0
                    if version == (1, 0)
                    else np.lib.format.read_array_header_2_0
                )
                shape, by_columns, dtype = read(stream)
                if dtype.kind not in "iufb":
                    raise WorkloadError(f"{file}: {name} holds {dtype}, not numbers")

                yield shape, by_columns, dtype, stream
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise WorkloadError(f"{file} cannot be read ({error}); is the copy complete?") from error


def _unpack(file: Path, rows: Rows, chunk: int) -> None:
    """Fill ``rows`` with the first pairs of the file, whose arrays lie by rows or, transposed, by columns."""
    at = 0
    for name, columns in ARRAYS.items():
        with _array(file, name) as (shape, by_columns, dtype, stream):
            if by_columns or columns == 1:
                for column in range(columns):
                    for start, values in _parts(stream, dtype, shape[0], 1, chunk):
                        _put(rows[:, at + column : at + column + 1], start, values, file, name)
            else:
                for start, values in _parts(stream, dtype, shape[0], columns, chunk):
                    if start >= len(rows):
                        break

                    _put(rows[:, at : at + columns], start, values, file, name)

        at += columns


def _parts(
    stream: IO[bytes], dtype: np.dtype[np.generic], rows: int, columns: int, chunk: int
) -> Iterator[tuple[int, npt.NDArray[np.generic]]]:
    """The stream's next ``rows`` rows in chunks: the first row's number, and the values [rows, columns]."""
    for start in range(0, rows, chunk):
        count = min(chunk, rows - start)
        data = stream.read(count * columns * dtype.itemsize)
        if len(data) < count * columns * dtype.itemsize:
            raise EOFError("an array ends early")

        yield start, np.frombuffer(data, dtype=dtype).reshape(count, columns)


def _put(rows: Rows, start: int, values: npt.NDArray[np.generic], file: Path, name: str) -> None:
    """Write values into the rows from ``start`` on, as far as there are rows."""
    part = values[: max(0, len(rows) - start)]
    whole = part.astype(np.int32)
    if not np.array_equal(whole, part):
        raise WorkloadError(f"{file}: {name} holds values that are no whole numbers of 32 bits")

    rows[start : start + len(part)] = whole


# ---------------------------------------------------------------------- score


class CriteoLabels:
    """The area under the ROC curve of click probabilities."""

    def __init__(self, data: Criteo, table: Rows) -> None:
        self._data, self._table = data, table
        self.sample_count = data.samples

    def score(self, answers: Mapping[int, bytes]) -> Score:
        """ROC-AUC in % over all pairs of all samples, each answer float32 [its pairs] (accuracy-dlrm.py).

        Raises:
            WorkloadError: answers are missing or of another size, or all labels are the same.
        """
        given = in_order(answers, self.sample_count)
        counts = np.diff(self._data.bounds)
        what = "one float32 for each of its pairs"
        for index, answer in enumerate(given):
            of_size(answer, index, int(counts[index]) * 4, what)

        predicted = np.frombuffer(b"".join(given), dtype=np.float32)
        last = int(self._data.bounds[-1])
        parts = [self._table[start : min(start + CHUNK, last), 0] == 1 for start in range(0, last, CHUNK)]
        clicks = np.concatenate(parts)
        if clicks.all() or not clicks.any():
            raise WorkloadError(
                f"{self._data.file}: all {last:,} labels are {int(clicks[0])}, which leaves no curve to measure; "
                "take the whole file"
            )

        right = float(((predicted.round() == 1) == clicks).mean())
        return Score(
            metric="AUC",
            value=100 * area_under_curve(predicted, clicks),
            unit="%",
            samples=self.sample_count,
            details={"accuracy": 100 * right, "pairs": float(last)},
        )


def area_under_curve(predicted: npt.NDArray[np.float32], positive: npt.NDArray[np.bool_]) -> float:
    """ROC-AUC: the share of pairs of a positive and a negative in which the positive is rated higher, ties
    counting half (Fawcett 2006; scikit-learn's ``roc_auc_score``). Not-a-numbers are rated lowest."""
    known = np.where(np.isnan(predicted), -np.inf, predicted)
    order = np.argsort(known)
    rated, hits = known[order], positive[order]
    ends = np.append(np.flatnonzero(rated[1:] != rated[:-1]), len(rated) - 1)
    positives = np.diff(np.cumsum(hits)[ends], prepend=0).astype(np.float64)
    negatives = np.diff(np.cumsum(~hits)[ends], prepend=0).astype(np.float64)
    below = np.cumsum(negatives) - negatives
    return float((positives * (below + negatives / 2)).sum() / (positives.sum() * negatives.sum()))
