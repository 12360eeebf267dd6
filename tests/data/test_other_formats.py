"""Formats of other tools: ShareGPT, prompt and completion, OpenAI's content parts and roles, CSV."""

import json
from pathlib import Path
from typing import Any

import pytest

from lonas_edge.data.conversations import Conversation
from lonas_edge.data.language import read_examples
from lonas_edge.data.templates import Example
from lonas_edge.data.texts import COSINES, SCORED, Texts, labels_of, read_texts
from lonas_edge.errors import LonasEdgeError

ASKED = Conversation((("system", "Be brief."), ("user", "Why?"), ("assistant", "So.")))
PARTS = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]


def written(tmp_path: Path, content: Any, name: str = "data.jsonl") -> Path:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content) + "\n")
    return path


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": [
            {"from": "system", "value": "Be brief."}, {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."},
        ]},
        {"system": "Be brief.", "conversations": [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]},
        {"system": "Be brief.", "messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
        {"prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}],
         "completion": [{"role": "assistant", "content": "So."}]},
        {"messages": [
            {"role": "developer", "content": PARTS},
            {"role": "user", "content": "Why?"},
            {"role": "assistant", "content": "So."},
        ], "completion": "another field"},
    ],
)  # fmt: skip
def test_conversations_of_other_tools(tmp_path: Path, record: dict[str, Any]) -> None:
    kind, examples = read_examples(written(tmp_path, record))
    assert (kind, examples) == ("messages", [ASKED])


def test_prompt_and_completion(tmp_path: Path) -> None:
    _, examples = read_examples(written(tmp_path, {"prompt": "Why?", "completion": "So."}))
    assert examples == [Conversation((("user", "Why?"), ("assistant", "So.")))]


@pytest.mark.parametrize(
    ("record", "problem"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "message 0: a part of type 'image_url'"),
        ({"completion": "So."}, "line 1: message 0: no text in 'content'"),
        (
            {"conversations": [{"from": "bot", "value": "So."}]},
            "message 0: unknown role 'bot'; expected system",
        ),
        ({"conversations": "So."}, "'messages' is not a list of messages"),
    ],
)
def test_what_is_refused(tmp_path: Path, record: dict[str, Any], problem: str) -> None:
    with pytest.raises(LonasEdgeError) as error:
        read_examples(written(tmp_path, record))
    assert problem in str(error.value)


def test_csv(tmp_path: Path) -> None:
    text = 'instruction,input,output\n"Add, please",2 and 3,5\nSay it,,"two\nlines"\n'
    kind, examples = read_examples(written(tmp_path, text, "data.csv"))
    assert (kind, examples) == ("instruction", [Example("Add, please", "2 and 3", "5"), Example("Say it", "", "two\nlines")])

    kind, pairs = read_texts(written(tmp_path, "sentence1,sentence2,score\na b,c,0.25\n", "pairs.csv"), COSINES)
    assert (kind, pairs) == (SCORED, [Texts(("a b", "c"), 0.25)])


def test_csv_with_a_long_text(tmp_path: Path) -> None:
    """Python's csv has a limit of 131,072 characters."""
    assert read_examples(written(tmp_path, "text\n" + "a" * 140_000 + "\n", "data.csv"))[1] == [Texts(("a" * 140_000,))]


def test_half_of_a_character(tmp_path: Path) -> None:
    """As JavaScript's `slice` cuts an emoji; a whole one is fine."""
    fine, cut = '{"text": "\\ud83d\\ude00"}\n', '{"text": "\\ud83d"}\n'
    assert read_examples(written(tmp_path, fine))[1] == [Texts(("\U0001f600",))]
    with pytest.raises(LonasEdgeError, match="line 2: a text has half of a character"):
        read_examples(written(tmp_path, fine + cut))


def test_csv_of_pandas_and_labels_as_text(tmp_path: Path) -> None:
    """A column of row numbers has no name; a class may be named by a digit, which is no index then."""
    _, examples = read_examples(written(tmp_path, ",instruction,output\n0,a,b\n", "data.csv"))
    assert examples == [Example("a", "", "b")]
    pairs = written(tmp_path, "sentence1,sentence2,label\na,b,1\n", "pairs.csv")
    assert [read_texts(pairs, labels_of(names))[1][0].label for names in (("1", "2"), ("no", "yes"))] == [0, 1]


def test_csv_with_an_open_quote(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"data\.csv: csv cannot read it"):
        read_examples(written(tmp_path, 'instruction,output\na,b\nc,"d\ne,f\n', "data.csv"))


def test_csv_with_an_unquoted_comma(tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError) as error:
        read_examples(written(tmp_path, "prompt,completion\na,b\nYes, please,c\nd\n", "data.csv"))
    assert "lines 3 and 4: another number of values" in str(error.value)
    assert "Expected 2 values" in str(error.value)
