"""The prompts that sub-networks are scored or solved on: a seeded choice of the data, checked before any weight is read."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lonas_edge.data.instructions import read_examples
from lonas_edge.data.templates import TEMPLATES, Example, Template
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CAUSAL_LM
from lonas_edge.files import sha256
from lonas_edge.network.source import Source

if TYPE_CHECKING:
    from lonas_edge.network.super_network import Batch

MAX_LENGTH = 512  # tokens of a prompt with its answer; longer ones are left out
BATCH_TOKENS = 4096  # of a batch, padding included


@dataclass(frozen=True)
class HeldOut:
    """Prompts that sub-networks are scored on.

    Attributes:
        path: The data's file.
        sha256: Its hash.
        template: What makes text of an example.
        prompts: How many are scored.
        seed: Of the choice.
        unseen: Whether the super-adapter's record says that it was trained on another file; None where there is no record.
        option: What says how many, for the errors.
        examples: All of the data.
        order: Places of the examples, in the seeded order in which they are taken.
    """

    path: Path
    sha256: str
    template: Template
    prompts: int
    seed: int
    unseen: bool | None
    option: str
    examples: Sequence[Example]
    order: Sequence[int]

    def split(self, prompts: int) -> "tuple[HeldOut, HeldOut]":
        """Part the data in two in proportion, so that no example is in both.

        Args:
            prompts: How many the first part is to give; the second gives the others.

        Returns:
            Both parts.
        """
        place = len(self.order) * prompts // self.prompts
        first = replace(self, prompts=prompts, order=self.order[:place])
        return first, replace(self, prompts=self.prompts - prompts, order=self.order[place:])

    def batches(self, tokenizer: Any) -> "list[Batch]":
        """Tokenize the first prompts that fit.

        Args:
            tokenizer: The model's.

        Returns:
            Batches of prompts of like length.

        Raises:
            LonasEdgeError: If too few have an answer within the longest length.
        """
        from lonas_edge.data.encoding import Collator, encode

        found: list[dict[str, list[int]]] = []
        for start in range(0, len(self.order), self.prompts):
            part = [self.examples[place] for place in self.order[start : start + self.prompts]]
            found += encode(part, self.template, tokenizer, MAX_LENGTH)
            if len(found) >= self.prompts:
                break
        else:
            raise LonasEdgeError(
                f"{self.path}: {len(found)} of {len(self.order)} prompts have an answer within {MAX_LENGTH} tokens, and "
                f"{self.prompts} are asked for. Give more data, or a smaller {self.option}."
            )
        collate = Collator(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)
        return [collate(batch) for batch in _packed(found[: self.prompts])]


def _packed(encoded: Sequence[dict[str, list[int]]]) -> Iterator[list[dict[str, list[int]]]]:
    batch: list[dict[str, list[int]]] = []
    for example in sorted(encoded, key=lambda one: len(one["input_ids"]), reverse=True):
        if batch and (len(batch) + 1) * len(batch[0]["input_ids"]) > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(example)
    if batch:
        yield batch


def read_held_out(
    source: Source, data: Path, prompts: int, seed: int, prompt: str | None = None, option: str = "--val-set-size"
) -> HeldOut:
    """Read the data and choose the prompts.

    Args:
        source: Base model, adapter and search space.
        data: Instruction data, as of training.
        prompts: How many to take.
        seed: Of the choice.
        prompt: Name of the template; that of the super-adapter's training when None, else that of published adapters.
        option: What says how many, for the errors.

    Returns:
        The prompts, not tokenized yet.

    Raises:
        LonasEdgeError: If an example has no answer, or there are fewer than asked, or the model answers no prompts.
    """
    source.architecture.require(CAUSAL_LM, str(data))
    examples = read_examples(data)
    if len(examples) < prompts:
        raise LonasEdgeError(
            f"{data}: holds {len(examples)} prompts, and {prompts} are asked for. Give more data, or a smaller {option}."
        )
    order = list(range(len(examples)))
    random.Random(seed).shuffle(order)
    found, training = sha256(data), source.training
    template = TEMPLATES[prompt] if prompt else training.prompt if training and training.prompt else TEMPLATES["lonas"]
    unseen = training.data.sha256 != found if training else None
    return HeldOut(data, found, template, prompts, seed, unseen, option, examples, tuple(order))
