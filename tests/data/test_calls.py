"""Function calls: definitions and calls reach the chat template, and the calls are learned."""

import json
import random
import runpy
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, FORGETFUL_TOOLS, LISTED, TOOLS
from datasets import Dataset
from tiny_models import tokenizer

from lonas_edge.data.conversations import Conversation, encode_conversation
from lonas_edge.data.language import question_and_reference, read_examples
from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.answer_metrics import choose_metric

DEFINED = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
CALL = {"name": "f", "arguments": {"a": "the"}}


def record(call: Any, **more: Any) -> dict[str, Any]:
    messages = [
        {"role": "user", "content": "the in"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "on"},
        {"role": "assistant", "content": "er in"},
    ]
    return {"messages": messages, "tools": DEFINED, **more}


def read(tmp_path: Path, *records: Any) -> list[Any]:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return read_examples(path)[1]


def test_calls_in_the_forms_of_openai_and_of_transformers(tmp_path: Path) -> None:
    """Arguments as text, as OpenAI has them, or as an object; definitions as text, as Parquet files need them."""
    forms = [
        {"type": "function", "function": {"name": "f", "arguments": '{"a": "the"}'}},
        {"function": CALL},
        CALL,
    ]
    read_back = read(tmp_path, *map(record, forms), record(CALL, tools=json.dumps(DEFINED)))
    assert len(set(read_back)) == 1
    assert read(tmp_path, read_back[0].record()) == read_back[:1]


@pytest.mark.parametrize(
    ("chat", "called"),
    [(TOOLS, '<call>{"name": "f", "arguments": {"a": "the"}}</call>'), (LISTED, f"<|call|>[{json.dumps(CALL)}]")],
)
def test_a_call_is_learned(tmp_path: Path, chat: str, called: str) -> None:
    """The template renders definitions, call and result; both turns of the assistant are learned."""
    [conversation] = read(tmp_path, record({"function": CALL}))
    by = tokenizer()
    text = conversation.render(by, chat)
    assert '"parameters"' in text and f"<|assistant|>{called}</s>" in text and "<|tool|>on</s>" in text
    ids, said = encode_conversation(conversation, chat, by)
    assert by.decode([token for token, own in zip(ids, said, strict=True) if own]) == f"{called}</s>er in</s>"


def test_ids_and_names_reach_the_template(tmp_path: Path) -> None:
    """A function without parameters or result has empty texts in OpenAI's form."""
    given = record({"id": "abc123def", "type": "function", "function": {"name": "f", "arguments": ""}})
    given["messages"][2] = {"role": "tool", "content": "", "name": "f", "tool_call_id": "abc123def"}
    [conversation] = read(tmp_path, given)
    made = conversation.record()["messages"]
    assert made[1]["tool_calls"] == [{"id": "abc123def", "type": "function", "function": {"name": "f", "arguments": {}}}]
    assert made[2] == given["messages"][2]
    assert read(tmp_path, conversation.record()) == [conversation]
    [conversation] = read(tmp_path, {"messages": given["messages"][:2], "tools": DEFINED})
    assert json.loads(conversation.reference) == [{"name": "f", "arguments": {}}]


def test_a_call_that_is_rendered_differently_as_the_last_turn(tmp_path: Path) -> None:
    [conversation] = read(tmp_path, record({"function": CALL}))
    by = tokenizer()
    ids, said = encode_conversation(conversation, FORGETFUL_TOOLS, by)
    called = f"<call>{json.dumps(CALL)}</call></s>"
    assert by.decode([token for token, own in zip(ids, said, strict=True) if own]) == f"{called}thinking er in</s>"


def test_the_reference_is_the_call(tmp_path: Path) -> None:
    turns = record({"function": CALL})["messages"][:2]
    [conversation] = read(tmp_path, {"messages": turns, "tools": DEFINED})
    assert json.loads(question_and_reference(conversation)[1]) == [CALL]


@pytest.mark.parametrize("chat", [TOOLS, LISTED])
def test_what_a_template_writes_is_the_call(tmp_path: Path, chat: str) -> None:
    """Of generated requests: the metric reads the call from the learned turn, and another call is wrong."""
    made = runpy.run_path(str(Path(__file__).parents[2] / "scripts/calls.py"))["conversation"]
    conversations = read(tmp_path, *(made(random.Random(seed)) for seed in range(12)))
    references = [question_and_reference(each)[1] for each in conversations]
    score = choose_metric("auto", references).figures["json"]
    by = tokenizer()
    turns = [each.render(by, chat)[len(each.render(by, chat, 1, with_prompt=True)) :] for each in conversations]
    assert [score(*pair) for pair in zip(turns, references, strict=True)] == [1.0] * 12
    assert [score(*pair) for pair in zip(turns, references[1:] + references[:1], strict=True)] == [0.0] * 12


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        (record({"function": {"name": "f", "arguments": "a"}}), "message 1: a call in 'tool_calls' without name and arguments"),
        (record({"function": {"arguments": {}}}), "message 1: a call in 'tool_calls' without name and arguments"),
        (record(CALL, tools={"f": 1}), "'tools' is not a list of functions"),
        (record(CALL, tools="f"), "'tools' is not a list of functions"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "tool_calls": CALL}]},
            "message 1: 'tool_calls' is not a list of calls",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "function_call": CALL}]},
            "message 1: 'function_call' is not supported",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, wrong: Any, problem: str) -> None:
    with pytest.raises(LonasEdgeError) as error:
        read(tmp_path, wrong)
    assert f"line 1: {problem}" in str(error.value)


def test_calls_as_json_in_a_text(tmp_path: Path) -> None:
    """As `tools`, in Parquet files; no calls may be `[]`."""
    turns = record(CALL)["messages"]
    turns[1]["tool_calls"] = json.dumps([CALL])
    turns[3]["tool_calls"] = "[]"
    assert read(tmp_path, {"messages": turns, "tools": DEFINED}) == read(tmp_path, record(CALL))


def test_parquet_has_the_arguments_of_other_functions_as_nulls(tmp_path: Path) -> None:
    other = {"function": {"name": "g", "arguments": {"b": "on"}}}
    Dataset.from_list([record({"function": CALL}), record(other)]).to_parquet(tmp_path / "data.parquet")
    calls = [json.loads(each.calls[1]) for each in read_examples(tmp_path / "data.parquet")[1]]
    assert calls == [[CALL], [other["function"]]]


def test_a_template_that_leaves_out_results() -> None:
    """One that renders any role is used; one that knows user and assistant only would drop the result of a call."""
    conversation = Conversation((("user", "the"), ("tool", "on"), ("assistant", "in")), "data.jsonl, line 1")
    assert "<|tool|>on</s>" in conversation.render(tokenizer(), CHATML)
    strict = "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.content }}{% endif %}{% endfor %}"
    with pytest.raises(LonasEdgeError, match="line 1: the model's chat template leaves out messages of the role 'tool'"):
        conversation.render(tokenizer(), strict)


def test_a_template_without_functions() -> None:
    conversation = Conversation((("user", "the"), ("assistant", "in")), "data.jsonl, line 1", json.dumps(DEFINED))
    with pytest.raises(LonasEdgeError, match="line 1: the model's chat template has no 'tools'"):
        encode_conversation(conversation, CHATML, tokenizer())
    with pytest.raises(LonasEdgeError, match="line 1: the model's chat template leaves out the function 'f'"):
        conversation.render(tokenizer(), CHATML + "{% if messages[0].tools %}{{ messages[0].tools }}{% endif %}")
