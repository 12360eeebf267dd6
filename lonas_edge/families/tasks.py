"""What a model is for: one object a task. A family names its own; what differs between tasks is asked here, without torch.

A causal language model answers at every token, with a distribution over its vocabulary; a sequence classifier answers once a
sequence, from the first token, with a distribution over its classes, or with one number (regression).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """What a model is for.

    Attributes:
        name: What it is called in messages.
        auto_model: The class of transformers that loads such a model.
        peft: PEFT's `task_type`.
        peft_model: PEFT's class, which the node names of search spaces begin with.
        conversion: The task of optimum-intel that converts it.
        pipeline_tag: What model hubs call it.
        inputs: What the model is given, in the order in which search spaces name it.
        sequence_length: Sequence length of the published search spaces, in tokens.
        head_per_token: Whether the layers behind the decoder layers compute at every token, or once a sequence.
        counts_attention: Whether the published MACs have those of queries with keys and of weights with values.
        new_head: Whether a base may come without a head, whose weights a training then begins and the adapter carries.
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
        """Whether its models generate tokens, one after the other."""
        return self.head_per_token

    def head_fields(self, config: Any, outputs: Sequence[str] | int | None) -> dict[str, Any]:
        """The fields of `config.json` that a head decides.

        Args:
            config: The base's configuration.
            outputs: Outputs of another head than the base's: their names, or their number; None where there is none.

        Returns:
            What differs from the base's, as JSON has it.
        """
        return {}


@dataclass(frozen=True)
class Classification(Task):
    """Sequence classification; one output is a regression."""

    def head_fields(self, config: Any, outputs: Sequence[str] | int | None) -> dict[str, Any]:
        """See `Task`; classes that nobody named are called as transformers calls them."""
        if outputs is None or outputs == config.num_labels:
            return {}
        names = [f"LABEL_{index}" for index in range(outputs)] if isinstance(outputs, int) else list(outputs)
        return {
            "problem_type": "regression" if len(names) == 1 else "single_label_classification",
            "id2label": {str(index): name for index, name in enumerate(names)},
            "label2id": {name: index for index, name in enumerate(names)},
        }


CAUSAL_LM = Task(
    "causal language model",
    "AutoModelForCausalLM",
    "CAUSAL_LM",
    "PeftModelForCausalLM",
    "text-generation-with-past",
    "text-generation",
    inputs=("input_ids", "attention_mask"),
    sequence_length=256,
)
CLASSIFICATION = Classification(
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
