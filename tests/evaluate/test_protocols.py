"""Protocols: prompts of samples, refused samples, and agreement with the harness's definitions."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.options import EvalSettings
from lonas_edge.evaluate.protocols import HARNESS_TASKS, PROMPT_PROTOCOLS, choose_protocol

DATA = Path(__file__).parent / "data"
INSTRUCTION = (
    "Please choose the correct answer to the question: What is 1 : 2?\n\nAnswer1: a half Answer2: two: three\n\n"
    "Answer format: answer1/answer2"
)
GOOD = {"instruction": INSTRUCTION, "input": "", "output": "", "answer": "answer1"}


def test_documents_of_each_protocol():
    sample = GOOD | {"answer": "answer2"}

    def document(protocol: str, prompt: str) -> dict[str, Any]:
        (made,) = PROMPT_PROTOCOLS[protocol].documents([sample], "ARC-Easy", prompt)
        return made

    generate, word = document("generate", "question"), document("answer-word", "question")
    assert generate["prompt"] == f"Question: {INSTRUCTION}\nAnswer:"
    assert generate.keys() == {"task", "prompt", "answer"}
    assert word["prompt"] == generate["prompt"]
    assert word["choices"] == [" the correct answer is answer1", " the correct answer is answer2"]
    assert document("answer-word", "alpaca")["choices"][0] == "the correct answer is answer1"
    text = document("option-text", "lonas")
    assert text["prompt"] == "Question: What is 1 : 2?\nAnswer:"
    assert text["choices"] == ["a half", "two: three"]
    assert text["words"] == ["answer1", "answer2"]
    assert {word["label"], text["label"]} == {1}
    assert {generate["answer"], word["answer"], text["answer"]} == {"answer2"}
    assert {generate["task"], word["task"], text["task"]} == {"ARC-Easy"}


class Loader(yaml.SafeLoader):
    """Reads `!function NAME` as the name."""


Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))


def definition(name: str) -> dict[str, Any]:
    """A definition, with what it includes."""
    own = yaml.load((HARNESS_TASKS / f"{name}.yaml").read_text(), Loader)
    return definition(own["include"].removesuffix(".yaml")) | own if "include" in own else own


@pytest.mark.parametrize("protocol", PROMPT_PROTOCOLS.values(), ids=PROMPT_PROTOCOLS)
def test_the_definitions_of_stock_lm_eval_agree(protocol: Any):
    common = definition(f"_{protocol.name}")
    assert common["metadata"]["protocol"] == protocol.name
    assert common["output_type"] == ("generate_until" if protocol.generates else "multiple_choice")
    assert protocol.metric in [metric["metric"] for metric in common["metric_list"]]
    for name, task in protocol.tasks.items():
        own = definition(f"lonas_{name}_{protocol.name}")
        assert (own["task"], own["dataset_kwargs"]) == (f"lonas_{name}_{protocol.name}", {"task": name})
        assert own["tag"] == f"lonas_{'math_' if task.collection == 'math' else ''}{protocol.name}"
        others = ("include", "task", "tag", "dataset_kwargs", "generation_kwargs")
        assert {key: value for key, value in own.items() if key not in others} == {
            key: value for key, value in common.items() if key not in others
        }
        generation = {"until": [], "do_sample": False, "num_beams": 4, "max_gen_toks": task.new_tokens}
        assert own.get("generation_kwargs", {}) == (generation if protocol.generates else {})


def damaged(tmp_path: Path, content: object) -> Path:
    (tmp_path / "ARC-Easy").mkdir(exist_ok=True)
    (tmp_path / "ARC-Easy/test.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return tmp_path


TWO_FAULTS = [{"answer": "answer1"}, {"instruction": "x"}]
FAULTS = [
    ("generate", "[{", "not readable as JSON"),
    ("generate", [GOOD, {**GOOD, "answer": "answer9"}], "sample 1: answer 'answer9' is not one of"),
    ("generate", TWO_FAULTS, "sample 0: no text in 'instruction'"),
    ("generate", TWO_FAULTS, "sample 1: no text in 'answer'"),
    ("option-text", [{**GOOD, "answer": "answer3"}], "sample 0: answer 'answer3' is not among its options"),
    ("option-text", [{**GOOD, "instruction": "Hello"}], "sample 0: the instruction does not end with"),
]


@pytest.mark.parametrize(("protocol", "content", "message"), FAULTS)
def test_damaged_files_are_refused(protocol: str, content: object, message: str, tmp_path: Path):
    with pytest.raises(LonasEdgeError) as error:
        PROMPT_PROTOCOLS[protocol].read(damaged(tmp_path, content), "ARC-Easy")
    assert str(tmp_path / "ARC-Easy/test.json") in str(error.value) and message in str(error.value)
    if protocol == "option-text":
        assert PROMPT_PROTOCOLS["generate"].read(tmp_path, "ARC-Easy") == content


def test_missing_data_names_what_is_there(tmp_path: Path):
    with pytest.raises(LonasEdgeError, match=r"missing\. Test sets in"):
        PROMPT_PROTOCOLS["generate"].read(tmp_path / "nowhere", "boolq")
    with pytest.raises(LonasEdgeError, match=r"missing\. Test sets in .*: ARC-Easy"):
        PROMPT_PROTOCOLS["generate"].read(damaged(tmp_path, [GOOD]), "boolq")


@pytest.mark.parametrize(
    ("explicit", "prompts", "tasks", "expected"),
    [
        (None, ["alpaca", "chat"], ["boolq"], "option-text"),
        (None, ["alpaca"], ["boolq", "gsm8k"], "option-text"),
        (None, ["alpaca"], ["gsm8k", "AQuA"], "generate"),
        (None, ["alpaca", "lonas"], ["boolq"], "generate"),
        ("answer-word", ["lonas"], ["gsm8k"], "answer-word"),
    ],
)
def test_the_default_protocol(explicit: str | None, prompts: list[str], tasks: list[str], expected: str):
    assert choose_protocol(explicit, prompts, tasks).name == expected


def test_limit_is_a_seeded_choice():
    chosen = [EvalSettings((), None, limit=3, seed=seed).choose("boolq", 6) for seed in (0, 0, 1, 2, 3)]
    assert chosen[0] == chosen[1] == sorted(chosen[0]) and all(len(set(indices)) == 3 for indices in chosen)
    assert len(set(map(tuple, chosen))) > 2
    assert EvalSettings((), None, limit=6).choose("boolq", 6) == EvalSettings((), None).choose("boolq", 6) == [*range(6)]
