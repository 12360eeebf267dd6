"""Training with removable blocks and elastic heads, against the oracle; `test_layer_training` has whole layers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from oracle import oracle_logits
from tiny_models import TinyModels
from training_runs import SPACE, TWELVE, logits_of, run, write_data

import lonas_edge.training.schedule
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network


def test_trained_heads_equal_the_oracle(
    tiny_models: TinyModels, ids: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads are sorted by importance; widths and blocks are drawn, too."""
    monkeypatch.setattr(lonas_edge.training.schedule, "DEPTH_RATE", 0.5)
    source, output = tiny_models.heads_source("llama"), tmp_path / "out"
    content = json.loads(source.space.read_text())
    content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0]["train_dims"] = ["width", "depth"]
    (tmp_path / "deep.json").write_text(json.dumps(content))
    source = replace(source, space=tmp_path / "deep.json")
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
