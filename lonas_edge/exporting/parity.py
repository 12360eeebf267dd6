"""Compare two networks: logits by difference, KL divergence and top tokens; embeddings by the cosine."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lonas_edge.data.pooling import Pooling

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Parity:
    """Comparison of two models' outputs: logits over the tokens of prompts, classes or scores of texts, or hidden states."""

    max_logit_difference: float  # largest absolute difference, also of scores and hidden states
    mean_kl: float | None  # mean KL divergence of the predicted distributions from the reference, in nats; of logits only
    top1_agreement: float | None  # share of positions at which both prefer the same token or class; of logits only
    positions: int  # positions compared; texts for classes, scores and embeddings
    mean_cosine_distance: float | None = None  # mean of 1 - cosine between the embeddings; of hidden states only
    relative_difference: float | None = None  # root mean square, relative to that of the reference's scores; of scores only

    @property
    def compared(self) -> str:
        """The compared outputs, for people."""
        if self.mean_cosine_distance is not None:
            return "hidden states"
        return "logits" if self.relative_difference is None else "scores"

    @property
    def distance(self) -> float:
        """The mean KL divergence, the mean cosine distance, or the relative difference; NaN if a record has none."""
        distances = (self.mean_kl, self.mean_cosine_distance, self.relative_difference)
        return next((each for each in distances if each is not None), math.nan)

    @property
    def measure(self) -> str:
        """What `distance` is, for people."""
        names = {"logits": "mean KL (nats)", "hidden states": "mean cosine distance", "scores": "relative difference (RMS)"}
        return names[self.compared]


def compare(reference: "torch.Tensor", logits: "torch.Tensor") -> Parity:
    """Compare logits [prompts, tokens, vocabulary], classes [texts, classes] or scores [texts, 1] with those of a reference."""
    if reference.shape[-1] == 1:  # a softmax over one score is 1, so there is no KL divergence and no class
        reference, difference = reference.double(), logits.double() - reference.double()
        relative = (difference.square().mean() / reference.square().mean()).sqrt().item()
        return Parity(difference.abs().max().item(), None, None, len(reference), relative_difference=relative)
    import torch

    largest, kl, agreeing = [], 0.0, 0
    for expected, actual in zip(reference, logits, strict=True):  # a prompt at a time: vocabularies are large
        expected, actual = expected.double(), actual.double()
        p, q = expected.log_softmax(-1), actual.log_softmax(-1)
        largest.append((expected - actual).abs().max())
        kl += (p.exp() * (p - q)).sum().item()
        agreeing += int((expected.argmax(-1) == actual.argmax(-1)).sum())
    positions = reference[..., 0].numel()
    return Parity(torch.stack(largest).max().item(), kl / positions, agreeing / positions, positions)


def compare_embeddings(reference: "torch.Tensor", hidden: "torch.Tensor", mask: "torch.Tensor", pooling: Pooling) -> Parity:
    """Compare hidden states [texts, tokens, hidden], 0 at padding, with those of a reference, and their embeddings."""
    directions = []
    for states in (reference.double(), hidden.double()):
        pooled = pooling.pool(states, mask)
        directions.append(pooled / pooled.norm(dim=-1, keepdim=True))
    distances = (directions[0] - directions[1]).square().sum(-1) / 2  # 1 - cosine, exact where it is small
    largest = (reference.double() - hidden.double()).abs().max().item()
    return Parity(largest, None, None, len(distances), distances.mean().item())
