"""The kinds of data, and the files that hold them: a JSON list, JSON lines, Parquet."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tiny_models import tokenizer

from lonas_edge.data.conversations import Conversation
from lonas_edge.data.encoding import Prompting, encode
from lonas_edge.data.language import LanguageTask, read_examples
from lonas_edge.data.task import DataFile, DataOptions
from lonas_edge.data.templates import TEMPLATES, Example
from lonas_edge.data.texts import Texts
from lonas_edge.errors import LonasEdgeError

RECORDS: dict[str, tuple[dict[str, Any], Any]] = {
    "instruction": ({"instruction": "a", "input": "b", "output": "c", "text": "whatever"}, Example("a", "b", "c")),
    "messages": (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "source": "x"},
        Conversation((("user", "a"), ("assistant", "b"))),
    ),
    "text": ({"text": "the in a"}, Texts(("the in a",))),
}


@pytest.mark.parametrize("container", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize("kind", RECORDS)
def test_read(kind: str, container: str, tmp_path: Path) -> None:
    record, expected = RECORDS[kind]
    path = tmp_path / f"file.{container}"
    if container == "parquet":
        Dataset.from_list([record] * 3).to_parquet(path)
    else:
        path.write_text(json.dumps([record] * 3) if container == "json" else "\n".join([json.dumps(record)] * 3))
    task = LanguageTask().read([(path, 0.5)])
    assert (task.files, task.examples) == ((DataFile(path, kind, 3, 0.5),), (expected,) * 3)
    if isinstance(expected, Conversation) and container == "parquet":
        assert [example.place for example in task.examples] == [f"{path}, row {row}" for row in range(3)]


def test_learned_tokens(tmp_path: Path) -> None:
    """Two words with a blank, one word, and their end tokens."""
    path = tmp_path / "file.json"
    path.write_text(json.dumps([{"instruction": "a the in", "output": answer} for answer in ("the in", "a")]))
    assert LanguageTask(options=DataOptions(prompt="question")).read([(path, 1.0)]).learned_tokens(tokenizer()) == [
        (4, 4),
        (2, 2),
    ]


@pytest.mark.parametrize("content", [b"", b"PAR1 cut off"])
def test_unreadable_parquet(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file.parquet"
    path.write_bytes(content)
    with pytest.raises(LonasEdgeError, match=rf"{path}: pyarrow cannot read it"):
        read_examples(path)


def test_parquet_of_other_columns_or_no_rows(tmp_path: Path) -> None:
    Dataset.from_list([{"question": "a"}]).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(LonasEdgeError, match="row 0: found the fields question"):
        read_examples(tmp_path / "other.parquet")
    Dataset.from_dict({"text": []}).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(LonasEdgeError, match="holds no examples"):
        read_examples(tmp_path / "empty.parquet")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("[[]]", "record 1: found list"),
    ],
)
def test_other_formats(content: str, fault: str, tmp_path: Path) -> None:
    """The error shows all kinds of records."""
    path = tmp_path / "file.json"
    path.write_text(content)
    with pytest.raises(LonasEdgeError) as caught:
        read_examples(path)
    for text in (f"{path}: data of no known kind:\n  - {fault}", *(f'\n  {{"{name}": ' for name in RECORDS)):
        assert text in str(caught.value)


@pytest.mark.parametrize("wrong", [{"text": ""}, {"text": 7}, {"instruction": "a", "output": "b"}, 7])
def test_wrong_texts(wrong: Any, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(json.dumps([{"text": "a"}, wrong]))
    with pytest.raises(LonasEdgeError, match=r"not text data:\s+- record 2: .*\s+Expected a JSON list of {\"text\": \"…\"}"):
        read_examples(path)


def test_a_text_is_learned_in_pieces() -> None:
    by = tokenizer()
    ids = [*by("the in a on")["input_ids"], 1]
    assert len(ids) == 7
    (whole,) = encode([Texts(("the in a on",))], Prompting(TEMPLATES["alpaca"]), by, 50)
    assert whole == {"input_ids": ids, "labels": ids}
    pieces = encode([Texts(("the in a on",))], Prompting(TEMPLATES["alpaca"]), by, 4)
    assert [piece["input_ids"] for piece in pieces] == [ids[:4], ids[4:]]
    assert len(encode([Texts(("the in a on",))], Prompting(TEMPLATES["alpaca"]), by, 6)) == 1  # a token alone predicts nothing
