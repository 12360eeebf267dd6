"""Decoders with another head than a language model's: LLaMA and its relatives as classifiers and embedding models.

A classifier's head `score` reads the last token before the padding, score(x[last]). An embedding model has no head.

Source: `GenericForSequenceClassification` of transformers 5.5.
"""

from collections.abc import Mapping
from typing import Any

from lonas_edge.families.base import Family
from lonas_edge.families.heads import Embedder
from lonas_edge.families.kinds import CLASSIFICATION
from lonas_edge.families.layers import Linear
from lonas_edge.families.llama import Llama
from lonas_edge.families.smollm3 import SmolLM3


class _Embedder(Embedder):
    segments = False
    layers = "layers"
    embedding = "embed_tokens"
    final_norm = "norm"
    other_heads = ("lm_head.", "score.")
    other_prefixes = ("model.",)
    refused_poolings = ("cls",)  # the first token sees no other one

    def hidden(self, model: Any, **inputs: Any) -> Any:
        """Hidden states [texts, tokens, hidden], without a cache."""
        return super().hidden(model, **inputs, use_cache=False)


class _Classifier(Family):
    segments = False
    kind = CLASSIFICATION
    head = "score"
    ends_at_padding = True
    other_heads = ("lm_head.",)

    def other_linears(self, config: Any) -> list[Linear]:
        """The head."""
        return [Linear(self.head, config.num_labels, config.hidden_size)]

    def tied(self, config: Any) -> bool:
        """`tie_word_embeddings` is the language model's."""
        return False

    def config_errors(self, config: Any) -> list[str]:
        """The padding is found by its token."""
        errors = super().config_errors(config)
        if config.pad_token_id is None:
            errors.append(
                "pad_token_id: missing, also in the tokenizer; a classifier reads the last token before the padding. Set "
                "pad_token in tokenizer_config.json"
            )
        return errors

    def hidden(self, model: Any, **inputs: Any) -> Any:
        """Hidden states of the last tokens [texts, hidden]."""
        states = super().hidden(model, **inputs)
        tokens = inputs["input_ids"] != model.config.pad_token_id  # also one of the text's own, as transformers has it
        last = tokens.cumsum(1).argmax(1)  # the first maximum
        return states[range(len(states)), last]

    def logits(self, model: Any, hidden: Any) -> Any:
        """[texts, classes]."""
        return model.score(hidden)


def _with_model(names: Mapping[str, Mapping[str, str]], ending: str) -> dict[str, Mapping[str, str]]:
    """Class names with that of the model: its body's, whose ending "Model" is replaced."""
    return {name: {**each, "model": each["body"].removesuffix("Model") + ending} for name, each in names.items()}


class LlamaClassifier(_Classifier, Llama):
    """LLaMA and its relatives as classifiers."""

    class_names = _with_model(Llama.class_names, "ForSequenceClassification")


class LlamaEmbedder(_Embedder, Llama):
    """LLaMA and its relatives as embedding models."""

    class_names = _with_model(Llama.class_names, "Model")


class SmolLM3Classifier(_Classifier, SmolLM3):
    """SmolLM3 as a classifier."""

    class_names = _with_model(SmolLM3.class_names, "ForSequenceClassification")


class SmolLM3Embedder(_Embedder, SmolLM3):
    """SmolLM3 as an embedding model."""

    class_names = _with_model(SmolLM3.class_names, "Model")
