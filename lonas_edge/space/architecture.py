"""Shapes of a model: every weight by name, from configurations alone, without weights or torch."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import (
    SUPPORTED_MODEL_TYPES,
    Block,
    Family,
    Linear,
    ModelKind,
    WidthRule,
    family_of,
    key_value_heads,
)

REMOVED = "removed_blocks"  # of a materialized model's config.json: module paths


@dataclass(frozen=True)
class Architecture:
    """The weights of a model, by name and shape, from its Hugging Face configuration."""

    family: Family
    config: Any

    @classmethod
    def from_config(cls, config: Any, where: str) -> "Architecture":
        """Look up the family of a `PretrainedConfig` and of the class that it names; `where` is its name in errors."""
        family = family_of(config.model_type, classes=config.architectures or ())
        if family is None:
            raise LonasEdgeError(
                f"{where}: model_type {config.model_type!r} is not supported. Supported: {', '.join(SUPPORTED_MODEL_TYPES)}."
            )
        raise_all(f"{where}: not a usable model configuration:", family.faults(config))
        architecture = cls(family, config)
        raise_all(f"{where}: per_layer_config cannot be used:", architecture._per_layer_faults())
        unknown = [
            f"{block!r}: the model has no such block" for block in architecture.removed if block not in architecture.all_blocks
        ]
        raise_all(f"{where}: {REMOVED} cannot be used:", unknown or architecture.staying(architecture.removed))
        return architecture

    def _per_layer_faults(self) -> list[str]:
        layers = {str(index) for index in range(self.config.num_hidden_layers)}
        faults = [f"{index!r}: the model has no such decoder layer" for index in self.per_layer if index not in layers]
        widths = self.family.whole_fields(self.config).keys()
        changed = {field for changes in self.per_layer.values() for field in changes}
        faults += [f"{field}: expected {', '.join(sorted(widths))}" for field in sorted(changed - widths)]
        return faults or [fault for index in sorted(self.per_layer) for fault in self._head_faults(index)]

    def _head_faults(self, index: str) -> list[str]:
        """The conversion cuts a layer's cache from one with the model's own number of key-value heads."""
        own, most = self.of_layer(self.family.layer(int(index))), key_value_heads(self.config)
        heads, groups = own.num_attention_heads, key_value_heads(own)
        wanted = f"expected at most {most} key-value heads, which divide the query heads"
        return [] if groups <= most and heads % groups == 0 else [f"layer {index}: {wanted}; found {groups} and {heads}"]

    def require(self, kind: ModelKind, what: str, said_by: Path | None = None) -> None:
        """Raise if the feature `what` does not work on the kind of the model, which the file `said_by` defines."""
        if self.family.kind != kind:
            where = f" ({said_by})" if said_by else ""
            raise LonasEdgeError(f"{what} works on a {kind.name}; {self.model_type} is a {self.family.kind.name}{where}")

    @property
    def model_type(self) -> str:
        """The configuration's `model_type`."""
        return str(self.config.model_type)

    @property
    def tied(self) -> bool:
        """Whether the language-model head shares the embedding's weight."""
        return self.family.tied(self.config)

    @cached_property
    def linears(self) -> dict[str, Linear]:
        """Every linear layer by module path, including the head."""
        linears = {}
        for index, own in enumerate(self._layers):
            for linear in self.family.linears(own):
                name = f"{self.family.layer(index)}.{linear.name}"
                if not name.startswith(self._gone):
                    linears[name] = replace(linear, name=name)
        return linears | {linear.name: linear for linear in self.family.outer_linears(self.config)}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by its name in a checkpoint, without a tied head."""
        family, config = self.family, self.config
        shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in family.embeddings(config).items()}
        for index, own in enumerate(self._layers):
            layer = family.layer(index)
            shapes |= {f"{layer}.{name}": (size,) for name, size in family.vectors(own).items()}
            shapes |= {f"{layer}.{name}": shape for name, shape in family.convolutions(own).items()}
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(self._gone)}
        shapes |= {name: (size,) for name, size in family.outer_vectors(config).items()}
        for linear in self.linears.values():
            if linear.name == family.head and self.tied:
                continue
            shapes[f"{linear.name}.weight"] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[f"{linear.name}.bias"] = (linear.out_features,)
        return shapes

    @property
    def head(self) -> dict[str, tuple[int, ...]]:
        """Shape of the head's parameters by name, also of a tied head; empty without a head."""
        shapes: dict[str, tuple[int, ...]] = {}
        for linear in (linear for name, linear in self.linears.items() if self.in_head(name)):
            shapes[f"{linear.name}.weight"] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[f"{linear.name}.bias"] = (linear.out_features,)
        return shapes

    def in_head(self, name: str) -> bool:
        """Whether a module or parameter belongs to the head."""
        return any(name == module or name.startswith(f"{module}.") for module in self.family.head_modules)

    @cached_property
    def token_tables(self) -> frozenset[str]:
        """Names of the parameters with a row for each token: those of the embedding, and of a language model's head."""
        embedding = f"{self.family.embedding}.weight"
        return frozenset({embedding, *self.head} if self.family.kind.generates else {embedding})

    @property
    def default_targets(self) -> tuple[str, ...]:
        """Names of the layers with an adapter by default; hybrids have more kinds of layers."""
        leaves = {name.rpartition(".")[2] for name in self.linears}
        return tuple(name for name in self.family.default_targets if name in leaves)

    @cached_property
    def eight_bits(self) -> frozenset[str]:
        """Names of the weights that no format with four bits applies to, except embedding and head."""
        return frozenset(f"{linear.name}.weight" for linear in self.linears.values() if not linear.four_bits)

    @cached_property
    def unused(self) -> frozenset[str]:
        """Names of the weights that the model does not compute with."""
        return frozenset(f"{linear.name}.weight" for linear in self.linears.values() if not linear.used)

    @cached_property
    def rules(self) -> tuple[tuple[str, WidthRule], ...]:
        """Each elastic output width, with the path of its decoder layer."""
        layers = map(self.family.layer, range(self.config.num_hidden_layers))
        pairs = ((layer, rule) for layer in layers for rule in self.family.width_rules)
        return tuple((layer, rule) for layer, rule in pairs if f"{layer}.{rule.consumer}" in self.linears)

    @cached_property
    def units(self) -> dict[str, int]:
        """Number of input channels that stay together, by module path, for each layer with an elastic input width."""
        return {f"{layer}.{rule.consumer}": rule.unit(self.of_layer(layer)) for layer, rule in self.rules}

    @cached_property
    def producers(self) -> dict[str, tuple[str, ...]]:
        """The layers that produce the input, by module path, for each layer with an elastic input width."""
        return {f"{layer}.{rule.consumer}": tuple(f"{layer}.{name}" for name in rule.producers) for layer, rule in self.rules}

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens; None if it is not limited."""
        positions = getattr(self.config, "max_position_embeddings", None)
        return self.family.context(positions, getattr(self.config, "pad_token_id", None))

    @cached_property
    def all_blocks(self) -> dict[str, Block]:
        """The removable parts of decoder layers, or whole layers, by module path; also those that the model lacks."""
        family, layers = self.family, enumerate(self._layers)
        pairs = ((family.layer(index), block) for index, own in layers for block in family.blocks(own))
        return {f"{layer}.{block.module}".rstrip("."): block for layer, block in pairs}

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """The blocks that the model has, by module path."""
        return {path: block for path, block in self.all_blocks.items() if path not in self.removed}

    def staying(self, removed: Collection[str]) -> list[str]:
        """List those of some blocks that cannot be removed, with the reason."""
        reasons = {module: self.all_blocks[module].stays for module in removed}
        return [f"{module} cannot be removed: {reason}" for module, reason in reasons.items() if reason]

    @property
    def removed(self) -> tuple[str, ...]:
        """Module paths of the blocks that the model lacks: those that its configuration lists as removed."""
        return tuple(getattr(self.config, REMOVED, None) or ())

    @cached_property
    def _gone(self) -> tuple[str, ...]:
        """Beginnings of the names of what the model lacks."""
        return tuple(f"{module}." for module in self.absent(self.removed))

    @property
    def per_layer(self) -> Mapping[str, Mapping[str, int]]:
        """The widths in which decoder layers differ from the configuration's fields, by number of the layer."""
        return getattr(self.config, "per_layer_config", None) or {}

    @property
    def unequal(self) -> bool:
        """Whether layers differ in widths or blocks, which transformers' model class cannot express."""
        return bool(self.removed or self.per_layer)

    def absent(self, removed: Collection[str]) -> tuple[str, ...]:
        """Module paths of removed blocks and of the norms that serve them alone."""
        layers = {block: self.split(block)[0] for block in removed}
        return tuple(p for b in removed for p in (b, *(f"{layers[b]}.{norm}" for norm in self.all_blocks[b].norms)))

    def kv_elements(self) -> int:
        """Elements of keys and values that a token adds to the cache, over all layers."""
        return sum(self.kv_width(self.family.layer(index)) for index in range(len(self._layers)))

    def kv_width(self, layer: str) -> int:
        """Elements of keys and values that a token adds to the cache of the decoder layer with this path."""
        cached = {self.split(block)[0] for block in self.removed if self.all_blocks[block].cached}
        return 0 if layer in cached else self.family.kv_width(self.of_layer(layer))

    def of_layer(self, path: str) -> Any:
        """The configuration of the decoder layer with or around a module path.

        It has the layer's own widths, its kind as `layer_type` (None if all are of one), and `head_dim`.
        """
        return self._layers[int(self.split(path)[0].rpartition(".")[2])]

    @cached_property
    def _layers(self) -> tuple[Any, ...]:
        layers = []
        for index in range(self.config.num_hidden_layers):
            own = copy.copy(self.config)
            fields = self.family.layer_fields(self.config, index) | dict(self.per_layer.get(str(index), {}))
            for name, value in fields.items():
                setattr(own, name, value)
            layers.append(own)
        return tuple(layers)

    def inner_width(self) -> int:
        """The largest width of a token inside a decoder layer: outputs of the layers with an elastic width."""
        widths = (sum(self.linears[f"{layer}.{name}"].out_features for name in rule.producers) for layer, rule in self.rules)
        return max(widths, default=0)

    def split(self, module: str) -> tuple[str, str]:
        """Split a module path after its decoder layer: its path, or "" outside the layers, and the rest."""
        layers = self.family.layers + "."
        if not module.startswith(layers):
            return "", module
        index, _, relative = module.removeprefix(layers).partition(".")
        return layers + index, relative

    def renumbered(self, name: str, numbers: Mapping[int, int]) -> str:
        """The name of a module or parameter with the new number of its decoder layer; outside the layers it stays."""
        layer, relative = self.split(name)
        return f"{self.family.layer(numbers[int(layer.rpartition('.')[2])])}.{relative}" if layer else name
