"""LLaMA and its relatives: decoder layers of attention with (grouped) key-value heads and a gated MLP.

    mlp(x) = down_proj(act(gate_proj(x)) * up_proj(x))

gate and up meet elementwise, so they share one width, and down_proj loses the same input columns. The relatives differ in
biases, head sizes and norms (the tables below), in the activation, and in Gemma's scaled embeddings, offset norms and capped
logits; none of that is touched by a width of the MLP.

Sources: the configuration and modeling files of transformers 5.5 for each model type.
"""

from typing import Any, ClassVar

from lonas_edge.families.base import Family
from lonas_edge.families.layers import HIDDEN_STATE, Block, GroupKind, HeadRule, Linear, WidthRule, head_dim, key_value_heads

_NORMS_AFTER = ("gemma2", "gemma3_text")
_MLP_NORMS = ("pre_feedforward_layernorm", "post_feedforward_layernorm")


def key_value_channels(config: Any) -> int:
    """Output channels of the key projection, and of the value projection."""
    return key_value_heads(config) * head_dim(config)


def class_names(prefix: str, body: str = "") -> dict[str, str]:
    """The classes that an NNCF node name spells, as transformers names them."""
    return {
        "model": f"{prefix}ForCausalLM",
        "body": body or f"{prefix}Model",
        "layer": f"{prefix}DecoderLayer",
        "self_attn": f"{prefix}Attention",
        "mlp": f"{prefix}MLP",
    }


class Llama(Family):
    """LLaMA, Mistral, Qwen 2 and 3, Gemma 1 to 3 (text)."""

    titles = {
        "llama": "LLaMA 1 to 3, SmolLM 1, SmolLM 2, Falcon 3",
        "mistral": "Mistral",
        "qwen2": "Qwen 2, Qwen 2.5",
        "qwen3": "Qwen 3",
        "gemma": "Gemma 1",
        "gemma2": "Gemma 2",
        "gemma3_text": "Gemma 3 (text)",
    }
    class_names = {
        "llama": class_names("Llama"),
        "mistral": class_names("Mistral"),
        "qwen2": class_names("Qwen2"),
        "qwen3": class_names("Qwen3"),
        "gemma": class_names("Gemma"),
        "gemma2": class_names("Gemma2"),
        "gemma3_text": class_names("Gemma3", body="Gemma3TextModel"),
    }
    layers = "model.layers"
    embedding = "model.embed_tokens"
    head = "lm_head"
    final_norm = "model.norm"
    width_rules: ClassVar[tuple[WidthRule, ...]] = (
        WidthRule(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj", "intermediate_size"),
        HeadRule(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj", "num_attention_heads"),
    )
    refused_widths = {"self_attn.o_proj": HIDDEN_STATE, "mlp.down_proj": HIDDEN_STATE}
    generated_groups = (
        GroupKind(layers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        GroupKind(width_rules[0]),
        GroupKind(layers=("mlp.gate_proj", "mlp.up_proj")),
    )
    default_targets: ClassVar[tuple[str, ...]] = ("q_proj", "k_proj", "v_proj", "up_proj", "gate_proj", "down_proj")
    renumbers = True
    legacy_buffers = ("rotary_emb.inv_freq",)  # written by transformers < 4.32, recomputed since
    raised_guards = ("GemmaOpenVINOConfig",)  # "maximum 5.0" in optimum-intel 2.2; Gemma 2 and 3 inherit it

    def blocks(self, config: Any) -> tuple[Block, ...]:
        """Attention and MLP; Gemma 2 and 3 also have a norm after each."""
        before, after = "input_layernorm", "post_attention_layernorm"
        if config.model_type in _NORMS_AFTER:
            attention = Block("attention", "self_attn", (before, after), 2, cached=True)
            return attention, Block("mlp", "mlp", _MLP_NORMS)
        return Block("attention", "self_attn", (before,), 2, cached=True), Block("mlp", "mlp", (after,))

    def config_errors(self, config: Any) -> list[str]:
        """Attention that sees later tokens, as EmbeddingGemma's, is not supported."""
        fields = {"use_bidirectional_attention": False, "is_causal": True}
        found = {name: getattr(config, name, value) for name, value in fields.items()}
        others = [f"{name} {found[name]!r} is not supported" for name in fields if found[name] not in (None, fields[name])]
        return super().config_errors(config) + others

    def linears(self, config: Any) -> list[Linear]:
        hidden, mlp = config.hidden_size, config.intermediate_size
        query, key_value = config.num_attention_heads * head_dim(config), key_value_channels(config)
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

    def vectors(self, config: Any) -> dict[str, int]:
        norms = ["input_layernorm", "post_attention_layernorm"]
        if config.model_type in _NORMS_AFTER:
            norms += _MLP_NORMS
        sizes = {f"{name}.weight": config.hidden_size for name in norms}
        if config.model_type in ("qwen3", "gemma3_text"):
            sizes |= {"self_attn.q_norm.weight": head_dim(config), "self_attn.k_norm.weight": head_dim(config)}
        return sizes

    def other_vectors(self, config: Any) -> dict[str, int]:
        return {f"{self.final_norm}.weight": config.hidden_size}

    def kv_width(self, config: Any) -> int:
        return 2 * key_value_channels(config)

    def logits(self, model: Any, hidden: Any) -> Any:
        """Logits; Gemma 2 caps them."""
        logits = super().logits(model, hidden)
        cap = getattr(model.config, "final_logit_softcapping", None)
        return logits if cap is None else cap * (logits / cap).tanh()


def _attention_biases(config: Any) -> tuple[bool, bool]:
    """Whether q, k, v have a bias, and whether o has."""
    if config.model_type == "qwen2":
        return True, False
    if config.model_type == "mistral":
        return False, False
    both = bool(getattr(config, "attention_bias", False))
    return both, both
