"""OpenVINO's entry point: one for the whole process."""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import openvino as ov


@functools.cache
def openvino_core() -> "ov.Core":
    """The process's `openvino.Core`, which reads tokenizers, too.

    With two, of which the first made ends first, the thread keeps an alternate signal stack whose memory is gone, and the next
    signal, such as Ctrl-C, ends the process with a segmentation fault (openvino 2026.4: the CPU plugin's `SigAltStackSetup`
    puts back what it found when it was made).

    Returns:
        The same at each call.
    """
    import openvino as ov
    import openvino_tokenizers  # noqa: F401  # a Core that is made later knows their operations

    return ov.Core()
