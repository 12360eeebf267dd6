"""Searches that remove whole layers of a classifier: greedily where nothing else varies, with widths, and by latency."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_glue_search import Answers, write_set
from tiny_bert import HIDDEN, LAYERS, MLP, RANK, TinyBert

WHOLE = [HIDDEN] * LAYERS + [RANK] * LAYERS + [MLP] * LAYERS


def kl(whole: torch.Tensor, small: torch.Tensor) -> float:
    return (whole.softmax(-1) * (whole.log_softmax(-1) - small.log_softmax(-1))).sum(-1).mean().item()


def test_layers_alone(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """Removed greedily until the bound is met: first the cheapest one, then the other."""
    source = tiny_bert.deep(tiny_bert.source(2), only=True)
    data, out = write_set(tmp_path, "RTE"), tmp_path / "out"
    command = ["search", *source.arguments(), "--data", data, "--output", out, "--num-samples", 16, "--cost", "macs"]
    run_cli(*command, "--evals", 8, "--pick", "macs<=0.4x").ok()
    record = json.loads((out / "search.json").read_text())
    answers = Answers(source, data)
    whole = answers.of([*WHOLE, 1, 1])
    evaluated = {tuple(each["widths"][-2:]): each["quality"] for each in record["evaluations"]}
    assert record["evaluations"][0]["widths"][-2:] == [1, 1] and (0, 0) in evaluated
    for depth, quality in evaluated.items():
        assert quality == pytest.approx(kl(whole, answers.of([*WHOLE, *depth])), rel=1e-3, abs=1e-6)
    assert record["evaluations"][record["picks"][0]["evaluation"]]["widths"][-2:] == [0, 0]
    written = json.loads((out / "subnetworks/macs-0.4x.json").read_text())
    assert (written["widths"]["layers.0"], written["widths"]["layers.2"]) == (0, 0)
