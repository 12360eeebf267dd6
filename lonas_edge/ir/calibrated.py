"""Compress a filled graph on data by NNCF."""

from collections.abc import Sequence
from typing import Any

import nncf
import numpy as np
from openvino import opset13 as ops

from lonas_edge.formats import WeightFormat
from lonas_edge.ir.compress import quiet
from lonas_edge.ir.core import inputs_of
from lonas_edge.ir.schemes import Scheme

_MEMORY = 3.0  # times the fp32 weights: these, NNCF's copy, inputs of layers and work
_LIBRARIES = 1.2e9  # bytes


def bytes_needed(parameters: int) -> float:
    """Return the memory that compression of a model with this number of parameters takes at most, in bytes."""
    return _MEMORY * 4 * parameters + _LIBRARIES


def compress_on_data(
    model: Any,
    weight_format: WeightFormat,
    group_size: int,
    texts: Sequence[np.ndarray],
    kept: str | None = None,
) -> Any:
    """Compress the matrices between embedding and head of an fp32 model by GPTQ.

    `texts` are token ids, each [1, tokens]. The embedding and the head get 8 bits, except for the matrix of the name `kept`,
    which stays fp32.
    """
    left = [node.friendly_name for node, _ in _users(model, kept)] if kept else []
    with quiet():
        return nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode[str(weight_format.mode)],
            group_size=group_size,
            dataset=_dataset(model, texts),
            subset_size=len(texts),
            ignored_scope=nncf.IgnoredScope(names=left) if left else None,
            gptq=True,
        )


def compress_head_on_data(model: Any, name: str, scheme: Scheme, texts: Sequence[np.ndarray]) -> Any:
    """Compress the matrix `name`, the only one that is fp32, by GPTQ for its product; an embedding looks up the result.

    NNCF 3.4 does not apply GPTQ to a matrix that is also an embedding. It gets a copy for the product, whose result the
    embedding then shares.
    """
    [product] = [(node, port) for node, port in _users(model, name) if node.get_type_name() == "MatMul"]
    tables = [(node.friendly_name, port) for node, port in _users(model, name) if node.get_type_name() != "MatMul"]
    head, port = product[0].friendly_name, product[1]
    matrix = product[0].input_value(port).get_node()
    own = ops.constant(matrix.data, name=f"{name}/copy") if tables else matrix
    product[0].input(port).replace_source_output(own.output(0))
    with quiet():
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode[str(scheme.weight_format.mode)],
            group_size=scheme.group_size,
            all_layers=True,
            gptq=True,
            dataset=_dataset(model, texts),
            subset_size=len(texts),
            ignored_scope=nncf.IgnoredScope(names=[table for table, _ in tables]) if tables else None,
        )
    nodes = {node.friendly_name: node for node in model.get_ops()}
    for table, index in tables:
        nodes[table].input(index).replace_source_output(nodes[head].input_value(port))
    for suffix in ("", "/zero_point", "/scale"):
        if tables and (constant := nodes.get(f"{name}/copy{suffix}")):
            constant.set_friendly_name(f"{name}{suffix}")
    return model


def _users(model: Any, name: str) -> list[tuple[Any, int]]:
    """The nodes that read a constant, and the index of the input."""
    constant = next(node for node in model.get_ops() if node.friendly_name == name and node.get_type_name() == "Constant")
    return [(target.get_node(), target.get_index()) for target in constant.output(0).get_target_inputs()]


def _dataset(model: Any, texts: Sequence[np.ndarray]) -> nncf.Dataset:
    names = {name for port in model.inputs for name in port.get_names()}
    return nncf.Dataset(texts, lambda ids: {name: value for name, value in inputs_of(ids).items() if name in names})
