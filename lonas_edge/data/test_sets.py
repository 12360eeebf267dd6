"""Test sets in the format of the LLM-Adapters collection (Hu et al. 2023, AGI-Edgerunners/LLM-Adapters), and their names.

A task is `NAME/test.json`, a list of {instruction, input, output, answer}. A set of tasks is a mapping by name.
"""

import difflib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError
from lonas_edge.files import decode_json, read_text

EXPECTED = 'Expected a list of {"instruction": "…", "input": "", "output": "…", "answer": "…"}.'


@dataclass(frozen=True)
class TestSet(ABC):
    """A test set, and the rule to read an answer from generated text."""

    name: str  # its name, and its folder's
    heading: str  # its short name in tables and on the command line
    metric: str | None = None  # the metric of its accuracy; the protocol's own when None
    collection: str = field(default="commonsense", kw_only=True)  # `commonsense` or `math`: the reference has a script for each
    new_tokens: int = field(default=32, kw_only=True)  # tokens that the reference generates for an answer
    reads: str = field(default="first answer word", kw_only=True)  # the rule to read an answer, for reports

    def path(self, datasets: Path) -> Path:
        """Return its file in a directory with a folder for each task."""
        return datasets / self.name / "test.json"

    def items(self, datasets: Path) -> list[Any]:
        """Read its file."""
        path = self.path(datasets)
        try:
            if not datasets.is_dir():
                raise LonasEdgeError(f"--datasets {datasets}: no such directory; expected one with a folder for each task")
            if not path.exists():
                there = sorted(entry.parent.name for entry in datasets.glob("*/test.json"))
                raise LonasEdgeError(f"{path}: missing. Test sets in {datasets}: {', '.join(there) or 'none'}.")
            items = decode_json(read_text(path, "the test set"), str(path))
        except OSError as error:
            raise LonasEdgeError(f"{path}: the test set cannot be read: {error}") from error
        if not isinstance(items, list) or not items:
            raise LonasEdgeError(f"{path}: expected a list of samples, found {str(items)[:50]}")
        return items

    def fault(self, item: Any) -> str | None:
        """Describe the problem of a sample; None if it is valid."""
        if not isinstance(item, dict):
            return f"expected an object, found {type(item).__name__}"
        missing = [name for name in ("instruction", "answer") if not isinstance(item.get(name), str) or not item[name].strip()]
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
    """A question with a word as the answer."""

    words: tuple[str, ...] = field(kw_only=True)  # the answer words; a sample may have fewer

    def fault(self, item: Any) -> str | None:
        fault = super().fault(item)
        if fault is None and item["answer"] not in self.words:
            fault = f"answer {item['answer']!r} is not one of {', '.join(self.words)}"
        return fault

    def answer_in(self, text: str) -> str:
        """Return the first answer word in the response, even inside another word (the reference's rule)."""
        word = re.search("|".join(map(re.escape, self.words)), response(text))
        return word[0] if word else ""


def response(text: str) -> str:
    """Return the generated text up to the start of another response, as in the reference."""
    return text.split("### Response:")[0]


def resolve(tasks: Mapping[str, TestSet], names: Sequence[str]) -> list[str]:
    """Resolve names, headings, collections and `all` to task names; unknown names stay, for the harness."""
    known = {task.heading.lower(): task.name for task in tasks.values()} | {name.lower(): name for name in tasks}
    resolved: list[str] = []
    for name in names:
        several = [task.name for task in tasks.values() if name.lower() in ("all", task.collection)]
        resolved += several or [known.get(name.lower(), name)]
    return list(dict.fromkeys(resolved))


def there(tasks: Mapping[str, TestSet], datasets: Path | None) -> list[str]:
    """Return the names of the tasks in a directory of test sets."""
    if datasets is None:
        raise LonasEdgeError("--datasets DIR is needed: the directory with a folder for each task")
    present = [task.name for task in tasks.values() if task.path(datasets).is_file()]
    if not present:
        raise LonasEdgeError(f"--datasets {datasets}: no TASK/test.json of {', '.join(tasks)}")
    return present


def unknown_task(tasks: Mapping[str, TestSet], name: str, others: Iterable[str] = ()) -> str:
    """Word the error about an unknown task, with the nearest known one."""
    near = difflib.get_close_matches(name.lower(), [known.lower() for known in tasks], 1, 0.5)
    near = [known for known in tasks if known.lower() in near] or difflib.get_close_matches(name, list(others), 1, 0.6)
    hint = f"; did you mean {near[0]}?" if near else ""
    return f"{name}: no such task{hint}"
