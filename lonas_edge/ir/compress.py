"""Compress each weight matrix by NNCF as it is made: the uncompressed model is never in memory.

Without data NNCF compresses row by row or group by group, so stacked rows give the same numbers as separate layers. A stack
costs one call: NNCF 3.4 compiles a model for every weight, half of the time of `compress_weights` on a complete model.
`tests/ir/test_compress.py` compares the two bit for bit.
"""

import io
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import nncf
import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import compress_model_transformation

from lonas_edge.ir.schemes import Scheme
from lonas_edge.network.materialize import MaterializedModel

STACK_ELEMENTS = 2**24  # compress at least this many elements at once (67 MB in fp32),
_BLOCK_ELEMENTS = 2**21  # decompressed at once: 17 MB in float64
MAX_STACKS = 64  # and more if that would take more calls than this


@dataclass(frozen=True)
class Compressed:
    """A weight matrix as stored: codes with NNCF's scale and zero point; codes alone for fp16 and fp32.

    Codes are u8, i8, u4, i4, f16 or f32, scales f16. Four-bit values are packed two a byte, low half first.

    Attributes:
        shape: [rows, columns].
        codes: [rows, columns]; in groups [rows, groups, size].
        zero_point: [rows, 1]; in groups [rows, groups, 1].
        scale: As `zero_point`.
    """

    scheme: Scheme
    shape: tuple[int, int]
    codes: ov.Tensor
    zero_point: ov.Tensor | None = None
    scale: ov.Tensor | None = None

    @property
    def overflowed(self) -> bool:
        """Whether weights are beyond the range of fp16 codes."""
        return self.scheme.weight_format.mode is None and not np.isfinite(self.codes.data).all()

    def restore(self, matrix: np.ndarray) -> tuple[np.ndarray, float]:
        """Decompress the matrix and compare it with its fp32 original [rows, columns].

        Returns:
            The stored matrix [rows, columns] in fp32, and the largest difference of an element: in scales, or in units of 2^-11
            of the element for fp16 and of 2^-23 for fp32.
        """
        restored, error = np.empty(self.shape, np.float32), 0.0
        codes = _values(self.codes)
        for start in range(0, len(codes), rows := max(1, _BLOCK_ELEMENTS // self.shape[1])):
            part = slice(start, start + rows)
            block = restored[part].reshape(codes[part].shape)
            np.copyto(block, codes[part])
            if self.scale is not None:
                unit = _values(self.scale)[part].astype(np.float32)
                if self.zero_point is not None:
                    block -= _values(self.zero_point)[part]
                block *= unit
                difference = block - matrix[part].reshape(block.shape)
                largest = np.maximum(difference.max(-1, keepdims=True), -difference.min(-1, keepdims=True))
                difference = largest / np.maximum(np.abs(unit), np.finfo(np.float16).tiny)
            else:
                digits, smallest = (11, 2.0**-14) if self.scheme.weight_format.bits == 16 else (23, 2.0**-126)
                difference = np.abs(block - matrix[part]) * np.float32(2**digits)
                difference /= np.maximum(np.abs(matrix[part]), np.float32(smallest))  # below it the format is denormal
            error = float(np.maximum(error, difference.max()))  # NaN stays NaN
        return restored, error

    def node(self, name: str) -> Any:
        """Return the last node of a subgraph that gives the fp32 matrix, in the pattern that NNCF writes and plugins match."""
        codes = ops.constant(self.codes, shared_memory=True, name=name)
        if self.scheme.weight_format.name == "fp32":
            return codes
        if self.scheme.weight_format.name == "fp16":
            widened = _decompression()
            widened.input(0).replace_source_output(codes.output(0))
            widened.set_friendly_name(f"{name}/convert")
            widened.validate_and_infer_types()
            return widened
        shifted = ops.convert(codes, ov.Type.f16)
        if self.zero_point is not None:
            zero_point = ops.constant(self.zero_point, shared_memory=True, name=f"{name}/zero_point")
            shifted = ops.subtract(shifted, ops.convert(zero_point, ov.Type.f16), name=f"{name}/zero_point/subtract")
        scale = ops.constant(self.scale, shared_memory=True, name=f"{name}/scale")
        matrix = ops.multiply(shifted, scale, name=f"{name}/fq_weights_1")
        if len(self.codes.shape) > len(self.shape):
            matrix = ops.reshape(matrix, np.array(self.shape, np.int64), special_zero=False)
        return ops.convert(matrix, ov.Type.f32, name=f"{name}/fq_weights_1/convert")


def _decompression() -> Any:
    """Make a Convert from fp16 to fp32 that plugins do not fold, so that the weight stays fp16 in memory.

    Python cannot set its mark (openvino 2026.4). OpenVINO's own pass puts it on a small model, from which it is taken.
    """
    values = ops.parameter([1, 64], np.float32)
    model = ov.Model([ops.matmul(values, ops.constant(np.ones((64, 64), np.float32)), False, True)], [values])
    compress_model_transformation(model)
    return next(node for node in model.get_ops() if node.get_type_name() == "Convert")


def compress_matrices(model: MaterializedModel, chosen: Mapping[str, Scheme]) -> Iterator[tuple[str, Compressed]]:
    """Yield name and compressed form of every matrix in `chosen`, in no particular order; each is computed once."""
    stack_elements = max(STACK_ELEMENTS, sum(math.prod(model.shapes[name]) for name in chosen) // MAX_STACKS)
    stacks: dict[tuple[Scheme, int], dict[str, np.ndarray]] = {}
    for name, scheme in chosen.items():
        matrix = model.tensor(name).numpy()
        if scheme.weight_format.mode is None:
            yield name, compress_matrix(matrix, scheme)
            continue
        pending = stacks.setdefault((scheme, matrix.shape[1]), {})
        pending[name] = matrix
        if sum(rows.size for rows in pending.values()) >= stack_elements:
            yield from _compress_rows(scheme, stacks.pop((scheme, matrix.shape[1])))
    for (scheme, _), pending in stacks.items():
        yield from _compress_rows(scheme, pending)


def compress_matrix(matrix: np.ndarray, scheme: Scheme) -> Compressed:
    """Compress one fp32 matrix [rows, columns]."""
    if scheme.weight_format.mode is None:
        stored = matrix.astype(np.float16) if scheme.weight_format.bits == 16 else np.ascontiguousarray(matrix)
        return Compressed(scheme, matrix.shape, ov.Tensor(stored, shared_memory=True))
    [(_, result)] = _compress_rows(scheme, {"": matrix})
    return result


def _compress_rows(scheme: Scheme, pending: Mapping[str, np.ndarray]) -> Iterator[tuple[str, Compressed]]:
    """Compress several matrices with the same columns by one call of NNCF's public API."""
    matrices = list(pending.values())
    matrix = np.ascontiguousarray(matrices[0] if len(matrices) == 1 else np.concatenate(matrices))
    values = ops.parameter([-1, matrix.shape[1]], np.float32)
    weight = ops.constant(matrix, shared_memory=True, name="w")
    options: dict[str, Any] = {"mode": nncf.CompressWeightsMode[str(scheme.weight_format.mode)]}
    if scheme.group_size:
        options |= {"group_size": scheme.group_size, "all_layers": True}
    with quiet():
        result = nncf.compress_weights(ov.Model([ops.matmul(values, weight, False, True)], [values]), **options)
    constants = {node.friendly_name: node for node in result.get_ops() if node.get_type_name() == "Constant"}
    stored, start = [constants.get(name) for name in ("w", "w/zero_point", "w/scale")], 0
    for name, rows in pending.items():
        parts = [None if part is None else _rows(part, start, start + len(rows), np.copy) for part in stored]
        yield name, Compressed(scheme, rows.shape, *parts)
        start += len(rows)


def stack(parts: Sequence[Compressed]) -> tuple[Compressed, list[Compressed]]:
    """Stack matrices of one scheme and one number of columns.

    Returns:
        The stacked matrix, and its parts, which are views of it if they start at a byte.
    """
    scheme, columns = parts[0].scheme, parts[0].shape[1]
    tensors: list[ov.Tensor | None] = []
    for name in ("codes", "zero_point", "scale"):
        members = [getattr(part, name) for part in parts]
        tensors.append(None if members[0] is None else _stack_tensors(members))
    views, start = [], 0
    for part in parts:
        stop = start + part.shape[0]
        rows = [None if tensor is None else _rows(tensor, start, stop, np.asarray) for tensor in tensors]
        views.append(Compressed(scheme, (part.shape[0], columns), *rows))
        start = stop
    return Compressed(scheme, (start, columns), *tensors), views


def _values(tensor: ov.Tensor) -> np.ndarray:
    """Return the values of a stored tensor; four-bit ones in fp32, since numpy has no such types."""
    if tensor.element_type.bitwidth >= 8:
        stored: np.ndarray = tensor.data
        return stored
    values: np.ndarray = ops.constant(tensor, shared_memory=True).get_data(dtype=np.float32)
    return values.reshape(list(tensor.shape))


def _rows(stored: Any, start: int, stop: int, take: Callable[[np.ndarray], np.ndarray]) -> ov.Tensor:
    """Return rows of a constant or tensor as a tensor of their own.

    With `take=np.asarray` they are a view if they start and end at a byte; otherwise a copy.
    """
    kind, shape = stored.get_element_type(), [stop - start, *list(stored.shape)[1:]]
    content, per_row = _bytes(stored), math.prod(shape[1:])
    if (bits := per_row * kind.bitwidth) % 8 == 0:
        return ov.Tensor(take(content[start * bits // 8 : stop * bits // 8]), shape, kind)
    return _pack(_unpack(content)[start * per_row : stop * per_row], shape, kind)


def _stack_tensors(tensors: Sequence[ov.Tensor]) -> ov.Tensor:
    kind, shape = tensors[0].element_type, [sum(tensor.shape[0] for tensor in tensors), *list(tensors[0].shape)[1:]]
    if math.prod(shape[1:]) * kind.bitwidth % 8 == 0:
        return ov.Tensor(np.concatenate([_bytes(tensor) for tensor in tensors]), shape, kind)
    return _pack(np.concatenate([_unpack(_bytes(tensor))[: math.prod(tensor.shape)] for tensor in tensors]), shape, kind)


def _bytes(stored: Any) -> np.ndarray:
    """Return the bytes of a constant or tensor; four-bit values are two a byte, low half first."""
    content: np.ndarray = stored.data.reshape(-1).view(np.uint8)
    return content


def _unpack(packed: np.ndarray) -> np.ndarray:
    """Unpack four-bit values: one a byte."""
    return np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(-1)


def _pack(values: np.ndarray, shape: Sequence[int], kind: Any) -> ov.Tensor:
    """Pack four-bit values, one a byte, two a byte."""
    halves = np.append(values, np.zeros(len(values) % 2, np.uint8))
    return ov.Tensor(halves[0::2] | (halves[1::2] << 4), list(shape), kind)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence NNCF, which prints a progress bar and a table on standard output for every call."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
