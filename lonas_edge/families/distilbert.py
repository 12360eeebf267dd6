"""DistilBERT: BERT's layers under other names, without segments and pooler.

A classifier's head has two layers and reads the first token: classifier(relu(pre_classifier(x[0]))).

Source: the configuration and modeling files of transformers 5.5; Sanh et al., arXiv:1910.01108.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from lonas_edge.families.bert import Bert
from lonas_edge.families.heads import Embedder
from lonas_edge.families.layers import HIDDEN_STATE, GroupKind, HeadRule, Linear, WidthRule, head_dim

_QUERY, _KEY, _VALUE, _OUT = (f"attention.{name}_lin" for name in ("q", "k", "v", "out"))


class DistilBert(Bert):
    """DistilBERT with a classification head."""

    titles: ClassVar = {"distilbert": "DistilBERT"}
    class_names: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "distilbert": {
            "model": "DistilBertForSequenceClassification",
            "body": "DistilBertModel",
            "body.transformer": "Transformer",
            "layer": "TransformerBlock",
            "attention": "DistilBertSelfAttention",
            "ffn": "FFN",
        }
    }
    sizes = (
        ("vocab_size",),
        ("hidden_size", "dim"),
        ("hidden_dim",),
        ("num_hidden_layers", "n_layers"),
        ("num_attention_heads", "n_heads"),
    )
    segments = False
    layers = "distilbert.transformer.layer"
    embedding = "distilbert.embeddings.word_embeddings"
    width_rules = (
        HeadRule((_QUERY, _KEY, _VALUE), _OUT, "num_attention_heads"),
        WidthRule(("ffn.lin1",), "ffn.lin2", "hidden_dim"),
    )
    refused_widths: ClassVar = {_OUT: HIDDEN_STATE, "ffn.lin2": HIDDEN_STATE}
    generated_groups = (GroupKind(width_rules[0]), GroupKind(layers=(_QUERY, _VALUE)), GroupKind(width_rules[1]))
    default_targets = ("q_lin", "v_lin")
    dynamic_inputs = (_OUT,)
    other_heads: ClassVar[tuple[str, ...]] = ("vocab_", "qa_outputs.")

    @property
    def head_modules(self) -> tuple[str, ...]:
        return "pre_classifier", "classifier"

    def linears(self, config: Any) -> list[Linear]:
        hidden, mlp = config.hidden_size, config.hidden_dim
        heads = config.num_attention_heads * head_dim(config)
        inputs = [Linear(name, heads, hidden, True) for name in (_QUERY, _KEY, _VALUE)]
        outputs = [Linear("ffn.lin1", mlp, hidden, True), Linear("ffn.lin2", hidden, mlp, True)]
        return [*inputs, Linear(_OUT, hidden, heads, True), *outputs]

    def other_linears(self, config: Any) -> list[Linear]:
        """The head's two layers."""
        hidden = config.hidden_size
        return [Linear("pre_classifier", hidden, hidden, True), Linear(self.head, config.num_labels, hidden, True)]

    def vectors(self, config: Any) -> dict[str, int]:
        norms = ("sa_layer_norm", "output_layer_norm")
        return {f"{norm}.{part}": config.hidden_size for norm in norms for part in ("weight", "bias")}

    def hidden(self, model: Any, **inputs: Any) -> Any:
        """The output of the head's first layer [batch, hidden]."""
        return model.pre_classifier(model.base_model(**inputs)[0][:, 0]).relu()


class DistilBertEmbedder(Embedder, DistilBert):
    """DistilBERT as a sentence embedding model."""

    class_names: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "distilbert": {**DistilBert.class_names["distilbert"], "model": "DistilBertModel"}
    }
    layers = "transformer.layer"
    embedding = "embeddings.word_embeddings"
    other_heads = (*DistilBert.other_heads, "pre_classifier.", "classifier.")
    other_prefixes = ("distilbert.",)
