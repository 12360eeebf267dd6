"""Retrieval and reranking data: what is read, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from lonas_edge.data.retrieval import Candidates, read_candidates, read_retrieval
from lonas_edge.errors import LonasEdgeError


def write(folder: Path) -> Path:
    """Two queries, of which one has no relevant passage, and two passages."""
    (folder / "qrels").mkdir()
    passages = [{"_id": "d0", "title": "Films", "text": "good ones"}, {"_id": "d1", "title": None, "text": "bad ones"}]
    for name, records in (("corpus", passages), ("queries", [{"_id": f"q{n}", "text": f"what {n}"} for n in range(2)])):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)) + "\n")
    (folder / "qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t2\nq0\td1\t0\nq1\td1\t-1\n")
    return folder


def test_read(tmp_path: Path) -> None:
    """A passage comes after its title; passages with a grade of 0 or less are not relevant."""
    read = read_retrieval(write(tmp_path))
    assert read.passages == {"d0": "Films good ones", "d1": "bad ones"}
    assert (read.queries, read.relevance) == ({"q0": "what 0"}, {"q0": {"d0": 2}})


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("corpus.jsonl", '"d1"', '"d0"', "line 2: _id 'd0' was there before; expected unique ones"),
        ("corpus.jsonl", '"_id": "d1"', '"id": "d1"', "line 2: expected the texts _id and text"),
        ("queries.jsonl", '{"_id"', '"_id"', "line 1: not JSON"),
        ("queries.jsonl", '"_id": "q0"', '"_id": 0', "line 1: expected the texts _id and text"),
        ("qrels/test.tsv", "query-id", "query", "expected the columns query-id, corpus-id, score, found query"),
        ("qrels/test.tsv", "\nq0\t", "\nq99\t", "line 2: 'q99' or 'd0' is not in queries.jsonl or corpus.jsonl"),
        ("qrels/test.tsv", "\t2\n", "\thigh\n", "line 2: invalid literal for int"),
        ("qrels/test.tsv", "\t2\n", "\n", "line 2: not enough values to unpack"),
        ("qrels/test.tsv", "\t2\n", "\t0\n", "no query has a passage with a score above 0"),
    ],
)
def test_refused(file: str, old: str, new: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path) / file
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(LonasEdgeError) as raised:
        read_retrieval(tmp_path)
    assert str(path) in str(raised.value) and message in str(raised.value)


FINE = {"query": "film", "positive": ["good", "good"], "negative": ["bad"]}


def test_candidates(tmp_path: Path) -> None:
    """A passage counts once; a query without passages of both kinds is dropped."""
    path = tmp_path / "reranking.jsonl"
    path.write_text(f"{json.dumps({**FINE, 'negative': []})}\n{json.dumps(FINE)}\n")
    assert read_candidates(path) == [Candidates("film", ("good",), ("bad",))]
    path.write_text(json.dumps({**FINE, "positive": []}))
    with pytest.raises(LonasEdgeError, match="no query has both positive and negative passages"):
        read_candidates(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({**FINE, "positive": "good"}, "expected a query, and lists of positive and negative passages"),
        ({"query": "film", "positive": ["good"]}, "expected a query, and lists"),
        ({**FINE, "negative": ["bad", "good"]}, "'good' is positive and negative"),
        ({**FINE, "query": " "}, "expected a query"),
        ("film", "expected a query"),
    ],
)
def test_bad_candidates(line: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "reranking.jsonl"
    path.write_text(f"{json.dumps(FINE)}\n{json.dumps(line)}\n")
    with pytest.raises(LonasEdgeError, match=f"line 2: {message}"):
        read_candidates(path)
