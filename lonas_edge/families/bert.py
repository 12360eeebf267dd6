"""BERT: encoder layers of attention and an MLP without a gate, a LayerNorm after each residual.

    mlp(x) = output.dense(act(intermediate.dense(x)))

A classifier's head reads the pooled first token: classifier(tanh(pooler.dense(x[0]))). A sentence embedding model is the same
without pooler and head. The published search spaces have elastic heads, which `attention.output.dense` follows
(`add_dynamic_inputs`), and adapters on queries and values.

Attention and MLPs cannot be removed alone, since the norm after each is in the residual. Whole layers can.

Source: the configuration and modeling files of transformers 5.5; Devlin et al., NAACL 2019.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from lonas_edge.families.base import Family
from lonas_edge.families.heads import Embedder
from lonas_edge.families.kinds import CLASSIFICATION, ModelKind
from lonas_edge.families.layers import HIDDEN_STATE, Block, GroupKind, HeadRule, Linear, WidthRule, head_dim

_QUERY, _KEY, _VALUE = (f"attention.self.{name}" for name in ("query", "key", "value"))


class Bert(Family):
    """BERT and models of its architecture, such as MiniLM, with a classification head."""

    titles = {"bert": "BERT, MiniLM"}
    class_names: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "bert": {
            "model": "BertForSequenceClassification",
            "body": "BertModel",
            "body.encoder": "BertEncoder",
            "layer": "BertLayer",
            "attention": "BertAttention",
            "attention.self": "BertSelfAttention",
            "attention.output": "BertSelfOutput",
            "intermediate": "BertIntermediate",
            "output": "BertOutput",
        }
    }
    kind: ClassVar[ModelKind] = CLASSIFICATION
    layers = "bert.encoder.layer"
    embedding = "bert.embeddings.word_embeddings"
    head = "classifier"
    width_rules: ClassVar[tuple[WidthRule, ...]] = (
        HeadRule((_QUERY, _KEY, _VALUE), "attention.output.dense", "num_attention_heads"),
        WidthRule(("intermediate.dense",), "output.dense", "intermediate_size"),
    )
    refused_widths = {"attention.output.dense": HIDDEN_STATE, "output.dense": HIDDEN_STATE}
    generated_groups: ClassVar[tuple[GroupKind, ...]] = (
        GroupKind(width_rules[0]),
        GroupKind(layers=(_QUERY, _VALUE)),
        GroupKind(width_rules[1]),
    )
    generated_ranks = (8, 4, 2)
    default_targets = ("query", "value")
    dynamic_inputs: ClassVar[tuple[str, ...]] = ("attention.output.dense",)
    legacy_buffers = ("embeddings.position_ids",)
    legacy_names = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
    other_heads: ClassVar[tuple[str, ...]] = ("cls.",)  # of pre-training

    def config_errors(self, config: Any) -> list[str]:
        """Decoders and relative positions are not supported."""
        refused = [name for name in ("is_decoder", "add_cross_attention") if getattr(config, name, False)]
        errors = [f"{name} true is not supported; expected an encoder" for name in refused]
        positions = getattr(config, "position_embedding_type", None) or "absolute"
        if positions != "absolute":
            errors.append(f"position_embedding_type {positions!r} is not supported; expected 'absolute'")
        return errors

    def blocks(self, config: Any) -> tuple[Block, ...]:
        """Whole layers."""
        return (Block("layer", "", ()),)

    def linears(self, config: Any) -> list[Linear]:
        hidden, mlp = config.hidden_size, config.intermediate_size
        heads = config.num_attention_heads * head_dim(config)
        return [
            Linear(_QUERY, heads, hidden, True),
            Linear(_KEY, heads, hidden, True),
            Linear(_VALUE, heads, hidden, True),
            Linear("attention.output.dense", hidden, heads, True),
            Linear("intermediate.dense", mlp, hidden, True),
            Linear("output.dense", hidden, mlp, True),
        ]

    def other_linears(self, config: Any) -> list[Linear]:
        """The pooler and the head."""
        hidden = config.hidden_size
        return [Linear(f"{self.prefix}pooler.dense", hidden, hidden, True), Linear(self.head, config.num_labels, hidden, True)]

    def embeddings(self, config: Any) -> dict[str, tuple[int, int]]:
        """Tables of tokens, positions and segments."""
        sizes = {"position_embeddings": config.max_position_embeddings}
        sizes |= {"token_type_embeddings": config.type_vocab_size} if self.segments else {}
        tables = {f"{self.prefix}embeddings.{name}": (size, config.hidden_size) for name, size in sizes.items()}
        return super().embeddings(config) | tables

    def tied(self, config: Any) -> bool:
        """`tie_word_embeddings` is the pre-training head's."""
        return False

    def vectors(self, config: Any) -> dict[str, int]:
        norms = ("attention.output.LayerNorm", "output.LayerNorm")
        return {f"{norm}.{part}": config.hidden_size for norm in norms for part in ("weight", "bias")}

    def other_vectors(self, config: Any) -> dict[str, int]:
        return {f"{self.prefix}embeddings.LayerNorm.{part}": config.hidden_size for part in ("weight", "bias")}

    def kv_width(self, config: Any) -> int:
        """An encoder has no cache."""
        return 0

    def hidden(self, model: Any, **inputs: Any) -> Any:
        """The pooler's output [batch, hidden]."""
        return model.base_model(**inputs)[1]

    def logits(self, model: Any, hidden: Any) -> Any:
        """[batch, classes]."""
        return model.classifier(hidden)


class BertEmbedder(Embedder, Bert):
    """BERT and models of its architecture as sentence embedding models."""

    class_names: ClassVar[Mapping[str, Mapping[str, str]]] = {"bert": {**Bert.class_names["bert"], "model": "BertModel"}}
    layers = "encoder.layer"
    embedding = "embeddings.word_embeddings"
    other_heads = ("cls.", "classifier.", "pooler.")
    other_prefixes = ("bert.",)
    options = {"add_pooling_layer": False}
