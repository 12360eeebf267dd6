"""Models with a trimmed vocabulary: `vocabulary.json` in their directory, and loaded models reduced to the same tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from lonas_edge.schema import Record

VOCABULARY = "vocabulary.json"


@dataclass(frozen=True)
class VocabularyRecord(Record):
    """Content of `vocabulary.json`.

    Attributes:
        base: Name of the model with the whole vocabulary.
        revision: Its revision on the hub, or None.
        sha256: SHA-256 by name of the files whose adapters fit; empty in an export, whose other weights differ, too.
        rows: Rows of its embedding.
        data: SHA-256 of the data whose tokens were kept, by file name.
        tokens_per_text: Tokens per text, relative to the model with the whole vocabulary, on held-out data.
        kept: The model's id of each token here.
        through: The same hashes of the trimmed models that this one was trimmed from in turn; their adapters fit, too.
    """

    NAME: ClassVar[str] = "vocabulary"
    VERSION: ClassVar[int] = 1
    AGAIN: ClassVar[str] = "Trim the model again."
    base: str
    revision: str | None
    sha256: dict[str, str]
    rows: int
    data: dict[str, str]
    tokens_per_text: float
    kept: tuple[int, ...]
    through: tuple[dict[str, str], ...] = ()

    def exported(self) -> "VocabularyRecord":
        """The record of an export, whose other weights differ: no adapter of these models fits it."""
        return replace(self, sha256={}, through=())

    def ids_in(self, folder: Path) -> list[int | None]:
        """The id of each token in another model of the same origin, whole or trimmed; None where that lacks it."""
        other = vocabulary_of(folder)
        if other is None:
            return list(self.kept)
        ids = {number: index for index, number in enumerate(other.kept)}
        return [ids.get(number) for number in self.kept]


def vocabulary_of(folder: Path) -> VocabularyRecord | None:
    """Read the record of a model directory; None if its vocabulary was not trimmed."""
    return VocabularyRecord.read(folder / VOCABULARY) if (folder / VOCABULARY).is_file() else None


def original_hashes(folder: Path) -> list[dict[str, str]]:
    """Return the hashes of the models that a directory was trimmed from, the whole one last; none of an export's."""
    record = vocabulary_of(folder)
    return [*record.through, record.sha256] if record and record.sha256 else []


def keep_tokens(model: Any, kept: Sequence[int]) -> Any:
    """Reduce a loaded model to some tokens, in place, and return it: its logits are then those of these tokens."""
    rows, new = torch.tensor(kept), {old: index for index, old in enumerate(kept)}
    tables = dict.fromkeys(filter(None, (model.get_input_embeddings(), model.get_output_embeddings())))
    weights = {id(table.weight): torch.nn.Parameter(table.weight.data[rows], requires_grad=False) for table in tables}
    for table in tables:
        table.weight = weights[id(table.weight)]
        if getattr(table, "bias", None) is not None:
            table.bias = torch.nn.Parameter(table.bias.data[rows], requires_grad=False)
    embedding = model.get_input_embeddings()
    embedding.num_embeddings, embedding.padding_idx = len(kept), new.get(embedding.padding_idx)
    model.config.vocab_size, model.config.pad_token_id = len(kept), new.get(model.config.pad_token_id)
    return model
