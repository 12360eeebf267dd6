"""Paired differences, against hand-computed figures."""

import math
from functools import partial

import numpy as np
import pytest

from lonas_edge.bench.statistics import difference_of_statistics
from lonas_edge.evaluate.compare import AVERAGE, Answers, compare
from lonas_edge.evaluate.results import compute


def answers(task: str, correct: str, given: str | None = None) -> Answers:
    """One question a character: 1 correct, 0 wrong."""
    values = np.array([float(value) for value in correct])
    return Answers(task, np.arange(len(correct)), values, np.array(list(given or correct)))


def test_one_task():
    (pair,) = compare("a", [answers("t", "1111100000")], "b", [answers("t", "1110011000")])
    # differences 0 0 0 1 1 -1 -1 0 0 0: mean 0, sum of squares 4
    assert pair.points == pytest.approx(0)
    half = 100 * 1.959964 * math.sqrt(4 / 9 / 10)
    assert (pair.low, pair.high) == (pytest.approx(-half), pytest.approx(half))
    assert pair.identical == pytest.approx(0.6)
    assert pair.questions == 10


def test_only_common_questions_count():
    (pair,) = compare("a", [answers("t", "1" * 6 + "0" * 4)], "b", [answers("t", "0" * 9)])
    assert (pair.points, pair.questions) == (pytest.approx(600 / 9), 9)


def test_identical_answers_count_wrong_ones_too():
    (pair,) = compare("a", [answers("t", "0000", "aabb")], "b", [answers("t", "0000", "aaab")])
    assert pair.identical == pytest.approx(0.75)
    assert pair.low is pair.high is None  # no difference seen is no proof that there is none


def test_the_average_over_tasks():
    ours = [answers("x", "1100"), answers("y", "10")]
    theirs = [answers("x", "0000"), answers("y", "01")]
    *tasks, average = compare("a", ours, "b", theirs)
    assert [each.scope for each in tasks] == ["x", "y"] and (average.scope, average.questions) == (AVERAGE, 6)
    # x: differences 1 1 0 0, variance of the mean (4 · 0.25) / 3 / 4 = 1/12; y: 1 -1, (2) / 1 / 2 = 1; average of two tasks
    assert average.points == pytest.approx(100 * (0.5 + 0) / 2)
    half = 100 * 1.959964 * math.sqrt((1 / 12 + 1) / 4)
    assert (average.low, average.high) == (pytest.approx(25 - half), pytest.approx(25 + half))


def test_intervals_by_bootstrap_are_not_centred():
    """Correlations: the interval is that of the resampled differences, which need not lie around the difference."""
    generator = np.random.default_rng(0)
    labels = generator.normal(size=12)
    given = [labels + generator.normal(size=12) * spread for spread in (0.1, 2)]
    ours, theirs = (Answers("t", np.arange(12), each, each, labels, "spearman") for each in given)
    (pair,) = compare("a", [ours], "b", [theirs])
    change = difference_of_statistics(partial(compute, "spearman"), given[1], given[0], labels)
    assert (pair.low, pair.high) == (pytest.approx(100 * change.low), pytest.approx(100 * change.high))
    assert abs(pair.low + pair.high - 2 * pair.points) > 1
