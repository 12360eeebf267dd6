"""Training data: instructions, conversations or plain texts, as JSON, JSON lines or Parquet."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.data.conversations import Conversation, conversation_fault
from lonas_edge.data.parquet import is_parquet, read_parquet
from lonas_edge.data.templates import Example, Text
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_text

Learned = Example | Conversation | Text
INSTRUCTION, MESSAGES, TEXT = "instruction", "messages", "text"
FIELDS = ("instruction", "output")
_LIMIT = 2**31  # bytes; the reference's 170,000 examples have 0.2 GB


@dataclass(frozen=True)
class Kind:
    """A kind of records."""

    name: str  # its name in training records, and the field that identifies it
    fault: Callable[[Any], str | None]  # describes the problem of a record; None if it is valid
    make: Callable[[Any, str], Learned]  # makes an example of a record and its position in the file
    expected: str  # the expected format, for errors


@dataclass(frozen=True)
class Data:
    """A file of examples."""

    path: Path
    kind: str  # name of the kind of its records, one of `KINDS`
    examples: list[Learned]
    weight: float = 1.0  # how often an epoch has each of them; 0.3 takes a different 30 % each time


def read_data(path: Path, weight: float = 1.0) -> Data:
    """Read data: instructions, conversations or texts, as a JSON list, one JSON object a line, or Parquet."""
    items, problems = read_records(path)
    name = _kind(items[0][1]) if items else None
    if name is None:
        unknown = [f"{place}: found {found_fields(item)}" for place, item in items[:1]]
        raise_all(f"{path}: data of no known kind:", [*unknown, *problems], _expected())
        raise LonasEdgeError(f"{path}: holds no examples")
    kind, examples = KINDS[name], []
    for place, item in items:
        fault = kind.fault(item) if isinstance(item, dict) else f"expected an object, found {type(item).__name__}"
        if fault:
            problems.append(f"{place}: {fault}")
        else:
            examples.append(kind.make(item, f"{path}, {place}"))
    hint = f"Expected a JSON list of {kind.expected}, or one such object a line."
    raise_all(f"{path}: not {kind.name} data:", problems, hint)
    if not any(example.output for example in examples if isinstance(example, Example)) and kind.name == INSTRUCTION:
        raise LonasEdgeError(f"{path}: 'output' is empty in each of its {len(examples)} examples; expected the answer to learn")
    return Data(path, kind.name, examples, weight)


def read_records(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    """Read the records of a JSON, JSON Lines or Parquet file, each with its place, and the problem that ended the reading."""
    return _rows(path) if is_parquet(path) else _lines(path)


def _kind(item: Any) -> str | None:
    """Return the kind of a record by its fields; None if it has none that is known."""
    if not isinstance(item, dict):
        return None
    return INSTRUCTION if any(name in item for name in FIELDS) else next((n for n in (MESSAGES, TEXT) if n in item), None)


def _expected() -> str:
    kinds = "\n".join(f"  {kind.expected}" for kind in KINDS.values())
    return f"Expected one of these in each line, or a JSON list of them:\n{kinds}"


def found_fields(item: Any) -> str:
    """Describe a record of another kind, for errors."""
    return f"the fields {', '.join(map(str, item)) or 'none'}" if isinstance(item, dict) else type(item).__name__


def _lines(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    items, problems = _decode(read_text(path, "the data", _LIMIT))
    return [(f"line {line}", item) for line, item in items], problems


def _rows(path: Path) -> tuple[list[tuple[str, Any]], list[str]]:
    return [(f"row {index}", row) for index, row in enumerate(read_parquet(path, _LIMIT))], []


def _decode(text: str) -> tuple[list[tuple[int, Any]], list[str]]:
    """Read the objects of the file, each with its line, and the problem that ended the reading early."""
    decoder = json.JSONDecoder()
    items: list[tuple[int, Any]] = []
    is_list = text.lstrip().startswith("[")
    position, line, counted = text.index("[") + 1 if is_list else 0, 1, 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        line, counted = line + text.count("\n", counted, position), position
        if position == len(text):
            return items, ["the list is not closed: the file is cut off"] if is_list else []
        if is_list and text[position] == "]":
            left = text[position + 1 :].strip()
            return items, [f"line {line}: something follows the end of the list: {left[:20]!r}"] if left else []
        try:
            item, position = decoder.raw_decode(text, position)
        except RecursionError:
            return items, [f"line {line}: nested too deeply"]
        except json.JSONDecodeError as error:
            return items, [f"line {error.lineno}: not JSON: {error.msg} (in the example that starts in line {line})"]
        except ValueError as error:  # a number of more digits than Python reads
            return items, [f"line {line}: not JSON: {error}"]
        items.append((line, item))


def _instruction_fault(item: Any) -> str | None:
    missing = [name for name in FIELDS if not isinstance(item.get(name), str) or not (item[name] or name == "output")]
    if missing:
        return f"no text in {' and '.join(map(repr, missing))}"
    if not isinstance(item.get("input"), str | None):
        return "'input' is not text"
    return next((fault for name in (*FIELDS, "input") if (fault := half_character(name, item.get(name) or ""))), None)


def half_character(name: str, text: str) -> str | None:
    """Find a lone surrogate (`\\ud800` without its second half): JSON allows it, tokenizers and files do not."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character, a lone surrogate, in {name!r} at {error.start}: {error.object[error.start]!a}"
    return None


def _messages_fault(item: Any) -> str | None:
    fault = conversation_fault(item)
    if fault:
        return fault
    contents = [message["content"] for message in item[MESSAGES]]
    return next((fault for text in contents if (fault := half_character("content", text))), None)


def _text_fault(item: Any) -> str | None:
    if not isinstance(item.get(TEXT), str) or not item[TEXT]:
        return "no text in 'text'"
    return half_character(TEXT, item[TEXT])


def _conversation(item: Any, place: str) -> Conversation:
    return Conversation(tuple((message["role"], message["content"]) for message in item[MESSAGES]), place)


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            INSTRUCTION,
            _instruction_fault,
            lambda item, _place: Example(item["instruction"], item.get("input") or "", item["output"]),
            '{"instruction": "…", "input": "", "output": "…"}',
        ),
        Kind(
            MESSAGES,
            _messages_fault,
            _conversation,
            '{"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}',
        ),
        Kind(TEXT, _text_fault, lambda item, _place: Text(item[TEXT]), '{"text": "…"}'),
    )
}
