"""BLOOM and BLOOMZ: an MLP without a gate, LayerNorm and biases everywhere, fused q, k, v, positions by ALiBi.

    mlp(x) = dense_4h_to_h(gelu(dense_h_to_4h(x)))

`query_key_value` is fused as [heads, 3, head_dim]. Attention and MLP add the residual themselves. A LayerNorm follows the
embedding, which the head shares.

Heads are not elastic. ALiBi (Press et al., ICLR 2022) gives head i of n a slope that penalizes distance, 2^(-8i/n).
transformers, and so the IR of optimum-intel, computes slopes once for all layers from the number of heads in the configuration:
the remaining heads of a layer would get other slopes.

Source: the configuration and modeling files of transformers 5.5.
"""

from dataclasses import dataclass
from typing import Any

from lonas_edge.families.base import Family
from lonas_edge.families.layers import HIDDEN_STATE, Block, GroupKind, Linear, WidthRule, head_dim

_ALIBI = "the slopes of ALiBi depend on the number of heads"


@dataclass(frozen=True)
class _MlpRule(WidthRule):
    """The full width is four times the hidden size, unless the configuration of a layer has another; a model's has no field."""

    in_own_field = False

    def full(self, config: Any) -> int:
        """The layer's own width, or four times the hidden size."""
        return int(getattr(config, self.config_field, None) or 4 * config.hidden_size)


class Bloom(Family):
    """BLOOM and BLOOMZ."""

    titles = {"bloom": "BLOOM, BLOOMZ"}
    class_names = {
        "bloom": {
            "model": "BloomForCausalLM",
            "body": "BloomModel",
            "layer": "BloomBlock",
            "self_attention": "BloomAttention",
            "mlp": "BloomMLP",
        }
    }
    sizes = (
        ("vocab_size",),
        ("hidden_size", "n_embed"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
    )
    layers = "transformer.h"
    embedding = "transformer.word_embeddings"
    head = "lm_head"
    final_norm = "transformer.ln_f"
    layer_results = 2
    width_rules = (_MlpRule(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h", "intermediate_size"),)
    refused_widths = {
        "self_attention.query_key_value": _ALIBI,
        "self_attention.dense": HIDDEN_STATE,
        "mlp.dense_4h_to_h": HIDDEN_STATE,
    }
    refused_heads = _ALIBI
    generated_groups = (
        GroupKind(layers=("self_attention.query_key_value",)),
        GroupKind(width_rules[0]),
        GroupKind(layers=("mlp.dense_h_to_4h",)),
    )
    default_targets = ("query_key_value", "dense_h_to_4h", "dense_4h_to_h")

    def config_errors(self, config: Any) -> list[str]:
        """`slow_but_exact` multiplies with slices of a weight, past its adapter."""
        return ["slow_but_exact true is not supported; set it to false"] if config.slow_but_exact else []

    def blocks(self, config: Any) -> tuple[Block, ...]:
        """None where norms are in the residual."""
        if config.apply_residual_connection_post_layernorm:
            return ()
        attention = Block("attention", "self_attention", ("input_layernorm",), 2, cached=True, adds_residual=True)
        return attention, Block("mlp", "mlp", ("post_attention_layernorm",), adds_residual=True)

    def linears(self, config: Any) -> list[Linear]:
        hidden, heads = config.hidden_size, config.num_attention_heads * head_dim(config)
        mlp = getattr(config, "intermediate_size", None) or 4 * hidden
        return [
            Linear("self_attention.query_key_value", 3 * heads, hidden, True),
            Linear("self_attention.dense", hidden, heads, True),
            Linear("mlp.dense_h_to_4h", mlp, hidden, True),
            Linear("mlp.dense_4h_to_h", hidden, mlp, True),
        ]

    def vectors(self, config: Any) -> dict[str, int]:
        norms = ("input_layernorm", "post_attention_layernorm")
        return {f"{norm}.{part}": config.hidden_size for norm in norms for part in ("weight", "bias")}

    def other_vectors(self, config: Any) -> dict[str, int]:
        norms = ("transformer.word_embeddings_layernorm", self.final_norm)
        return {f"{norm}.{part}": config.hidden_size for norm in norms for part in ("weight", "bias")}

    def kv_width(self, config: Any) -> int:
        return 2 * int(config.num_attention_heads) * head_dim(config)
