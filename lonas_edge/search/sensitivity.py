"""The sensitivity table: KL that each searched group adds alone at each width, in nats.

A group in decoder layer l changes nothing before layer l. So the layers are walked once, the current layer's input is kept
for all prompts, and each width is evaluated from there to the end. This halves the work, and needs the memory of one layer's
inputs. Sums over groups predict the KL of networks that are not too narrow, which is enough for a knapsack.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lonas_edge.data.task import Batch
    from lonas_edge.network.super_network import SuperNetwork
    from lonas_edge.network.walk import Walk
    from lonas_edge.space.architecture import Architecture


@dataclass(frozen=True)
class SensitivityTable:
    """KL of each group alone: a row per group of the search space, a figure per width, the widest first.

    Rows of groups that are not searched are empty.
    """

    rows: tuple[tuple[float, ...], ...]

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[float]]) -> "SensitivityTable":
        """Return a table from JSON."""
        return cls(tuple(map(tuple, rows)))


def first_layer(architecture: "Architecture", modules: Sequence[str]) -> int:
    """Return the first decoder layer with one of a group's modules; 0 if a module is outside the layers."""
    return min(int(layer.rpartition(".")[2] or 0) for layer, _ in map(architecture.split, modules))


def measure_sensitivity(
    network: "SuperNetwork",
    batches: "Sequence[Batch]",
    reference: "Sequence[torch.Tensor]",
    searched: Sequence[int],
    progress: Callable[[float], None] = lambda _done: None,
    around: Sequence[int] | None = None,
) -> SensitivityTable:
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
    from lonas_edge.network.walk import Walk

    elasticity = network.elasticity
    groups, architecture = elasticity.space.groups, elasticity.architecture
    first = {index: first_layer(architecture, groups[index].modules) for index in searched}
    center = tuple(around or elasticity.maximal)
    center_kl = network.kl([center], batches, reference)[0] if around else 0.0
    rows: dict[int, tuple[float, ...]] = {}
    network.activate(center)
    walk = Walk(network, batches)
    layers = len(walk)
    work = {index: (layers - first[index]) * (len(groups[index].widths) - 1) for index in searched}
    done, total = 0, sum(work.values()) or 1
    for layer in range(layers):
        for index in (index for index in searched if first[index] == layer):
            row = []
            for width in groups[index].widths:
                changed = (*center[:index], width, *center[index + 1 :])
                network.activate(changed)
                row.append(0.0 if changed == center else _kl(walk, network, batches, reference) - center_kl)
            rows[index] = tuple(row)
            done += work[index]
            progress(done / total)
        network.activate(center)
        walk.step()
    return SensitivityTable(tuple(rows.get(index, ()) for index in range(len(groups))))


def _kl(walk: "Walk", network: "SuperNetwork", batches: "Sequence[Batch]", reference: "Sequence[torch.Tensor]") -> float:
    """Compute the mean KL of the active sub-network, which equals the walked one before the walk's current layer."""
    import torch

    total, positions = 0.0, 0
    for index, batch in enumerate(batches):
        counted = network.task.select(walk.hidden(index), batch)
        with torch.inference_mode():
            total += network.distance(reference[index], counted).item()
        positions += len(counted)
    return total / positions
