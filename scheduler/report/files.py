"""Reports and traces as files, each there whole or not at all: what was read in, what is shown out."""

import json
from collections.abc import Sequence
from pathlib import Path

from scheduler.errors import SpecError
from scheduler.record import disk_errors, is_series, write_whole
from scheduler.report import markdown, page, series_report, trace
from scheduler.report.document import Document
from scheduler.report.run_report import report_on, report_on_trials
from scheduler.report.tables import load, load_series, trials_in


def write_report(folders: Sequence[Path], output: Path | None) -> tuple[Path, Path]:
    """Write HTML and Markdown; the paths of both.

    Raises:
        SpecError: series and other folders are mixed, or the HTML file is called as the Markdown one is to be.
        FolderDamaged: one is no folder of ours, or cannot be read.
        DiskFull, RecordError: the files cannot be written.
    """
    if output is not None and output.suffix == ".md":
        raise SpecError(
            asked=f"--output {output}",
            found="that is what the Markdown file is called, which is put beside the HTML one",
            do="name the HTML file, as report.html",
        )

    document = document_of(folders)
    default = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    html = (default if output is None else output).absolute()
    beside = html.with_suffix(".md")
    with disk_errors(html.parent):
        html.parent.mkdir(parents=True, exist_ok=True)

    write_whole(html, page.render(document).encode())
    write_whole(beside, markdown.render(document).encode())
    return html, beside


def document_of(folders: Sequence[Path]) -> Document:
    """What is to be said of these folders."""
    series = [folder for folder in folders if is_series(folder)]
    if not series:
        trials = trials_in(folders[0]) if len(folders) == 1 else []
        return (
            report_on_trials([load(one) for one in trials]) if trials else report_on(list(map(load, folders)))
        )

    if len(folders) > 1:
        raise SpecError(
            asked=f"one report of {len(folders)} folders",
            found=f"{series[0]} is a series of runs, which has a report of its own",
            do="name that folder alone, or runs in its runs/ folder",
        )

    return series_report.report_on(load_series(series[0]))


def write_trace(folder: Path, output: Path) -> Path:
    """Write a Chrome trace of one run.

    Raises:
        SpecError: it is a series.
        FolderDamaged, DiskFull, RecordError: as ``write_report``.
    """
    if is_series(folder):
        raise SpecError(
            asked=f"a trace of {folder}",
            found="it is a series of runs, not one run",
            do="name one of the folders in its runs/ folder",
        )

    content = json.dumps(trace.trace_of(load(folder)))
    with disk_errors(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)

    write_whole(output, content.encode())
    return output.absolute()
