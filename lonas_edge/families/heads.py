"""Embedding models: the body of a model without a head."""

from typing import Any, ClassVar

from lonas_edge.families.base import Family
from lonas_edge.families.kinds import EMBEDDING
from lonas_edge.families.layers import Linear


class Embedder(Family):
    """The body of a model by itself, as a sentence embedding model; a family adds its own names.

    Its output are the hidden states of all tokens. How they become one vector is no part of the network: see `data.pooling`. A
    pooler is no part of it, either, since no pooling reads it.
    """

    kind = EMBEDDING
    head = ""
    refused_poolings: ClassVar[tuple[str, ...]] = ()

    @property
    def prefix(self) -> str:
        """The model is the body."""
        return ""

    @property
    def head_modules(self) -> tuple[str, ...]:
        """There is none."""
        return ()

    def other_linears(self, config: Any) -> list[Linear]:
        """There is neither a pooler nor a head."""
        return []

    def tied(self, config: Any) -> bool:
        """`tie_word_embeddings` is another head's."""
        return False

    def hidden(self, model: Any, **inputs: Any) -> Any:
        """Hidden states [texts, tokens, hidden]."""
        return model.base_model(**inputs)[0]

    def logits(self, model: Any, hidden: Any) -> Any:
        """Return the hidden states: there is no head."""
        return hidden
