"""Weight formats that a device supports, tried on the device itself with a small product."""

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from lonas_edge.errors import LonasEdgeError
from lonas_edge.formats import FORMATS, WeightFormat
from lonas_edge.ir.compress import Scheme, compressed
from lonas_edge.ir.core import openvino_core

_ROWS, _COLUMNS = 64, 128  # 128 columns are complete groups of every size


def supported_formats(device: str) -> list[str]:
    """Return the names of the weight formats that an OpenVINO device supports."""
    return [name for name, weight_format in FORMATS.items() if _works(device, weight_format)]


def refusal(device: str, name: str, error: Exception) -> LonasEdgeError:
    """Make the error for an IR in the weight format `name` that a device does not compile; it names supported formats."""
    lines, supported = str(error).strip().splitlines(), supported_formats(device)
    return LonasEdgeError(
        f"{device} does not run an IR in {name}: {lines[-1] if lines else type(error).__name__}\n"
        f"It supports {', '.join(supported) or 'no format'}. Choose another --weight-format."
    )


def _works(device: str, weight_format: WeightFormat) -> bool:
    matrix = np.linspace(-1, 1, _ROWS * _COLUMNS, dtype=np.float32).reshape(_ROWS, _COLUMNS)
    scheme = Scheme(weight_format, weight_format.group_size([_COLUMNS]))
    values = ops.parameter([1, _COLUMNS], np.float32)
    model = ov.Model([ops.matmul(values, compressed(matrix, scheme).node("w"), False, True)], [values])
    try:
        openvino_core().compile_model(model, device).create_infer_request().infer([np.ones((1, _COLUMNS), np.float32)])
    except RuntimeError:
        return False
    return True
