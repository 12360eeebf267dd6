"""Materialized checkpoints against the oracle: every family, every kind of sub-network."""


import json

import pytest
import torch
from oracle import oracle_logits

from lonas_edge.materialize import MaterializedModel, write_weights
from lonas_edge.modeling import load_checkpoint
from lonas_edge.source import open_source
from lonas_edge.subnetwork import Subnetwork


def materialize(source, widths, folder, dtype=torch.float32):
    opened = open_source(str(source.adapter), str(source.base), source.space)
    model = MaterializedModel(opened, Subnetwork(tuple(widths), "test"))
    folder.mkdir()
    write_weights(model, folder, dtype)
    (folder / "config.json").write_text(json.dumps(model.config(str(dtype).removeprefix("torch."))))
    return folder

@pytest.mark.parametrize("name", ["heuristic", "minimal", "unequal:0"])
def test_logits(any_source, name, choose, ids, tmp_path):
    widths = choose(any_source, name)
    folder = materialize(any_source, widths, tmp_path / "out")
    expected = oracle_logits(any_source.base, any_source.adapter, any_source.space, widths, ids)
    found = load_checkpoint(folder, torch.float64)
    with torch.no_grad():
        logits = found(input_ids=ids).logits
    d = (logits-expected).abs().max().item()
    print(any_source.case, name, d, expected.abs().max().item())
    assert d < 1e-5
