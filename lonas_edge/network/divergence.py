"""Compare two networks: logits by difference, KL divergence and top tokens; embeddings by the cosine."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from lonas_edge.data.pooling import Pooling


@dataclass(frozen=True)
class Parity:
    """Comparison of two models' logits over the tokens of the prompts, or of an embedding model's hidden states.

    Attributes:
        max_logit_difference: Largest absolute difference, also of hidden states.
        mean_kl: Mean Kullback-Leibler divergence of the predicted distributions from the reference, in nats; of a score, of
            the probabilities sigmoid(score) and 1 - sigmoid(score). None for embeddings.
        top1_agreement: Share of positions at which both prefer the same token or class; None for embeddings and scores.
        positions: Positions compared; texts for embeddings.
        mean_cosine_distance: Mean of 1 - cosine between embeddings and the reference's; None for logits.
    """

    max_logit_difference: float
    mean_kl: float | None
    top1_agreement: float | None
    positions: int
    mean_cosine_distance: float | None = None

    @property
    def compared(self) -> str:
        """The compared outputs, for people."""
        if self.mean_kl is None:
            return "hidden states"
        return "scores" if self.top1_agreement is None else "logits"

    @property
    def measure(self) -> str:
        """What `distance` is, for people."""
        kinds = {"hidden states": "cosine distance", "scores": "KL of their sigmoid (nats)", "logits": "KL (nats)"}
        return f"mean {kinds[self.compared]}"

    @property
    def distance(self) -> float:
        """The mean KL divergence, or the mean cosine distance."""
        distance = self.mean_kl if self.mean_cosine_distance is None else self.mean_cosine_distance
        return math.nan if distance is None else distance


def compare(reference: "torch.Tensor", logits: "torch.Tensor") -> Parity:
    """Compare logits [prompts, tokens, vocabulary], or [texts, classes], with those of a reference; one class is a score."""
    from torch.nn import functional as F

    difference, kl, agreeing, score = 0.0, 0.0, 0, reference.shape[-1] == 1
    for expected, actual in zip(reference, logits, strict=True):  # a prompt at a time: vocabularies are large
        expected, actual = (F.pad(each.double(), (int(score), 0)) for each in (expected, actual))  # a score x is [0, x]
        p, q = expected.log_softmax(-1), actual.log_softmax(-1)
        largest = (expected - actual).abs().max().item()
        difference = largest if math.isnan(largest) else max(difference, largest)
        kl += (p.exp() * (p - q)).sum().item()
        agreeing += int((expected.argmax(-1) == actual.argmax(-1)).sum())
    positions = reference[..., 0].numel()
    return Parity(difference, kl / positions, None if score else agreeing / positions, positions)


def compare_embeddings(reference: "torch.Tensor", hidden: "torch.Tensor", mask: "torch.Tensor", pooling: "Pooling") -> Parity:
    """Compare hidden states [texts, tokens, hidden], 0 at padding, with those of a reference, and their embeddings."""
    reference, hidden = reference.double(), hidden.double()
    directions = [
        pooled / pooled.norm(dim=-1, keepdim=True) for pooled in (pooling.pooled(reference, mask), pooling.pooled(hidden, mask))
    ]
    distances = (directions[0] - directions[1]).square().sum(-1) / 2  # 1 - cosine, exact where it is small
    return Parity((reference - hidden).abs().max().item(), None, None, len(distances), distances.mean().item())


def kl_divergence(reference: "torch.Tensor", logits: "torch.Tensor") -> "torch.Tensor":
    """KL(reference || logits) of next-token distributions [positions, vocabulary], summed over positions, in nats."""
    from torch.nn import functional as F

    p, q = reference.float().log_softmax(-1), logits.float().log_softmax(-1)
    return F.kl_div(q, p, reduction="sum", log_target=True)


def cross_entropy(logits: "torch.Tensor", labels: "torch.Tensor") -> "torch.Tensor":
    """Cross-entropy of logits [positions, vocabulary] and labels [positions], summed over positions, in nats."""
    from torch.nn import functional as F

    return F.cross_entropy(logits.float(), labels, reduction="sum")
