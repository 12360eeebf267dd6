"""Tokenize the training data."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lonas_edge.data.encoding import Prompting
from lonas_edge.data.language import INSTRUCTION, MESSAGES
from lonas_edge.data.task import DataFile, Encoded
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.options import TrainOptions

EVAL_EXAMPLES = 400  # held-out examples whose loss is computed


@dataclass(frozen=True)
class Tokenized:
    """Encoded examples."""

    tokenizer: Any  # the model's
    prompting: Prompting | None  # the prompt template; None for GLUE
    files: tuple[list[Encoded], ...]  # the encoded examples of each file
    weights: tuple[float, ...]  # how often an epoch has each example of a file
    held_out: tuple[Encoded, ...] = ()  # the encoded held-out examples

    @property
    def examples(self) -> list[Encoded]:
        """All examples, file by file."""
        return [example for file in self.files for example in file]

    @property
    def counts(self) -> list[tuple[int, float]]:
        """Number of examples and weight of each file."""
        return [(len(file), weight) for file, weight in zip(self.files, self.weights, strict=True)]

    @property
    def also_trained(self) -> int:
        """Number of held-out examples that occur in the training data, too."""
        trained = {tuple(example["input_ids"]) for example in self.examples}
        return sum(tuple(example["input_ids"]) in trained for example in self.held_out)

    def dropped(self, file: DataFile, index: int) -> int:
        """Count the examples of a file that are not learned; texts are split or cut, never dropped."""
        return file.count - len(self.files[index]) if file.kind in (INSTRUCTION, MESSAGES) else 0


def tokenize(inputs: Inputs, options: TrainOptions) -> Tokenized:
    """Tokenize the examples."""
    data, folder = inputs.data, inputs.base.folder
    tokenizer = require_tokenizer(folder, "training")
    assert options.max_length
    files = data.encode(tokenizer, options.max_length)
    for file, encoded in zip(data.files, files, strict=True):
        if not encoded:
            raise LonasEdgeError(
                f"{file.path}: each of its {file.count} examples is longer than --max-length {options.max_length}, or has no "
                "output. Increase --max-length."
            )
        for example in encoded:
            check_vocabulary(example["input_ids"], inputs)
    held_out = _held_out(inputs, options.max_length, tokenizer)
    if inputs.teacher and data.kind is CAUSAL_LM:  # it has an answer to every token; held-out labels stay
        files = [[{**example, "labels": example["input_ids"]} for example in file] for file in files]
    # the model looks padding up, too, and answers end with EOS
    ends = [token for token in (tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None]
    check_vocabulary(ends, inputs)
    return Tokenized(tokenizer, data.prompting(tokenizer), tuple(files), tuple(file.weight for file in data.files), held_out)


def _held_out(inputs: Inputs, max_length: int, tokenizer: Any) -> tuple[Encoded, ...]:
    """Tokenize at most `EVAL_EXAMPLES` held-out examples, a fixed choice."""
    if inputs.eval_data is None:
        return ()
    [encoded] = inputs.eval_data.encode(tokenizer, max_length)
    if not encoded:
        path = inputs.eval_data.files[0].path
        raise LonasEdgeError(f"{path}: no example has an output within --max-length {max_length} tokens")
    for example in encoded:
        check_vocabulary(example["input_ids"], inputs)
    return tuple(random.Random(0).sample(encoded, min(EVAL_EXAMPLES, len(encoded))))


def check_vocabulary(ids: Sequence[int], inputs: Inputs) -> None:
    """Refuse token ids that the model does not have."""
    size, largest = inputs.architecture.config.vocab_size, max(ids, default=0)
    if largest >= size:
        raise LonasEdgeError(
            f"{inputs.base.folder}: the tokenizer gives token {largest}, but the model's vocabulary has {size} entries. "
            "Use the tokenizer of this model."
        )
