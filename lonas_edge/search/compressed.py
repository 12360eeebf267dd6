"""Quality of sub-networks as an IR stores them: the super-network, with each weight as it is after compression."""

from collections.abc import Sequence

import torch

from lonas_edge.network.calibration import given
from lonas_edge.network.stored import StoredWeights
from lonas_edge.network.super_network import HEAD_POSITIONS, Batch, SuperNetwork


class CompressedNetwork:
    """A super-network whose sub-networks compute like their IRs in a weight format."""

    def __init__(self, network: SuperNetwork, weight_format: str):
        """Compress the weights that all sub-networks share."""
        self._network, self._weights = network, StoredWeights(network, weight_format)

    def score(self, quality: str, chosen: Sequence[int], batches: Sequence[Batch], reference: Sequence[torch.Tensor]) -> float:
        """Score a sub-network, in nats; arguments as of `quality.likelihood_score`."""
        total, positions, objective = 0.0, 0, self._network.objective
        self._network.activate(chosen)
        self._network.model.eval()
        with torch.inference_mode():
            for batch, kept in zip(batches, reference, strict=True):
                with self._weights.active(chosen):
                    hidden = objective.counted(self._network.family.hidden(self._network.base, **given(batch)), batch)
                labels = objective.labels(batch["labels"])
                parts = (torch.split(each, HEAD_POSITIONS) for each in (kept, hidden, labels))
                total += sum(self._distance(quality, *part) for part in zip(*parts, strict=True))
                positions += len(hidden)
        return total / positions

    def _distance(self, quality: str, reference: torch.Tensor, hidden: torch.Tensor, labels: torch.Tensor) -> float:
        family, base = self._network.family, self._network.base
        with self._weights.active_head():
            logits = family.logits(base, hidden)
        if quality == "kl":
            return self._network.objective.divergence(family.logits(base, reference), logits).item()
        return self._network.objective.loss(logits, labels).item()
