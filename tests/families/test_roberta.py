"""RoBERTa and XLM-RoBERTa as embedding models: BERT's oracle, with the rows of the position table behind the padding's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import openvino_genai
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_bert import CONFIG, CONTEXT, HEADS, HIDDEN, LAYERS, MLP, RANK, RANKS, RATIOS, VOCAB, oracle_embeddings, oracle_hidden
from tiny_models import TinySource, randomize_trainable
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast

from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import empty_model, set_parameter
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.generate import generate_space

UNEQUAL = [32, 64, 48, 6, 8, 6, 64, 96, 128]
PAD = 1
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}
TEXTS = ["the good film", "not bad", "the same film is not the good film", "not " * 80]


def tokenizer() -> PreTrainedTokenizerFast:
    """Words with RoBERTa's special tokens: <s> text </s>, padded by id 1."""
    words = ["<s>", "<pad>", "</s>", "<unk>", "the", "good", "bad", "film", "not", "is", "same"]
    made = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    made.normalizer, made.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    special = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", model_max_length=CONTEXT, **special)


def write(model_type: str, folder: Path) -> TinySource:
    """A random base with an adapter by PEFT, and a space of nine groups, as of the tiny BERT."""
    shape = {"num_hidden_layers": LAYERS, "hidden_size": HIDDEN, "intermediate_size": MLP, "num_attention_heads": HEADS}
    limits = {"vocab_size": VOCAB, "max_position_embeddings": CONTEXT + PAD + 1, "type_vocab_size": 1, "pad_token_id": PAD}
    config = AutoConfig.for_model(model_type, **shape, **limits, layer_norm_eps=CONFIG["layer_norm_eps"])
    torch.manual_seed(3)
    model = AutoModel.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(torch.randn(parameter.shape) * (0.25 if "_embeddings" in name or parameter.dim() == 1 else 0.15))
    base, adapter = folder / "base", folder / "adapter"
    model.save_pretrained(base)
    tokenizer().save_pretrained(base)
    kinds = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for kind, path in kinds.items()]
    (base / "modules.json").write_text(json.dumps(modules))
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling/config.json").write_text('{"pooling_mode": "cls"}')
    lora = LoraConfig(r=RANK, lora_alpha=16, target_modules=["query", "value"], task_type="FEATURE_EXTRACTION")
    peft = get_peft_model(model, lora)
    randomize_trainable(peft)
    peft.save_pretrained(adapter)
    architecture = Architecture.from_config(model.config, model_type)
    (folder / "space.json").write_text(json.dumps(generate_space(architecture, RATIOS, RANKS)))
    return TinySource(model_type, base, adapter, folder / "space.json")


def as_bert(source: TinySource, folder: Path) -> TinySource:
    """The same network as a BERT: positions 0, 1, … are those behind the padding's."""
    tensors = load_file(source.base / "model.safetensors")
    table = "embeddings.position_embeddings.weight"
    tensors[table] = tensors[table][PAD + 1 :].clone()
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    return TinySource("bert", folder, source.adapter, source.space)


def batch() -> dict[str, torch.Tensor]:
    encoded = tokenizer()(TEXTS, padding=True, truncation=True, return_tensors="pt")
    return {**encoded, "token_type_ids": torch.zeros_like(encoded["input_ids"])}


@pytest.mark.parametrize("model_type", ["roberta", "xlm-roberta"])
def test_embeds_as_defined(model_type: str, run_cli: Callable, tmp_path: Path) -> None:
    """Activated, materialized, and as an IR in openvino_genai; a text of the whole context is cut, none before."""
    source = write(model_type, tmp_path)
    opened = source.opened()
    assert opened.architecture.context == CONTEXT and batch()["input_ids"].shape[1] == CONTEXT
    inputs = batch()
    expected = oracle_hidden(as_bert(source, tmp_path / "bert"), UNEQUAL, inputs)
    mask = inputs["attention_mask"]
    network: Any = load_super_network(opened)
    network.activate(UNEQUAL)
    model = MaterializedModel(opened, source.subnetwork(UNEQUAL, "unequal"))
    stored = empty_model(model.config())
    for name in dict(stored.named_parameters()):
        set_parameter(stored, name, model.tensor(name))
    with torch.inference_mode():
        for live, allowed in ((network.model, 1e-4), (stored, 1e-5)):
            hidden = live(**inputs, use_cache=False).last_hidden_state
            assert ((hidden - expected) * mask[..., None]).abs().max() < allowed
    chosen = tmp_path / "unequal.json"
    chosen.write_text(json.dumps({"widths": UNEQUAL}))
    arguments = ("--subnet", chosen, "--weight-format", "fp32", "--output", tmp_path / "ir")
    ran = run_cli("export", *source.arguments(), *arguments)
    assert ran.code == 0, ran.err
    first = openvino_genai.TextEmbeddingPipeline.PoolingType.CLS
    pipeline = openvino_genai.TextEmbeddingPipeline(str(tmp_path / "ir"), "CPU", pooling_type=first, normalize=True, **EXACT)
    embedded = np.array(pipeline.embed_documents(TEXTS))
    assert np.abs(embedded - oracle_embeddings(expected, mask, "cls").numpy()).max() < 1e-4


def test_search_and_training(run_cli: Callable, tmp_path: Path) -> None:
    source = write("xlm-roberta", tmp_path)
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS * 2))
    data = ("--nncf-config", source.space, "--data", tmp_path / "texts.jsonl")
    ran = run_cli("search", source.base, *data, "--num-prompts", 8, "--evals", 8, "--cost", "macs", "--output", tmp_path / "s")
    assert ran.code == 0, ran.err
    recovery = ("--subnet", "minimal", "--teacher", source.base, "--eval-data", tmp_path / "texts.jsonl", "--lr", 0.01)
    steps = ("--steps", 30, "--batch-size", 4, "--precision", "fp32", "--json")
    ran = run_cli("train", "--from", source.base, *data, *recovery, *steps, "--output", tmp_path / "out")
    assert ran.code == 0, ran.err
    losses = json.loads(ran.out)["eval_data"]["losses"]
    assert losses[-1]["loss"] < 0.6 * losses[0]["loss"]
    ran = run_cli("train", "--from", source.base, *data, *recovery, "--max-length", CONTEXT + 1, "--output", tmp_path / "more")
    assert ran.code == 1 and f"has a context of {CONTEXT} tokens" in ran.err


def test_classifiers_are_refused(run_cli: Callable, tmp_path: Path) -> None:
    base = write("xlm-roberta", tmp_path).base
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["XLMRobertaForSequenceClassification"]}))
    ran = run_cli("inspect", base)
    assert ran.code == 1 and "classifiers and rerankers of xlm-roberta are not supported" in " ".join(ran.err.split())


def test_a_checkpoint_of_pre_training(tmp_path: Path) -> None:
    """Its body has a prefix; its head is ignored."""
    source = write("roberta", tmp_path)
    tensors = {f"roberta.{name}": tensor for name, tensor in load_file(source.base / "model.safetensors").items()}
    tensors |= {"lm_head.dense.weight": torch.zeros(HIDDEN, HIDDEN), "lm_head.bias": torch.zeros(VOCAB)}
    save_file(tensors, source.base / "model.safetensors", {"format": "pt"})
    network: Any = load_super_network(open_source(str(source.adapter), str(source.base), source.space))
    network.activate([64] * 3 + [8] * 3 + [128] * 3)
    expected = AutoModel.from_pretrained(source.base)
    with torch.inference_mode(), network.model.disable_adapter():
        hidden = network.model(**batch(), use_cache=False).last_hidden_state
        assert (hidden - expected(**batch()).last_hidden_state).abs().max() < 1e-5
