"""Find the damaged file of a variant that could not be loaded."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lonas_edge.bench.variants import Variant
from lonas_edge.errors import one_line
from lonas_edge.ir.core import openvino_core


def reason(error: BaseException) -> str:
    """Return the line of an error message that names the cause: OpenVINO's last line, the first line of others."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    from_openvino = "openvino" in str(error).lower() or "Exception from" in str(error)
    return one_line(lines[-1 if from_openvino else 0]) if lines else ""


def find_damaged_file(variant: Variant) -> str | None:
    """Return the first file of a variant that cannot be read, and why; None if all can be read."""
    files = sorted(variant.path.glob("*"))
    if variant.adapter:
        files += sorted(variant.adapter.glob("*"))
    for file in files:
        read = _READERS.get(file.suffix)
        try:
            if read:
                read(file)
        except Exception as error:  # of any of the libraries
            return f"{file}: damaged: {reason(error) or type(error).__name__}"
    return None


def _read_safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "numpy") as content:
        content.keys()


_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".json": lambda path: json.loads(path.read_text(encoding="utf-8")),
    ".xml": lambda path: openvino_core().read_model(path),
    ".safetensors": _read_safetensors,
}
