"""RoBERTa and XLM-RoBERTa: BERT's layers, with positions that begin behind the padding's id.

A classifier's head has two layers and reads the first token: out_proj(tanh(dense(x[0]))). There is no pooler.

Source: the configuration and modeling files of transformers 5.5; Liu et al., arXiv:1907.11692; Conneau et al., ACL 2020.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from lonas_edge.families.base import Family
from lonas_edge.families.bert import Bert, BertEmbedder
from lonas_edge.families.layers import Linear

_NAMES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta"}


class _Roberta(Family):
    """What classifiers and embedding models share."""

    titles: ClassVar = {"roberta": "RoBERTa", "xlm-roberta": "XLM-RoBERTa"}

    def context(self, positions: int | None, padding: int | None) -> int | None:
        """The first token has the position after the padding's id."""
        return positions - (1 if padding is None else padding) - 1 if positions else positions


def _rename(classes: Mapping[str, str]) -> Mapping[str, Mapping[str, str]]:
    return {
        model_type: {part: name.replace("Bert", prefix) for part, name in classes.items()}
        for model_type, prefix in _NAMES.items()
    }


class Roberta(_Roberta, Bert):
    """RoBERTa, XLM-RoBERTa and models of their architecture, such as BGE's rerankers, with a classification head."""

    class_names: ClassVar[Mapping[str, Mapping[str, str]]] = _rename(Bert.class_names["bert"])
    layers = "roberta.encoder.layer"
    embedding = "roberta.embeddings.word_embeddings"
    head = "classifier.out_proj"
    other_heads = ("lm_head.", "roberta.pooler.")

    @property
    def head_modules(self) -> tuple[str, ...]:
        return ("classifier",)

    def other_linears(self, config: Any) -> list[Linear]:
        """The head's two layers."""
        hidden = config.hidden_size
        return [Linear("classifier.dense", hidden, hidden, True), Linear(self.head, config.num_labels, hidden, True)]

    def hidden(self, model: Any, **inputs: Any) -> Any:
        """The output of the head's first layer [batch, hidden]."""
        return model.classifier.dense(model.base_model(**inputs)[0][:, 0]).tanh()

    def logits(self, model: Any, hidden: Any) -> Any:
        """[batch, classes]."""
        return model.classifier.out_proj(hidden)


class RobertaEmbedder(_Roberta, BertEmbedder):
    """RoBERTa, XLM-RoBERTa and models of their architecture, such as multilingual E5 and BGE-M3."""

    class_names: ClassVar[Mapping[str, Mapping[str, str]]] = _rename(BertEmbedder.class_names["bert"])
    other_heads = ("lm_head.", "classifier.", "pooler.")
    other_prefixes = ("roberta.",)
