"""Binding a search space to a model: the layers that a width changes, and misfits."""

from typing import Any

import pytest
from tiny_models import CASES
from transformers import AutoConfig

from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import LinearPart
from lonas_edge.space.architecture import Architecture
from lonas_edge.space.elasticity import Elasticity, bind
from lonas_edge.space.search_space import parse_search_space
from lonas_edge.space.subnetwork import Subnetwork

LAYER = (
    "PeftModelForCausalLM/LoraModel[base_model]/LlamaForCausalLM[model]/LlamaModel[model]/ModuleList[layers]/LlamaDecoderLayer"
)
ENDINGS = {
    "base": "NNCFUserSelfLinear[self_linear]",
    "lora_A": "ModuleDict[lora_A]/NNCFLinear[default]",
    "lora_B": "ModuleDict[lora_B]/NNCFLinear[default]",
}


def node(name: str, role: str = "base", layer: int = 0) -> str:
    """An NNCF node name."""
    block = "LlamaMLP[mlp]" if name in ("gate_proj", "up_proj", "down_proj") else "LlamaAttention[self_attn]"
    return f"{LAYER}[{layer}]/{block}/Linear[{name}]/{ENDINGS[role]}/linear_0"


def bound(groups: list[list[str]], widths: list[list[int]], **width: Any) -> Elasticity:
    """The tiny LLaMA with this search space."""
    elastic = {"overwrite_groups": groups, "overwrite_groups_widths": widths, **width}
    space = parse_search_space({"bootstrapNAS": {"training": {"elasticity": {"width": elastic}}}}, "space.json")
    return bind(Architecture.from_config(AutoConfig.for_model(**CASES["llama"]), "base"), space, "space.json")


def test_a_width_reaches_producers_and_consumer() -> None:
    elasticity = bound(
        [[node("gate_proj"), node("up_proj")], [node("q_proj", "lora_A")], [node("down_proj", "lora_A")]],
        [[128, 64], [8, 6], [8, 4]],
    )
    widths = Subnetwork(elasticity, (64, 6, 4)).linears
    assert widths["model.layers.0.mlp.gate_proj"] == LinearPart.first(64, 64)
    assert widths["model.layers.0.mlp.up_proj"] == LinearPart.first(64, 64)
    assert widths["model.layers.0.mlp.down_proj"] == LinearPart.first(64, 64, 4)
    assert widths["model.layers.0.self_attn.q_proj"] == LinearPart.first(64, 64, 6)
    assert widths["model.layers.0.self_attn.k_proj"] == LinearPart.first(32, 64)
    assert widths["model.layers.1.mlp.down_proj"] == LinearPart.first(64, 128)
    assert widths["lm_head"] == LinearPart.first(288, 64)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    assert Subnetwork(elasticity, (64, 6, 4)).layer_fields() == [{"intermediate_size": w, **heads} for w in (64, 128, 128)]


def test_one_group_may_span_layers() -> None:
    nodes = [node(name, role, layer) for layer in (0, 2) for name in ("gate_proj", "up_proj") for role in ("base", "lora_B")]
    widths = Subnetwork(bound([nodes], [[128, 64]]), (64,)).linears
    assert [widths[f"model.layers.{layer}.mlp.down_proj"].in_features for layer in range(3)] == [64, 128, 64]


@pytest.mark.parametrize(
    ("groups", "widths", "errors"),
    [
        ([[node("gate_proj", layer=3)]], [[8]], ["group 0: unknown node", "LlamaDecoderLayer[3]", "decoder layers 0 to 2"]),
        (
            [[node("gate_proj"), node("up_proj")]],
            [[129, 64]],
            ["width 129 of model.layers.0.mlp.gate_proj", "larger than the full width 128"],
        ),
        ([[node("q_proj")]], [[64, 32]], ["self_attn.q_proj is elastic without self_attn.k_proj, self_attn.v_proj"]),
        ([[node("o_proj")]], [[64, 32]], ["self_attn.o_proj is not supported", "hidden state"]),
        (
            [[node("gate_proj"), node("up_proj")], [node("gate_proj", "lora_B"), node("up_proj", "lora_B")]],
            [[128, 64], [128, 64]],
            ["group 1", "model.layers.0.mlp.gate_proj", "group 0"],
        ),
    ],
)
def test_mismatches(groups: list[list[str]], widths: list[list[int]], errors: list[str]) -> None:
    with pytest.raises(LonasEdgeError) as caught:
        bound(groups, widths)
    for text in (*errors, "space.json", "(llama)", "lonas-edge space"):
        assert text in str(caught.value)
