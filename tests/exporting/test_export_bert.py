"""Export of a classifier: its IR in stock clients vs. the oracle, formats, records, refusals."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from optimum.intel import OVModelForSequenceClassification
from tiny_bert import TinyBert, oracle_logits, pairs
from tiny_models import TinySource
from transformers import AutoTokenizer

from lonas_edge.data.parity import compare
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import verify
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.network import materialize

UNEQUAL = [32, 64, 48, 6, 8, 6, 64, 96, 128]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}


def run_export(source: TinySource, widths: list[int], output: Path, **options: Any) -> Manifest:
    return export(source.opened(), source.subnetwork(widths, "unequal"), output, ExportOptions(**options))


def stock_logits(folder: Path) -> torch.Tensor:
    """Compute logits with optimum-intel."""
    model = OVModelForSequenceClassification.from_pretrained(folder, ov_config=dict(EXACT))
    return model(**pairs()).logits


@pytest.mark.parametrize(("outputs", "ordered"), [(3, False), (3, True), (1, False)])
def test_fp32(outputs: int, ordered: bool, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """A classifier, and a regression."""
    source = tiny_bert.source(outputs)
    source = source.ordered(tmp_path / "ordered") if ordered else source
    manifest = run_export(source, UNEQUAL, tmp_path / "out", weight_format="fp32")
    expected = oracle_logits(source.base, source.adapter, source.space, UNEQUAL, pairs())
    assert (stock_logits(tmp_path / "out") - expected).abs().max() < 1e-3
    assert manifest.parity["ir_stored"].max_logit_difference < 1e-3 and manifest.parity["ir"].positions == 4
    model = ov.Core().read_model(tmp_path / "out/openvino_model.xml")
    assert {port.get_any_name() for port in model.inputs} == {"input_ids", "attention_mask", "token_type_ids"}
    assert all(port.get_partial_shape().is_dynamic for port in model.inputs)
    problem = json.loads((tmp_path / "out/config.json").read_text()).get("problem_type")
    assert stock_logits(tmp_path / "out").shape == (len(expected), outputs) and (problem == "regression") is (outputs == 1)


@pytest.mark.parametrize(("weight_format", "allowed"), [("int8", 0.1), ("int4", 1.0)])
def test_formats(weight_format: str, allowed: float, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Bounds are shares of the largest logit: three layers of random weights, each rounded to so many bits."""
    source, widths = tiny_bert.source(3), [32, 64, 64, *UNEQUAL[3:]]  # 32 divides each: INT4 has its groups
    manifest = run_export(source, widths, tmp_path / "out", weight_format=weight_format)
    expected = oracle_logits(source.base, source.adapter, source.space, widths, pairs())
    actual = (stock_logits(tmp_path / "out") - expected).abs().max() / expected.abs().max()
    assert 1e-6 < actual < allowed
    assert manifest.parity["ir_stored"].max_logit_difference < 1e-3
    stored = json.loads((tmp_path / "out/openvino_config.json").read_text())["dtype"]
    assert stored == weight_format
    size = (tmp_path / "out/openvino_model.bin").stat().st_size
    assert size == pytest.approx(manifest.sizes.subnetwork.bytes[weight_format], abs=4000)  # constants of the graph


def test_scores(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """One output has no classes to compare: the difference of the scores, relative to their size, by the formula here."""
    source = tiny_bert.source(1)
    widths = [max(group) for group in source.groups()]
    manifest = run_export(source, widths, tmp_path / "out", weight_format="int8_sym")
    expected = oracle_logits(source.base, source.adapter, source.space, widths, pairs()).double()
    actual = stock_logits(tmp_path / "out")
    parity = compare(expected, actual)
    relative = math.sqrt(sum((b - a) ** 2 for a, b in zip(expected, actual, strict=True)) / sum(a**2 for a in expected))
    assert parity.distance == pytest.approx(relative, rel=1e-6) and parity.mean_kl is None and parity.top1_agreement is None
    assert 1e-4 < manifest.parity["ir"].distance < 0.1
    assert manifest.parity["ir_groups"].distance > 1e-4  # it decides whether the group is stored
    card = (tmp_path / "out/README.md").read_text()
    assert "| scores | largest difference | relative difference (RMS) | texts |" in card and "nats" not in card


def test_files(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """Manifest, card and tokenizer; the tokenizer's IR gives the ids of transformers'."""
    source, out = tiny_bert.source(3), tmp_path / "out"
    ran = run_cli("export", *source.arguments(), "--subnet", "minimal", "--output", out)
    assert ran.code == 0, ran.err
    manifest = Manifest.read(out / "lonas_edge.json")
    assert (manifest.pipeline, manifest.task, manifest.weight_format, manifest.verified) == (
        "text-classification",
        None,
        "int8_sym",
        True,
    )
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "OVModelForSequenceClassification" in card
    assert "LLMPipeline" not in card and "attention heads" in card and "same class | texts" in card
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    text = "The good film is not bad."
    ids = AutoTokenizer.from_pretrained(out)(text)["input_ids"]
    import openvino_tokenizers  # noqa: F401 - its operations

    by = ov.Core().compile_model(out / "openvino_tokenizer.xml", "CPU")
    assert by([text])["input_ids"][0].tolist() == ids
    assert not (out / "generation_config.json").exists()


def test_a_wrong_merge_is_refused(tiny_bert: TinyBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong scale, and padding that is looked at: the export's own oracle finds either."""
    source, right = tiny_bert.source(3), materialize.merge
    with monkeypatch.context() as patched:
        patched.setattr(materialize, "merge", lambda w, widths, lora: right(w, widths, lora and _doubled(lora)))
        with pytest.raises(LonasEdgeError, match="differ from the activated super-network"):
            run_export(source, UNEQUAL, tmp_path / "out")
    stock = verify.open_model

    def blind(*arguments: Any) -> Any:
        answer = stock(*arguments)
        return lambda inputs: answer({**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])})

    monkeypatch.setattr(verify, "open_model", blind)
    with pytest.raises(LonasEdgeError, match="the logits of the IR differ from those of the weights stored in it"):
        run_export(source, UNEQUAL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _doubled(lora: Any) -> Any:
    from dataclasses import replace

    return replace(lora, scale=2 * lora.scale)
