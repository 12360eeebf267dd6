"""BERT: the published search space and its card's figure, sub-networks against the definition, refusals."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from published_spaces import bert_base_rte, llama_7b
from safetensors.torch import load_file, save_file
from tiny_bert import CONFIG, LAYERS, TinyBert, oracle_logits, pairs
from tiny_models import TinyModels, TinySource
from transformers import AutoConfig

from lonas_edge import load_checkpoint
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network
from lonas_edge.space.architecture import Architecture

BERT_BASE = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
ADAPTER = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]}
MERGED = 1e-5  # float64 logits of order 10 from weights that are rounded to fp32 once


@pytest.fixture
def bert_base(tmp_path: Path) -> TinySource:
    """Nothing but the configurations of BERT-base and of the published adapter, and the published search space of RTE."""
    contents = {"base/config.json": BERT_BASE, "adapter/adapter_config.json": ADAPTER, "space.json": bert_base_rte()}
    for name, content in contents.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    return TinySource("bert", tmp_path / "base", tmp_path / "adapter", tmp_path / "space.json")


def drawn(source: TinySource, seed: int) -> list[int]:
    """One width a group, layers unequal."""
    draw = random.Random(seed)
    widths = [draw.choice(values) for values in source.groups()]
    for first in (0, 2 * LAYERS):
        widths[first : first + LAYERS] = draw.sample(source.groups()[first], LAYERS)
    return widths


def test_equals_the_published_groups(run_cli: Callable, bert_base: TinySource, tmp_path: Path) -> None:
    """Groups, their order and what follows are the published ones; widths were found by a search there."""
    assert run_cli("space", "--model", bert_base.base, "--output", tmp_path / "ours.json").code == 0
    published, generated = (json.loads(path.read_text()) for path in (bert_base.space, tmp_path / "ours.json"))
    assert generated["input_info"] == published["input_info"]
    widths = [content["bootstrapNAS"]["training"]["elasticity"]["width"] for content in (published, generated)]
    for name in ("overwrite_groups", "add_dynamic_inputs"):
        assert widths[1][name] == widths[0][name]
    values = widths[1]["overwrite_groups_widths"]
    assert values[12:24] == [[8, 4, 2]] * 12
    assert (values[0], values[24]) == ([768, 640, 576, 448, 384], [3072, 2688, 2304, 1920, 1536])


def test_figure_of_the_card(run_cli: Callable, bert_base: TinySource) -> None:
    """11.2 GFLOPs at 128 tokens: linear layers, unmerged adapters and attention itself; pooler and head once a sequence."""
    ran = run_cli("inspect", *bert_base.arguments(), "--json").ok()
    content = json.loads(ran.out)
    layer = 4 * 768**2 + 2 * 768 * 3072 + 2 * 8 * (768 + 768)
    macs = 128 * 12 * layer + 12 * 2 * 128**2 * 768 + 768**2 + 2 * 768
    assert content["unpruned"]["macs"] == macs
    assert f"{macs / 1e9:.1f}" == "11.2"
    assert content["unpruned"]["linear_weights"] == 12 * layer + 768**2 + 2 * 768
    assert content["unpruned"]["parameters"] == 109_483_778  # BertForSequenceClassification of two classes
    heads = [768] * 10 + [704, 768]
    mlps = [2634, 2634, 2627, 2676, 2628, 2662, 2706, 2687, 2616, 2400, 2198, 1940]
    small = sum(4 * 768 * h + 2 * 768 * m + 2 * 4 * (768 + h) for h, m in zip(heads, mlps, strict=True))
    assert content["subnetwork"]["macs"] == 128 * small + 2 * 128**2 * sum(heads) + 768**2 + 2 * 768
    assert len(content["groups"]) == 36


def test_what_is_written(tiny_bert: TinyBert, materialize: Callable) -> None:
    source = tiny_bert.source(3)
    folder = materialize(source, [64, 48, 32, 8, 8, 6, 128, 64, 64])
    config = json.loads((folder / "config.json").read_text())
    assert config["intermediate_size"] == 64 and config["num_attention_heads"] == 4
    assert config["per_layer_config"] == {
        "0": {"intermediate_size": 128},
        "1": {"num_attention_heads": 3},
        "2": {"num_attention_heads": 2},
    }
    assert config["id2label"] == {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"} and config["label2id"]["LABEL_2"] == 2
    shapes = {name: list(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
    assert shapes["bert.encoder.layer.1.attention.self.key.weight"] == [48, 64]
    assert shapes["bert.encoder.layer.1.attention.self.key.bias"] == [48]
    assert shapes["bert.encoder.layer.2.attention.output.dense.weight"] == [64, 32]
    assert shapes["classifier.weight"] == [3, 64]
    assert load_checkpoint(folder).config.num_labels == 3


def test_names_of_old_checkpoints(tiny_bert: TinyBert, materialize: Callable, tmp_path: Path) -> None:
    """As bert-base-uncased is published: `LayerNorm.gamma`, position_ids, and the heads of pre-training."""
    source = tiny_bert.source(2, headless=False).copied_to(tmp_path)
    path = source.base / "model.safetensors"
    stored = {name.replace("LayerNorm.weight", "LayerNorm.gamma"): tensor for name, tensor in load_file(path).items()}
    stored = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in stored.items()}
    del stored["classifier.weight"], stored["classifier.bias"]
    stored |= {"cls.predictions.bias": torch.zeros(320), "bert.embeddings.position_ids": torch.arange(64)[None]}
    assert sum("gamma" in name for name in stored) == 7
    save_file(stored, path, metadata={"format": "pt"})
    widths = drawn(source, 2)
    expected = oracle_logits(tiny_bert.base(), source.adapter, source.space, widths, pairs())
    network = load_super_network(source.opened())
    network.activate(widths)
    with torch.inference_mode():
        found = load_checkpoint(materialize(source, widths), torch.float64)(**pairs()).logits
        assert (network.model(**pairs()).logits - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (found - expected).abs().max() < MERGED * expected.abs().max()


def test_a_body_without_a_head_alone(tiny_bert: TinyBert, materialize: Callable, tmp_path: Path) -> None:
    """Whose configuration names no class: a BertModel is an embedding model."""
    base = tiny_bert.source().copied_to(tmp_path).base
    (base / "config.json").write_text(json.dumps(CONFIG))
    with pytest.raises(LonasEdgeError, match=r"classifier\.weight: missing; .* \(a body without the head(.|\n)*modules\.json"):
        materialize(open_source(str(base)), [])


def test_spaces_of_other_models(tiny_bert: TinyBert, tiny_models: TinyModels, bert_base: TinySource, tmp_path: Path) -> None:
    """A published BERT configuration on a causal model, and the reverse: reported once, not for each of its nodes."""
    (tmp_path / "llama.json").write_text(json.dumps(llama_7b()))
    message = "its .* nodes belong to {}; the model is a {}"
    bert, llama = "BertForSequenceClassification", "LlamaForCausalLM"
    with pytest.raises(LonasEdgeError, match=message.format(bert, llama)):
        open_source(str(tiny_models.base("llama")), None, bert_base.space)
    with pytest.raises(LonasEdgeError, match=message.format(llama, bert)) as raised:
        open_source(str(tiny_bert.base()), None, tmp_path / "llama.json")
    assert len(str(raised.value).splitlines()) < 5


def test_adapters_of_other_tasks(tiny_bert: TinyBert, tiny_models: TinyModels) -> None:
    with pytest.raises(LonasEdgeError, match=r"'SEQ_CLS', an adapter of a sequence classifier; .*bloom.* is a causal language"):
        open_source(str(tiny_bert.adapter()), str(tiny_models.base("bloom")))
    with pytest.raises(LonasEdgeError, match=r"'CAUSAL_LM', an adapter of a causal language model; .*bert.* is a sequence"):
        open_source(str(tiny_models.adapter("llama")), str(tiny_bert.base()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "is_decoder true is not supported"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not supported"),
    ],
)
def test_other_networks_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LonasEdgeError, match=message):
        Architecture.from_config(AutoConfig.for_model(**{**CONFIG, **changes}), "bert")


def test_commands_that_need_prompts(run_cli: Callable, tiny_bert: TinyBert, tmp_path: Path) -> None:
    """Options for language models refuse a classifier by name."""
    (tmp_path / "data.json").write_text('[{"instruction": "a", "output": "b"}]')
    source, data = tiny_bert.source(), tmp_path / "data.json"
    for arguments, refused in (
        (["export", "--weight-format", "int4", "--calibration", data], "--calibration works on a causal language model"),
        (["search", "--data", data, "--cost", "ttft"], "a sequence classifier generates no tokens; use --cost latency"),
        (["search", "--data", data], "GLUE has TSV files"),
    ):
        ran = run_cli(arguments[0], *source.arguments(), *arguments[1:], "--output", tmp_path / "out")
        assert ran.code == 1 and refused in ran.err, ran.err
