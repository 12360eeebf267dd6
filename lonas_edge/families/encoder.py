"""Sentence embedding models: the body of an encoder by itself.

Its output are the hidden states of all tokens. How they become one vector is no part of the network: see `data.pooling`. A
pooler is no part of it, either, since no pooling reads it.
"""

from typing import Any

from lonas_edge.families.base import Family, Linear
from lonas_edge.families.kinds import EMBEDDING


class Embedder(Family):
    """An encoder without a head; a family of an encoder adds its own names."""

    kind = EMBEDDING
    head = ""

    @property
    def prefix(self) -> str:
        """The model is the body."""
        return ""

    @property
    def head_modules(self) -> tuple[str, ...]:
        """There is none."""
        return ()

    def outer_linears(self, config: Any) -> list[Linear]:
        """There is neither a pooler nor a head."""
        return []

    def hidden(self, model: Any, **inputs: Any) -> Any:
        """Hidden states [texts, tokens, hidden]."""
        return model.base_model(**inputs)[0]

    def logits(self, model: Any, hidden: Any) -> Any:
        """Return the hidden states: there is no head."""
        return hidden
