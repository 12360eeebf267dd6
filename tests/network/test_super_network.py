"""Sub-networks scored in one loaded super-network, against the definition with plain forward passes of the oracle's logits."""

from collections.abc import Callable

import pytest
import torch
from oracle import oracle_logits
from tiny_models import TinyModels, TinySource, families

from lonas_edge.data.encoding import IGNORED
from lonas_edge.network import super_network
from lonas_edge.network.super_network import load_super_network

NAMES = ("minimal", "unequal:3", "heuristic", "maximal")


def batch_of(ids: torch.Tensor, learned: list[list[int]]) -> dict[str, torch.Tensor]:
    """A batch as the collator makes it: row r learns the tokens at the places `learned[r]`."""
    kept = sorted({place - 1 for places in learned for place in places})
    labels = torch.full((len(ids), len(kept)), IGNORED)
    for row, places in enumerate(learned):
        for place in places:
            labels[row, kept.index(place - 1)] = ids[row, place]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "logits_to_keep": torch.tensor(kept), "labels": labels}


def counted_logits(
    source: TinySource, widths: list[int], batches: list[dict[str, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits at the positions that count, and the tokens that follow."""
    logits, labels = [], []
    for batch in batches:
        whole = oracle_logits(source.base, source.adapter, source.space, widths, batch["input_ids"])
        counted = batch["labels"] != IGNORED
        logits.append(whole[:, batch["logits_to_keep"]][counted])
        labels.append(batch["labels"][counted])
    return torch.cat(logits), torch.cat(labels)


@pytest.fixture
def batches(ids: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Two batches; rows learn different numbers of tokens."""
    return [batch_of(ids, [[3, 4, 7], [11]]), batch_of(ids[:, :9].flip(0), [[8], [2, 8]])]


@pytest.mark.parametrize("case", families("llama", "neox", "phi3", "gemma2", "bloom", "granite"))
@pytest.mark.parametrize("positions", [2, 256])
def test_scores(case: str, positions: int, tiny_models: TinyModels, choose: Callable, batches: list, monkeypatch) -> None:
    monkeypatch.setattr(super_network, "HEAD_POSITIONS", positions)  # logits are computed so many positions at a time
    source = tiny_models.source(case)
    network = load_super_network(source.opened())
    chosen = [choose(source, name) for name in NAMES]
    kl, losses = network.kl(chosen, batches), network.losses(chosen, batches)
    reference = counted_logits(source, choose(source, "maximal"), batches)[0].log_softmax(-1)
    for widths, found_kl, found_loss in zip(chosen, kl, losses, strict=True):
        logits, labels = counted_logits(source, widths, batches)
        log_q = logits.log_softmax(-1)
        expected = (reference.exp() * (reference - log_q)).sum(-1).mean().item()
        assert found_kl == pytest.approx(expected, rel=2e-3, abs=1e-6)
        assert found_loss == pytest.approx(-log_q.gather(1, labels[:, None]).mean().item(), rel=1e-4)
    assert kl[-1] == pytest.approx(0, abs=1e-6)
    assert kl[0] > 0.01
