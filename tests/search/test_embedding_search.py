"""A search on embedding models: qualities, evaluations, refused options."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_bert import LAYERS, TinyBert, oracle_embeddings, oracle_hidden
from tiny_models import TinySource
from transformers import AutoTokenizer

from lonas_edge.network.super_network import load_super_network

UNEQUAL = [32, 64, 64, 8, 8, 8, 64, 96, 128]
MAXIMAL = [64] * LAYERS + [8] * LAYERS + [128] * LAYERS


def write_pairs(folder: Path, scored: bool = True, count: int = 24) -> Path:
    """Random pairs of texts of unequal lengths."""
    draw = np.random.default_rng(3)
    words = ("the", "good", "bad", "film", "not", "is", "same")
    records = []
    for _ in range(count):
        first, second = (" ".join(draw.choice(words, size=draw.integers(1, 12))) for _ in range(2))
        records.append(
            {"sentence1": first, "sentence2": second, **({"score": round(draw.uniform(-1, 1), 2)} if scored else {})}
        )
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    return folder / "pairs.jsonl"


class Embedded:
    """A source's held-out texts, and the oracle's embeddings."""

    def __init__(self, source: TinySource, data: Path, mode: str = "mean", count: int = 16):
        self.source, self.mode = source, mode
        self.batches = source.opened().open_data(data).batches(AutoTokenizer.from_pretrained(source.base), count, 0)

    def of(self, widths: list[int]) -> torch.Tensor:
        hidden = [(oracle_hidden(self.source, widths, batch), batch["attention_mask"]) for batch in self.batches]
        return torch.cat([oracle_embeddings(states, mask, self.mode) for states, mask in hidden])

    def distance(self, widths: list[int]) -> float:
        """Mean of 1 - cosine from the maximal network."""
        return float((1 - (self.of(MAXIMAL) * self.of(widths)).sum(1)).mean())


@pytest.mark.parametrize("mode", ["mean", "cls", "lasttoken"])
def test_qualities(mode: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """The cosine distance of all texts."""
    source = tiny_bert.embedder(tiny_bert.body(mode, normalize=mode == "cls"))
    embedded = Embedded(source, write_pairs(tmp_path), mode)
    network = load_super_network(source.opened())
    assert network.kl([UNEQUAL], embedded.batches)[0] == pytest.approx(embedded.distance(UNEQUAL), rel=1e-3)
    [equal] = network.kl([MAXIMAL], embedded.batches)
    assert 0 <= equal < 1e-9


def test_a_search(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    source, data, output = tiny_bert.embedder(), write_pairs(tmp_path), tmp_path / "out"
    shutil.copytree(source.base, tmp_path / "base")
    source = replace(source, base=tmp_path / "base")
    options = ("--cost", "macs", "--num-samples", 16, "--evals", 12)
    run_cli("search", *source.arguments(), "--data", data, "--output", output, *options).ok()
    record, embedded = json.loads((output / "search.json").read_text()), Embedded(source, data)
    assert record["identity"]["template"] == "mean, normalized" and record["units"]["kl"] == "cosine distance"
    assert len(record["evaluations"]) == 12
    for evaluation in record["evaluations"][:4]:
        assert evaluation["quality"] == pytest.approx(embedded.distance(evaluation["widths"]), rel=0.05, abs=1e-4)
    (source.base / "config_sentence_transformers.json").write_text('{"prompts": {"q": "is "}, "default_prompt_name": "q"}')
    changed = run_cli("search", *source.arguments(), "--data", data, "--output", output, *options)
    assert changed.code == 1 and "holds another search" in changed.err and "pooling" in changed.err


def test_refused(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    source, output = tiny_bert.embedder(), tmp_path / "out"
    unscored = write_pairs(tmp_path, scored=False)
    for options, fault in (
        (("--quality", "loss", "--num-samples", 16), "--quality loss needs labels"),
        (("--num-samples", 25), "24 prompts; expected at least 25"),
    ):
        ran = run_cli("search", *source.arguments(), "--data", unscored, "--output", output, *options)
        assert ran.code in (1, 2) and fault in " ".join(ran.err.split()), ran.err
        assert not output.exists()
