"""What is learned, as tokens: by file, in the template of the training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.data.encoding import Prompting
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.tokenizer import load_tokenizer
from lonas_edge.training.inputs import Inputs
from lonas_edge.training.plan import TrainOptions
from lonas_edge.training.subjects import Encoded


@dataclass(frozen=True)
class Tokens:
    """Encoded examples.

    Attributes:
        tokenizer: The model's.
        prompting: What made text of the examples; None where they are taken as they are.
        files: `input_ids` and what else the collator takes, of every example that is learned, for each file of the data.
        weights: How often an epoch has each example of a file.
    """

    tokenizer: Any
    prompting: Prompting | None
    files: tuple[list[Encoded], ...]
    weights: tuple[float, ...]

    @property
    def examples(self) -> list[Encoded]:
        """All of them, file by file."""
        return [example for file in self.files for example in file]

    @property
    def portions(self) -> list[tuple[int, float]]:
        """For each file, how many examples it has, and how often an epoch has each."""
        return [(len(file), weight) for file, weight in zip(self.files, self.weights, strict=True)]


def tokenized(inputs: Inputs, options: TrainOptions) -> Tokens:
    """Make the examples tokens.

    Args:
        inputs: Base model and data.
        options: How to train, settled.

    Returns:
        The tokens of every example that has something to learn and is not too long.

    Raises:
        LonasEdgeError: If there is no usable tokenizer, it is another model's, or no example of a file is left.
    """
    subject, folder = inputs.subject, inputs.base.folder
    tokenizer = _tokenizer(folder)
    if lacks := subject.lacks(tokenizer):
        raise LonasEdgeError(f"{folder}: the tokenizer has no {lacks} token; set one in tokenizer_config.json")
    prompting = subject.prompting(options, tokenizer, folder, inputs.start.source.training if inputs.start else None)
    files = subject.encoded(tokenizer, options, prompting)
    for portion, encoded in zip(subject.portions, files, strict=True):
        if not encoded:
            raise LonasEdgeError(
                f"{portion.path}: each of its {portion.count} examples is longer than --max-length {options.max_length} "
                "tokens, or has no output. Raise it."
            )
        for example in encoded:
            refuse_beyond_vocabulary(example["input_ids"], inputs)
    # shorter examples are filled with one, and the model looks it up; with the other answers end
    ends = [token for token in (tokenizer.eos_token_id, tokenizer.pad_token_id) if token is not None]
    refuse_beyond_vocabulary(ends, inputs)
    return Tokens(tokenizer, prompting, tuple(files), tuple(portion.weight for portion in subject.portions))


def refuse_beyond_vocabulary(ids: Sequence[int], inputs: Inputs) -> None:
    """Refuse tokens that the model does not have.

    Args:
        ids: Token ids.
        inputs: Says the model.

    Raises:
        LonasEdgeError: If one is larger than the model's vocabulary.
    """
    size, largest = inputs.architecture.config.vocab_size, max(ids, default=0)
    if largest >= size:
        raise LonasEdgeError(
            f"{inputs.base.folder}: the tokenizer gives token {largest}, and the model's vocabulary has {size} entries. "
            "Do tokenizer and model belong together?"
        )


def _tokenizer(folder: Path) -> Any:
    tokenizer = load_tokenizer(folder)
    if tokenizer is None:
        raise LonasEdgeError(f"{folder}: training needs the model's tokenizer; there are no tokenizer files")
    return tokenizer
