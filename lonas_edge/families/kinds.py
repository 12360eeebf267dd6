"""Kinds of models by what they output, one object each, without torch.

A causal language model predicts a distribution over its vocabulary at every token; a sequence classifier predicts one per
sequence over its classes, from the first or the last token, or one number (regression). A sentence embedding model gives a
hidden state for every token, of which pooling makes one vector per text.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class ModelKind:
    """A kind of model.

    Attributes:
        name: The name in messages.
        auto_model: The transformers class that loads such a model.
        peft: PEFT's `task_type`.
        peft_model: PEFT's class, the first in node names of search spaces.
        conversion: The task of optimum-intel that converts it.
        pipeline_tag: Its name on model hubs.
        inputs: The model's inputs, in the order of search spaces.
        sequence_length: Sequence length of the published search spaces, in tokens.
        head_per_token: Whether the layers after the decoder layers run per token, or once per sequence.
        counts_attention: Whether the published MACs include queries times keys and weights times values.
        new_head: Whether a base may come without a head, which training then initializes and the adapter carries.
    """

    name: str
    auto_model: str
    peft: str
    peft_model: str
    conversion: str
    pipeline_tag: str
    inputs: tuple[str, ...]
    sequence_length: int
    head_per_token: bool = True
    counts_attention: bool = False
    new_head: bool = False

    @property
    def generates(self) -> bool:
        """Whether its models generate tokens."""
        return self.head_per_token

    def timed_length(self, context: int | None) -> int:
        """Default number of tokens of a prompt that is timed, or of an encoder's text, which its context cuts."""
        return self.sequence_length if self.generates or not context else min(self.sequence_length, context)

    def head_fields(self, config: Any, outputs: Sequence[str] | int | None) -> dict[str, Any]:
        """Fields of `config.json` that a head decides, where they differ from the base's.

        Args:
            config: The base's configuration.
            outputs: Names or number of another head's outputs; None without one.
        """
        return {}


@dataclass(frozen=True)
class _Classifier(ModelKind):
    """Sequence classification; one output is a regression."""

    def head_fields(self, config: Any, outputs: Sequence[str] | int | None) -> dict[str, Any]:
        """Unnamed classes get the names that transformers gives them; a base that has the same classes keeps its names."""
        if outputs is None or outputs == config.num_labels:
            return {}
        names = [f"LABEL_{index}" for index in range(outputs)] if isinstance(outputs, int) else list(outputs)
        base = output_names(config)
        names = list(base) if sorted(casefold(base)) == sorted(casefold(names)) else names
        return {
            "problem_type": "regression" if len(names) == 1 else "single_label_classification",
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
        }


def output_names(config: Any) -> tuple[str, ...]:
    """Names of a classifier's outputs, in order; `config` is its `PretrainedConfig`."""
    return tuple(str(name) for _, name in sorted(config.id2label.items()))


def casefold(names: Iterable[str]) -> list[str]:
    """Names of classes without their case, in which models differ."""
    return [name.casefold() for name in names]


CAUSAL_LM = ModelKind(
    "causal language model",
    "AutoModelForCausalLM",
    "CAUSAL_LM",
    "PeftModelForCausalLM",
    "text-generation-with-past",
    "text-generation",
    inputs=("input_ids", "attention_mask"),
    sequence_length=256,
)
CLASSIFICATION = _Classifier(
    "sequence classifier",
    "AutoModelForSequenceClassification",
    "SEQ_CLS",
    "PeftModelForSequenceClassification",
    "text-classification",
    "text-classification",
    inputs=("input_ids", "token_type_ids", "attention_mask"),
    sequence_length=128,
    head_per_token=False,
    counts_attention=True,
    new_head=True,
)
EMBEDDING = ModelKind(
    "sentence embedding model",
    "AutoModel",
    "FEATURE_EXTRACTION",
    "PeftModelForFeatureExtraction",
    "feature-extraction",
    "feature-extraction",
    inputs=("input_ids", "token_type_ids", "attention_mask"),
    sequence_length=128,
    head_per_token=False,
    counts_attention=True,
)
MODEL_KINDS = (CAUSAL_LM, CLASSIFICATION, EMBEDDING)
