"""Quality measures of a sub-network. All are measured in one super-network, loaded once.

A registry for the command line: nothing heavy is imported before a network is scored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lonas_edge.network.super_network import Batch, SuperNetwork

Score = Callable[[Sequence[int]], float]  # of a sub-network's widths


@dataclass(frozen=True)
class Quality:
    """A quality measure.

    Attributes:
        name: On the command line and in records.
        unit: Unit of the figure.
        described: For the help text.
        title: In plots.
        sign: 1 if lower is better, -1 if higher is.
    """

    name: str
    unit: str
    described: str
    title: str
    sign: int = 1


QUALITIES = {
    quality.name: quality
    for quality in (
        Quality("kl", "nats", "KL divergence from the unpruned network", "KL from the unpruned network"),
        Quality("loss", "nats", "cross-entropy of the answers", "loss"),
        Quality("accuracy", "%", "accuracy as of eval --protocol, or the GLUE task's metric", "accuracy", sign=-1),
    )
}


def likelihood_score(
    name: str,
    network: "SuperNetwork",
    batches: "Sequence[Batch]",
    reference: "Sequence[torch.Tensor]",
    weight_format: str | None = None,
) -> Score:
    """Make the function that scores `kl` or `loss`, in nats.

    Args:
        name: The quality.
        network: The super-network.
        batches: Prompts with the positions that count.
        reference: Hidden states of the maximal network before compression, from `SuperNetwork.reference`.
        weight_format: Score networks as an IR with this format stores them; None before compression.
    """
    if weight_format is not None:
        from lonas_edge.search.compressed import CompressedNetwork

        compressed = CompressedNetwork(network, weight_format)
        return lambda widths: compressed.score(name, widths, batches, reference)
    if name == "kl":
        return lambda widths: network.kl([widths], batches, reference)[0]
    return lambda widths: network.losses([widths], batches)[0]
