"""How the weights of an IR are stored, for its manifest: by the schemes that were chosen, or read off a model."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from lonas_edge.exporting.manifest import Compression
from lonas_edge.formats import FORMATS, WeightFormat
from lonas_edge.ir import compress
from lonas_edge.ir.compress import Scheme
from lonas_edge.network.materialize import MaterializedModel


def compression_of(model: MaterializedModel, schemes: Mapping[str, Scheme]) -> tuple[Compression, ...]:
    """How the weights between embedding and head are stored.

    Args:
        model: The materialized model.
        schemes: The scheme of each matrix.

    Returns:
        One for each format and group size, the one with the most weights first.
    """
    inner = compress.inner_matrices(model)
    counts: Counter[Scheme] = Counter()
    for name, shape in inner.items():
        counts[schemes[name]] += math.prod(shape)
    total = counts.total()
    return tuple(Compression(one.weight_format.name, one.group_size, count / total) for one, count in counts.most_common())


def compression_in(model: Any, outer: tuple[str, ...], weight_format: WeightFormat, group_size: int) -> tuple[Compression, ...]:
    """How the weights between embedding and head are stored in a model that NNCF compressed whole.

    Args:
        model: The model.
        outer: Names of the weights of embedding and head.
        weight_format: The format that was asked for.
        group_size: Columns that share a scale in it.

    Returns:
        As of `compression_of`.
    """
    rest = FORMATS[weight_format.outer or weight_format.name]
    counts: Counter[Compression] = Counter()
    for node in model.get_ops():
        name = node.friendly_name
        if node.get_type_name() != "Constant" or not name.endswith(".weight") or name in outer or math.prod(node.shape) < 2:
            continue
        if node.get_element_type().bitwidth == weight_format.bits:
            counts[Compression(weight_format.name, group_size, 0.0)] += math.prod(node.shape)
        elif node.get_element_type().bitwidth == rest.bits:
            counts[Compression(rest.name, None, 0.0)] += math.prod(node.shape)
    return tuple(Compression(one.weight_format, one.group_size, n / counts.total()) for one, n in counts.most_common())
