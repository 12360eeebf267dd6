"""Study: fine-tune a cross-encoder for STS-B in plain PyTorch, as users do elsewhere, and save it as a base model.

    python benchmarks/cross_encoder.py models/minilm-l6 --datasets GLUE --output DIR [--epochs 4] [--lr 5e-5] [--seed 1]

All weights are trained on the scores of STS-B's training set, scaled to 0…1, with the binary cross-entropy that
sentence-transformers uses for one output. Learning rate: linear warm-up for a tenth of the steps, then linear to 0.
Prints Spearman's correlation on the development set after each epoch; the last epoch is saved.
"""

import argparse
import csv
import random
import time
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

Pair = tuple[str, str, float]
BATCH, LONGEST = 16, 128


def read(path: Path) -> list[Pair]:
    """Sentences and scores of 0…5."""
    with path.open(newline="") as lines:
        rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [(row["sentence1"], row["sentence2"], float(row["score"])) for row in rows]


class Study:
    """A cross-encoder and its tokenizer."""

    def __init__(self, base: Path, seed: int):
        torch.manual_seed(seed)
        self.rng = random.Random(seed)
        self.tokenizer = AutoTokenizer.from_pretrained(base)
        self.model: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)

    def logits(self, pairs: list[Pair]) -> torch.Tensor:
        """Logits [pairs]."""
        first, second, _ = zip(*pairs, strict=True)
        encoded = self.tokenizer(
            list(first), list(second), padding=True, truncation=True, max_length=LONGEST, return_tensors="pt"
        )
        found: torch.Tensor = self.model(**encoded).logits[:, 0]
        return found

    def train(self, pairs: list[Pair], held_out: list[Pair], epochs: int, lr: float) -> None:
        """Train all weights and print the correlation after each epoch."""
        steps, start = epochs * (len(pairs) // BATCH), time.time()
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=0.01)
        schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
        for epoch in range(epochs):
            self.model.train()
            pool = self.rng.sample(pairs, len(pairs))
            for index in range(0, len(pool) - BATCH + 1, BATCH):
                batch = pool[index : index + BATCH]
                scores = torch.tensor([score / 5 for *_, score in batch])
                loss = binary_cross_entropy_with_logits(self.logits(batch), scores)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
                optimizer.step()
                schedule.step()
            correlation = self.correlation(held_out)
            print(f"epoch {epoch + 1}: Spearman {100 * correlation:.2f}, {time.time() - start:.0f} s", flush=True)

    @torch.no_grad()
    def correlation(self, pairs: list[Pair]) -> float:
        """Spearman's correlation of logits and scores."""
        self.model.eval()
        logits = torch.cat([self.logits(pairs[start : start + 50]) for start in range(0, len(pairs), 50)])
        return float(spearmanr(logits.numpy(), [score for *_, score in pairs]).statistic)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("--datasets", type=Path, required=True, help="directory that holds STS-B")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-5)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    study = Study(arguments.base, arguments.seed)
    folder = arguments.datasets / "STS-B"
    study.train(read(folder / "train.tsv"), read(folder / "dev.tsv"), arguments.epochs, arguments.lr)
    study.model.save_pretrained(arguments.output)
    study.tokenizer.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
