"""LoadGen's ``mlperf_log_accuracy.json``: the answers of an accuracy run, by sample index.

The file may be larger than memory (a KiTS19 volume is 64 MB of hexadecimal digits in it), so only places are
kept, and an answer is read when it is asked for. Imports neither torch nor LoadGen.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from workloads.protocol import WorkloadError

_ENTRY = re.compile(rb'\{ "seq_id" : \d+, "qsl_idx" : (\d+), "data" : "')
"""How LoadGen 6.0.17 begins a line that is an entry; the answer's digits and a quotation mark follow."""


class AccuracyLog(Mapping[int, bytes]):
    """Answers by sample index, as bytes. Of a sample answered twice (MultiStream fills its last queries up)
    the first answer counts, as in MLPerf's own scripts."""

    def __init__(self, path: Path) -> None:
        """Read through the file once.

        Raises:
            WorkloadError: it is not there, or is no accuracy log.
        """
        self.path = path
        self.entries = 0
        """Lines: more than samples where some were answered twice."""
        self._places: dict[int, tuple[int, int]] = {}
        digest, at = hashlib.sha256(), 0
        try:
            with path.open("rb") as lines:
                for line in lines:
                    digest.update(line)
                    self._note(line, at)
                    at += len(line)
        except OSError as error:
            raise WorkloadError(
                f"the answers of an accuracy run, {path}, cannot be read: {error.strerror}"
            ) from error

        self.sha256 = digest.hexdigest()

    def every(self) -> Iterator[tuple[int, bytes]]:
        """Sample index and answer of every entry in the log's order, those of samples answered again too."""
        at = 0
        with self.path.open("rb") as lines:
            for line in lines:
                entry = self._entry(line, at)
                at += len(line)
                if entry is not None:
                    index, begin, end = entry
                    yield index, self._answer(index, line[begin:end])

    def _note(self, line: bytes, at: int) -> None:
        entry = self._entry(line, at)
        if entry is not None:
            index, begin, end = entry
            self.entries += 1
            self._places.setdefault(index, (at + begin, end - begin))

    def _entry(self, line: bytes, at: int) -> tuple[int, int, int] | None:
        """Sample index, and where in the line its answer begins and ends; None: the line is no entry."""
        if line.strip() in (b"[", b"]", b""):
            return None

        entry = _ENTRY.match(line)
        end = -1 if entry is None else line.find(b'"', entry.end())
        if entry is None or end < 0:
            raise WorkloadError(
                f"the answers of an accuracy run, {self.path}: an entry that is cut off or not LoadGen's, at byte {at}"
            )

        return int(entry[1]), entry.end(), end

    def __getitem__(self, index: int) -> bytes:
        begin, length = self._places[index]
        with self.path.open("rb") as file:
            file.seek(begin)
            return self._answer(index, file.read(length))

    def _answer(self, index: int, digits: bytes) -> bytes:
        try:
            return bytes.fromhex(digits.decode("ascii"))
        except ValueError:
            raise WorkloadError(
                f"the answers of an accuracy run, {self.path}: that to sample {index} is no hexadecimal number"
            ) from None

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
