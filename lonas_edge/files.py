"""Files: read with errors that name them, hashed, and replaced atomically."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError, one_line, out_of_memory, raise_all

READ_OF_A_MODEL = (".safetensors", ".bin", ".xml", ".json", ".model", ".txt", ".jinja")  # by us or by libraries
_TEMPLATES = "additional_chat_templates"  # the directory inside a model's that transformers reads
_MODULES = "[0-9]*_*/config.json"  # in directories that sentence-transformers reads


@contextmanager
def read_by(reader: str, path: Path) -> Iterator[None]:
    """Name a file and the library that cannot read it: such libraries raise dozens of types."""
    try:
        yield
    except LonasEdgeError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":  # Rust's, of tokenizers
            raise
        if out_of_memory(error):
            raise
        raise LonasEdgeError(f"{path}: {reader} cannot read it: {type(error).__name__}: {one_line(str(error))}") from error


def read_text(path: Path, what: str) -> str:
    """Read a text file (`what` in errors): UTF-8, with or without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")
    except (OSError, ValueError) as error:
        raise LonasEdgeError(f"{path}: {what} cannot be read: {_reason(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    content = decode_json(read_text(path, "the JSON file"), str(path))
    if not isinstance(content, dict):
        raise LonasEdgeError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def decode_json(text: str, where: str) -> Any:
    """Decode JSON (`where` in errors)."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LonasEdgeError(f"{where}: not readable as JSON: {error}") from error


def check_model_folder(folder: Path) -> None:
    """Refuse links out of the directory of a model, an adapter or an export: their targets would be read, and published.

    The links of a hub cache lead to the blobs of their own repository.
    """
    try:
        entries = [*folder.iterdir(), *(folder / _TEMPLATES).glob("*"), *folder.glob(_MODULES)]
    except OSError as error:
        raise LonasEdgeError(f"{folder}: cannot be read: {_reason(error)}") from error
    real = folder.resolve()
    snapshots = (parent for parent in real.parents if parent.name == "snapshots" and "--" in parent.parent.name)
    homes = [real, *(parent.parent / "blobs" for parent in snapshots)]
    links = [
        f"{path.relative_to(folder)}: a link out of the directory, to {path.resolve()}; replace it by the file"
        for path in sorted(entries)
        if path.suffix in READ_OF_A_MODEL or path.name == _TEMPLATES
        if not any(path.resolve().is_relative_to(home) for home in homes)
    ]
    raise_all(f"{folder}: files that cannot be used:", links)


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 (byte {error.start}: 0x{error.object[error.start]:02x})"
    return (isinstance(error, OSError) and error.strerror) or str(error)


def exists(path: Path) -> bool:
    """Whether a path exists; `Path.exists` raises for paths that the system cannot have."""
    try:
        path.stat()
    except (OSError, ValueError):
        return False
    return True


def sha256(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_sha256(content: Any, default: Callable[[Any], Any] | None = None) -> str:
    """SHA-256 of JSON content, whatever the order of its names; `default` turns other objects into JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=default).encode()).hexdigest()


def replace_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise LonasEdgeError(f"{path}: cannot be written: {error}") from error


def link(source: str, target: str) -> str:
    """Link a file, or copy it where links are impossible. Neither may be changed in place."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
