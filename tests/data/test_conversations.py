"""Conversations: the assistant's turns are learned, in the model's own chat template."""

import json
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, FORGETFUL, INSTRUCT, MARKED, MARKED_FORGETFUL, MOVED, PHI
from tiny_models import tokenizer
from tokenizers.processors import TemplateProcessing

from lonas_edge.data.conversations import Conversation, chat_as_template, chat_template_of, encode_conversation
from lonas_edge.data.encoding import Prompting, encode
from lonas_edge.data.language import read_examples
from lonas_edge.data.templates import TEMPLATES, Example
from lonas_edge.errors import LonasEdgeError

TURNS = (("user", "the in"), ("assistant", "a the"), ("user", "on{ }"), ("assistant", "er in"))
WITH_SYSTEM = (("system", "Be it."), *TURNS)


def messages(turns: Any) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def learned(ids: list[int], said: list[bool]) -> str:
    """The learned text; runs are separated by |."""
    text, before = "", False
    for token, own in zip(ids, said, strict=True):
        text += ("|" if own and not before and text else "") + (tokenizer().decode([token]) if own else "")
        before = own
    return text


@pytest.mark.parametrize("turns", [TURNS, WITH_SYSTEM, TURNS[:2]])
@pytest.mark.parametrize("chat", [CHATML, MARKED, INSTRUCT])
def test_the_assistant_s_turns_are_learned(chat: str, turns: Any) -> None:
    """The tokens are those of transformers; each answer is learned with the token that ends it."""
    by = tokenizer()
    if chat == INSTRUCT and turns == WITH_SYSTEM:
        return
    ids, said = encode_conversation(Conversation(turns), chat, by)
    assert ids == by.apply_chat_template(messages(turns), chat_template=chat, tokenize=True, return_dict=True)["input_ids"]
    lead = " " if chat == INSTRUCT else ""
    assert learned(ids, said) == "|".join(f"{lead}{content}</s>" for role, content in turns if role == "assistant")
    (example,) = encode([Conversation(turns)], Prompting(TEMPLATES["alpaca"], chat), by, 500)
    assert example == {"input_ids": ids, "labels": [token if own else -100 for token, own in zip(ids, said, strict=True)]}
    assert encode([Conversation(turns)], Prompting(TEMPLATES["alpaca"], chat), by, len(ids) - 1) == []


@pytest.mark.parametrize("chat", [CHATML, MARKED])
def test_a_turn_that_ends_with_another_token_than_eos(chat: str) -> None:
    """As in base models with a template for chats: EOS follows, where clients stop. One that ends with a question has none."""
    by, chat = tokenizer(), chat.replace("eos_token", "'<end>'").replace("</s>", "<end>")
    plain = by.apply_chat_template(messages(TURNS), chat_template=chat, tokenize=True, return_dict=True)["input_ids"]
    ids, said = encode_conversation(Conversation(TURNS), chat, by)
    assert by.eos_token_id not in plain and ids == [*plain, by.eos_token_id] and said[-1]
    asked = (*TURNS, ("user", "the"))
    ids, said = encode_conversation(Conversation(asked), chat, by)
    assert by.eos_token_id not in ids and not said[-1]


def test_marked_turns() -> None:
    """Text outside of the marks is not learned, even if the template renders earlier turns differently."""
    ids, said = encode_conversation(Conversation(TURNS), MARKED_FORGETFUL, tokenizer())
    assert "thinking" in tokenizer().decode(ids)
    assert learned(ids, said) == "a the</s>|er in</s>"


@pytest.mark.parametrize(
    ("chat", "turns", "answers"),
    [
        (FORGETFUL, TURNS, "a the</s>|thinking er in</s>"),
        (PHI, TURNS, "a the<end>|er in<end></s>"),
        (MOVED, WITH_SYSTEM, " a the</s>| er in</s>"),
        (MOVED, (*TURNS[:2], ("user", "a the"), ("assistant", " a the ")), " a the</s>| a the</s>"),
    ],
)
def test_turns_that_are_rendered_differently(chat: str, turns: Any, answers: str) -> None:
    ids, said = encode_conversation(Conversation(turns), chat, tokenizer())
    assert learned(ids, said) == answers


def test_turns_that_cannot_be_found() -> None:
    """All such conversations are listed."""
    by, fine = tokenizer(), Conversation(TURNS[:1])
    bad = [Conversation(TURNS, f"data.jsonl, line {line}") for line in (3, 8)]
    with pytest.raises(LonasEdgeError) as raised:
        encode([fine, *bad], Prompting(TEMPLATES["alpaca"], FORGETFUL.replace("thinking ", "{{ m.content }}")), by, 500)
    assert "data.jsonl, lines 3 and 8: message 1: the chat template renders this turn differently" in str(raised.value)
    with pytest.raises(LonasEdgeError, match=r"line 1: the chat template \(chat_template\.jinja, .*\) refuses .*: no system"):
        encode_conversation(Conversation(WITH_SYSTEM, "line 1"), INSTRUCT, by)


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize("chat", [CHATML, INSTRUCT, MARKED])
def test_as_a_plain_template(chat: str, adds_bos: bool) -> None:
    """An instruction has the same tokens as the conversation of a question and its answer."""
    by = tokenizer()
    if adds_bos:
        by.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
        if chat != INSTRUCT:
            return  # the chat template has none: it is the tokenizer's own
    template = chat_as_template(chat, by, Path("base"))
    assert template.name == "chat"
    for context, question in (("", "the {in}"), ("on a", "the {in}\n\non a")):
        example = Example("the {in}", context, "er {on}")
        (encoded,) = encode([example], Prompting(template), by, 500)
        turns = messages((("user", question), ("assistant", "er {on}")))
        ids = by.apply_chat_template(turns, chat_template=chat, tokenize=True, return_dict=True)["input_ids"]
        ids = ids[: len(ids) - ids[::-1].index(1)]  # to the token that ends the turn
        assert encoded["input_ids"] == ids
        answer = [token for token in encoded["labels"] if token != -100]
        assert by.decode(answer) == ("" if chat != INSTRUCT else " ") + "er {on}</s>"


def test_no_chat_template() -> None:
    with pytest.raises(LonasEdgeError, match=r"base: the model has no chat template \(chat_template.jinja"):
        chat_template_of(tokenizer(), Path("base"))
    by = tokenizer()
    by.chat_template = CHATML
    assert chat_template_of(by, Path("base")) == CHATML
    with pytest.raises(LonasEdgeError, match="does not render a question and its answer one after the other"):
        chat_as_template("{{ messages[0].content }} {{ messages[0].content }}", by, Path("base"))


GOOD = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ([GOOD[0]], "no message of the assistant"),
        ([{"role": "poet", "content": "a"}, GOOD[1]], "message 0: unknown role 'poet'; expected system, user, assistant, tool"),
        ([GOOD[0], {"role": "assistant", "content": None}], "message 1: no text in 'content'"),
        ([*GOOD, {"role": "system", "content": "c"}], "message 2: a system message must be the first"),
        ([GOOD[1], *GOOD], "the assistant speaks first"),
        ([GOOD[0], {**GOOD[1], "weight": 0}], "message 1: 'weight' 0 is not supported"),
    ],
)
def test_wrong_messages_are_named_by_their_line(tmp_path: Path, wrong: Any, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in ({"messages": GOOD}, {"messages": wrong}, {"instruction": "a"})))
    with pytest.raises(LonasEdgeError) as raised:
        read_examples(path)
    assert f"{path}: not messages data:\n  - line 2: {message}" in str(raised.value)
    assert "line 3: 'messages' is not a list of messages" in str(raised.value)
    assert 'Expected a JSON list of {"messages": [{"role": "user"' in str(raised.value)


@pytest.mark.parametrize(("field", "value"), [("reasoning_content", "hm"), ("thinking", "hm")])
def test_fields_of_an_answer_that_would_be_dropped(field: str, value: Any, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    refused = [{"messages": [GOOD[0], {"role": "assistant", "content": text, field: value}]} for text in ("b", "")]
    empty = [{"messages": [{**GOOD[0], field: "a"}, {**GOOD[1], field: nothing}]} for nothing in (None, "", [])]
    path.write_text("\n".join(json.dumps(record) for record in (*empty, *refused)))
    with pytest.raises(LonasEdgeError) as raised:
        read_examples(path)
    problem = f"lines 4 and 5: message 1: '{field}' is not supported; move it into 'content', or remove it"
    assert f"  - {problem}\n" in str(raised.value)
