"""The commands, and the options before a command. `lonas-edge --help` imports none of the commands."""

import gc
import importlib
from difflib import get_close_matches

import click
from typer.core import TyperGroup

from lonas_edge.cli.guard import DEBUG, now, quiet

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
GROUPS = {
    "Start here": {
        "compress": "Make a model or LoRA adapter smaller and faster, in one command.",
        "draft": "Train a draft model for faster answers.",
        "chat": "Chat with an exported model.",
        "eval": "Measure accuracy on your data, or on known tasks.",
    },
    "Steps of compress": {
        "space": "Write a search space for a model.",
        "train": "Train a super-adapter or LoRA, or recover a sub-network.",
        "search": "Search the best sub-networks at each cost.",
        "export": "Export a sub-network to OpenVINO or a checkpoint.",
        "bench": "Compare latencies.",
    },
    "More": {
        "inspect": "Show the sizes of a sub-network.",
        "trim": "Write a base model with a smaller vocabulary.",
    },
}
COMMANDS = {name: help for group in GROUPS.values() for name, help in group.items()}


class _Commands(TyperGroup):
    """Imports a command when it is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a placeholder with the command's help line."""
        return click.Command(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, group in GROUPS.items():
            with formatter.section(title):
                formatter.write_dl(list(group.items()))

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and (near := get_close_matches(args[0], COMMANDS, 1)):
            raise click.UsageError(f"No such command '{args[0]}'. Did you mean '{near[0]}'?", ctx)
        name, known, rest = super().resolve_command(ctx, args)
        return name, importlib.import_module(f"lonas_edge.cli.{name}").run if known else None, rest


@click.group(cls=_Commands, context_settings=HELP, no_args_is_help=True, rich_markup_mode=None)
@click.option("--debug", is_flag=True, envvar=DEBUG, help="Show tracebacks and library warnings.")
@click.version_option(package_name="lonas-edge", message="%(version)s", help="Print the version.")
@click.pass_context
def app(context: click.Context, debug: bool) -> None:
    """Make fine-tuned language models smaller and faster on Intel hardware, with OpenVINO."""
    now.command, now.debug = context.invoked_subcommand, debug
    gc.set_threshold(100_000, 20, 20)  # imports make many lasting objects, and each collection looks at all of them
    if not debug:
        quiet()
