"""Granite 3: LLaMA with multipliers (muP): of embeddings, block outputs, attention scores and logits.

    x = embedding_multiplier * embed(tokens)
    x = x + residual_multiplier * block(norm(x))
    logits = head(norm(x)) / logits_scaling

Source: the configuration and modeling files of transformers 5.5.
"""

from typing import Any

from lonas_edge.families.llama import Llama, class_names


class Granite(Llama):
    """Granite 3, dense."""

    titles = {"granite": "Granite 3 (dense)"}
    class_names = {"granite": class_names("Granite")}

    def logits(self, model: Any, hidden: Any) -> Any:
        """Logits, divided by `logits_scaling`."""
        return super().logits(model, hidden) / model.config.logits_scaling
