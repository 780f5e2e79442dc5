"""The command of MLPerf's HeteroMIG harness, run here: what scripts/launch_heterogeneous_mig.py calls."""

import click


class Verbatim(click.Command):
    """Takes its words as they are, options and ``--`` among them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.params["words"] = tuple(args)
        return []


@click.command(cls=Verbatim, options_metavar="", add_help_option=False)
@click.pass_context
def predecessor(context: click.Context, words: tuple[str, ...]) -> None:
    """Run a command line of MLPerf's HeteroMIG harness (launch_heterogeneous_mig.py), times in ms."""
    from scheduler.errors import SpecError
    from scheduler.predecessor import asks_for_help, help_text, in_its_words, translate

    if asks_for_help(words):
        click.echo(help_text(), nl=False)
        return

    translation = translate(words)
    click.echo(f"here: {translation.command}", err=True)
    for note in translation.notes:
        click.echo(f"note: {note}", err=True)

    click.echo(err=True)
    program = context.find_root().command
    try:
        code = program.main(list(translation.arguments), prog_name="hetero-mig", standalone_mode=False)
    except SpecError as error:
        raise SpecError(asked=in_its_words(error.asked), found=error.found, do=error.do) from None

    context.exit(code or 0)
