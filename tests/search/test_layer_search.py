"""Searches that remove whole layers of a classifier: greedily where nothing else varies, with widths, and by latency."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
import torch
from test_glue_search import Answers, write_set
from tiny_bert import HIDDEN, LAYERS, MLP, RANK, TinyBert

from lonas_edge.search.dimensions import find_dimensions

WHOLE = [HIDDEN] * LAYERS + [RANK] * LAYERS + [MLP] * LAYERS


def kl(whole: torch.Tensor, small: torch.Tensor) -> float:
    return (whole.softmax(-1) * (whole.log_softmax(-1) - small.log_softmax(-1))).sum(-1).mean().item()


def test_layers_alone(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """Removed greedily until the bound is met: first the cheapest one, then the other."""
    source = tiny_bert.deep(tiny_bert.source(2), only=True)
    data, out = write_set(tmp_path, "RTE"), tmp_path / "out"
    command = ["search", *source.arguments(), "--data", data, "--output", out, "--num-prompts", 16, "--cost", "macs"]
    ran = run_cli(*command, "--evals", 8, "--pick", "macs<=0.4x", "--json")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    answers = Answers(source, data)
    whole = answers.of([*WHOLE, 1, 1])
    evaluated = {tuple(each["widths"][-2:]): each["quality"] for each in record["evaluations"]}
    assert record["evaluations"][0]["widths"][-2:] == [1, 1] and (0, 0) in evaluated
    for depth, quality in evaluated.items():
        assert quality == pytest.approx(kl(whole, answers.of([*WHOLE, *depth])), rel=1e-3, abs=1e-6)
    assert record["evaluations"][record["picks"][0]["evaluation"]]["widths"][-2:] == [0, 0]
    written = json.loads((out / "subnetworks/macs-0.4x.json").read_text())
    assert (written["widths"]["layers.0"], written["widths"]["layers.2"]) == (0, 0)


def test_layers_and_widths(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """Heads and MLP of a removed layer are no choice: each network counts once."""
    source = tiny_bert.deep(tiny_bert.source(2))
    assert find_dimensions(source.opened()).size == (3 * 3 + 1) * 3 * 3 * (3 * 3 + 1)
    command = ["search", *source.arguments(), "--data", write_set(tmp_path, "RTE"), "--output", tmp_path / "out"]
    ran = run_cli(*command, "--num-prompts", 16, "--cost", "macs", "--evals", 40, "--pick", "macs<=0.5x", "--json")
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    networks = [each["widths"] for each in record["evaluations"]]
    assert any(0 in widths for widths in networks) and len({tuple(widths) for widths in networks}) == len(networks)
    for widths, layer, kept in ((w, layer, w[9 + place]) for w, (place, layer) in product(networks, enumerate((2, 0)))):
        assert kept or (widths[layer], widths[6 + layer]) == (HIDDEN, MLP)
    macs = record["evaluations"][0]["cost"]
    assert record["evaluations"][record["picks"][0]["evaluation"]]["cost"] <= 0.5 * macs
