"""Instruction data: examples in the reference's JSON, prompt templates, and the token batches that are trained on."""

import json
from pathlib import Path
from typing import Any

from lonas_edge.data.templates import Example
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_text

FIELDS = ("instruction", "output")
_LIMIT = 2**31  # bytes; the reference's 170,000 examples have 0.2 GB


def read_examples(path: Path) -> list[Example]:
    """Read instruction data: a JSON list of {instruction, input, output}, or one such object a line.

    Args:
        path: The file.

    Returns:
        The examples; `input` may be left out, `output` may be empty (the reference's math data has three such), other fields
        are not looked at.

    Raises:
        LonasEdgeError: If the file is missing, empty, not of that format, or has no output at all; faults are listed with
            their line.
    """
    items, problems = _decode(read_text(path, "the data", _LIMIT))
    examples = []
    for line, item in items:
        fault = _fault(item)
        if fault:
            problems.append(f"line {line}: {fault}")
        else:
            examples.append(Example(item["instruction"], item.get("input") or "", item["output"]))
    raise_all(
        f"{path}: not instruction data:",
        problems,
        'Expected a JSON list of {"instruction": "…", "input": "", "output": "…"}, or one such object a line.',
    )
    if not examples:
        raise LonasEdgeError(f"{path}: holds no examples")
    if not any(example.output for example in examples):
        raise LonasEdgeError(f"{path}: 'output' is empty in each of its {len(examples)} examples; expected the answer to learn")
    return examples


def _decode(text: str) -> tuple[list[tuple[int, Any]], list[str]]:
    """The objects of the file, each with its line, and what ended the reading early."""
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


def _fault(item: Any) -> str | None:
    if not isinstance(item, dict):
        return f"expected an object, found {type(item).__name__}"
    missing = [name for name in FIELDS if not isinstance(item.get(name), str) or not (item[name] or name == "output")]
    if missing:
        return f"no text in {' and '.join(map(repr, missing))}"
    if not isinstance(item.get("input"), str | None):
        return "'input' is not text"
    return next((fault for name in (*FIELDS, "input") if (fault := _half_character(name, item.get(name) or ""))), None)


def _half_character(name: str, text: str) -> str | None:
    """JSON can say a lone surrogate (`\\ud800` without its second half); no tokenizer and no file can hold it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return f"half a character, a lone surrogate, in {name!r} at {error.start}: {error.object[error.start]!a}"
    return None
