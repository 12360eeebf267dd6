"""Tables for the terminal, for Markdown and as CSV; text that Markdown shows as it is; sizes and durations in words."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

MISSING = "–"
_SPECIAL = re.compile(r"^[#>+=-]|[\\`*|~]|(?<!\w)_|_(?!\w)|!(?=\[)|\](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=[#A-Za-z])")
_LONG_NAME = 28  # longer names in the first column are folded on the terminal


def in_markdown(text: str) -> str:
    """Return text as one line that Markdown shows as it is, in a table, too."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split()))


@dataclass(frozen=True)
class Table:
    """Headings and rows; the first column has names, the others have figures. None is an empty cell."""

    headings: Sequence[str]
    rows: Sequence[Sequence[object]]
    title: str = ""

    def to_markdown(self) -> list[str]:
        """Return lines of Markdown: names left, figures right."""
        rule = ["---", *["---:"] * (len(self.headings) - 1)]
        return [_line(self.headings), _line(rule), *(_line([in_markdown(row[0]), *row[1:]]) for row in self._texts())]

    def to_csv(self) -> str:
        """Return CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows(self.rows)
        return text.getvalue()

    def print(self, console: "Console", turn: bool = False) -> None:
        """Print names left and figures right; nothing without rows. `turn` transposes the table on a narrow terminal."""
        from rich import box
        from rich.table import Table as RichTable

        if not self.rows:
            return
        headings, rows = list(self.headings), self._texts()
        widths = [max(len(line[index]) for line in (headings, *rows)) for index in range(len(headings))]
        if turn and sum(widths) + 2 * len(widths) > console.width:
            headings, *rows = [list(line) for line in zip(headings, *rows, strict=True)]
            headings[0] = ""
        shown = RichTable(title=self.title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        short = max(len(row[0]) for row in rows) <= _LONG_NAME
        for index, heading in enumerate(headings):
            justify, no_wrap = ("left", short) if index == 0 else ("right", False)
            shown.add_column(heading, justify=justify, overflow="fold", no_wrap=no_wrap)  # type: ignore[arg-type]
        for row in rows:
            shown.add_row(*row)
        console.print(shown)

    def _texts(self) -> list[list[str]]:
        return [["" if cell is None else str(cell) for cell in row] for row in self.rows]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def megabytes(size: int) -> str:
    """Format a size in MB, without the unit."""
    return f"{size / 1e6:,.0f}" if size >= 100e6 else f"{size / 1e6:.1f}"


def duration(seconds: float | None) -> str:
    """Format a duration."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
