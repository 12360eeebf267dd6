"""Sizes of a sub-network from configurations alone: parameters, linear weights, MACs, bytes. No weights are read."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from lonas_edge.families import Linear
from lonas_edge.formats import FORMATS, WeightFormat
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity, Widths


@dataclass(frozen=True)
class Sizes:
    """Sizes of one network.

    Attributes:
        parameters: Parameters of the materialized (merged) model, a tied head counted once.
        linear_weights: Weights of the linear layers, language-model head and unmerged adapters included; embeddings, norms
            and biases not. The adapter cards call this "total params".
        macs: Multiply-accumulates of those weights for one sequence of `seq_len` tokens, as the cards count them, which call
            this "TFLOPs": a classifier's have those of attention itself, and pooler and head compute once a sequence.
        seq_len: Sequence length in tokens.
        bytes: Bytes of the materialized model's weights at each weight format of an export.
    """

    parameters: int
    linear_weights: int
    macs: int
    seq_len: int
    bytes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def measure(
    elasticity: Elasticity, ranks: Mapping[str, int], chosen: Sequence[int] | None, seq_len: int, untied: bool = False
) -> Sizes:
    """Measure one network.

    Args:
        elasticity: The search space laid over the base model.
        ranks: The adapter's rank by module path.
        chosen: The sub-network's widths in group order; None for the unpruned LoRA model.
        seq_len: Sequence length of the MACs, in tokens.
        untied: Whether merging gives a tied head a weight of its own.

    Returns:
        The sizes.
    """
    architecture = elasticity.architecture
    weights = _linear_weights(elasticity, ranks, chosen)
    shapes = materialized_shapes(elasticity, chosen, untied)
    return Sizes(
        parameters=sum(prod(shape) for shape in shapes.values()),
        linear_weights=sum(weights.values()),
        macs=_macs(elasticity, weights, chosen, seq_len),
        seq_len=seq_len,
        bytes={name: _bytes(architecture, shapes, weight_format) for name, weight_format in FORMATS.items()},
    )


def _linear_weights(elasticity: Elasticity, ranks: Mapping[str, int], chosen: Sequence[int] | None) -> dict[str, int]:
    """Weights of each linear layer and of its adapter, by module path."""
    found = {}
    widths = elasticity.widths(chosen) if chosen is not None else None
    for name, linear in elasticity.architecture.linears.items():
        out, columns, rank = linear.out_features, linear.in_features, ranks.get(name, 0)
        if widths:
            out, columns = widths[name].out_features, widths[name].in_features
            chosen_rank = widths[name].rank
            rank = rank if chosen_rank is None else min(rank, chosen_rank)
        found[name] = out * columns + rank * (out + columns)
    return found


def _macs(elasticity: Elasticity, weights: Mapping[str, int], chosen: Sequence[int] | None, seq_len: int) -> int:
    architecture, task = elasticity.architecture, elasticity.architecture.family.task
    behind = seq_len if task.head_per_token else 1
    total = sum(count * (seq_len if architecture.split(name)[0] else behind) for name, count in weights.items())
    rule = architecture.family.head_rule
    if not task.counts_attention or rule is None:
        return total
    layers: Mapping[str, Linear | Widths] = architecture.linears if chosen is None else elasticity.widths(chosen)
    readers = [f"{architecture.family.layer(index)}.{rule.consumer}" for index in range(architecture.config.num_hidden_layers)]
    channels = sum(layers[name].in_features for name in readers)
    return total + 2 * seq_len**2 * channels  # queries with keys, and weights with values


def kv_elements(elasticity: Elasticity, chosen: Sequence[int] | None) -> int:
    """Elements of keys and values that a token adds to the cache of a network.

    Args:
        elasticity: The search space laid over the base model.
        chosen: The sub-network's widths in group order; None for the unpruned model.

    Returns:
        How many, over all layers; 0 of a classifier, which has no cache.
    """
    architecture, rule = elasticity.architecture, elasticity.architecture.family.head_rule
    if chosen is None:
        return architecture.kv_elements()
    layers = map(architecture.family.layer, range(architecture.config.num_hidden_layers))
    gone = {architecture.split(block)[0] for block in elasticity.left_out(chosen) if architecture.blocks[block].cached}
    widths, total = elasticity.widths(chosen), 0
    for index, layer in enumerate(layers):
        whole = 0 if layer in gone else architecture.family.kv_width(architecture.layer_config(index))
        reader = f"{layer}.{rule.consumer}" if rule else None  # query heads go with their keys and values
        total += whole * widths[reader].in_features // architecture.linears[reader].in_features if reader else whole
    return total


def materialized_shapes(
    elasticity: Elasticity, chosen: Sequence[int] | None, untied: bool = False
) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of the materialized model.

    Args:
        elasticity: The search space laid over the base model.
        chosen: The sub-network's widths in group order; None for the unpruned model.
        untied: Whether merging gives a tied head a weight of its own.

    Returns:
        Shapes by tensor name.
    """
    architecture = elasticity.architecture
    shapes = dict(architecture.shapes)
    if untied:
        shapes |= architecture.head
    if chosen is None:
        return shapes
    absent = architecture.absent(elasticity.left_out(chosen))
    inside = tuple(f"{module}." for module in absent)
    shapes = {name: shape for name, shape in shapes.items() if not name.startswith(inside)}
    for name, active in elasticity.widths(chosen).items():
        if f"{name}.weight" in shapes:
            shapes[f"{name}.weight"] = (active.out_features, active.in_features)
        if f"{name}.bias" in shapes:
            shapes[f"{name}.bias"] = (active.out_features,)
    return shapes


def _bytes(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], weight_format: WeightFormat) -> int:
    """Bytes of the weights in the IR: matrices in the format, everything else in fp32."""
    matrices = {name: shape for name, shape in shapes.items() if len(shape) == 2}
    outer = {name for name in matrices if not architecture.split(name)[0]}
    group = weight_format.group_size(shape[1] for name, shape in matrices.items() if name not in outer)
    rest = sum(prod(shape) for name, shape in shapes.items() if name not in matrices)
    total = sum(
        weight_format.chosen(name in outer, group).matrix_bytes(rows, columns, group)
        for name, (rows, columns) in matrices.items()
    )
    return round(total) + rest * 4
