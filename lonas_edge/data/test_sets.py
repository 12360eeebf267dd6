"""Test sets of the LLM-Adapters collection (Hu et al. 2023, AGI-Edgerunners/LLM-Adapters): commonsense and math tasks.

A task is `NAME/test.json`, a list of {instruction, input, output, answer}. Answers are read as in the LoNAS reference
(LoNAS/run_commonsense.py, LoNAS/run_math.py).
"""

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError, UsageError
from lonas_edge.files import decode_json, read_text

EXPECTED = 'Expected a list of {"instruction": "…", "input": "", "output": "…", "answer": "…"}.'
TOLERANCE = 0.001  # of a correct number
_NUMBER = re.compile(r"-?\d+\.?\d*")
_INSTRUCTION = re.compile(r".*?: (?P<body>.*?)\s*Answer format: (?P<words>\S+)\s*", re.DOTALL)


@dataclass(frozen=True)
class TestSet(ABC):
    """A test set, and the rule to read an answer from generated text."""

    __test__ = False  # not for pytest

    name: str  # its name, and its folder's
    heading: str  # its short name in tables and on the command line
    metric: str | None = None  # the metric of its accuracy; the protocol's own when None
    collection: str = field(default="commonsense", kw_only=True)  # commonsense or math: the reference has a script for each
    new_tokens: int = field(default=32, kw_only=True)  # tokens that the reference generates for an answer
    reads: str = field(default="first answer word", kw_only=True)  # the rule to read an answer, for reports

    def path(self, datasets: Path) -> Path:
        """Return its file in a directory with a folder for each task."""
        return datasets / self.name / "test.json"

    def items(self, datasets: Path) -> list[Any]:
        """Read its file."""
        path = self.path(datasets)
        if not path.exists():
            present = sorted(entry.parent.name for entry in datasets.glob("*/test.json"))
            raise LonasEdgeError(f"{path}: missing. Test sets in {datasets}: {', '.join(present) or 'none'}.")
        items = decode_json(read_text(path, "the test set"), str(path))
        if not isinstance(items, list) or not items:
            raise LonasEdgeError(f"{path}: expected a list of samples, found {str(items)[:50]}")
        return items

    def error_in(self, item: Any) -> str | None:
        """Describe the problem of a sample; None if it is valid."""
        if not isinstance(item, dict):
            return f"expected an object, found {type(item).__name__}"
        kinds = {"instruction": str, "answer": str | int | float}
        missing = [name for name, kind in kinds.items() if not isinstance(item.get(name), kind) or not str(item[name]).strip()]
        if missing:
            return f"no text in {' and '.join(map(repr, missing))}"
        return None if isinstance(item.get("input") or "", str) else "'input' is not text"

    @abstractmethod
    def answer_in(self, text: str) -> str:
        """Return the answer in a generated text; empty if there is none."""

    def is_correct(self, given: str, answer: str) -> bool:
        """Check whether an answer from `answer_in` is correct."""
        return given == answer


@dataclass(frozen=True)
class WordTestSet(TestSet):
    """A question with a word as the answer; `words` are the answer words, of which a sample may have fewer."""

    words: tuple[str, ...] = field(kw_only=True)

    def error_in(self, item: Any) -> str | None:
        error = super().error_in(item)
        if error is None and item["answer"] not in self.words:
            error = f"answer {item['answer']!r} is not one of {', '.join(self.words)}"
        return error

    def answer_in(self, text: str) -> str:
        """Return the first answer word in the response, even inside another word (the reference's rule)."""
        word = re.search("|".join(map(re.escape, self.words)), _response(text))
        return word[0] if word else ""


@dataclass(frozen=True)
class Question:
    """A question, and the text of each option by its answer word, in order."""

    text: str
    options: dict[str, str]


@dataclass(frozen=True)
class CommonsenseTestSet(WordTestSet):
    """A question with options, answered by a word."""

    def question(self, sample: dict[str, str]) -> Question:
        """Parse `…: QUESTION`, the options `Answer1: TEXT Answer2: TEXT …`, and `Answer format: answer1/answer2/…`.

        Without spelled-out options (BoolQ) the answer words are the options.

        Raises:
            ValueError: If the instruction has another form, or other options.
        """
        match = _INSTRUCTION.fullmatch(sample["instruction"])
        if not match:
            raise ValueError("the instruction does not end with 'Answer format: WORD/WORD/…'")
        words = match["words"].split("/")
        labels = [f"{word.capitalize()}:" for word in words]
        question, *parts = re.split(f"({'|'.join(map(re.escape, labels))})", match["body"])
        texts = [text.strip() for text in parts[1::2]] or words
        if (parts and parts[::2] != labels) or not all(texts):
            raise ValueError(f"expected the options {' … '.join(labels)} … in this order, each with a text")
        unknown = [word for word in words if word not in self.words]
        if unknown:
            raise ValueError(f"answer format {unknown[0]!r} is not one of {', '.join(self.words)}")
        if sample["answer"] not in words:
            raise ValueError(f"answer {sample['answer']!r} is not among its options")
        return Question(question.strip(), dict(zip(words, texts, strict=True)))


@dataclass(frozen=True)
class NumberTestSet(TestSet):
    """A question with a number as the answer, given as text or as a JSON number."""

    def error_in(self, item: Any) -> str | None:
        error = super().error_in(item)
        try:
            known = error is not None or math.isfinite(float(item["answer"]))
        except (TypeError, ValueError):
            known = False
        return error if known else f"answer {item['answer']!r} is not a number"

    def answer_in(self, text: str) -> str:
        """Take the last number of the response, without commas (the reference's rule).

        A hyphen in front of digits is a sign (`3-5` ends with -5); units, a percent sign and a full stop are ignored.
        """
        numbers = _NUMBER.findall(_response(text).replace(",", ""))
        return str(float(numbers[-1])) if numbers else ""

    def is_correct(self, given: str, answer: str) -> bool:
        """Check whether a number is within 0.001 of the answer."""
        return abs(float(answer) - float(given or "inf")) <= TOLERANCE


def _response(text: str) -> str:
    """Return the generated text up to the start of another response, as in the reference."""
    return text.split("### Response:")[0]


def _numbered(word: str, count: int) -> tuple[str, ...]:
    return tuple(f"{word}{number}" for number in range(1, count + 1))


_MATH: dict[str, Any] = {"collection": "math", "new_tokens": 256}
_LAST: dict[str, Any] = {**_MATH, "reads": f"last number, correct within {TOLERANCE}"}
COMMONSENSE: dict[str, CommonsenseTestSet] = {
    each.name: each
    for each in (
        # BoolQ's options are two words: their length has no meaning.
        CommonsenseTestSet("boolq", "BoolQ", "acc", words=("true", "false")),
        CommonsenseTestSet("piqa", "PIQA", words=_numbered("solution", 2)),
        CommonsenseTestSet("social_i_qa", "SIQA", words=_numbered("answer", 5)),
        CommonsenseTestSet("hellaswag", "HellaSwag", words=_numbered("ending", 4)),
        CommonsenseTestSet("winogrande", "WinoG", words=_numbered("option", 2)),
        CommonsenseTestSet("ARC-Easy", "ARC-e", words=_numbered("answer", 5)),
        CommonsenseTestSet("ARC-Challenge", "ARC-c", words=_numbered("answer", 5)),
        CommonsenseTestSet("openbookqa", "OBQA", words=_numbered("answer", 5)),
    )
}
MATH: dict[str, TestSet] = {
    each.name: each
    for each in (
        NumberTestSet("gsm8k", "GSM8K", **_LAST),
        WordTestSet("AQuA", "AQuA", words=tuple("ABCDE"), reads="first of the letters A to E", **_MATH),
        NumberTestSet("mawps", "MAWPS", **_LAST),
        NumberTestSet("SVAMP", "SVAMP", **_LAST),
    )
}
TASKS: dict[str, TestSet] = {**COMMONSENSE, **MATH}


def resolve(tasks: Mapping[str, TestSet], names: Sequence[str]) -> list[str]:
    """Resolve names, headings, collections and `all` to task names; unknown names stay, for the harness."""
    known = {task.heading.lower(): task.name for task in tasks.values()} | {name.lower(): name for name in tasks}
    resolved: list[str] = []
    for name in names:
        several = [task.name for task in tasks.values() if name.lower() in ("all", task.collection)]
        resolved += several or [known.get(name.lower(), name)]
    return list(dict.fromkeys(resolved))


def present_tasks(tasks: Mapping[str, TestSet], datasets: Path | None) -> list[str]:
    """Return the names of the tasks in a directory of test sets."""
    if datasets is None:
        raise UsageError("pass --data FILE, your own test data, or --datasets DIR, a directory with a folder for each task")
    present = [task.name for task in tasks.values() if task.path(datasets).is_file()]
    if not present:
        raise LonasEdgeError(f"--datasets {datasets}: no TASK/test.json of {', '.join(tasks)}")
    return present


def unknown_task(tasks: Mapping[str, TestSet], name: str, others: Iterable[str] = ()) -> str:
    """Word the error about an unknown task, with the nearest known one."""
    known = {each.lower(): each for each in tasks}
    near = [known[each] for each in difflib.get_close_matches(name.lower(), known, 1, 0.5)]
    near = near or difflib.get_close_matches(name, list(others), 1, 0.6)
    return f"{name}: no such task{f'; did you mean {near[0]}?' if near else ''}"
