"""Data of classifiers and rerankers: texts or pairs, with the labels of GLUE or without. A class or a number is learned."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional as F

from lonas_edge.data.encoding import check_padding, collate_pairs, encode_pairs
from lonas_edge.data.language import kl_divergence, sample_classes
from lonas_edge.data.pooling import Pooling
from lonas_edge.data.task import MAX_LENGTH, DataOptions, Encoded, Task, widen
from lonas_edge.data.texts import Texts, labels_of, read_texts
from lonas_edge.families import CLASSIFICATION, ModelKind, output_names
from lonas_edge.space.architecture import Architecture


@dataclass(frozen=True)
class PairTask(Task):
    """Predict a class of a text or pair: cross-entropy and KL; or with one output a number: squared errors and distances."""

    kind: ClassVar[ModelKind] = CLASSIFICATION

    outputs: tuple[str, ...] = ()  # names of the model's outputs
    padding: int | None = None  # the token by which a decoder finds the end of a text

    @classmethod
    def of(cls, architecture: Architecture, pooling: Pooling | None, options: DataOptions) -> Self:
        outputs = output_names(architecture.config)
        return cls(architecture.context or MAX_LENGTH, options, outputs=outputs, padding=architecture.padding)

    @property
    def regression(self) -> bool:
        """Whether the model has one output, a number."""
        return len(self.outputs) == 1

    def _read(self, path: Path) -> tuple[str, Sequence[Any]]:
        glue = self.options.glue
        if glue is None:
            return read_texts(path, labels_of(self.outputs) if self.options.labels else None)
        return "glue" if glue.published else "labels", glue.renumber(glue.read(path), self.outputs)

    @property
    def inputs(self) -> Sequence[Texts]:
        """The texts or pairs: a triplet is two pairs."""
        inputs = []
        for example in self.examples:
            first, *others = example.texts
            inputs += [Texts((first, other), example.label) for other in others] or [example]
        return inputs

    def _learned(self, example: Any) -> set[str]:
        first, *others = example.texts
        return {repr((first, other)) for other in others or [""]}

    @property
    def description(self) -> str:
        return self.options.glue.name if self.options.glue else "texts"

    @property
    def units(self) -> dict[str, str]:
        return {"kl": "squared distance", "loss": "squared error"} if self.regression else {}

    @property
    def labelled(self) -> bool:
        return self.options.glue is not None

    @property
    def max_length(self) -> int:
        """Longer texts are cut; those of GLUE as in the published trainings."""
        glue = self.options.glue
        return min(CLASSIFICATION.sequence_length, self.context) if glue and glue.published else self.context

    def _encode(self, inputs: Sequence[Any], tokenizer: Any, max_length: int | None) -> list[Encoded]:
        check_padding(tokenizer, self.padding)
        encoded = encode_pairs([each.texts for each in inputs], tokenizer, max_length)
        return [{**row, "labels": each.label or 0} for row, each in zip(encoded, inputs, strict=True)]

    def _held_out(self, inputs: Sequence[Any], tokenizer: Any) -> list[Encoded]:
        """Long texts of GLUE are dropped: where they are cut may decide their class. Others are cut."""
        if not (self.options.glue and self.options.glue.published):
            return self._encode(inputs, tokenizer, self.context)
        return [row for row in self._encode(inputs, tokenizer, None) if len(row["input_ids"]) <= self.context]

    def collate(self, encoded: Sequence[Encoded], pad_token_id: int) -> dict[str, torch.Tensor]:
        return collate_pairs(encoded, pad_token_id, self.regression)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if self.regression:
            return F.mse_loss(logits[:, 0].float(), labels.float(), reduction="sum")
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def distance(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        if self.regression:
            return F.mse_loss(widen(logits), widen(reference), reduction="sum")
        return kl_divergence(reference, logits)

    def sample(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        if self.regression:
            return logits[:, 0].float() + torch.randn(len(logits), generator=generator).to(logits.device)
        return sample_classes(logits, generator)
