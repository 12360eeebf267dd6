"""Training data by task: text for causal language models, GLUE for classifiers, sentences for embedding models.

It is tokenized, and made into batches.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch

from lonas_edge.data.encoding import Collator, PairCollator, Prompting, encode, encode_pairs, encode_prompt
from lonas_edge.data.glue import GlueTask, task_of
from lonas_edge.data.instructions import MESSAGES, TEXT, Data, Learned, read_data
from lonas_edge.data.pooling import Pooling
from lonas_edge.data.sentences import PAIR, SCORED, TRIPLET, SentenceCollator, Sentences, encode_sentences, read_sentences
from lonas_edge.data.templates import choose_prompt
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, EMBEDDING, ModelKind, output_names
from lonas_edge.network.checkpoints import open_tensors
from lonas_edge.network.heldout import refuse_several_labels
from lonas_edge.network.objective import Embedding, Objective, Ranking, Similarity, objective_of
from lonas_edge.network.source import Source
from lonas_edge.network.training_record import TrainingRecord
from lonas_edge.space.architecture import Architecture
from lonas_edge.training.options import TrainOptions

_LARGE = 1e9  # weights of linear layers
Encoded = dict[str, Any]  # `input_ids` and the other inputs of a collator
Batch = dict[str, Any]  # tensors by name
Files = Path | Sequence[tuple[Path, float]]  # one file, or several with their weights


@dataclass(frozen=True)
class DataFile:
    """A data file: the kind of its records, their number, and how often an epoch has each of them."""

    path: Path
    kind: str
    count: int
    weight: float = 1.0


class TrainingData(ABC):
    """Data for a task.

    `purpose` names a training on it in errors; `head` and `glue` are set for classifiers only, `pooling` for embedding models.
    """

    kind: ClassVar[ModelKind]
    max_length: ClassVar[int]  # tokens of the longest example by default
    files: tuple[DataFile, ...]
    purpose: str
    head: tuple[str, ...] | None = None  # names of the head's outputs
    glue: str | None = None  # name of the task
    pooling: Pooling | None = None
    labelled: bool = True  # whether a loss can be computed without a teacher
    distilled: ClassVar[bool] = False  # whether the held-out loss with a teacher is the distance from it

    def objective(self, architecture: Architecture) -> Objective:
        """Return the loss that is learned."""
        return objective_of(architecture, self.pooling)

    def with_prompt(self, options: TrainOptions, source: Source | None) -> TrainOptions:
        """Decide the prompt, if one is needed; `source` is the adapter to recover."""
        return options

    def prompting(self, options: TrainOptions, tokenizer: Any, folder: Path, record: TrainingRecord | None) -> Prompting | None:
        """Make the prompt template; that of the `record` of the adapter to train further, if it has the same name."""
        return None

    def check(self, source: Source) -> None:
        """Refuse a base that cannot learn the data, before its weights are read."""
        source.architecture.require(self.kind, self.purpose, source.base.folder / "config.json")

    def check_head(self, source: Source) -> None:
        """Refuse an adapter whose head was trained for another task."""
        return

    def numbered(self, architecture: Architecture) -> Self:
        """Number the classes of labels as the model does."""
        return self

    def longest(self, architecture: Architecture) -> int:
        """Return the default of `--max-length`."""
        return self.max_length

    def default_lr(self, architecture: Architecture) -> float:
        """Return the default of `--lr`: 1e-3 was better than 3e-4 for SmolLM2-135M; larger models need less, as published."""
        weights = sum(linear.in_features * linear.out_features for linear in architecture.linears.values())
        return 1e-3 if weights < _LARGE else 3e-4

    @abstractmethod
    def missing_tokens(self, tokenizer: Any) -> str:
        """Name the special tokens that the tokenizer lacks."""

    @abstractmethod
    def encode(self, tokenizer: Any, options: TrainOptions, prompting: Prompting | None) -> list[list[Encoded]]:
        """Tokenize the examples of each file; those that are too long or have no output are dropped."""

    @abstractmethod
    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        """Make the function that makes a batch of encoded examples."""

    def shortened(self, example: Encoded, tokens: int) -> Encoded:
        """Shorten an encoded example to measure distances between networks on: at all of its positions."""
        return example

    def calibration(
        self,
        indices: Sequence[int],
        encoded: Sequence[Encoded],
        tokenizer: Any,
        options: TrainOptions,
        prompting: Prompting | None,
    ) -> Iterator[Batch]:
        """Yield the inputs of chosen examples, without answers, to measure the importance of channels on.

        `encoded` are all examples, as of `encode`, which drops none of an encoder's.
        """
        for index in indices:
            batch = self.collator(tokenizer)([encoded[index]])
            yield {name: tensor for name, tensor in batch.items() if name != "labels"}


class TextData(TrainingData):
    """Instructions, conversations and texts."""

    kind = CAUSAL_LM
    max_length = 1024

    def __init__(self, data: Sequence[Data]):
        self.data = tuple(data)
        self.files = tuple(DataFile(file.path, file.kind, len(file.examples), file.weight) for file in data)
        self.purpose = f"{data[0].path}: a training on {data[0].kind} data"

    def with_prompt(self, options: TrainOptions, source: Source | None) -> TrainOptions:
        training = source.training if source else None
        recorded = training.prompt.name if training and training.prompt else None
        space = source.space.hash if source else None
        conversations = next((file.path for file in self.files if file.kind == MESSAGES), None)
        return replace(options, prompt=choose_prompt(options.prompt, recorded, space, conversations))

    def prompting(self, options: TrainOptions, tokenizer: Any, folder: Path, record: TrainingRecord | None) -> Prompting:
        template, chat = (record.prompt, record.chat_template) if record else (None, None)
        return Prompting.of(str(options.prompt), tokenizer, folder, template, chat)

    def missing_tokens(self, tokenizer: Any) -> str:
        return "" if tokenizer.eos_token_id is not None else "EOS"

    def encode(self, tokenizer: Any, options: TrainOptions, prompting: Prompting | None) -> list[list[Encoded]]:
        assert prompting and options.max_length
        return [encode(file.examples, prompting, tokenizer, options.max_length) for file in self.data]

    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
        return Collator(eos if pad is None else pad)

    def shortened(self, example: Encoded, tokens: int) -> Encoded:
        ids = example["input_ids"][:tokens]
        return {"input_ids": ids, "labels": ids}

    def calibration(
        self,
        indices: Sequence[int],
        encoded: Sequence[Encoded],
        tokenizer: Any,
        options: TrainOptions,
        prompting: Prompting | None,
    ) -> Iterator[Batch]:
        assert prompting and options.max_length
        examples: list[Learned] = [example for file in self.data for example in file.examples]
        for index in indices:
            ids = torch.tensor([encode_prompt(examples[index], prompting, tokenizer, options.max_length)])
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class ClassifierData(TrainingData):
    """Texts or pairs for a classifier. Those that are too long are cut, as in the published trainings."""

    kind = CLASSIFICATION
    max_length = CLASSIFICATION.sequence_length

    def longest(self, architecture: Architecture) -> int:
        return min(self.max_length, architecture.context or self.max_length)

    def default_lr(self, architecture: Architecture) -> float:
        """As published for classifiers."""
        return 3e-4


class GlueData(ClassifierData):
    """A task of GLUE."""

    def __init__(self, path: Path, task: GlueTask):
        self.glue_task, self.pairs = task, tuple(task.read(path))
        self.files = (DataFile(path, "glue", len(self.pairs)),)
        self.purpose = f"{path}: a training on GLUE's {task.name}"
        self.head, self.glue = task.outputs, task.name

    def check(self, source: Source) -> None:
        super().check(source)
        folder, family = source.base.folder, source.architecture.family
        tensors = open_tensors(folder)
        tensors.rename(family)
        shape = tensors.shapes.get(f"{family.head}.weight")
        if shape and (misfit := self.glue_task.misfit(shape[0])):
            advice = "Use a base without a head, or data of another task."
            raise LonasEdgeError(f"{folder}: {misfit} ({tensors.file_of(f'{family.head}.weight').name}). {advice}")

    def check_head(self, source: Source) -> None:
        trained = source.training.task if source.training else None
        misfit = self.glue_task.misfit(source.architecture.linears[source.architecture.family.head].out_features)
        if trained not in (None, self.glue) or misfit:
            what = misfit or f"trained on {trained}, and the data are of {self.glue}"
            raise LonasEdgeError(f"{source.folder}: {what}. Pass data of the task that it was trained on.")

    def numbered(self, architecture: Architecture) -> Self:
        numbered = copy.copy(self)
        numbered.pairs = tuple(self.glue_task.numbered(self.pairs, output_names(architecture.config)))
        return numbered

    def missing_tokens(self, tokenizer: Any) -> str:
        return " and ".join(name for name in ("CLS", "PAD") if getattr(tokenizer, f"{name.lower()}_token_id") is None)

    def encode(self, tokenizer: Any, options: TrainOptions, prompting: Prompting | None) -> list[list[Encoded]]:
        encoded = encode_pairs(self.pairs, tokenizer, options.max_length)
        return [[{**row, "labels": pair.label} for row, pair in zip(encoded, self.pairs, strict=True)]]

    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        return PairCollator(tokenizer.pad_token_id, self.glue_task.regression)


class SentenceData(TrainingData):
    """Texts, pairs, triplets or scored pairs for an embedding model. Texts that are too long are cut."""

    kind = EMBEDDING
    max_length = EMBEDDING.sequence_length
    distilled = True
    pooling: Pooling

    def __init__(self, read: Sequence[tuple[Sentences, float]], pooling: Pooling):
        self.sentences, self.pooling = tuple(sentences for sentences, _ in read), pooling
        self.files = tuple(DataFile(each.path, each.kind, len(each.rows), weight) for each, weight in read)
        self.purpose = f"{self.files[0].path}: a training on sentences"
        self.labelled = TEXT not in self.kinds

    @property
    def kinds(self) -> set[str]:
        """Kinds of the records of all files."""
        return {each.kind for each in self.sentences}

    def objective(self, architecture: Architecture) -> Objective:
        """Return the loss of the records' kind; of several kinds or texts alone, which have no labels, distances only."""
        [kind, *others] = self.kinds
        learned = {PAIR: Ranking(self.pooling, 2), TRIPLET: Ranking(self.pooling, 3), SCORED: Similarity(self.pooling)}
        return Embedding(self.pooling) if others else learned.get(kind, Embedding(self.pooling))

    def longest(self, architecture: Architecture) -> int:
        """As clients cut them."""
        context = architecture.context or self.max_length
        return min(self.pooling.max_length or context, context)

    def missing_tokens(self, tokenizer: Any) -> str:
        return "" if tokenizer.pad_token_id is not None else "PAD"

    def encode(self, tokenizer: Any, options: TrainOptions, prompting: Prompting | None) -> list[list[Encoded]]:
        assert options.max_length
        return [encode_sentences(each, self.pooling, tokenizer, options.max_length) for each in self.sentences]

    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        return SentenceCollator(tokenizer.pad_token_id)


class PairData(ClassifierData):
    """Texts or pairs without labels, for a classifier or reranker with a teacher."""

    labelled = False
    distilled = True

    def check(self, source: Source) -> None:
        super().check(source)
        refuse_several_labels(source)

    def longest(self, architecture: Architecture) -> int:
        """The model's context."""
        return architecture.context or self.max_length

    def __init__(self, read: Sequence[tuple[Sentences, float]]):
        self.pairs = tuple(each.pairs for each, _ in read)
        self.files = tuple(
            DataFile(each.path, each.kind, len(pairs), weight) for (each, weight), pairs in zip(read, self.pairs, strict=True)
        )
        self.purpose = f"{self.files[0].path}: a training on texts without labels"

    def missing_tokens(self, tokenizer: Any) -> str:
        return "" if tokenizer.pad_token_id is not None else "PAD"

    def encode(self, tokenizer: Any, options: TrainOptions, prompting: Prompting | None) -> list[list[Encoded]]:
        files = (encode_pairs(pairs, tokenizer, options.max_length) for pairs in self.pairs)
        return [[{**row, "labels": 0} for row in rows] for rows in files]

    def collator(self, tokenizer: Any) -> Callable[[Sequence[Any]], Batch]:
        return PairCollator(tokenizer.pad_token_id)


def read_glue_data(data: Files, task: str | None = None) -> GlueData | None:
    """Read the data of a GLUE task; None for files that are no TSV where no task is named."""
    files = [(data, 1.0)] if isinstance(data, Path) else list(data)
    tables = [path for path, _ in files if task is not None or path.suffix.lower() == ".tsv"]
    if tables:
        if len(files) > 1 or files[0][1] != 1.0:
            raise LonasEdgeError(f"{tables[0]}: a GLUE task is one file without a weight; give --data once")
        return GlueData(tables[0], task_of(tables[0], task))
    return None


def read_training_data(data: Files, kind: ModelKind = CAUSAL_LM, pooling: Pooling | None = None) -> TrainingData:
    """Read instructions, conversations or texts; for encoders sentences, embedded by `pooling`."""
    files = [(data, 1.0)] if isinstance(data, Path) else list(data)
    if kind.generates:
        return TextData(_all(read_data, files))
    outputs = None if pooling else ()  # labels of a classifier's texts are not learned
    read = _all(lambda path, weight: (read_sentences(path, outputs), weight), files)
    return SentenceData(read, pooling) if pooling else PairData(read)


def _all(read: Callable[[Path, float], Any], files: Sequence[tuple[Path, float]]) -> list[Any]:
    """Read all files; raise the problems of all of them."""
    done, problems = [], []
    for path, weight in files:
        try:
            done.append(read(path, weight))
        except LonasEdgeError as error:
            problems.append(str(error))
    if problems:
        raise LonasEdgeError("\n".join(problems))
    return done
