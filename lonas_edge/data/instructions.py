"""Instruction data: examples in the reference's JSON, prompt templates, and the token batches that are trained on."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lonas_edge.errors import LonasEdgeError, raise_all

IGNORED = -100  # a label that is not learned
FIELDS = ("instruction", "output")


@dataclass(frozen=True)
class Example:
    """One instruction, with an optional input, and the answer to learn."""

    instruction: str
    input: str
    output: str


@dataclass(frozen=True)
class Template:
    """How an example becomes text: a prompt, and the response that follows it.

    Attributes:
        name: What it is called on the command line and in a super-adapter's record.
        without_input: The prompt, with {instruction}.
        with_input: The prompt of an example that has an input, with {instruction} and {input}.
        response: The response, with {output}.
        train_on_prompt: Whether the prompt's tokens are learned too, unless the command line says otherwise.
        whole_text: The reference's rules: prompt and response are tokenized as one text, cut at the maximal length, and end
            with EOS only where that leaves room. Otherwise the prompt's tokens are those it has at
            inference, and all end with EOS; examples that are too long are left out, never cut.
    """

    name: str
    without_input: str
    with_input: str
    response: str = "{output}"
    train_on_prompt: bool = False
    whole_text: bool = False

    def prompt(self, example: Example) -> str:
        """The text in front of the response."""
        template = self.with_input if example.input else self.without_input
        return template.format(instruction=example.instruction, input=example.input)

    def answer(self, example: Example) -> str:
        """The response."""
        return self.response.format(output=example.output)


_ALPACA = "Below is an instruction that describes a task"
_PAIRED = f"{_ALPACA}, paired with an input that provides further context"
_WRITE = "Write a response that appropriately completes the request."
_INDENT = "\n\n" + 20 * " "  # the reference's source code indents the later lines of its prompt

# `lonas` is the training prompt of the reference, byte for byte (IntelLabs/Hardware-Aware-Automated-Machine-Learning,
# LoNAS/run_commonsense.py), two blanks and indentation included; `alpaca` (Taori et al. 2023) is what it was meant to be.
TEMPLATES = {
    template.name: template
    for template in (
        Template(
            "alpaca",
            f"{_ALPACA}. {_WRITE}\n\n### Instruction:\n{{instruction}}\n\n### Response:\n",
            f"{_PAIRED}. {_WRITE}\n\n### Instruction:\n{{instruction}}\n\n### Input:\n{{input}}\n\n### Response:\n",
        ),
        Template(
            "question",
            "Question: {instruction}\nAnswer:",
            "{input}\nQuestion: {instruction}\nAnswer:",
            response=" {output}",
        ),
        Template(
            "lonas",
            f"{_ALPACA}. {_WRITE}  {_INDENT}### Instruction:\n{20 * ' '}{{instruction}}{_INDENT}### Response:\n{20 * ' '}",
            f"{_PAIRED}. {_WRITE} {_INDENT}### Instruction:\n{20 * ' '}{{instruction}}{_INDENT}### Input:\n{20 * ' '}{{input}}"
            f"{_INDENT}### Response:\n{20 * ' '}",
            train_on_prompt=True,
            whole_text=True,
        ),
    )
}

_INDENT_EVALUATION = "\n\n" + 24 * " "

# What `eval` asks with. The reference evaluates with another indentation and other blanks than it trains with
# (run_commonsense.py); its prompt of the training is `lonas-train` here.
EVALUATION_TEMPLATES = {
    **TEMPLATES,
    "lonas": Template(
        "lonas",
        f"{_ALPACA}. {_WRITE} {_INDENT_EVALUATION}### Instruction:\n{24 * ' '}{{instruction}}"
        f"{_INDENT_EVALUATION}### Response:\n{24 * ' '}",
        f"{_PAIRED}. {_WRITE}{_INDENT_EVALUATION}### Instruction:\n{24 * ' '}{{instruction}}"
        f"{_INDENT_EVALUATION}### Input:\n{24 * ' '}{{input}}{_INDENT_EVALUATION}### Response:\n{24 * ' '}",
    ),
    "lonas-train": TEMPLATES["lonas"],
}


def read_examples(path: Path) -> list[Example]:
    """Read instruction data: a JSON list of {instruction, input, output}, or one such object a line.

    Args:
        path: The file.

    Returns:
        The examples; `input` may be left out, other fields are not looked at.

    Raises:
        LonasEdgeError: If the file is missing, empty or not of that format; faults are listed with their line.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise LonasEdgeError(f"{path}: the data cannot be read: {error}") from error
    items, problems = _decode(text)
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
        items.append((line, item))


def _fault(item: Any) -> str | None:
    if not isinstance(item, dict):
        return f"expected an object, found {type(item).__name__}"
    missing = [name for name in FIELDS if not isinstance(item.get(name), str) or not item[name]]
    if missing:
        return f"no text in {' and '.join(map(repr, missing))}"
    return None if isinstance(item.get("input"), str | None) else "'input' is not text"


def encode(
    examples: Sequence[Example], template: Template, tokenizer: Any, max_length: int, train_on_prompt: bool | None = None
) -> list[dict[str, list[int]]]:
    """Tokenize examples by a template's rules.

    Args:
        examples: The examples.
        template: The template.
        tokenizer: The model's.
        max_length: Tokens of the longest example.
        train_on_prompt: Whether the prompt is learned too; the template's own rule when None.

    Returns:
        `input_ids` and `labels`, each [tokens], for every example that has something to learn within `max_length`.
    """
    learn_prompt = template.train_on_prompt if train_on_prompt is None else train_on_prompt
    tokenize = _whole if template.whole_text else _apart
    encoded = []
    for example in examples:
        ids, prompt = tokenize(template.prompt(example), template.answer(example), tokenizer, max_length)
        labels = list(ids) if learn_prompt else [IGNORED] * min(prompt, len(ids)) + ids[prompt:]
        if ids and any(label != IGNORED for label in labels[1:]):
            encoded.append({"input_ids": ids, "labels": labels})
    return encoded


def _apart(prompt: str, response: str, tokenizer: Any, max_length: int) -> tuple[list[int], int]:
    first = tokenizer(prompt)["input_ids"]
    if first and first[-1] == tokenizer.eos_token_id and len(first) > 1:
        first = first[:-1]  # some tokenizers end every text
    whole = tokenizer(prompt + response, add_special_tokens=True)["input_ids"]
    whole = whole[:-1] if whole[-1:] == [tokenizer.eos_token_id] else whole
    if whole[: len(first)] != first:  # a token would span the boundary: the prompt ends as it does at inference
        whole = first + tokenizer(response, add_special_tokens=False)["input_ids"]
    ids = [*whole, tokenizer.eos_token_id]
    return (ids, len(first)) if len(ids) <= max_length else ([], 0)


def _whole(prompt: str, response: str, tokenizer: Any, max_length: int) -> tuple[list[int], int]:
    ids = tokenizer(prompt + response, truncation=True, max_length=max_length)["input_ids"]
    if len(ids) < max_length and ids[-1:] != [tokenizer.eos_token_id]:
        ids = [*ids, tokenizer.eos_token_id]
    return ids, len(tokenizer(prompt, truncation=True, max_length=max_length)["input_ids"])


@dataclass(frozen=True)
class Collator:
    """Pads examples on the right and keeps the positions that predict something learned: logits of others are not computed."""

    pad_token_id: int

    def __call__(self, examples: Sequence[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Make a batch.

        Args:
            examples: `input_ids` and `labels` of each, [tokens].

        Returns:
            `input_ids` and `attention_mask` [examples, tokens]; `logits_to_keep` [positions], the positions kept; `labels`
            [examples, positions], the token that follows each, or -100.
        """
        length = max(len(example["input_ids"]) for example in examples)

        def padded(rows: list[list[int]], value: int) -> torch.Tensor:
            return torch.tensor([row + [value] * (length - len(row)) for row in rows])

        ids = padded([example["input_ids"] for example in examples], self.pad_token_id)
        mask = padded([[1] * len(example["input_ids"]) for example in examples], 0)
        following = padded([example["labels"] for example in examples], IGNORED)[:, 1:]
        kept = (following != IGNORED).any(0).nonzero().flatten()
        return {"input_ids": ids, "attention_mask": mask, "logits_to_keep": kept, "labels": following[:, kept].contiguous()}
