"""A search space laid over a model's shapes: which groups decide the widths and ranks of linear layers, and which remove
blocks.

Everything downstream (sizes, activation, slicing) asks a `Subnetwork` what is active, and does not look at groups again.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cached_property
from typing import Any

from lonas_edge.errors import raise_all
from lonas_edge.families import FAMILIES, HeadRule, Part, WidthRule, head_dim
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.search_space import Group, Member, SearchSpace


@dataclass(frozen=True)
class Widths:
    """The active part of one linear layer: ranges of rows and columns, and its first `rank` ranks (None: the adapter's own)."""

    rows: Part
    columns: Part
    rank: int | None = None

    @classmethod
    def first(cls, out_features: int, in_features: int, rank: int | None = None) -> "Widths":
        """The first rows and columns: the part of a layer that is not fused."""
        return cls(((0, out_features),), ((0, in_features),), rank)

    @property
    def out_features(self) -> int:
        """Active rows."""
        return sum(stop - start for start, stop in self.rows)

    @property
    def in_features(self) -> int:
        """Active columns."""
        return sum(stop - start for start, stop in self.columns)


_MODEL_CLASS = re.compile(r"/(\w+)\[model\]/")  # of a node name
NOTHING = Widths((), (), 0)  # of a layer in a removed block


@dataclass(frozen=True, eq=False)
class Elasticity:
    """A search space laid over an architecture. The maps give the index of a group by module path; `rules` are those of its
    layers.
    """

    architecture: Architecture
    space: SearchSpace
    out_group: Mapping[str, int]
    in_group: Mapping[str, int]
    rank_group: Mapping[str, int]
    rules: Mapping[str, WidthRule]
    block_group: Mapping[str, int] = field(default_factory=dict)

    @cached_property
    def maximal(self) -> tuple[int, ...]:
        """The widths of the maximal network, in group order."""
        return tuple(group.widths[0] for group in self.space.groups)

    @cached_property
    def group_names(self) -> tuple[str, ...]:
        """A readable name per group, independent of the order of groups: `layers.3.mlp.width`, `layers.0.self_attn.rank`.

        Blocks that can be removed are called by their path (`layers.3.mlp`, or `layers.3` for the whole layer). Names hold the
        modules that contain the group's layers, or the layers themselves where two groups would otherwise share a name.
        """
        short = [self._group_name(group, whole=False) for group in self.space.groups]
        return tuple(
            name if short.count(name) == 1 else self._group_name(group, whole=True)
            for name, group in zip(short, self.space.groups, strict=True)
        )

    def _group_name(self, group: Group, whole: bool) -> str:
        owners = []
        for module in group.modules:
            layer, relative = self.architecture.split(module)
            if group.kind != "block" and not whole:
                relative = relative.rpartition(".")[0]
            owners.append(f"layers.{layer.rpartition('.')[2]}.{relative}".rstrip(".") if layer else module)
        joined = "+".join(dict.fromkeys(owners))
        return joined if group.kind == "block" else f"{joined}.{group.kind}"

    def removed(self, widths: Sequence[int]) -> tuple[str, ...]:
        """Module paths of the blocks that widths (in group order) remove, in the model's order."""
        groups = self.block_group
        return tuple(block for block in self.architecture.blocks if block in groups and widths[groups[block]] == 0)

    def canonical(self, widths: Sequence[int]) -> tuple[int, ...]:
        """The same network with the widest value in groups that decide nothing, since their blocks are removed.

        Two choices of widths are the same network if their canonical widths are equal.
        """
        removed = tuple(f"{block}." for block in self.removed(widths))
        unused = (
            group.kind != "block" and all(module.startswith(removed) for module in group.modules) for group in self.space.groups
        )
        return tuple(most if idle else own for most, own, idle in zip(self.maximal, widths, unused, strict=True))

    @cached_property
    def inside(self) -> dict[int, int]:
        """Index of the block group that holds all layers of a width or rank group, by the index of the latter."""
        blocks = {f"{block}.": index for block, index in self.block_group.items()}
        held: dict[int, int] = {}
        for index, group in enumerate(self.space.groups):
            around = {next((i for b, i in blocks.items() if module.startswith(b)), None) for module in group.modules}
            if group.kind != "block" and len(around) == 1 and (only := around.pop()) is not None:
                held[index] = only
        return held


def bind(architecture: Architecture, space: SearchSpace, where: str) -> Elasticity:
    """Lay a search space over a model and check that it fits; `where` is the space's name in errors.

    A space of the same model type with another task is taken under this task's module paths.
    """
    space = _renamed(architecture, space)
    out: dict[str, int] = {}
    inputs: dict[str, int] = {}
    ranks: dict[str, int] = {}
    rules: dict[str, WidthRule] = {}
    blocks: dict[str, int] = {}
    problems = _of_another_model(architecture, space)
    for index, group in enumerate(() if problems else space.groups):
        faults = _unknown_blocks(architecture, group) if group.kind == "block" else _unknown_nodes(architecture, group)
        if not faults and group.kind == "rank":
            ranks |= dict.fromkeys(group.modules, index)
        elif not faults and group.kind == "block":
            blocks |= dict.fromkeys(group.modules, index)
        elif not faults:
            faults, narrowed = _bind_width(architecture, group)
            faults = list(dict.fromkeys(faults))
            faults += [f"{m} is in group {out[m]} too" for m in group.modules if m in out]
            out |= dict.fromkeys(group.modules, index)
            inputs |= {name: index for name in narrowed if name not in group.modules}
            rules |= narrowed
        problems += [f"group {index}: {fault}" for fault in faults]
    needed = {name: block for name, block in architecture.blocks.items() if block.needed}
    if needed and needed.keys() <= blocks.keys():
        what = "every layer" if any(block.whole for block in needed.values()) else "every layer's attention"
        problems.append(f"{what} is removable, so the minimal network would have none; delete one from the groups")
    raise_all(
        f"{where}: the search space does not fit the model ({architecture.model_type}):",
        problems,
        "Use the configuration that the adapter was trained with, or write one with `lonas-edge space`.",
    )
    return Elasticity(architecture, space, out, inputs, ranks, rules, blocks)


def _renamed(architecture: Architecture, space: SearchSpace) -> SearchSpace:
    """The space with this task's module paths; another task of the model type has another prefix of the body's modules."""
    ours = architecture.family.prefix
    others = {family.prefix for family in FAMILIES if architecture.model_type in family.model_types} - {ours}
    known = architecture.linears.keys() | architecture.blocks.keys()

    def named(member: Member) -> Member:
        paths = [ours + member.module.removeprefix(other) for other in others if member.module.startswith(other)]
        paths = [] if member.module in known else [path for path in paths if path in known]
        return replace(member, module=paths[0]) if paths else member

    groups = (replace(group, members=tuple(map(named, group.members))) for group in space.groups)
    return replace(space, groups=tuple(groups)) if others else space


def _of_another_model(architecture: Architecture, space: SearchSpace) -> list[str]:
    """One line if all groups name the classes of another model."""
    nodes = [member.node for group in space.groups if group.kind != "block" for member in group.members]
    modules = [member.module for group in space.groups if group.kind != "block" for member in group.members]
    if not modules or any(module in architecture.linears for module in modules):
        return []
    theirs = {match[1] for node in nodes if (match := _MODEL_CLASS.search(node))}
    ours = architecture.family.class_names[architecture.model_type]["model"]
    if len(theirs) != 1 or ours in theirs:
        return []
    return [f"its {len(nodes)} nodes belong to {theirs.pop()}; the model is a {ours}"]


def _unknown_blocks(architecture: Architecture, group: Group) -> list[str]:
    if not architecture.blocks:
        return [f"elastic depth is not supported for {architecture.model_type}; its blocks cannot be removed"]
    last = architecture.config.num_hidden_layers - 1
    parts = list(dict.fromkeys(block.module for block in architecture.blocks.values() if not block.whole))
    known = f"{architecture.family.layer(0)} to {last}" + (f" with {' or '.join(parts)}" if parts else "")

    def nearest(module: str) -> str:
        near = get_close_matches(module[:300], architecture.blocks, 1)
        return f"; the nearest is {near[0]}" if near else ""

    unknown = [
        f"unknown block {module[:300]!r}: expected {known}{nearest(module)}"
        for module in group.modules
        if module not in architecture.blocks
    ]
    return unknown or architecture.staying(group.modules)


def _unknown_nodes(architecture: Architecture, group: Group) -> list[str]:
    last = architecture.config.num_hidden_layers - 1
    return [
        f"unknown node {member.node!r}: the model has no linear layer {member.module!r} (decoder layers 0 to {last})"
        for member in group.members
        if member.module not in architecture.linears
    ]


def _bind_width(architecture: Architecture, group: Group) -> tuple[list[str], dict[str, WidthRule]]:
    """Check an output-width group against the family's rules; return faults, and the rule of each narrowed layer."""
    rules: dict[str, WidthRule] = {}
    faults: list[str] = []
    for module in group.modules:
        layer, relative = architecture.split(module)
        rule = next((rule for rule in architecture.family.width_rules if relative in rule.producers), None)
        if rule is None:
            reason = architecture.family.refused_widths.get(relative, "no rule says what consumes it")
            faults.append(f"elastic output width of {module} is not supported for {architecture.model_type}: {reason}")
            continue
        missing = sorted(name for name in rule.producers if f"{layer}.{name}" not in group.modules)
        if missing:
            faults.append(f"{module} is elastic without {', '.join(missing)}, which must share its width")
        config = architecture.of_layer(module)
        full = rule.full(config)
        faults += [f"width {w} of {module} is larger than the full width {full}" for w in group.widths if w > full]
        faults += _split_heads(rule, config, module, group.widths)
        rules |= {module: rule, f"{layer}.{rule.consumer}": rule}
    return faults, rules


def _split_heads(rule: WidthRule, config: Any, module: str, widths: Sequence[int]) -> list[str]:
    unit = rule.unit(config)
    if not isinstance(rule, HeadRule):
        return []
    heads = f"heads of {head_dim(config)} channels, {unit // head_dim(config)} per key-value head: expected multiples of {unit}"
    return [f"width {width} of {module} splits {heads}" for width in widths if width % unit]
