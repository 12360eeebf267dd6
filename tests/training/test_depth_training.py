"""Training with removable blocks and elastic heads, against the oracle."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from tiny_models import TinyModels, families
from training_runs import SPACE, TWELVE, logits_of, run, write_data

import lonas_edge.training.schedule
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network


@pytest.fixture
def deep(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """`deep(case, heads)`: a source whose stage trains depth at a high rate."""
    monkeypatch.setattr(lonas_edge.training.schedule, "DEPTH_RATE", 0.5)

    def make(case: str, heads: bool = False) -> object:
        source = tiny_models.heads_source(case) if heads else tiny_models.deep_source(case)
        content = json.loads(source.space.read_text())
        content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0]["train_dims"] = ["width", "depth"]
        (tmp_path / "deep.json").write_text(json.dumps(content))
        return replace(source, space=tmp_path / "deep.json")

    return make


@pytest.mark.parametrize("case", families("llama", "neox", "phi3", "bloom"))
def test_trained_blocks_equal_the_oracle(
    case: str, deep: Callable, choose: Callable, ids: torch.Tensor, tmp_path: Path
) -> None:
    source, output = deep(case), tmp_path / "out"
    record = run(source, write_data(tmp_path / "data.json", TWELVE), output)
    assert record["stages"][0]["depth_rate"] == 0.5
    network = load_super_network(open_source(str(output)))
    for depth in ([0, 1, 1], [1, 0, 0], [0, 0, 0]):
        widths = choose(source, "unequal:3")[:-3] + depth
        network.activate(widths)
        expected = oracle_logits(source.base, output, output / SPACE, widths, ids)
        assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4


def test_trained_heads_equal_the_oracle(deep: Callable, ids: torch.Tensor, tmp_path: Path) -> None:
    """Heads are sorted by importance; widths and blocks are drawn, too."""
    source, output = deep("llama", heads=True), tmp_path / "out"
    run(source, write_data(tmp_path / "data.json", TWELVE), output)
    opened = open_source(str(output))
    assert {name for name in opened.order.columns if opened.architecture.units[name] > 1}
    network = load_super_network(opened)
    groups = source.groups()
    for heads in ([0, 0, 0], [-1, 0, -1]):
        cut = [group[level] for group, level in zip(groups[9:12], heads, strict=True)]
        widths = [group[-1] for group in groups[:9]] + cut + [1, 1, 0]
        network.activate(widths)
        expected = oracle_logits(source.base, output, output / SPACE, widths, ids)
        assert (logits_of(network.model, ids) - expected).abs().max() < 1e-4
