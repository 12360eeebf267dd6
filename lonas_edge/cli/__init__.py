"""The command line: parse, call, print. One module a command; heavy imports happen inside the command.

Exit codes: 0 done, 1 failed, 2 wrong usage. Everything a person reads goes through rich; `--json` prints one JSON document
on standard output and nothing else there.
"""

import sys
from typing import Annotated

import typer

from lonas_edge import __version__
from lonas_edge.cli import bench, eval, export, inspect, search, space, train
from lonas_edge.errors import LonasEdgeError

_TYPER_INTERRUPTED = 130  # the exit code typer turns Ctrl-C into

app = typer.Typer(
    name="lonas-edge",
    help="LoNAS super-adapters on Intel edge hardware: pick a sub-network, slice, merge, compress, run with OpenVINO.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("inspect")(inspect.command)
app.command("space")(space.command)
app.command("export")(export.command)
app.command("bench")(bench.command)
app.command("eval")(eval.command)
app.command("train")(train.command)
app.command("search")(search.command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's error ends it with its message and exit code 1."""
    try:
        app()
    except LonasEdgeError as error:
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as ended:
        if isinstance(ended, SystemExit) and ended.code != _TYPER_INTERRUPTED:
            raise
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(1)
