"""Prompts, byte for byte: the reference's are its scripts' (LoNAS/run_commonsense.py, run_math.py), blanks included."""

from pathlib import Path

import pytest

from lonas_edge.data.templates import PROMPTS, TEMPLATES, Example, choose_prompt, evaluation_template
from lonas_edge.errors import LonasEdgeError
from lonas_edge.space.search_space import read_search_space

ALONE, PAIRED = Example("Ask {this}.", "", "{42}"), Example("Ask.", "In %s {it}.", "yes")
SPACES_20, SPACES_24 = " " * 20, " " * 24

LONAS_EVALUATION = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request. \n"
    "\n"
    f"{SPACES_24}### Instruction:\n"
    f"{SPACES_24}Ask {{this}}.\n"
    "\n"
    f"{SPACES_24}### Response:\n"
    f"{SPACES_24}"
)
LONAS_EVALUATION_PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
    "appropriately completes the request.\n"
    "\n"
    f"{SPACES_24}### Instruction:\n"
    f"{SPACES_24}Ask.\n"
    "\n"
    f"{SPACES_24}### Input:\n"
    f"{SPACES_24}In %s {{it}}.\n"
    "\n"
    f"{SPACES_24}### Response:\n"
    f"{SPACES_24}"
)
# the reference trains with one more blank after "request." and a smaller indentation
LONAS_TRAINING = LONAS_EVALUATION.replace("request.", "request. ").replace(SPACES_24, SPACES_20)
LONAS_TRAINING_PAIRED = LONAS_EVALUATION_PAIRED.replace("request.", "request. ").replace(SPACES_24, SPACES_20)
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\nAsk {this}.\n\n### Response:\n"
)
ALPACA_PAIRED = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a response that "
    "appropriately completes the request.\n\n### Instruction:\nAsk.\n\n### Input:\nIn %s {it}.\n\n### Response:\n"
)
QUESTION, QUESTION_PAIRED = "Question: Ask {this}.\nAnswer:", "In %s {it}.\nQuestion: Ask.\nAnswer:"


@pytest.mark.parametrize(
    ("name", "alone", "paired", "answer"),
    [
        ("alpaca", ALPACA, ALPACA_PAIRED, "{42}"),
        ("question", QUESTION, QUESTION_PAIRED, " {42}"),
        ("lonas", LONAS_EVALUATION, LONAS_EVALUATION_PAIRED, "{42}"),
        ("lonas-train", LONAS_TRAINING, LONAS_TRAINING_PAIRED, "{42}"),
    ],
)
def test_evaluation_prompts(name: str, alone: str, paired: str, answer: str):
    template = PROMPTS[name]
    assert template.prompt(ALONE) == alone
    assert template.prompt(PAIRED) == paired
    assert template.answer(ALONE) == answer


@pytest.mark.parametrize(
    ("name", "alone", "paired"),
    [
        ("alpaca", ALPACA, ALPACA_PAIRED),
        ("question", QUESTION, QUESTION_PAIRED),
        ("lonas", LONAS_TRAINING, LONAS_TRAINING_PAIRED),
    ],
)
def test_training_prompts(name: str, alone: str, paired: str):
    template = TEMPLATES[name]
    assert (template.name, template.prompt(ALONE), template.prompt(PAIRED)) == (name, alone, paired)
    assert (template.train_on_prompt, template.whole_text) == (name == "lonas", name == "lonas")


def test_only_the_reference_s_math_prompt_has_another_indentation():
    for name, prompt in PROMPTS.items():
        assert evaluation_template(name, "commonsense") is prompt
        assert (evaluation_template(name, "math") is prompt) is (name != "lonas")
    template = evaluation_template("lonas", "math")
    assert template.prompt(ALONE) == LONAS_EVALUATION.replace(SPACES_24, " " * 28)
    assert template.prompt(PAIRED) == LONAS_EVALUATION_PAIRED.replace(SPACES_24, " " * 28)


LLAMA, CONVERSATIONS = read_search_space(Path("nncf_config/llama_7b.json")).hash, Path("chat.jsonl")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, "alpaca"),
        ({"search_space": "another"}, "alpaca"),
        ({"search_space": LLAMA}, "lonas"),  # a published LoNAS adapter
        ({"recorded": "question", "search_space": LLAMA}, "question"),
        ({"recorded": "of a later version"}, "alpaca"),
        ({"recorded": "question", "conversations": CONVERSATIONS}, "chat"),
        ({"recorded": "chat"}, "chat"),
        ({"explicit": "lonas", "recorded": "question"}, "lonas"),
        ({"explicit": "chat", "conversations": CONVERSATIONS}, "chat"),
    ],
)
def test_the_prompt_is_decided_once(arguments: dict, expected: str) -> None:
    assert choose_prompt(**arguments) == expected


def test_conversations_need_the_chat_template() -> None:
    with pytest.raises(LonasEdgeError, match=r"--template alpaca: chat\.jsonl holds conversations, .* Pass --template chat"):
        choose_prompt("alpaca", conversations=CONVERSATIONS)
