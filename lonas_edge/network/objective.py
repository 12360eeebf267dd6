"""Losses and distances between networks, one object per task.

A causal language model predicts a distribution over tokens at each position that counts; a classifier predicts one per sequence
over classes, or, with one output, a number; a sentence embedding model gives a vector per text. All figures are sums.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F

from lonas_edge.data.encoding import IGNORED
from lonas_edge.data.pooling import Pooling
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, EMBEDDING, ModelKind
from lonas_edge.network.divergence import cross_entropy, kl_divergence
from lonas_edge.space.architecture import Architecture

Batch = Mapping[str, torch.Tensor]
_SCALE = 20.0  # of cosines in InfoNCE


class Objective(ABC):
    """A task's loss and distance, and the positions at which they are computed."""

    @abstractmethod
    def counted(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Select the hidden states [answers, hidden] at the positions that count from `Family.hidden`'s output."""

    @abstractmethod
    def answers(self, output: Any, batch: Batch) -> torch.Tensor:
        """Select the logits [answers, outputs] at the positions that count from a model's output for a batch."""

    @abstractmethod
    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Select the labels [answers] that count."""

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of logits [answers, outputs] and labels [answers], summed."""

    @abstractmethod
    def divergence(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Distance from another network's logits [answers, outputs], summed."""

    def predicted(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Predictions and labels that metrics compare, from logits [answers, outputs] and labels [answers]."""
        return logits.argmax(-1), labels

    @abstractmethod
    def drawn(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw labels [answers] from the distribution that logits [answers, outputs] give; `generator` is on the CPU."""


class NextToken(Objective):
    """Predict the next token at each learned position: cross-entropy and KL."""

    def counted(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return hidden[:, batch["logits_to_keep"]][batch["labels"] != IGNORED]

    def answers(self, output: Any, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = output.logits
        return logits.flatten(0, 1)[batch["labels"].flatten() != IGNORED]

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        return labels[labels != IGNORED]

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return cross_entropy(logits, labels)

    def divergence(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return kl_divergence(reference, logits)

    def drawn(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.multinomial(logits.float().softmax(-1).cpu(), 1, generator=generator)[:, 0].to(logits.device)


class OneClass(NextToken):
    """Predict one class per sequence: cross-entropy and KL."""

    def counted(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return hidden

    def answers(self, output: Any, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = output.logits
        return logits

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        return labels


class OneNumber(OneClass):
    """Predict one number per sequence: squared errors and distances."""

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(logits[:, 0].float(), labels.float(), reduction="sum")

    def divergence(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(logits.float(), reference.float(), reduction="sum")

    def predicted(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return logits[:, 0], labels

    def drawn(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return logits[:, 0].float() + torch.randn(len(logits), generator=generator).to(logits.device)


class Embedding(Objective):
    """Embed a text: distances of directions, so an embedding's length does not count.

    The logits of the other methods are embeddings [texts, hidden]; there is no head between them and the counted states. The
    labels that `drawn` makes are embeddings, too; those of data are learned by the subclasses.
    """

    def __init__(self, pooling: Pooling):
        """Pool hidden states by `pooling`."""
        self._pooling = pooling

    def counted(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self._pooling.pooled(hidden, batch["attention_mask"])

    def answers(self, output: Any, batch: Batch) -> torch.Tensor:
        return self.counted(output.last_hidden_state, batch)

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        return labels

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        directions = _directions(logits)
        return (directions - labels).square().sum() / 2 if labels.ndim == 2 else self._learned(directions, labels)

    def _learned(self, directions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of the texts' directions [texts, hidden] on the labels [texts] of data, summed over texts."""
        raise NotImplementedError  # texts alone have no labels; `training.inputs.check` refuses them

    def divergence(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Half the squared distance of directions: 1 - cosine, but never negative, and exact where it is small."""
        return (_directions(logits) - _directions(reference)).square().sum() / 2

    def predicted(self, logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The cosines of pairs, which follow each other, and their scores."""
        return _cosines(_directions(logits)), labels[0::2]

    def drawn(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        directions = _directions(logits)
        return directions + torch.randn(directions.shape, generator=generator).to(logits.device)


class Ranking(Embedding):
    """Find the second text of a pair among those of the batch: InfoNCE (van den Oord et al., arXiv:1807.03748).

    As sentence-transformers' `MultipleNegativesRankingLoss`, with its scale of 20; third texts are further negatives.
    """

    def __init__(self, pooling: Pooling, texts: int):
        """Learn records of `texts` texts, which follow each other in a batch."""
        super().__init__(pooling)
        self._texts = texts

    def _learned(self, directions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        records = directions.view(-1, self._texts, directions.shape[-1])
        candidates = records[:, 1:].transpose(0, 1).flatten(0, 1)  # the second texts first
        cosines = (records[:, :1] * candidates).sum(-1)  # no product of matrices, which autocast would round
        right = torch.arange(len(records), device=cosines.device)
        return self._texts * F.cross_entropy(_SCALE * cosines, right, reduction="sum")


class Similarity(Embedding):
    """Give the two texts of a scored pair that cosine: squared errors, as sentence-transformers' `CosineSimilarityLoss`."""

    def _learned(self, directions: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return 2 * F.mse_loss(_cosines(directions), labels[0::2].float(), reduction="sum")


def _cosines(directions: torch.Tensor) -> torch.Tensor:
    return (directions[0::2] * directions[1::2]).sum(-1)


def _directions(embeddings: torch.Tensor) -> torch.Tensor:
    return F.normalize(embeddings.float(), dim=-1)


_TOKENS, _CLASS, _NUMBER = NextToken(), OneClass(), OneNumber()
_OF: Mapping[ModelKind, Callable[[Architecture, Pooling | None], Objective]] = {
    CAUSAL_LM: lambda _architecture, _pooling: _TOKENS,
    CLASSIFICATION: lambda architecture, _pooling: _NUMBER if architecture.config.num_labels == 1 else _CLASS,
    EMBEDDING: lambda _architecture, pooling: Embedding(pooling or Pooling()),
}


def objective_of(architecture: Architecture, pooling: Pooling | None = None) -> Objective:
    """The objective of a model's task and head, or of its pooling."""
    return _OF[architecture.family.kind](architecture, pooling)
