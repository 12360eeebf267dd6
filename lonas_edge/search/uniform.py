"""Uniform networks: the few networks whose measured latency predicts that of every other network of a search space.

Layers of one shape cost the same wherever they are. So groups that narrow the same layers of their decoder layers form a kind.
The cost of a width shows in the network in which every group of a kind has it; the cost of removable blocks shows in the
network without any of their kind.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lonas_edge.network.source import Source

_MOST_WIDTHS = 9  # measured per kind; others are interpolated


@dataclass(frozen=True)
class Kind:
    """Groups that narrow layers of one shape."""

    name: str  # the layers, as named inside a decoder layer
    layers: dict[int, int]  # number of decoder layers that each group narrows, by group index
    widths: tuple[int, ...]  # the measured widths, widest first


def find_kinds(source: Source) -> tuple[Kind, ...]:
    """Find the kinds of groups that latency depends on. Ranks are not among them: they vanish when merged.

    Layers of one name and other full widths are another kind, with the width in its name.
    """
    architecture, groups = source.architecture, source.space.groups
    layers: dict[tuple[str, int], dict[int, int]] = {}
    for index, group in enumerate(groups):
        if group.kind == "rank":
            continue
        parts: dict[str, list[str]] = {}
        for module in group.modules:
            layer, relative = architecture.split(module)
            parts.setdefault(layer, []).append(relative or "layer")
        names = sorted(", ".join(sorted(part)) for part in parts.values())
        alike = len(set(names)) == 1  # several layers that lose the same modules share a kind with single layers
        name = names[0] if alike else "; ".join(names)
        full = max(
            architecture.linears[module].out_features if module in architecture.linears else 0 for module in group.modules
        )
        layers.setdefault((name, full), {})[index] = len(names) if alike else 1
    kinds, found = [], [name for name, _ in layers]
    for (name, full), counts in layers.items():
        widths = sorted({width for index in counts for width in groups[index].widths}, reverse=True)
        if len(widths) > 1:
            kinds.append(Kind(name if found.count(name) == 1 else f"{name} of {full}", counts, _thinned(widths)))
    return tuple(kinds)


def _thinned(widths: Sequence[int]) -> tuple[int, ...]:
    """Return at most `_MOST_WIDTHS` of them, evenly spread, with both ends."""
    if len(widths) <= _MOST_WIDTHS:
        return tuple(widths)
    last = len(widths) - 1
    return tuple(widths[round(position * last / (_MOST_WIDTHS - 1))] for position in range(_MOST_WIDTHS))


def uniform_networks(source: Source, kinds: Sequence[Kind]) -> dict[tuple[str, int], tuple[int, ...]]:
    """List the networks to measure: the groups of one kind have one width, all others their kind's widest.

    Returns:
        Widths in group order, by kind and width. The widest network occurs once per kind.
    """
    widest = {index: kind.widths[0] for kind in kinds for index in kind.layers}
    maximal = source.elasticity.maximal

    def network(changed: dict[int, int]) -> tuple[int, ...]:
        return tuple((widest | changed).get(index, width) for index, width in enumerate(maximal))

    return {(kind.name, width): network(dict.fromkeys(kind.layers, width)) for kind in kinds for width in kind.widths}
