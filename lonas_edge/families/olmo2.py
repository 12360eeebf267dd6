"""OLMo 2: LLaMA with norms after each block and none before, and norms of queries and keys over all heads.

    x = x + post_attention_layernorm(attention(x))
    x = x + post_feedforward_layernorm(mlp(x))

`q_norm` and `k_norm` are RMS norms over the channels of all heads, so removing a head changes the scale of the others: heads
are not elastic.

Source: the configuration and modeling files of transformers 5.5.
"""

from typing import Any

from lonas_edge.families.layers import Block
from lonas_edge.families.llama import Llama, class_names, key_value_channels

_NORMED = "queries and keys are normalized over all heads, so the remaining heads would get another scale"
_NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")


class Olmo2(Llama):
    """OLMo 2."""

    titles = {"olmo2": "OLMo 2"}
    class_names = {"olmo2": class_names("Olmo2")}
    width_rules = Llama.width_rules[:1]
    refused_widths = {**Llama.refused_widths, **{f"self_attn.{name}_proj": _NORMED for name in "qkv"}}
    refused_heads = _NORMED

    def blocks(self, config: Any) -> tuple[Block, ...]:
        behind_attention, behind_mlp = _NORMS
        return Block("attention", "self_attn", (behind_attention,), 2, cached=True), Block("mlp", "mlp", (behind_mlp,))

    def vectors(self, config: Any) -> dict[str, int]:
        query = self.linears(config)[0].out_features
        normed = {"self_attn.q_norm.weight": query, "self_attn.k_norm.weight": key_value_channels(config)}
        return {f"{norm}.weight": config.hidden_size for norm in _NORMS} | normed
