"""The one OpenVINO Core of the process."""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lonas_edge.errors import LonasEdgeError

if TYPE_CHECKING:
    import openvino as ov


@functools.cache
def openvino_core() -> "ov.Core":
    """Return the process's only `openvino.Core`, which also reads tokenizers.

    If one of two Cores is destroyed, the thread's alternate signal stack points to freed memory, and the next Ctrl-C ends the
    process with a segmentation fault (openvino 2026.4, `SigAltStackSetup` of the CPU plugin).
    """
    import openvino as ov
    import openvino_tokenizers  # noqa: F401  # registers their operations with later Cores

    return ov.Core()


@contextmanager
def compiling(folder: Path, device: str, properties: Mapping[str, str]) -> Iterator[None]:
    """Name the directory, device and properties with which OpenVINO refuses to compile, and the available devices."""
    try:
        yield
    except (RuntimeError, ValueError, OSError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        given = ", ".join(f"{name}={value}" for name, value in properties.items()) or "none"
        devices = ", ".join(openvino_core().available_devices)
        raise LonasEdgeError(
            f"{folder}: cannot run on {device} (properties: {given}; available devices: {devices}): "
            f"{lines[-1] if lines else repr(error)}"
        ) from error
