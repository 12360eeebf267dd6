"""The commands, and the options before a command."""

from typing import Annotated

import typer

from lonas_edge import __version__
from lonas_edge.cli import bench, eval, export, inspect, push, search, space, train
from lonas_edge.cli.guard import DEBUG, now, quiet
from lonas_edge.cli.options import CheckedCommand

app = typer.Typer(
    name="lonas-edge",
    help="LoNAS super-adapters on Intel edge hardware: pick a sub-network, slice, merge, compress, run with OpenVINO.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
for module in (inspect, space, train, search, export, bench, eval, push):
    app.command(module.__name__.rpartition(".")[2], cls=CheckedCommand)(module.command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
    debug: Annotated[
        bool, typer.Option("--debug", envvar=DEBUG, help="Show tracebacks, and the warnings of the libraries.")
    ] = False,
) -> None:
    now.command, now.debug = context.invoked_subcommand, debug
    if not debug:
        quiet()
