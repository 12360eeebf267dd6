"""Exports of classifiers and embedding models, also without some layers: stock clients vs. the oracle, records, refusals."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
import openvino_tokenizers  # noqa: F401 - its operations
import pytest
import torch
from optimum.intel import OVModelForFeatureExtraction, OVModelForSequenceClassification
from tiny_bert import CONTEXT, HIDDEN, TinyBert, expected_of, oracle_embeddings, oracle_hidden, outputs_of
from tiny_models import TinySource
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from lonas_edge import load_checkpoint
from lonas_edge.data.pooling import Pooling, read_pooling
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import verify
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import open_exported
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.exporting.parity import compare
from lonas_edge.families import CLASSIFICATION, EMBEDDING
from lonas_edge.network.source import open_source

UNEQUAL = [32, 64, 48, 6, 8, 6, 64, 96, 128]
WITHOUT_0 = [*UNEQUAL, 1, 0]  # without layer 0
EQUAL_WITHOUT_0 = [64, 64, 64, 6, 8, 8, 64, 128, 128, 1, 0]  # the layers that stay are whole
MAXIMAL = [64, 64, 64, 8, 8, 8, 128, 128, 128]
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
TEXTS = [
    "The good film is not bad.",
    "same",
    "a bad film, the same film, not the good film; is the film good or bad?",
    "not " * 80,
]
PROMPTS = {"query": "query: ", "passage": "the "}
ODD = {"query": 'LENGTH of "POOLING" \\ 🙂\n'}
TASKS = pytest.mark.parametrize("task", ["classifier", "embedder"])


def source_of(task: str, tiny_bert: TinyBert) -> TinySource:
    return tiny_bert.source(3) if task == "classifier" else tiny_bert.embedder()


def run_export(source: TinySource, widths: list[int], output: Path, **options: Any) -> Manifest:
    return export(source.opened(), source.subnetwork(widths, "unequal"), output, ExportOptions(**options))


def stock_outputs(task: str, folder: Path) -> torch.Tensor:
    """The same of an IR by optimum-intel."""
    stock = OVModelForSequenceClassification if task == "classifier" else OVModelForFeatureExtraction
    return outputs_of(task, stock.from_pretrained(folder, ov_config=dict(EXACT)))


@pytest.mark.parametrize(("task", "ordered"), [("classifier", True), ("embedder", False)])
def test_fp32(task: str, ordered: bool, tiny_bert: TinyBert, tmp_path: Path) -> None:
    source = source_of(task, tiny_bert)
    source = source.ordered(tmp_path / "ordered") if ordered else source
    manifest = run_export(source, UNEQUAL, tmp_path / "out", weight_format="fp32")
    assert (stock_outputs(task, tmp_path / "out") - expected_of(task, source, UNEQUAL)).abs().max() < 1e-3
    for name, bound in (("materialized", 1e-8), ("ir_stored", 1e-3), ("ir", 1e-3)):
        parity = manifest.parity[name]
        assert parity.max_logit_difference < bound and parity.positions == 4
        if task == "embedder":
            assert 0 <= parity.mean_cosine_distance < 1e-8 and parity.mean_kl is None and parity.top1_agreement is None
    model = ov.Core().read_model(tmp_path / "out/openvino_model.xml")
    assert {port.get_any_name() for port in model.inputs} == {"input_ids", "attention_mask", "token_type_ids"}
    assert all(port.get_partial_shape().is_dynamic for port in model.inputs)
    assert [port.get_any_name() for port in model.outputs] == ["logits" if task == "classifier" else "last_hidden_state"]


@pytest.mark.parametrize(("task", "weight_format", "allowed"), [("classifier", "int8", 0.1), ("embedder", "int4", 1.0)])
def test_formats(task: str, weight_format: str, allowed: float, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Bounds are shares of the largest output: three layers of random weights, each rounded to so many bits."""
    source, widths = source_of(task, tiny_bert), [32, 64, 64, *UNEQUAL[3:]]  # 32 divides each: INT4 has its groups
    manifest = run_export(source, widths, tmp_path / "out", weight_format=weight_format)
    expected = expected_of(task, source, widths)
    actual = (stock_outputs(task, tmp_path / "out") - expected).abs().max() / expected.abs().max()
    assert 1e-6 < actual < allowed
    assert manifest.parity["ir_stored"].max_logit_difference < 1e-3
    assert 0 < manifest.parity["ir"].distance < allowed
    assert json.loads((tmp_path / "out/openvino_config.json").read_text())["dtype"] == weight_format
    size = (tmp_path / "out/openvino_model.bin").stat().st_size
    assert size == pytest.approx(manifest.sizes.subnetwork.bytes[weight_format], abs=4000)  # constants of the graph


def test_scores(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """One output has no classes to compare: the difference of the scores, relative to their size, by the formula here."""
    source = tiny_bert.source(1)
    manifest = run_export(source, MAXIMAL, tmp_path / "out", weight_format="int8_sym")
    expected, actual = expected_of("classifier", source, MAXIMAL).double(), stock_outputs("classifier", tmp_path / "out")
    parity = compare(expected, actual)
    relative = math.sqrt(sum((b - a) ** 2 for a, b in zip(expected, actual, strict=True)) / sum(a**2 for a in expected))
    assert parity.distance == pytest.approx(relative, rel=1e-6) and parity.mean_kl is None and parity.top1_agreement is None
    assert 1e-4 < manifest.parity["ir"].distance < 0.1
    assert manifest.parity["ir_groups"].distance > 1e-4  # it decides whether the group is stored
    assert actual.shape == (len(expected), 1)
    assert json.loads((tmp_path / "out/config.json").read_text())["problem_type"] == "regression"
    card = (tmp_path / "out/README.md").read_text()
    assert "| scores | largest difference | relative difference (RMS) | texts |" in card and "nats" not in card


def expected_embeddings(source: TinySource, widths: list[int], texts: list[str], length: int) -> torch.Tensor:
    """Embeddings of texts by the oracle, each cut after so many tokens and alone in its batch."""
    tokenizer, mode = AutoTokenizer.from_pretrained(source.base), source.base.name.split("-")[0]
    normalize = source.base.name.split("-")[1] == "True"
    rows = []
    for text in texts:
        inputs = tokenizer(text, truncation=True, max_length=length, return_tensors="pt", return_token_type_ids=True)
        rows.append(oracle_embeddings(oracle_hidden(source, widths, inputs), inputs["attention_mask"], mode, normalize))
    return torch.cat(rows)


@pytest.mark.parametrize(
    ("mode", "normalize", "options"),
    [
        ("mean", True, {}),
        pytest.param("cls", False, {"max_length": 12}, marks=pytest.mark.slow),
        ("lasttoken", True, {"max_length": 1000, "prompts": PROMPTS}),
        pytest.param(
            *("mean", False, {"max_length": 16, "prompts": PROMPTS, "default_prompt_name": "query"}), marks=pytest.mark.slow
        ),
        pytest.param("cls", True, {"default_prompt_name": "query", "prompts": ODD}, marks=pytest.mark.slow),
    ],
)
def test_openvino_genai(mode: str, normalize: bool, options: Any, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """By the line in the model card, texts beyond the limit included; prompts too."""
    source = tiny_bert.embedder(tiny_bert.body(mode, normalize, **options))
    run_export(source, UNEQUAL, tmp_path / "out", weight_format="fp32")
    card = (tmp_path / "out/README.md").read_text()
    [line] = [line for line in card.splitlines() if line.startswith("pipe = ")]
    line = line.replace("THIS_DIRECTORY", str(tmp_path / "out")).removesuffix(")") + ", **EXACT)"
    scope = {"TextEmbeddingPipeline": openvino_genai.TextEmbeddingPipeline, "EXACT": EXACT}
    exec(line, scope)
    prompts, length = options.get("prompts", {}), min(options.get("max_length", CONTEXT), CONTEXT)
    tokenizer = AutoTokenizer.from_pretrained(source.base)
    assert [len(tokenizer(text)["input_ids"]) > length for text in TEXTS] == [False, False, length < CONTEXT, True]
    documents = torch.tensor(scope["pipe"].embed_documents(TEXTS))
    prompt = prompts.get("passage", prompts.get(options.get("default_prompt_name"), ""))
    expected = expected_embeddings(source, UNEQUAL, [prompt + text for text in TEXTS], length)
    assert documents.shape == (len(TEXTS), HIDDEN) and (documents - expected).abs().max() < 1e-4 * expected.abs().max()
    query = torch.tensor(scope["pipe"].embed_query(TEXTS[0]))
    expected = expected_embeddings(source, UNEQUAL, [prompts.get("query", "") + TEXTS[0]], length)[0]
    assert (query - expected).abs().max() < 1e-4 * expected.abs().max()


def test_sentence_transformers(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Where it is installed: both stages, by the lines in the model cards."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    whole = tiny_bert.embedder(tiny_bert.body("lasttoken", True, max_length=12, prompts=PROMPTS))
    by_openvino = {"backend": "openvino", "model_kwargs": {"ov_config": dict(EXACT)}}
    for name, source, widths, given in (
        ("ir", whole, UNEQUAL, by_openvino),
        ("checkpoint", whole, MAXIMAL, {}),
        ("pruned", tiny_bert.deep(whole), EQUAL_WITHOUT_0, {}),
    ):
        stored = {"weight_format": "fp32"} if name == "ir" else {"stage": "checkpoint"}
        run_export(source, widths, tmp_path / name, **stored)
        model = sentence_transformers.SentenceTransformer(str(tmp_path / name), local_files_only=True, **given)
        expected = expected_embeddings(source, widths, ["query: " + text for text in TEXTS], 12)
        assert (torch.tensor(model.encode(TEXTS, prompt_name="query")) - expected).abs().max() < 1e-4
        assert model.max_seq_length == 12


@TASKS
def test_an_ir_without_a_layer(task: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """No operation of the removed layer is left."""
    source = tiny_bert.deep(source_of(task, tiny_bert))
    manifest = run_export(source, WITHOUT_0, tmp_path / "out", weight_format="fp32")
    expected = expected_of(task, source, WITHOUT_0)
    assert (stock_outputs(task, tmp_path / "out") - expected).abs().max() < 1e-3
    assert (expected - expected_of(task, source, [*WITHOUT_0[:-1], 1])).abs().max() > 0.05
    graph = ov.Core().read_model(tmp_path / "out/openvino_model.xml")
    assert sum("Softmax" in node.get_type_name() for node in graph.get_ops()) <= 2  # none where attention is one operation
    assert manifest.layers[0][0].kept == manifest.layers[0][1].kept == 0 and manifest.layers[2][1].kept == 128
    card = (tmp_path / "out/README.md").read_text()
    assert "Layer 0 removed; the others are renumbered from 0 on." in card and "removed blocks" not in card


@TASKS
def test_a_checkpoint_without_a_layer(task: str, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """By stock transformers where widths are equal, by load_checkpoint always; it can be exported again."""
    whole = tiny_bert.source(3) if task == "classifier" else tiny_bert.embedder(tiny_bert.body("mean", True, max_length=24))
    source, stock = tiny_bert.deep(whole), AutoModelForSequenceClassification if task == "classifier" else AutoModel
    for widths, name in ((EQUAL_WITHOUT_0, "equal"), (WITHOUT_0, "unequal")):
        manifest = run_export(source, widths, tmp_path / name, stage="checkpoint")
        assert manifest.parity["stored"].distance < 1e-10 and manifest.weight_format == "fp32"
        models = [load_checkpoint(tmp_path / name)] + ([stock.from_pretrained(tmp_path / name)] if name == "equal" else [])
        expected = expected_of(task, source, widths)
        for model in models:
            assert (outputs_of(task, model.eval()) - expected).abs().max() < 1e-4 * max(1, expected.abs().max())
        if task == "embedder":
            assert read_pooling(tmp_path / name) == Pooling("mean", True, 24, stated=True)
            assert AutoTokenizer.from_pretrained(tmp_path / name).model_max_length == 24
    again = open_source(str(tmp_path / "equal"))
    export(again, again.select(None), tmp_path / "again", ExportOptions("fp32"))
    card = (tmp_path / "equal/README.md").read_text()
    assert f"  0  {'·' * 24}   0  {'·' * 24}   0" in card and "removed blocks" not in card and "load_checkpoint" in card
    if task == "embedder":
        assert "cut after 24 tokens" in card and 'SentenceTransformer("THIS_DIRECTORY")' in card


def test_files_of_a_classifier(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """Manifest, card and tokenizer."""
    out = tmp_path / "out"
    run_cli("export", *tiny_bert.source(3).arguments(), "--subnet", "minimal", "--output", out).ok()
    manifest = Manifest.read(out / "lonas_edge.json")
    assert (manifest.pipeline, manifest.task, manifest.weight_format) == ("text-classification", None, "int8_sym")
    card = (out / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "OVModelForSequenceClassification" in card
    assert "LLMPipeline" not in card and "attention heads" in card and "same class | texts" in card
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertForSequenceClassification"]
    assert tokens_by_openvino(out) == [AutoTokenizer.from_pretrained(out)(text)["input_ids"] for text in TEXTS]
    assert not (out / "generation_config.json").exists()


def test_files_of_an_embedding_model(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """Manifest, card, tokenizer, files of sentence-transformers."""
    settings = {"max_length": 10, "prompts": PROMPTS, "default_prompt_name": "passage", "similarity_fn_name": "dot"}
    source, out = tiny_bert.embedder(tiny_bert.body("mean", False, **settings)), tmp_path / "out"
    ran = run_cli("export", *source.arguments(), "--subnet", "minimal", "--output", out).ok()
    assert "mean cosine distance" in ran.out and "KL" not in ran.out and "token" not in ran.out
    manifest = Manifest.read(out / "lonas_edge.json")
    assert (manifest.pipeline, manifest.weight_format, manifest.verified) == ("feature-extraction", "int8_sym", True)
    assert manifest.pooling == Pooling("mean", False, 10, PROMPTS, "passage", "dot", True) == read_pooling(out)
    assert {"modules.json", "1_Pooling/config.json", "sentence_bert_config.json"} <= manifest.files.keys()
    card = (out / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card and "sentence-transformers]" in card
    assert "normalize=False" in card and "cut after 10 tokens" in card and "compare them by the cosine" in card
    assert 'query_instruction="query: ", embed_instruction="the "' in card
    assert "mean cosine distance" in card and "KL" not in card and "same class" not in card
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertModel"]
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokens_by_openvino(out) == [tokenizer(text)["input_ids"] for text in TEXTS]
    assert tokenizer.model_max_length == 10  # which TextEmbeddingPipeline cuts at, see above


def tokens_by_openvino(folder: Path) -> list[list[int]]:
    """Token ids of `TEXTS` by the exported tokenizer."""
    tokenizer = ov.Core().compile_model(folder / "openvino_tokenizer.xml", "CPU")
    return [tokenizer([text])["input_ids"][0].tolist() for text in TEXTS]


def test_opened_again(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Ours by the manifest; another tool's IR by its output, whatever config.json says."""
    for name, source, kind in (("out", tiny_bert.embedder(), EMBEDDING), ("classifier", tiny_bert.source(), CLASSIFICATION)):
        run_export(source, UNEQUAL, tmp_path / name, verify=False)
        assert open_exported(tmp_path / name).kind is kind
        (tmp_path / name / "lonas_edge.json").unlink()
    config = json.loads((tmp_path / "out/config.json").read_text())
    for architectures, model_type in ((["BertForMaskedLM"], "bert"), (None, "bert"), (["MPNetForMaskedLM"], "mpnet")):
        changed = {**config, "architectures": architectures, "model_type": model_type}
        (tmp_path / "out/config.json").write_text(json.dumps(changed))
        assert open_exported(tmp_path / "out", ours=False).kind is EMBEDDING
    graph = (tmp_path / "out/openvino_model.xml").read_text()
    (tmp_path / "out/openvino_model.xml").write_text(graph.replace("last_hidden_state", "sentence_embedding"))
    with pytest.raises(LonasEdgeError, match=r"gives pooled embeddings; expected hidden states"):
        open_exported(tmp_path / "out", ours=False)
    (tmp_path / "classifier/config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    assert open_exported(tmp_path / "classifier", ours=False).kind is CLASSIFICATION


def test_a_base_alone(tiny_bert: TinyBert, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Without an adapter and files of pooling: the mean is assumed, and the card says so."""
    opened = open_source(str(tiny_bert.base(headless=True)))
    manifest = export(opened, opened.select(None), tmp_path / "out", ExportOptions(weight_format="fp32"))
    assert any("its pooling is unknown" in str(warning.message) for warning in recwarn)
    assert manifest.pooling == Pooling(max_length=CONTEXT)
    source = replace(tiny_bert.embedder(), adapter=None, space=None)
    assert (stock_outputs("embedder", tmp_path / "out") - expected_of("embedder", source, [])).abs().max() < 1e-3
    assert "This is what sentence-transformers assumes" in (tmp_path / "out/README.md").read_text()


@TASKS
def test_wrong_exports_are_refused(task: str, tiny_bert: TinyBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding that is looked at: the export's own oracle finds it."""
    source, stock = source_of(task, tiny_bert), verify.open_model

    def blind(*arguments: Any) -> Any:
        outputs = stock(*arguments)
        return lambda inputs: outputs({**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])})

    monkeypatch.setattr(verify, "open_model", blind)
    with pytest.raises(LonasEdgeError, match="of the IR differ from those of the weights stored in it"):
        run_export(source, UNEQUAL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_padding_is_not_compared(tiny_bert: TinyBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other states there, NaN included, are right: no pooling reads them."""
    stock = verify.open_model

    def other(*arguments: Any) -> Any:
        outputs = stock(*arguments)
        return lambda inputs: np.where(inputs["attention_mask"][..., None] > 0, outputs(inputs), np.nan)

    monkeypatch.setattr(verify, "open_model", other)
    manifest = run_export(tiny_bert.embedder(), UNEQUAL, tmp_path / "out", weight_format="fp32")
    assert manifest.parity["ir"].max_logit_difference < 1e-3
    assert manifest.parity["ir"].mean_cosine_distance < 1e-8
