"""The eight tasks: files, instructions, names. Expectations are spelled out."""

import json
from pathlib import Path

import pytest

from lonas_edge.data.test_sets import COMMONSENSE as TASKS
from lonas_edge.data.test_sets import Question, present_tasks, resolve, unknown_task
from lonas_edge.errors import LonasEdgeError

DATA = Path(__file__).parents[1] / "evaluate/data"
INSTRUCTION = (
    "Please choose the correct answer to the question: What is 1 : 2?\n\nAnswer1: a half Answer2: two: three\n\n"
    "Answer format: answer1/answer2"
)


@pytest.mark.parametrize(
    ("task", "question", "options"),
    [
        ("boolq", "is a tomato botanically a fruit?", {"true": "true", "false": "false"}),
        (
            "piqa",
            "To dry wet shoes overnight,",
            {"solution1": "fill them with crumpled newspaper.", "solution2": "put them in a bucket of water."},
        ),
    ],
)
def test_question_and_options_of_an_instruction(task: str, question: str, options: dict[str, str]):
    sample = json.loads((DATA / task / "test.json").read_text())[0]
    assert TASKS[task].question(sample) == Question(question, options)


def test_colons_in_question_and_options_stay():
    sample = {"instruction": INSTRUCTION, "answer": "answer1"}
    assert TASKS["ARC-Easy"].question(sample) == Question("What is 1 : 2?", {"answer1": "a half", "answer2": "two: three"})


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("Say something: hello", "does not end with"),
        (INSTRUCTION.replace("Answer2:", "Answer3:"), "expected the options Answer1: … Answer2: … in this order"),
        (INSTRUCTION.replace("Answer1", "x").replace("Answer2", "Answer1").replace("x:", "Answer2:"), "in this order"),
        (INSTRUCTION.replace("two: three", ""), "each with a text"),
    ],
)
def test_other_instructions_are_faults(instruction: str, fault: str):
    with pytest.raises(ValueError, match=fault):
        TASKS["ARC-Easy"].question({"instruction": instruction, "answer": "answer1"})


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("the correct answer is answer3", "answer3"),
        ("answer1 or answer2", "answer1"),
        ("unanswer45", "answer4"),
        ("none\n### Response:\nanswer1", ""),
        ("", ""),
    ],
)
def test_the_first_answer_word(text: str, word: str):
    assert TASKS["ARC-Easy"].answer_in(text) == word
    assert TASKS["ARC-Easy"].is_correct(word, "answer3") == (word == "answer3")


def test_tasks_by_name_and_heading():
    assert resolve(TASKS, ["obqa", "BoolQ", "ARC-challenge", "boolq"]) == ["openbookqa", "boolq", "ARC-Challenge"]
    assert resolve(TASKS, ["all"]) == resolve(TASKS, ["Commonsense"]) == list(TASKS)
    assert resolve(TASKS, ["mmlu"]) == ["mmlu"]


def test_unknown_tasks():
    assert unknown_task(TASKS, "openbokqa") == "openbokqa: no such task; did you mean openbookqa?"
    assert unknown_task(TASKS, "arc_esy", ["arc_easy", "mmlu"]) == "arc_esy: no such task; did you mean ARC-Easy?"
    assert unknown_task(TASKS, "xyzzy") == "xyzzy: no such task"


def test_the_tasks_that_a_directory_has(tmp_path: Path):
    assert present_tasks(TASKS, DATA) == list(TASKS)
    (tmp_path / "piqa").mkdir()
    with pytest.raises(LonasEdgeError, match=r"no TASK/test\.json of boolq, piqa"):
        present_tasks(TASKS, tmp_path)
    (tmp_path / "piqa/test.json").write_text("[]")
    assert present_tasks(TASKS, tmp_path) == ["piqa"]
    with pytest.raises(LonasEdgeError, match="pass --data FILE, your own test data, or --datasets DIR"):
        present_tasks(TASKS, None)
