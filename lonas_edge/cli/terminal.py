"""The terminal: console and progress bar.

Printed texts come from foreign files and names: markup and control characters in them have no effect.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from lonas_edge.cli.guard import now
from lonas_edge.errors import escaped
from lonas_edge.progress import Progress

if TYPE_CHECKING:
    from rich.console import Console


def console(stderr: bool = False, soft_wrap: bool = False) -> "Console":
    """Return a rich console that prints texts as they are, control characters escaped; `soft_wrap` keeps long lines."""
    return _plain()(stderr=stderr, soft_wrap=soft_wrap, markup=False, highlight=False, emoji=False)


@cache
def _plain() -> "type[Console]":
    from rich.console import Console  # takes a while

    class Plain(Console):
        def render_str(self, text: str, **options: Any) -> Any:  # of what is printed, of a table's cells and titles
            return super().render_str(escaped(text), **options)

    return Plain


@contextmanager
def progress(left: bool = True, shown: bool = True) -> Iterator[Progress]:
    """Show a bar while the block runs; with `left`, the remaining time, too.

    Yields:
        A function of the step and its share. Lines before the last line break of the step stay on the terminal.
    """
    from rich import progress as bars

    columns: list[bars.ProgressColumn] = [bars.SpinnerColumn(), bars.TextColumn("{task.description}", markup=False)]
    columns += [bars.BarColumn(), bars.TaskProgressColumn(), bars.TimeElapsedColumn()]
    columns += [bars.TextColumn("left:"), bars.TimeRemainingColumn()] if left else []
    shown_on = console(stderr=True)
    seen = shown_on.is_terminal or shown_on.is_jupyter
    hidden = not (shown and seen)  # into a file it would leave an empty line
    with bars.Progress(*columns, console=shown_on, transient=True, refresh_per_second=2, disable=hidden) as bar:
        task = bar.add_task("Loading", total=None)
        now.doing = "Loading"

        def report(what: str, done: float | None) -> None:
            stays, broken, what = escaped(what).rpartition("\n")
            now.doing = what
            bar.update(task, description=what, total=None if done is None else 1, completed=done or 0)
            if broken:
                bar.console.print(stays, soft_wrap=True)

        yield report
