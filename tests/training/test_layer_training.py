"""Training with removable layers of an encoder, and of one sub-network without some of them, against the oracle."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_glue_training import OPTIONS, run, write_task
from tiny_bert import TinyBert, oracle_logits, pairs
from tiny_models import TinySource

import lonas_edge.training.schedule
from lonas_edge import load_checkpoint
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.training.inputs import open_recovery
from lonas_edge.training.options import TrainOptions
from lonas_edge.training.train import train

WIDTHS = [32, 64, 32, 6, 8, 6, 64, 128, 96, 1, 0]  # without layer 0; 32 divides each: INT4 has its groups


@pytest.fixture
def deep(tiny_bert: TinyBert, monkeypatch: pytest.MonkeyPatch) -> TinySource:
    """A space with two removable layers, whose stage trains depth at a high rate."""
    monkeypatch.setattr(lonas_edge.training.schedule, "DEPTH_RATE", 0.5)
    source = tiny_bert.deep(tiny_bert.source())
    content = json.loads(source.space.read_text())
    content["bootstrapNAS"]["training"]["schedule"]["list_stage_descriptions"][0]["train_dims"] = ["width", "depth"]
    source.space.write_text(json.dumps(content))
    return source


def test_a_super_adapter_and_its_recovery(deep: TinySource, tmp_path: Path) -> None:
    """Sorted channels; the adapter of a removed layer stays as it was, the others are trained."""
    data = write_task(tmp_path, "RTE")
    record = run(deep, data, tmp_path / "super", reorder=True)
    assert record.stages[0]["depth_rate"] == 0.5 and (tmp_path / "super/channel_order.safetensors").exists()
    (tmp_path / "chosen.json").write_text(json.dumps({"widths": WIDTHS}))
    recovered = tmp_path / "recovered"
    train(open_recovery(str(tmp_path / "super"), data, str(tmp_path / "chosen.json")), recovered, TrainOptions(**OPTIONS))
    for folder, opened in ((tmp_path / "super", None), (recovered, open_source(str(recovered)))):
        network = load_super_network(opened or open_source(str(folder)))
        for widths in (WIDTHS,) if opened else (WIDTHS, [*WIDTHS[:-2], 0, 0], [*WIDTHS[:-2], 1, 1]):
            network.activate(widths)
            with torch.inference_mode():
                actual = network.model(**pairs()).logits
            assert (actual - oracle_logits(deep.base, folder, deep.space, widths, pairs())).abs().max() < 1e-4
    before, after = (load_file(folder / "adapter_model.safetensors") for folder in (tmp_path / "super", recovered))
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]) == ("layer.0." in name), name
    opened = open_source(str(recovered))
    assert opened.select().removed == ("bert.encoder.layer.0",)
    export(opened, opened.select(), tmp_path / "out", ExportOptions(stage="checkpoint"))
    with torch.inference_mode():
        logits = load_checkpoint(tmp_path / "out", torch.float64)(**pairs()).logits
    assert (logits - oracle_logits(deep.base, recovered, deep.space, WIDTHS, pairs())).abs().max() < 1e-5
