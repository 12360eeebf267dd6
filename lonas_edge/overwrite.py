"""The paths that an output may take, and the outputs that --overwrite may replace."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import read_json

RECORDS = (
    "lonas_edge.json",
    "training.json",
    "bench.json",
    "eval.json",
    "search.json",
    "compress.json",
    "vocabulary.json",
)  # every output has one of them
_SIGNATURE = b'"lonas-edge/'  # of the schema in these
_SPACE = "bootstrapNAS"  # in every search space


def check_output_file(path: Path, overwrite: bool, inputs: Sequence[Path | str | None] = ()) -> None:
    """Refuse to write a search space where something else is, or one without `overwrite`."""
    refuse_location(path)
    refuse_existing(path, overwrite, inputs, directory=False)


def made_by_us(path: Path) -> bool:
    """Whether --overwrite may replace a path: an empty directory, an output of lonas-edge, or a search space."""
    if path.is_dir():
        return not any(path.iterdir()) or any(_is_record(path / name) for name in RECORDS)
    try:
        return path.is_file() and _SPACE in read_json(path)
    except LonasEdgeError:
        return False


def _is_record(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.name == RECORDS[0] or _SIGNATURE in file.read(100)


def refuse_location(path: Path) -> None:
    """Refuse a path that is no location for an output, whatever it holds."""
    reason = ""
    if path.is_symlink():
        reason = f"is a link to {path.readlink()}. Pass that path itself as --output."
    elif path.exists():
        with suppress(OSError, RuntimeError):  # a deleted working directory; a user without a home
            reason = "is your home directory, or contains it" if _contains(path, Path.home()) else reason
            reason = "is the working directory, or contains it" if _contains(path, Path.cwd()) else reason
        reason = "is a mount point" if not reason and os.path.ismount(path) else reason
        reason = reason and f"{reason}. Choose an --output inside it or next to it."
    if not reason and path.name in ("", ".."):
        reason = "has no name. Choose another --output."
    if reason:
        raise LonasEdgeError(f"{path}: {reason}")


def refuse_existing(path: Path, overwrite: bool, inputs: Sequence[Path | str | None], directory: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise LonasEdgeError(f"{path}: already exists. Choose another --output, or pass --overwrite.")
    if path.is_dir() != directory:
        actual, expected = ("a file", "a directory") if directory else ("a directory", "a file")
        raise LonasEdgeError(f"{path}: is {actual}; expected {expected}. Choose another --output, or move it away.")
    used = [str(each) for each in inputs if each and os.path.lexists(each) and _deletes(path, Path(each))]
    if used:
        raise LonasEdgeError(
            f"{path}: --overwrite would delete {', '.join(used)}, which this run reads. Choose another --output."
        )
    try:
        ours = made_by_us(path)
    except OSError as error:
        raise LonasEdgeError(f"{path}: cannot be read, so it is not replaced: {error}. Choose another --output.") from error
    if not ours:
        raise LonasEdgeError(
            f"{path}: --overwrite replaces only outputs of lonas-edge, and this {_contents(path)}. "
            "Choose another --output, or move it away."
        )


def _contents(path: Path) -> str:
    if not path.is_dir():
        return "is not a search space"
    names = sorted(f"{entry.name}{os.sep * entry.is_dir()}" for entry in path.iterdir())
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"holds {', '.join(names[:3])}{more}, but none of {', '.join(RECORDS)}"


def _deletes(output: Path, used: Path) -> bool:
    """Whether replacing an output would delete an input, or the target of a link in it (as in a hub cache)."""
    entries = used.iterdir() if used.is_dir() and os.access(used, os.R_OK) else ()
    return any(_contains(output, each) for each in (used, *(entry for entry in entries if entry.is_symlink())))


def _contains(folder: Path, other: Path) -> bool:
    """Whether a path is a directory itself or lies in it, by whatever name."""
    paths = {other.absolute(), other.resolve()}
    return any(_same(folder, each) for path in paths for each in (path, *path.parents))


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False
