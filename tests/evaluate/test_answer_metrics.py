"""Metrics of answers: expected scores follow from their definitions, without the code."""

from pathlib import Path

import pytest

from lonas_edge.errors import LonasEdgeError
from lonas_edge.evaluate.answer_metrics import METRICS, choose_metric

CALL = '[{"name": "f", "arguments": {"a": "x", "b": 1}}]'


@pytest.mark.parametrize(
    ("metric", "answer", "reference", "expected"),
    [
        ("exact-match", " yes\n", "yes", 1),
        ("exact-match", "Yes", "yes", 0),
        ("json", '{"a": 1, "b": [2]}', '{"b":[2],"a":1}', 1),
        ("json", '{"a": 1}', '{"a": "1"}', 0),
        ("json", '{"a": 1', '{"a": 1}', 0),
        ("json-f1", '{"a": 1, "b": {"c": 2}}', '{"a": 1, "b": {"c": 3}, "d": 4}', 2 * 1 / (2 + 3)),
        ("json-f1", '{"a": [1, 2]}', '{"a": [2, 1]}', 1),
        ("json-f1", "none", '{"a": 1}', 0),
        ("json-f1", "{}", "{}", 1),
        ("json-f1", "no JSON", "{}", 0),
        ("json", "true", "1", 0),
        ("json", "[" * 10_000, "[]", 0),  # as a damaged model writes
        # calls, in the marks of three families
        ("json", '<tool_call>\n{"name": "f", "arguments": {"b": 1, "a": "x"}}\n</tool_call>', CALL, 1),
        ("json", '[{"name": "f", "arguments": {"a": "x", "b": 1}}]', CALL, 1),
        ("json", '{"name": "f", "parameters": {"a": "x", "b": 1}}', CALL, 1),
        ("json", '<tool_call>{"name": "g", "arguments": {"a": "x", "b": 1}}</tool_call>', CALL, 0),
        ("json", '<tool_call>{"name": "f", "arguments": {"a": "x", "b": 1}', CALL, 0),
        ("json", "I cannot {do} that.", CALL, 0),
        ("json", 'With {"x": 2}: <tool_call>{"name": "f", "arguments": {"a": "x", "b": 1}}</tool_call>', CALL, 1),
        ("json", " It is on. ", "It is on.", 1),  # the answer after a call's result
        ("json-f1", CALL, "It is on.", 0),
        ("json-f1", '<tool_call>{"name": "f", "arguments": {"a": "y", "b": 1}}</tool_call>', CALL, 2 / 3),
        ("token-f1", "The cat sat.", "a cat sat down", 2 * 2 / (2 + 3)),
        ("token-f1", "", "cat", 0),
        ("rouge-l", "the cat sat on mats", "the cat is on mats now", 2 * 4 / (5 + 6)),  # the cat on mats
        ("rouge-l", "Привет, мир", "привет всем", 1 / 2),
        ("chrf", "abc", "abc", 1),
        ("chrf", "xyz", "abc", 0),
    ],
)
def test_scores(metric: str, answer: str, reference: str, expected: float) -> None:
    figures = {name: score for each in METRICS.values() for name, score in each.figures.items()}

    assert figures[metric](answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("references", "expected"),
    [
        (['{"a": 1}', '{"b": 2}'], "json"),
        (["yes", "no", '{"a": 1}'], "exact-match"),
        ([CALL, '{"a": 1}'], "json"),
        ([CALL, "It is on."], "json"),
        (["one two three four five six"] * 2 + ["yes"], "rouge-l"),
        (["[1, 2]"], "exact-match"),
        (["这是一个没有空格的很长的参考答案句子"], "chrf"),
    ],
)
def test_auto_follows_the_references(references: list[str], expected: str) -> None:
    assert choose_metric("auto", references).name == expected


def test_an_unknown_metric_lists_the_known_ones() -> None:
    with pytest.raises(
        LonasEdgeError, match="--metric bleu: unknown; expected auto, exact-match, json, token-f1, rouge-l, chrf"
    ):
        choose_metric("bleu", [])


def metric_in(path: Path, body: str) -> str:
    """A metric of the user's own with this body."""
    path.write_text(f"def score(answer, reference):\n    {body}\n")
    return f"{path}:score"


def test_a_file_may_be_named_like_a_package(tmp_path: Path) -> None:
    choose_metric(metric_in(tmp_path / "rouge_score.py", "return 1"), [])
    assert choose_metric("rouge-l", []).figures["rouge-l"]("a b", "a b") == 1


def test_a_function_in_a_file_is_a_metric(tmp_path: Path) -> None:
    score = choose_metric(metric_in(tmp_path / "own.py", "return len(answer) / len(reference)"), []).figures["score"]

    assert [score("ab", "abcd"), score("abcd", "ab")] == [0.5, 2.0]
    assert choose_metric(metric_in(tmp_path / "own.py", "return answer in reference"), []).figures["score"]("a", "ab") == 1


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("return float('nan')", r"score\('answer', 'reference'\) gives nan; expected a number or a bool"),
        ("return None", "gives None; expected a number or a bool"),
        ("return '1'", "gives '1'; expected a number or a bool"),
        ("return answer[100]", "failed: IndexError: string index out of range"),
    ],
)
def test_a_failing_function_names_the_example(tmp_path: Path, body: str, problem: str) -> None:
    metric = choose_metric(metric_in(tmp_path / "own.py", body), [])

    with pytest.raises(LonasEdgeError, match=problem):
        metric.figures["score"]("answer", "reference")


def test_files_without_the_function_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("x = ]\n")

    with pytest.raises(LonasEdgeError, match=r"own.py: has no function 'score'"):
        choose_metric(f"{tmp_path}/own.py:score", [])
    with pytest.raises(LonasEdgeError, match=r"broken.py: cannot be run: SyntaxError"):
        choose_metric(f"{tmp_path}/broken.py:score", [])
    with pytest.raises(LonasEdgeError, match="there is no such file"):
        choose_metric(f"{tmp_path}/absent.py:score", [])
