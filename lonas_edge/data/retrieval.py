"""Retrieval data in BEIR's format (Thakur et al., NeurIPS 2021): `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`.

Reranking data are one file, as sentence-transformers and MTEB have it: `{"query": "…", "positive": ["…"], "negative": ["…"]}`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lonas_edge.data.records import read_records
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_text

CORPUS, CANDIDATES = "corpus.jsonl", "reranking.jsonl"
_QUERIES, _RELEVANCE = "queries.jsonl", "qrels/test.tsv"
_COLUMNS = ["query-id", "corpus-id", "score"]
_AGAIN = "Use the files as BEIR distributes them."


@dataclass(frozen=True)
class Retrieval:
    """Queries and passages by id, and for each query the passages that are relevant to it, with grades from 1 on.

    Queries without a relevant passage are not among them: no ranking is better than another.
    """

    queries: Mapping[str, str]
    passages: Mapping[str, str]
    relevance: Mapping[str, Mapping[str, int]]


@dataclass(frozen=True)
class Candidates:
    """A query, its relevant passages, and passages that are not relevant; none of them is empty."""

    query: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def read_retrieval(folder: Path) -> Retrieval:
    """Read and check a directory in BEIR's format."""
    queries, passages = _texts(folder / _QUERIES), _texts(folder / CORPUS)
    relevance = _relevance(folder / _RELEVANCE, queries, passages)
    return Retrieval({name: queries[name] for name in relevance}, passages, relevance)


def _texts(path: Path) -> dict[str, str]:
    """Texts by id, each after its title."""
    texts: dict[str, str] = {}
    errors = []
    for place, record in read_records(path):
        name, text = (record.get("_id"), record.get("text")) if isinstance(record, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(text, str):
            errors.append(f"{place}: expected the texts _id and text")
        elif name in texts:
            errors.append(f"{place}: _id {name[:50]!r} was there before; expected unique ones")
        else:
            texts[name] = f"{record.get('title') or ''} {text}".strip()
    raise_all(f"{path}: not retrieval data:", errors, _AGAIN)
    return texts


def _relevance(path: Path, queries: Mapping[str, str], passages: Mapping[str, str]) -> dict[str, dict[str, int]]:
    rows = [line.split("\t") for line in read_text(path, "the retrieval data").split("\n")]
    if rows[0] != _COLUMNS:
        raise LonasEdgeError(f"{path}: expected the columns {', '.join(_COLUMNS)}, found {', '.join(rows[0])[:200]}")
    relevance: dict[str, dict[str, int]] = {}
    errors = []
    for line, row in enumerate(rows[1:], 2):
        if row == [""]:
            continue
        try:
            query, passage, grade = row
            if query not in queries or passage not in passages:
                raise ValueError(f"{query[:50]!r} or {passage[:50]!r} is not in {_QUERIES} or {CORPUS}")
            if int(grade) > 0:
                relevance.setdefault(query, {})[passage] = int(grade)
        except ValueError as error:
            errors.append(f"line {line}: {error}; expected {', '.join(_COLUMNS)}")
    raise_all(f"{path}: not retrieval data:", errors, _AGAIN)
    if not relevance:
        raise LonasEdgeError(f"{path}: no query has a passage with a score above 0")
    return relevance


def read_candidates(path: Path) -> list[Candidates]:
    """Read and check reranking data.

    A passage counts once. Queries without both positive and negative passages are dropped: they have one order only.
    """
    read, errors = [], []
    for place, record in read_records(path):
        try:
            query, positive, negative = record["query"], record["positive"], record["negative"]
            texts = [query, *positive, *negative]
        except (KeyError, TypeError):
            texts = []
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts) or isinstance(positive, str):
            errors.append(f"{place}: expected a query, and lists of positive and negative passages, none of them empty")
        elif both := set(positive) & set(negative):
            errors.append(f"{place}: {min(both)[:50]!r} is positive and negative")
        else:
            read.append(Candidates(query, tuple(dict.fromkeys(positive)), tuple(dict.fromkeys(negative))))
    raise_all(f"{path}: not reranking data:", errors, 'Expected {"query": "…", "positive": ["…"], "negative": ["…"]} a line.')
    kept = [each for each in read if each.positive and each.negative]
    if not kept:
        raise LonasEdgeError(f"{path}: no query has both positive and negative passages")
    return kept
