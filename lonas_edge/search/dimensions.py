"""The groups that a search varies, and their translation to Optuna's parameters."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from lonas_edge.network.source import Source
from lonas_edge.space.search_space import SearchSpace

if TYPE_CHECKING:
    from optuna.trial import Trial

Widths = tuple[int, ...]  # one width per group of the search space, in group order
Cost = Callable[[Sequence[int]], float]  # of a network's widths


@dataclass(frozen=True)
class Dimensions:
    """The dimensions of a search.

    Optuna sees a group as an ordered integer, its level: 0 is the widest width. Mutation can use the order.
    """

    space: SearchSpace
    searched: tuple[int, ...]  # indices of the searched groups; the others keep their widest width
    canonical: Callable[[Sequence[int]], Widths] = tuple  # maps equivalent choices of widths to one: `Elasticity.canonical`
    # the group of blocks that can remove another group's layers, by that group: `Elasticity.inside`
    inside: Mapping[int, int] = field(default_factory=dict)

    @property
    def fixed(self) -> tuple[int, ...]:
        """Indices of the groups that are not searched."""
        return tuple(index for index in range(len(self.space.groups)) if index not in self.searched)

    @property
    def only_blocks(self) -> bool:
        """Whether removable blocks are all that is searched."""
        return all(self.space.groups[index].kind == "block" for index in self.searched)

    @cached_property
    def size(self) -> int:
        """Number of distinct networks. A removed block makes the widths inside it irrelevant."""
        choices = {index: len(self.space.groups[index].widths) for index in self.searched}
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

    def projected(self, widths: Sequence[int]) -> Widths:
        """Return the same widths, with the fixed groups at their widest."""
        return self.widths(self.levels(widths))

    def parameters(self, widths: Sequence[int]) -> dict[str, int]:
        """Return a network as Optuna's parameters."""
        return {_name(index): level for index, level in zip(self.searched, self.levels(widths), strict=True)}

    def suggested(self, trial: "Trial") -> Widths:
        """Draw all parameters of a trial."""
        for index in self.searched:
            trial.suggest_int(_name(index), 0, len(self.space.groups[index].widths) - 1)
        return self.of(trial.params)

    def of(self, parameters: Mapping[str, int]) -> Widths:
        """Return the network of Optuna's parameters."""
        return self.widths([parameters[_name(index)] for index in self.searched])

    def complete(self, parameters: Mapping[str, int]) -> bool:
        """Check whether all parameters are set, since another worker may still be drawing them."""
        return all(_name(index) in parameters for index in self.searched)


def _name(group: int) -> str:
    return f"group_{group}"


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


def costs_by_width(dimensions: Dimensions, cost: Cost) -> list[list[float]]:
    """Return the cost of each width of each searched group above the group's narrowest, all other groups at their widest.

    Returns:
        A row per searched group, the widest first.
    """
    rows = []
    for dim, index in enumerate(dimensions.searched):
        choices = [[0] * len(dimensions.searched) for _ in dimensions.space.groups[index].widths]
        for level, choice in enumerate(choices):
            choice[dim] = level
        costs = [cost(dimensions.widths(choice)) for choice in choices]
        rows.append([value - costs[-1] for value in costs])
    return rows
