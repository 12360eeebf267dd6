"""Errors that a user can act on, and text of other programs in messages."""

import re
from collections.abc import Iterator, Sequence

_LONGEST = 500  # characters of a line with text of other programs
_LINE, _HERE, _LINES = re.compile(r"\bline (\d+)\b"), "\0", 3  # of a file; in its place; that are shown
_NO_MEMORY = re.compile(
    r"bad.?alloc|out of memory|not enough memory|(can't|cannot|could not|unable to|failed to|failed) alloc|"
    r"memory allocation of|failed to map segment|can't start new thread|resource temporarily unavailable",
    re.IGNORECASE,
)


class LonasEdgeError(Exception):
    """Something in the user's input or environment is wrong; the message says what, where, and what to do."""


class UsageError(LonasEdgeError):
    """Options are wrong or do not fit together; the command line ends with exit code 2."""


class LonasEdgeWarning(UserWarning):
    """Something in the user's input looks wrong but can be used; the command line prints the message."""


def raise_all(headline: str, problems: Sequence[str], hint: str = "", error: type[LonasEdgeError] = LonasEdgeError) -> None:
    """Raise one error that lists all problems, one line each, with a hint on what to do; return if there is none."""
    if not problems:
        return
    merged = _merge_lines(problems)
    shown = merged[:20]
    if len(merged) > len(shown):
        shown.append(f"… and {len(merged) - len(shown)} more")
    longest = 2 * _LONGEST  # a problem may quote a value of the file
    lines = [headline, *(f"  - {problem[:longest]}{' …' * (len(problem) > longest)}" for problem in shown)]
    if hint:
        lines.append(hint)
    raise error("\n".join(lines))


def _merge_lines(problems: Sequence[str]) -> list[str]:
    """Show problems that differ only in the line of a file as one, with the first of these lines."""
    lines: dict[str, list[str]] = {}
    for problem in problems:
        found = _LINE.search(problem)
        lines.setdefault(_LINE.sub(_HERE, problem, count=1), []).extend(found.groups() if found else ())
    return [problem.replace(_HERE, _places(numbers)) for problem, numbers in lines.items()]


def _places(numbers: Sequence[str]) -> str:
    if len(numbers) < 2:
        return f"line {''.join(numbers)}"
    first, rest = numbers[:_LINES], len(numbers) - _LINES
    return f"lines {', '.join(first)} and {rest} more" if rest > 0 else f"lines {', '.join(first[:-1])} and {first[-1]}"


def chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__  # type: ignore[assignment]


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out. Python has a class for it; PyTorch, OpenVINO and the loader of libraries only have messages."""
    return any(isinstance(each, MemoryError) or bool(_NO_MEMORY.search(str(each))) for each in chain(error))


def escaped(text: str) -> str:
    """Make text of other programs safe for a terminal: control characters are shown instead of sent; line breaks stay."""
    return "".join(c if c in "\n\t" or not _is_control(c) else ascii(c)[1:-1] for c in text)


def _is_control(character: str) -> bool:
    return ord(character) < 32 or 127 <= ord(character) < 160


def one_line(text: str) -> str:
    """Text of other programs as one line of limited length, safe for a terminal."""
    line = " ".join(escaped(text).split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} …"
