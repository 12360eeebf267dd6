"""What a network's answers are, and how far they are from what is right or from another network's: one object a task.

A causal language model answers at each position that counts, with a distribution over tokens; a classifier once a sequence,
with a distribution over classes, or, of one output, with a number. All figures are summed over answers.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch.nn import functional as F

from lonas_edge.data.encoding import IGNORED
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, Task
from lonas_edge.network.divergence import cross_entropy, kl_divergence
from lonas_edge.space.architecture import Architecture

Batch = Mapping[str, torch.Tensor]


class Objective(ABC):
    """What a task's answers are."""

    @abstractmethod
    def counted(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Of what the head is given, what answers that count are made of.

        Args:
            hidden: As of `Family.hidden`.
            batch: The batch.

        Returns:
            [answers, hidden].
        """

    @abstractmethod
    def answers(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Of the logits that a model gave for a batch, those that count.

        Args:
            logits: As of the model.
            labels: The batch's.

        Returns:
            [answers, outputs].
        """

    @abstractmethod
    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Of a batch's labels, those that count, [answers]."""

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The loss, summed over answers.

        Args:
            logits: [answers, outputs].
            labels: [answers].

        Returns:
            The sum.
        """

    @abstractmethod
    def divergence(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The distance from another network's answers, summed.

        Args:
            reference: Its logits, [answers, outputs].
            logits: The same shape.

        Returns:
            The sum.
        """


class NextToken(Objective):
    """Answers are the tokens that follow the positions that are kept; the loss is their cross-entropy, the distance KL."""

    def counted(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """See `Objective`."""
        return hidden[:, batch["logits_to_keep"]][batch["labels"] != IGNORED]

    def answers(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return logits.flatten(0, 1)[labels.flatten() != IGNORED]

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return labels[labels != IGNORED]

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return cross_entropy(logits, labels)

    def divergence(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return kl_divergence(reference, logits)


class OneClass(NextToken):
    """An answer a sequence: its class; cross-entropy and KL."""

    def counted(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """See `Objective`."""
        return hidden

    def answers(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return logits

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return labels


class OneNumber(OneClass):
    """An answer a sequence: a number; squared errors and distances."""

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return F.mse_loss(logits[:, 0].float(), labels.float(), reduction="sum")

    def divergence(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """See `Objective`."""
        return F.mse_loss(logits.float(), reference.float(), reduction="sum")


_TOKENS, _CLASS, _NUMBER = NextToken(), OneClass(), OneNumber()
_OF: Mapping[Task, Callable[[int], Objective]] = {
    CAUSAL_LM: lambda _outputs: _TOKENS,
    CLASSIFICATION: lambda outputs: _NUMBER if outputs == 1 else _CLASS,
}


def objective_of(architecture: Architecture) -> Objective:
    """The objective of a model's task and head."""
    return _OF[architecture.family.task](architecture.linears[architecture.family.head].out_features)
