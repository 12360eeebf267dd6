"""Compare two networks: logits by difference, KL divergence and top tokens."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parity:
    """Comparison of two models' logits over the tokens of the prompts.

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
    """Compare logits [prompts, tokens, vocabulary] with those of a reference."""
    difference, kl, agreeing = 0.0, 0.0, 0
    for expected, actual in zip(reference, logits, strict=True):  # a prompt at a time: vocabularies are large
        expected, actual = expected.double(), actual.double()
        p, q = expected.log_softmax(-1), actual.log_softmax(-1)
        largest = (expected - actual).abs().max().item()
        difference = largest if math.isnan(largest) else max(difference, largest)
        kl += (p.exp() * (p - q)).sum().item()
        agreeing += int((expected.argmax(-1) == actual.argmax(-1)).sum())
    positions = reference[..., 0].numel()
    return Parity(difference, kl / positions, agreeing / positions, positions)


def kl_divergence(reference: "torch.Tensor", logits: "torch.Tensor") -> "torch.Tensor":
    """KL(reference || logits) of next-token distributions [positions, vocabulary], summed over positions, in nats."""
    from torch.nn import functional as F

    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    return F.kl_div(q, p, reduction="sum", log_target=True)


def cross_entropy(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Cross-entropy of logits [positions, vocabulary] and labels [positions], summed over positions, in nats."""
    from torch.nn import functional as F

    return F.cross_entropy(logits.float(), labels, reduction="sum")
