"""How far two networks' answers are apart: differences of logits, Kullback-Leibler divergence, equal top tokens."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parity:
    """How two models' logits compare over the tokens of the prompts.

    Attributes:
        max_logit_difference: Largest absolute difference.
        mean_kl: Mean Kullback-Leibler divergence of the next-token distributions from the reference, in nats.
        top1_agreement: Share of positions at which both prefer the same token.
        positions: Positions compared.
    """

    max_logit_difference: float
    mean_kl: float
    top1_agreement: float
    positions: int


def compare(reference: "torch.Tensor", logits: "torch.Tensor") -> Parity:
    """Compare logits with those of a reference.

    Args:
        reference: [prompts, tokens, vocabulary].
        logits: The same shape.

    Returns:
        The comparison.
    """
    difference, kl, agreeing = 0.0, 0.0, 0
    for expected, found in zip(reference, logits, strict=True):  # a prompt at a time: vocabularies are large
        expected, found = expected.double(), found.double()
        p, q = expected.log_softmax(-1), found.log_softmax(-1)
        largest = (expected - found).abs().max().item()
        difference = largest if math.isnan(largest) else max(difference, largest)
        kl += (p.exp() * (p - q)).sum().item()
        agreeing += int((expected.argmax(-1) == found.argmax(-1)).sum())
    positions = reference[..., 0].numel()
    return Parity(difference, kl / positions, agreeing / positions, positions)


def kl_divergence(reference: "torch.Tensor", logits: "torch.Tensor") -> "torch.Tensor":
    """Kullback-Leibler divergence of next-token distributions from a reference, summed over positions: KL(reference || logits).

    Args:
        reference: [positions, vocabulary].
        logits: The same shape.

    Returns:
        The sum, in nats.
    """
    from torch.nn import functional as F

    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    return F.kl_div(q, p, reduction="sum", log_target=True)


def cross_entropy(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Cross-entropy of the tokens that follow, summed over positions.

    Args:
        logits: [positions, vocabulary].
        labels: [positions].

    Returns:
        The sum, in nats.
    """
    from torch.nn import functional as F

    return F.cross_entropy(logits.float(), labels, reduction="sum")
