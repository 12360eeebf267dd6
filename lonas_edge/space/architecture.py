"""A model's shapes, and how a search space acts on them. From configurations alone: no weights, no torch modules.

`Architecture` knows every weight of a model by name and shape. `bind` lays a search space over it: which group decides the
output width, the input width and the rank of which linear layer. Everything downstream (sizes, activation, slicing) asks
`Elasticity.widths(subnetwork)` and does not look at groups again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import SUPPORTED_MODEL_TYPES, Family, Linear, family_of
from lonas_edge.space.search_space import Group, SearchSpace


@dataclass(frozen=True)
class Architecture:
    """The weights of a causal language model, by name and shape, from its Hugging Face configuration."""

    family: Family
    config: Any

    @classmethod
    def from_config(cls, config: Any, where: str) -> "Architecture":
        """Look up the family of a transformers configuration.

        Args:
            config: A `PretrainedConfig`.
            where: What to call the model in an error.

        Returns:
            The architecture.

        Raises:
            LonasEdgeError: If the model's family is not supported.
        """
        family = family_of(config.model_type)
        if family is None:
            raise LonasEdgeError(
                f"{where}: model_type {config.model_type!r} is not supported. Supported: {', '.join(SUPPORTED_MODEL_TYPES)}."
            )
        return cls(family, config)

    @property
    def model_type(self) -> str:
        """The configuration's `model_type`."""
        return self.config.model_type

    @property
    def tied(self) -> bool:
        """Whether the language-model head shares the embedding's weight."""
        return bool(self.config.tie_word_embeddings)

    @cached_property
    def linears(self) -> dict[str, Linear]:
        """Every linear layer by module path, language-model head included."""
        layers = range(self.config.num_hidden_layers)
        per_layer = self.family.linears(self.config)
        found = {}
        for index in layers:
            for linear in per_layer:
                name = f"{self.family.layer(index)}.{linear.name}"
                found[name] = replace(linear, name=name)
        head = Linear(self.family.head, self.config.vocab_size, self.config.hidden_size)
        return found | {head.name: head}

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every parameter by its name in a checkpoint. A tied head is not listed: it is the embedding."""
        shapes: dict[str, tuple[int, ...]] = {
            f"{self.family.embedding}.weight": (self.config.vocab_size, self.config.hidden_size)
        }
        for index in range(self.config.num_hidden_layers):
            prefix = self.family.layer(index)
            shapes |= {f"{prefix}.{name}": (size,) for name, size in self.family.norms(self.config).items()}
        shapes[f"{self.family.final_norm}.weight"] = (self.config.hidden_size,)
        for linear in self.linears.values():
            if linear.name == self.family.head and self.tied:
                continue
            shapes[f"{linear.name}.weight"] = (linear.out_features, linear.in_features)
            if linear.bias:
                shapes[f"{linear.name}.bias"] = (linear.out_features,)
        return shapes


@dataclass(frozen=True)
class Widths:
    """The active part of one linear layer: its first `out_features` rows, `in_features` columns and `rank` ranks.

    `rank` is None where no group decides it: the adapter's own rank stands.
    """

    out_features: int
    in_features: int
    rank: int | None = None


@dataclass(frozen=True)
class Elasticity:
    """A search space laid over an architecture. The three maps give, for a module path, the index of a group."""

    architecture: Architecture
    space: SearchSpace
    out_group: Mapping[str, int]
    in_group: Mapping[str, int]
    rank_group: Mapping[str, int]

    def widths(self, chosen: Sequence[int]) -> dict[str, Widths]:
        """The active part of every linear layer under one choice of widths.

        Args:
            chosen: One width a group, in group order.

        Returns:
            Widths by module path, for every linear layer.
        """

        def pick(groups: Mapping[str, int], module: str, full: int | None) -> int | None:
            return chosen[groups[module]] if module in groups else full

        return {
            name: Widths(
                pick(self.out_group, name, linear.out_features) or 0,
                pick(self.in_group, name, linear.in_features) or 0,
                pick(self.rank_group, name, None),
            )
            for name, linear in self.architecture.linears.items()
        }

    def layer_config(self, chosen: Sequence[int]) -> list[dict[str, int]]:
        """For each decoder layer, the configuration fields that the chosen widths change (`intermediate_size`)."""
        family, widths = self.architecture.family, self.widths(chosen)
        layers = range(self.architecture.config.num_hidden_layers)
        return [
            {rule.config_field: widths[f"{family.layer(index)}.{rule.consumer}"].in_features for rule in family.width_rules}
            for index in layers
        ]


def bind(architecture: Architecture, space: SearchSpace, where: str) -> Elasticity:
    """Lay a search space over a model.

    Args:
        architecture: The model.
        space: The search space.
        where: What to call the search space in an error.

    Returns:
        Which group decides what.

    Raises:
        LonasEdgeError: If the space does not fit the model; every misfit is listed.
    """
    out_group: dict[str, int] = {}
    in_group: dict[str, int] = {}
    rank_group: dict[str, int] = {}
    problems: list[str] = []
    for index, group in enumerate(space.groups):
        faults = _unknown_nodes(architecture, group)
        if not faults and group.kind == "rank":
            rank_group |= dict.fromkeys(group.modules, index)
        elif not faults:
            faults, consumers = _bind_width(architecture, group)
            faults += [f"{m} has its width from group {out_group[m]} already" for m in group.modules if m in out_group]
            out_group |= dict.fromkeys(group.modules, index)
            in_group |= dict.fromkeys(consumers, index)
        problems += [f"group {index}: {fault}" for fault in faults]
    if space.dynamic_inputs:
        problems.append(f"add_dynamic_inputs belongs to BERT-like models; {architecture.model_type} has no use for it")
    raise_all(
        f"{where}: the search space does not fit the model ({architecture.model_type}):",
        problems,
        "Take the configuration the adapter was trained with, or write one with `lonas-edge space`.",
    )
    return Elasticity(architecture, space, out_group, in_group, rank_group)


def _unknown_nodes(architecture: Architecture, group: Group) -> list[str]:
    last = architecture.config.num_hidden_layers - 1
    return [
        f"unknown node {member.node!r}: the model has no linear layer {member.module!r} (decoder layers 0 to {last})"
        for member in group.members
        if member.module not in architecture.linears
    ]


def _split_layer_path(architecture: Architecture, module: str) -> tuple[str, str]:
    """`model.layers.3.mlp.gate_proj` -> (`model.layers.3`, `mlp.gate_proj`); a module outside the layers has no prefix."""
    layers = architecture.family.layers + "."
    if not module.startswith(layers):
        return "", module
    index, _, relative = module.removeprefix(layers).partition(".")
    return layers + index, relative


def _bind_width(architecture: Architecture, group: Group) -> tuple[list[str], list[str]]:
    """Check an output-width group against the family's rules; returns faults and the consumers that shrink with it."""
    family = architecture.family
    by_layer: dict[str, list[str]] = {}
    for module in group.modules:
        prefix, relative = _split_layer_path(architecture, module)
        by_layer.setdefault(prefix, []).append(relative)
    faults = _width_misfits(architecture, group)
    consumers = []
    for prefix, names in by_layer.items():
        for relative in names:
            rule = next((rule for rule in family.width_rules if relative in rule.producers), None)
            if rule is None:
                reason = family.refused_widths.get(relative, "no rule says what consumes it")
                faults.append(
                    f"elastic output width of {prefix}.{relative} is not supported for {architecture.model_type}: {reason}"
                )
                continue
            missing = sorted(set(rule.producers) - set(names))
            if missing:
                faults.append(f"{prefix}.{relative} is elastic without {', '.join(missing)}, which must share its width")
            consumers.append(f"{prefix}.{rule.consumer}")
    return faults, list(dict.fromkeys(consumers))


def _width_misfits(architecture: Architecture, group: Group) -> list[str]:
    faults = []
    for module in group.modules:
        full = architecture.linears[module].out_features
        faults += [f"width {w} of {module} is larger than the layer, which has {full}" for w in group.widths if w > full]
        head_dim = getattr(architecture.config, "head_dim", None) or (
            architecture.config.hidden_size // architecture.config.num_attention_heads
        )
        if _split_layer_path(architecture, module)[1].startswith("self_attn."):
            splits = [width for width in group.widths if width % head_dim]
            if splits:
                faults.append(f"widths {splits} of {module} split a head; expected multiples of {head_dim}")
    return faults
