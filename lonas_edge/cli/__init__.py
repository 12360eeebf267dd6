"""The command line: parse, call, print. One module per command; heavy imports happen inside the command.

Exit codes: 0 done, 1 failed, 2 wrong usage. Human-readable output goes through rich; `--json` prints one JSON document on
standard output and nothing else. `guard` reports errors.
"""

import os
import sys

_NAME, _COMPLETE = "lonas-edge", "_LONAS_EDGE_COMPLETE"  # click sets the variable in a shell that completes


def main() -> None:
    """Run the command line and exit."""
    from lonas_edge.cli.guard import guarded

    guarded(_run)  # the commands are imported inside it: Ctrl-C may come meanwhile


def _run() -> int:
    import click
    from click.shell_completion import shell_complete

    from lonas_edge.cli.commands import app

    if instruction := os.environ.get(_COMPLETE):
        return shell_complete(app, {}, _NAME, _COMPLETE, instruction)
    try:
        with app.make_context(_NAME, sys.argv[1:]) as context:
            app.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return 0
