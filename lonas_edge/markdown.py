"""Write Markdown: text as it is, and tables."""

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"^[#>+=-]|[\\`*|~]|(?<!\w)_|_(?!\w)|!(?=\[)|\](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])")


def in_markdown(text: str) -> str:
    """Return text as one line that Markdown shows as it is, in a table, too."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


def markdown_table(table: tuple[Sequence[str], Sequence[Sequence[str]]]) -> list[str]:
    """Return a table, headings and rows, as lines of Markdown: names left, figures right."""
    headings, rows = table
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return [_line(headings), _line(rule), *(_line([in_markdown(row[0]), *row[1:]]) for row in rows)]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
