"""Retrieval data in BEIR's format (Thakur et al., NeurIPS 2021): `corpus.jsonl`, `queries.jsonl` and `qrels/test.tsv`.

Reranking data are one file, as sentence-transformers and MTEB have it: `{"query": "…", "positive": ["…"], "negative": ["…"]}`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

from typing_extensions import TypedDict  # pydantic takes the one of typing from Python 3.12 on only

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import decode_json, read_text
from lonas_edge.schema import field_faults

CORPUS, CANDIDATES = "corpus.jsonl", "reranking.jsonl"
_QUERIES, _RELEVANCE = "queries.jsonl", "qrels/test.tsv"
_COLUMNS = ["query-id", "corpus-id", "score"]
_GRADE = re.compile(r"-?[0-9]{1,9}")
_LIMIT = 2**31  # bytes; SciFact's corpus has 0.01 GB
_AGAIN = "Use the files as BEIR distributes them."


class _TextFields(TypedDict, total=False):
    title: str | None


class _Fields(_TextFields):
    _id: str
    text: str


class _CandidateFields(TypedDict):
    query: str
    positive: list[str]
    negative: list[str]


@dataclass(frozen=True)
class Retrieval:
    """Queries and passages by id, and for each query the passages that are relevant to it, with grades from 1 on.

    Queries without a relevant passage are not among them: no ranking is better than another.
    """

    queries: Mapping[str, str]
    passages: Mapping[str, str]
    relevance: Mapping[str, Mapping[str, int]]


def read_retrieval(folder: Path) -> Retrieval:
    """Read a directory in BEIR's format, and check every line."""
    faults: list[str] = []
    queries, passages = (_texts(folder / name, faults) for name in (_QUERIES, CORPUS))
    relevance = {} if faults else _relevance(folder / _RELEVANCE, queries, passages, faults)
    raise_all(f"{folder}: not retrieval data:", faults, _AGAIN)
    if not relevance:
        raise LonasEdgeError(f"{folder / _RELEVANCE}: no query has a passage with a score above 0")
    return Retrieval({name: queries[name] for name in relevance}, passages, relevance)


@dataclass(frozen=True)
class Candidates:
    """A query, its relevant passages, and passages that are not relevant; none of them is empty."""

    query: str
    positive: tuple[str, ...]
    negative: tuple[str, ...]


def read_candidates(path: Path) -> list[Candidates]:
    """Read and check reranking data.

    A passage counts once. Queries without both positive and negative passages are dropped: they have one order only.
    """
    faults: list[str] = []
    read = []
    for place, record in _records(path, faults, _CandidateFields):
        both = set(record["positive"]) & set(record["negative"])
        found = [f"{shortened(text)}: is positive and negative" for text in sorted(both)]
        texts = [("query", record["query"]), *((name, text) for name in ("positive", "negative") for text in record[name])]
        found += [f"{name}: has an empty text" for name, text in texts if not text.strip()]
        faults += [f"{place}: {fault}" for fault in found]
        positive, negative = (tuple(dict.fromkeys(record[name])) for name in ("positive", "negative"))
        read.append(Candidates(record["query"], positive, negative))
    raise_all(f"{path}: not reranking data:", faults, 'Expected {"query": "…", "positive": ["…"], "negative": ["…"]} a line.')
    kept = [each for each in read if each.positive and each.negative]
    if not kept:
        raise LonasEdgeError(f"{path}: no query has both positive and negative passages")
    return kept


def _lines(path: Path, faults: list[str]) -> list[tuple[str, str]]:
    """Lines that are not empty, each with its place for errors."""
    try:
        lines = read_text(path, "the retrieval data", _LIMIT).split("\n")
    except LonasEdgeError as error:
        faults.append(str(error))
        return []
    return [(f"{path.name} line {number}", line) for number, line in enumerate(lines, 1) if line.strip()]


def _records(path: Path, faults: list[str], fields: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Objects of a JSON Lines file with the right fields, each with its place for errors."""
    for place, line in _lines(path, faults):
        try:
            record = decode_json(line, place)
        except LonasEdgeError as error:
            faults.append(str(error))
            continue
        found = field_faults(fields, record)
        faults += [f"{place}: {fault}" for fault in found]
        if not found:
            yield place, record


def _texts(path: Path, faults: list[str]) -> dict[str, str]:
    """Texts by id, each after its title."""
    texts: dict[str, str] = {}
    for place, record in _records(path, faults, _Fields):
        if record["_id"] in texts:
            faults.append(f"{place}: _id {record['_id'][:50]!r} was there before; expected unique ones")
        else:
            texts[record["_id"]] = f"{record.get('title') or ''} {record['text']}".strip()
    return texts


def _relevance(
    path: Path, queries: Mapping[str, str], passages: Mapping[str, str], faults: list[str]
) -> dict[str, dict[str, int]]:
    relevance: dict[str, dict[str, int]] = {}
    rows = [(place, line.rstrip("\r").split("\t")) for place, line in _lines(path, faults)]
    if rows and rows[0][1] != _COLUMNS:
        faults.append(f"{rows[0][0]}: expected the columns {', '.join(_COLUMNS)}, found {', '.join(rows[0][1])[:200]}")
    for place, row in [] if faults else rows[1:]:
        if len(row) != len(_COLUMNS):
            faults.append(f"{place}: {len(row)} columns, expected {len(_COLUMNS)}")
            continue
        query, passage, grade = row
        unknown = [
            f"{place}: {column} {name[:50]!r} is not in {file}"
            for column, name, texts, file in zip(_COLUMNS, row, (queries, passages), (_QUERIES, CORPUS), strict=False)
            if name not in texts
        ]
        faults += unknown
        if not _GRADE.fullmatch(grade):
            faults.append(f"{place}: score {grade[:50]!r}: expected an integer")
        elif int(grade) > 0 and not unknown:
            relevance.setdefault(query, {})[passage] = int(grade)
    return relevance
