"""What a search varies: the widths of the groups that are worth searching, and the weight format where several are named."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lonas_edge.network.source import Source
from lonas_edge.space.search_space import SearchSpace

if TYPE_CHECKING:
    from optuna.trial import Trial

FORMAT = "weight_format"
Network = tuple[tuple[int, ...], str]  # the widths of all groups, and a weight format


@dataclass(frozen=True)
class Dimensions:
    """The dimensions of a search.

    A group is an ordered integer, the place of its width: 0 is the widest. Order is what mutation and TPE can use.

    Attributes:
        space: The search space.
        searched: Indices of the groups that are searched; the others stay at their widest.
        formats: Weight formats; a dimension where there are several.
        plain: Writes a choice of widths plainly, so that one network is one choice: `Elasticity.canonical`.
        inside: For a group whose layers lie in blocks that another group may leave out, that group: `Elasticity.inside`.
    """

    space: SearchSpace
    searched: tuple[int, ...]
    formats: tuple[str, ...]
    plain: Callable[[Sequence[int]], tuple[int, ...]] = tuple
    inside: Mapping[int, int] = field(default_factory=dict)

    @property
    def fixed(self) -> tuple[int, ...]:
        """Indices of the groups that are not searched."""
        return tuple(index for index in range(len(self.space.groups)) if index not in self.searched)

    @cached_property
    def size(self) -> int:
        """How many networks there are to evaluate: without a block, one for all the widths inside it."""
        choices = {index: len(self.space.groups[index].widths) for index in self.searched}
        for group, block in self.inside.items():
            if group in choices and block in choices:
                choices[block] = (choices[block] - 1) * choices.pop(group) + 1
        return math.prod(choices.values()) * len(self.formats)

    def network(self, levels: Sequence[int], weight_format: str) -> Network:
        """A network from the place of each searched group's width."""
        widths = [group.widths[0] for group in self.space.groups]
        for index, level in zip(self.searched, levels, strict=True):
            widths[index] = self.space.groups[index].widths[level]
        return self.plain(widths), weight_format

    def levels(self, widths: Sequence[int]) -> list[int]:
        """The place of each searched group's width."""
        return [self.space.groups[index].widths.index(widths[index]) for index in self.searched]

    def projected(self, widths: Sequence[int]) -> tuple[int, ...]:
        """The same widths with the groups that are not searched at their widest."""
        return self.network(self.levels(widths), "")[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of Optuna's parameters."""
        return (*map(_name, self.searched), *((FORMAT,) if len(self.formats) > 1 else ()))

    def parameters(self, network: Network) -> dict[str, Any]:
        """A network as Optuna's parameters."""
        widths, weight_format = network
        found: dict[str, Any] = {_name(index): level for index, level in zip(self.searched, self.levels(widths), strict=True)}
        return found | ({FORMAT: weight_format} if len(self.formats) > 1 else {})

    def suggested(self, trial: "Trial") -> Network:
        """Ask a trial for every parameter."""
        for index in self.searched:
            trial.suggest_int(_name(index), 0, len(self.space.groups[index].widths) - 1)
        if len(self.formats) > 1:
            trial.suggest_categorical(FORMAT, self.formats)
        return self.of(trial.params)

    def of(self, parameters: Mapping[str, Any]) -> Network:
        """The network of Optuna's parameters."""
        levels = [parameters[_name(index)] for index in self.searched]
        return self.network(levels, parameters.get(FORMAT, self.formats[0]))


def _name(group: int) -> str:
    return f"group_{group}"


def find_dimensions(source: Source, formats: Sequence[str]) -> Dimensions:
    """Find the groups that are worth searching: those whose narrower widths make the deployed model smaller.

    An elastic rank is not: merging makes it vanish, so that the widest is never worse.

    Args:
        source: Base model, adapter and search space.
        formats: Weight formats.

    Returns:
        The dimensions.
    """
    maximal = source.elasticity.maximal
    whole = source.sizes(source.subnetwork(maximal)).parameters
    searched = []
    for index, group in enumerate(source.space.groups):
        narrowest = (*maximal[:index], group.widths[-1], *maximal[index + 1 :])
        if len(group.widths) > 1 and source.sizes(source.subnetwork(narrowest)).parameters < whole:
            searched.append(index)
    return Dimensions(source.space, tuple(searched), tuple(formats), source.elasticity.canonical, source.elasticity.inside)


def costs_by_width(
    dimensions: Dimensions, cost: Callable[[Sequence[int], str], float], weight_format: str
) -> list[list[float]]:
    """What each width of each searched group costs more than the group's narrowest, all other groups maximal.

    Args:
        dimensions: What is searched.
        cost: Of a network's widths at a weight format.
        weight_format: The weight format.

    Returns:
        A row for each searched group, the widest first.
    """
    found = []
    for place, index in enumerate(dimensions.searched):
        rows = [[0] * len(dimensions.searched) for _ in dimensions.space.groups[index].widths]
        for level, row in enumerate(rows):
            row[place] = level
        costs = [cost(*dimensions.network(row, weight_format)) for row in rows]
        found.append([value - costs[-1] for value in costs])
    return found
