"""The commands, and the options before a command."""

import importlib
from typing import Any

import click

from lonas_edge import __version__
from lonas_edge.cli.command import HELP
from lonas_edge.cli.guard import DEBUG, now, quiet

COMMANDS = ("inspect", "space", "train", "search", "export", "bench", "eval", "push")


class _Commands(click.Group):
    """Imports a command when it is needed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        return _converted(importlib.import_module(f"lonas_edge.cli.{cmd_name}"))


def _converted(module: Any) -> click.Command:
    if isinstance(run := getattr(module, "run", None), click.Command):
        return run
    import typer

    from lonas_edge.cli.options import CheckedCommand

    single = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=HELP)
    single.command(cls=CheckedCommand)(module.command)
    return typer.main.get_command(single)


@click.group(
    "lonas-edge",
    cls=_Commands,
    context_settings=HELP,
    help="Train LoNAS super-adapters, search their sub-networks, and run them with OpenVINO on Intel edge hardware.",
)
@click.version_option(__version__, message="%(version)s", help="Print the version.")
@click.option("--debug", is_flag=True, envvar=DEBUG, help="Show tracebacks and the warnings of libraries.")
@click.pass_context
def app(context: click.Context, debug: bool) -> None:
    now.command, now.debug = context.invoked_subcommand, debug
    if not debug:
        quiet()
