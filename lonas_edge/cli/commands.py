"""The commands, and the options before a command."""

import importlib
from typing import Annotated

import click
import typer
from typer.core import TyperCommand, TyperGroup

from lonas_edge import __version__
from lonas_edge.cli.command import HELP
from lonas_edge.cli.guard import DEBUG, now, quiet

COMMANDS = {  # shown by `lonas-edge --help`, which imports none of them
    "compress": "Make a model or LoRA adapter smaller and faster, in one command.",
    "inspect": "Show the sizes of a sub-network.",
    "space": "Write a search space for a model.",
    "trim": "Write a base model with a smaller vocabulary.",
    "train": "Train a super-adapter, or recover a sub-network.",
    "search": "Search the best sub-networks at each cost.",
    "export": "Export a sub-network to OpenVINO or a checkpoint.",
    "bench": "Compare latencies.",
    "eval": "Measure accuracy on tasks.",
    "chat": "Chat with an exported model.",
}


class _Commands(TyperGroup):
    """Imports a command when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a placeholder with the command's help line."""
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        name, known, rest = super().resolve_command(ctx, args)
        return name, importlib.import_module(f"lonas_edge.cli.{name}").run if known else None, rest


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


_typer = typer.Typer(
    name="lonas-edge",
    cls=_Commands,
    context_settings=HELP,
    help="Make fine-tuned language models smaller and faster on Intel hardware, with OpenVINO.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)


@_typer.callback()
def _before(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", envvar=DEBUG, help="Show tracebacks and library warnings.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    now.command, now.debug = context.invoked_subcommand, debug
    if not debug:
        quiet()


app = typer.main.get_command(_typer)
