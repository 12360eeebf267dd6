"""LLaMA and its relatives: decoder layers of attention with (grouped) key-value heads and a gated MLP.

    mlp(x) = down_proj(act(gate_proj(x)) * up_proj(x))

gate and up meet elementwise, so they share one width, and down_proj loses the same input columns. The relatives differ in
biases, head sizes and norms (the tables below), in the activation, and in Gemma's scaled embeddings and offset norms; none
of that is touched by a width of the MLP.

Sources: the configuration and modeling files of transformers 5.5 for each model type.
"""

from typing import Any

from lonas_edge.families.base import Family, Linear, WidthRule


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _attention_biases(config: Any) -> tuple[bool, bool]:
    """Whether q, k, v have a bias, and whether o has."""
    if config.model_type == "qwen2":
        return True, False
    if config.model_type == "mistral":
        return False, False
    both = bool(getattr(config, "attention_bias", False))
    return both, both


def linears(config: Any) -> list[Linear]:
    """Linear layers of one decoder layer."""
    hidden, mlp, head_dim = config.hidden_size, config.intermediate_size, _head_dim(config)
    query = config.num_attention_heads * head_dim
    key_value = (config.num_key_value_heads or config.num_attention_heads) * head_dim
    qkv_bias, o_bias = _attention_biases(config)
    mlp_bias = bool(getattr(config, "mlp_bias", False))
    return [
        Linear("self_attn.q_proj", query, hidden, qkv_bias),
        Linear("self_attn.k_proj", key_value, hidden, qkv_bias),
        Linear("self_attn.v_proj", key_value, hidden, qkv_bias),
        Linear("self_attn.o_proj", hidden, query, o_bias),
        Linear("mlp.gate_proj", mlp, hidden, mlp_bias),
        Linear("mlp.up_proj", mlp, hidden, mlp_bias),
        Linear("mlp.down_proj", hidden, mlp, mlp_bias),
    ]


def norms(config: Any) -> dict[str, int]:
    """Norm weights of one decoder layer."""
    sizes = {"input_layernorm.weight": config.hidden_size, "post_attention_layernorm.weight": config.hidden_size}
    if config.model_type in ("qwen3", "gemma3_text"):
        sizes |= {"self_attn.q_norm.weight": _head_dim(config), "self_attn.k_norm.weight": _head_dim(config)}
    if config.model_type in ("gemma2", "gemma3_text"):
        sizes |= {
            "pre_feedforward_layernorm.weight": config.hidden_size,
            "post_feedforward_layernorm.weight": config.hidden_size,
        }
    return sizes


def _class_names(prefix: str, body: str = "") -> dict[str, str]:
    return {
        "model": f"{prefix}ForCausalLM",
        "body": body or f"{prefix}Model",
        "layer": f"{prefix}DecoderLayer",
        "self_attn": f"{prefix}Attention",
        "mlp": f"{prefix}MLP",
    }


_ATTENTION = "the width of an attention projection decides heads that the rest of the layer must match"

FAMILY = Family(
    class_names={
        "llama": _class_names("Llama"),
        "mistral": _class_names("Mistral"),
        "qwen2": _class_names("Qwen2"),
        "qwen3": _class_names("Qwen3"),
        "gemma": _class_names("Gemma"),
        "gemma2": _class_names("Gemma2"),
        "gemma3_text": _class_names("Gemma3", body="Gemma3TextModel"),
    },
    layers="model.layers",
    embedding="model.embed_tokens",
    head="lm_head",
    final_norm="model.norm",
    width_rules=(WidthRule(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "intermediate_size"),),
    refused_widths={
        "self_attn.q_proj": _ATTENTION,
        "self_attn.k_proj": _ATTENTION,
        "self_attn.v_proj": _ATTENTION,
        "self_attn.o_proj": "its output is the hidden state, which every layer shares",
        "mlp.down_proj": "its output is the hidden state, which every layer shares",
    },
    rank_groups=(
        (("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),),
        (("mlp.gate_proj", "mlp.up_proj"),),
    ),
    linears=linears,
    norms=norms,
    default_targets=("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj"),  # those of the published adapters
)
