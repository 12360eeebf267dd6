"""The math tasks: what is read as an answer, and what is right. Expectations are spelled out from the reference's rules."""

import json
from pathlib import Path
from typing import Any

import pytest

from lonas_edge.data.math_tasks import TASKS
from lonas_edge.data.tasks import resolve
from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.protocols import PROTOCOLS

NUMBERS = ("gsm8k", "mawps", "SVAMP")
SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.mark.parametrize("task", NUMBERS)
@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("24 * 24 = 576 tiles. The answer is 576.", "576.0"),  # the last, not the first; the full stop is none of it
        ("The answer is 576.0", "576.0"),
        ("It costs $1,234.50.", "1234.5"),
        ("1,234,567", "1234567.0"),
        ("12, 13", "13.0"),
        ("4 - 11 = -7", "-7.0"),
        ("from 3-5", "-5.0"),  # the reference's rule, whatever was meant
        ("5 - 3", "3.0"),
        ("That is 15%.", "15.0"),
        ("3/4", "4.0"),
        (".5", "5.0"),
        ("1e5", "5.0"),
        ("007", "7.0"),
        ("2.5.7", "7.0"),
        ("none", ""),
        ("", ""),
        ("The answer is 4.\n### Response:\n9", "4.0"),  # another response is none of this one
        ("### Response: 9", ""),
        ("9" * 400, "inf"),
    ],
)
def test_the_last_number(task: str, text: str, number: str) -> None:
    assert TASKS[task].answer_in(text) == number


@pytest.mark.parametrize(
    ("found", "answer", "right"),
    [
        ("576.0", "576.0", True),
        ("576.0", "576", True),
        ("0.666", "0.6666666666666667", True),
        ("0.667", "0.6666666666666667", True),
        ("0.66", "0.6666666666666667", False),
        ("0.668", "0.6666666666666667", False),
        ("7.0", "-7.0", False),
        ("-7.0", "-7.0", True),
        ("575.999", "576.0", True),
        ("577.0", "576.0", False),
        ("", "0.0", False),
        ("inf", "5", False),
    ],
)
def test_right_within_a_thousandth(found: str, answer: str, right: bool) -> None:
    for task in NUMBERS:
        assert TASKS[task].is_right(found, answer) is right


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is (C).", "C"),
        ("(D) or (B)", "D"),  # the first
        ("Because of it, E", "B"),  # the first capital of them, in whatever it is embedded
        ("the answer is b", ""),
        ("F", ""),
        ("", ""),
        ("none\n### Response:\nA", ""),
    ],
)
def test_the_first_letter(text: str, letter: str) -> None:
    assert TASKS["AQuA"].answer_in(text) == letter
    assert TASKS["AQuA"].is_right(letter, "C") is (letter == "C")


def test_names_are_those_of_the_folders_and_of_the_adapter_card() -> None:
    assert {name: task.heading for name, task in TASKS.items()} == {
        "gsm8k": "GSM8K",
        "AQuA": "AQuA",
        "mawps": "MAWPS",
        "SVAMP": "SVAMP",
    }
    assert resolve(TASKS, ["gsm8k", "aqua", "MAWPS", "svamp"]) == resolve(TASKS, ["math"]) == list(TASKS)
    both = PROTOCOLS["generate"].tasks
    assert resolve(both, ["math"]) == list(TASKS)
    assert resolve(both, ["all"]) == list(both) == [*resolve(both, ["commonsense"]), *TASKS]
    assert {(task.collection, task.new_tokens) for task in TASKS.values()} == {("math", 256)}


SAMPLE = {"instruction": "What is 1 + 1?", "input": "", "output": "", "answer": "2"}
FAULTS = [
    ("gsm8k", {**SAMPLE, "answer": "twelve"}, "sample 1: answer 'twelve' is not a number"),
    ("gsm8k", {**SAMPLE, "answer": "12 apples"}, "sample 1: answer '12 apples' is not a number"),
    ("mawps", {**SAMPLE, "answer": "1,200"}, "sample 1: answer '1,200' is not a number"),
    ("mawps", {**SAMPLE, "answer": "nan"}, "sample 1: answer 'nan' is not a number"),
    ("SVAMP", {**SAMPLE, "answer": "inf"}, "sample 1: answer 'inf' is not a number"),
    ("SVAMP", {**SAMPLE, "answer": True}, "sample 1: answer True is not a number"),
    ("SVAMP", {**SAMPLE, "answer": [22.0]}, "sample 1: no text in 'answer'"),
    ("gsm8k", {"answer": "2"}, "sample 1: no text in 'instruction'"),
    ("gsm8k", {"instruction": "What?"}, "sample 1: no text in 'answer'"),
    ("gsm8k", {"answer": 2}, "sample 1: no text in 'instruction'"),
    ("gsm8k", 2, "sample 1: expected an object, found int"),
    ("AQuA", {**SAMPLE, "answer": "F"}, "sample 1: answer 'F' is not one of A, B, C, D, E"),
    ("AQuA", {**SAMPLE, "answer": "b"}, "sample 1: answer 'b' is not one of A, B, C, D, E"),
    ("AQuA", {**SAMPLE, "answer": "AB"}, "sample 1: answer 'AB' is not one of A, B, C, D, E"),
    ("AQuA", {**SAMPLE, "answer": 2}, "sample 1: no text in 'answer'"),
    ("AQuA", {"answer": "A"}, "sample 1: no text in 'instruction'"),
]


@pytest.mark.parametrize(("task", "sample", "told"), FAULTS)
def test_faulty_samples_are_named_with_their_file(task: str, sample: Any, told: str, tmp_path: Path) -> None:
    path = tmp_path / task / "test.json"
    path.parent.mkdir()
    good = {**SAMPLE, "answer": "B"} if task == "AQuA" else SAMPLE
    path.write_text(json.dumps([good, sample, good]))
    with pytest.raises(LonasEdgeError) as raised:
        PROTOCOLS["generate"].read(tmp_path, task)
    assert str(path) in str(raised.value)
    assert told in str(raised.value)
    assert "sample 0" not in str(raised.value)
    assert "sample 2" not in str(raised.value)


def test_a_task_without_its_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k/test.json").write_text(json.dumps([SAMPLE]))
    with pytest.raises(LonasEdgeError) as raised:
        PROTOCOLS["generate"].read(tmp_path, "SVAMP")
    assert f"{tmp_path / 'SVAMP' / 'test.json'}: missing" in str(raised.value)
    assert "gsm8k" in str(raised.value)


@pytest.mark.parametrize(("answer", "asked"), [("2", "2"), (2, "2"), (2.5, "2.5"), ("-15.0", "-15.0")])
def test_an_answer_is_a_text_or_a_number(answer: object, asked: str, tmp_path: Path) -> None:
    (tmp_path / "SVAMP").mkdir()
    (tmp_path / "SVAMP/test.json").write_text(json.dumps([{**SAMPLE, "answer": answer}]))
    generate = PROTOCOLS["generate"]
    (document,) = generate.documents(generate.read(tmp_path, "SVAMP"), "SVAMP", "question")
    assert document == {"task": "SVAMP", "prompt": "Question: What is 1 + 1?\nAnswer:", "answer": asked}


@pytest.mark.parametrize(("task", "indent"), [*((task, 28) for task in TASKS), ("ARC-Easy", 24)])
def test_each_task_is_asked_with_its_own_script_s_indentation(task: str, indent: int) -> None:
    (document,) = PROTOCOLS["generate"].documents([SAMPLE], task, "lonas")
    assert document["prompt"].endswith(f"\n\n{indent * ' '}### Response:\n{indent * ' '}")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the reference's prompts beside the checkout")
def test_the_prompt_is_the_reference_s() -> None:
    told = json.loads((SHARED / "reference/prompts.json").read_text())["math"]["eval"]
    paired = {**SAMPLE, "input": "In {this}."}
    asked = PROTOCOLS["generate"].documents([SAMPLE, paired], "gsm8k", "lonas")
    assert asked[0]["prompt"] == told["without_input"].format(instruction=SAMPLE["instruction"])
    assert asked[1]["prompt"] == told["with_input"].format(instruction=SAMPLE["instruction"], input="In {this}.")


@pytest.mark.parametrize(("task", "samples"), [("gsm8k", 1319), ("AQuA", 254), ("mawps", 238)])
def test_the_collection_s_files_are_taken_as_they_are(task: str, samples: int) -> None:
    if not (SHARED / "datasets" / task).is_dir():
        pytest.skip("needs the collection's files beside the checkout")
    read = PROTOCOLS["generate"].read(SHARED / "datasets", task)
    assert len(read) == samples
    answers = [TASKS[task].answer_in(sample["output"]) for sample in read if sample["output"]]
    assert task == "mawps" or sum(map(bool, answers)) > 0.9 * samples
