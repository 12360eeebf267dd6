"""Models of a family with another head than its own: embedding models without one, and classifiers made of decoders.

A decoder's classifier reads the hidden state of the last token before the padding: `score(x[last])`. An embedding model gives
the hidden states of all tokens; see `data.pooling`.

Source: `GenericForSequenceClassification` of transformers 5.5.
"""

from typing import Any

from lonas_edge.families.base import Family
from lonas_edge.families.kinds import CLASSIFICATION, EMBEDDING
from lonas_edge.families.layers import Block, Linear


class Embedder(Family):
    """The body of a model by itself, as a sentence embedding model; a family adds its own names.

    Its output are the hidden states of all tokens. How they become one vector is no part of the network. A pooler is no part of
    it, either, since no pooling reads it.
    """

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


class _Decoder(Family):
    """What embedding models and classifiers made of decoders share."""

    segments = False

    def blocks(self, config: Any) -> tuple[Block, ...]:
        """Also whole layers: without a cache, the others are those of a model with fewer layers."""
        return (*super().blocks(config), Block("layer", "", ()))


class _DecoderEmbedder(_Decoder, Embedder):
    def hidden(self, model: Any, **inputs: Any) -> Any:
        """Hidden states [texts, tokens, hidden], without a cache."""
        return super().hidden(model, **inputs, use_cache=False)


class _DecoderClassifier(_Decoder):
    kind = CLASSIFICATION
    head = "score"
    ends_at_padding = True

    def other_linears(self, config: Any) -> list[Linear]:
        """The head."""
        return [Linear(self.head, config.num_labels, config.hidden_size)]

    def tied(self, config: Any) -> bool:
        """`tie_word_embeddings` is the language model's."""
        return False

    def config_errors(self, config: Any) -> list[str]:
        """The padding is found by its token."""
        missing = config.pad_token_id is None
        hint = "pad_token_id: missing, and the tokenizer has no pad token; a classifier reads the last token before the padding"
        return super().config_errors(config) + ([hint] if missing else [])

    def hidden(self, model: Any, **inputs: Any) -> Any:
        """Hidden states of the last tokens [texts, hidden]."""
        states = super().hidden(model, **inputs)
        tokens = inputs["input_ids"] != model.config.pad_token_id  # also one of the text's own, as transformers has it
        last = tokens.cumsum(1).argmax(1)  # the first maximum
        return states[range(len(states)), last]

    def logits(self, model: Any, hidden: Any) -> Any:
        """[texts, classes]."""
        return model.score(hidden)


def with_other_heads(decoder: type[Family]) -> tuple[Family, Family]:
    """Make the classifier and the embedding model of a decoder's family."""
    names = decoder.class_names
    heads = {name: f"{each['body'].removesuffix('Model')}ForSequenceClassification" for name, each in names.items()}
    classifier = {
        "class_names": {name: {**each, "model": heads[name]} for name, each in names.items()},
        "other_heads": (f"{decoder.head}.",),
    }
    body = decoder.layers.partition(".")[0] + "."
    embedder = {
        "class_names": {name: {**each, "model": each["body"]} for name, each in names.items()},
        "layers": decoder.layers.removeprefix(body),
        "embedding": decoder.embedding.removeprefix(body),
        "final_norm": decoder.final_norm.removeprefix(body),
        "other_heads": (f"{decoder.head}.", "score."),
        "other_prefixes": (body,),
    }
    return (
        type(f"{decoder.__name__}Classifier", (_DecoderClassifier, decoder), classifier)(),
        type(f"{decoder.__name__}Embedder", (_DecoderEmbedder, decoder), embedder)(),
    )
