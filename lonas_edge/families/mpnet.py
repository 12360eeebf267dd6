"""MPNet as a sentence embedding model: BERT's layers without segments, with positions as RoBERTa's.

Its encoder has a table of biases by relative position, one column a head. The attention of every layer adds them to its scores,
so a layer cannot have fewer heads than the others.

Source: the configuration and modeling files of transformers 5.5; Song et al., arXiv:2004.09297.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from lonas_edge.families.bert import BertEmbedder
from lonas_edge.families.layers import HIDDEN_STATE, Block, GroupKind, Linear, WidthRule

_HEADS = "all layers share one table of relative positions, with a column for each head"
_QUERY, _KEY, _VALUE, _OUT = (f"attention.attn.{name}" for name in ("q", "k", "v", "o"))
_BUCKETS = 32  # of relative positions; transformers computes no other number


class MPNetEmbedder(BertEmbedder):
    """MPNet, such as all-mpnet-base-v2."""

    titles: ClassVar = {"mpnet": "MPNet"}
    class_names: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "mpnet": {
            "model": "MPNetModel",
            "body": "MPNetModel",
            "body.encoder": "MPNetEncoder",
            "layer": "MPNetLayer",
            "attention": "MPNetAttention",
            "attention.attn": "MPNetSelfAttention",
            "intermediate": "MPNetIntermediate",
            "output": "MPNetOutput",
        }
    }
    segments = False
    layer_results = 1
    width_rules = (WidthRule(("intermediate.dense",), "output.dense", "intermediate_size"),)
    refused_widths: ClassVar = {
        **dict.fromkeys((_QUERY, _KEY, _VALUE), _HEADS),
        _OUT: HIDDEN_STATE,
        "output.dense": HIDDEN_STATE,
    }
    refused_heads = _HEADS
    generated_groups = (GroupKind(layers=(_QUERY, _VALUE)), GroupKind(width_rules[0]))
    default_targets = ("q", "v")
    dynamic_inputs = ()
    other_heads = ("lm_head.", "classifier.", "pooler.")
    other_prefixes = ("mpnet.",)

    def context(self, positions: int | None, padding: int | None) -> int | None:
        """The first token has position 2, whatever the padding's id."""
        return positions - 2 if positions else positions

    def blocks(self, config: Any) -> tuple[Block, ...]:
        """Whole layers."""
        return (Block("layer", "", (), results=1),)

    def linears(self, config: Any) -> list[Linear]:
        hidden, mlp = config.hidden_size, config.intermediate_size
        attention = [Linear(name, hidden, hidden, True) for name in (_QUERY, _KEY, _VALUE, _OUT)]
        return [*attention, Linear("intermediate.dense", mlp, hidden, True), Linear("output.dense", hidden, mlp, True)]

    def embeddings(self, config: Any) -> dict[str, tuple[int, int]]:
        """Tables of tokens, positions, and relative positions."""
        return super().embeddings(config) | {"encoder.relative_attention_bias": (_BUCKETS, config.num_attention_heads)}

    def vectors(self, config: Any) -> dict[str, int]:
        norms = ("attention.LayerNorm", "output.LayerNorm")
        return {f"{norm}.{part}": config.hidden_size for norm in norms for part in ("weight", "bias")}
