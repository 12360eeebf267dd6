"""Write the tables of options and of model families into the reference pages: `python scripts/docs_tables.py`.

The table of a command's options follows `<!-- options: COMMAND -->`, that of the families `<!-- families -->`, each up to
`<!-- end -->`. A test compares them with the package.
"""

import html
import importlib
import re
from pathlib import Path

import click

from lonas_edge.cli.commands import app
from lonas_edge.families import FAMILIES
from lonas_edge.options import PANELS

_MADE = re.compile(r"^<!-- (options: (\w+)|families) -->\n.*?^<!-- end -->$", re.MULTILINE | re.DOTALL)
DOCS = Path(__file__).parents[1] / "docs/reference"


def with_tables(page: str) -> str:
    """Return a page with its tables made again."""
    return _MADE.sub(
        lambda found: f"<!-- {found[1]} -->\n\n{_table(found[2]) if found[2] else families_table()}\n\n<!-- end -->", page
    )


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
            name = html.escape(record[0], quote=False).replace("|", "&#124;")  # a bar would end the cell
            lines.append(f"| <code>{name}</code> | {_cell(record[1])} |")
    return "\n".join(lines)


def _cell(text: str) -> str:
    escaped = html.escape(" ".join(text.split()), quote=False)
    return escaped.replace("|", "\\|").replace("[", "\\[")  # two brackets in a row would be a link


if __name__ == "__main__":
    for path in sorted(DOCS.glob("*.md")):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
