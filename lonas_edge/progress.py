"""How long work reports its progress."""

from collections.abc import Callable

Progress = Callable[[str, float | None], None]  # what is being done, and the share that is done, where known


def silent(_what: str, _done: float | None) -> None:
    """Report nothing."""
