"""The eight commonsense tasks: their files, and what a sample asks.

A task is `<task>/test.json`, a list of {instruction, input, output, answer} as in the LLM-Adapters collection (Hu et al. 2023,
AGI-Edgerunners/LLM-Adapters).
"""

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{number}" for number in range(1, count + 1))


# Answer words by task; of answer1 … answer5 a sample may have fewer.
TASKS = {
    "boolq": ("true", "false"),
    "piqa": _numbered("solution", 2),
    "social_i_qa": _numbered("answer", 5),
    "hellaswag": _numbered("ending", 4),
    "winogrande": _numbered("option", 2),
    "ARC-Easy": _numbered("answer", 5),
    "ARC-Challenge": _numbered("answer", 5),
    "openbookqa": _numbered("answer", 5),
}


_ALIASES = {"arc-e": "ARC-Easy", "arc-c": "ARC-Challenge", "obqa": "openbookqa", "siqa": "social_i_qa", "winog": "winogrande"}


_INSTRUCTION = re.compile(r".*?: (?P<body>.*?)\s*Answer format: (?P<words>\S+)\s*", re.DOTALL)


@dataclass(frozen=True)
class Question:
    """What an instruction asks: the question, and the text of each option by its answer word, in order."""

    text: str
    options: dict[str, str]


def parse(instruction: str) -> Question:
    """Take question and options from an instruction.

    Args:
        instruction: `…: QUESTION`, the options as `Answer1: TEXT Answer2: TEXT …`, and `Answer format: answer1/answer2/…`.
            Where no options are spelled out (BoolQ), the answer words are the options.

    Returns:
        The question.

    Raises:
        ValueError: If it has another form.
    """
    found = _INSTRUCTION.fullmatch(instruction)
    if not found:
        raise ValueError("the instruction does not end with 'Answer format: WORD/WORD/…'")
    words, body = found["words"].split("/"), found["body"]
    labels = [f"{word.capitalize()}:" for word in words]
    if labels[0] not in body:
        return Question(body.strip(), {word: word for word in words})
    starts, position = [], 0
    for label in labels:
        position = body.find(label, position)
        if position < 0:
            raise ValueError(f"the instruction has no option {label!r}, which its answer format names")
        starts.append(position)
        position += len(label)
    ends = [*starts[1:], len(body)]
    texts = [body[start + len(label) : end].strip() for start, end, label in zip(starts, ends, labels, strict=True)]
    if not all(texts):
        raise ValueError(f"option {labels[texts.index('')]!r} has no text")
    return Question(body[: starts[0]].strip(), dict(zip(words, texts, strict=True)))


def resolve(names: Sequence[str]) -> list[str]:
    """Names of tasks as given on the command line.

    Args:
        names: Tasks of this package in any case, or by the card's short names; `all` for the eight.

    Returns:
        The tasks, each once; names that are none of them stay as they are, for the harness.
    """
    known = {name.lower(): name for name in TASKS} | _ALIASES
    found: list[str] = []
    for name in names:
        found += TASKS if name.lower() == "all" else [known.get(name.lower(), name)]
    return list(dict.fromkeys(found))


def there(datasets: Path | None) -> list[str]:
    """The tasks that a directory of test sets has.

    Args:
        datasets: The directory.

    Returns:
        Their names.

    Raises:
        LonasEdgeError: If it has none.
    """
    if datasets is None:
        raise LonasEdgeError("--datasets DIR is needed: the directory with a folder for each task")
    found = [task for task in TASKS if (datasets / task / "test.json").is_file()]
    if not found:
        raise LonasEdgeError(f"--datasets {datasets}: no TASK/test.json of {', '.join(TASKS)}")
    return found


def unknown_task(name: str, others: Iterable[str] = ()) -> str:
    """What to say of a task that nobody knows.

    Args:
        name: The task.
        others: Names of the harness's own tasks.

    Returns:
        The known ones, with the nearest.
    """
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in TASKS], 1, 0.5)
    near = [known for known in TASKS if known.lower() in near] or difflib.get_close_matches(name, list(others), 1, 0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name}: no such task{hint}"


def read_samples(datasets: Path, task: str, protocol: str = "option-text") -> list[dict[str, str]]:
    """Read a task's test set, and check every sample before any is asked.

    Args:
        datasets: The directory with a folder for each task.
        task: One of `TASKS`.
        protocol: One of `PROTOCOLS`: what the samples must be good for.

    Returns:
        The samples.

    Raises:
        LonasEdgeError: If the file is missing, empty or not of the format; every faulty sample is listed with its index.
    """
    path = datasets / task / "test.json"
    if not datasets.is_dir():
        raise LonasEdgeError(f"--datasets {datasets}: no such directory; expected one with a folder for each task")
    if not path.is_file():
        there = sorted(entry.parent.name for entry in datasets.glob("*/test.json"))
        raise LonasEdgeError(f"{path}: missing. Test sets in {datasets}: {', '.join(there) or 'none'}.")
    try:
        items = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise LonasEdgeError(f"{path}: not readable as JSON: {error}") from error
    if not isinstance(items, list) or not items:
        found = f"a {type(items).__name__}" if not isinstance(items, list) else "an empty one"
        raise LonasEdgeError(f"{path}: expected a list of samples, found {found}")
    faults = [f"sample {index}: {fault}" for index, item in enumerate(items) if (fault := _fault(item, task, protocol))]
    raise_all(
        f"{path}: not a test set of {task} for the protocol {protocol}:",
        faults,
        'Expected a list of {"instruction": "…", "input": "", "output": "…", "answer": "…"}.',
    )
    return items


def _fault(item: Any, task: str, protocol: str) -> str | None:
    if not isinstance(item, dict):
        return f"expected an object, found {type(item).__name__}"
    missing = [name for name in ("instruction", "answer") if not isinstance(item.get(name), str) or not item[name].strip()]
    if missing:
        return f"no text in {' and '.join(map(repr, missing))}"
    if not isinstance(item.get("input") or "", str):
        return "'input' is not text"
    if item["answer"] not in TASKS[task]:
        return f"answer {item['answer']!r} is not one of {', '.join(TASKS[task])}"
    if protocol == "generate":
        return None
    try:
        question = parse(item["instruction"])
    except ValueError as error:
        return str(error)
    strange = [word for word in question.options if word not in TASKS[task]]
    if strange:
        return f"answer format {strange[0]!r} is not one of {', '.join(TASKS[task])}"
    if task != "boolq" and all(text == word for word, text in question.options.items()):
        return f"no option is spelled out; expected '{next(iter(question.options)).capitalize()}: TEXT …'"
    return None if item["answer"] in question.options else f"answer {item['answer']!r} is not among its options"


def first_answer_word(text: str, words: Sequence[str]) -> str:
    """The reference's rule: the first answer word in the response, in whatever it is embedded.

    Args:
        text: What was generated after the prompt; the response ends where another one begins.
        words: The task's answer words.

    Returns:
        The word, or nothing.
    """
    found = re.search("|".join(map(re.escape, words)), text.split("### Response:")[0])
    return found[0] if found else ""
