"""How good a sub-network is: one object each. All are measured in one super-network, loaded once.

A registry for the command line: nothing heavy is imported before something is scored.
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
    """A measure of a network's answers.

    Attributes:
        name: What it is called on the command line and in records.
        unit: Of the figure.
        described: What the command line's help says of it.
        sign: 1 where lower is better, -1 where higher is.
    """

    name: str
    unit: str
    described: str
    sign: int = 1

    def minimized(self, value: float) -> float:
        """The figure, turned so that lower is better."""
        return self.sign * value


QUALITIES = {
    quality.name: quality
    for quality in (
        Quality(
            "kl",
            "nats",
            "mean KL divergence from the maximal network's answers, at what training learns; of a regression squared",
        ),
        Quality("loss", "nats", "mean cross-entropy of the right answers' tokens"),
        Quality(
            "accuracy",
            "%",
            "right answers to the held-out questions, as `eval --protocol` asks; of GLUE its metric",
            sign=-1,
        ),
    )
}


def likelihood_score(
    name: str, network: "SuperNetwork", batches: "Sequence[Batch]", reference: "Sequence[torch.Tensor]"
) -> Score:
    """How `kl` or `loss` is scored.

    Args:
        name: Which of them.
        network: The super-network.
        batches: Prompts with the positions that count.
        reference: As of `SuperNetwork.reference`.

    Returns:
        Scores a sub-network.
    """
    if name == "kl":
        return lambda widths: network.kl([widths], batches, reference)[0]
    return lambda widths: network.losses([widths], batches)[0]
