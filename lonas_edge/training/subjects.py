"""What a training learns: one object a kind of data, of what is said for causal language models and GLUE's for classifiers."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lonas_edge.data.encoding import Collator, PairCollator, Prompting, asked, encode, encode_pairs
from lonas_edge.data.glue import GlueTask, Pair, task_of
from lonas_edge.data.instructions import MESSAGES, Data, Learned, read_data
from lonas_edge.data.templates import choose_prompt
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, Task
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.network.source import Source
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.space.architecture import Architecture
from lonas_edge.training.plan import TrainOptions

Encoded = dict[str, Any]  # of an example: `input_ids` and what else its collator takes
Batch = dict[str, Any]  # tensors by name
Files = Path | Sequence[tuple[Path, float]]  # the data: a file, or several with how often an epoch has each of their examples


@dataclass(frozen=True)
class Portion:
    """A file of the data.

    Attributes:
        path: The file.
        kind: What its records are: a kind of `data.instructions`, or glue.
        count: How many there are.
        weight: How often an epoch has each.
    """

    path: Path
    kind: str
    count: int
    weight: float = 1.0


class Subject(ABC):
    """Data, and what a model of its task learns of it."""

    @property
    @abstractmethod
    def portions(self) -> tuple[Portion, ...]:
        """Its files."""

    @property
    @abstractmethod
    def task(self) -> Task:
        """What a model that learns it is for."""

    @property
    @abstractmethod
    def asks(self) -> str:
        """What a message calls a training on it."""

    @property
    def head(self) -> tuple[str, ...] | None:
        """Names of the outputs that the head must have; None where it is the model's own."""
        return None

    @property
    def glue(self) -> str | None:
        """The task's name in a record; None for what is no task of GLUE."""
        return None

    def settled(self, options: TrainOptions, source: Source | None) -> TrainOptions:
        """Decide the prompt, if one is needed.

        Args:
            options: How to train.
            source: The adapter that is trained further, if there is one.

        Raises:
            LonasEdgeError: If the data cannot be put in the prompt that is asked for.
        """
        return options

    def prompting(
        self, options: TrainOptions, tokenizer: Any, folder: Path, before: TrainingRecord | None = None
    ) -> Prompting | None:
        """What makes text of the examples; None where they are taken as they are.

        Args:
            options: How to train, settled.
            tokenizer: The model's.
            folder: Where the model lies, for messages.
            before: Record of the super-adapter that is trained further: its prompt is taken, as far as it is the same.

        Returns:
            The template, and the chat template where that is used.

        Raises:
            LonasEdgeError: If the model has no chat template, and it is needed.
        """
        return None

    def check(self, source: Source) -> None:
        """Refuse a base that cannot learn it, before its weights are read.

        Args:
            source: The base.

        Raises:
            LonasEdgeError: If it cannot.
        """
        source.architecture.require(self.task, self.asks, source.base.folder / "config.json")

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
    def encoded(self, tokenizer: Any, options: TrainOptions, prompting: Prompting | None) -> list[list[Encoded]]:
        """Make the examples tokens.

        Args:
            tokenizer: The model's.
            options: How to train, settled.
            prompting: As of `prompting`.

        Returns:
            Of each file those that can be learned.
        """

    @abstractmethod
    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        """Makes a batch of encoded examples."""

    @abstractmethod
    def calibration(
        self, places: Sequence[int], tokenizer: Any, options: TrainOptions, prompting: Prompting | None
    ) -> Iterator[Batch]:
        """What the importance of channels is taken from.

        Args:
            places: Of the examples, file by file.
            tokenizer: The model's.
            options: How to train, settled.
            prompting: As of `prompting`.

        Yields:
            A batch of one example each, what it is to answer left out.
        """


@dataclass(frozen=True)
class Said(Subject):
    """Instructions, conversations and texts."""

    files: tuple[Data, ...]

    @property
    def portions(self) -> tuple[Portion, ...]:
        """See `Subject`."""
        return tuple(Portion(data.path, data.kind, len(data.examples), data.weight) for data in self.files)

    @property
    def task(self) -> Task:
        """See `Subject`."""
        return CAUSAL_LM

    @property
    def asks(self) -> str:
        """See `Subject`."""
        return f"{self.files[0].path}: a training on {self.files[0].kind} data"

    def settled(self, options: TrainOptions, source: Source | None) -> TrainOptions:
        """See `Subject`."""
        training = source.training if source else None
        recorded = training.prompt.name if training and training.prompt else None
        space = source.space.hash if source else None
        chats = [data.path for data in self.files if data.kind == MESSAGES]
        return replace(options, prompt=choose_prompt(options.prompt, recorded, space, chats[0] if chats else None))

    def prompting(self, options: TrainOptions, tokenizer: Any, folder: Path, before: TrainingRecord | None = None) -> Prompting:
        """See `Subject`."""
        recorded, chat = (before.prompt, before.chat_template) if before else (None, None)
        return Prompting.of(str(options.prompt), tokenizer, folder, recorded, chat)

    def lacks(self, tokenizer: Any) -> str | None:
        """See `Subject`; answers end with EOS."""
        return None if tokenizer.eos_token_id is not None else "EOS"

    def encoded(self, tokenizer: Any, options: TrainOptions, prompting: Prompting | None) -> list[list[Encoded]]:
        """See `Subject`; what has no output or is too long is left out."""
        assert prompting  # see above
        length = options.max_length or self.task.sequence_length
        return [[*encode(data.examples, prompting, tokenizer, length, options.train_on_prompt)] for data in self.files]

    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        """See `Subject`."""
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        return Collator(eos if pad is None else pad)

    def calibration(
        self, places: Sequence[int], tokenizer: Any, options: TrainOptions, prompting: Prompting | None
    ) -> Iterator[Batch]:
        """See `Subject`; prompts."""
        assert prompting  # see above
        examples: list[Learned] = [example for data in self.files for example in data.examples]
        for place in places:
            ids = torch.tensor([asked(examples[place], prompting, tokenizer, options.max_length or self.task.sequence_length)])
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@dataclass(frozen=True)
class Glue(Subject):
    """A task of GLUE."""

    path: Path
    of: GlueTask
    pairs: tuple[Pair, ...]

    @property
    def portions(self) -> tuple[Portion, ...]:
        """See `Subject`."""
        return (Portion(self.path, "glue", len(self.pairs)),)

    @property
    def task(self) -> Task:
        """See `Subject`."""
        return CLASSIFICATION

    @property
    def asks(self) -> str:
        """See `Subject`."""
        return f"{self.path}: a training on GLUE's {self.of.name}"

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

    def encoded(self, tokenizer: Any, options: TrainOptions, prompting: Prompting | None) -> list[list[Encoded]]:
        """See `Subject`; the longer text of what is too long is cut, as in the published trainings."""
        encoded = encode_pairs(self.pairs, tokenizer, options.max_length or self.task.sequence_length)
        return [[{**one, "labels": pair.label} for one, pair in zip(encoded, self.pairs, strict=True)]]

    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        """See `Subject`."""
        return PairCollator(tokenizer.pad_token_id, self.of.regression)

    def calibration(
        self, places: Sequence[int], tokenizer: Any, options: TrainOptions, prompting: Prompting | None
    ) -> Iterator[Batch]:
        """See `Subject`."""
        chosen = [self.pairs[place] for place in places]
        collate = self.collator(tokenizer)
        for one in encode_pairs(chosen, tokenizer, options.max_length or self.task.sequence_length):
            yield {name: tensor for name, tensor in collate([{**one, "labels": 0}]).items() if name != "labels"}


def read_subject(data: Files, task: str | None = None) -> Subject:
    """Read the data of a training: a TSV file is GLUE's, anything else instructions, conversations or texts.

    Args:
        data: The files.
        task: The task of GLUE; that which the file's folder is named by when None.

    Returns:
        The data.

    Raises:
        LonasEdgeError: If it is missing, empty or not of the format; every fault is listed.
    """
    files = [(data, 1.0)] if isinstance(data, Path) else list(data)
    tables = [path for path, _ in files if task is not None or path.suffix.lower() == ".tsv"]
    if not tables:
        return _said(files)
    if len(files) > 1 or files[0][1] != 1.0:
        raise LonasEdgeError(f"{tables[0]}: a task of GLUE is one file, learned as it is; give --data once, without a weight")
    of = task_of(tables[0], task)
    return Glue(tables[0], of, tuple(of.read(tables[0])))


def _said(files: Sequence[tuple[Path, float]]) -> Said:
    """Read the files; what is wrong with several is listed together."""
    read, problems = [], []
    for path, weight in files:
        try:
            read.append(read_data(path, weight))
        except LonasEdgeError as error:
            problems.append(str(error))
    if problems:
        raise LonasEdgeError("\n".join(problems))
    return Said(tuple(read))
