"""GPT-NeoX (Pythia, …): parallel or serial residuals, fused q, k, v, LayerNorm and biases everywhere, an MLP without a gate.

    mlp(x) = dense_4h_to_h(act(dense_h_to_4h(x)))

`query_key_value` is fused as [heads, 3, head_dim]: its first heads are its first rows.

Source: the configuration and modeling files of transformers 5.5.
"""

from typing import Any

from lonas_edge.families.base import Family
from lonas_edge.families.layers import HIDDEN_STATE, Block, GroupKind, HeadRule, Linear, WidthRule, head_dim


class GPTNeoX(Family):
    """GPT-NeoX."""

    titles = {"gpt_neox": "GPT-NeoX, Pythia"}
    class_names = {
        "gpt_neox": {
            "model": "GPTNeoXForCausalLM",
            "body": "GPTNeoXModel",
            "layer": "GPTNeoXLayer",
            "attention": "GPTNeoXAttention",
            "mlp": "GPTNeoXMLP",
        }
    }
    layers = "gpt_neox.layers"
    embedding = "gpt_neox.embed_in"
    head = "embed_out"
    final_norm = "gpt_neox.final_layer_norm"
    width_rules = (
        WidthRule(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", "intermediate_size"),
        HeadRule(("attention.query_key_value",), "attention.dense", "num_attention_heads"),
    )
    refused_widths = {"attention.dense": HIDDEN_STATE, "mlp.dense_4h_to_h": HIDDEN_STATE}
    generated_groups = (
        GroupKind(layers=("attention.query_key_value",)),
        GroupKind(width_rules[0]),
        GroupKind(layers=("mlp.dense_h_to_4h",)),
    )
    default_targets = ("query_key_value", "dense_h_to_4h", "dense_4h_to_h")
    legacy_buffers = ("attention.bias", "attention.masked_bias", "rotary_emb.inv_freq")

    def blocks(self, config: Any) -> tuple[Block, ...]:
        attention = Block("attention", "attention", ("input_layernorm",), 2, cached=True)
        return attention, Block("mlp", "mlp", ("post_attention_layernorm",))

    def linears(self, config: Any) -> list[Linear]:
        hidden, mlp, bias = config.hidden_size, config.intermediate_size, bool(config.attention_bias)
        heads = config.num_attention_heads * head_dim(config)
        return [
            Linear("attention.query_key_value", 3 * heads, hidden, bias),
            Linear("attention.dense", hidden, heads, bias),
            Linear("mlp.dense_h_to_4h", mlp, hidden, True),
            Linear("mlp.dense_4h_to_h", hidden, mlp, True),
        ]

    def vectors(self, config: Any) -> dict[str, int]:
        norms = ("input_layernorm", "post_attention_layernorm")
        return {f"{norm}.{part}": config.hidden_size for norm in norms for part in ("weight", "bias")}

    def other_vectors(self, config: Any) -> dict[str, int]:
        return {f"{self.final_norm}.{part}": config.hidden_size for part in ("weight", "bias")}

    def kv_width(self, config: Any) -> int:
        return 2 * int(config.num_attention_heads) * head_dim(config)
