"""Qualities of classifiers' sub-networks, against the oracle."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bert import TinyBert, oracle_logits
from tiny_models import TinySource
from transformers import AutoTokenizer

from lonas_edge.network.super_network import load_super_network

UNEQUAL = [32, 64, 64, 8, 8, 8, 64, 96, 128]


def write_set(folder: Path, task: str, count: int = 24) -> Path:
    """A random file of a task."""
    draw = np.random.default_rng(3)
    words = ("the", "good", "bad", "film", "not", "is", "same")
    heads = {"RTE": "index\tsentence1\tsentence2\tlabel", "STS-B": "index\tsentence1\tsentence2\tscore"}
    lines = [heads[task]]
    for index in range(count):
        first, second = (" ".join(draw.choice(words, size=draw.integers(1, 7))) for _ in range(2))
        label = draw.choice(["entailment", "not_entailment"] if task == "RTE" else ["0.5", "2.25", "4.0"])
        lines.append(f"{index}\t{first}\t{second}\t{label}")
    (folder / task).mkdir(parents=True, exist_ok=True)
    (folder / task / "dev.tsv").write_text("\n".join(lines) + "\n")
    return folder / task / "dev.tsv"


class Answers:
    """A source's held-out texts, and the oracle's logits."""

    def __init__(self, source: TinySource, data: Path):
        self.source, self.data = source, source.opened().open_data(data)
        self.batches = self.data.batches(AutoTokenizer.from_pretrained(source.base), 16, 0)

    def of(self, widths: list[int]) -> torch.Tensor:
        source = self.source
        return torch.cat([oracle_logits(source.base, source.adapter, source.space, widths, batch) for batch in self.batches])

    @property
    def labels(self) -> torch.Tensor:
        return torch.cat([batch["labels"] for batch in self.batches])


@pytest.mark.parametrize("task", ["RTE", "STS-B"])
def test_qualities(task: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Classes: KL and cross-entropy; regressions: squared distances and errors."""
    source = tiny_bert.source(1 if task == "STS-B" else 2)
    answers = Answers(source, write_set(tmp_path, task))
    assert len(answers.labels) == 16
    network = load_super_network(source.opened())
    maximal = [group[0] for group in source.groups()]
    whole, small, labels = answers.of(maximal), answers.of(UNEQUAL), answers.labels
    if task == "RTE":
        kl = (whole.softmax(-1) * (whole.log_softmax(-1) - small.log_softmax(-1))).sum(-1).mean()
        loss = -small.log_softmax(-1)[range(16), labels].mean()
    else:
        kl, loss = (whole - small).square().mean(), (small[:, 0] - labels).square().mean()
    assert network.kl([UNEQUAL], answers.batches)[0] == pytest.approx(kl.item(), rel=1e-3, abs=1e-6)
    assert network.losses([UNEQUAL], answers.batches)[0] == pytest.approx(loss.item(), rel=1e-3)
    assert answers.data.units == ({} if task == "RTE" else {"kl": "squared distance", "loss": "squared error"})
