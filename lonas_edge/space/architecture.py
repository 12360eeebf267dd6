"""Shapes of a model: every weight by name, from configurations alone, without weights or torch."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import SUPPORTED_MODEL_TYPES, Block, Family, Linear, ModelKind, WidthRule, family_of

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
        raise_all(f"{where}: not a usable model configuration:", family.config_errors(config))
        architecture = cls(family, config)
        unknown = [path for path in architecture.removed if path not in architecture.all_blocks]
        raise_all(f"{where}: {REMOVED} cannot be used:", [f"{path!r}: the model has no such block" for path in unknown])
        return architecture

    def require(self, kind: ModelKind, what: str) -> None:
        """Raise if the feature `what` does not work on the kind of the model."""
        if self.family.kind != kind:
            raise LonasEdgeError(f"{what} works on a {kind.name}; {self.model_type} is a {self.family.kind.name}")

    @property
    def model_type(self) -> str:
        """The configuration's `model_type`."""
        return str(self.config.model_type)

    @property
    def tied(self) -> bool:
        """Whether the language-model head shares the embedding's weight."""
        return self.family.tied(self.config)

    @cached_property
    def layers(self) -> dict[str, Any]:
        """The configuration of each decoder layer by its path.

        It has the layer's own widths, its kind as `layer_type` (None if all are of one), and `head_dim`.
        """
        configs = {}
        for index in range(self.config.num_hidden_layers):
            own = copy.copy(self.config)
            fields = self.family.layer_fields(self.config, index) | dict(self.per_layer.get(str(index), {}))
            for name, value in fields.items():
                setattr(own, name, value)
            configs[self.family.layer(index)] = own
        return configs

    def of_layer(self, path: str) -> Any:
        """The configuration of the decoder layer with or around a module path."""
        return self.layers[self.split(path)[0]]

    def split(self, module: str) -> tuple[str, str]:
        """Split a module path after its decoder layer: its path, or "" outside the layers, and the rest."""
        layers = self.family.layers + "."
        if not module.startswith(layers):
            return "", module
        index, _, relative = module.removeprefix(layers).partition(".")
        return layers + index, relative

    def renumber(self, name: str, numbers: Mapping[int, int]) -> str:
        """Give a module or parameter the new number of its decoder layer; outside the layers its name stays."""
        layer, relative = self.split(name)
        return f"{self.family.layer(numbers[int(layer.rpartition('.')[2])])}.{relative}" if layer else name

    # Weights

    @cached_property
    def linears(self) -> dict[str, Linear]:
        """Every linear layer by module path, including the head."""
        linears = {}
        for layer, own in self.layers.items():
            for linear in self.family.linears(own):
                name = f"{layer}.{linear.name}"
                if not name.startswith(self._absent):
                    linears[name] = replace(linear, name=name)
        return linears | {linear.name: linear for linear in self.family.other_linears(self.config)}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by its name in a checkpoint, without a tied head."""
        family, config = self.family, self.config
        shapes: dict[str, tuple[int, ...]] = {f"{name}.weight": shape for name, shape in family.embeddings(config).items()}
        for layer, own in self.layers.items():
            shapes |= {f"{layer}.{name}": (size,) for name, size in family.vectors(own).items()}
            shapes |= {f"{layer}.{name}": shape for name, shape in family.convolutions(own).items()}
        shapes = {name: shape for name, shape in shapes.items() if not name.startswith(self._absent)}
        shapes |= {name: (size,) for name, size in family.other_vectors(config).items()}
        for linear in self.linears.values():
            if linear.name != family.head or not self.tied:
                shapes |= linear.shapes
        return shapes

    @property
    def head(self) -> dict[str, tuple[int, ...]]:
        """Shape of the head's parameters by name, also of a tied head; empty without a head."""
        shapes: dict[str, tuple[int, ...]] = {}
        for name, linear in self.linears.items():
            if self.in_head(name):
                shapes |= linear.shapes
        return shapes

    def in_head(self, name: str) -> bool:
        """Whether a module or parameter belongs to the head."""
        return any(name == module or name.startswith(f"{module}.") for module in self.family.head_modules)

    @cached_property
    def token_tables(self) -> frozenset[str]:
        """Names of the parameters with a row for each token: those of the embedding, and of a language model's head."""
        embedding = f"{self.family.embedding}.weight"
        return frozenset({embedding, *self.head} if self.family.kind.generates else {embedding})

    @cached_property
    def eight_bits(self) -> frozenset[str]:
        """Names of the weights that no format with four bits applies to, except embedding and head."""
        return frozenset(f"{linear.name}.weight" for linear in self.linears.values() if not linear.four_bits)

    @cached_property
    def unused(self) -> frozenset[str]:
        """Names of the weights that the model does not compute with."""
        return frozenset(f"{linear.name}.weight" for linear in self.linears.values() if not linear.used)

    @property
    def default_targets(self) -> tuple[str, ...]:
        """Names of the layers with an adapter by default; hybrids have more kinds of layers."""
        leaves = {name.rpartition(".")[2] for name in self.linears}
        return tuple(name for name in self.family.default_targets if name in leaves)

    # Elastic widths

    @cached_property
    def rules(self) -> tuple[tuple[str, WidthRule], ...]:
        """Each elastic output width, with the path of its decoder layer."""
        pairs = [(layer, rule) for layer in self.layers for rule in self.family.width_rules]
        return tuple((layer, rule) for layer, rule in pairs if f"{layer}.{rule.consumer}" in self.linears)

    @cached_property
    def units(self) -> dict[str, int]:
        """Number of input channels that stay together, by module path, for each layer with an elastic input width."""
        return {f"{layer}.{rule.consumer}": rule.unit(self.layers[layer]) for layer, rule in self.rules}

    @cached_property
    def producers(self) -> dict[str, tuple[str, ...]]:
        """The layers that produce the input, by module path, for each layer with an elastic input width."""
        return {f"{layer}.{rule.consumer}": tuple(f"{layer}.{name}" for name in rule.producers) for layer, rule in self.rules}

    # Removable blocks

    @cached_property
    def all_blocks(self) -> dict[str, Block]:
        """The removable parts of decoder layers, or whole layers, by module path; also those that the model lacks."""
        blocks = {}
        for layer, own in self.layers.items():
            for block in self.family.blocks(own):
                blocks[f"{layer}.{block.module}".rstrip(".")] = block
        return blocks

    @cached_property
    def blocks(self) -> dict[str, Block]:
        """The blocks that the model has, by module path."""
        return {path: block for path, block in self.all_blocks.items() if path not in self.removed}

    @property
    def removed(self) -> tuple[str, ...]:
        """Module paths of the blocks that the model lacks: those that its configuration lists as removed."""
        return tuple(getattr(self.config, REMOVED, None) or ())

    def removed_modules(self, blocks: Collection[str]) -> tuple[str, ...]:
        """Module paths of removed blocks and of the norms that serve them alone."""
        modules = []
        for path in blocks:
            layer, _ = self.split(path)
            modules += [path, *(f"{layer}.{norm}" for norm in self.all_blocks[path].norms)]
        return tuple(modules)

    @cached_property
    def _absent(self) -> tuple[str, ...]:
        """Beginnings of the names of what the model lacks."""
        return tuple(f"{module}." for module in self.removed_modules(self.removed))

    @property
    def per_layer(self) -> Mapping[str, Mapping[str, int]]:
        """The widths in which decoder layers differ from the configuration's fields, by number of the layer."""
        return getattr(self.config, "per_layer_config", None) or {}

    @property
    def unequal(self) -> bool:
        """Whether layers differ in widths or blocks, which transformers' model class cannot express."""
        return bool(self.removed or self.per_layer)

    @property
    def context(self) -> int | None:
        """Longest sequence in tokens; None if it is not limited."""
        positions = getattr(self.config, "max_position_embeddings", None)
        return self.family.context(positions, getattr(self.config, "pad_token_id", None))

    @property
    def padding(self) -> int | None:
        """The token by which the model finds the end of a text; None where it needs none."""
        return self.config.pad_token_id if self.family.ends_at_padding else None

    def kv_elements(self) -> int:
        """Elements of keys and values that a token adds to the cache, over all layers."""
        return sum(map(self.kv_width, self.layers))

    def kv_width(self, layer: str) -> int:
        """Elements of keys and values that a token adds to the cache of the decoder layer with this path."""
        without = {self.split(path)[0] for path in self.removed if self.all_blocks[path].cached}
        return 0 if layer in without else self.family.kv_width(self.layers[layer])
