"""Instruction data: reading, templates, labels and batches."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny_models import random_model, tokenizer
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast

from lonas_edge.data.encoding import Prompting, collate_tokens, encode
from lonas_edge.data.language import read_examples
from lonas_edge.data.templates import TEMPLATES, Example
from lonas_edge.errors import LonasEdgeError

EOS = 1


@pytest.fixture
def data(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """Write a data file."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "data.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def adding(special: str) -> PreTrainedTokenizerFast:
    """A tokenizer that puts special tokens around every text: `<s> $A` as LLaMA's, or `$A </s>`."""
    made = tokenizer()
    made._tokenizer.post_processor = TemplateProcessing(single=special, special_tokens=[("<s>", 0), ("</s>", EOS)])
    return made


def learned(encoded: dict[str, list[int]], by: PreTrainedTokenizerFast) -> str:
    """The text that is learned."""
    return by.decode([label for label in encoded["labels"] if label != -100])


# --- reading


def test_reads_a_list(data: Callable) -> None:
    items = [{"instruction": "a", "input": "b", "output": "c", "answer": 3}, {"output": "e", "instruction": "d\n{}"}]
    examples = read_examples(data(b"\xef\xbb\xbf\n " + json.dumps(items, indent=2).encode() + b"\n"))[1]
    assert examples == [Example("a", "b", "c"), Example("d\n{}", "", "e")]


def test_reads_lines(data: Callable) -> None:
    text = '{"instruction": "a", "output": "c", "input": null}\n\n{"instruction": "é", "input": "", "output": "[1]"}\r\n'
    assert read_examples(data(text))[1] == [Example("a", "", "c"), Example("é", "", "[1]")]


@pytest.mark.parametrize("text", [" \n\t\r\n ", "[\n]\n"])
def test_an_empty_file(data: Callable, text: str) -> None:
    path = data(text)
    with pytest.raises(LonasEdgeError, match=rf"{path}: holds no examples"):
        read_examples(path)


@pytest.mark.parametrize("name", TEMPLATES)
def test_examples_without_output_are_not_learned(data: Callable, name: str) -> None:
    items = [{"instruction": "a", "output": "b"}, {"instruction": "c", "output": ""}, {"instruction": "d", "output": "e"}]
    examples = read_examples(data(json.dumps(items)))[1]
    assert [example.output for example in examples] == ["b", "", "e"]
    expected = encode([examples[0], examples[2]], Prompting(TEMPLATES[name]), tokenizer(), 1000)
    assert encode(examples, Prompting(TEMPLATES[name]), tokenizer(), 1000) == expected
    with pytest.raises(LonasEdgeError, match="'output' is empty in each of its 2 examples"):
        read_examples(data(json.dumps([{"instruction": "a", "output": ""}] * 2)))


def test_a_file_that_cannot_be_read(data: Callable, tmp_path: Path) -> None:
    with pytest.raises(LonasEdgeError, match=r"absent\.json: the data cannot be read"):
        read_examples(tmp_path / "absent.json")
    with pytest.raises(LonasEdgeError, match="cannot be read"):
        read_examples(tmp_path)
    with pytest.raises(LonasEdgeError, match="the data cannot be read: not UTF-8"):
        read_examples(data(b'[{"instruction": "\xff", "output": "a"}]'))


ITEM = '{"instruction": "a", "output": "b"}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{ITEM}\n\0\0\0", "line 2: not JSON"),
        (f"{ITEM}\n{ITEM[:-3]}\n{ITEM}\n{ITEM[:-3]}", "lines 2 and 4: not JSON"),
        ("instruction,output\na,b\n", "lines 1 and 2: not JSON"),
        (f"[{ITEM},\n{ITEM},\n", r"not a JSON list: .*: line 3.*Is the file cut off\?"),
        (f"[{ITEM},\n{ITEM}]\n{ITEM}\n", "not a JSON list: Extra data: line 3"),
        (f"[\n{ITEM},\n{{'instruction': 1}},\n{ITEM}]", "not a JSON list: .*: line 3"),
    ],
)
def test_wrong_json_is_named_by_its_line(data: Callable, text: str, expected: str) -> None:
    with pytest.raises(LonasEdgeError, match=expected):
        read_examples(data(text))


FAULTY = {
    2: '{"instruction": "a"}',
    3: '{"instruction": "a", "output": 7}',
    4: '{"instruction": ["a"], "output": "b"}',
    5: '"a text"',
    7: '{"instruction": "a", "output": "b", "input": 3}',
    8: "null",
    9: '{"instruction": "", "output": null}',
}


@pytest.mark.parametrize("opening", ["", "["])
def test_all_faulty_items_are_listed(data: Callable, opening: str) -> None:
    lines = [opening + ITEM, *(FAULTY.get(line, ITEM) for line in range(2, 11))]
    with pytest.raises(LonasEdgeError) as raised:
        read_examples(data((",\n" if opening else "\n").join(lines) + ("]" if opening else "")))
    listed = [line.strip(" -") for line in str(raised.value).splitlines() if line.startswith("  - ")]
    expected = {2: "'output'", 3: "'output'", 4: "'instruction'", 5: "found str", 7: "'input'", 8: "found NoneType"}
    places = (
        [f"record {number}" for number in FAULTY]
        if opening
        else ["lines 2 and 3", "lines 4 and 9", "line 5", "line 7", "line 8"]
    )
    assert [line.partition(":")[0] for line in listed] == places
    for number, text in expected.items():
        assert any(str(number) in line.partition(":")[0] and text in line for line in listed)


# --- labels


@pytest.mark.parametrize(("name", "response"), [("alpaca", "the end"), ("question", " the end")])
@pytest.mark.parametrize("special", ["$A", "<s> $A </s>"])
def test_only_the_response_is_learned(name: str, response: str, special: str) -> None:
    """The response starts a new token, as at inference; special tokens are added once."""
    by = adding(special)
    (encoded,) = encode([Example("What is it?", "", "the end")], Prompting(TEMPLATES[name]), by, 256)
    plain = tokenizer()
    prompt = ([0] if "<s>" in special else []) + plain.encode(TEMPLATES[name].prompt(Example("What is it?", "", "")))
    assert encoded["input_ids"] == [*prompt, *plain.encode(response), EOS]
    assert encoded["labels"] == [-100] * len(prompt) + [*plain.encode(response), EOS]


def test_lonas_learns_everything() -> None:
    """Prompt and response are one text, so that the blank joins the response: `Ġthe` is one token."""
    template, by = TEMPLATES["lonas"], adding("<s> $A")
    (encoded,) = encode([Example("What is it?", "", "the end")], Prompting(template), by, 1000)
    text = template.prompt(Example("What is it?", "", "the end")) + "the end"
    assert encoded["input_ids"] == encoded["labels"] == [0, *tokenizer().encode(text), EOS]
    assert tokenizer().encode(" the")[0] in encoded["input_ids"][-6:]
    (ended,) = encode([Example("What is it?", "", "the end")], Prompting(template), adding("<s> $A </s>"), 1000)
    assert ended == encoded  # no second EOS


def test_lonas_is_cut_at_the_maximal_length() -> None:
    template, by = TEMPLATES["lonas"], tokenizer()
    example = Example("What?", "", "yes")
    text = by.encode(template.prompt(example) + "yes")
    for length in (len(text) + 1, len(text), 10):
        (encoded,) = encode([example], Prompting(template), by, length)
        assert encoded["input_ids"] == encoded["labels"] == [*text, EOS][:length]
    assert encode([example], Prompting(template), by, 1) == []  # nothing predicts the first token


def test_too_long_examples_are_dropped() -> None:
    by = tokenizer()
    examples = [Example("a", "", "b" * size) for size in (3, 30, 4)]
    prompt = len(by.encode("Question: a\nAnswer:"))
    texts = [learned(example, by) for example in encode(examples, Prompting(TEMPLATES["question"]), by, prompt + 1 + 4 + 1)]
    assert texts == [" bbb</s>", " bbbb</s>"]  # a blank, four letters, EOS: the longest that fits
    assert len(encode(examples, Prompting(TEMPLATES["question"]), by, prompt + 1 + 4)) == 1


# --- batches


def test_a_batch() -> None:
    batch = collate_tokens(
        [
            {"input_ids": [2, 3, 4, 5, 6], "labels": [-100, -100, 4, 5, -100]},
            {"input_ids": [7, 8], "labels": [-100, 8]},
            {"input_ids": [2, 2, 2, 5], "labels": [-100, -100, -100, 5]},
        ],
        9,
    )
    assert batch["input_ids"].tolist() == [[2, 3, 4, 5, 6], [7, 8, 9, 9, 9], [2, 2, 2, 5, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]]
    assert batch["logits_to_keep"].tolist() == [0, 1, 2]  # position 3 would predict 6, 9, 9: learned by none
    assert batch["labels"].tolist() == [[-100, 4, 5], [8, -100, -100], [-100, -100, 5]]
    assert batch.keys() == {"input_ids", "attention_mask", "logits_to_keep", "labels"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_loss_of_kept_positions_is_that_of_transformers() -> None:
    """Padding is EOS here; the EOS of a response is learned, padding is not."""
    by, model = tokenizer(), random_model("llama").double()
    examples = [Example("What is the sum?", "", "the one"), Example("Why?", "In it.", "no"), Example("a", "", "b in the air")]
    encoded = encode(examples, Prompting(TEMPLATES["question"]), by, 128)
    batch = collate_tokens(encoded, EOS)
    length = max(len(example["input_ids"]) for example in encoded)
    full = torch.tensor([row["labels"] + [-100] * (length - len(row["labels"])) for row in encoded])
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    with torch.no_grad():
        expected = model(**inputs, labels=full).loss
        logits = model(**inputs, logits_to_keep=batch["logits_to_keep"]).logits
    assert logits.shape[:2] == batch["labels"].shape
    assert logits.shape[1] < length - 5  # others are not computed
    loss = F.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
    assert abs(loss - expected) < 1e-6  # transformers rounds the logits to fp32
    assert expected > 1
