"""Weight compression by NNCF, as each weight is made: the whole model is never in memory uncompressed.

NNCF compresses weights row by row or group by group, data-free, so compressing many rows stacked gives the same numbers as
compressing each layer. Stacked they cost one call: NNCF 3.4 compiles a model for every weight it sees, half
of the time of `compress_weights` on a whole model. `tests/test_compress.py` compares the two bit for bit.
"""

import io
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import nncf
import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import compress_model_transformation

from lonas_edge.errors import raise_all
from lonas_edge.formats import FORMATS, WHOLE_ROWS, WeightFormat, misfits
from lonas_edge.ir import sensitivity
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import BLOCK_ELEMENTS

STACK_ELEMENTS = 2**24  # at least so many elements are compressed at once (67 MB in fp32),
MAX_STACKS = 64  # and more where that would take more calls than this
_GROUP_SIZES = (256, 128, 64, 32, 16, WHOLE_ROWS)  # that are proposed where another one does not fit
_NUMPY_S = (ov.Type.u8, ov.Type.i8, ov.Type.f16, ov.Type.f32)  # element types that numpy has, too
_TENSORS = ("codes", "zero_point", "scale")  # of `Compressed`


@dataclass(frozen=True)
class Scheme:
    """How one weight matrix is stored. `group_size` columns share a scale; whole rows do where it is `WHOLE_ROWS`.

    It is None where the format knows no groups.
    """

    weight_format: WeightFormat
    group_size: int | None = None


@dataclass(frozen=True)
class Compressed:
    """A weight matrix as stored: codes, and what NNCF stores with them; for fp16 and fp32 codes only.

    Types are the format's: u8, i8, u4, i4, nf4, f4e2m1 or f8e4m3 codes, f16 or f8e8m0 scales. Those of four bits are packed two
    a byte, low half first. Shapes: where rows are whole codes [rows, columns], scale and zero point [rows, 1]; in groups codes
    [rows, groups, size], the others [rows, groups, 1]; `shape` is [rows, columns].
    """

    scheme: Scheme
    shape: tuple[int, int]
    codes: ov.Tensor
    zero_point: ov.Tensor | None = None
    scale: ov.Tensor | None = None

    def restored(self, matrix: np.ndarray) -> tuple[np.ndarray, float]:
        """The matrix that is stored, and how far it is from what it was made of.

        Args:
            matrix: What it was made of, [rows, columns], fp32.

        Returns:
            The stored matrix [rows, columns] in fp32, and the largest difference of an element: in scales where there are any,
            in units of 2^-11 of the element for fp16 and of 2^-23 for fp32.
        """
        restored, error = np.empty(self.shape, np.float32), 0.0
        codes = _values(self.codes)
        for start in range(0, len(codes), rows := max(1, BLOCK_ELEMENTS // self.shape[1])):
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
        """The subgraph that gives the fp32 matrix [rows, columns], as NNCF writes it; every plugin matches this pattern.

        Args:
            name: The weight's name.

        Returns:
            The subgraph's last node.
        """
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
        if scale.get_element_type() != ov.Type.f16:
            scale = ops.convert(scale, ov.Type.f16)
        matrix = ops.multiply(shifted, scale, name=f"{name}/fq_weights_1")
        if len(self.codes.shape) > len(self.shape):
            matrix = ops.reshape(matrix, np.array(self.shape, np.int64), special_zero=False)
        return ops.convert(matrix, ov.Type.f32, name=f"{name}/fq_weights_1/convert")


def _decompression() -> Any:
    """A Convert from fp16 to fp32 that plugins do not fold, so that the weight stays fp16 in memory.

    Python cannot set its mark (openvino 2026.4); OpenVINO's own pass puts it on a small model, from which it is taken.
    """
    values = ops.parameter([1, 64], np.float32)
    model = ov.Model([ops.matmul(values, ops.constant(np.ones((64, 64), np.float32)), False, True)], [values])
    compress_model_transformation(model)
    return next(node for node in model.get_ops() if node.get_type_name() == "Convert")


def schemes(
    model: MaterializedModel,
    weight_format: WeightFormat,
    ratio: float = 1.0,
    by_layer: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Scheme]:
    """The scheme of every weight matrix.

    Args:
        model: The materialized model. With a ratio below 1 each matrix is evaluated once.
        weight_format: The format of the whole model; it says which other one embeddings and head get.
        ratio: Share of the weights between those that get the format; the rest gets that of embeddings and head, too: the
            matrices that 8 bits harm most, as NNCF judges without data.
        by_layer: Names of the formats of layers that get another one, as of `Subnetwork.weight_formats`.

    Returns:
        Schemes by tensor name.
    """
    own, outer = formats_by_matrix(model, by_layer), set(outer_matrices(model))
    inner = inner_matrices(model)
    sizes = {one: one.group_size(inner[name][1] for name in own if own[name] == one) for one in own.values()}
    common = {name: shape for name, shape in inner.items() if name not in own}
    group = weight_format.group_size(shape[1] for shape in common.values())
    if ratio < 1 and group is not None:
        outer |= common.keys() - sensitivity.spared(model, common, ratio)

    def scheme(name: str) -> Scheme:
        if name in own:
            return Scheme(own[name], sizes[own[name]])
        chosen = weight_format.chosen(name in outer, group)
        return Scheme(chosen, group if chosen.group_sizes else None)

    return {name: scheme(name) for name, shape in model.shapes.items() if len(shape) == 2}


def formats_by_matrix(model: MaterializedModel, by_layer: Mapping[str, str]) -> dict[str, WeightFormat]:
    """The formats of the matrices that a sub-network stores otherwise than the rest.

    Args:
        model: The materialized model.
        by_layer: As of `Subnetwork.weight_formats`: the longest path that holds a matrix decides.

    Returns:
        Formats by tensor name, of those alone that are between embeddings and head.
    """
    found = {}
    for name in inner_matrices(model):
        holding = [path for path in by_layer if name.startswith(f"{path}.")]
        if holding:
            found[name] = FORMATS[by_layer[max(holding, key=len)]]
    return found


def check_formats_by_layer(model: MaterializedModel) -> None:
    """Refuse formats of layers that there are none of, or that a layer's width does not fit.

    Args:
        model: The materialized model.

    Raises:
        LonasEdgeError: If there are such; all are listed.
    """
    architecture, by_layer = model.source.architecture, model.subnetwork.weight_formats
    inner = [name for name in architecture.linears if architecture.split(name)[0]]
    problems = [
        f"{path}: the model has no such decoder layer, block or linear layer between embeddings and head"
        for path in by_layer
        if not any(f"{name}.".startswith(f"{path}.") for name in inner)
    ]
    chosen, shapes = formats_by_matrix(model, by_layer), inner_matrices(model)
    for weight_format in dict.fromkeys(chosen.values()):
        widths = sorted({shapes[name][1] for name, one in chosen.items() if one == weight_format})
        if weight_format.group_sizes and weight_format.group_size(widths) is None:
            sizes = ", ".join(map(str, weight_format.group_sizes))
            told = ", ".join(map(str, widths))
            problems.append(f"{weight_format.name}: no group size of {sizes} divides the input width of all its layers: {told}")
    raise_all(f"{model.source.folder}: weight_formats of the {model.subnetwork.name} sub-network:", problems)


def check_group_size(model: MaterializedModel, weight_format: WeightFormat, asked: int | None) -> None:
    """Refuse a group size that does not divide the input width of every layer.

    Args:
        model: The materialized model.
        weight_format: The format of the whole model.
        asked: The group size that was asked for, if one was.

    Raises:
        LonasEdgeError: If it is one that does not fit; every width that it does not divide is named, and those that fit.
    """
    if asked is None:
        return
    layers: dict[int, list[str]] = {}
    own = formats_by_matrix(model, model.subnetwork.weight_formats)
    for name, shape in ((name, shape) for name, shape in inner_matrices(model).items() if name not in own):
        layers.setdefault(shape[1], []).append(name.removesuffix(".weight"))
    problems = [
        f"{width} columns, as {layers[width][0]}" + (f" and {len(layers[width]) - 1} more" if len(layers[width]) > 1 else "")
        for width in misfits(asked, layers)
    ]
    fitting = [str(size) for size in _GROUP_SIZES if not misfits(size, layers)]
    raise_all(
        f"{model.source.folder}: --group-size {asked} does not divide the input width of every layer of the "
        f"{model.subnetwork.name} sub-network in {weight_format.name}:",
        problems,
        f"These do: {', '.join(fitting)}.",
    )


def outer_matrices(model: MaterializedModel) -> tuple[str, ...]:
    """Names of the weight matrices outside the decoder layers: embeddings and head."""
    return tuple(name for name, shape in model.shapes.items() if len(shape) == 2 and not _inside(model, name))


def inner_matrices(model: MaterializedModel) -> dict[str, tuple[int, ...]]:
    """Shapes of the weight matrices of decoder layers, by tensor name."""
    return {name: shape for name, shape in model.shapes.items() if len(shape) == 2 and _inside(model, name)}


def _inside(model: MaterializedModel, name: str) -> bool:
    return bool(model.source.architecture.split(name)[0])


def compress_matrices(model: MaterializedModel, chosen: Mapping[str, Scheme]) -> Iterator[tuple[str, Compressed]]:
    """Make and compress every weight matrix of a materialized model.

    Args:
        model: The materialized model; each matrix is evaluated once.
        chosen: The scheme of each matrix.

    Yields:
        Tensor name and compressed matrix, in no particular order.
    """
    stack_elements = max(STACK_ELEMENTS, sum(math.prod(model.shapes[name]) for name in chosen) // MAX_STACKS)
    stacks: dict[tuple[Scheme, int], list[tuple[str, np.ndarray]]] = {}
    for name, scheme in chosen.items():
        matrix = model.tensor(name).numpy()
        if scheme.weight_format.mode is None:
            yield name, compressed(matrix, scheme)
            continue
        stack = stacks.setdefault((scheme, matrix.shape[1]), [])
        stack.append((name, matrix))
        if sum(rows.size for _, rows in stack) >= stack_elements:
            yield from _compress_stack(scheme, stacks.pop((scheme, matrix.shape[1])))
    for (scheme, _), stack in stacks.items():
        yield from _compress_stack(scheme, stack)


def compressed(matrix: np.ndarray, scheme: Scheme) -> Compressed:
    """One matrix.

    Args:
        matrix: [rows, columns], fp32.
        scheme: How it is stored.

    Returns:
        The matrix as stored.
    """
    if scheme.weight_format.mode is None:
        stored = matrix.astype(np.float16) if scheme.weight_format.bits == 16 else np.ascontiguousarray(matrix)
        return Compressed(scheme, matrix.shape, ov.Tensor(stored, shared_memory=True))
    return next(one for _, one in _compress_stack(scheme, [("", matrix)]))


def _compress_stack(scheme: Scheme, stack: list[tuple[str, np.ndarray]]) -> Iterator[tuple[str, Compressed]]:
    matrix = stack[0][1] if len(stack) == 1 else np.concatenate([rows for _, rows in stack])
    constants = _compress(matrix, scheme)
    start = 0
    for name, rows in stack:
        stop = start + len(rows)
        parts = [constants.get(part) for part in ("w", "w/zero_point", "w/scale")]
        yield name, Compressed(scheme, rows.shape, *(None if part is None else _rows(part, start, stop) for part in parts))
        start = stop


def _compress(matrix: np.ndarray, scheme: Scheme) -> dict[str, Any]:
    """Compress a matrix [rows, columns] with NNCF's public API; returns its constants by name."""
    values = ops.parameter([-1, matrix.shape[1]], np.float32)
    weight = ops.constant(np.ascontiguousarray(matrix), shared_memory=True, name="w")
    model = ov.Model([ops.matmul(values, weight, False, True)], [values])
    options: dict[str, Any] = {"mode": nncf.CompressWeightsMode[str(scheme.weight_format.mode)]}
    if scheme.group_size:
        options |= {"group_size": scheme.group_size, "all_layers": True}
    with quiet():
        compressed = nncf.compress_weights(model, **options)
    return {node.friendly_name: node for node in compressed.get_ops() if node.get_type_name() == "Constant"}


def _values(tensor: ov.Tensor) -> np.ndarray:
    """A stored tensor's values; in fp32 those of types that numpy does not have."""
    if tensor.element_type in _NUMPY_S:
        stored: np.ndarray = tensor.data
        return stored
    values: np.ndarray = ops.constant(tensor, shared_memory=True).get_data(dtype=np.float32)
    return values.reshape(list(tensor.shape))


def _unpacked(packed: np.ndarray) -> np.ndarray:
    """Bits of four-bit values, two a byte, low half first."""
    packed = packed.reshape(-1).view(np.uint8)
    return np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(-1)


def _rows(constant: Any, start: int, stop: int, taken: Callable[[np.ndarray], np.ndarray] = np.copy) -> ov.Tensor:
    """Rows of a constant or tensor as a tensor of their own.

    They are copied, or, where `taken` copies nothing and they begin and end at a byte, views.
    """
    kind, shape = constant.get_element_type(), [stop - start, *list(constant.shape)[1:]]
    stored, per_row = _bytes(constant), math.prod(shape[1:])
    if (bits := per_row * kind.bitwidth) % 8 == 0:
        return ov.Tensor(taken(stored[start * bits // 8 : stop * bits // 8]), shape, kind)
    return _packed(_unpacked(stored)[start * per_row : stop * per_row], shape, kind)


def _bytes(stored: Any) -> np.ndarray:
    """The bytes of a constant or tensor; of one of four bits two values a byte, low half first."""
    content: np.ndarray = stored.data.reshape(-1).view(np.uint8)
    return content


def _packed(values: np.ndarray, shape: Sequence[int], kind: Any) -> ov.Tensor:
    """Bits of four-bit values, one a byte, as a tensor of two a byte."""
    halves = np.append(values, np.zeros(len(values) % 2, np.uint8))
    return ov.Tensor(halves[0::2] | (halves[1::2] << 4), list(shape), kind)


def stack(parts: Sequence[Compressed]) -> tuple[Compressed, list[Compressed]]:
    """Matrices of one scheme and one number of columns as one matrix of all their rows.

    Args:
        parts: The matrices.

    Returns:
        The matrix, and its parts as views of it where they begin at a byte.
    """
    rows, columns = [part.shape[0] for part in parts], parts[0].shape[1]
    stops = list(itertools.accumulate(rows))

    def joined(tensors: Sequence[ov.Tensor | None]) -> ov.Tensor | None:
        there = [tensor for tensor in tensors if tensor is not None]
        return _stacked(there) if there else None

    fields = [joined([getattr(part, name) for part in parts]) for name in _TENSORS]
    whole = Compressed(parts[0].scheme, (stops[-1], columns), *fields)

    def part(start: int, stop: int) -> Compressed:
        own = [None if tensor is None else _rows(tensor, start, stop, np.asarray) for tensor in fields]
        return Compressed(whole.scheme, (stop - start, columns), *own)

    return whole, [part(start, stop) for start, stop in zip([0, *stops], stops, strict=False)]


def _stacked(tensors: Sequence[ov.Tensor]) -> ov.Tensor:
    """Tensors of one type below each other."""
    kind, shape = tensors[0].element_type, [sum(tensor.shape[0] for tensor in tensors), *list(tensors[0].shape)[1:]]
    if math.prod(shape[1:]) * kind.bitwidth % 8 == 0:
        return ov.Tensor(np.concatenate([_bytes(tensor) for tensor in tensors]), shape, kind)
    halves = [_unpacked(_bytes(tensor))[: math.prod(tensor.shape)] for tensor in tensors]
    return _packed(np.concatenate(halves), shape, kind)


@contextmanager
def quiet() -> Iterator[None]:
    """NNCF prints a progress bar and a table for every call, on standard output.

    Yields:
        Nothing; it is quiet while the block runs.
    """
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
