"""Compare two models on the same questions: paired differences, share of equal answers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lonas_edge.bench.statistics import difference_of_means, difference_of_statistics
from lonas_edge.evaluate.results import ACCURACY, TaskResult, compute

AVERAGE = "average"


@dataclass(frozen=True)
class Answers:
    """The answers of one model to one task, each array [questions]."""

    task: str
    samples: np.ndarray  # indices in the test set
    scores: np.ndarray  # mostly 1 or 0; their mean is the metric, unless there are labels
    given: np.ndarray  # words, numbers of choices, or cosines
    labels: np.ndarray | None = None  # where the metric is another one of GLUE's than accuracy
    metric: str = ACCURACY
    unit: float = 100  # of a score in reports: points

    def at(self, kept: np.ndarray) -> "Answers":
        """Select the answers to some of the questions."""
        labels = None if self.labels is None else self.labels[kept]
        return replace(self, samples=self.samples[kept], scores=self.scores[kept], given=self.given[kept], labels=labels)


@dataclass(frozen=True)
class TaskAnswers:
    """One task of one target: the result, the sample log, and the answers where models can be compared by them."""

    result: TaskResult
    samples: Sequence[Mapping[str, Any]]
    answers: Answers | None


@dataclass(frozen=True)
class Difference:
    """`target` minus `against`, on the questions that both answered.

    The interval is a normal approximation of the paired difference, with tasks as strata; by bootstrap for other metrics than
    accuracy. There is none below two questions of a task, and where all answers are equally correct: other questions might show
    a difference.
    """

    target: str
    against: str
    scope: str  # a task, or `average` for the mean over the tasks
    points: float  # difference of accuracy (of the task's metric) in percentage points; of a user's metric in its own unit
    low: float | None  # bounds of the 95 % interval
    high: float | None
    identical: float  # share of questions with equal answers, right or wrong
    questions: int


def compare(
    target: str, ours: Sequence[Answers], against: str, theirs: Sequence[Answers], average: bool = True
) -> list[Difference]:
    """Compare the answers of a model (`ours`) with those of a reference, task by task and on average over several tasks."""
    known = {answers.task: answers for answers in theirs}
    differences = []
    for answers in ours:
        if answers.task in known and (difference := _difference(target, answers, against, known[answers.task])):
            differences.append(difference)
    return [*differences, _average(differences)] if average and len(differences) > 1 else differences


def _difference(target: str, ours: Answers, against: str, theirs: Answers) -> Difference | None:
    samples, here, there = np.intersect1d(ours.samples, theirs.samples, assume_unique=True, return_indices=True)
    count = len(samples)
    if not count:
        return None
    ours, theirs = ours.at(here), theirs.at(there)
    if ours.labels is None:
        change, equal = difference_of_means(theirs.scores, ours.scores), np.array_equal(ours.scores, theirs.scores)
    else:
        change = difference_of_statistics(partial(compute, ours.metric), theirs.given, ours.given, ours.labels)
        equal = np.array_equal(ours.given, theirs.given)
    known = count > 1 and not equal
    return Difference(
        target=target,
        against=against,
        scope=ours.task,
        points=ours.unit * change.value,
        low=ours.unit * change.low if known else None,
        high=ours.unit * change.high if known else None,
        identical=int((ours.given == theirs.given).sum()) / count,
        questions=count,
    )


def _average(tasks: Sequence[Difference]) -> Difference:
    """The mean over tasks, which are independent samples."""
    questions = sum(task.questions for task in tasks)
    points = sum(task.points for task in tasks) / len(tasks)
    halves = [(task.high - task.low) / 2 for task in tasks if task.low is not None and task.high is not None]
    half = math.hypot(*halves) / len(tasks)
    known = halves and all(task.questions > 1 for task in tasks)
    return Difference(
        target=tasks[0].target,
        against=tasks[0].against,
        scope=AVERAGE,
        points=points,
        low=points - half if known else None,
        high=points + half if known else None,
        identical=sum(round(task.identical * task.questions) for task in tasks) / questions,
        questions=questions,
    )
