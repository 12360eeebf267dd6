"""Which weight formats a device takes: asked of the device itself, with a small product."""

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import FORMATS, WeightFormat
from lonas_edge.ir.compress import Scheme, compressed
from lonas_edge.ir.core import openvino_core

_ROWS, _COLUMNS = 64, 128  # 128 columns are whole groups of every size


def taken(device: str) -> list[str]:
    """The weight formats that a device compiles and computes with.

    Args:
        device: An OpenVINO device.

    Returns:
        Their names.
    """
    return [name for name, weight_format in FORMATS.items() if _takes(device, weight_format)]


def refusal(device: str, name: str, error: Exception) -> LonasEdgeError:
    """What to say where a device does not compile an IR.

    Args:
        device: The device.
        name: The IR's weight format.
        error: What OpenVINO said.

    Returns:
        The error, which names the formats that the device takes.
    """
    said, works = str(error).strip().splitlines(), taken(device)
    return LonasEdgeError(
        f"{device} does not run an IR in {name}: {said[-1] if said else type(error).__name__}\n"
        f"It takes: {', '.join(works) or 'no format'}. Choose another --weight-format."
    )


def _takes(device: str, weight_format: WeightFormat) -> bool:
    matrix = np.linspace(-1, 1, _ROWS * _COLUMNS, dtype=np.float32).reshape(_ROWS, _COLUMNS)
    scheme = Scheme(weight_format, weight_format.group_size([_COLUMNS]))
    values = ops.parameter([1, _COLUMNS], np.float32)
    model = ov.Model([ops.matmul(values, compressed(matrix, scheme).node("w"), False, True)], [values])
    try:
        openvino_core().compile_model(model, device).create_infer_request().infer([np.ones((1, _COLUMNS), np.float32)])
    except RuntimeError:
        return False
    return True
