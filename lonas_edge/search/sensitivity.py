"""The sensitivity table: KL that each searched group adds alone at each width, in nats.

A group in decoder layer l changes nothing before layer l. So the layers are walked once, the current layer's input is kept
for all prompts, and each width is evaluated from there to the end. This halves the work, and needs the memory of one layer's
inputs. Sums over groups predict the KL of networks that are not too narrow, which is enough for a knapsack.
"""

from collections.abc import Callable, Sequence

import torch

from lonas_edge.data.task import Batch
from lonas_edge.network.super_network import SuperNetwork
from lonas_edge.network.walk import Walk
from lonas_edge.search.dimensions import Sensitivity

SKIP = 4  # a sensitivity table uses every fourth prompt; the networks that it proposes are evaluated on all prompts


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
    first = {}  # the first decoder layer that a group changes; 0 for modules outside the layers
    for index in searched:
        layers = [elasticity.architecture.split(module)[0] for module in groups[index].modules]
        first[index] = min(int(layer.rpartition(".")[2] or 0) for layer in layers)
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
                row.append(0.0 if changed == center else _kl(walk, network, batches, reference) - center_kl)
            rows[index] = tuple(row)
            done += work[index]
            progress(done / total)
        network.activate(center)
        walk.step()
    return tuple(rows)


def _kl(walk: Walk, network: SuperNetwork, batches: Sequence[Batch], reference: Sequence[torch.Tensor]) -> float:
    """Compute the mean KL of the active sub-network, which equals the walked one before the walk's current layer."""
    total, positions = 0.0, 0
    for index, batch in enumerate(batches):
        selected = network.task.select(walk.hidden(index), batch)
        with torch.inference_mode():
            total += network.distance(reference[index], selected).item()
        positions += len(selected)
    return total / positions
