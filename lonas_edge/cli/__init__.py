"""The command line: parse, call, print. One module a command; heavy imports happen inside the command.

Exit codes: 0 done, 1 failed, 2 wrong usage. Everything a person reads goes through rich; `--json` prints one JSON document
on standard output and nothing else there. `guard` says how a command ends.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lonas_edge.cli.commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Run the command line; whatever ends it early is told in a line."""
    from lonas_edge.cli.guard import guarded

    guarded(_run)  # the commands are imported inside it: Ctrl-C may come meanwhile


def _run() -> Any:
    from lonas_edge.cli.commands import app

    return app(standalone_mode=False)


def __getattr__(name: str) -> Any:
    if name == "app":
        from lonas_edge.cli.commands import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
