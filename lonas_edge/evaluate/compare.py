"""Two networks on the same questions: paired differences, McNemar's test, and how often they answer the same."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Z_95 = 1.959964


@dataclass(frozen=True)
class Answered:
    """One question as one network answered it.

    Attributes:
        task: The task.
        sample: Its index in the test set.
        right: 1 where the answer is right, 0 where not; another metric's value for other tasks.
        answer: What was answered: a word, or the number of a choice.
    """

    task: str
    sample: int
    right: float
    answer: str | int


@dataclass(frozen=True)
class Difference:
    """`target` less `against`, on the questions that both answered.

    Attributes:
        target: Name of the one.
        against: Name of the other.
        scope: A task, or `average` for the mean over the tasks.
        points: Difference of accuracy in percentage points.
        half_width_95: Half of its 95 % interval; normal approximation of the paired difference (tasks are strata). None below
            two questions of a task, and where no question tells the two apart: that is no proof that none would.
        only_target: Questions that only the one has right.
        only_against: Questions that only the other has right.
        mcnemar_p: Two-sided exact p of McNemar's test (1947), a sign test on those two.
        identical: Share of questions that both answer alike, right or wrong.
        questions: How many there are.
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


AVERAGE = "average"


def compare(target: str, answers: Sequence[Answered], against: str, others: Sequence[Answered]) -> list[Difference]:
    """Compare two networks task by task, and over all tasks.

    Args:
        target: Name of the one.
        answers: Its answers.
        against: Name of the other.
        others: Its answers.

    Returns:
        A difference for each task in the order of `answers`, and one for the average where there are several.
    """
    known = {(one.task, one.sample): one for one in others}
    pairs: dict[str, list[tuple[Answered, Answered]]] = {}
    for one in answers:
        if (one.task, one.sample) in known:
            pairs.setdefault(one.task, []).append((one, known[one.task, one.sample]))
    scopes: dict[str, Mapping[str, list[tuple[Answered, Answered]]]] = {task: {task: both} for task, both in pairs.items()}
    if len(pairs) > 1:
        scopes[AVERAGE] = pairs
    return [_difference(target, against, scope, strata) for scope, strata in scopes.items()]


def _difference(target: str, against: str, scope: str, strata: Mapping[str, list[tuple[Answered, Answered]]]) -> Difference:
    from scipy.stats import binomtest

    mean, variance = 0.0, 0.0
    for both in strata.values():
        differences = [one.right - other.right for one, other in both]
        center = sum(differences) / len(both)
        mean += center / len(strata)
        spread = sum((value - center) ** 2 for value in differences)
        variance += spread / (len(both) - 1) / len(both) / len(strata) ** 2 if len(both) > 1 else math.nan
    every = [pair for both in strata.values() for pair in both]
    only_target = sum(one.right > other.right for one, other in every)
    only_against = sum(one.right < other.right for one, other in every)
    differing = only_target + only_against
    return Difference(
        target=target,
        against=against,
        scope=scope,
        points=100 * mean,
        half_width_95=None if math.isnan(variance) or not differing else 100 * Z_95 * math.sqrt(variance),
        only_target=only_target,
        only_against=only_against,
        mcnemar_p=binomtest(only_target, differing).pvalue if differing else 1.0,
        identical=sum(one.answer == other.answer for one, other in every) / len(every),
        questions=len(every),
    )
