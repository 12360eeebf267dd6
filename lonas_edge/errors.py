"""Errors a user can act on, and how any error is told. Only the command line turns them into an exit code."""

import re
from collections.abc import Iterator, Sequence

_LONGEST = 500  # characters of a line that tells somebody else's error
_NO_MEMORY = re.compile(
    r"bad.?alloc|out of memory|not enough memory|(can't|cannot|could not|unable to|failed to|failed) alloc|"
    r"memory allocation of|failed to map segment|can't start new thread|resource temporarily unavailable",
    re.IGNORECASE,
)


class LonasEdgeError(Exception):
    """Something in the user's input or environment is wrong; the message says what, where, and what to do."""


class LonasEdgeWarning(UserWarning):
    """Something in the user's input looks wrong but can be used; the command line prints the message."""


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
    longest = 2 * _LONGEST  # a file's own value may stand in it
    lines = [headline, *(f"  - {problem[:longest]}{' …' * (len(problem) > longest)}" for problem in shown)]
    if way_out:
        lines.append(way_out)
    raise LonasEdgeError("\n".join(lines))


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error, and those that it came from."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python says so by a class, PyTorch, OpenVINO and the loader of libraries by their words."""
    return any(isinstance(one, MemoryError) or bool(_NO_MEMORY.search(str(one))) for one in chain(error))


def escaped(text: str) -> str:
    """A text of somebody else's for a terminal: control characters, which could change it, are shown instead; lines stay."""
    return "".join(c if c in "\n\t" or not _is_control(c) else ascii(c)[1:-1] for c in text)


def _is_control(character: str) -> bool:
    return ord(character) < 32 or 127 <= ord(character) < 160


def one_line(text: str) -> str:
    """A text of somebody else's in one line of bearable length, control characters shown."""
    line = " ".join(escaped(text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
