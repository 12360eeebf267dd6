"""A search space laid over a model's shapes: which groups decide widths and ranks of linear layers, and which remove blocks.

Everything downstream (sizes, activation, slicing) asks a `Subnetwork` what is active, and does not look at groups again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from lonas_edge.errors import raise_all
from lonas_edge.families import FAMILIES, HeadRule, WidthRule, head_dim
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.search_space import Group, Member, SearchSpace


@dataclass(frozen=True, eq=False)
class Elasticity:
    """A search space laid over an architecture: indices of groups by module path, and the `rules` of elastic layers."""

    architecture: Architecture
    space: SearchSpace
    out_group: dict[str, int] = field(default_factory=dict)
    in_group: dict[str, int] = field(default_factory=dict)
    rank_group: dict[str, int] = field(default_factory=dict)
    block_group: dict[str, int] = field(default_factory=dict)
    rules: dict[str, WidthRule] = field(default_factory=dict)

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
        chosen = []
        for group, width in zip(self.space.groups, widths, strict=True):
            unused = group.kind != "block" and all(module.startswith(removed) for module in group.modules)
            chosen.append(group.widths[0] if unused else width)
        return tuple(chosen)

    @cached_property
    def inside(self) -> dict[int, int]:
        """Index of the block group that holds all layers of a width or rank group, by the index of the latter."""
        inside = {}
        for index, group in enumerate(self.space.groups):
            around = {self._block_around(module) for module in group.modules}
            if group.kind != "block" and len(around) == 1 and (block := around.pop()) is not None:
                inside[index] = block
        return inside

    def _block_around(self, module: str) -> int | None:
        """Index of the block group that a module is inside of, if any."""
        return next((index for block, index in self.block_group.items() if module.startswith(f"{block}.")), None)


def bind(architecture: Architecture, space: SearchSpace, where: str) -> Elasticity:
    """Lay a search space over a model and check that it fits; `where` is the space's name in errors.

    A space of the same model type with another task is taken under this task's module paths.
    """
    headline = f"{where}: the search space does not fit the model ({architecture.model_type}):"
    hint = "Use the configuration that the adapter was trained with, or write one with `lonas-edge space`."
    space = _rename_modules(architecture, space)
    raise_all(headline, _other_model_errors(architecture, space), hint)
    bound = Elasticity(architecture, space)
    errors: list[str] = []
    for index, group in enumerate(space.groups):
        if group.kind == "block":
            own_errors = _block_errors(architecture, group)
            bound.block_group.update(dict.fromkeys(group.modules, index))
        else:
            own_errors = _node_errors(architecture, group)
        if group.kind == "rank":
            bound.rank_group.update(dict.fromkeys(group.modules, index))
        elif group.kind == "width" and not own_errors:
            own_errors = _bind_width(bound, index, group)
        errors += [f"group {index}: {error}" for error in dict.fromkeys(own_errors)]
    needed = {name: block for name, block in architecture.blocks.items() if block.needed}
    if needed and needed.keys() <= bound.block_group.keys():
        what = "every layer" if any(block.whole for block in needed.values()) else "every layer's attention"
        errors.append(f"{what} is removable, so the minimal network would have none; delete one from the groups")
    raise_all(headline, errors, hint)
    return bound


def _rename_modules(architecture: Architecture, space: SearchSpace) -> SearchSpace:
    """The space with this task's module paths; another task of the model type has another prefix of the body's modules."""
    ours = architecture.family.prefix
    others = {family.prefix for family in FAMILIES if architecture.model_type in family.model_types} - {ours}
    known = architecture.linears.keys() | architecture.blocks.keys()

    def rename(member: Member) -> Member:
        paths = [ours + member.module.removeprefix(other) for other in others if member.module.startswith(other)]
        paths = [] if member.module in known else [path for path in paths if path in known]
        return replace(member, module=paths[0]) if paths else member

    groups = [replace(group, members=tuple(map(rename, group.members))) for group in space.groups]
    return replace(space, groups=tuple(groups)) if others else space


def _other_model_errors(architecture: Architecture, space: SearchSpace) -> list[str]:
    """One line if all groups name the classes of another model."""
    members = [member for group in space.groups if group.kind != "block" for member in group.members]
    if any(member.module in architecture.linears for member in members):
        return []
    theirs = {match[1] for member in members if (match := re.search(r"/(\w+)\[model\]/", member.node))}
    ours = architecture.family.class_names[architecture.model_type]["model"]
    if len(theirs) != 1 or ours in theirs:
        return []
    return [f"its {len(members)} nodes belong to {theirs.pop()}; the model is a {ours}"]


def _block_errors(architecture: Architecture, group: Group) -> list[str]:
    if not architecture.blocks:
        return [f"elastic depth is not supported for {architecture.model_type}; its blocks cannot be removed"]
    unknown = [module for module in group.modules if module not in architecture.blocks]
    if not unknown:
        refused = {module: architecture.blocks[module].refused for module in group.modules}
        return [f"{module} cannot be removed: {reason}" for module, reason in refused.items() if reason]
    parts = list(dict.fromkeys(block.module for block in architecture.blocks.values() if not block.whole))
    known = f"{architecture.family.layer(0)} to {len(architecture.layers) - 1}"
    known += f" with {' or '.join(parts)}" if parts else ""
    return [f"unknown block {module[:300]!r}: expected {known}" for module in unknown]


def _node_errors(architecture: Architecture, group: Group) -> list[str]:
    layers = f"decoder layers 0 to {len(architecture.layers) - 1}"
    unknown = [member for member in group.members if member.module not in architecture.linears]
    return [f"unknown node {each.node!r}: the model has no linear layer {each.module!r} ({layers})" for each in unknown]


def _bind_width(bound: Elasticity, index: int, group: Group) -> list[str]:
    """Bind an output-width group to its producers and their consumers by the family's rules; return errors."""
    architecture, errors = bound.architecture, []
    for module in group.modules:
        layer, relative = architecture.split(module)
        rule = next((rule for rule in architecture.family.width_rules if relative in rule.producers), None)
        if rule is None:
            reason = architecture.family.refused_widths.get(relative, "no rule says what consumes it")
            errors.append(f"elastic output width of {module} is not supported for {architecture.model_type}: {reason}")
            continue
        missing = sorted(name for name in rule.producers if f"{layer}.{name}" not in group.modules)
        if missing:
            errors.append(f"{module} is elastic without {', '.join(missing)}, which must share its width")
        config = architecture.of_layer(module)
        full, unit, channels = rule.full(config), rule.unit(config), head_dim(config)
        errors += [f"width {width} of {module} is larger than the full width {full}" for width in group.widths if width > full]
        if isinstance(rule, HeadRule):
            heads = f"heads of {channels} channels, {unit // channels} per key-value head: expected multiples of {unit}"
            errors += [f"width {width} of {module} splits {heads}" for width in group.widths if width % unit]
        if module in bound.out_group:
            errors.append(f"{module} is in group {bound.out_group[module]} too")
        consumer = f"{layer}.{rule.consumer}"
        bound.out_group[module] = bound.in_group[consumer] = index
        bound.rules[module] = bound.rules[consumer] = rule
    return errors
