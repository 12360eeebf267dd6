"""The terminal. Printed texts come from foreign files and names: markup and control characters in them have no effect."""

from functools import cache
from typing import TYPE_CHECKING, Any

from lonas_edge.errors import escaped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


def loading() -> "Status":
    """A spinner on standard error, for the seconds that heavy imports take."""
    return console(stderr=True).status("Loading")


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
