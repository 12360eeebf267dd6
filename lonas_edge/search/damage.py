"""The damage table: what each searched group costs alone at each width, everything else as it is, in nats of KL.

A group that acts in decoder layer l changes nothing before it. So the layers are walked once, the input of the current one is
kept for all prompts, and each width is evaluated from there to the end: half of the work of whole evaluations, and the memory
of one layer's inputs. The sums over groups predict whole networks (not narrow ones), which is what a knapsack needs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lonas_edge.space.search_space import SearchSpace

if TYPE_CHECKING:
    import torch

    from lonas_edge.network.super_network import Batch, SuperNetwork
    from lonas_edge.network.walk import Walk
    from lonas_edge.space.architecture import Architecture


@dataclass(frozen=True)
class DamageTable:
    """What each group alone adds to the KL, one row a group of the search space, one figure a width, the widest first.

    Rows of groups that are not searched are empty: those are at their widest, which does no damage.
    """

    rows: tuple[tuple[float, ...], ...]

    def of(self, group: int, level: int) -> float:
        """The damage of a group at its width number `level`."""
        return self.rows[group][level] if self.rows[group] else 0.0

    def predicted(self, levels: Sequence[int]) -> float:
        """The damage of a whole network: the sum over its groups.

        Args:
            levels: For each group the place of its width.

        Returns:
            The sum, in nats.
        """
        return sum(self.of(group, level) for group, level in enumerate(levels))


def evaluations(space: SearchSpace, searched: Sequence[int]) -> int:
    """How many widths the table evaluates."""
    return sum(len(space.groups[index].widths) - 1 for index in searched)


def first_layer(architecture: "Architecture", modules: Sequence[str]) -> int:
    """The first decoder layer that a group's modules are in; the first of all where one is outside."""
    return min(int(layer.rpartition(".")[2] or 0) for layer, _ in map(architecture.split, modules))


def measure_damage(
    network: "SuperNetwork",
    batches: "Sequence[Batch]",
    reference: "Sequence[torch.Tensor]",
    searched: Sequence[int],
    progress: Callable[[float], None] = lambda _done: None,
    around: Sequence[int] | None = None,
) -> DamageTable:
    """Evaluate each searched group alone at each of its widths.

    Args:
        network: The super-network.
        batches: Prompts with the positions that count.
        reference: As of `SuperNetwork.reference`.
        searched: Indices of the groups.
        progress: Called with the share that is done.
        around: The network in which one group at a time is changed; the maximal one when None.

    Returns:
        The table; each figure is that of `SuperNetwork.kl` for the same widths, less the network's own, which may be more.
    """
    from lonas_edge.network.walk import Walk

    elasticity = network.elasticity
    groups, architecture = elasticity.space.groups, elasticity.architecture
    places = {index: first_layer(architecture, groups[index].modules) for index in searched}
    centre = tuple(around or elasticity.maximal)
    own = network.kl([centre], batches, reference)[0] if around else 0.0
    rows: dict[int, tuple[float, ...]] = {}
    network.activate(centre)
    walk = Walk(network, batches)
    layers = len(walk)
    work = {index: (layers - places[index]) * (len(groups[index].widths) - 1) for index in searched}
    done, total = 0, sum(work.values()) or 1
    for layer in range(layers):
        for index in (index for index in searched if places[index] == layer):
            damage = []
            for width in groups[index].widths:
                changed = _with(centre, index, width)
                network.activate(changed)
                damage.append(0.0 if changed == centre else _kl(walk, network, batches, reference) - own)
            rows[index] = tuple(damage)
            done += work[index]
            progress(done / total)
        network.activate(centre)
        walk.step()
    return DamageTable(tuple(rows.get(index, ()) for index in range(len(groups))))


def _with(widths: Sequence[int], group: int, width: int) -> tuple[int, ...]:
    return (*widths[:group], width, *widths[group + 1 :])


def _kl(walk: "Walk", network: "SuperNetwork", batches: "Sequence[Batch]", reference: "Sequence[torch.Tensor]") -> float:
    """Mean KL of the active sub-network, which is what was walked before the walk's current layer."""
    import torch

    total, positions = 0.0, 0
    for place, batch in enumerate(batches):
        counted = network.objective.counted(walk.hidden(place), batch)
        with torch.inference_mode():
            total += network.divergence(reference[place], counted).item()
        positions += len(counted)
    return total / positions
