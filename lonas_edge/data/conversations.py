"""Conversations: `messages` and `tools` in the model's own chat template; the assistant's turns are learned.

A template is Jinja, rendered by transformers in its sandbox. Where it marks the assistant's turns (`{% generation %}`), those
marks are used, as TRL does. Otherwise a turn is the text that it adds to the rendered conversation so far, with the prompt for
an answer. The text is split, not the tokens, so that the tokens are those of the whole conversation.
"""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lonas_edge.data.templates import CHAT, Template
from lonas_edge.errors import LonasEdgeError, one_line

ROLES = ("system", "user", "assistant", "tool")
_OTHER_ROLES = {"human": "user", "gpt": "assistant", "developer": "system"}  # of ShareGPT and OpenAI
_UNREAD = ("reasoning_content", "thinking", "function_call")  # of an answer; templates render them, but they are not read here
_RESULT = ("tool_call_id", "name")  # which call a message of the role 'tool' answers
_CALL = '{"function": {"name": "…", "arguments": {…}}}'
_MARKS = re.compile(r"\{%-?\s*generation\b")
_ASKED, _ANSWERED = "QzAskedzQ", "QzAnsweredzQ"  # not part of any template


@dataclass(frozen=True)
class Conversation:
    """Messages (role, content), with functions that the model may call.

    Attributes:
        messages: Role and content of each; the content is empty where there are calls instead.
        place: Their position in the file, for errors.
        tools: The definitions of functions, as a JSON list, or empty.
        calls: The calls of each message, as a JSON list of name, arguments and id, or empty.
        results: Of each message the fields that name the call which it answers, as a JSON object, or empty.
    """

    messages: tuple[tuple[str, str], ...]
    place: str = field(default="", compare=False)
    tools: str = ""
    calls: tuple[str, ...] = ()
    results: tuple[str, ...] = ()

    @classmethod
    def of(cls, record: Mapping[str, Any], place: str) -> "Conversation":
        """Make a conversation of a checked record."""
        messages = record["messages"]
        calls = tuple(json.dumps(each["tool_calls"]) if each.get("tool_calls") else "" for each in messages)
        tools = json.dumps(record["tools"]) if record.get("tools") else ""
        turns = tuple((each["role"], each["content"]) for each in messages)
        named = [{name: each[name] for name in _RESULT if each.get(name) and each["role"] == "tool"} for each in messages]
        results = tuple(json.dumps(fields) if fields else "" for fields in named)
        return cls(turns, place, tools, calls if any(calls) else (), results if any(results) else ())

    @property
    def last_answer(self) -> int:
        """Index of the assistant's last message."""
        return max(index for index, (role, _) in enumerate(self.messages) if role == "assistant")

    def record(self) -> dict[str, Any]:
        """As a record of a data file."""
        messages: list[dict[str, Any]] = [{"role": role, "content": content} for role, content in self.messages]
        for message, calls in zip(messages, self.calls, strict=False):
            for call in json.loads(calls or "[]"):
                named = {"id": call.pop("id")} if "id" in call else {}
                message.setdefault("tool_calls", []).append({"type": "function", **named, "function": call})
        for message, fields in zip(messages, self.results, strict=False):
            message.update(json.loads(fields or "{}"))
        return {"messages": messages, **({"tools": self.functions} if self.tools else {})}

    @property
    def functions(self) -> list[Any] | None:
        """The definitions of functions, for a chat template."""
        return json.loads(self.tools) if self.tools else None

    @property
    def reference(self) -> str:
        """The assistant's last message; calls as a JSON list of name and arguments."""
        calls = json.loads(self.calls[self.last_answer] or "[]") if self.calls else []
        plain = [{"name": call["name"], "arguments": call["arguments"]} for call in calls]
        return json.dumps(plain) if plain else self.messages[self.last_answer][1]

    def render(self, tokenizer: Any, chat: str, count: int | None = None, with_prompt: bool = False) -> str:
        """Render the first `count` messages, and the generation prompt if `with_prompt`."""
        messages = self.record()["messages"][:count]
        for known, used in (("tools", self.tools), ("tool_calls", any(self.calls))):
            if used and known not in chat:
                raise LonasEdgeError(f"{self.place}: the model's chat template has no {known!r}: the model would not see them.")
        results = [{**each, "content": _ASKED} if each["role"] == "tool" else each for each in messages]
        if results != messages and _ASKED not in self._apply(results, tokenizer, chat, with_prompt):
            raise LonasEdgeError(f"{self.place}: the model's chat template leaves out messages of the role 'tool'.")
        text = self._apply(messages, tokenizer, chat, with_prompt)
        if unseen := [name for name in map(_name, self.functions or ()) if name and name not in text]:
            raise LonasEdgeError(f"{self.place}: the model's chat template leaves out the function {unseen[0]!r} of 'tools'.")
        return text

    def _apply(self, messages: list[dict[str, Any]], tokenizer: Any, chat: str, with_prompt: bool) -> str:
        try:
            text = tokenizer.apply_chat_template(
                messages, tools=self.functions, chat_template=chat, tokenize=False, add_generation_prompt=with_prompt
            )
        except Exception as error:  # jinja2's, and what a template does to values that are none
            reason = one_line(str(error)) or type(error).__name__
            where = "chat_template.jinja, or in tokenizer_config.json"
            raise LonasEdgeError(f"{self.place}: the chat template ({where}) refuses the conversation: {reason}") from error
        return str(text)


def _name(function: Any) -> str:
    """The name of a function's definition, or nothing."""
    inner = function.get("function", function) if isinstance(function, dict) else None
    return str(inner.get("name", "")) if isinstance(inner, dict) else ""


def as_messages(record: dict[str, Any]) -> dict[str, Any]:
    """Turn the formats of other tools into `messages`: ShareGPT's, prompt and completion, parts of a content.

    Prompt and completion are texts (mlx-lm) or lists of messages (TRL). Values of another type stay, for `check_conversation`.

    Raises:
        ValueError: If a content has a part that is no text.
    """
    if "completion" in record and "messages" not in record:
        messages: Any = []
        for role, side in (("user", record.get("prompt")), ("assistant", record["completion"])):
            messages += side if isinstance(side, list) else [{"role": role, "content": side}]
    else:
        messages = record.get("messages", record.get("conversations"))
    if isinstance(messages, list):
        messages = [_as_message(index, message) for index, message in enumerate(messages)]
        first = messages[0].get("role") if messages and isinstance(messages[0], dict) else None
        if record.get("system") and first != "system":  # the other place for it, in ShareGPT and Bedrock
            messages = [{"role": "system", "content": record["system"]}, *messages]
    return {**record, "messages": messages, "tools": _from_json(record.get("tools"))}


def _from_json(value: Any) -> Any:
    """A value that is given as JSON in a text, as Parquet files need it: their lists have one type."""
    if isinstance(value, str):
        with suppress(ValueError):
            return json.loads(value or "null")
    return value


def _as_message(index: int, message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    role, content = (message.get(name, message.get(other)) for name, other in (("role", "from"), ("content", "value")))
    if isinstance(content, list):
        for part in content:
            if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
                found = part.get("type") if isinstance(part, dict) else type(part).__name__
                raise ValueError(f"message {index}: a part of type {found!r} in 'content'; expected text")
        content = "".join(part["text"] for part in content)
    calls = _from_json(message.get("tool_calls"))
    if isinstance(calls, list):
        calls = [_as_call(index, call) for call in calls]
    return {**message, "role": _OTHER_ROLES.get(str(role), role), "content": content or "", "tool_calls": calls}


def _as_call(index: int, call: Any) -> dict[str, Any]:
    """Name and arguments of a call; OpenAI has the arguments as JSON in a text, which a template would quote again."""
    function = call.get("function", call) if isinstance(call, dict) else {}
    arguments = _from_json(function.get("arguments") or "{}") if isinstance(function, dict) else None
    if not isinstance(arguments, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"message {index}: a call in 'tool_calls' without name and arguments; expected {_CALL}")
    return {"name": function["name"], "arguments": arguments, **({"id": call["id"]} if call.get("id") else {})}


def check_conversation(record: Mapping[str, Any]) -> None:
    """Check a record with `messages`.

    Raises:
        ValueError: If it is no conversation from which answers can be learned.
    """
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' is not a list of messages")
    if not isinstance(record.get("tools"), list | None):
        raise ValueError("'tools' is not a list of functions")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            found = repr(message.get("role")) if isinstance(message, dict) else type(message).__name__
            raise ValueError(f"message {index}: unknown role {found[:50]}; expected {', '.join(ROLES)}")
        for name in _UNREAD if message["role"] == "assistant" else ():
            if message.get(name):
                raise ValueError(f"message {index}: {name!r} is not supported; move it into 'content', or remove it")
        if message.get("weight") == 0:
            raise ValueError(f"message {index}: 'weight' 0 is not supported: every answer is learned; remove the message")
        calls = message["role"] == "assistant" and message.get("tool_calls")
        if not isinstance(message.get("tool_calls"), list | None):
            raise ValueError(f"message {index}: 'tool_calls' is not a list of calls; expected {_CALL}")
        if not isinstance(message.get("content"), str) or not (message["content"] or calls or message["role"] == "tool"):
            raise ValueError(f"message {index}: no text in 'content'")
        if message["role"] == "system" and index:
            raise ValueError(f"message {index}: a system message must be the first")
    if [message["role"] for message in messages if message["role"] != "system"][:1] == ["assistant"]:
        raise ValueError("the assistant speaks first; expected a message of the user before")
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("no message of the assistant; expected at least one")


def chat_template_of(tokenizer: Any, folder: Path) -> str:
    """Get a model's chat template (Jinja)."""
    try:
        return str(tokenizer.get_chat_template())
    except ValueError as error:
        raise LonasEdgeError(
            f"{folder}: the model has no chat template (chat_template.jinja, or in tokenizer_config.json). 'messages' and "
            "--template chat need one. Use the instruction-tuned release, add a template, or use instruction data."
        ) from error


def encode_conversation(conversation: Conversation, chat: str, tokenizer: Any) -> tuple[list[int], list[bool]]:
    """Tokenize a conversation; return the ids, and whether each belongs to the assistant.

    An answer at the end is followed by EOS. The template of a base model may end a turn with another token, after which no
    client stops (Qwen2.5: <|im_end|> and <|endoftext|>).
    """
    text = conversation.render(tokenizer, chat)
    if _MARKS.search(chat):
        marked = tokenizer.apply_chat_template(
            conversation.record()["messages"],
            tools=conversation.functions,
            chat_template=chat,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
        )
        ids, learned = list(marked["input_ids"]), list(map(bool, marked["assistant_masks"]))
    else:
        spans = _spans(conversation, chat, tokenizer, text)
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        learned = [any(start < to and end > of for of, to in spans) for start, end in encoded["offset_mapping"]]
        ids = list(encoded["input_ids"])
    if conversation.messages[-1][0] == "assistant" and any(learned):
        last = max(index for index, learn in enumerate(learned) if learn)
        if tokenizer.eos_token_id not in ids[last:]:
            return [*ids, tokenizer.eos_token_id], [*learned, True]
    return ids, learned


def _spans(conversation: Conversation, chat: str, tokenizer: Any, text: str) -> list[tuple[int, int]]:
    """Find the assistant's turns in the text: from the prompt for an answer to the end of the turn."""
    spans = []
    for index, (role, _) in enumerate(conversation.messages):
        if role != "assistant":
            continue
        before = conversation.render(tokenizer, chat, index, with_prompt=True)
        through = conversation.render(tokenizer, chat, index + 1)
        if not (text.startswith(through) and through.startswith(before)):
            if span := _find_turn(conversation, chat, tokenizer, text, index):
                spans.append(span)
                continue
            raise LonasEdgeError(
                f"{conversation.place}: message {index}: the chat template renders this turn differently when others "
                "follow, so that the assistant's text cannot be found. Use a template that marks it with {% generation %}."
            )
        turn = through[len(before) :].rstrip()  # without the line break after the token that ends a turn
        ends = bool(tokenizer.eos_token) and turn.endswith(tokenizer.eos_token)
        spans.append((len(before), len(before) + len(turn) if ends else len(through)))
    return spans


def _find_turn(conversation: Conversation, chat: str, tokenizer: Any, text: str, index: int) -> tuple[int, int] | None:
    """Find a turn that is rendered differently as the last one, by a word in its place. None if it is rendered in parts.

    Qwen 3 adds an empty <think> block to the last answer, Phi an end of text, and Mistral moves the system message.
    """
    messages, calls = list(conversation.messages), list(conversation.calls)
    if calls and calls[index]:
        name = json.loads(calls[index])[0]["name"]
        calls[index] = calls[index].replace(json.dumps(name), json.dumps(_ANSWERED), 1)
    else:
        name, messages[index] = messages[index][1], ("assistant", _ANSWERED)
    marked = replace(conversation, messages=tuple(messages), calls=tuple(calls))
    before, found, after = marked.render(tokenizer, chat).partition(_ANSWERED)
    end = marked.render(tokenizer, chat, index + 1).partition(_ANSWERED)[2].rstrip()
    end = end if after.startswith(end) else end.removesuffix(tokenizer.eos_token or "").rstrip()
    whole = next((each for each in (name, name.strip()) if text == f"{before}{each}{after}"), None)
    if not found or whole is None or not after.startswith(end):
        return None
    asked, alone = (conversation.render(tokenizer, chat, index, with_prompt=prompted) for prompted in (True, False))
    prompt = asked.removeprefix(alone if asked.startswith(alone) else alone.removesuffix(tokenizer.eos_token or ""))
    place = before.rfind(prompt)
    return (place + len(prompt) if place >= 0 else len(before)), len(before) + len(whole) + len(end)


def chat_as_template(chat: str, tokenizer: Any, folder: Path) -> Template:
    """Turn a chat template into a plain one, for instruction data: one user message and one answer."""
    example = Conversation((("user", _ASKED), ("assistant", _ANSWERED)), str(folder))
    prompt, whole = example.render(tokenizer, chat, 1, with_prompt=True), example.render(tokenizer, chat)
    if prompt.count(_ASKED) != 1 or not whole.startswith(prompt) or whole.count(_ANSWERED) != 1:
        raise LonasEdgeError(
            f"{folder}: its chat template (chat_template.jinja or tokenizer_config.json) does not render a question and its "
            "answer one after the other, so instruction data does not fit. Use 'messages', or another --template."
        )
    lead, _, end = whole[len(prompt) :].partition(_ANSWERED)
    end = end.rstrip().removesuffix(tokenizer.eos_token or "\0")  # which ends every example
    bos = tokenizer.bos_token
    if bos and prompt.startswith(bos) and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]:
        prompt = prompt.removeprefix(bos)
    escaped = _escaped(prompt)
    return Template(
        CHAT,
        escaped.replace(_ASKED, "{instruction}"),
        escaped.replace(_ASKED, "{instruction}\n\n{input}"),
        response=f"{_escaped(lead)}{{output}}{_escaped(end)}",
    )


def _escaped(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
