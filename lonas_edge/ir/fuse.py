"""Fuse products with the same input: q, k and v projections of a layer become rows of one matrix.

A decoded token passes hundreds of small products, each with a dispatch overhead. Codes, zero points and scales are stacked, so
no number changes. gate and up stay separate: stacking them has no effect (`docs/benchmarks/not-adopted.md`).
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from openvino import opset13 as ops

from lonas_edge.ir.compress import Compressed, stack
from lonas_edge.space.subnetwork import Subnetwork

GRAPH = 2  # raise it when `export` writes graphs of another latency: older measurements are then repeated


@dataclass(frozen=True)
class _Product:
    """The product x Wᵀ of a weight: the input that stands for it, its MatMul, and the Add and constant of a bias."""

    name: str
    parameter: Any
    node: Any
    bias: tuple[Any, Any] | None

    @property
    def rows(self) -> int:
        return int(self.parameter.get_output_shape(0)[0])

    @property
    def result(self) -> Any:
        return self.bias[0] if self.bias else self.node


def attention_matrices(subnetwork: Subnetwork) -> list[tuple[str, ...]]:
    """Return the names of the weight matrices of each attention block of a materialized network."""
    architecture, removed = subnetwork.architecture, subnetwork.removed
    attention = [path for path, block in architecture.blocks.items() if block.kind == "attention" and path not in removed]
    return [
        tuple(
            f"{architecture.renumber(name, subnetwork.numbers)}.weight"
            for name in architecture.linears
            if name.startswith(f"{block}.")
        )
        for block in attention
    ]


def fuse(graph: Any, blocks: Sequence[Sequence[str]], matrices: MutableMapping[str, Compressed]) -> dict[str, Compressed]:
    """Fuse the products of a graph with the same input and scheme, in place.

    Args:
        graph: A model whose weight matrices are inputs of their names.
        blocks: Names of the matrices that may be stacked; names that the graph lacks are ignored.
        matrices: The matrix of each such input. Stacked ones become views, so that no weight is in memory twice.

    Returns:
        The matrix of each input that the graph has now; a stack is named by its members.
    """
    inputs = {node.friendly_name: node for node in graph.get_parameters() if node.friendly_name in matrices}
    fused = dict(matrices)
    for names in blocks:
        for products in _fusible([inputs[name] for name in names if name in inputs], matrices):
            members = [product.name for product in products]
            stacked, parts = stack([fused.pop(name) for name in members])
            matrices.update(zip(members, parts, strict=True))
            name = _joined(members)
            _replace(graph, name, products)
            fused[name] = stacked
    graph.validate_nodes_and_infer_types()
    return fused


def _fusible(parameters: Sequence[Any], matrices: Mapping[str, Compressed]) -> Iterator[list[_Product]]:
    """Group the products of these weights by input, scheme, and whether they have a bias."""
    groups: dict[Any, list[_Product]] = {}
    for parameter in parameters:
        product = _product(parameter)
        if product is None:
            continue
        source, scheme = product.node.input_value(0), matrices[product.name].scheme
        key = (source.get_node().friendly_name, source.get_index(), scheme, product.bias is None)
        groups.setdefault(key, []).append(product)
    return (products for products in groups.values() if len(products) > 1)


def _product(parameter: Any) -> _Product | None:
    """Return the product of a weight; None if it is used in another way, or more than once."""
    users = list(parameter.output(0).get_target_inputs())
    node = users[0].get_node() if len(users) == 1 else None
    if node is None or node.get_type_name() != "MatMul" or users[0].get_index() != 1:
        return None
    transposed = node.get_attributes()
    if transposed["transpose_a"] or not transposed["transpose_b"]:
        return None
    return _Product(parameter.friendly_name, parameter, node, _bias(node, parameter.get_output_shape(0)[0]))


def _bias(node: Any, rows: int) -> tuple[Any, Any] | None:
    users = list(node.output(0).get_target_inputs())
    added = users[0].get_node() if len(users) == 1 else None
    if added is None or added.get_type_name() != "Add":
        return None
    constant = added.input_value(1 - users[0].get_index()).get_node()
    vector = constant.get_type_name() == "Constant" and constant.data.size == rows == list(constant.shape)[-1]
    return (added, constant) if vector else None


def _replace(graph: Any, name: str, products: Sequence[_Product]) -> None:
    """Replace several products by one."""
    first, lengths, layer = products[0], [product.rows for product in products], name.removesuffix(".weight")
    columns, kind = first.parameter.get_output_shape(0)[1], first.parameter.get_output_element_type(0)
    parameter = ops.parameter([sum(lengths), columns], kind, name=name)
    parameter.output(0).get_tensor().set_names({name})
    result = ops.matmul(first.node.input_value(0), parameter.output(0), False, True, name=layer)
    if all(product.bias for product in products):
        values = np.concatenate([product.bias[1].data.reshape(-1) for product in products if product.bias])
        result = ops.add(result, ops.constant(values.reshape(1, 1, -1)), name=f"{layer}/biased")
    split = ops.variadic_split(result, np.int64(-1), np.array(lengths, np.int64), name=f"{layer}/split")
    for index, product in enumerate(products):
        for target in list(product.result.output(0).get_target_inputs()):
            target.replace_source_output(split.output(index))
        graph.remove_parameter(product.parameter)
    graph.add_parameters([parameter])


def _joined(names: Sequence[str]) -> str:
    """Join `layer.q_proj.weight` and `layer.k_proj.weight` to `layer.q_proj+k_proj.weight`."""
    block, _, _ = names[0].removesuffix(".weight").rpartition(".")
    return f"{block}.{'+'.join(name.removeprefix(f'{block}.').removesuffix('.weight') for name in names)}.weight"
