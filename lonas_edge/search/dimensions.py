"""The groups that a search varies. A group has levels: 0 is its widest width."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lonas_edge.network.source import Source
from lonas_edge.search.cost import CostFunction
from lonas_edge.space.search_space import SearchSpace

Widths = tuple[int, ...]  # one width per group of the search space, in group order
Sensitivity = Sequence[Sequence[float]]  # a row per group of the search space, a figure per width; empty rows if not searched
NAMES = ("maximal", "heuristic", "minimal")  # the networks that every search evaluates


@dataclass(frozen=True)
class Dimensions:
    """The dimensions of a search."""

    space: SearchSpace
    searched: tuple[int, ...]  # indices of the searched groups; the others keep their widest width
    canonical: Callable[[Sequence[int]], Widths] = tuple  # maps equivalent choices of widths to one: `Elasticity.canonical`
    # the group of blocks that can remove another group's layers, by that group: `Elasticity.inside`
    inside: Mapping[int, int] = field(default_factory=dict)

    @property
    def only_blocks(self) -> bool:
        """Whether removable blocks are all that is searched."""
        return all(self.space.groups[index].kind == "block" for index in self.searched)

    @property
    def levels_of_groups(self) -> list[int]:
        """Number of levels of each searched group."""
        return [len(self.space.groups[index].widths) for index in self.searched]

    @cached_property
    def size(self) -> int:
        """Number of distinct networks. A removed block makes the widths inside it irrelevant."""
        choices = dict(zip(self.searched, self.levels_of_groups, strict=True))
        for group, block in self.inside.items():
            if group in choices and block in choices:
                choices[block] = (choices[block] - 1) * choices.pop(group) + 1
        return math.prod(choices.values())

    @property
    def maximal(self) -> Widths:
        """Widths of the maximal network."""
        return self.widths([0] * len(self.searched))

    def widths(self, levels: Sequence[int]) -> Widths:
        """Return the widths of the network with these levels of the searched groups."""
        widths = [group.widths[0] for group in self.space.groups]
        for index, level in zip(self.searched, levels, strict=True):
            widths[index] = self.space.groups[index].widths[level]
        return self.canonical(widths)

    def levels(self, widths: Sequence[int]) -> list[int]:
        """Return the level of each searched group."""
        return [self.space.groups[index].widths.index(widths[index]) for index in self.searched]

    def named(self) -> dict[str, Widths]:
        """Return the networks of `NAMES`, groups that are not searched at their widest."""
        return {name: self.widths(self.levels(self.space.preset(name))) for name in NAMES}

    def costs(self, cost: CostFunction) -> list[list[float]]:
        """Return the cost of each level of each searched group above its narrowest, all other groups at their widest."""
        rows = []
        for dim, count in enumerate(self.levels_of_groups):
            row = []
            for level in range(count):
                levels = [0] * len(self.searched)
                levels[dim] = level
                row.append(cost(self.widths(levels)))
            rows.append([value - row[-1] for value in row])
        return rows


def find_dimensions(source: Source) -> Dimensions:
    """Find the groups worth searching: their narrower widths make the merged model smaller.

    Ranks are not: they vanish when the adapter is merged, so the widest is never worse.
    """
    maximal = source.elasticity.maximal
    largest = source.sizes(source.subnetwork(maximal)).parameters
    searched = []
    for index, group in enumerate(source.space.groups):
        narrowest = (*maximal[:index], group.widths[-1], *maximal[index + 1 :])
        if len(group.widths) > 1 and source.sizes(source.subnetwork(narrowest)).parameters < largest:
            searched.append(index)
    return Dimensions(source.space, tuple(searched), source.elasticity.canonical, source.elasticity.inside)
