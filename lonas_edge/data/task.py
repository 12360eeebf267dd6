"""The data of one task, bound to the kind of a model: what training, search, `compress` and `eval` share.

`registry.open_data` reads and checks data files once and returns a task of the model's kind:

- Training encodes its examples (`encode`, `collator`) and learns `loss`, or `distance` from a teacher's logits.
- Search takes a seeded choice of held-out examples (`batches`) and scores sub-networks by `distance` from the unpruned
  network, or by `loss`. INT4 calibration takes the same batches.
- `compress` splits the examples into training and held-out ones (`split`), trains on the former, searches on the latter, and
  measures exported networks on them by the figures of each example (`distances`, `LanguageTask.score`).
- `eval` reads test sets (`test_sets`, `glue`) and encodes them by the same functions.

A task without data, `registry.task_of`, still has the loss and the distance: exports are verified with it. All losses and
distances are sums.
"""

import json
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

from lonas_edge.data.encoding import Prompting
from lonas_edge.data.glue import GlueTask
from lonas_edge.data.pooling import Pooling
from lonas_edge.data.templates import PromptRecord
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import ModelKind
from lonas_edge.files import replace_text
from lonas_edge.space.architecture import Architecture

MAX_LENGTH = 4096  # tokens of an example of a language model without --max-length; longer ones are dropped
BATCH_TOKENS = 1024  # of a held-out batch, padding included; 4096 take twice the time: each large tensor is new memory
_TYPICAL_TOKENS = 8_192  # of the examples that measure the importance of channels
LEAST = 16  # held-out and training examples of a split
SHARE = 10  # one of this many examples is held out

Batch = Mapping[str, torch.Tensor]
Encoded = dict[str, Any]  # `input_ids` and the other inputs of a collator


@dataclass(frozen=True)
class DataFile:
    """A data file: the kind of its records, their number, and how often an epoch has each of them."""

    path: Path
    kind: str
    count: int
    weight: float = 1.0  # 0.3 takes a different 30 % in each epoch


@dataclass(frozen=True)
class DataOptions:
    """How data are read."""

    glue: GlueTask | None = None  # the task whose labels a classifier learns, of GLUE or the user's; None for texts
    labels: bool = False  # whether labels of a classifier's texts are read, to measure with; they are never learned
    prompt: str | None = None  # name of the prompt template; chosen by `choose_prompt` when None
    max_length: int | None = None  # tokens of the longest example of a language model
    record: PromptRecord = field(default_factory=PromptRecord)  # the prompts of the adapter's training


@dataclass(frozen=True)
class Task(ABC):
    """Data of one task for a model, and what is learned and measured on them."""

    kind: ClassVar[ModelKind]
    special_token: ClassVar[str] = "PAD"  # that a tokenizer needs

    context: int = MAX_LENGTH  # tokens of the longest text that the model reads
    options: DataOptions = field(default_factory=DataOptions)
    files: tuple[DataFile, ...] = ()  # empty for a task without data
    examples: tuple[Any, ...] = ()  # of all files, in order
    pooling: Pooling | None = None  # of an embedding model

    # --- reading

    @classmethod
    @abstractmethod
    def of(cls, architecture: Architecture, pooling: Pooling | None, options: DataOptions) -> Self:
        """Make the task of a model, without data."""

    @abstractmethod
    def _read(self, path: Path) -> tuple[str, Sequence[Any]]:
        """Read and check the examples of a file, and name the kind of its records."""

    def read(self, files: Sequence[tuple[Path, float]]) -> Self:
        """Add the examples of files, each with its weight; the errors of all files are reported together."""
        read, examples, errors = list[DataFile](), list[Any](), list[str]()
        for path, weight in files:
            try:
                kind, found = self._read(path)
            except LonasEdgeError as error:
                errors.append(str(error))
                continue
            read.append(DataFile(path, kind, len(found), weight))
            examples += found
        if errors:
            raise LonasEdgeError("\n".join(errors))
        return replace(self, files=tuple(read), examples=tuple(examples))

    @property
    def kinds(self) -> list[str]:
        """Kinds of the records of all files."""
        return list(dict.fromkeys(file.kind for file in self.files))

    @property
    def path(self) -> Path:
        """The first file, for errors and records."""
        return self.files[0].path

    @property
    def inputs(self) -> Sequence[Any]:
        """The inputs of the model that the examples have, one each unless a subclass says otherwise."""
        return self.examples

    # --- splitting

    def subset(self, indices: Sequence[int]) -> Self:
        """Take the examples of these indices, of data in one file."""
        file = replace(self.files[0], count=len(indices))
        return replace(self, files=(file,), examples=tuple(self.examples[index] for index in indices))

    def split(self, most: int, seed: int, held_out: Self | None = None) -> tuple[Self, Self]:
        """Split the distinct examples into those to train on and held-out ones.

        Args:
            most: Held-out examples, at most.
            seed: Seed of the choice.
            held_out: Held-out data, of which at most `most` examples are drawn; without them a tenth is held out.

        Returns:
            Training and held-out examples. No training example shares a text that is learned with a held-out one.

        Raises:
            LonasEdgeError: If too few examples are left for either.
        """
        train, draw = self._distinct(), random.Random(seed)
        distinct = len(train)
        if held_out is None:
            count = min(most, max(LEAST, distinct // SHARE))
            draw.shuffle(train)
            train, chosen = train[count:], self.subset(train[:count])
        else:
            others = held_out._distinct()
            chosen = held_out.subset(draw.sample(others, most) if len(others) > most else others)
        known = {text for example in chosen.examples for text in chosen._learned(example)}
        train = [index for index in train if known.isdisjoint(self._learned(self.examples[index]))]
        if len(chosen.examples) < LEAST or len(train) < (1 if held_out else LEAST):
            raise LonasEdgeError(
                f"{self.path}: of {distinct} distinct examples {len(train)} are left to train on and {len(chosen.examples)} "
                f"are held out; others share texts with these. Expected at least {1 if held_out else LEAST} and {LEAST}. Add "
                "examples, or pass other held-out ones with --eval-data."
            )
        return self.subset(train), chosen

    def _distinct(self) -> list[int]:
        """Indices of the distinct examples."""
        first: dict[str, int] = {}
        for index, example in enumerate(self.examples):
            first.setdefault(json.dumps(example.record()), index)
        return list(first.values())

    def _learned(self, example: Any) -> set[str]:
        """What is learned from an example as a whole: training and held-out examples share none of it."""
        return {json.dumps(example.record())}

    def write(self, path: Path) -> None:
        """Write the examples as JSON Lines."""
        replace_text(path, "".join(json.dumps(example.record()) + "\n" for example in self.examples))

    # --- encoding

    @property
    def max_length(self) -> int:
        """The default of `train --max-length`."""
        return self.context

    @abstractmethod
    def _encode(self, inputs: Sequence[Any], tokenizer: Any, max_length: int) -> list[Encoded]:
        """Tokenize inputs; those that are too long are dropped or cut."""

    def encode(self, tokenizer: Any, max_length: int) -> list[list[Encoded]]:
        """Tokenize the examples of each file; those that are too long are dropped or cut, by task."""
        if getattr(tokenizer, f"{self.special_token.lower()}_token_id") is None:
            where = f"{tokenizer.name_or_path}: the tokenizer"
            raise LonasEdgeError(f"{where} has no {self.special_token} token; set one in tokenizer_config.json")
        examples = iter(self.examples)
        files = [replace(self, examples=tuple(islice(examples, file.count))) for file in self.files]
        return [file._encode(file.inputs, tokenizer, max_length) for file in files]

    @abstractmethod
    def collate(self, encoded: Sequence[Encoded], pad_token_id: int) -> dict[str, torch.Tensor]:
        """Make a batch of encoded inputs."""

    def collator(self, tokenizer: Any) -> Callable[[Sequence[Encoded]], dict[str, torch.Tensor]]:
        """Make the function that makes a batch, padded as the tokenizer says."""
        pads = [token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if token is not None]
        return partial(self.collate, pad_token_id=pads[0] if pads else 0)

    def prompting(self, tokenizer: Any) -> Prompting | None:
        """The prompt template; None where nothing is prompted."""
        return None

    def with_prompt(self, prompt: str | None) -> Self:
        """Take another prompt template by name."""
        return self

    def shorten(self, example: Encoded, tokens: int) -> Encoded:
        """Shorten an encoded example to measure distances between networks on: at all of its positions."""
        return example

    def prompts(self, indices: Sequence[int], tokenizer: Any, max_length: int) -> Iterator[Batch]:
        """Yield chosen inputs without answers, one by one, to measure the importance of channels on."""
        collate = self.collator(tokenizer)
        for index in indices:
            batch = collate(self._encode([self.inputs[index]], tokenizer, max_length))
            yield {name: tensor for name, tensor in batch.items() if name != "labels"}

    # --- held-out batches

    @property
    @abstractmethod
    def description(self) -> str:
        """The prompt template, the task of GLUE or the pooling, for records."""

    @property
    def units(self) -> dict[str, str]:
        """Units of the qualities of a search by name, where they differ from a language model's."""
        return {}

    @property
    def labelled(self) -> bool:
        """Whether a loss can be computed without a teacher."""
        return True

    @property
    def distilled(self) -> bool:
        """Whether networks are compared by their distance alone: without labels, or with a loss that depends on the batch."""
        return not self.kind.generates and self.options.glue is None

    def check_count(self, count: int) -> None:
        """Refuse data with fewer than `count` prompts."""
        if len(self.inputs) < count:
            raise LonasEdgeError(
                f"{self.path}: {len(self.inputs)} prompts; expected at least {count}. Add data, or use fewer prompts."
            )

    def lengths(self, tokenizer: Any) -> list[int]:
        """The tokens of each input that is not too long; a long text counts as several."""
        return [len(each["input_ids"]) for each in self._held_out(self.inputs, tokenizer)]

    def batches(self, tokenizer: Any, count: int, seed: int) -> list[dict[str, torch.Tensor]]:
        """Tokenize the first `count` inputs of a seeded order that are not too long, in batches of similar length."""
        self.check_count(count)
        order = list(range(len(self.inputs)))
        random.Random(seed).shuffle(order)
        encoded: list[Encoded] = []
        for start in range(0, len(order), count):
            encoded += self._held_out([self.inputs[index] for index in order[start : start + count]], tokenizer)
            if len(encoded) >= count:
                break
        else:
            raise LonasEdgeError(
                f"{self.path}: {len(encoded)} of {len(order)} prompts have an answer within {self.context} tokens; expected "
                f"{count}. Add data, or use fewer prompts."
            )
        collate = self.collator(tokenizer)
        return [collate(batch) for batch in _pack(encoded[:count])]

    def typical(self, tokenizer: Any, count: int) -> list[dict[str, torch.Tensor]]:
        """Tokenize inputs with their answers, `count` at most and fewer long ones, in batches of similar length."""
        count = min(count, len(self.inputs))
        spread = [self.inputs[index * len(self.inputs) // count] for index in range(count)]
        encoded = self._held_out(spread, tokenizer)
        if not encoded:
            raise LonasEdgeError(f"{self.path}: no example has at most {self.context} tokens.")
        while len(encoded) > 1 and sum(len(each["input_ids"]) for each in encoded) > _TYPICAL_TOKENS:
            encoded = encoded[::2]
        return [self.collator(tokenizer)(batch) for batch in _pack(encoded)]

    def _held_out(self, inputs: Sequence[Any], tokenizer: Any) -> list[Encoded]:
        return self._encode(inputs, tokenizer, self.context)

    # --- loss and distance

    def select(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Select the hidden states [answers, hidden] at the positions that count from `Family.hidden`'s output."""
        return hidden

    def logits(self, output: Any, batch: Batch) -> torch.Tensor:
        """Select the logits [answers, outputs] at the positions that count from a model's output for a batch."""
        logits: torch.Tensor = output.logits
        return logits

    def labels(self, labels: torch.Tensor) -> torch.Tensor:
        """Select the labels [answers] that count."""
        return labels

    @abstractmethod
    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of logits [answers, outputs] and labels [answers], summed."""

    @abstractmethod
    def distance(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Distance from another network's logits [answers, outputs], summed."""

    @abstractmethod
    def sample(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw labels [answers] from the distribution that logits [answers, outputs] give; `generator` is on the CPU."""

    def distances(self, reference: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Distances of a network's outputs [examples, answers, outputs] from a reference's, means over answers: [examples]."""
        pairs = zip(map(torch.from_numpy, reference), map(torch.from_numpy, outputs), strict=True)
        return np.array([self.distance(expected, actual).item() / len(expected) for expected, actual in pairs])


def widen(logits: torch.Tensor) -> torch.Tensor:
    """Logits in fp32, or as they are in float64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _pack(encoded: Sequence[Encoded]) -> Iterator[list[Encoded]]:
    """Group examples by length, the longest first, into batches of at most `BATCH_TOKENS` tokens."""
    batch: list[Encoded] = []
    for example in sorted(encoded, key=lambda row: len(row["input_ids"]), reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]["input_ids"]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch
