"""Which file of an arm is damaged, found out when it could not be loaded: each is read alone by what would have read it."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lonas_edge.bench.arms import Arm
from lonas_edge.errors import one_line
from lonas_edge.ir.core import openvino_core

_Reads = Callable[[Path], Any]


def reason(error: BaseException) -> str:
    """What an error says, in a line; OpenVINO says last what is wrong, after where in its sources it was raised."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    from_openvino = "openvino" in str(error).lower() or "Exception from" in str(error)
    return one_line(lines[-1 if from_openvino else 0]) if lines else ""


def in_ir(arm: Arm) -> str | None:
    """The first file of an IR's directory, or of its draft's, that cannot be read, and why; None where all can."""
    reads: Mapping[str, _Reads] = {"*.json": _read_json, "*.xml": openvino_core().read_model}
    return _first(arm.path, reads) or (_first(arm.draft, reads) if arm.draft else None)


def in_checkpoint(arm: Arm) -> str | None:
    """The first file of a base or its adapter that cannot be read, and why; None where all can."""
    reads = {"*.json": _read_json, "*.safetensors": _read_safetensors}
    return _first(arm.path, reads) or (_first(arm.adapter, reads) if arm.adapter else None)


def in_gguf(arm: Arm) -> str | None:
    """Why a GGUF file cannot be read; None where it can."""
    from gguf import GGUFReader

    return _first(arm.path.parent, {arm.path.name: GGUFReader})


def _first(folder: Path, reads: Mapping[str, _Reads]) -> str | None:
    return next(_faults(folder, reads), None)


def _faults(folder: Path, reads: Mapping[str, _Reads]) -> Iterator[str]:
    for pattern, read in reads.items():
        for path in sorted(folder.glob(pattern)):
            try:
                read(path)
            except Exception as error:  # of whichever library reads it
                yield f"{path}: damaged: {reason(error) or type(error).__name__}"


def _read_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))


def _read_safetensors(path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, "numpy") as content:
        content.keys()
