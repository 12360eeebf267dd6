"""Exports of encoders without some layers: IRs and checkpoints against the definition, by stock clients too; the model card."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino as ov
import pytest
import torch
from optimum.intel import OVModelForFeatureExtraction, OVModelForSequenceClassification
from safetensors.torch import load_file, save_file
from tiny_bert import TinyBert, oracle_embeddings, oracle_hidden, oracle_logits, pairs
from tiny_models import TinySource
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lonas_edge import load_checkpoint
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.network.materialize import MaterializedModel

UNEQUAL = [32, 64, 48, 6, 8, 6, 64, 96, 128, 1, 0]  # without layer 0
EQUAL = [64, 64, 64, 6, 8, 8, 64, 128, 128, 1, 0]  # the layers that stay are whole
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def source_of(task: str, tiny_bert: TinyBert) -> TinySource:
    return tiny_bert.deep(tiny_bert.source(2) if task == "classifier" else tiny_bert.embedder())


def expected_of(task: str, source: TinySource, widths: list[int]) -> torch.Tensor:
    """Logits of the oracle, or hidden states without those at padding."""
    if task == "classifier":
        return oracle_logits(source.base, source.adapter, source.space, widths, pairs())
    return oracle_hidden(source, widths, pairs()) * pairs()["attention_mask"][..., None]


def outputs_of(task: str, model: Any) -> torch.Tensor:
    """The same of a client's model."""
    with torch.inference_mode():
        output = model(**pairs())
    return output.logits if task == "classifier" else output.last_hidden_state * pairs()["attention_mask"][..., None]


def run_export(source: TinySource, widths: list[int], output: Path, **options: Any) -> Manifest:
    return export(source.opened(), source.subnetwork(widths), output, ExportOptions(**options))


@pytest.mark.parametrize("task", ["classifier", "embedder"])
def test_ir(task: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """fp32 by optimum-intel; no operation of the removed layer is left."""
    source, kind = source_of(task, tiny_bert), {"classifier": OVModelForSequenceClassification}
    manifest = run_export(source, UNEQUAL, tmp_path / "out", weight_format="fp32")
    model = kind.get(task, OVModelForFeatureExtraction).from_pretrained(tmp_path / "out", ov_config=dict(EXACT))
    expected = expected_of(task, source, UNEQUAL)
    assert (outputs_of(task, model) - expected).abs().max() < 1e-3
    assert (expected - expected_of(task, source, [*UNEQUAL[:-1], 1])).abs().max() > 0.05
    assert manifest.parity["materialized"].max_logit_difference < 1e-8 and manifest.parity["ir"].max_logit_difference < 1e-3
    graph = ov.Core().read_model(tmp_path / "out/openvino_model.xml")
    assert sum("Softmax" in node.get_type_name() for node in graph.get_ops()) <= 2  # none where attention is one operation
    assert manifest.layers[0][0].kept == manifest.layers[0][1].kept == 0 and manifest.layers[2][1].kept == 128
    card = (tmp_path / "out/README.md").read_text()
    assert "Layer 0 removed; the others are renumbered from 0 on." in card and "removed blocks" not in card


@pytest.mark.parametrize("task", ["classifier", "embedder"])
def test_checkpoint(task: str, tiny_bert: TinyBert, tmp_path: Path, run_cli: Callable) -> None:
    """By stock transformers where widths are equal, by load_checkpoint always; it can be exported again."""
    source = source_of(task, tiny_bert)
    stock = AutoModelForSequenceClassification if task == "classifier" else AutoModel
    for widths, name in ((EQUAL, "equal"), (UNEQUAL, "unequal")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"widths": dict(zip(names(source), widths, strict=True))}))
        chosen = ["--stage", "checkpoint", "--subnet", tmp_path / f"{name}.json", "--output", tmp_path / name]
        ran = run_cli("export", *source.arguments(), *chosen)
        assert ran.code == 0, ran.err
        models = [load_checkpoint(tmp_path / name)] + ([stock.from_pretrained(tmp_path / name)] if name == "equal" else [])
        expected = expected_of(task, source, widths)
        for model in models:
            assert (outputs_of(task, model.eval()) - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
    ran = run_cli("export", tmp_path / "equal", "--weight-format", "fp32", "--output", tmp_path / "again")
    assert ran.code == 0, ran.err
    card = (tmp_path / "equal/README.md").read_text()
    assert f"  0  {'·' * 24}   0  {'·' * 24}   0" in card and "removed blocks" not in card


def names(source: TinySource) -> list[str]:
    """Names of groups: of heads, ranks, MLP widths and layers."""
    inner = [f"layers.{index}.{name}" for name in ("attention.self.width", "attention.self.rank") for index in range(3)]
    return [*inner, *(f"layers.{index}.intermediate.width" for index in range(3)), "layers.2", "layers.0"]


def test_sentence_transformers(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Where it is installed: the checkpoint, as any other model's."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source, texts = source_of("embedder", tiny_bert), ["the good film", "not " * 20]
    run_export(source, EQUAL, tmp_path / "out", stage="checkpoint")
    embeddings = sentence_transformers.SentenceTransformer(str(tmp_path / "out"), local_files_only=True).encode(texts)
    inputs = AutoTokenizer.from_pretrained(source.base)(texts, padding=True, return_tensors="pt", return_token_type_ids=True)
    expected = oracle_embeddings(oracle_hidden(source, EQUAL, inputs), inputs["attention_mask"])
    assert (torch.tensor(embeddings) - expected).abs().max() < 1e-4


def test_wrong_numbers_are_refused(tiny_bert: TinyBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers in another order: the export's own oracle is the super-network, which does not renumber."""
    swapped = lambda model, name: model.source.architecture.renumber(name, {0: 2, 1: 1})  # noqa: E731
    monkeypatch.setattr(MaterializedModel, "original", swapped)
    with pytest.raises(LonasEdgeError, match="the hidden states of the materialized model differ from the activated super-"):
        run_export(source_of("embedder", tiny_bert), EQUAL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_damaged_weights_have_the_base_s_names(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Layer 1 is layer 0 of what is written; a damaged layer that is removed does not matter."""
    source = source_of("classifier", tiny_bert).copied_to(tmp_path)
    path, name = source.base / "model.safetensors", "encoder.layer.1.intermediate.dense.weight"
    tensors = load_file(path)
    tensors["encoder.layer.0.intermediate.dense.weight"][0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    run_export(source, EQUAL, tmp_path / "out", stage="checkpoint", verify=False)
    tensors[name][0] = torch.nan
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(LonasEdgeError, match=rf"bert\.{name}: holds NaN or Inf, in model\.safetensors"):
        run_export(source, EQUAL, tmp_path / "damaged", stage="checkpoint", verify=False)
