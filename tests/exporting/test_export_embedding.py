"""Export of an embedding model: its IR and checkpoint in stock clients vs. the oracle, formats, records, refusals."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai
import pytest
import torch
from optimum.intel import OVModelForFeatureExtraction
from tiny_bert import CONTEXT, HIDDEN, TinyBert, oracle_embeddings, oracle_hidden, pairs
from tiny_models import TinySource
from transformers import AutoModel, AutoTokenizer

from lonas_edge import load_checkpoint
from lonas_edge.data.pooling import Pooling, read_pooling
from lonas_edge.errors import LonasEdgeError
from lonas_edge.exporting import verify
from lonas_edge.exporting.export import ExportOptions, export
from lonas_edge.exporting.exported import open_exported
from lonas_edge.exporting.manifest import Manifest
from lonas_edge.families import CLASSIFICATION, EMBEDDING
from lonas_edge.network import materialize

UNEQUAL = [32, 64, 48, 6, 8, 6, 64, 96, 128]
EQUAL = [32, 32, 32, 6, 6, 6, 64, 64, 64]
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


def run_export(source: TinySource, widths: list[int], output: Path, **options: Any) -> Manifest:
    return export(source.opened(), source.subnetwork(widths, "unequal"), output, ExportOptions(**options))


def stock_hidden(folder: Path, inputs: Any = None) -> torch.Tensor:
    """Compute hidden states with optimum-intel."""
    model = OVModelForFeatureExtraction.from_pretrained(folder, ov_config=dict(EXACT))
    return model(**(inputs or pairs())).last_hidden_state


def difference(hidden: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> float:
    """Largest difference at tokens."""
    return ((hidden - expected) * mask[..., None]).abs().max().item()


@pytest.mark.parametrize("ordered", [False, True])
def test_fp32(ordered: bool, tiny_bert: TinyBert, tmp_path: Path) -> None:
    source = tiny_bert.embedder()
    source = source.ordered(tmp_path / "ordered") if ordered else source
    manifest = run_export(source, UNEQUAL, tmp_path / "out", weight_format="fp32")
    expected = oracle_hidden(source, UNEQUAL, pairs())
    assert difference(stock_hidden(tmp_path / "out"), expected, pairs()["attention_mask"]) < 1e-3
    for name, bound in (("materialized", 1e-8), ("ir_stored", 1e-3), ("ir", 1e-3)):
        parity = manifest.parity[name]
        assert parity.max_logit_difference < bound and parity.positions == 4
        assert 0 <= parity.mean_cosine_distance < 1e-8 and parity.mean_kl is None and parity.top1_agreement is None
    model = ov.Core().read_model(tmp_path / "out/openvino_model.xml")
    assert {port.get_any_name() for port in model.inputs} == {"input_ids", "attention_mask", "token_type_ids"}
    assert all(port.get_partial_shape().is_dynamic for port in model.inputs)
    assert [port.get_any_name() for port in model.outputs] == ["last_hidden_state"]


@pytest.mark.parametrize(("weight_format", "allowed"), [("int8", 0.1), ("int4", 1.0)])
def test_formats(weight_format: str, allowed: float, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Bounds are shares of the largest state: three layers of random weights, each rounded to so many bits."""
    source, widths = tiny_bert.embedder(), [32, 64, 64, *UNEQUAL[3:]]  # 32 divides each: INT4 has its groups
    manifest = run_export(source, widths, tmp_path / "out", weight_format=weight_format)
    expected, mask = oracle_hidden(source, widths, pairs()), pairs()["attention_mask"]
    actual = difference(stock_hidden(tmp_path / "out"), expected, mask) / expected.abs().max()
    assert 1e-6 < actual < allowed
    assert manifest.parity["ir_stored"].max_logit_difference < 1e-3
    assert 0 < manifest.parity["ir"].mean_cosine_distance < allowed
    size = (tmp_path / "out/openvino_model.bin").stat().st_size
    assert size == pytest.approx(manifest.sizes.subnetwork.bytes[weight_format], abs=4000)  # constants of the graph


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


def test_a_checkpoint(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Opened by stock transformers where layers are equal, and by load_checkpoint where they are not."""
    source, mask = tiny_bert.embedder(tiny_bert.body("mean", True, max_length=24)), pairs()["attention_mask"]
    for widths, name in ((MAXIMAL, "equal"), (UNEQUAL, "unequal")):
        manifest = run_export(source, widths, tmp_path / name, stage="checkpoint")
        assert manifest.parity["stored"].mean_cosine_distance < 1e-10 and manifest.weight_format == "fp32"
        expected = oracle_hidden(source, widths, pairs())
        models = [load_checkpoint(tmp_path / name)] + ([AutoModel.from_pretrained(tmp_path / name)] if name == "equal" else [])
        for model in models:
            with torch.inference_mode():
                assert difference(model.eval()(**pairs()).last_hidden_state, expected, mask) < 1e-4 * expected.abs().max()
        assert read_pooling(tmp_path / name) == Pooling("mean", True, 24, stated=True)
        assert AutoTokenizer.from_pretrained(tmp_path / name).model_max_length == 24
    card = (tmp_path / "equal/README.md").read_text()
    assert "load_checkpoint" in card and "cut after 24 tokens" in card and 'SentenceTransformer("THIS_DIRECTORY")' in card


def test_files(tiny_bert: TinyBert, run_cli: Callable, tmp_path: Path) -> None:
    """Manifest, card, files of sentence-transformers; the tokenizer's IR gives the ids of transformers'."""
    settings = {"max_length": 10, "prompts": PROMPTS, "default_prompt_name": "passage", "similarity_fn_name": "dot"}
    source, out = tiny_bert.embedder(tiny_bert.body("mean", False, **settings)), tmp_path / "out"
    ran = run_cli("export", *source.arguments(), "--subnet", "minimal", "--output", out)
    assert ran.code == 0, ran.err
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
    import openvino_tokenizers  # noqa: F401 - its operations

    by = ov.Core().compile_model(out / "openvino_tokenizer.xml", "CPU")
    for text in TEXTS:
        assert by([text])["input_ids"][0].tolist() == tokenizer(text)["input_ids"]
    assert tokenizer.model_max_length == 10  # which TextEmbeddingPipeline cuts at, see above


def test_opened_again(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Ours by the manifest; another tool's IR by its output, whatever config.json says."""
    source = tiny_bert.embedder()
    run_export(source, EQUAL, tmp_path / "out")
    assert open_exported(tmp_path / "out").kind is EMBEDDING
    config = json.loads((tmp_path / "out/config.json").read_text())
    for name in ("lonas_edge.json", "README.md"):
        (tmp_path / "out" / name).unlink()
    for architectures, model_type in ((["BertForMaskedLM"], "bert"), (None, "bert"), (["MPNetForMaskedLM"], "mpnet")):
        changed = {**config, "architectures": architectures, "model_type": model_type}
        (tmp_path / "out/config.json").write_text(json.dumps(changed))
        assert open_exported(tmp_path / "out", ours=False).kind is EMBEDDING
    graph = (tmp_path / "out/openvino_model.xml").read_text()
    (tmp_path / "out/openvino_model.xml").write_text(graph.replace("last_hidden_state", "sentence_embedding"))
    with pytest.raises(LonasEdgeError, match=r"gives pooled embeddings; expected hidden states"):
        open_exported(tmp_path / "out", ours=False)
    classifier = tiny_bert.source()
    run_export(classifier, EQUAL, tmp_path / "classifier", verify=False)
    assert open_exported(tmp_path / "classifier").kind is CLASSIFICATION
    (tmp_path / "classifier/lonas_edge.json").unlink()
    (tmp_path / "classifier/config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    assert open_exported(tmp_path / "classifier", ours=False).kind is CLASSIFICATION


def test_a_base_alone(tiny_bert: TinyBert, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Without an adapter and files of pooling: the mean is assumed, and the card says so."""
    from lonas_edge.network.source import open_source

    opened = open_source(str(tiny_bert.base(headless=True)))
    manifest = export(opened, opened.select(None), tmp_path / "out", ExportOptions(weight_format="fp32"))
    assert any("its pooling is unknown" in str(warning.message) for warning in recwarn)
    assert manifest.pooling == Pooling(max_length=CONTEXT)
    source = replace(tiny_bert.embedder(), adapter=None, space=None)
    expected = oracle_hidden(source, [], pairs())
    assert difference(stock_hidden(tmp_path / "out"), expected, pairs()["attention_mask"]) < 1e-3
    assert "This is what sentence-transformers assumes" in (tmp_path / "out/README.md").read_text()


def test_wrong_exports_are_refused(tiny_bert: TinyBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong scale, and padding that is looked at: the export's own oracle finds either."""
    source, right = tiny_bert.embedder(), materialize.merge
    doubled = lambda lora: replace(lora, scale=2 * lora.scale)  # noqa: E731
    with monkeypatch.context() as patched:
        patched.setattr(materialize, "merge", lambda w, widths, lora: right(w, widths, lora and doubled(lora)))
        with pytest.raises(
            LonasEdgeError, match="the hidden states of the materialized model differ from the activated super-"
        ):
            run_export(source, UNEQUAL, tmp_path / "out")
    stock = verify.open_model

    def blind(*arguments: Any) -> Any:
        answer = stock(*arguments)
        return lambda inputs: answer({**inputs, "attention_mask": np.ones_like(inputs["attention_mask"])})

    with monkeypatch.context() as patched:
        patched.setattr(verify, "open_model", blind)
        with pytest.raises(LonasEdgeError, match="the hidden states of the IR differ from those of the weights stored in it"):
            run_export(source, UNEQUAL, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_padding_is_not_compared(tiny_bert: TinyBert, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other states there, NaN included, are right: no pooling reads them."""
    stock = verify.open_model

    def other(*arguments: Any) -> Any:
        answer = stock(*arguments)
        return lambda inputs: np.where(inputs["attention_mask"][..., None] > 0, answer(inputs), np.nan)

    monkeypatch.setattr(verify, "open_model", other)
    manifest = run_export(tiny_bert.embedder(), UNEQUAL, tmp_path / "out", weight_format="fp32")
    assert manifest.parity["ir"].max_logit_difference < 1e-3
    assert manifest.parity["ir"].mean_cosine_distance < 1e-8


def test_sentence_transformers(tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Where it is installed: both stages, by the lines in the model cards."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source = tiny_bert.embedder(tiny_bert.body("lasttoken", True, max_length=12, prompts=PROMPTS))
    run_export(source, UNEQUAL, tmp_path / "ir", weight_format="fp32")
    run_export(source, MAXIMAL, tmp_path / "checkpoint", stage="checkpoint")
    options = {"backend": "openvino", "model_kwargs": {"ov_config": dict(EXACT)}}
    for name, widths, given in (("ir", UNEQUAL, options), ("checkpoint", MAXIMAL, {})):
        model = sentence_transformers.SentenceTransformer(str(tmp_path / name), local_files_only=True, **given)
        expected = expected_embeddings(source, widths, ["query: " + text for text in TEXTS], 12)
        assert (torch.tensor(model.encode(TEXTS, prompt_name="query")) - expected).abs().max() < 1e-4
        assert model.max_seq_length == 12
