"""Main's own record of its queries, against LoadGen's figures of the same test."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.loadgen.test_loadgen import run, settings
from workloads.queries import QUERIES_FILE, Queries, read_queries
from workloads.sut import Batches, Nobody, QueueSut


@pytest.mark.parametrize(
    ("scenario", "batch_size", "how"),
    [
        ("SingleStream", 1, {"workload": "fixed"}),
        ("MultiStream", 3, {"workload": "fixed"}),  # 8 samples a query, so three batches
        ("Server", 8, {"workload": "null", "in_flight": True, "batch_s": 0.002}),
    ],
)
def test_every_query_is_kept_and_the_percentiles_are_loadgens(
    tmp_path: Path, scenario: str, batch_size: int, how: dict[str, object]
) -> None:
    asked = settings(scenario, target_qps=200.0)
    ended = run(tmp_path, str(how.pop("workload")), batch_size, asked, **how)
    log = ended.log()
    queries = read_queries(tmp_path)
    assert queries is not None
    assert len(queries.issued_ns) == log["result_query_count"]
    latencies_ns = np.subtract(queries.completed_ns, queries.issued_ns, dtype=np.int64)
    ours_ns = np.percentile(latencies_ns, 50, method="inverted_cdf")
    of = "per_query_" if scenario == "MultiStream" else ""
    # LoadGen's clock starts a little before ours (under Server when the query was due) and ends before it.
    assert ours_ns == pytest.approx(log[f"result_50.00_percentile_{of}latency_ns"], rel=0.1, abs=1e6)
    assert latencies_ns.min() > 0
    assert list(queries.issued_ns) == sorted(queries.issued_ns)


def test_one_at_a_time_each_is_complete_before_the_next() -> None:
    batches = Batches(lambda indices: np.zeros((len(indices), 1)), lambda _ids, _outputs: None, 1, Nobody())
    with ThreadPoolExecutor(1) as compute:
        sut = QueueSut(batches, 0, lambda callback: callback, compute)
        for number in range(6):
            sut.issue([number], [number])

        with sut:
            pass  # leaving asks the thread to end, after what it was given

    completed_ns = list(sut.queries.completed_ns)
    assert len(sut.queries.issued_ns) == len(set(completed_ns)) == 6
    assert completed_ns == sorted(completed_ns)


def test_queries_that_are_not_complete_are_not_written(tmp_path: Path) -> None:
    queries = Queries()
    queries.issued_ns.extend([1, 2])
    queries.completed_ns.append(5)
    with pytest.raises(ValueError, match="2 queries issued, 1 complete"):
        queries.write(tmp_path)

    assert not (tmp_path / QUERIES_FILE).exists()
    assert read_queries(tmp_path) is None


def test_a_file_that_was_cut_short_gives_what_is_whole(tmp_path: Path) -> None:
    queries = Queries()
    queries.issued_ns.extend([1, 2])
    queries.completed_ns.extend([5, 7])
    queries.write(tmp_path)
    with (tmp_path / QUERIES_FILE).open("r+b") as file:
        file.truncate(30)

    found = read_queries(tmp_path)
    assert found is not None
    assert (list(found.issued_ns), list(found.completed_ns)) == ([1], [5])
