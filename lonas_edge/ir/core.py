"""OpenVINO's entry point: one for the whole process."""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino as ov


@functools.cache
def openvino_core() -> "ov.Core":
    """Return the process's only `openvino.Core`, which also reads tokenizers.

    With two, of which the first is destroyed first, the thread keeps an alternate signal stack whose memory is freed, and the
    next signal, such as Ctrl-C, ends the process with a segmentation fault (openvino 2026.4, `SigAltStackSetup` of the CPU
    plugin restores the stack that it found).
    """
    import openvino as ov
    import openvino_tokenizers  # noqa: F401  # registers their operations with later Cores

    return ov.Core()
