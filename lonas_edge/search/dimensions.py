"""The groups that a search varies, and their sensitivity: the KL that each group adds alone at each width, in nats.

A group has levels: 0 is its widest width. A group in decoder layer l changes nothing before layer l. So the layers are walked
once, the current layer's input is kept for all prompts, and each width is evaluated from there to the end. This halves the
work, and needs the memory of one layer's inputs. Sums over groups predict the KL of networks that are not too narrow, which is
enough for a knapsack.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch

from lonas_edge.data.task import Batch
from lonas_edge.network.source import Source
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.network.walk import Walk, first_layer
from lonas_edge.search.cost import CostFunction
from lonas_edge.space.search_space import SearchSpace

Widths = tuple[int, ...]  # one width per group of the search space, in group order
Sensitivity = Sequence[Sequence[float]]  # a row per group of the search space, a figure per width; empty rows if not searched
NAMES = ("maximal", "heuristic", "minimal")  # the networks that every search evaluates
SKIP = 4  # a sensitivity table uses every fourth prompt; the networks that it proposes are evaluated on all prompts


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

    @cached_property
    def blocks(self) -> dict[int, int]:
        """`inside` by position in `searched`, without groups that are not searched."""
        dims = {index: dim for dim, index in enumerate(self.searched)}
        return {dims[group]: dims[block] for group, block in self.inside.items() if group in dims and block in dims}

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


def thin(batch: Batch) -> Batch:
    """Keep every `SKIP`-th prompt of a batch, which is sorted by length, and all positions."""
    return {name: values if name == "logits_to_keep" else values[::SKIP] for name, values in batch.items()}


def measure_sensitivity(
    network: SuperNetwork,
    batches: Sequence[Batch],
    reference: Sequence[torch.Tensor],
    searched: Sequence[int],
    progress: Callable[[float], None] = lambda _done: None,
    around: Sequence[int] | None = None,
) -> Sensitivity:
    """Evaluate each searched group alone at each of its widths.

    Args:
        network: The super-network.
        batches: Prompts with the positions that count.
        reference: Hidden states of the maximal network, from `SuperNetwork.reference`.
        searched: Indices of the groups.
        progress: Called with the share that is done.
        around: Network in which one group at a time changes; the maximal one if None.

    Returns:
        The table. Each figure is the KL of that network less that of `around`; it can be negative.
    """
    elasticity = network.elasticity
    groups = elasticity.space.groups
    first = {index: first_layer(elasticity, index) for index in searched}
    center = tuple(around or elasticity.maximal)
    center_kl = network.kl([center], batches, reference)[0] if around else 0.0
    rows: list[tuple[float, ...]] = [()] * len(groups)
    network.activate(center)
    walk = Walk(network, batches)
    work = {index: (len(walk) - first[index]) * (len(groups[index].widths) - 1) for index in searched}
    done, total = 0, sum(work.values()) or 1
    for layer in range(len(walk)):
        for index in (index for index in searched if first[index] == layer):
            row = []
            for width in groups[index].widths:
                changed = (*center[:index], width, *center[index + 1 :])
                network.activate(changed)
                row.append(
                    0.0
                    if changed == center
                    else mean_kl(map(walk.hidden, range(len(batches))), network, batches, reference) - center_kl
                )
            rows[index] = tuple(row)
            done += work[index]
            progress(done / total)
        network.activate(center)
        walk.step()
    return tuple(rows)


def mean_kl(
    states: Iterable[torch.Tensor], network: SuperNetwork, batches: Sequence[Batch], reference: Sequence[torch.Tensor]
) -> float:
    """Compute the mean KL of hidden states [prompts, tokens, hidden] by batch from those of the maximal network."""
    total, positions = 0.0, 0
    for index, (hidden, batch) in enumerate(zip(states, batches, strict=True)):
        selected = network.task.select(hidden, batch)
        with torch.inference_mode():
            total += network.distance(reference[index], selected).item()
        positions += len(selected)
    return total / positions
