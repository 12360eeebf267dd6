"""The commands, and the options before a command."""

import importlib

import click

from lonas_edge import __version__
from lonas_edge.cli.command import HELP
from lonas_edge.cli.guard import DEBUG, now, quiet

COMMANDS = {  # shown by `lonas-edge --help`, which imports none of them
    "inspect": "Show the sizes of a sub-network.",
    "space": "Write a search space for a model.",
    "train": "Train a super-adapter, or recover a sub-network.",
    "search": "Search the best sub-networks at each cost.",
    "export": "Export a sub-network to OpenVINO, a checkpoint or GGUF.",
    "bench": "Compare latencies, or tune runtime properties.",
    "eval": "Measure accuracy on tasks.",
    "push": "Publish an exported directory on the hub.",
}


class _Commands(click.Group):
    """Imports a command when it is needed."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        run: click.Command = importlib.import_module(f"lonas_edge.cli.{cmd_name}").run
        return run


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
