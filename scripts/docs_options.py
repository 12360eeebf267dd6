"""A hook of mkdocs that generates parts of pages from the package.

`<!-- options: COMMAND -->` becomes the table of that command's options, `<!-- families -->` that of the model families.
"""

import html
import importlib
import re
from typing import Any

import click

from lonas_edge.cli.commands import app
from lonas_edge.families import FAMILIES
from lonas_edge.options import PANELS

_MARKER = re.compile(r"^<!-- options: (\w+) -->$", re.MULTILINE)
_FAMILIES = "<!-- families -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Insert the tables into a page; mkdocs calls it for each."""
    return _MARKER.sub(lambda found: _table(found[1]), markdown.replace(_FAMILIES, families_table()))


def families_table() -> str:
    """List the model families: names, `model_type`, and whether heads can be elastic."""
    rows = [
        f"| {title} | `{model_type}` | {'yes' if family.head_rule else 'no'} |"
        for family in FAMILIES
        for model_type, title in family.titles.items()
    ]
    rows = list(dict.fromkeys(rows))  # a model type with several tasks
    return "\n".join(["| models | `model_type` | elastic heads |", "|---|---|---|", *rows])


def _table(command: str) -> str:
    context = click.Context(app)
    params = importlib.import_module(f"lonas_edge.cli.{command}").run.params
    lines, panel = ["| option | |", "|---|---|"], PANELS[0]
    for param in params:
        declared = getattr(param, "option", None)
        if declared and declared.panel != panel and isinstance(param, click.Option):
            panel = declared.panel
            lines.append(f"| **{panel}** | |")
        if (record := param.get_help_record(context)) and isinstance(param, click.Option):
            lines.append(f"| `{record[0]}` | {_cell(record[1])} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    escaped = html.escape(" ".join(text.split()), quote=False)
    return escaped.replace("|", "\\|").replace("[", "\\[")  # two brackets in a row would be a link
