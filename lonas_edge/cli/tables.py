"""Tables on the terminal."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

_LONG_NAME = 28  # longer names in the first column are folded


def print_table(
    console: "Console", title: str, headings: Sequence[str], cells: Sequence[Sequence[str]], turn: bool = False
) -> None:
    """Print a table, names left and figures right; nothing without rows. `turn` transposes it on a narrow terminal."""
    from rich import box
    from rich.table import Table

    if not cells:
        return
    widths = [max(len(line[index]) for line in (headings, *cells)) for index in range(len(headings))]
    if turn and sum(widths) + 2 * len(widths) > console.width:
        headings, *cells = [list(line) for line in zip(headings, *cells, strict=True)]
        headings[0] = ""
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    short = max(len(row[0]) for row in cells) <= _LONG_NAME
    for index, heading in enumerate(headings):
        shown.add_column(heading, justify="left" if index == 0 else "right", overflow="fold", no_wrap=index == 0 and short)
    for row in cells:
        shown.add_row(*row)
    console.print(shown)
