"""Batches in flight: their order, what the watcher is told, and LoadGen's own word on a test with them."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.loadgen.benchmark import Ticket
from tests.loadgen.test_loadgen import AT_EASE, run, samples_of, settings
from tests.loadgen.test_sut import options, unguarded
from workloads.fixed import Fixed
from workloads.pipeline import SORTED_BATCHES, by_length
from workloads.sut import Batches, QueueSut

if TYPE_CHECKING:
    from workloads.protocol import Outputs


class Device(Fixed):
    """Fixed, computing beside the thread that asks."""

    depth = 2

    def __init__(self) -> None:
        super().__init__("fixed", options())
        self.thread = ThreadPoolExecutor(1)
        self.in_flight: deque[Ticket] = deque()
        self.most_in_flight = 0
        self.batches: list[list[int]] = []

    def begin(self, indices: Sequence[int]) -> Ticket:
        self.batches.append(list(indices))
        while self.in_flight and self.in_flight[0].done():
            self.in_flight.popleft()

        ticket = Ticket(self.thread.submit(self.predict, list(indices)))
        self.in_flight.append(ticket)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        return ticket


class Told:
    """A watcher that remembers."""

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []

    def first_issue(self, at_ns: int) -> None: ...

    def began(self, begin_ns: int) -> None: ...

    def completed(self, begin_ns: int, end_ns: int, _samples: int, _filler: bool) -> None:
        self.spans.append((begin_ns, end_ns))


@pytest.fixture
def device():
    made = Device()
    with made.thread:
        yield made


def completing(into: list[tuple[int, int]]):
    def complete(ids: Sequence[int], outputs: "Outputs") -> None:
        into.extend((one, int(output[0])) for one, output in zip(ids, outputs, strict=True))

    return complete


def test_two_are_in_flight_and_complete_in_order(device: Device):
    completed: list[tuple[int, int]] = []
    told = Told()
    batches = Batches(device.predict, completing(completed), 4, told, begin=device.begin, depth=2)
    batches.run(range(100, 118), list(range(18)))
    assert completed == [(100 + number, number) for number in range(18)]
    assert device.most_in_flight == 2
    assert (batches.samples, batches.in_flight) == (18, 0)
    for (_, end_ns), (begin_ns, _) in zip(told.spans, told.spans[1:], strict=False):
        assert begin_ns == end_ns  # no time is counted twice, and the device was never idle


def test_server_begins_a_batch_beside_when_it_is_half_full(device: Device):
    completed: list[tuple[int, int]] = []
    batches = Batches(device.predict, completing(completed), 8, Told(), begin=device.begin, depth=2)
    with ThreadPoolExecutor(1) as compute:
        sut = QueueSut(batches, 0, unguarded, compute)
        for number in range(21):
            sut.issue([100 + number], [number])

        with sut:
            pass

    assert [len(batch) for batch in device.batches] == [8, 8, 4, 1]
    assert sorted(completed) == [(100 + number, number) for number in range(21)]
    assert device.most_in_flight == 2


@pytest.mark.parametrize(("queries", "most"), [(24, 3), (20, 2)])
def test_server_begins_a_third_batch_only_when_it_is_full(device: Device, queries: int, most: int):
    completed: list[tuple[int, int]] = []
    batches = Batches(device.predict, completing(completed), 8, Told(), begin=device.begin, depth=3)
    with ThreadPoolExecutor(1) as compute:
        sut = QueueSut(batches, 0, unguarded, compute)
        for number in range(queries):
            sut.issue([100 + number], [number])

        with sut:
            pass

    assert [len(batch) for batch in device.batches] == [8, 8, queries - 16]
    assert completed == [(100 + number, number) for number in range(queries)]
    assert device.most_in_flight == most


def test_where_half_a_batch_takes_as_long_it_waits_to_be_full(device: Device):
    completed: list[tuple[int, int]] = []
    batches = Batches(device.predict, completing(completed), 8, Told(), begin=device.begin, depth=2)
    with ThreadPoolExecutor(1) as compute:
        sut = QueueSut(batches, 0, unguarded, compute, {8})
        for number in range(13):
            sut.issue([100 + number], [number])

        with sut:
            pass

    assert [len(batch) for batch in device.batches] == [8, 8]  # the second filled up
    assert sorted(completed) == [(100 + number, number) for number in range(13)]
    assert device.most_in_flight == 1


def test_a_query_is_cut_into_batches_of_like_length(device: Device):
    def lengths(indices: Sequence[int]) -> np.ndarray:
        return np.array([index % 7 for index in indices])

    completed: list[tuple[int, int]] = []
    batches = Batches(
        *(device.predict, completing(completed), 2, Told()), begin=device.begin, depth=2, lengths=lengths
    )
    count = 2 * SORTED_BATCHES + 5
    batches.run(range(100, 100 + count), list(range(count)))
    assert sorted(completed) == [(100 + number, number) for number in range(count)]
    assert sorted(index for batch in device.batches[:SORTED_BATCHES] for index in batch) == list(
        range(2 * SORTED_BATCHES)
    )
    first = [index % 7 for batch in device.batches[:SORTED_BATCHES] for index in batch]
    assert first == sorted(first)
    assert by_length([3, 9, 1], lengths) == [2, 1, 0]


@pytest.mark.parametrize(
    ("scenario", "changed"),
    [("Offline", {"min_query_count": 300}), ("Server", AT_EASE), ("SingleStream", {"min_query_count": 100})],
)
def test_loadgen_finds_a_test_with_batches_in_flight_valid(
    tmp_path: Path, scenario: str, changed: dict[str, Any]
):
    batch_size = 1 if scenario == "SingleStream" else 4
    ended = run(tmp_path, "fixed", batch_size, settings(scenario, **changed), in_flight=True)
    log = ended.log()
    assert (log["result_validity"], log["num_errors"]) == ("VALID", 0), (ended.measured, ended.error)
    assert ended.mark.samples_completed == samples_of(log)
    assert ended.mark.tests_started == 1


def test_background_with_batches_in_flight_leaves_the_device_no_time_to_rest(tmp_path: Path):
    ended = run(tmp_path, "fixed", 4, settings("Offline", min_duration_ms=100), tests=3, in_flight=True)
    assert not any(log["num_errors"] for log in ended.logs())
    work = ended.work()
    assert work.samples == sum(samples_of(log) for log in ended.logs())
    assert work.longest_idle_s < 0.1
