"""The four math tasks of the LLM-Adapters collection, as in the LoNAS reference (LoNAS/run_math.py)."""

import math
import re
from dataclasses import dataclass
from typing import Any

from lonas_edge.data.test_sets import TestSet, WordTestSet, response

TOLERANCE = 0.001  # of a correct number
_NUMBER = re.compile(r"-?\d+\.?\d*")


@dataclass(frozen=True)
class NumberTestSet(TestSet):
    """A question with a number as the answer, given as text or as a JSON number."""

    def fault(self, item: Any) -> str | None:
        as_number = isinstance(item, dict) and isinstance(item.get("answer"), int | float)
        fault = super().fault({**item, "answer": str(item["answer"])} if as_number else item)
        if fault is None and not math.isfinite(_number(item["answer"])):
            fault = f"answer {item['answer']!r} is not a number"
        return fault

    def answer_in(self, text: str) -> str:
        """Take the last number of the response, without commas (the reference's rule).

        A hyphen in front of digits is a sign (`3-5` ends with -5); units, a percent sign and a full stop are ignored.
        """
        numbers = _NUMBER.findall(response(text).replace(",", ""))
        return str(float(numbers[-1])) if numbers else ""

    def is_correct(self, given: str, answer: str) -> bool:
        """Check whether a number is within 0.001 of the answer."""
        return abs(float(answer) - float(given or "inf")) <= TOLERANCE


def _number(answer: object) -> float:
    try:
        return float(str(answer))
    except ValueError:
        return math.nan


_MATH: dict[str, Any] = {"collection": "math", "new_tokens": 256}
_LAST: dict[str, Any] = {**_MATH, "reads": f"last number, correct within {TOLERANCE}"}
TASKS: dict[str, TestSet] = {
    task.name: task
    for task in (
        NumberTestSet("gsm8k", "GSM8K", **_LAST),
        WordTestSet("AQuA", "AQuA", words=tuple("ABCDE"), reads="first of the letters A to E", **_MATH),
        NumberTestSet("mawps", "MAWPS", **_LAST),
        NumberTestSet("SVAMP", "SVAMP", **_LAST),
    )
}
