"""A sub-network: one width picked from each group of a search space, what is then active in the model, and its sizes.

No weights are read.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from typing import Any

from lonas_edge.families import NOTHING, Linear, LinearPart
from lonas_edge.formats import FORMATS, WeightFormat
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity
from lonas_edge.space.search_space import SearchSpace


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


@dataclass(frozen=True)
class SearchOrigin:
    """How a search found a sub-network."""

    quality: str  # name of the quality
    quality_value: float  # in its unit
    cost: str  # name of the cost
    cost_value: float  # in its unit
    units: dict[str, str]  # of both, by name
    weight_format: str  # of the IR whose cost it is
    proposed_by: str  # `seed:…`, a sampler, or `refined`
    evaluation: int  # index among the evaluations, from 0 on
    evaluations: int  # number of evaluations
    prompts: int  # number of prompts that each was scored on
    super_adapter: dict[str, str] | None  # SHA-256 by file name, where there is an adapter; another one has other sub-networks


@dataclass(frozen=True)
class Subnetwork:
    """One width of each group of a search space that is laid over a model.

    Attributes:
        elasticity: The search space laid over the model.
        widths: In group order.
        name: How the widths were chosen.
        origin: The search that proposed them, if one did.
    """

    elasticity: Elasticity
    widths: tuple[int, ...]
    name: str = ""
    origin: SearchOrigin | None = None

    @property
    def architecture(self) -> Architecture:
        """The model's shapes."""
        return self.elasticity.architecture

    @property
    def by_group(self) -> dict[str, int]:
        """Widths by group name."""
        return dict(zip(self.elasticity.group_names, self.widths, strict=True))

    @property
    def canonical(self) -> tuple[int, ...]:
        """Widths that are equal for equal networks; see `Elasticity.canonical`."""
        return self.elasticity.canonical(self.widths)

    # What is active

    @cached_property
    def removed(self) -> tuple[str, ...]:
        """Module paths of the removed blocks, in the model's order."""
        return self.elasticity.removed(self.widths)

    @cached_property
    def numbers(self) -> dict[int, int]:
        """Number of each decoder layer in the materialized model, by its index in the base; without those removed whole.

        These are layers of which nothing is left, too, where layers do not depend on their number.
        """
        architecture = self.architecture
        gone = {*architecture.removed, *self.removed}
        left = {architecture.split(path)[0] for path in architecture.all_blocks if path not in gone}
        kept = [
            index
            for index, layer in enumerate(architecture.layers)
            if layer in left or not (layer in gone or architecture.family.renumbers)
        ]
        return {index: number for number, index in enumerate(kept)}

    @cached_property
    def linears(self) -> dict[str, LinearPart]:
        """The active part of every linear layer by module path; `NOTHING` inside a removed block."""
        removed = tuple(f"{block}." for block in self.removed)
        linears = self.architecture.linears
        return {name: NOTHING if name.startswith(removed) else self._active(linear) for name, linear in linears.items()}

    def _active(self, linear: Linear) -> LinearPart:
        name, elasticity = linear.name, self.elasticity
        full = elasticity.rules[name].full(self.architecture.of_layer(name)) if name in elasticity.rules else 1
        out_width = self._width(elasticity.out_group, name) or full
        in_width = self._width(elasticity.in_group, name) or full
        return linear.part(out_width, in_width, full, self._width(elasticity.rank_group, name))

    def _width(self, groups: Mapping[str, int], module: str) -> int | None:
        """The chosen width of a module's group, if it has one."""
        return self.widths[groups[module]] if module in groups else None

    def layer_fields(self) -> list[dict[str, int]]:
        """The configuration fields that widths decide, per decoder layer; a removed block has none."""
        architecture = self.architecture
        removed = tuple(f"{block}." for block in (*architecture.removed, *self.removed))
        layers = []
        for layer, config in architecture.layers.items():
            fields: dict[str, int] = {}
            for rule in architecture.family.width_rules:
                consumer = f"{layer}.{rule.consumer}"
                if not consumer.startswith(removed):
                    width = self._width(self.elasticity.in_group, consumer) or rule.full(config)
                    fields |= rule.fields(config, width)
            layers.append(fields)
        return layers

    def attention_fields(self) -> dict[str, dict[str, int]]:
        """The numbers of heads of each attention whose heads are elastic, by module path."""
        architecture, rule = self.architecture, self.architecture.family.head_rule
        fields = {}
        for path, block in architecture.blocks.items():
            layer, _ = architecture.split(path)
            if rule and block.cached and (width := self._width(self.elasticity.in_group, f"{layer}.{rule.consumer}")):
                fields[path] = rule.fields(architecture.of_layer(path), width)
        return fields

    # Sizes

    def shapes(self, untied: bool = False) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor of the materialized model by its name there.

        Layers are renumbered where whole ones are removed. `untied` where merging gives a tied head its own weight.
        """
        architecture = self.architecture
        absent = tuple(f"{module}." for module in architecture.removed_modules(self.removed))
        shapes = {}
        for name, shape in (architecture.shapes | (architecture.head if untied else {})).items():
            if name.startswith(absent):
                continue
            module, _, parameter = name.rpartition(".")
            if active := self.linears.get(module):
                shape = (active.out_features, active.in_features) if parameter == "weight" else (active.out_features,)
            shapes[architecture.renumber(name, self.numbers)] = shape
        return shapes

    def sizes(self, ranks: Mapping[str, int], seq_len: int, untied: bool = False) -> Sizes:
        """Count the sizes; `ranks` are those of the adapter by module path, `untied` as of `shapes`."""
        weights = {}
        for name, active in self.linears.items():
            rank = ranks.get(name, 0) if active.rank is None else min(ranks.get(name, 0), active.rank)
            weights[name] = active.out_features * active.in_features + rank * (active.out_features + active.in_features)
        shapes = self.shapes(untied)
        return Sizes(
            parameters=sum(map(prod, shapes.values())),
            linear_weights=sum(weights.values()),
            macs=self._macs(weights, seq_len),
            seq_len=seq_len,
            bytes={name: _bytes(self.architecture, shapes, weight_format) for name, weight_format in FORMATS.items()},
        )

    def _macs(self, weights: Mapping[str, int], seq_len: int) -> int:
        architecture, kind = self.architecture, self.architecture.family.kind
        total = 0
        for name, count in weights.items():
            per_token = bool(architecture.split(name)[0]) or kind.head_per_token
            total += count * (seq_len if per_token else 1) * architecture.linears[name].used
        rule = architecture.family.head_rule
        if kind.counts_attention and rule:  # queries with keys, and weights with values
            consumers = [f"{layer}.{rule.consumer}" for layer in architecture.layers]
            channels = sum(self.linears[name].in_features for name in consumers if name in self.linears)
            total += 2 * seq_len**2 * channels
        return total

    def kv_elements(self) -> int:
        """Elements of keys and values that a token adds to the cache, over all layers; 0 for an encoder."""
        architecture, rule = self.architecture, self.architecture.family.head_rule
        without = {architecture.split(path)[0] for path in self.removed if architecture.blocks[path].cached}
        total = 0
        for layer in architecture.layers.keys() - without:
            elements = architecture.kv_width(layer)
            if rule and elements:  # query heads go with their keys and values
                consumer = f"{layer}.{rule.consumer}"
                elements = elements * self.linears[consumer].in_features // architecture.linears[consumer].in_features
            total += elements
        return total

    def token_parameters(self, untied: bool = False) -> int:
        """Parameters of the materialized model with a row for each token: embedding and head, a tied head counted once."""
        shapes = self.shapes(untied)
        return sum(prod(shapes[name]) for name in self.architecture.token_tables & shapes.keys())


def _bytes(architecture: Architecture, shapes: Mapping[str, tuple[int, ...]], weight_format: WeightFormat) -> int:
    """Bytes of the weights in the IR: matrices in the format, everything else in fp32."""
    used = {name: shape for name, shape in shapes.items() if name not in architecture.unused}
    matrices = {name: shape for name, shape in used.items() if len(shape) == 2}
    eight = {name for name in matrices if not architecture.split(name)[0]} | architecture.eight_bits
    group = weight_format.group_size(shape[1] for name, shape in matrices.items() if name not in eight)
    total = 0.0
    for name, (rows, columns) in matrices.items():
        total += weight_format.chosen(name in eight, group).matrix_bytes(rows, columns, group)
    return round(total) + 4 * sum(prod(shape) for name, shape in used.items() if name not in matrices)


def unpruned(architecture: Architecture) -> Subnetwork:
    """The whole model as a sub-network of a search space without groups."""
    return Subnetwork(Elasticity(architecture, SearchSpace()), (), "unpruned")
