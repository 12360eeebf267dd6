"""Tokenize the training data, and order the examples of an epoch."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices

from lonas_edge.data.encoding import Prompting
from lonas_edge.data.language import INSTRUCTION, MESSAGES
from lonas_edge.data.task import DataFile, Encoded
from lonas_edge.errors import LonasEdgeError
from lonas_edge.network.tokenizer import check_vocabulary, require_tokenizer
from lonas_edge.training.inputs import Inputs

_SHOWN = 10  # classes of the user's own data
EVAL_EXAMPLES = 400  # held-out examples whose loss is computed


@dataclass(frozen=True)
class Tokenized:
    """Encoded examples."""

    tokenizer: Any  # the model's
    prompting: Prompting | None  # the prompt template; None for GLUE
    files: tuple[list[Encoded], ...]  # the encoded examples of each file
    counts: tuple[tuple[int, float], ...]  # the number of examples of each file, and how often an epoch has each of them
    held_out: tuple[Encoded, ...] = ()  # the encoded held-out examples

    @property
    def examples(self) -> list[Encoded]:
        """All examples, file by file."""
        return [example for file in self.files for example in file]

    @property
    def per_epoch(self) -> int:
        """Number of examples of an epoch."""
        return sum(per_epoch(count, weight) for count, weight in self.counts)

    @property
    def also_trained(self) -> int:
        """Number of held-out examples that occur in the training data, too."""
        trained = {tuple(example["input_ids"]) for example in self.examples}
        return sum(tuple(example["input_ids"]) in trained for example in self.held_out)

    def dropped(self, file: DataFile, index: int) -> int:
        """Count the examples of a file that are not learned; texts are split or cut, never dropped."""
        return file.count - len(self.files[index]) if file.kind in (INSTRUCTION, MESSAGES) else 0


def tokenize(inputs: Inputs, max_length: int, notify: Callable[[str], None] = lambda _line: None) -> Tokenized:
    """Tokenize the examples; `notify` is called with how many are dropped or learned although they are held out."""
    data = inputs.data
    tokenizer = require_tokenizer(inputs.source.base.folder, "training")
    check_vocabulary(tokenizer, inputs.source.architecture.config.vocab_size, inputs.source.base.folder)
    files = data.encode(tokenizer, max_length)
    for file, encoded in zip(data.files, files, strict=True):
        if not encoded:
            raise LonasEdgeError(
                f"{file.path}: each of its {file.count} examples is longer than --max-length {max_length}, or has no "
                "output. Increase --max-length."
            )
    held_out: list[Encoded] = []
    if inputs.eval_data:
        [held_out] = inputs.eval_data.encode(tokenizer, max_length)
        if not held_out:
            raise LonasEdgeError(f"{inputs.eval_data.path}: no example has an output within --max-length {max_length} tokens")
    chosen = random.Random(0).sample(held_out, min(EVAL_EXAMPLES, len(held_out)))
    counts = tuple((len(encoded), file.weight) for encoded, file in zip(files, data.files, strict=True))
    tokens = Tokenized(tokenizer, data.prompting(tokenizer), tuple(files), counts, tuple(chosen))
    for index, file in enumerate(data.files):
        if dropped := tokens.dropped(file, index):
            notify(
                f"{file.path.name}: {dropped} of {file.count} examples dropped: longer than --max-length {max_length}, or "
                "without output"
            )
    if (task := data.options.glue) and not task.published:
        notify(f"{len(task.classes)} classes: {', '.join(task.classes[:_SHOWN])}{', …' * (len(task.classes) > _SHOWN)}")
    if tokens.also_trained:
        notify(f"{tokens.also_trained} of {len(chosen)} held-out examples also occur in the training data")
    return tokens


class EpochSampler(Sampler[int]):
    """Groups examples of similar length. The order depends on seed and epoch only, so that a resumed training repeats it.

    transformers' LengthGroupedSampler draws from the global generator, which a resumed training cannot repeat.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int, files: Sequence[tuple[int, float]]):
        """Set the order.

        Args:
            lengths: Tokens of each example.
            batch: Examples per optimizer step, over all devices.
            seed: The training's seed.
            files: For each data file in turn, its number of examples and its weight: 2 has each example twice per epoch, 0.3 a
                different 30 % of them in every epoch.
        """
        self._lengths, self._batch, self._seed, self._files = lengths, batch, seed, files
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch; accelerate calls this."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Examples per epoch."""
        return sum(per_epoch(count, weight) for count, weight in self._files)

    def __iter__(self) -> Iterator[int]:
        """Return the indices of examples."""
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * self._epoch)
        chosen = self._chosen(generator)
        lengths = [self._lengths[index] for index in chosen]
        return iter([chosen[i] for i in get_length_grouped_indices(lengths, self._batch, generator=generator)])

    def _chosen(self, generator: torch.Generator) -> list[int]:
        chosen: list[int] = []
        first = 0
        for count, weight in self._files:
            rest = per_epoch(count, weight) - int(weight) * count
            drawn = torch.randperm(count, generator=generator)[:rest].tolist() if rest else []
            chosen += [first + index for index in (*list(range(count)) * int(weight), *drawn)]
            first += count
        return chosen


def per_epoch(count: int, weight: float) -> int:
    """Return the examples per epoch of a file with `count` examples, at least one."""
    return max(1, round(count * weight))
