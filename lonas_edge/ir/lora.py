"""LoRA factors that openvino_genai adds to the products of an IR.

It adds them to the products whose names contain theirs. It ignores an alpha in the file, so the scale is part of B. Products
that are fused in the IR have one pair of factors: A stacked, B block-diagonal.
"""

from collections.abc import Mapping
from typing import Any

import torch
from openvino import opset13 as ops

from lonas_edge.errors import raise_all
from lonas_edge.ir.fuse import members

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # PEFT's names, which openvino_genai reads
_OF_PYTORCH = "__module."  # before the module path in the names of converted nodes

Factors = tuple[torch.Tensor, torch.Tensor]  # A [rank, in] and B [out, rank]


def products(graph: Any, factors: Mapping[str, Factors]) -> dict[str, tuple[str, ...]]:
    """Return the layers of each product of an IR that gets some of these factors (by module path), by the product's name."""
    paths = [node.friendly_name.removeprefix(_OF_PYTORCH).partition("/")[0] for node in _nodes(graph)]
    found = {path: members(path) for path in paths if factors.keys() & set(members(path))}
    missing = factors.keys() - {layer for layers in found.values() for layer in layers}
    raise_all("The IR has no product for these layers of the adapter:", sorted(missing), "Please report it.")
    return found


def stacked(layers: Mapping[str, tuple[str, ...]], factors: Mapping[str, Factors], rows: Mapping[str, int]) -> dict[str, Any]:
    """Return the tensors of an adapter file for these products; `rows` is the number of rows of each layer."""
    tensors = {}
    for product, parts in layers.items():
        b = [factors[layer][1] if layer in factors else torch.zeros(rows[layer], 0) for layer in parts]
        tensors[f"{_PREFIX}{product}{_A}"] = torch.cat([factors[layer][0] for layer in parts if layer in factors])
        tensors[f"{_PREFIX}{product}{_B}"] = torch.block_diag(*b)  # type: ignore[no-untyped-call]
    return tensors


def taken_apart(
    tensors: Mapping[str, torch.Tensor], layers: Mapping[str, tuple[str, ...]], rows: Mapping[str, int]
) -> dict[str, Factors]:
    """Return the factors of each layer in an adapter file; those of a fused product share A."""
    factors: dict[str, Factors] = {}
    for product, (a, b) in _pairs(tensors).items():
        parts = torch.split(b, [rows[layer] for layer in layers[product]])
        factors |= {layer: (a, part) for layer, part in zip(layers[product], parts, strict=True)}
    return factors


def attach(graph: Any, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add the factors of an adapter file to an IR in place, as openvino_genai does."""
    for name, (a, b) in _pairs(tensors).items():
        for node in [node for node in _nodes(graph) if name in node.friendly_name]:
            users, names = list(node.output(0).get_target_inputs()), node.output(0).get_names()
            low = ops.matmul(node.input_value(0), ops.constant(a.float().numpy()), False, True)
            total = ops.add(node.output(0), ops.matmul(low, ops.constant(b.float().numpy()), False, True))
            node.output(0).set_names(set())
            total.output(0).set_names(names)
            for target in users:
                target.replace_source_output(total.output(0))
    graph.validate_nodes_and_infer_types()


def _nodes(graph: Any) -> list[Any]:
    return [node for node in graph.get_ops() if node.get_type_name() == "MatMul"]


def _pairs(tensors: Mapping[str, torch.Tensor]) -> dict[str, Factors]:
    """Return the factors in an adapter file by the name of the product."""
    names = [name.removesuffix(_A) for name in tensors if name.endswith(_A)]
    return {name.removeprefix(_PREFIX): (tensors[f"{name}{_A}"], tensors[f"{name}{_B}"]) for name in names}
