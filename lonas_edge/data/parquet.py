"""Parquet files, as the `datasets` library writes them. pyarrow is imported only for one."""

from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError

_MAGIC = b"PAR1"  # at both ends of such a file


def is_parquet(path: Path) -> bool:
    """Check whether a file is a Parquet file, by name or content."""
    try:
        if not path.is_file():  # reading a pipe would never end
            return False
        with path.open("rb") as file:
            return path.suffix == ".parquet" or file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


def read_parquet(path: Path, limit: int) -> list[dict[str, Any]]:
    """Read the rows of a Parquet file."""
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise LonasEdgeError(f"{path}: Parquet needs pyarrow: pip install 'lonas-edge[parquet]'") from error
    if path.stat().st_size > limit:
        raise LonasEdgeError(f"{path}: the data cannot be read: larger than {limit:,} bytes; split it, and give each part")
    try:
        rows: list[dict[str, Any]] = read_table(path).to_pylist()
    except (ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise LonasEdgeError(f"{path}: the data cannot be read: not a whole Parquet file: {reason}") from error
    return rows
