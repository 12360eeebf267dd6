"""Rerankers that compare the logits of two tokens (Qwen3-Reranker): scores, exports in stock clients, `compress`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino_genai
import pytest
import torch
from optimum.intel import OVModelForSequenceClassification
from tiny_models import TinyModels, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from lonas_edge import load_checkpoint
from lonas_edge.data.encoding import encode_pairs
from lonas_edge.network.tokenizer import load_tokenizer

EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
YES, NO = 266, 267  # behind the tiny tokenizer's; openvino_genai looks for their names
PAIRS = [("good film", "the bad film"), ("the good film", "not"), ("the same", "the film is good is not the same good film")]
TEMPLATE = (
    '{% if messages[0].role == "system" %}{{ messages[0].content }}: {% endif %}{% for message in messages %}'
    '{% if message.role == "query" %}the film {{ message.content }}\n'
    '{% elif message.role == "document" %} is {{ message.content }} not good{% endif %}{% endfor %}'
    "{% if add_generation_prompt %} the end{% endif %}"
)


@pytest.fixture
def reranker(tiny_models: TinyModels, tmp_path: Path) -> Callable[..., Path]:
    """Writes a language model with sentence-transformers' files."""

    def write(case: str = "qwen3-tied", true: Any = YES, false: Any = NO, **files: dict[str, Any]) -> Path:
        folder = tmp_path / case
        model = AutoModelForCausalLM.from_pretrained(tiny_models.base(case), dtype=torch.float32)
        model.model.norm.weight.data *= 5  # scores that differ
        model.save_pretrained(folder)
        words = tokenizer()
        words.add_tokens(["yes", "no"])
        words.chat_template = TEMPLATE
        words.save_pretrained(folder)
        modules = {"": "base.modules.transformer.Transformer", "1_LogitScore": "cross_encoder.modules.logit_score.LogitScore"}
        listed = [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.{kind}"}
            for index, (path, kind) in enumerate(modules.items())
        ]
        (folder / "modules.json").write_text(json.dumps(listed))
        (folder / "1_LogitScore").mkdir()
        content = {"true_token_id": true, "false_token_id": false, "module_input_name": "causal_logits"}
        (folder / "1_LogitScore/config.json").write_text(json.dumps(content))
        form = {"method": "forward", "method_output_name": "logits"}
        kinds = {"text": form, "message": {**form, "format": "flat"}}
        bert = {"transformer_task": "text-generation", "modality_config": kinds, "module_output_name": "causal_logits"}
        (folder / "sentence_bert_config.json").write_text(json.dumps(bert | files.get("bert", {})))
        settings = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(settings | files.get("settings", {})))
        return folder

    return write


def expected_scores(folder: Path, false: int | None = NO) -> torch.Tensor:
    """Of the language model's logits at the last token, one pair at a time."""
    model, words = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(folder)
    scores = []
    for query, document in PAIRS:
        text = f"the film {query}\n is {document} not good"
        with torch.no_grad():
            logits = model(**words(text, return_tensors="pt", add_special_tokens=False)).logits[0, -1]
        scores.append(logits[YES] - (0 if false is None else logits[false]))
    return torch.stack(scores)


@pytest.mark.parametrize("case, false", [("qwen3-tied", NO), ("llama", None), ("gemma3-tied", NO)])
def test_scores_as_defined(case: str, false: int | None, reranker: Callable, run_cli: Callable, tmp_path: Path) -> None:
    """The checkpoint, and the IR in optimum-intel and openvino_genai, whose callers render the pairs themselves."""
    folder = reranker(case, false=false)
    expected = expected_scores(folder, false)
    assert expected.std() > 0.05
    words = AutoTokenizer.from_pretrained(folder)
    rows = [torch.tensor([row["input_ids"]]) for row in encode_pairs(PAIRS, words, None)]
    run_cli("export", folder, "--stage", "checkpoint", "--output", tmp_path / "checkpoint").ok()
    config = json.loads((tmp_path / "checkpoint/config.json").read_text())
    assert config["architectures"][0].endswith("ForSequenceClassification") and len(config["id2label"]) == 1
    with torch.no_grad():
        scores = [load_checkpoint(tmp_path / "checkpoint")(row).logits[0, 0] for row in rows]
    assert (torch.stack(scores) - expected).abs().max() < 1e-4
    run_cli("export", folder, "--weight-format", "fp32", "--output", tmp_path / "ir").ok()
    opened = OVModelForSequenceClassification.from_pretrained(tmp_path / "ir", ov_config=dict(EXACT))
    scores = [opened(input_ids=row, attention_mask=torch.ones_like(row)).logits[0, 0] for row in rows]
    assert (torch.stack(scores) - expected).abs().max() < 1e-3
    pipeline = openvino_genai.TextRerankPipeline(str(tmp_path / "ir"), "CPU", **EXACT)
    if case == "qwen3-tied":  # of others, it puts a token between query and passage
        for (query, document), score in zip(PAIRS, expected, strict=True):
            ((_, ranked),) = pipeline.rerank(f"the film {query}\n", [f" is {document} not good"])
            assert ranked == pytest.approx(score.sigmoid().item(), abs=1e-3)


RENDERED = {  # by other files than the chat template
    "template": {},
    "variables": {"bert": {"processing_kwargs": {"chat_template": {"add_generation_prompt": True, "other": None}}}},
    "prompt": {"settings": {"prompts": {"web": 'as "good"'}, "default_prompt_name": "web"}},
}


@pytest.mark.parametrize("files", RENDERED.values(), ids=RENDERED)
def test_sentence_transformers(files: dict[str, Any], reranker: Callable, run_cli: Callable, tmp_path: Path) -> None:
    """The reranker and its export score pairs alike there, also some that are cut."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    folder = reranker(**files)
    before = sentence_transformers.CrossEncoder(str(folder), local_files_only=True)
    expected = torch.tensor(before.predict(PAIRS))
    assert ((expected - expected_scores(folder)).abs().max() < 1e-4) == (not files)
    run_cli("export", folder, "--weight-format", "fp32", "--output", tmp_path / "ir").ok()
    given = {"backend": "openvino", "model_kwargs": {"ov_config": dict(EXACT)}}
    after = sentence_transformers.CrossEncoder(str(tmp_path / "ir"), local_files_only=True, **given)
    scores = torch.tensor(after.predict(PAIRS, activation_fn=torch.nn.Identity()))
    assert (scores - expected).abs().max() < 1e-3
    words = load_tokenizer(folder)
    for pair in (("good film", "the same film " * 20), ("good film " * 20, ""), ("the film", " not good\n" * 20)):
        for length in (24, 60):
            before[0].tokenizer.model_max_length = length
            theirs = before[0].preprocess([pair], prompt=before.prompts.get("web"))["input_ids"].tolist()
            assert [row["input_ids"] for row in encode_pairs([pair], words, length)] == theirs
    assert len(encode_pairs(PAIRS[:1], words, 3)[0]["input_ids"]) == 3


def test_in_bf16(reranker: Callable, run_cli: Callable, tmp_path: Path) -> None:
    """A checkpoint opens in its own dtype; the head is the difference in fp32."""
    folder = reranker()
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    model = load_checkpoint(folder)
    table = model.model.embed_tokens.weight.float()
    assert model.score.weight.dtype == torch.bfloat16 and model(torch.tensor([[3, 4]])).logits.shape == (1, 1)
    run_cli("export", folder, "--stage", "checkpoint", "--dtype", "fp32", "--output", tmp_path / "out").ok()
    assert torch.equal(load_checkpoint(tmp_path / "out").score.weight[0], table[YES] - table[NO])


def test_trimming_needs_a_classifier(reranker: Callable, run_cli: Callable, tmp_path: Path) -> None:
    folder, data = reranker(), tmp_path / "pairs.jsonl"
    data.write_text(json.dumps({"query": "good film", "passage": "bad"}) + "\n")
    ran = run_cli("trim", folder, "--data", data)
    assert ran.code == 1 and "Write it as a classifier first" in " ".join(ran.err.split()), ran.err


@pytest.mark.slow
def test_compress(reranker: Callable, run_cli: Callable, tmp_path: Path) -> None:
    """Pairs with scores are enough; the report has Spearman's correlation."""
    folder, data = reranker(), tmp_path / "pairs.jsonl"
    rows = [
        {"query": f"good film {n % 7}", "passage": f"the film is {'not ' * (n % 5)}bad {n}", "score": n % 3} for n in range(80)
    ]
    data.write_text("\n".join(map(json.dumps, rows)))
    options = ["--target", "macs=0.9x", "--recovery-steps", "3", "--prompt-len", "16"]
    run_cli("compress", folder, "--data", data, *options, "--output", tmp_path / "small").ok()
    record = json.loads((tmp_path / "small/compress.json").read_text())
    assert all("spearman" in network["quality"] for network in record["networks"])
    opened = OVModelForSequenceClassification.from_pretrained(tmp_path / "small/model")
    ids = torch.tensor([encode_pairs(PAIRS[:1], AutoTokenizer.from_pretrained(folder), None)[0]["input_ids"]])
    assert opened(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 1)


STRUCTURED = {"modality_config": {"message": {"format": "structured"}}}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"true": "yes"}, "true_token_id: expected a token of the vocabulary, 0 to"),
        ({"true": 10**6}, "found 1000000"),
        ({"true": None}, "true_token_id"),
        ({"case": "gemma2"}, "final_logit_softcapping"),
        ({"bert": STRUCTURED}, "messages in the structured format"),
        ({"bert": {"processing_kwargs": 3}}, "cannot read the files of LogitScore"),
    ],
)
def test_refused(options: dict[str, Any], message: str, reranker: Callable, run_cli: Callable, tmp_path: Path) -> None:
    ran = run_cli("export", reranker(**options), "--output", tmp_path / "out")
    assert ran.code == 1 and message in " ".join(ran.err.split()), ran.err
