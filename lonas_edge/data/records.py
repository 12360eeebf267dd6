"""Records of data files: a JSON list, JSON Lines or Parquet, each with its place in the file for errors."""

import json
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_text

_HINT = "Expected one JSON object a line, a JSON list of them, or Parquet."


def read_records(path: Path) -> list[tuple[str, Any]]:
    """Read the records of a file; there is at least one."""
    records = _parquet(path) if path.suffix == ".parquet" and path.is_file() else _json(path)
    if not records:
        raise LonasEdgeError(f"{path}: holds no examples")
    return records


def describe(record: Any) -> str:
    """Describe a record of another kind, for errors."""
    return f"the fields {', '.join(map(str, record)) or 'none'}" if isinstance(record, dict) else type(record).__name__


def _json(path: Path) -> list[tuple[str, Any]]:
    text = read_text(path, "the data")
    if text.lstrip().startswith("["):
        try:
            return [(f"record {number}", record) for number, record in enumerate(json.loads(text), 1)]
        except ValueError as error:
            raise LonasEdgeError(f"{path}: not a JSON list: {error}. Is the file cut off?") from error
    records, problems = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                records.append((f"line {number}", json.loads(line)))
            except ValueError as error:
                problems.append(f"line {number}: not JSON: {error}")
    raise_all(f"{path}: cannot be read:", problems, _HINT)
    return records


def _parquet(path: Path) -> list[tuple[str, Any]]:
    """Read the rows of a Parquet file, as the `datasets` library writes it; pyarrow is imported only for one."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise LonasEdgeError(f"{path}: Parquet needs pyarrow: pip install 'lonas-edge[parquet]'") from error
    try:
        rows = read_table(path).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise LonasEdgeError(f"{path}: the data cannot be read: not a whole Parquet file: {reason}") from error
    return [(f"row {index}", row) for index, row in enumerate(rows)]
