"""Sizes of a sub-network from configurations alone: parameters, linear weights, MACs, bytes. No weights are read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from lonas_edge.formats import FORMATS, WeightFormat
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Widths
from lonas_edge.space.subnetwork import Subnetwork


@dataclass(frozen=True)
class Sizes:
    """Sizes of one network.

    Attributes:
        parameters: Parameters of the materialized (merged) model, a tied head counted once.
        linear_weights: Weights of the linear layers, including language-model head and unmerged adapters, without embeddings,
            norms and biases. The adapter cards call this "total params".
        macs: Multiply-accumulates of those weights for a sequence of `seq_len` tokens, as the cards count them ("TFLOPs"): a
            classifier's include attention itself, and its pooler and head run once per sequence.
        seq_len: Sequence length in tokens.
        bytes: Bytes of the materialized model's weights per weight format, with its default format of the head.
    """

    parameters: int
    linear_weights: int
    macs: int
    seq_len: int
    bytes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def measure(subnetwork: Subnetwork, ranks: Mapping[str, int], seq_len: int, untied: bool = False) -> Sizes:
    """Measure one network."""
    architecture = subnetwork.architecture
    weights = _linear_weights(subnetwork, ranks)
    shapes = materialized_shapes(subnetwork, untied)
    return Sizes(
        parameters=sum(prod(shape) for shape in shapes.values()),
        linear_weights=sum(weights.values()),
        macs=_macs(subnetwork, weights, seq_len),
        seq_len=seq_len,
        bytes={name: _bytes(architecture, shapes, weight_format) for name, weight_format in FORMATS.items()},
    )


def _linear_weights(subnetwork: Subnetwork, ranks: Mapping[str, int]) -> dict[str, int]:
    """Weights of each linear layer and of its adapter, by module path."""

    def weights(name: str, active: Widths) -> int:
        rank = ranks.get(name, 0)
        rank = rank if active.rank is None else min(rank, active.rank)
        return active.out_features * active.in_features + rank * (active.out_features + active.in_features)

    return {name: weights(name, active) for name, active in subnetwork.linears.items()}


def _macs(subnetwork: Subnetwork, weights: Mapping[str, int], seq_len: int) -> int:
    architecture, task = subnetwork.architecture, subnetwork.architecture.family.kind
    outer_tokens = seq_len if task.head_per_token else 1
    total = sum(
        count * (seq_len if architecture.split(name)[0] else outer_tokens)
        for name, count in weights.items()
        if architecture.linears[name].used
    )
    rule = architecture.family.head_rule
    if not task.counts_attention or rule is None:
        return total
    readers = [f"{architecture.family.layer(index)}.{rule.consumer}" for index in range(architecture.config.num_hidden_layers)]
    channels = sum(subnetwork.linears[name].in_features for name in readers)
    return total + 2 * seq_len**2 * channels  # queries with keys, and weights with values


def kv_elements(subnetwork: Subnetwork) -> int:
    """Elements of keys and values that a token adds to the cache, over all layers; 0 for a classifier."""
    architecture, rule = subnetwork.architecture, subnetwork.architecture.family.head_rule
    cacheless = {architecture.split(block)[0] for block in subnetwork.removed if architecture.blocks[block].cached}
    total = 0
    for index in range(architecture.config.num_hidden_layers):
        layer = architecture.family.layer(index)
        whole = 0 if layer in cacheless else architecture.kv_width(layer)
        if rule and whole:  # query heads go with their keys and values
            consumer = f"{layer}.{rule.consumer}"
            whole = whole * subnetwork.linears[consumer].in_features // architecture.linears[consumer].in_features
        total += whole
    return total


def token_parameters(subnetwork: Subnetwork, untied: bool = False) -> int:
    """Parameters of the materialized model with a row for each token: embedding and head, a tied head counted once."""
    shapes = materialized_shapes(subnetwork, untied)
    return sum(prod(shapes[name]) for name in subnetwork.architecture.token_tables & shapes.keys())


def materialized_shapes(subnetwork: Subnetwork, untied: bool = False) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the materialized model by its name there.

    Layers are renumbered where whole ones are removed. `untied` where merging gives a tied head its own weight.
    """
    architecture = subnetwork.architecture
    shapes = architecture.shapes | (architecture.head if untied else {})
    inside = tuple(f"{module}." for module in architecture.absent(subnetwork.removed))
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(inside)}
    for name, active in subnetwork.linears.items():
        if f"{name}.weight" in shapes:
            shapes[f"{name}.weight"] = (active.out_features, active.in_features)
        if f"{name}.bias" in shapes:
            shapes[f"{name}.bias"] = (active.out_features,)
    return {architecture.renumbered(name, subnetwork.numbers): shape for name, shape in shapes.items()}


def _bytes(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], weight_format: WeightFormat) -> int:
    """Bytes of the weights in the IR: matrices in the format, everything else in fp32."""
    shapes = {name: shape for name, shape in shapes.items() if name not in architecture.unused}
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    outer = {name for name in matrices if not architecture.split(name)[0]} | architecture.eight_bits
    group = weight_format.group_size(shape[1] for name, shape in matrices.items() if name not in outer)
    rest = sum(prod(shape) for name, shape in shapes.items() if name not in matrices)
    total = sum(
        weight_format.chosen(name in outer, group).matrix_bytes(rows, columns, group)
        for name, (rows, columns) in matrices.items()
    )
    return round(total) + rest * 4
