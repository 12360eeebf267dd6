"""Files of the user's: JSON read with its faults told, content by hash, text replaced whole."""

import codecs
import hashlib
import json
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError


def regular(path: Path, what: str = "the file") -> Path:
    """Refuse what is not a file: a directory, a pipe, a device. Reading one of these may never end.

    Args:
        path: What to look at; a link is followed.
        what: What it holds, for an error.

    Returns:
        The same path.

    Raises:
        LonasEdgeError: If it is something else, or not there.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise LonasEdgeError(f"{path}: {what} cannot be read: {error}") from error
    if not stat.S_ISREG(mode):
        found = "a directory" if stat.S_ISDIR(mode) else "a pipe, a device or a socket"
        raise LonasEdgeError(f"{path}: {what} cannot be read: expected a file, found {found}")
    return path


def read_text(path: Path, what: str, limit: int = 2**31) -> str:
    """Read a text file, a byte order mark left out.

    Args:
        path: The file.
        what: What it holds, for an error.
        limit: Bytes that it may have.

    Returns:
        Its text.

    Raises:
        LonasEdgeError: If it is missing, not a file, larger than the limit, or not UTF-8.
    """
    try:
        with regular(path, what).open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise LonasEdgeError(f"{path}: {what} cannot be read: {error}") from error
    if len(content) > limit:
        raise LonasEdgeError(f"{path}: {what} cannot be read: larger than {limit:,} bytes")
    if content[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        raise LonasEdgeError(f"{path}: {what} cannot be read: it is UTF-16. Save it as UTF-8.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise LonasEdgeError(f"{path}: {what} cannot be read: line {line} is not UTF-8: {error}. Save it as UTF-8.") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        LonasEdgeError: If it cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LonasEdgeError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise LonasEdgeError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Replace a file whole or not at all.

    Args:
        path: The file.
        text: Its new content.

    Raises:
        LonasEdgeError: If it cannot be written; what was there is as it was.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise LonasEdgeError(f"{path}: cannot be written: {error}") from error
