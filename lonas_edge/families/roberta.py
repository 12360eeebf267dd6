"""RoBERTa and XLM-RoBERTa as sentence embedding models: BERT's layers, with positions that begin behind the padding's id.

Their classifiers have a head of two layers and are not supported.

Source: the configuration and modeling files of transformers 5.5; Liu et al., arXiv:1907.11692; Conneau et al., ACL 2020.
"""

from typing import ClassVar

from lonas_edge.families.bert import BertEmbedder

_NAMES = {"roberta": "Roberta", "xlm-roberta": "XLMRoberta"}


class RobertaEmbedder(BertEmbedder):
    """RoBERTa, XLM-RoBERTa and models of their architecture, such as multilingual E5 and BGE-M3."""

    titles = {"roberta": "RoBERTa", "xlm-roberta": "XLM-RoBERTa"}
    class_names: ClassVar = {
        model_type: {part: name.replace("Bert", prefix) for part, name in BertEmbedder.class_names["bert"].items()}
        for model_type, prefix in _NAMES.items()
    }
    other_heads = ("lm_head.", "classifier.", "pooler.")
    other_prefixes = ("roberta.",)

    def context(self, positions: int | None, padding: int | None) -> int | None:
        """The first token has the position after the padding's id."""
        return positions - (1 if padding is None else padding) - 1 if positions else positions
