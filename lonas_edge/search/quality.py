"""Quality measures of a sub-network; lower is better. All are measured in one super-network, loaded once.

A registry for the command line: nothing heavy is imported before a network is scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lonas_edge.data.task import Batch
    from lonas_edge.network.super_network import SuperNetwork

Score = Callable[[Sequence[int]], float]  # of a sub-network's widths


@dataclass(frozen=True)
class Quality:
    """A quality measure."""

    name: str  # on the command line and in records
    unit: str  # unit of the figure
    title: str  # in plots


QUALITIES = {
    quality.name: quality
    for quality in (
        Quality("kl", "nats", "KL from the unpruned network"),
        Quality("loss", "nats", "loss"),
    )
}


def likelihood_score(
    name: str,
    network: "SuperNetwork",
    batches: "Sequence[Batch]",
    reference: "Sequence[torch.Tensor]",
) -> Score:
    """Make the function that scores `kl` or `loss`, in nats."""
    if name == "kl":
        return lambda widths: network.kl([widths], batches, reference)[0]
    return lambda widths: network.losses([widths], batches)[0]
