"""Files: checked before they are read, JSON with clear errors, hashes, atomic text."""

import codecs
import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

from lonas_edge.errors import LonasEdgeError, one_line, out_of_memory, raise_all

TEXT_LIMIT = 64 * 2**20  # bytes; the configuration and the search space of a 7B model have 0.2 MB
DEPTH_LIMIT = 200  # of lists and objects in each other; Python's own reader ends in a RecursionError at about 1,000

_READ_OF_A_MODEL = {  # the files that we or libraries read in a model's directory, and their maximum size in bytes
    "*.safetensors": math.inf,
    "*.bin": math.inf,
    "*.xml": math.inf,
    "tokenizer.json": 2**28,
    "*.json": TEXT_LIMIT,
    "*.model": TEXT_LIMIT,
    "*.txt": TEXT_LIMIT,
    "*.jinja": 2**20,
}
_NO_MARK = ("config.json", "adapter_config.json", "tokenizer.json", "tokenizer_config.json")
_TEMPLATES = "additional_chat_templates"  # the directory inside a model's that transformers reads
_MODULES = "[0-9]*_*/config.json"  # in directories that sentence-transformers reads
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def regular(path: Path, what: str = "the file") -> Path:
    """Refuse anything but a regular file (`what` in errors) before it is opened: reading a FIFO or a device may never end."""
    try:
        _check(path, math.inf)
    except (OSError, ValueError) as error:
        raise LonasEdgeError(f"{path}: {what} cannot be read: {_reason(error)}") from error
    return path


def read_text(path: Path, what: str, limit: float = TEXT_LIMIT) -> str:
    """Read a text file (`what` in errors) of `limit` bytes at most: UTF-8, with or without a byte order mark."""
    try:
        return _text(path, limit)
    except (OSError, ValueError) as error:
        raise LonasEdgeError(f"{path}: {what} cannot be read: {_reason(error)}") from error


def read_json(path: Path, limit: float = TEXT_LIMIT) -> dict[str, Any]:
    """Read a JSON object from a file of `limit` bytes at most."""
    try:
        text = _text(path, limit)
    except (OSError, ValueError) as error:
        raise LonasEdgeError(f"{path}: not readable as JSON: {_reason(error)}") from error
    content = decode_json(text, str(path))
    if not isinstance(content, dict):
        raise LonasEdgeError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def decode_json(text: str, where: str) -> Any:
    """Decode JSON (`where` in errors), and refuse anything that JSON readers disagree on or cannot handle."""
    try:
        content = json.loads(text, object_pairs_hook=_object, parse_constant=_no_number, parse_float=_finite)
        check_decoded(content, where)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        around = error.object[max(0, error.start - 40) : error.end]
        raise LonasEdgeError(f"{where}: not readable as JSON: half of a surrogate pair after {around!a}") from error
    except RecursionError:
        raise LonasEdgeError(f"{where}: not readable as JSON: {_TOO_DEEP}") from None
    except ValueError as error:
        raise LonasEdgeError(f"{where}: not readable as JSON: {error}") from error
    return content


def check_decoded(content: Any, where: str) -> None:
    """Refuse decoded JSON that is nested deeper than `DEPTH_LIMIT`."""
    level = [content]
    for _ in range(DEPTH_LIMIT + 1):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return
    raise LonasEdgeError(f"{where}: not readable as JSON: {_TOO_DEEP}")


_TOO_DEEP = f"lists and objects are nested more than {DEPTH_LIMIT} deep"


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):  # readers disagree on which value counts
        twice = next((name for name, value in pairs if value != content[name]), None)
        if twice is not None:
            raise ValueError(f"{twice!r} occurs twice with different values")
    return content


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON; expected a finite number")


def _finite(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _no_number(digits)


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


def check_model_folder(folder: Path) -> None:
    """Check the files of a model, an adapter or an export before any of them is opened, by us or by a library.

    A link must not lead out of the directory: its target would be read, and published with an export. The links of a hub cache
    lead to the blobs of their own repository.
    """
    try:
        entries = [*folder.iterdir(), *((folder / _TEMPLATES).iterdir() if (folder / _TEMPLATES).is_dir() else ())]
        entries += folder.glob(_MODULES)
    except OSError as error:
        raise LonasEdgeError(f"{folder}: cannot be read: {_reason(error)}") from error
    homes, problems = _homes(folder), []
    for path in sorted(entries):
        limit = next((limit for pattern, limit in _READ_OF_A_MODEL.items() if fnmatch(path.name, pattern)), None)
        if path.name == _TEMPLATES:
            limit = math.inf if path.is_symlink() else None
        if limit is None:
            continue
        try:
            if not any(path.resolve().is_relative_to(home) for home in homes):
                raise ValueError(f"a link out of the directory, to {path.resolve()}; replace it by the file")
            _check(path, limit)
            if path.name in _NO_MARK and _marked(path):
                raise ValueError("starts with a byte order mark, which transformers and PEFT do not read; save it without")
        except (OSError, ValueError, RuntimeError) as error:
            problems.append(f"{path.relative_to(folder)}: {_reason(error)}")
    raise_all(f"{folder}: files that cannot be used:", problems)


def _homes(folder: Path) -> list[Path]:
    """Where the files of a directory may lie: in it, or, in a snapshot of a hub cache, among the repository's blobs."""
    real = folder.resolve()
    snapshots = (parent for parent in real.parents if parent.name == "snapshots" and "--" in parent.parent.name)
    return [real, *(parent.parent / "blobs" for parent in snapshots)]


def _text(path: Path, limit: float) -> str:
    _check(path, limit)
    return path.read_bytes().decode("utf-8-sig").replace("\r\n", "\n")


def _marked(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(3) == codecs.BOM_UTF8


def _check(path: Path, limit: float) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
        raise ValueError(f"{kind}; expected a file")
    if status.st_size > limit:
        raise ValueError(f"{status.st_size:,} bytes; expected {limit:,.0f} at most")


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
