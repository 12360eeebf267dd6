"""Data of embedding models: texts, pairs, triplets and scored pairs, in the formats of sentence-transformers.

Classifiers and rerankers take them as inputs without labels.

The names of its fields tell what a record is. `prompt` next to `text` is the name of one of the model's prompts. TSV files are
GLUE's: scored pairs of STS-B, and the texts of the other tasks, without their classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lonas_edge.data.encoding import PairCollator, encode_pairs
from lonas_edge.data.glue import Pair, task_of
from lonas_edge.data.instructions import TEXT, found_fields, half_character, read_records
from lonas_edge.data.pooling import PASSAGE, QUERY, Pooling
from lonas_edge.errors import LonasEdgeError, raise_all

PAIR, TRIPLET, SCORED = "pair", "triplet", "scored pair"
PROMPT = "prompt"
_KINDS = {1: TEXT, 2: PAIR, 3: TRIPLET}  # by the number of texts
_ROLES = (  # names of the first, second and third text
    ("anchor", "query", "question", "sentence1"),
    ("positive", "passage", "answer", "sentence2"),
    ("negative",),
)
_SCORES = ("score", "label")
_Fields = tuple[tuple[str, ...], str | None]  # names of the texts, and of the score
_EXPECTED = (
    'Expected {"text": "…"}, {"query": "…", "positive": "…"}, the same with "negative", or {"sentence1": "…", '
    '"sentence2": "…", "score": 0.8}; one such object a line, or a JSON list of them. GLUE tasks are TSV files.'
)


@dataclass(frozen=True)
class Sentences:
    """A file of texts.

    Attributes:
        path: The file.
        kind: What a record is: text, pair, triplet or scored pair.
        rows: The texts of each record; the same number in each.
        scores: Cosine of each scored pair, from -1 to 1; None for other kinds.
        prompts: Name of the prompt of each single text; None for the model's default.
    """

    path: Path
    kind: str
    rows: Sequence[tuple[str, ...]]
    scores: Sequence[float] | None = None
    prompts: Sequence[str | None] | None = None

    @property
    def pairs(self) -> list[Pair]:
        """The texts or pairs that a classifier or reranker reads, without labels; a triplet is two pairs."""
        return [Pair(row[0], second, 0) for row in self.rows for second in (row[1:] or (None,))]

    def chosen(self, indices: Sequence[int]) -> "Sentences":
        """Take the records of these indices."""
        return replace(
            self,
            rows=[self.rows[index] for index in indices],
            scores=self.scores and [self.scores[index] for index in indices],
            prompts=self.prompts and [self.prompts[index] for index in indices],
        )


def read_sentences(path: Path) -> Sentences:
    """Read texts, pairs, triplets or scored pairs: JSON, JSON Lines or Parquet, or the TSV file of a GLUE task."""
    if path.suffix.lower() == ".tsv":
        return _table(path)
    items, problems = read_records(path)
    fields = _fields(items[0][1]) if items else None
    if items and not fields:
        problems.append(f"{items[0][0]}: found {found_fields(items[0][1])}")
    if fields:
        faults = ((place, _fault(item, fields)) for place, item in items)
        problems += [f"{place}: {fault}" for place, fault in faults if fault]
    raise_all(f"{path}: not sentences:", problems, _EXPECTED)
    if not fields:
        raise LonasEdgeError(f"{path}: holds no examples")
    texts, score = fields
    rows = [tuple(item[name] for name in texts) for _, item in items]
    if score:
        return Sentences(path, SCORED, rows, [float(item[score]) for _, item in items])
    prompts = [item.get(PROMPT) for _, item in items] if texts == (TEXT,) else None
    return Sentences(path, _KINDS[len(texts)], rows, prompts=prompts)


def _table(path: Path) -> Sentences:
    task = task_of(path, None, option=False)
    pairs = task.read(path)
    rows = [(pair.first,) if pair.second is None else (pair.first, pair.second) for pair in pairs]
    if task.regression:
        return Sentences(path, SCORED, rows, [pair.label / task.most for pair in pairs])
    return Sentences(path, TEXT, [(text,) for row in rows for text in row])


def _fields(item: Any) -> _Fields | None:
    """Names of a record's texts, by their roles, and of its score; None if it is no such record."""
    if not isinstance(item, dict):
        return None
    if TEXT in item:
        return (TEXT,), None
    texts = tuple(found for names in _ROLES if (found := next((name for name in names if name in item), None)))
    score = next((name for name in _SCORES if name in item), None)
    complete = [any(name in role for name in texts) for role in _ROLES]
    if complete[:2] != [True, True] or (score and len(texts) != 2):
        return None
    return texts, score


def _fault(item: Any, fields: _Fields) -> str | None:
    """Describe how a record differs from the first one, which has these fields; None if it does not."""
    texts, score = fields
    if not isinstance(item, dict):
        return f"expected an object, found {type(item).__name__}"
    empty = [name for name in texts if not isinstance(item.get(name), str) or not item[name].strip()]
    if empty:
        return f"no text in {' and '.join(map(repr, empty))}"
    if _fields(item) != fields:
        return (
            f"expected the fields {', '.join(filter(None, (*texts, score)))}, as in the first record; found {', '.join(item)}"
        )
    if score:
        value = item[score]
        if isinstance(value, bool) or not isinstance(value, int | float) or not -1 <= value <= 1:
            return f"{score} {str(value)[:50]}: expected a cosine from -1 to 1"
    if texts == (TEXT,) and not isinstance(item.get(PROMPT), str | None):
        return "'prompt' is no name"
    return next((fault for name in texts if (fault := half_character(name, item[name]))), None)


def encode_sentences(sentences: Sentences, pooling: Pooling, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """Tokenize records.

    Args:
        sentences: The records.
        pooling: Has the prompts that precede texts; those of queries and passages in pairs and triplets.
        tokenizer: The model's.
        max_length: Tokens at which a text is cut.

    Returns:
        For every record `input_ids` of its texts, one after the other; `lengths`, their numbers of tokens; and `labels`, its
        score or 0.
    """
    prompts = sentences.prompts or [None] * len(sentences.rows)
    problems = [f"prompt {name!r}" for name in dict.fromkeys(filter(None, prompts)) if name not in pooling.prompts]
    known = f"It has {', '.join(sorted(pooling.prompts)) or 'none'} (config_sentence_transformers.json)."
    raise_all(f"{sentences.path}: the model has no such prompts:", problems, known)
    texts = []
    for row, name in zip(sentences.rows, prompts, strict=True):
        if sentences.kind in (PAIR, TRIPLET):  # a query and passages
            preceding = [pooling.prompt(*QUERY), *(pooling.prompt(*PASSAGE) for _ in row[1:])]
            texts += [Pair(prompt + text, None, 0) for prompt, text in zip(preceding, row, strict=True)]
        else:
            texts += [Pair(pooling.prompted(text, name), None, 0) for text in row]
    encoded = iter(row["input_ids"] for row in encode_pairs(texts, tokenizer, max_length))
    rows = []
    for index, row in enumerate(sentences.rows):
        ids = [next(encoded) for _ in row]
        rows.append(
            {
                "input_ids": [token for text in ids for token in text],
                "lengths": [len(text) for text in ids],
                "labels": sentences.scores[index] if sentences.scores else 0.0,
            }
        )
    return rows


@dataclass(frozen=True)
class SentenceCollator:
    """Makes a batch of texts of the encoded records: those of a record stay together, in order."""

    pad_token_id: int

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            examples: As of `encode_sentences`.

        Returns:
            `input_ids`, `token_type_ids` and `attention_mask` [texts, tokens], padded on the right; `labels` [texts], the score
            of each text's record.
        """
        texts = []
        for example in examples:
            start = 0
            for length in example["lengths"]:
                ids = example["input_ids"][start : start + length]
                texts.append({"input_ids": ids, "token_type_ids": [0] * length, "labels": example["labels"]})
                start += length
        return PairCollator(self.pad_token_id, regression=True)(texts)
