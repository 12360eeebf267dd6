"""What a training learns: one object a kind of data, instruction data for causal language models and GLUE's for classifiers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.data.encoding import Collator, PairCollator, encode, encode_pairs
from lonas_edge.data.glue import GlueTask, Pair, task_of
from lonas_edge.data.instructions import read_examples
from lonas_edge.data.templates import TEMPLATES, Example, Template
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, Task
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.network.source import Source
from lonas_edge.space.architecture import Architecture
from lonas_edge.training.plan import TrainOptions

DEFAULT_PROMPT, PUBLISHED = "alpaca", "lonas"  # where none is named, and that of adapters which say nothing
Encoded = dict[str, Any]  # of an example: `input_ids` and what else its collator takes
Batch = dict[str, Any]  # tensors by name


@dataclass(frozen=True)
class Subject(ABC):
    """Data, and what a model of its task learns of it.

    Attributes:
        path: The file.
    """

    path: Path

    @property
    @abstractmethod
    def task(self) -> Task:
        """What a model that learns it is for."""

    @property
    @abstractmethod
    def asks(self) -> str:
        """What a message calls a training on it."""

    @property
    @abstractmethod
    def count(self) -> int:
        """How many examples there are."""

    @property
    def head(self) -> tuple[str, ...] | None:
        """Names of the outputs that the head must have; None where it is the model's own."""
        return None

    @property
    def glue(self) -> str | None:
        """The task's name in a record; None for instruction data."""
        return None

    def template(self, options: TrainOptions) -> Template | None:
        """The prompt, where examples are put in one."""
        return None

    def check(self, source: Source) -> None:
        """Refuse a base that cannot learn it, before its weights are read.

        Args:
            source: The base.

        Raises:
            LonasEdgeError: If it cannot.
        """
        source.architecture.require(self.task, self.asks)

    def longest(self, architecture: Architecture) -> int:
        """Tokens of the longest example where nothing else is asked for."""
        return self.task.sequence_length

    def length_fault(self, options: TrainOptions, architecture: Architecture) -> str | None:
        """What is wrong with the longest length that is asked for; None where it will do."""
        return None

    @abstractmethod
    def lacks(self, tokenizer: Any) -> str | None:
        """What the tokenizer needs and has not."""

    @abstractmethod
    def encoded(self, tokenizer: Any, options: TrainOptions) -> list[Encoded]:
        """Make the examples tokens.

        Args:
            tokenizer: The model's.
            options: How to train, resolved.

        Returns:
            Those that can be learned.
        """

    @abstractmethod
    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        """Makes a batch of encoded examples."""

    @abstractmethod
    def calibration(self, places: Sequence[int], tokenizer: Any, options: TrainOptions) -> Iterator[Batch]:
        """What the importance of channels is taken from.

        Args:
            places: Of the examples.
            tokenizer: The model's.
            options: How to train, resolved.

        Yields:
            A batch of one example each, what it is to answer left out.
        """


@dataclass(frozen=True)
class Instructions(Subject):
    """Instruction data."""

    examples: tuple[Example, ...]

    @property
    def task(self) -> Task:
        """See `Subject`."""
        return CAUSAL_LM

    @property
    def asks(self) -> str:
        """See `Subject`."""
        return f"{self.path}: a training on instruction data"

    @property
    def count(self) -> int:
        """See `Subject`."""
        return len(self.examples)

    def template(self, options: TrainOptions) -> Template | None:
        """See `Subject`."""
        return TEMPLATES[options.prompt or DEFAULT_PROMPT]

    def lacks(self, tokenizer: Any) -> str | None:
        """See `Subject`; answers end with EOS."""
        return None if tokenizer.eos_token_id is not None else "EOS"

    def encoded(self, tokenizer: Any, options: TrainOptions) -> list[Encoded]:
        """See `Subject`; what has no output or is too long is left out."""
        template, length = TEMPLATES[options.prompt or DEFAULT_PROMPT], options.max_length or self.task.sequence_length
        encoded: list[Encoded] = [*encode(self.examples, template, tokenizer, length, options.train_on_prompt)]
        return encoded

    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        """See `Subject`."""
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        return Collator(eos if pad is None else pad)

    def calibration(self, places: Sequence[int], tokenizer: Any, options: TrainOptions) -> Iterator[Batch]:
        """See `Subject`; prompts."""
        template, length = TEMPLATES[options.prompt or DEFAULT_PROMPT], options.max_length or self.task.sequence_length
        for place in places:
            text = template.prompt(self.examples[place])
            encoded = tokenizer(text, truncation=True, max_length=length, return_tensors="pt")
            yield {name: encoded[name] for name in ("input_ids", "attention_mask")}


@dataclass(frozen=True)
class Glue(Subject):
    """A task of GLUE."""

    of: GlueTask
    pairs: tuple[Pair, ...]

    @property
    def task(self) -> Task:
        """See `Subject`."""
        return CLASSIFICATION

    @property
    def asks(self) -> str:
        """See `Subject`."""
        return f"{self.path}: a training on GLUE's {self.of.name}"

    @property
    def count(self) -> int:
        """See `Subject`."""
        return len(self.pairs)

    @property
    def head(self) -> tuple[str, ...] | None:
        """See `Subject`."""
        return self.of.outputs

    @property
    def glue(self) -> str | None:
        """See `Subject`."""
        return self.of.name

    def check(self, source: Source) -> None:
        """See `Subject`; a head that the base has must be of the task's kind."""
        super().check(source)
        folder, family = source.base.folder, source.architecture.family
        tensors = open_tensors(folder)
        tensors.name_as(family)
        shape = tensors.shapes.get(f"{family.head}.weight")
        if shape and (misfit := self.of.misfit(shape[0])):
            way_out = "Take a base without a head, or data of another task."
            raise LonasEdgeError(f"{folder}: {misfit} ({tensors.file_of(f'{family.head}.weight').name}). {way_out}")

    def longest(self, architecture: Architecture) -> int:
        """See `Subject`; no longer than the context."""
        return min(self.task.sequence_length, int(architecture.config.max_position_embeddings))

    def length_fault(self, options: TrainOptions, architecture: Architecture) -> str | None:
        """See `Subject`; there is no embedding of a position beyond the context."""
        context = int(architecture.config.max_position_embeddings)
        return f"its context has {context} tokens" if (options.max_length or 0) > context else None

    def lacks(self, tokenizer: Any) -> str | None:
        """See `Subject`; the first token answers, and shorter texts are padded."""
        missing = [name for name in ("CLS", "PAD") if getattr(tokenizer, f"{name.lower()}_token_id") is None]
        return " and ".join(missing) or None

    def encoded(self, tokenizer: Any, options: TrainOptions) -> list[Encoded]:
        """See `Subject`; the longer text of what is too long is cut, as in the published trainings."""
        encoded = encode_pairs(self.pairs, tokenizer, options.max_length or self.task.sequence_length)
        return [{**one, "labels": pair.label} for one, pair in zip(encoded, self.pairs, strict=True)]

    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        """See `Subject`."""
        return PairCollator(tokenizer.pad_token_id, self.of.regression)

    def calibration(self, places: Sequence[int], tokenizer: Any, options: TrainOptions) -> Iterator[Batch]:
        """See `Subject`."""
        chosen = [self.pairs[place] for place in places]
        collate = self.collator(tokenizer)
        for one in encode_pairs(chosen, tokenizer, options.max_length or self.task.sequence_length):
            yield {name: tensor for name, tensor in collate([{**one, "labels": 0}]).items() if name != "labels"}


def read_subject(data: Path, task: str | None = None) -> Subject:
    """Read the data of a training: a TSV file is GLUE's, anything else instruction data.

    Args:
        data: The file.
        task: The task of GLUE; that which the file's folder is named by when None.

    Returns:
        The data.

    Raises:
        LonasEdgeError: If it is missing, empty or not of the format; every fault is listed.
    """
    if task is None and data.suffix.lower() != ".tsv":
        return Instructions(data, tuple(read_examples(data)))
    of = task_of(data, task)
    return Glue(data, of, tuple(of.read(data)))
