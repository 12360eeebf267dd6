"""Prompts for scoring sub-networks: a seeded choice, checked before weights are read."""

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lonas_edge.data.encoding import Collator, PairCollator, Prompting, encode, encode_pairs
from lonas_edge.data.glue import GlueTask, Pair, task_of
from lonas_edge.data.instructions import MESSAGES, Learned, read_data
from lonas_edge.data.pooling import Pooling
from lonas_edge.data.sentences import SentenceCollator, Sentences, encode_sentences, read_sentences
from lonas_edge.data.templates import CHAT, Template, choose_prompt
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM, CLASSIFICATION, EMBEDDING, ModelKind, output_names
from lonas_edge.files import sha256
from lonas_edge.network.source import Source
from lonas_edge.network.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from lonas_edge.network.super_network import Batch

MAX_LENGTH = 1024  # tokens of a prompt with its answer; longer ones are dropped
_UNLABELLED = (".json", ".jsonl", ".parquet")  # files of texts for a classifier; others are GLUE's
BATCH_TOKENS = 1024  # of a batch, padding included; 4096 take twice the time: each large tensor is new memory


@dataclass(frozen=True)
class HeldOut(ABC):
    """Prompts that sub-networks are scored on.

    Attributes:
        path: The data file.
        sha256: Its hash.
        prompts: Number of prompts.
        seed: Seed of the choice.
        unseen: Whether the super-adapter's record names other training files; None without a record.
        option: The option that sets the number, for errors.
        order: Indices of the examples in the order in which they are taken.
        asked_as: Name of the prompt template, or of the task.
        template: The prompt template; None where nothing is prompted.
        metric: The task's metric; None where a protocol defines it, or where there is nothing to compare with.
        units: Units of qualities by name, where they differ from a language model's.
    """

    path: Path
    sha256: str
    prompts: int
    seed: int
    unseen: bool | None
    option: str
    order: Sequence[int]
    asked_as: str
    template: Template | None
    metric: str | None
    units: dict[str, str]

    @property
    def labelled(self) -> bool:
        """Whether a loss can be computed."""
        return True

    @abstractmethod
    def fitting(self, tokenizer: Any) -> int:
        """Count the prompts that `batches` can take."""

    @abstractmethod
    def batches(self, tokenizer: Any) -> "list[Batch]":
        """Tokenize the first prompts that fit, in batches of similar length."""

    def _too_few(self, fitting: int, longest: int) -> LonasEdgeError:
        return LonasEdgeError(
            f"{self.path}: {fitting} of {len(self.order)} prompts have an answer within {longest} tokens; expected "
            f"{self.prompts}. Add data, or lower {self.option}."
        )


@dataclass(frozen=True)
class HeldOutPrompts(HeldOut):
    """Prompts with answers.

    Attributes:
        prompting: Makes text of an example.
        examples: All examples of the data.
    """

    prompting: Prompting
    examples: Sequence[Learned]

    def fitting(self, tokenizer: Any) -> int:
        pieces = encode(self.examples, self.prompting, tokenizer, MAX_LENGTH)  # a long text has several
        return min(len(self.examples), len(pieces))

    def batches(self, tokenizer: Any) -> "list[Batch]":
        """Tokenize prompts; the positions that count are those that training learns."""
        encoded: list[dict[str, list[int]]] = []
        for start in range(0, len(self.order), self.prompts):
            part = [self.examples[index] for index in self.order[start : start + self.prompts]]
            encoded += encode(part, self.prompting, tokenizer, MAX_LENGTH)
            if len(encoded) >= self.prompts:
                break
        else:
            raise self._too_few(len(encoded), MAX_LENGTH)
        collate = Collator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        return [collate(batch) for batch in _packed(encoded[: self.prompts])]


@dataclass(frozen=True)
class HeldOutPairs(HeldOut):
    """Texts or pairs for a classifier.

    Attributes:
        task: The task of GLUE; None for texts without labels.
        pairs: All examples of the data, their classes numbered as the model does.
        context: Largest number of tokens of a text; longer ones are dropped from a GLUE task, others are cut.
    """

    task: GlueTask | None
    pairs: Sequence[Pair]
    context: int

    @property
    def labelled(self) -> bool:
        return self.task is not None

    def fitting(self, tokenizer: Any) -> int:
        return len(self._encoded(tokenizer))

    def _encoded(self, tokenizer: Any) -> list[dict[str, Any]]:
        chosen, cut = [self.pairs[index] for index in self.order], None if self.task else self.context
        return [
            {**row, "labels": pair.label}
            for row, pair in zip(encode_pairs(chosen, tokenizer, cut), chosen, strict=True)
            if len(row["input_ids"]) <= self.context
        ]

    def batches(self, tokenizer: Any) -> "list[Batch]":
        encoded = self._encoded(tokenizer)
        if len(encoded) < self.prompts:
            raise self._too_few(len(encoded), self.context)
        collate = PairCollator(tokenizer.pad_token_id or 0, self.task is not None and self.task.regression)
        return [collate(batch) for batch in _packed(encoded[: self.prompts])]


@dataclass(frozen=True)
class HeldOutTexts(HeldOut):
    """Texts to embed, or records of several.

    Attributes:
        sentences: All records of the data.
        pooling: How they are embedded.
        context: Tokens at which a text is cut.
    """

    sentences: Sentences
    pooling: Pooling
    context: int

    @property
    def labelled(self) -> bool:
        return False  # InfoNCE depends on the other texts of a batch

    def fitting(self, tokenizer: Any) -> int:
        return len(self.sentences.rows)

    def batches(self, tokenizer: Any) -> "list[Batch]":
        chosen = self.sentences.chosen(self.order[: self.prompts])
        encoded = encode_sentences(chosen, self.pooling, tokenizer, self.context)
        collate = SentenceCollator(tokenizer.pad_token_id or 0)
        return [collate(batch) for batch in _packed(encoded)]


def _packed(encoded: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for example in sorted(encoded, key=lambda row: len(row["input_ids"]), reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]["input_ids"]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def read_held_out(
    source: Source, data: Path, prompts: int, seed: int, prompt: str | None = None, option: str = "--num-prompts"
) -> HeldOut:
    """Read the data (for a classifier a TSV file of GLUE or texts, for an embedding model texts) and choose prompts.

    Nothing is tokenized yet.

    `prompt` is the template's name, chosen by `choose_prompt` when None; errors name `option`, which sets the number.
    """
    kind = source.architecture.family.kind
    if kind not in _READ:
        raise LonasEdgeError(f"{source.folder}: a {kind.name}; expected {' or '.join(f'a {known.name}' for known in _READ)}")
    return _READ[kind](source, data, prompts, seed, prompt, option)


def _prompts(source: Source, data: Path, prompts: int, seed: int, prompt: str | None, option: str) -> HeldOut:
    read = read_data(data)
    common = _common(source, data, prompts, seed, option, len(read.examples))
    prompting = _prompting(source, data, read.kind, prompt)
    template = prompting.template
    common |= {"asked_as": template.name, "template": template, "metric": None, "units": {}}
    return HeldOutPrompts(**common, prompting=prompting, examples=read.examples)


def _pairs(source: Source, data: Path, prompts: int, seed: int, _prompt: str | None, option: str) -> HeldOut:
    architecture = source.architecture
    outputs, context = architecture.linears[architecture.family.head].out_features, architecture.context or MAX_LENGTH
    if data.suffix.lower() in _UNLABELLED:
        refuse_several_labels(source)
        task = None
    else:
        task = task_of(data, source.training.task if source.training else None, option=False)
    if task and (misfit := task.misfit(outputs)):
        raise LonasEdgeError(f"{source.folder}: {misfit}. Pass data of the task that it was trained on.")
    names = output_names(architecture.config)
    pairs = task.numbered(task.read(data), names) if task else read_sentences(data, outputs=()).pairs
    common = _common(source, data, prompts, seed, option, len(pairs))
    units = {"kl": "squared distance", "loss": "squared error"} if outputs == 1 else {}
    asked_as, metric = (task.name, task.metrics[0]) if task else ("texts", None)
    common |= {"asked_as": asked_as, "template": None, "metric": metric, "units": units}
    return HeldOutPairs(**common, task=task, pairs=pairs, context=context)


def refuse_several_labels(source: Source) -> None:
    """Refuse a classifier whose outputs are no classes that exclude each other: the KL divergence is over exclusive classes."""
    config = source.architecture.config
    if config.problem_type == "multi_label_classification" or (config.problem_type == "regression" and config.num_labels > 1):
        outputs = f" with {config.num_labels} outputs" if config.problem_type == "regression" else ""
        raise LonasEdgeError(
            f"{source.base.folder / 'config.json'}: problem_type {config.problem_type!r}{outputs} is not supported; expected "
            "classes that exclude each other, or one score."
        )


def _texts(source: Source, data: Path, prompts: int, seed: int, _prompt: str | None, option: str) -> HeldOut:
    sentences, pooling = read_sentences(data), source.pooling or Pooling()
    context = source.architecture.context or MAX_LENGTH
    common = _common(source, data, prompts, seed, option, len(sentences.rows))
    metric = "spearman" if sentences.scores else None
    common |= {"asked_as": pooling.described, "template": None, "metric": metric, "units": {"kl": "cosine distance"}}
    return HeldOutTexts(**common, sentences=sentences, pooling=pooling, context=min(pooling.max_length or context, context))


_READ: Mapping[ModelKind, Callable[..., HeldOut]] = {CAUSAL_LM: _prompts, CLASSIFICATION: _pairs, EMBEDDING: _texts}


def _common(source: Source, data: Path, prompts: int, seed: int, option: str, count: int) -> dict[str, Any]:
    """Fields that all kinds have."""
    if count < prompts:
        raise LonasEdgeError(f"{data}: {count} prompts; expected at least {prompts}. Add data, or lower {option}.")
    order = list(range(count))
    random.Random(seed).shuffle(order)
    data_hash, training = sha256(data), source.training
    unseen = all(file.sha256 != data_hash for file in training.data) if training else None
    fixed = {"prompts": prompts, "seed": seed, "unseen": unseen, "option": option, "order": tuple(order)}
    return {"path": data, "sha256": data_hash, **fixed}


def _prompting(source: Source, data: Path, kind: str, prompt: str | None) -> Prompting:
    training, folder = source.training, source.base.folder
    recorded = training.prompt if training else None
    space = source.space.hash if source.adapter else None
    name = choose_prompt(prompt, recorded.name if recorded else None, space, data if kind == MESSAGES else None)
    tokenizer = load_tokenizer(folder) if name == CHAT else None
    return Prompting.of(name, tokenizer, folder, recorded, training.chat_template if training else None)
