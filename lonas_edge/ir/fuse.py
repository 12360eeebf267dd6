"""Fewer, larger products: weight matrices that multiply the same input become one, whose product is split again.

A decoded token passes hundreds of small products, and each costs its dispatch beside its bytes. Query, key and value
projections of a layer are rows of one matrix here: codes, zero points and scales stacked, so not a number changes. gate and up
are left as they are: stacking them, too, gains nothing more (`docs/design-notes.md`).
"""

from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from openvino import opset13 as ops

from lonas_edge.ir.compress import Compressed, stack
from lonas_edge.space.architecture import Architecture

GRAPH = 2  # raised whenever `export` writes graphs of another latency: what was measured of older ones is measured anew


@dataclass(frozen=True)
class _Product:
    """A weight's product in a graph.

    Attributes:
        name: The weight's.
        place: The input that stands for it.
        node: The MatMul.
        bias: The Add behind it and the constant that it adds, where there is one.
    """

    name: str
    place: Any
    node: Any
    bias: tuple[Any, Any] | None

    @property
    def rows(self) -> int:
        return int(self.place.get_output_shape(0)[0])

    @property
    def result(self) -> Any:
        return self.bias[0] if self.bias else self.node


def attention_matrices(architecture: Architecture) -> list[tuple[str, ...]]:
    """The weight matrices of each attention block.

    Args:
        architecture: The whole network's.

    Returns:
        Tensor names, a tuple a block.
    """
    attention = [path for path, block in architecture.blocks.items() if block.kind == "attention"]
    return [
        tuple(f"{name}.weight" for name in architecture.linears if name.startswith(f"{block}."))  #
        for block in attention
    ]


def fuse(graph: Any, blocks: Sequence[Sequence[str]], matrices: MutableMapping[str, Compressed]) -> dict[str, Compressed]:
    """Have products of one input and one scheme share a matrix.

    Args:
        graph: A model whose weight matrices are inputs of their names; it is changed.
        blocks: Names of the matrices that may share one; those that the graph lacks are left out.
        matrices: The matrix of each such input. Those that are stacked become views of their stack, so that no weight is in
            memory twice.

    Returns:
        The matrix of each input that the graph has now; a stack is named by its members.
    """
    places = {node.friendly_name: node for node in graph.get_parameters() if node.friendly_name in matrices}
    found = dict(matrices)
    for names in blocks:
        for products in _alike([places[name] for name in names if name in places], matrices):
            members = [product.name for product in products]
            stacked, parts = stack([found.pop(name) for name in members])
            matrices.update(zip(members, parts, strict=True))
            name = _joined(members)
            _replace(graph, name, products)
            found[name] = stacked
    graph.validate_nodes_and_infer_types()
    return found


def _alike(places: Sequence[Any], matrices: Mapping[str, Compressed]) -> Iterator[list[_Product]]:
    """The products of these inputs, those together that have one input, one scheme and all a bias or none."""
    groups: dict[Any, list[_Product]] = {}
    for place in places:
        product = _product(place)
        if product is None:
            continue
        source, scheme = product.node.input_value(0), matrices[product.name].scheme
        key = (source.get_node().friendly_name, source.get_index(), scheme, product.bias is None)
        groups.setdefault(key, []).append(product)
    return (products for products in groups.values() if len(products) > 1)


def _product(place: Any) -> _Product | None:
    """The product x Wᵀ of an input that stands for W; None where it is used in another way, or more than once."""
    users = list(place.output(0).get_target_inputs())
    node = users[0].get_node() if len(users) == 1 else None
    if node is None or node.get_type_name() != "MatMul" or users[0].get_index() != 1:
        return None
    transposed = node.get_attributes()
    if transposed["transpose_a"] or not transposed["transpose_b"]:
        return None
    return _Product(place.friendly_name, place, node, _bias(node, place.get_output_shape(0)[0]))


def _bias(node: Any, rows: int) -> tuple[Any, Any] | None:
    users = list(node.output(0).get_target_inputs())
    added = users[0].get_node() if len(users) == 1 else None
    if added is None or added.get_type_name() != "Add":
        return None
    constant = added.input_value(1 - users[0].get_index()).get_node()
    whole = constant.get_type_name() == "Constant" and constant.data.size == rows == list(constant.shape)[-1]
    return (added, constant) if whole else None


def _replace(graph: Any, name: str, products: Sequence[_Product]) -> None:
    """Put one product in the place of several."""
    first, lengths, layer = products[0], [product.rows for product in products], name.removesuffix(".weight")
    columns, kind = first.place.get_output_shape(0)[1], first.place.get_output_element_type(0)
    place = ops.parameter([sum(lengths), columns], kind, name=name)
    place.output(0).get_tensor().set_names({name})
    result = ops.matmul(first.node.input_value(0), place.output(0), False, True, name=layer)
    if all(product.bias for product in products):
        values = np.concatenate([product.bias[1].data.reshape(-1) for product in products if product.bias])
        result = ops.add(result, ops.constant(values.reshape(1, 1, -1)), name=f"{layer}/biased")
    split = ops.variadic_split(result, np.int64(-1), np.array(lengths, np.int64), name=f"{layer}/split")
    for index, product in enumerate(products):
        for target in list(product.result.output(0).get_target_inputs()):
            target.replace_source_output(split.output(index))
        graph.remove_parameter(product.place)
    graph.add_parameters([place])


def _joined(names: Sequence[str]) -> str:
    """`layer.q_proj.weight` and `layer.k_proj.weight` as `layer.q_proj+k_proj.weight`."""
    block, _, _ = names[0].removesuffix(".weight").rpartition(".")
    return f"{block}.{'+'.join(name.removeprefix(f'{block}.').removesuffix('.weight') for name in names)}.weight"
