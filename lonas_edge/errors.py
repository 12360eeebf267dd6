"""Errors a user can act on. Only the command line turns them into an exit code."""

from collections.abc import Sequence


class LonasEdgeError(Exception):
    """Something in the user's input or environment is wrong; the message says what, where, and what to do."""


def raise_all(headline: str, problems: Sequence[str], way_out: str = "") -> None:
    """Raise one error that lists every problem found, or return if there is none.

    Args:
        headline: What was being checked, with the file's name.
        problems: One line for each problem, naming the tensor, group or field, and expected and found.
        way_out: What the user can do about it.

    Raises:
        LonasEdgeError: If `problems` is not empty.
    """
    if not problems:
        return
    shown = list(problems[:20])
    if len(problems) > len(shown):
        shown.append(f"… and {len(problems) - len(shown)} more")
    lines = [headline, *(f"  - {problem}" for problem in shown)]
    if way_out:
        lines.append(way_out)
    raise LonasEdgeError("\n".join(lines))
