"""The one OpenVINO Core of the process."""

import functools
from typing import TYPE_CHECKING

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
