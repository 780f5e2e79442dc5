"""``hetero-mig report``: run folders as something to look at."""

from pathlib import Path

import click


@click.command()
@click.argument(
    "runs",
    nargs=-1,
    required=True,
    metavar="RUN…",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The HTML file; the Markdown one is put beside it (default: report.html in RUN; of several, here).",
)
@click.option("--open", "open_it", is_flag=True, help="Show it in the browser.")
@click.option(
    "--trace",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the run as a Chrome trace instead, for ui.perfetto.dev or chrome://tracing.",
)
def report(runs: tuple[Path, ...], output: Path | None, open_it: bool, trace: Path | None) -> None:
    """Report on runs, or on a series of runs, as one HTML file and one Markdown file.

    RUN is a run folder, finished or cut short, or the folder of a derate, tune, matrix or profile. Several are
    compared.
    """
    from scheduler.report import files

    if trace is not None:
        if output is not None or open_it or len(runs) > 1:
            raise click.UsageError(
                "--trace writes one RUN and nothing else; leave out --output, --open and other runs"
            )

        click.echo(f"trace: {files.write_trace(runs[0], trace)}")
        return

    page, text = files.write_report(runs, output)
    click.echo(f"report: {page}\n        {text}")
    if open_it and click.launch(str(page)) != 0:
        click.echo("no browser could be started; open the file yourself", err=True)
