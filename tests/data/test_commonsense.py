"""The eight tasks: files, instructions, names. Expectations are spelled out."""

import json
import os
from pathlib import Path

import pytest

from lonas_edge.data.commonsense import TASKS, Question, parse
from lonas_edge.data.tasks import resolve, there, unknown_task
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
        (
            "social_i_qa",
            "Mira lent her umbrella to a stranger in the rain. How would you describe Mira?",
            {"answer1": "kind", "answer2": "greedy", "answer3": "asleep"},
        ),
        (
            "hellaswag",
            "Cooking: A man cracks two eggs into a bowl. He",
            {
                "ending1": "whisks them with a fork.",
                "ending2": "drives the bowl to work.",
                "ending3": "paints the bowl with a roof.",
                "ending4": "plants the bowl in snow.",
            },
        ),
        (
            "winogrande",
            "The trophy did not fit in the case because the _ was too big.",
            {"option1": "trophy", "option2": "case"},
        ),
    ],
)
def test_question_and_options_of_an_instruction(task: str, question: str, options: dict[str, str]):
    sample = json.loads((DATA / task / "test.json").read_text())[0]
    assert TASKS[task].question(sample) == Question(question, options)


def test_colons_in_question_and_options_stay():
    assert parse(INSTRUCTION) == Question("What is 1 : 2?", {"answer1": "a half", "answer2": "two: three"})


@pytest.mark.parametrize(
    ("instruction", "fault"),
    [
        ("Say something: hello", "does not end with"),
        (INSTRUCTION.replace("Answer2:", "Answer3:"), "no option 'Answer2:'"),
        (INSTRUCTION.replace("two: three", ""), "'Answer2:' has no text"),
    ],
)
def test_other_instructions_are_faults(instruction: str, fault: str):
    with pytest.raises(ValueError, match=fault):
        parse(instruction)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("the correct answer is answer3", "answer3"),
        ("answer1 or answer2", "answer1"),
        (" Answer2", ""),
        ("unanswer45", "answer4"),
        ("none\n### Response:\nanswer1", ""),
        ("", ""),
    ],
)
def test_the_first_answer_word(text: str, word: str):
    assert TASKS["ARC-Easy"].answer_in(text) == word
    assert TASKS["ARC-Easy"].is_right(word, "answer3") == (word == "answer3")


def test_tasks_by_their_names_and_by_those_of_the_adapter_cards():
    names = {
        "boolq": "BoolQ",
        "piqa": "PIQA",
        "social_i_qa": "SIQA",
        "hellaswag": "HellaSwag",
        "winogrande": "WinoG",
        "ARC-Easy": "ARC-e",
        "ARC-Challenge": "ARC-c",
        "openbookqa": "OBQA",
    }
    assert {name: task.heading for name, task in TASKS.items()} == names
    assert [task.name for task in TASKS.values()] == list(TASKS)
    for name, heading in names.items():
        assert resolve(TASKS, [name]) == resolve(TASKS, [heading]) == resolve(TASKS, [heading.lower()]) == [name]
    assert resolve(TASKS, ["obqa", "boolq", "ARC-challenge", "boolq"]) == ["openbookqa", "boolq", "ARC-Challenge"]
    assert resolve(TASKS, ["all"]) == resolve(TASKS, ["Commonsense"]) == list(names)
    assert resolve(TASKS, ["mmlu"]) == ["mmlu"]


def test_a_task_that_nobody_knows():
    assert unknown_task(TASKS, "openbokqa") == "openbokqa: no such task; did you mean openbookqa?"
    assert unknown_task(TASKS, "arc_esy", ["arc_easy", "mmlu"]) == "arc_esy: no such task; did you mean ARC-Easy?"
    assert unknown_task(TASKS, "mmmlu", ["arc_easy", "mmlu"]) == "mmmlu: no such task; did you mean mmlu?"
    assert unknown_task(TASKS, "xyzzy") == "xyzzy: no such task"


def test_the_tasks_that_a_directory_has(tmp_path: Path):
    assert there(TASKS, DATA) == list(TASKS)
    (tmp_path / "piqa").mkdir()
    with pytest.raises(LonasEdgeError, match=r"no TASK/test\.json of boolq, piqa"):
        there(TASKS, tmp_path)
    (tmp_path / "piqa/test.json").write_text("[]")
    assert there(TASKS, tmp_path) == ["piqa"]
    with pytest.raises(LonasEdgeError, match="--datasets DIR is needed"):
        there(TASKS, None)


@pytest.mark.parametrize("content", ["[" * 100_000, f"[{'1' * 5000}]", '["\\ud800"]', "[\0]", b"\xff\xfe[\0]\0", b'["\xff"]'])
def test_hostile_test_sets(content: str | bytes, tmp_path: Path):
    path = TASKS["boolq"].path(tmp_path)
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(LonasEdgeError, match=f"{path}: "):
        TASKS["boolq"].items(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="of POSIX systems")
def test_a_test_set_that_is_no_file(tmp_path: Path):
    path = TASKS["boolq"].path(tmp_path)
    path.parent.mkdir()
    os.mkfifo(path)
    with pytest.raises(LonasEdgeError, match=f"{path}: the test set cannot be read: a device, pipe"):
        TASKS["boolq"].items(tmp_path)
