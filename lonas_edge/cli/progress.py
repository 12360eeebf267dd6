"""The progress bar on standard error: the step, its share, the time elapsed and left. It disappears at the end."""

from collections.abc import Iterator
from contextlib import contextmanager

from lonas_edge.cli.guard import now
from lonas_edge.cli.terminal import console
from lonas_edge.errors import escaped
from lonas_edge.progress import Progress


@contextmanager
def progress(left: bool = True, shown: bool = True) -> Iterator[Progress]:
    """Show a bar while the block runs; with `left`, the remaining time, too.

    Yields:
        A function of the step and its share. Lines before the last line break of the step stay on the terminal.
    """
    from rich.progress import (
        BarColumn,
        ProgressColumn,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns: list[ProgressColumn] = [SpinnerColumn(), TextColumn("{task.description}", markup=False), BarColumn()]
    columns += [TaskProgressColumn(), TimeElapsedColumn()]
    columns += [TextColumn("left:"), TimeRemainingColumn()] if left else []
    shown_on = console(stderr=True)
    hidden = not shown or not shown_on.is_terminal  # into a file it would leave an empty line
    with Bar(*columns, console=shown_on, transient=True, refresh_per_second=2, disable=hidden) as bar:
        task = bar.add_task("Loading", total=None)
        now.doing = "Loading"

        def report(what: str, done: float | None) -> None:
            stays, broken, what = escaped(what).rpartition("\n")
            now.doing = what
            bar.update(task, description=what, total=None if done is None else 1, completed=done or 0)
            if broken:
                bar.console.print(stays, soft_wrap=True)

        yield report
