"""The eight tasks: files, instructions, prompts, choices. Expectations are spelled out, or the reference's own prompts."""

import json
from pathlib import Path

import pytest

from lonas_edge.data.templates import EVALUATION_TEMPLATES, Example
from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate import tasks

DATA = Path(__file__).parent / "data"
INSTRUCTION = (
    "Please choose the correct answer to the question: What is 1 : 2?\n\nAnswer1: a half Answer2: two: three\n\n"
    "Answer format: answer1/answer2"
)


def test_there_are_samples_of_every_task():
    assert sorted(path.name for path in DATA.iterdir()) == sorted(tasks.TASKS)
    for task in tasks.TASKS:
        assert len(tasks.read_samples(DATA, task)) >= 5


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
    found = tasks.parse(json.loads((DATA / task / "test.json").read_text())[0]["instruction"])
    assert (found.text, found.options) == (question, options)


def test_colons_in_question_and_options_stay():
    assert tasks.parse(INSTRUCTION) == tasks.Question("What is 1 : 2?", {"answer1": "a half", "answer2": "two: three"})


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
        tasks.parse(instruction)


def test_prompts_are_the_references_byte_for_byte():
    path = Path(__file__).parents[2] / "../shared/reference/prompts.json"
    if not path.exists():
        pytest.skip("the reference's prompts are not at hand")
    reference = json.loads(path.read_text())
    for name, key in (("lonas", "eval"), ("lonas-train", "train")):
        template = EVALUATION_TEMPLATES[name]
        for example, kind in ((Example("Ask {this}", "", ""), "without_input"), (Example("Ask", "In %s", ""), "with_input")):
            expected = reference[key][kind].replace("{instruction}", example.instruction).replace("{input}", example.input)
            assert template.prompt(example) == expected.replace("{output}", "")


def test_documents_of_each_protocol():
    sample = {"instruction": INSTRUCTION, "input": "", "output": "", "answer": "answer2"}
    (generate,) = tasks.documents([sample], "ARC-Easy", "generate", "question")
    assert generate["prompt"] == f"Question: {INSTRUCTION}\nAnswer:"
    assert generate["words"] == ["answer1", "answer2", "answer3", "answer4", "answer5"]
    (word,) = tasks.documents([sample], "ARC-Easy", "answer-word", "question")
    assert word["prompt"] == generate["prompt"]
    assert word["choices"] == [" the correct answer is answer1", " the correct answer is answer2"]
    (clean,) = tasks.documents([sample], "ARC-Easy", "answer-word", "alpaca")
    assert clean["choices"][0] == "the correct answer is answer1"
    (text,) = tasks.documents([sample], "ARC-Easy", "option-text", "lonas")
    assert text["prompt"] == "Question: What is 1 : 2?\nAnswer:"
    assert text["choices"] == ["a half", "two: three"]
    assert {generate["label"], word["label"], text["label"]} == {1}
    assert generate["answer"] == "answer2"


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
    assert tasks.first_answer_word(text, tasks.TASKS["ARC-Easy"]) == word


def test_names_of_tasks():
    assert tasks.resolve(["boolq", "arc-e", "ARC-challenge", "obqa", "boolq"]) == [
        "boolq",
        "ARC-Easy",
        "ARC-Challenge",
        "openbookqa",
    ]
    assert tasks.resolve(["all"]) == list(tasks.TASKS)
    assert tasks.resolve(["mmlu"]) == ["mmlu"]
    assert tasks.unknown_task("openbokqa") == "openbokqa: no such task; did you mean openbookqa?"
    assert tasks.unknown_task("xyzzy") == "xyzzy: no such task"


def damaged(tmp_path: Path, content: object) -> Path:
    (tmp_path / "ARC-Easy").mkdir(exist_ok=True)
    (tmp_path / "ARC-Easy/test.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


GOOD = {"instruction": INSTRUCTION, "input": "", "output": "", "answer": "answer1"}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("[{", ["not readable as JSON"]),
        ([], ["expected a list of samples, found an empty one"]),
        ({}, ["expected a list of samples, found a dict"]),
        (
            [GOOD, "x", {**GOOD, "answer": "answer9"}],
            ["sample 1: expected an object", "sample 2: answer 'answer9' is not one of"],
        ),
        (
            [{"answer": "answer1"}, {"instruction": "x"}],
            ["sample 0: no text in 'instruction'", "sample 1: no text in 'answer'"],
        ),
        ([{**GOOD, "answer": "answer3"}], ["sample 0: answer 'answer3' is not among its options"]),
        ([{**GOOD, "instruction": "Hello"}], ["sample 0: the instruction does not end with"]),
        ([{**GOOD, "instruction": INSTRUCTION.replace("Answer1:", "answer1:")}], ["sample 0: no option is spelled out"]),
        ([{**GOOD, "input": 3}], ["sample 0: 'input' is not text"]),
    ],
)
def test_bad_files_are_refused_with_every_fault(content: object, told: list[str], tmp_path: Path):
    with pytest.raises(LonasEdgeError) as error:
        tasks.read_samples(damaged(tmp_path, content), "ARC-Easy")
    for fault in told:
        assert fault in str(error.value)
    assert str(tmp_path / "ARC-Easy/test.json") in str(error.value)


def test_missing_data_names_what_is_there(tmp_path: Path):
    with pytest.raises(LonasEdgeError, match="no such directory"):
        tasks.read_samples(tmp_path / "nowhere", "boolq")
    with pytest.raises(LonasEdgeError, match=r"missing\. Test sets in .*: ARC-Easy"):
        tasks.read_samples(damaged(tmp_path, [GOOD]), "boolq")


def test_generation_needs_no_options(tmp_path: Path):
    content = [{"instruction": "Say answer1", "answer": "answer1"}]
    assert tasks.read_samples(damaged(tmp_path, content), "ARC-Easy", "generate") == content
