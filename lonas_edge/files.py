"""Files of the user's: JSON read with its faults told, content by hash, text replaced whole."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError


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
