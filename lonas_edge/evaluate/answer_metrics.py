"""Metrics of generated answers: scores of an answer against its reference.

`auto` takes `json` where all references are JSON objects, `exact-match` where they are short, `chrf` where words are not
separated by blanks, else `rouge-l`. A metric of the user is a function of (answer, reference) in a Python file.
"""

import json
import math
import re
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lonas_edge.errors import LonasEdgeError, UsageError, one_line
from lonas_edge.files import sha256

AUTO, EXACT_MATCH, JSON, ROUGE, CHRF = "auto", "exact-match", "json", "rouge-l", "chrf"
_SHORT, _LONG_WORD = 5, 15  # words of a median reference that is compared as a whole; letters of what is no single word
_CALL = {"name", "arguments"}  # of a call in a reference
_FIGURES = ("loss", "accuracy", "metric")  # names with another meaning in records and targets

Score = Callable[[str, str], float]  # of an answer and its reference


def exact_match(answer: str, reference: str) -> float:
    """Whether both texts are the same but for blanks around them."""
    return float(answer.strip() == reference.strip())


def json_match(answer: str, reference: str) -> float:
    """Whether both texts are the same JSON value, or make the same calls; the order of an object's keys does not count.

    Where the reference is neither, the texts are compared: an answer may be a call or a text.
    """
    found, expected = _parse_both(answer, reference)
    if expected is None:
        return exact_match(answer, reference)
    return float(found is not None and json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True))


def json_f1(answer: str, reference: str) -> float:
    """F1 of the fields of two JSON objects: a field counts if path and value are equal; an answer that is no JSON has none."""
    value, wanted = _parse_both(answer, reference)
    if wanted is None:
        return exact_match(answer, reference)
    if value is None:
        return 0.0
    found, expected = _fields(value), _fields(wanted)
    if not (found and expected):
        return float(found == expected)
    return 2 * (found & expected).total() / (found.total() + expected.total())


def _parse(text: str) -> Any:
    """The JSON value; None for other texts."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a damaged model repeats brackets
        return None


def _parse_both(answer: str, reference: str) -> tuple[Any, Any]:
    """The values of answer and reference. Where this is a list of calls, so is that of the answer."""
    found, expected = _parse(answer), _parse(reference)
    return (_calls(answer) or None, expected) if _are_calls(expected) else (found, expected)


def _are_calls(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) and set(each) == _CALL for each in value)


def _calls(text: str) -> list[Any]:
    """Name and arguments of the calls in a text, whatever stands around them: templates mark calls differently."""
    found, decoder, position = list[Any](), json.JSONDecoder(), 0
    while (start := text.find("{", position)) >= 0:
        position = start + 1
        with suppress(ValueError, RecursionError):
            value, position = decoder.raw_decode(text, start)
            if "name" in value:
                found.append({"name": value["name"], "arguments": value.get("arguments", value.get("parameters"))})  # LLaMA 3
    return found


def _fields(value: Any, path: str = "") -> Counter[str]:
    """The values in an object, with their paths; the items of a list have the path of the list."""
    if isinstance(value, dict):
        return sum((_fields(item, f"{path}.{name}") for name, item in value.items()), Counter())
    if isinstance(value, list):
        return sum((_fields(item, f"{path}[]") for item in value), Counter())
    return Counter([f"{path}={json.dumps(value)}"])


def token_f1(answer: str, reference: str) -> float:
    """SQuAD's F1 of words, without case, punctuation and articles (Rajpurkar et al., 2016), by transformers."""
    from transformers.data.metrics.squad_metrics import compute_f1

    return float(compute_f1(reference, answer))


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    # words of any script: rouge-score's own tokenizer (0.1.2) keeps ASCII letters only
    words = SimpleNamespace(tokenize=lambda text: re.findall(r"\w+", text.lower()))
    return RougeScorer(["rougeL"], tokenizer=words)


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words (Lin, 2004), by rouge-score."""
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


def chrf(answer: str, reference: str) -> float:
    """F of character n-grams (Popović, 2015), by sacrebleu with its defaults, from 0 to 1."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, [reference]).score / 100)


@dataclass(frozen=True)
class AnswerMetric:
    """A metric: its figures by name, of which the first counts, and whether they are shares, reported in percent."""

    figures: Mapping[str, Score]
    share: bool = True

    @property
    def name(self) -> str:
        """The name of the first figure."""
        return next(iter(self.figures))


METRICS = {
    metric.name: metric
    for metric in (
        AnswerMetric({EXACT_MATCH: exact_match}),
        AnswerMetric({JSON: json_match, "json-f1": json_f1}),
        AnswerMetric({"token-f1": token_f1}),
        AnswerMetric({ROUGE: rouge_l}),
        AnswerMetric({CHRF: chrf}),
    )
}


def choose_metric(name: str, references: Sequence[str]) -> AnswerMetric:
    """Get a metric by name, by FILE.py:FUNCTION, or `auto` by the references.

    Raises:
        LonasEdgeError: If there is no such metric; the known ones are listed.
    """
    if name == AUTO:
        return METRICS[suited(references)]
    if name in METRICS:
        return METRICS[name]
    file, function = check_metric(name)
    return AnswerMetric({function: _own(Path(file), function)}, share=False)


def check_metric(name: str) -> tuple[str, str]:
    """Split FILE.py:FUNCTION; a known metric has neither.

    Raises:
        UsageError: If there is no such metric; the known ones are listed.
    """
    if name in (AUTO, *METRICS):
        return "", ""
    file, _, function = name.rpartition(":")
    if not (file.endswith(".py") and function.isidentifier()):
        raise UsageError(f"--metric {name}: unknown; expected {AUTO}, {', '.join(METRICS)} or FILE.py:FUNCTION")
    if function in (*_FIGURES, *METRICS):
        raise UsageError(f"--metric {name}: {function!r} has another meaning in reports; rename the function")
    return file, function


def suited(references: Sequence[str]) -> str:
    """Name the metric that `auto` stands for."""
    values = [_parse(reference) for reference in references]
    if any(map(_are_calls, values)) or all(isinstance(value, dict) for value in values):
        return JSON
    words = statistics.median(len(reference.split()) for reference in references)
    letters = statistics.median(len(reference) / max(1, len(reference.split())) for reference in references)
    return CHRF if letters > _LONG_WORD else EXACT_MATCH if words <= _SHORT else ROUGE


def identity(name: str) -> str:
    """What the scores of a metric depend on: its name, and the content of the user's file."""
    file = metric_file(name)
    return f"{name} {sha256(file)}" if file else name


def metric_file(name: str) -> Path | None:
    """The user's file that a metric is in."""
    file = Path(name.rpartition(":")[0])
    return file if file.is_file() else None


def _own(path: Path, name: str) -> Score:
    """The user's own metric: a function in a Python file, which is run."""
    unique = f"lonas_edge_metric_{path.stem}"  # a file may be named like a package
    spec = spec_from_file_location(unique, path)
    if not (spec and spec.loader and path.is_file()):
        raise LonasEdgeError(f"--metric {path}:{name}: there is no such file")
    module = sys.modules[unique] = module_from_spec(spec)  # dataclasses look for it there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise LonasEdgeError(f"{path}: cannot be run: {type(error).__name__}: {one_line(str(error))}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise LonasEdgeError(f"{path}: has no function {name!r}; expected one of (answer, reference)")

    def score(answer: str, reference: str) -> float:
        where = f"{path}: {name}({one_line(answer)[:80]!r}, {one_line(reference)[:80]!r})"
        try:
            value = function(answer, reference)
            number = float(value) if hasattr(value, "__float__") else math.nan
        except Exception as error:
            raise LonasEdgeError(f"{where} failed: {type(error).__name__}: {one_line(str(error))}") from error
        if not math.isfinite(number):
            raise LonasEdgeError(f"{where} gives {value!r}; expected a number or a bool")
        return number

    return score
