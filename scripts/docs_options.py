"""A hook of mkdocs: `<!-- options: COMMAND -->` in a page becomes the table of that command's options, as `--help` has them."""

import html
import re
from typing import Any

import typer

from lonas_edge.cli import app

_MARKER = re.compile(r"^<!-- options: (\w+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page.

    Args:
        markdown: The page.

    Returns:
        The page with its tables.
    """
    return _MARKER.sub(lambda found: _table(found[1]), markdown)


def _table(command: str) -> str:
    group = typer.main.get_command(app)
    context = typer.Context(group)
    records = [parameter.get_help_record(context) for parameter in group.commands[command].params]
    options = [record for record in records if record and record[0].startswith("-")]
    return "\n".join(["| option | |", "|---|---|", *(f"| `{name}` | {_cell(meaning)} |" for name, meaning in options)])


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
