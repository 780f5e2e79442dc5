"""When each query of main's test was issued and complete: kept while the test runs, written after it.

``queries.bin`` holds two native 64-bit unsigned words a query, in the order of issue: ``time.monotonic_ns()``
as LoadGen's IssueQuery came in, and after LoadGen had taken the completion of the query's last sample. Under
Offline that is one query, whose samples' completions are in the history (progress.py). Under Server LoadGen
counts a latency from the moment the query was due, which is before it came in by what its timer was late.

Imports neither torch nor numpy nor LoadGen.
"""

from array import array
from pathlib import Path

QUERIES_FILE = "queries.bin"


class Queries:
    """One test's queries: 16 bytes each, where LoadGen itself takes 316. One thread adds to each array."""

    def __init__(self) -> None:
        self.issued_ns = array("Q")
        self.completed_ns = array("Q")

    def write(self, folder: Path) -> None:
        """Write them into the benchmark's folder.

        Raises:
            ValueError: some are not complete.
            OSError: the disk is full.
        """
        if len(self.issued_ns) != len(self.completed_ns):
            raise ValueError(f"{len(self.issued_ns)} queries issued, {len(self.completed_ns)} complete")

        rows = array("Q", bytes(16 * len(self.issued_ns)))
        rows[0::2], rows[1::2] = self.issued_ns, self.completed_ns
        with (folder / QUERIES_FILE).open("wb") as file:
            rows.tofile(file)


def read_queries(folder: Path) -> Queries | None:
    """The queries in a benchmark's folder; None where there are none: it was a background, or was cut short."""
    try:
        data = (folder / QUERIES_FILE).read_bytes()
    except FileNotFoundError:
        return None

    rows = array("Q")
    rows.frombytes(data[: len(data) // 16 * 16])
    queries = Queries()
    queries.issued_ns, queries.completed_ns = rows[0::2], rows[1::2]
    return queries
