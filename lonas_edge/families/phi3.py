"""Phi-3 and Phi-4-mini: LLaMA with fused projections.

    [gate; up] = gate_up_proj(x)
    mlp(x) = down_proj(up * act(gate))

A width of the MLP is two blocks of rows of `gate_up_proj`. `qkv_proj` holds q, k and v one after the other; its rank is
elastic.

Source: the configuration and modeling files of transformers 5.5.
"""

from typing import Any

from lonas_edge.families.base import Block, Family, GroupKind, Linear, WidthRule
from lonas_edge.families.llama import ATTENTION, HIDDEN_STATE, class_names, head_dim, key_value_channels


class Phi3(Family):
    """Phi-3 and Phi-4-mini."""

    class_names = {"phi3": class_names("Phi3")}
    layers = "model.layers"
    embedding = "model.embed_tokens"
    head = "lm_head"
    final_norm = "model.norm"
    width_rules = (WidthRule(("mlp.gate_up_proj",), "mlp.down_proj", "intermediate_size"),)
    refused_widths = {
        "self_attn.qkv_proj": ATTENTION,
        "self_attn.o_proj": HIDDEN_STATE,
        "mlp.down_proj": HIDDEN_STATE,
    }
    generated_groups = (
        GroupKind(layers=("self_attn.qkv_proj",)),
        GroupKind(width_rules[0]),
        GroupKind(layers=("mlp.gate_up_proj",)),
    )
    default_targets = ("qkv_proj", "gate_up_proj", "down_proj")

    def blocks(self, config: Any) -> tuple[Block, ...]:
        """See `Family`."""
        attention = Block("attention", "self_attn", ("input_layernorm",), 2, cached=True)
        return attention, Block("mlp", "mlp", ("post_attention_layernorm",))

    def linears(self, config: Any) -> list[Linear]:
        """See `Family`."""
        hidden, mlp = config.hidden_size, config.intermediate_size
        query, key_value = config.num_attention_heads * head_dim(config), key_value_channels(config)
        qkv = (query, key_value, key_value)
        return [
            Linear("self_attn.qkv_proj", sum(qkv), hidden, blocks=qkv),
            Linear("self_attn.o_proj", hidden, query),
            Linear("mlp.gate_up_proj", 2 * mlp, hidden, blocks=(mlp, mlp)),
            Linear("mlp.down_proj", hidden, mlp),
        ]

    def vectors(self, config: Any) -> dict[str, int]:
        """See `Family`."""
        return {f"{norm}.weight": config.hidden_size for norm in ("input_layernorm", "post_attention_layernorm")}

    def outer_vectors(self, config: Any) -> dict[str, int]:
        """See `Family`."""
        return {f"{self.final_norm}.weight": config.hidden_size}

    def kv_width(self, config: Any) -> int:
        """See `Family`."""
        return 2 * key_value_channels(config)
