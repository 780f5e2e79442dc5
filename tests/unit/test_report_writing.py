"""Reports are there whole or not at all."""

import os
from pathlib import Path

import pytest

from scheduler.errors import DiskFull
from scheduler.report import files
from tests.unit.test_report_files import folder


def test_a_report_is_written_beside_the_former_one_and_then_takes_its_name(tmp_path: Path):
    run = folder(tmp_path / "run")
    (tmp_path / "kept.html").write_text("the former one")
    link = tmp_path / "report.html"
    link.symlink_to("kept.html")
    with link.open() as former:
        files.write_report([run], link)
        assert os.fstat(former.fileno()).st_nlink == 0  # no part of it was written over
        assert former.read() == "the former one"

    assert link.is_symlink()
    assert (tmp_path / "kept.html").read_text().endswith("</html>\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "kept.html",
        "report.html",
        "report.md",
        "run",
    ]
    with pytest.raises(DiskFull):
        files.write_trace(run, Path("/dev/full"))  # what is no file stays what it is

    assert Path("/dev/full").is_char_device()
