"""The sample library, the batching thread and the filler, without LoadGen."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from workloads.fixed import Fixed
from workloads.loadgen import Responses
from workloads.matmul import Matmul
from workloads.null import Null
from workloads.protocol import Precision, Workload, WorkloadOptions
from workloads.sut import Batches, Library, Nobody, QueueSut, batch_of

WAIT_S = 20
"""For what must happen; nothing waits so long unless it fails."""


def options(precision: Precision = "fp32") -> WorkloadOptions:
    return WorkloadOptions(
        size="small", device="cpu", precision=precision, batch_size=8, seed=5, threads=1, memory_mib=1024
    )


def unguarded(callback: Callable[[], None]) -> Callable[[], None]:
    return callback


class Samples(Null):
    """Null, but it knows what is loaded."""

    def __init__(self) -> None:
        super().__init__("null", options())
        self.loaded: list[int] = []

    def load_samples(self, indices: Sequence[int]) -> None:
        self.loaded += indices

    def unload_samples(self, indices: Sequence[int]) -> None:
        for index in indices:
            self.loaded.remove(index)


def test_the_library_loads_what_is_missing_and_lets_go_of_the_rest() -> None:
    workload = Samples()
    library = Library(workload)
    library.load([1, 2, 3])
    library.load([1, 2, 3])
    assert workload.loaded == [1, 2, 3]
    library.load([3, 4])
    assert sorted(workload.loaded) == [3, 4]
    assert library.take(5) == [3, 4, 3, 4, 3]
    library.load_any(10_000, seed=1)
    assert sorted(workload.loaded) == list(range(workload.total_sample_count))


@pytest.mark.parametrize(
    ("wait_ns", "expected"),
    [(0, [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9], [10]]), (10**8, [[0, 1, 2, 3, 4, 5, 6, 7], [8, 9], [10]])],
)
def test_what_waits_goes_together_and_nothing_is_left(wait_ns: int, expected: list[list[int]]) -> None:
    predicted: list[list[int]] = []

    def predict(indices: Sequence[int]) -> npt.NDArray[np.generic]:
        predicted.append(list(indices))
        return np.zeros((len(indices), 1))

    completed: list[int] = []
    batches = Batches(predict, lambda ids, _outputs: completed.extend(ids), 8, Nobody())
    with ThreadPoolExecutor(1) as compute:
        sut = QueueSut(batches, wait_ns, unguarded, compute)
        for number in range(11):  # before the thread runs: all of them wait
            sut.issue([100 + number], [number])

        with sut:
            pass  # leaving asks the thread to end, after what it was given

    assert predicted == expected
    assert completed == list(range(100, 111))
    assert batches.samples == 11


@pytest.mark.parametrize(
    ("waiting", "filled", "expected"),
    [
        (1, {2, 4, 8}, (1, 1)),
        (3, {4}, (3, 4)),
        (3, set(), (2, 2)),
        (4, {8}, (4, 4)),
        (5, {8}, (5, 8)),
        (9, {10}, (9, 10)),
        (9, set(), (8, 8)),
        (10, set(), (10, 10)),
        (99, set(), (10, 10)),
    ],
)
def test_what_the_next_batch_takes(waiting: int, filled: set[int], expected: tuple[int, int]) -> None:
    assert batch_of(waiting, 10, filled) == expected


def test_a_batch_that_is_filled_up_answers_each_query_once() -> None:
    predicted: list[list[int]] = []

    def predict(indices: Sequence[int]) -> npt.NDArray[np.generic]:
        predicted.append(list(indices))
        return np.asarray(indices)

    completed: list[tuple[int, int]] = []

    def complete(ids: Sequence[int], outputs: object) -> None:
        completed.extend(zip(ids, outputs, strict=True))  # type: ignore[call-overload]  # an array or a list

    batches = Batches(predict, complete, 8, Nobody())
    with ThreadPoolExecutor(1) as compute:
        sut = QueueSut(batches, 0, unguarded, compute, {8})
        for number in range(5):
            sut.issue([100 + number], [number])

        with sut:
            pass

    assert predicted == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert completed == [(100 + number, number) for number in range(5)]
    assert batches.samples == 5


@pytest.mark.parametrize(
    "outputs",
    [np.zeros((3, 2)), [np.zeros(2)], np.zeros((2, 4))[:, ::2], [np.zeros(4)[::2], np.zeros(2)]],
)
def test_outputs_that_loadgen_would_misread_are_refused(outputs: npt.NDArray[np.generic]) -> None:
    with pytest.raises(ValueError, match="predict gave"):
        Responses(8).complete([1, 2], outputs)


@pytest.mark.parametrize("workload", [Null("null", options()), Fixed("fixed", options())])
def test_the_answers_are_those_of_the_reference(workload: Workload) -> None:
    workload.load()
    asked = [5, 0, 1023, 5]
    assert np.array_equal(np.asarray(workload.predict(asked)), np.asarray(workload.reference(asked)))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2), ("fp16", 1e-3)])
def test_matmul_is_the_product_it_says(precision: Precision, tolerance: float) -> None:
    workload = Matmul("matmul", options(precision))
    workload.load()
    asked = [0, 1, 2, 7]
    got, wanted = np.asarray(workload.predict(asked)), np.asarray(workload.reference(asked))
    assert got.shape == (4, 1)
    assert np.allclose(got, wanted, rtol=tolerance)
    assert len(np.unique(wanted)) == 4
    assert np.array_equal(wanted[3], np.asarray(workload.reference([3]))[0])
