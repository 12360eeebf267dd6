"""Data of embedding models: texts, pairs, triplets and scored pairs, in the formats of sentence-transformers.

Classifiers and rerankers take them as inputs. They learn no labels of them, but can be measured on these.

The names of its fields tell what a record is. `prompt` next to `text` is the name of one of the model's prompts. TSV files are
GLUE's: scored pairs of STS-B, and the texts of the other tasks, for an embedding model without their classes.
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
_LARGEST = 1e30  # absolute value of a reranker's score
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
        scores: Cosine of each scored pair, from -1 to 1; None for other kinds. For a classifier the class number or score of
            each record, if it has labels.
        prompts: Name of the prompt of each single text; None for the model's default.
    """

    path: Path
    kind: str
    rows: Sequence[tuple[str, ...]]
    scores: Sequence[float] | None = None
    prompts: Sequence[str | None] | None = None

    @property
    def ranked(self) -> bool:
        """Whether there are scores that differ: equal ones have no correlation with anything."""
        return len(set(self.scores or ())) > 1

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


def read_sentences(path: Path, outputs: Sequence[str] | None = None) -> Sentences:
    """Read texts, pairs, triplets or scored pairs: JSON, JSON Lines or Parquet, or the TSV file of a GLUE task.

    Args:
        path: The file.
        outputs: Names of a classifier's outputs: texts and pairs may have labels, which are numbers or names of classes, or
            scores of one output. Empty to ignore labels. None for an embedding model: scores of pairs are cosines.
    """
    if path.suffix.lower() == ".tsv":
        return _labelled_table(path, outputs) if outputs else _table(path)
    items, problems = read_records(path)
    fields = _fields(items[0][1], outputs) if items else None
    if items and not fields:
        problems.append(f"{items[0][0]}: found {found_fields(items[0][1])}")
    if fields:
        faults = ((place, _fault(item, fields, outputs)) for place, item in items)
        problems += [f"{place}: {fault}" for place, fault in faults if fault]
    raise_all(f"{path}: not sentences:", problems, _EXPECTED)
    if not fields:
        raise LonasEdgeError(f"{path}: holds no examples")
    texts, score = fields
    rows = [tuple(item[name] for name in texts) for _, item in items]
    scores = [_number(item[score], outputs) or 0.0 for _, item in items] if score else None
    prompts = [item.get(PROMPT) for _, item in items] if texts == (TEXT,) else None
    return Sentences(path, SCORED if score and len(texts) > 1 else _KINDS[len(texts)], rows, scores, prompts)


def _table(path: Path) -> Sentences:
    task = task_of(path, None, option=False)
    pairs = task.read(path)
    rows = [(pair.first,) if pair.second is None else (pair.first, pair.second) for pair in pairs]
    if task.regression:
        return Sentences(path, SCORED, rows, [pair.label / task.most for pair in pairs])
    return Sentences(path, TEXT, [(text,) for row in rows for text in row])


def _labelled_table(path: Path, outputs: Sequence[str]) -> Sentences:
    """Read a GLUE task for a classifier, which has its classes by name in any order, or else in the task's order."""
    task = task_of(path, None, option=False)
    if misfit := task.misfit(len(outputs)):
        raise LonasEdgeError(f"{path}: does not fit the model: {misfit}. Pass data of the task that it was trained on.")
    pairs = task.numbered(task.read(path), outputs)
    rows = [(pair.first,) if pair.second is None else (pair.first, pair.second) for pair in pairs]
    return Sentences(path, SCORED if len(rows[0]) > 1 else TEXT, rows, [pair.label for pair in pairs])


def _fields(item: Any, outputs: Sequence[str] | None) -> _Fields | None:
    """Names of a record's texts, by their roles, and of its score; None if it is no such record."""
    if not isinstance(item, dict):
        return None
    labelled = bool(outputs) or (outputs is None and TEXT not in item)
    # a classifier's own output has the class as "label", and its probability as "score"
    names = _SCORES[::-1] if outputs and len(outputs) > 1 else _SCORES
    score = next((name for name in names if name in item), None) if labelled else None
    if TEXT in item:
        return (TEXT,), score
    texts = tuple(found for names in _ROLES if (found := next((name for name in names if name in item), None)))
    complete = [any(name in role for name in texts) for role in _ROLES]
    if complete[:2] != [True, True] or (score and len(texts) != 2):
        return None
    return texts, score


def _number(value: Any, outputs: Sequence[str] | None) -> float | None:
    """Read a cosine, or for a classifier a score, or a class by its name or number; None if it is none."""
    if isinstance(value, str):
        names = [name.casefold() for name in outputs or ()]
        return names.index(value.casefold()) if len(names) > 1 and value.casefold() in names else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if outputs and len(outputs) > 1:
        return int(value) if value in range(len(outputs)) else None
    most = _LARGEST if outputs else 1
    return float(value) if -most <= value <= most else None


def _expected_number(outputs: Sequence[str] | None) -> str:
    if outputs is None:
        return "a cosine from -1 to 1"
    return f"a class: {', '.join(outputs)}, or 0 to {len(outputs) - 1}" if len(outputs) > 1 else "a finite number"


def _fault(item: Any, fields: _Fields, outputs: Sequence[str] | None) -> str | None:
    """Describe how a record differs from the first one, which has these fields; None if it does not."""
    texts, score = fields
    if not isinstance(item, dict):
        return f"expected an object, found {type(item).__name__}"
    empty = [name for name in texts if not isinstance(item.get(name), str) or not item[name].strip()]
    if empty:
        return f"no text in {' and '.join(map(repr, empty))}"
    if _fields(item, outputs) != fields:
        return (
            f"expected the fields {', '.join(filter(None, (*texts, score)))}, as in the first record; found {', '.join(item)}"
        )
    if score and _number(item[score], outputs) is None:
        return f"{score} {str(item[score])[:50]}: expected {_expected_number(outputs)}"
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
