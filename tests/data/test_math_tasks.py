"""The math tasks: answers are read and compared by the reference's rules, which the expectations spell out."""

import json
from pathlib import Path
from typing import Any

import pytest

from lonas_edge.data.test_sets import TASKS
from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.protocols import PROMPT_PROTOCOLS


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("24 * 24 = 576 tiles. The answer is 57.", "57.0"),  # the last number; without the full stop
        ("It costs $1,234.50.", "1234.5"),
        ("12, 13", "13.0"),
        ("4 - 11 = -7", "-7.0"),
        ("from 3-5", "-5.0"),  # the reference's rule
        (".5", "5.0"),
        ("2.5.7", "7.0"),
        ("none", ""),
        ("The answer is 4.\n### Response:\n9", "4.0"),  # without another response
        ("9" * 400, "inf"),
    ],
)
def test_the_last_number(text: str, number: str) -> None:
    assert TASKS["gsm8k"].answer_in(text) == number


@pytest.mark.parametrize(
    ("number", "answer", "right"),
    [
        ("576.0", "576", True),
        ("0.667", "0.6666666666666667", True),
        ("0.668", "0.6666666666666667", False),
        ("7.0", "-7.0", False),
        ("", "0.0", False),
        ("inf", "5", False),
    ],
)
def test_correct_within_a_thousandth(number: str, answer: str, right: bool) -> None:
    assert TASKS["mawps"].is_correct(number, answer) is right


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C).", "C"),
        ("(D) or (B)", "D"),  # the first
        ("Because of it, E", "B"),  # even inside a word
        ("the answer is b", ""),
        ("none\n### Response:\nA", ""),
    ],
)
def test_the_first_letter(text: str, letter: str) -> None:
    assert TASKS["AQuA"].answer_in(text) == letter
    assert TASKS["AQuA"].is_correct(letter, "C") is (letter == "C")


SAMPLE = {"instruction": "What is 1 + 1?", "input": "", "output": "", "answer": "2"}
FAULTS = [
    ("gsm8k", {**SAMPLE, "answer": "12 apples"}, "sample 1: answer '12 apples' is not a number"),
    ("mawps", {**SAMPLE, "answer": "1,200"}, "sample 1: answer '1,200' is not a number"),
    ("SVAMP", {**SAMPLE, "answer": [22.0]}, "sample 1: no text in 'answer'"),
    ("AQuA", {**SAMPLE, "answer": "b"}, "sample 1: answer 'b' is not one of A, B, C, D, E"),
]


@pytest.mark.parametrize(("task", "sample", "message"), FAULTS)
def test_faulty_samples_are_named_with_their_file(task: str, sample: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / task / "test.json"
    path.parent.mkdir()
    good = {**SAMPLE, "answer": "B"} if task == "AQuA" else SAMPLE
    path.write_text(json.dumps([good, sample, good]))
    with pytest.raises(LonasEdgeError) as raised:
        PROMPT_PROTOCOLS["generate"].read(tmp_path, task)
    assert str(path) in str(raised.value)
    assert message in str(raised.value)
    assert "sample 0" not in str(raised.value)


@pytest.mark.parametrize(("answer", "expected"), [("2", "2"), (2.5, "2.5")])
def test_an_answer_is_a_text_or_a_number(answer: object, expected: str, tmp_path: Path) -> None:
    (tmp_path / "SVAMP").mkdir()
    (tmp_path / "SVAMP/test.json").write_text(json.dumps([{**SAMPLE, "answer": answer}]))
    generate = PROMPT_PROTOCOLS["generate"]
    (document,) = generate.documents(generate.read(tmp_path, "SVAMP"), "SVAMP", "question")
    assert document == {"task": "SVAMP", "prompt": "Question: What is 1 + 1?\nAnswer:", "answer": expected}
