"""Phi-3 and Phi-4-mini: LLaMA with fused projections.

    [gate; up] = gate_up_proj(x)
    mlp(x) = down_proj(up * act(gate))

A width of the MLP is two blocks of rows of `gate_up_proj`. `qkv_proj` holds q, k and v one after the other: heads are three.

Source: the configuration and modeling files of transformers 5.5.
"""

from collections.abc import Mapping
from typing import Any

from lonas_edge.families.layers import GroupKind, HeadRule, Linear, WidthRule, head_dim, key_value_heads
from lonas_edge.families.llama import Llama, class_names, key_value_channels


class Phi3(Llama):
    """Phi-3 and Phi-4-mini."""

    titles = {"phi3": "Phi-3, Phi-4-mini"}
    class_names = {"phi3": class_names("Phi3")}
    width_rules = (
        WidthRule(("mlp.gate_up_proj",), "mlp.down_proj", "intermediate_size"),
        HeadRule(("self_attn.qkv_proj",), "self_attn.o_proj", "num_attention_heads"),
    )
    generated_groups = (
        GroupKind(layers=("self_attn.qkv_proj",)),
        GroupKind(width_rules[0]),
        GroupKind(layers=("mlp.gate_up_proj",)),
    )
    default_targets = ("qkv_proj", "gate_up_proj", "down_proj")

    def linears(self, config: Any) -> list[Linear]:
        hidden, mlp = config.hidden_size, config.intermediate_size
        query, key_value = config.num_attention_heads * head_dim(config), key_value_channels(config)
        qkv = (query, key_value, key_value)
        return [
            Linear("self_attn.qkv_proj", sum(qkv), hidden, blocks=qkv),
            Linear("self_attn.o_proj", hidden, query),
            Linear("mlp.gate_up_proj", 2 * mlp, hidden, blocks=(mlp, mlp)),
            Linear("mlp.down_proj", hidden, mlp),
        ]

    def narrow_attention(self, attention: Any, fields: Mapping[str, int]) -> None:
        """It splits q, k and v by numbers of heads, and by a configuration that all layers share."""
        super().narrow_attention(attention, fields)
        config = getattr(attention.config, "whole", attention.config)
        attention.config = _Narrowed(config, fields)
        attention.num_key_value_heads = fields.get("num_key_value_heads", key_value_heads(config))


class _Narrowed:
    """A configuration with other numbers of heads; all other fields are those of the whole one."""

    def __init__(self, whole: Any, fields: Mapping[str, int]):
        self.whole = whole
        vars(self).update(fields)

    def __getattr__(self, name: str) -> Any:
        if "whole" not in vars(self):  # a copy that is being made
            raise AttributeError(name)
        return getattr(self.whole, name)
