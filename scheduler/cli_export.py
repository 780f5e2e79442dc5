"""``hetero-mig export``: runs as the folder tree of an MLPerf submission."""

import json
import re
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument(
    "folders", nargs=-1, type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="RUN…"
)
@click.option(
    "--mlperf", "round_", type=click.Choice(["v2.0", "v4.1", "v6.1"]), required=True, help="The round."
)
@click.option("--submitter", required=True, metavar="ORG", help="Who submits: a folder's name.")
@click.option(
    "--system", metavar="NAME", help="The system's name, a folder's too (default: the host's name)."
)
@click.option(
    "--system-type",
    type=click.Choice(["datacenter", "edge"]),
    help="Decides which scenarios must be there (default: datacenter, where the round has the benchmark there).",
)
@click.option(
    "--system-json",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Fields of the system's description that cannot be read of the machine (storage, cooling, …).",
)
@click.option("--division", type=click.Choice(["closed", "open"]), default="closed", show_default=True)
@click.option(
    "--rehearsal",
    is_flag=True,
    help="Take small models and random weights too, and mark the tree as not for submission.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The tree (default submission-ROUND-ORG).",
)
def export(folders: tuple[Path, ...], round_: str, **options: Any) -> None:
    """Write runs and audits as the tree that an MLPerf round's submission checker wants.

    \b
    hetero-mig export --mlperf v6.1 --submitter ORG results/…-resnet50-offline results/…-audit-test01-…

    RUN…: folders of performance runs, of accuracy runs (--main-mode accuracy) and of audits, all of which are held
    against the one performance run submitted (`hetero-mig audit … --performance-run FOLDER`). What is not submittable
    is refused, with every reason.
    """
    from scheduler import submission
    from scheduler.host import Host

    if not folders:
        raise click.UsageError("name the folders of the runs and audits to submit")

    asked = submission.Asked(
        round=_any(round_),
        folders=folders,
        submitter=_folder_name("--submitter", options["submitter"]),
        system=_folder_name("--system", options["system"] or Host().describe()["hostname"]),
        system_type=options["system_type"],
        division=options["division"],
        system_fields=_fields(options["system_json"]),
        rehearsal=options["rehearsal"],
        output=options["output"] or Path(f"submission-{round_}-{options['submitter']}"),
    )
    notes = submission.export(asked)
    click.echo(f"wrote {asked.output}: it passes the rules of round {round_} as this program states them")
    if asked.rehearsal:
        click.echo("a rehearsal, marked as not for submission:")
        for note in notes:
            click.echo(f"  - {note}")


def _any(word: str) -> Any:
    return word


def _folder_name(option: str, name: str) -> str:
    # MLPerf's scripts hand paths to a shell, unquoted.
    if not re.fullmatch(r"\w[\w.+@=,-]*", name):
        raise click.UsageError(
            f"{option} {name!r}: it names a folder, for MLPerf's scripts; take letters, digits and _ . + @ = , -"
        )

    return name


def _fields(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}

    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise click.UsageError(f"--system-json {path}: {error}") from None

    if not isinstance(told, dict):
        raise click.UsageError(f"--system-json {path}: a JSON object is wanted")

    return told
