"""Compare two models on the same questions: paired differences, McNemar's test, share of equal answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lonas_edge.bench.statistics import Z_95, bootstrap_error, sign_test, standard_error
from lonas_edge.evaluate.glue import ACCURACY, METRICS
from lonas_edge.exporting.evaluations import TaskResult

AVERAGE = "average"


@dataclass(frozen=True)
class Answers:
    """The answers of one model to one task.

    Attributes:
        task: The task.
        samples: Indices in the test set, [questions].
        correct: 1 for a correct answer, 0 for a wrong one; of a regression minus the distance from the label (of an
            embedding model: of their ranks); of retrieval the query's nDCG, [questions].
        given: The answers: words, numbers of choices, cosines, or lists of documents as text, [questions].
        labels: The labels, where the metric is another one of GLUE's than accuracy, [questions].
        metric: The metric.
    """

    task: str
    samples: np.ndarray
    correct: np.ndarray
    given: np.ndarray
    labels: np.ndarray | None = field(default=None)
    metric: str = ACCURACY

    def at(self, kept: np.ndarray) -> "Answers":
        """Select the answers to some of the questions."""
        labels = None if self.labels is None else self.labels[kept]
        return Answers(self.task, self.samples[kept], self.correct[kept], self.given[kept], labels, self.metric)

    def score(self, drawn: Any = slice(None)) -> float:
        """Compute the metric, optionally on drawn questions."""
        if self.labels is None:
            return float(self.correct[drawn].mean())
        return METRICS[self.metric](self.labels[drawn], self.given[drawn])


@dataclass(frozen=True)
class TaskAnswers:
    """One task of one target: the result, the sample log, and the answers where models can be compared by them."""

    result: TaskResult
    samples: Sequence[Mapping[str, Any]]
    answers: Answers | None


@dataclass(frozen=True)
class Difference:
    """`target` minus `against`, on the questions that both answered.

    Attributes:
        target: Name of the compared model.
        against: Name of the reference.
        scope: A task, or `average` for the mean over the tasks.
        points: Difference of accuracy (of the task's metric) in percentage points.
        half_width_95: Half of its 95 % interval: a normal approximation of the paired difference, with tasks as strata; by
            bootstrap for other metrics than accuracy. None below two questions of a task, and where all answers are equally
            correct: other questions might show a difference.
        only_target: Questions that only `target` answers correctly; of a regression, those where it is nearer to the label;
            of retrieval, those with a higher nDCG.
        only_against: Questions that only `against` answers correctly.
        mcnemar_p: Two-sided exact p of McNemar's test (1947), a sign test on those two.
        identical: Share of questions with equal answers, right or wrong.
        questions: Number of questions.
    """

    target: str
    against: str
    scope: str
    points: float
    half_width_95: float | None
    only_target: int
    only_against: int
    mcnemar_p: float
    identical: float
    questions: int


@dataclass(frozen=True)
class _Pair:
    """One task or several: the mean difference, its variance (NaN where unknown), and counts of questions."""

    points: float
    variance: float
    only_target: int
    only_against: int
    identical: int
    questions: int


def compare(target: str, ours: Sequence[Answers], against: str, theirs: Sequence[Answers]) -> list[Difference]:
    """Compare the answers of a model (`ours`) with those of a reference, task by task and on average over several tasks."""
    known = {answers.task: answers for answers in theirs}
    pairs = {answers.task: pair for answers in ours if answers.task in known and (pair := _pair(answers, known[answers.task]))}
    if len(pairs) > 1:
        pairs[AVERAGE] = _mean(list(pairs.values()))
    return [_difference(target, against, scope, pair) for scope, pair in pairs.items()]


def _pair(ours: Answers, theirs: Answers) -> _Pair | None:
    samples, here, there = np.intersect1d(ours.samples, theirs.samples, assume_unique=True, return_indices=True)
    count = len(samples)
    if not count:
        return None
    ours, theirs = ours.at(here), theirs.at(there)
    differences = ours.correct - theirs.correct
    if ours.labels is None:
        points = 100 * float(differences.mean())
        error = standard_error(differences)
    else:
        points = 100 * (ours.score() - theirs.score())
        error = bootstrap_error(lambda drawn: ours.score(drawn) - theirs.score(drawn), count)
    identical = int((ours.given == theirs.given).sum())
    variance = math.nan if error is None else (100 * error) ** 2
    return _Pair(points, variance, int((differences > 0).sum()), int((differences < 0).sum()), identical, count)


def _mean(pairs: Sequence[_Pair]) -> _Pair:
    """The mean over tasks, which are independent samples."""
    counts = [sum(getattr(pair, name) for pair in pairs) for name in ("only_target", "only_against", "identical", "questions")]
    count = len(pairs)
    return _Pair(sum(pair.points for pair in pairs) / count, sum(pair.variance for pair in pairs) / count**2, *counts)


def _difference(target: str, against: str, scope: str, pair: _Pair) -> Difference:
    differing = pair.only_target + pair.only_against
    known = differing and not math.isnan(pair.variance)
    return Difference(
        target=target,
        against=against,
        scope=scope,
        points=pair.points,
        half_width_95=Z_95 * math.sqrt(pair.variance) if known else None,
        only_target=pair.only_target,
        only_against=pair.only_against,
        mcnemar_p=sign_test(pair.only_target, pair.only_against),
        identical=pair.identical / pair.questions,
        questions=pair.questions,
    )
