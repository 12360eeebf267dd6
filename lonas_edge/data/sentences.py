"""Data of embedding models: texts, pairs, triplets and scored pairs. Directions are learned; the lengths do not count."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch.nn import functional as F

from lonas_edge.data.encoding import collate_pairs, encode_pairs
from lonas_edge.data.glue import LARGEST_SCORE, task_of
from lonas_edge.data.pooling import PASSAGE, QUERY, Pooling
from lonas_edge.data.task import MAX_LENGTH, Batch, DataOptions, Encoded, Task, widen
from lonas_edge.data.texts import COSINES, PAIR, SCORED, TEXT, TRIPLET, Texts, read_texts
from lonas_edge.errors import raise_all
from lonas_edge.families import EMBEDDING, ModelKind
from lonas_edge.space.architecture import Architecture

_SCALE = 20.0  # of cosines in InfoNCE, as in sentence-transformers' `MultipleNegativesRankingLoss`


@dataclass(frozen=True)
class SentenceTask(Task):
    """Embed texts. The logits of the methods are embeddings [texts, hidden]; there is no head.

    Pairs and triplets are learned by InfoNCE (van den Oord et al., arXiv:1807.03748), scored pairs by squared errors of
    cosines, as sentence-transformers' `CosineSimilarityLoss`. Single texts have no labels.
    """

    kind: ClassVar[ModelKind] = EMBEDDING

    pooling: Pooling = field(default_factory=Pooling)

    @classmethod
    def of(cls, architecture: Architecture, pooling: Pooling | None, options: DataOptions) -> Self:
        pooling = pooling or Pooling()
        return cls(pooling.max_length or architecture.context or MAX_LENGTH, options, pooling=pooling)

    def _read(self, path: Path) -> tuple[str, Sequence[Any]]:
        """Read sentences; GLUE's STS-B as scored pairs, and of its other tasks the texts."""
        if path.suffix.lower() == ".tsv":
            task = task_of(path)
            rows = task.read(path)
            if task.regression:
                return SCORED, [Texts(row.texts, (row.label or 0.0) / LARGEST_SCORE) for row in rows]
            return TEXT, [Texts((text,)) for row in rows for text in row.texts]
        kind, texts = read_texts(path, COSINES)
        unknown = {text.prompt for text in texts if text.prompt} - self.pooling.prompts.keys()
        raise_all(
            f"{path}: the model has no such prompts:",
            [f"prompt {name!r}" for name in sorted(unknown)],
            f"It has {', '.join(sorted(self.pooling.prompts)) or 'none'} (config_sentence_transformers.json).",
        )
        return kind, texts

    def _learned(self, example: Any) -> set[str]:
        return set(example.texts)

    @property
    def description(self) -> str:
        return self.pooling.description

    @property
    def units(self) -> dict[str, str]:
        return {"kl": "cosine distance"}

    @property
    def labelled(self) -> bool:
        return TEXT not in self.kinds

    def _encode(self, inputs: Sequence[Any], tokenizer: Any, max_length: int) -> list[Encoded]:
        """Tokenize records with the prompts that precede their texts; those of queries and passages in pairs and triplets.

        Returns:
            For every record `input_ids` of its texts, one after the other; `lengths`, their numbers of tokens; and `labels`,
            its score or 0.
        """
        texts = [prompt + text for each in inputs for prompt, text in zip(self._prompts(each), each.texts, strict=True)]
        encoded = iter(encode_pairs([(text,) for text in texts], tokenizer, max_length))
        rows = []
        for each in inputs:
            ids = [next(encoded)["input_ids"] for _ in each.texts]
            lengths, label = [len(text) for text in ids], 0.0 if each.label is None else each.label
            rows.append({"input_ids": [token for text in ids for token in text], "lengths": lengths, "labels": label})
        return rows

    def _prompts(self, example: Texts) -> list[str]:
        if len(example.texts) > 1 and example.label is None:
            return [self.pooling.prompt(*QUERY), *(self.pooling.prompt(*PASSAGE) for _ in example.texts[1:])]
        prompt = self.pooling.prompt(example.prompt) if example.prompt else self.pooling.prompt()
        return [prompt] * len(example.texts)

    def collate(self, encoded: Sequence[Encoded], pad_token_id: int) -> dict[str, torch.Tensor]:
        """Make a batch of texts; those of a record stay together, in order, with its label."""
        texts = []
        for record in encoded:
            start = 0
            for length in record["lengths"]:
                ids = record["input_ids"][start : start + length]
                texts.append({"input_ids": ids, "token_type_ids": [0] * length, "labels": record["labels"]})
                start += length
        return collate_pairs(texts, pad_token_id, regression=True)

    def select(self, hidden: torch.Tensor, batch: Batch) -> torch.Tensor:
        return self.pooling.pool(hidden, batch["attention_mask"])

    def logits(self, output: Any, batch: Batch) -> torch.Tensor:
        return self.select(output.last_hidden_state, batch)

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Loss of embeddings on labels [texts] of data, or on the embeddings [texts, hidden] of `sample`."""
        directions = _directions(logits)
        if labels.ndim == 2:
            return (directions - labels).square().sum() / 2
        if self.kinds == [SCORED]:
            cosines = (directions[0::2] * directions[1::2]).sum(-1)
            return 2 * F.mse_loss(cosines, labels[0::2].float(), reduction="sum")
        return _ranking_loss(directions, {PAIR: 2, TRIPLET: 3}[self.kinds[0]])

    def distance(self, reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Half the squared distance of directions: 1 - cosine, but never negative, and exact where it is small."""
        return (_directions(logits) - _directions(reference)).square().sum() / 2

    def sample(self, logits: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        directions = _directions(logits)
        return directions + torch.randn(directions.shape, generator=generator).to(logits.device)


def _ranking_loss(directions: torch.Tensor, texts: int) -> torch.Tensor:
    """InfoNCE of records of `texts` texts each, which follow each other: find the second text among those of the batch.

    Third texts are further negatives. The sum is over texts.
    """
    records = directions.view(-1, texts, directions.shape[-1])
    candidates = records[:, 1:].transpose(0, 1).flatten(0, 1)  # the second texts first
    cosines = (records[:, :1] * candidates).sum(-1)  # no product of matrices, which autocast would round
    right = torch.arange(len(records), device=cosines.device)
    return texts * F.cross_entropy(_SCALE * cosines, right, reduction="sum")


def _directions(embeddings: torch.Tensor) -> torch.Tensor:
    return F.normalize(widen(embeddings), dim=-1)
