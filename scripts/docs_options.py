"""A hook of mkdocs: what a page has from the package itself.

`<!-- options: COMMAND -->` becomes the table of that command's options, as `--help` has them, `<!-- families -->` that of the
model families, from their registry.
"""

import html
import re
from typing import Any

import typer

from lonas_edge.cli import app
from lonas_edge.families import FAMILIES

_MARKER = re.compile(r"^<!-- options: (\w+) -->$", re.MULTILINE)
_FAMILIES = "<!-- families -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs for every page.

    Args:
        markdown: The page.

    Returns:
        The page with its tables.
    """
    return _MARKER.sub(lambda found: _table(found[1]), markdown.replace(_FAMILIES, families_table()))


def families_table() -> str:
    """The model families: what they are called, their `model_type`, and whether heads can be elastic."""
    rows = [
        f"| {title} | `{model_type}` | {'yes' if family.head_rule else 'no'} |"
        for family in FAMILIES
        for model_type, title in family.titles.items()
    ]
    return "\n".join(["| models | `model_type` | elastic heads |", "|---|---|---|", *rows])


def _table(command: str) -> str:
    group = typer.main.get_command(app)
    context = typer.Context(group)
    records = [parameter.get_help_record(context) for parameter in group.commands[command].params]
    options = [record for record in records if record and record[0].startswith("-")]
    return "\n".join(["| option | |", "|---|---|", *(f"| `{name}` | {_cell(meaning)} |" for name, meaning in options)])


def _cell(text: str) -> str:
    return html.escape(" ".join(text.split()), quote=False).replace("|", "\\|")
