"""Networks of equal widths: what the latency of every other network of a search space is put together from.

Layers of one shape cost the same wherever they are. So groups that narrow the same layers of their decoder layers are of one
kind, and what a width costs is seen in the network in which every group of a kind has it. So are blocks that may be left out:
what one costs is seen where all of its kind are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from lonas_edge.network.source import Source

_MOST_WIDTHS = 9  # of a kind; what lies between two measured widths is interpolated


@dataclass(frozen=True)
class Kind:
    """Groups that narrow layers of one shape.

    Attributes:
        name: The layers, as they are called inside a decoder layer.
        layers: How many decoder layers each of its groups narrows, by the group's index.
        widths: Those that are measured, widest first.
    """

    name: str
    layers: dict[int, int]
    widths: tuple[int, ...]


def find_kinds(source: Source) -> tuple[Kind, ...]:
    """Find the kinds of groups that a network's latency depends on. Ranks are not among them: they vanish when merged.

    Args:
        source: Base model, adapter and search space.

    Returns:
        The kinds; none where there is nothing to choose.
    """
    architecture, groups = source.architecture, source.space.groups
    layers: dict[str, dict[int, int]] = {}
    for index, group in enumerate(groups):
        if group.kind != "rank":
            parts: dict[str, list[str]] = {}
            for module in group.modules:
                layer, relative = architecture.split(module)
                parts.setdefault(layer, []).append(relative)
            names = sorted(", ".join(sorted(own)) for own in parts.values())
            alike = len(set(names)) == 1  # layers that lose the same share a kind with groups of one of them
            layers.setdefault(names[0] if alike else "; ".join(names), {})[index] = len(names) if alike else 1
    widths = {name: {width for index in own for width in groups[index].widths} for name, own in layers.items()}
    return tuple(
        Kind(name, own, _thinned(sorted(widths[name], reverse=True))) for name, own in layers.items() if len(widths[name]) > 1
    )


def _thinned(widths: Sequence[int]) -> tuple[int, ...]:
    """At most so many of them, evenly spread, the widest and the narrowest among them."""
    if len(widths) <= _MOST_WIDTHS:
        return tuple(widths)
    last = len(widths) - 1
    return tuple(widths[round(place * last / (_MOST_WIDTHS - 1))] for place in range(_MOST_WIDTHS))


def uniform_networks(source: Source, kinds: Sequence[Kind]) -> dict[tuple[str, int], tuple[int, ...]]:
    """The networks to measure: in each, the groups of one kind have one width, and all others their kind's widest.

    Args:
        source: Base model, adapter and search space.
        kinds: The kinds.

    Returns:
        Widths in group order by kind and width. The network in which all are at their widest is there once for each kind.
    """
    widest = {index: kind.widths[0] for kind in kinds for index in kind.layers}
    maximal = source.elasticity.maximal

    def network(changed: dict[int, int]) -> tuple[int, ...]:
        return tuple((widest | changed).get(index, width) for index, width in enumerate(maximal))

    return {(kind.name, width): network(dict.fromkeys(kind.layers, width)) for kind in kinds for width in kind.widths}
