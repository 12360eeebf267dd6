"""Adapters of every supported kind, each merge compared with PEFT itself; those that cannot be merged, refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import EvaConfig, PeftModel
from peft.tuners.lora.config import CordaConfig, LoraGAConfig
from safetensors.torch import load_file, save_file
from tiny_models import TARGETS, TinyModels, TinySource
from transformers import AutoModelForCausalLM

from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.adapters import AdapterConfig
from lonas_edge.network.materialize import MaterializedModel
from lonas_edge.network.modeling import load_checkpoint
from lonas_edge.network.source import open_source
from lonas_edge.network.super_network import load_super_network

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

# name -> (case, LoraConfig options)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama", {}),
    "bin": ("llama", {"safe": False}),
    "rank_pattern": (
        "llama",
        {"rank_pattern": {"k_proj": 12, r"model\.layers\.1\.mlp\.up_proj": 10, "layers.2.mlp.gate_proj": 3}},
    ),
    "alpha_pattern": ("llama", {"alpha_pattern": {"down_proj": 4, "layers.1.self_attn.q_proj": 40}}),
    "rslora": ("llama", {"use_rslora": True}),
    "fan_in_fan_out": ("llama", {"fan_in_fan_out": True}),
    "all-linear": ("llama", {"target_modules": "all-linear"}),
    "regular expression": ("llama", {"target_modules": r".*\.layers\.[02]\..*(q_proj|down_proj)"}),
    "one layer": ("llama", {"layers_to_transform": [1], "layers_pattern": "layers"}),
    "bias all": ("llama-biased", {"bias": "all"}),
    "lora_bias": ("llama-biased", {"lora_bias": True}),
    "saved head": ("llama", {"modules_to_save": ["lm_head"]}),
    "saved head, tied": ("llama-tied", {"modules_to_save": ["lm_head"]}),
    "saved embedding, tied": ("llama-tied", {"modules_to_save": ["embed_tokens"]}),
    "saved both, tied": ("gemma-tied", {"modules_to_save": ["embed_tokens", "lm_head"]}),
    "saved embedding, kept tied": ("llama-tied", {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}),
    "saved norms": ("qwen3", {"modules_to_save": ["norm"]}),
    "eva": ("llama", {"init_lora_weights": "eva", "eva_config": EvaConfig(rho=2.0)}),
    "corda, converted": ("llama", {"corda_config": CordaConfig()}),
    "lora-ga, converted": ("llama", {"lora_ga_config": LoraGAConfig()}),
    "head, tied": ("llama-tied", {"target_modules": [*TARGETS, "lm_head"]}),
}


def peft_logits(base: Path, adapter: Path, ids: torch.Tensor) -> torch.Tensor:
    """What PEFT computes, in float64."""
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter).double().eval()
    with torch.no_grad():
        return model(input_ids=ids).logits


def plain(base: Path, adapter: Path) -> MaterializedModel:
    """The adapter merged whole."""
    source = open_source(str(adapter), str(base))
    return MaterializedModel(source, source.select())


@pytest.mark.parametrize("kind", KINDS)
def test_merge_equals_peft(kind: str, tiny_models: TinyModels, materialize: Callable, ids: torch.Tensor) -> None:
    case, options = KINDS[kind]
    base, adapter = tiny_models.base(case), tiny_models.adapter(case, **options)
    expected = peft_logits(base, adapter, ids)
    with torch.no_grad():
        without = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float64)(input_ids=ids).logits
        logits = load_checkpoint(materialize(open_source(str(adapter), str(base)), []), torch.float64)(input_ids=ids).logits
    assert (expected - without).abs().max() > 0.1  # the adapter matters
    assert (logits - expected).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora = True"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights = 'pissa'"),
        ({"target_modules": [*TARGETS, "embed_tokens"]}, "an adapter on model.embed_tokens"),
        ({"trainable_token_indices": [3, 5]}, "trainable_token_indices = [3, 5]"),
        ({"target_parameters": ["mlp.gate_proj.weight"], "target_modules": ["q_proj"]}, "target_parameters"),
        ({"modules_to_save": ["down_proj"], "target_modules": ["q_proj"]}, "model.layers.0.mlp.down_proj.weight"),
        ({"lora_bias": True}, "model.layers.0.self_attn.q_proj.lora_B.bias: the base layer has no bias"),
    ],
)
def test_refused_by_name(options: dict[str, Any], named: str, tiny_models: TinyModels) -> None:
    base, adapter = tiny_models.base("llama"), tiny_models.adapter("llama", **options)
    with pytest.raises(LonasEdgeError) as caught:
        plain(base, adapter)
    assert named in str(caught.value)


def edit_config(adapter: Path, **fields: Any) -> None:
    """Change fields of an adapter's configuration."""
    content = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(content | fields))


def test_a_field_of_a_future_method_is_refused(llama_copy: TinySource) -> None:
    edit_config(llama_copy.adapter, use_better_lora=True, harmless_default=None, another=False, kasa_config={}, unknown={})
    with pytest.raises(LonasEdgeError) as caught:
        AdapterConfig.read(llama_copy.adapter)
    assert "use_better_lora = True" in str(caught.value)
    assert "kasa_config = {}" in str(caught.value), "the method with its defaults"
    assert "unknown" not in str(caught.value)
    assert "harmless" not in str(caught.value)
    assert "another" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "lost"),
    [
        ("saved head", "lm_head.weight"),
        ("bias all", "model.layers.2.self_attn.o_proj.bias"),
        ("lora_bias", "model.layers.0.mlp.up_proj.lora_B.bias"),
        ("all-linear", "model.layers.0.self_attn.o_proj.lora_A.weight"),
    ],
)
def test_missing_tensors_are_errors(kind: str, lost: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    """PEFT only warns, and goes on with the base's weight or a fresh factor."""
    case, options = KINDS[kind]
    source = tiny_models.source(case, **options).copied_to(tmp_path)
    tensors = load_file(source.adapter / WEIGHTS)
    keys = [key for key in tensors if key.replace(".base_layer", "").removeprefix("base_model.model.") == lost]
    assert len(keys) == 1
    save_file({key: tensor for key, tensor in tensors.items() if key not in keys}, source.adapter / WEIGHTS)
    with pytest.raises(LonasEdgeError) as caught:
        plain(source.base, source.adapter)
    assert f"{lost}: missing" in str(caught.value)
    assert str(source.adapter / WEIGHTS) in str(caught.value)


def test_search_space_wider_than_the_adapter(tiny_models: TinyModels) -> None:
    adapter = tiny_models.adapter("llama", r=7, target_modules=["q_proj", "k_proj", "up_proj", "gate_proj", "down_proj"])
    with pytest.raises(LonasEdgeError) as caught:
        open_source(str(adapter), str(tiny_models.base("llama")), tiny_models.space("llama"))
    for text in (
        "adapter rank 7, search space rank 8, in 12 modules: model.layers.0.self_attn.q_proj, …",
        "no adapter, search space rank 8, in 3 modules: model.layers.0.self_attn.v_proj, …",
        f"Create one for this adapter with `lonas-edge space --adapter {adapter} --model {tiny_models.base('llama')}",
        "space-llama.json",
        "adapter_config.json",
    ):
        assert text in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA' is not supported; expected 'LORA'"),
        ({"target_modules": "(q_proj"}, "peft cannot read it: .*unterminated subpattern"),
    ],
)
def test_a_configuration_that_is_wrong(llama_copy: TinySource, fields: dict[str, Any], message: str) -> None:
    edit_config(llama_copy.adapter, **fields)
    with pytest.raises(LonasEdgeError, match=rf"(?s)adapter/adapter_config\.json: .*{message}"):
        llama_copy.opened().ranks()


# copies of the base's embedding and head


def with_tables(source: TinySource, dtype: torch.dtype = torch.float32) -> None:
    """Save the adapter again, with embedding and head of the base in `dtype`."""
    base = AutoModelForCausalLM.from_pretrained(source.base, dtype=dtype)
    PeftModel.from_pretrained(base, source.adapter).save_pretrained(source.adapter, save_embedding_layers=True)
    stored = load_file(source.adapter / WEIGHTS)
    assert {"base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"} <= stored.keys()


@pytest.mark.parametrize("case", ["llama", "llama-tied"])
def test_copies_of_the_base_are_dropped(
    case: str, tiny_models: TinyModels, tmp_path: Path, materialize: Callable, ids: torch.Tensor
) -> None:
    source = tiny_models.source(case).copied_to(tmp_path)
    expected = peft_logits(source.base, source.adapter, ids)
    with_tables(source)
    opened = open_source(str(source.adapter), str(source.base))
    folder = materialize(opened, [])
    with torch.no_grad():
        logits = load_checkpoint(folder, torch.float64)(input_ids=ids).logits
    assert (logits - expected).abs().max() < 1e-5
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] == (case == "llama-tied")
    with torch.no_grad():
        assert (load_super_network(opened).model(input_ids=ids).logits - expected).abs().max() < 1e-4
    with_tables(source, torch.bfloat16)  # PEFT would put the rounded ones into the super-network
    with pytest.raises(LonasEdgeError, match=r"embed_tokens\.weight: differs from the base's"):
        materialize(open_source(str(source.adapter), str(source.base)), [])
