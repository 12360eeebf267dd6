"""GLUE's development sets: asked of classifiers, judged by GLUE's own metrics, compared in pairs.

Metrics are those of scikit-learn and SciPy. Accuracies have a standard error by formula; F1, Matthews correlation, Pearson's
and Spearman's have the standard deviation of a seeded bootstrap over the texts, and so have their paired differences: both
networks' answers to the same drawn texts.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lonas_edge.data.glue import GlueTask
from lonas_edge.evaluate.compare import AVERAGE, Z_95, Answered, Difference, compare
from lonas_edge.exporting.evaluations import Metric

DRAWS = 500  # an error is then known to 3 %
_SEED = 0  # of the bootstrap
Figures = np.ndarray  # [texts]: classes or figures
Score = Callable[[Figures, Figures], float]  # labels, answers


@dataclass(frozen=True)
class Judged:
    """What one network answered to one task's texts.

    Attributes:
        name: The task's, as reports call it.
        task: The task.
        places: Of the texts in the file.
        labels: What is right, [texts].
        answers: What was answered, [texts].
    """

    name: str
    task: GlueTask
    places: Sequence[int]
    labels: Figures
    answers: Figures


def _accuracy(labels: Figures, answers: Figures) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(labels, answers))


def _f1(labels: Figures, answers: Figures) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, answers, zero_division=0.0))


def _matthews(labels: Figures, answers: Figures) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, answers))


def _correlated(name: str, labels: Figures, answers: Figures) -> float:
    """A constant correlates with nothing."""
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(getattr(stats, name)(labels, answers).statistic)
    return value if math.isfinite(value) else 0.0


METRICS: Mapping[str, Score] = {
    "acc": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": lambda labels, answers: _correlated("pearsonr", labels, answers),
    "spearman": lambda labels, answers: _correlated("spearmanr", labels, answers),
}


def metrics_of(judged: Judged) -> dict[str, Metric]:
    """GLUE's metrics of a task, each with its standard error.

    Args:
        judged: What was answered.

    Returns:
        Shares or correlations by name, the one that counts first.
    """
    return {name: Metric(METRICS[name](judged.labels, judged.answers), _error(name, judged)) for name in judged.task.metrics}


def _error(name: str, judged: Judged) -> float | None:
    if len(judged.labels) < 2:
        return None
    if name == "acc":
        return float(np.std(judged.labels == judged.answers, ddof=1) / math.sqrt(len(judged.labels)))
    return float(np.std([METRICS[name](judged.labels[drawn], judged.answers[drawn]) for drawn in _draws(judged)]))


def _draws(judged: Judged) -> Sequence[np.ndarray]:
    """Places of drawn texts; the same for every network that answered the same texts."""
    count = len(judged.labels)
    generator = np.random.default_rng(_SEED)
    return [generator.integers(count, size=count) for _ in range(DRAWS)]


def differences(target: str, ours: Sequence[Judged], against: str, theirs: Sequence[Judged]) -> list[Difference]:
    """Compare two networks task by task, and over all tasks.

    Args:
        target: Name of the one.
        ours: Its answers.
        against: Name of the other.
        theirs: Its answers.

    Returns:
        A difference for each task that both answered, of the metric that counts; one for the average where there are several.
        Of a regression, `only_target` counts the texts on which the one is nearer to what is right.
    """
    known = {one.name: one for one in theirs}
    found = [_difference(target, one, against, known[one.name]) for one in ours if one.name in known]
    return [*found, _averaged(found)] if len(found) > 1 else found


def _difference(target: str, ours: Judged, against: str, theirs: Judged) -> Difference:
    ours, theirs = _shared(ours, theirs), _shared(theirs, ours)
    (plain,) = compare(target, _answered(ours), against, _answered(theirs))
    name = ours.task.metrics[0]
    if name == "acc":
        return plain
    (only_ours, only_theirs), score = _nearer(ours, theirs), METRICS[name]
    drawn = [score(ours.labels[d], ours.answers[d]) - score(theirs.labels[d], theirs.answers[d]) for d in _draws(ours)]
    from scipy.stats import binomtest

    return replace(
        plain,
        points=100 * (score(ours.labels, ours.answers) - score(theirs.labels, theirs.answers)),
        half_width_95=None if np.array_equal(ours.answers, theirs.answers) else 100 * Z_95 * float(np.std(drawn)),
        only_target=only_ours,
        only_against=only_theirs,
        mcnemar_p=float(binomtest(only_ours, only_ours + only_theirs).pvalue) if only_ours + only_theirs else 1.0,
    )


def _shared(one: Judged, other: Judged) -> Judged:
    """What both answered: a text may be too long for one of them."""
    kept = np.isin(one.places, other.places)
    places = [place for place, here in zip(one.places, kept, strict=True) if here]
    return replace(one, places=places, labels=one.labels[kept], answers=one.answers[kept])


def _nearer(ours: Judged, theirs: Judged) -> tuple[int, int]:
    """On how many texts one is nearer to what is right than the other: of classes, right where the other is wrong."""
    if ours.task.regression:
        one, other = (np.abs(judged.answers - judged.labels) for judged in (ours, theirs))
    else:
        one, other = ((judged.answers != judged.labels).astype(float) for judged in (ours, theirs))
    return int((one < other).sum()), int((one > other).sum())


def _answered(judged: Judged) -> list[Answered]:
    right = (judged.labels == judged.answers).astype(float)
    rows: Any = zip(judged.places, right.tolist(), judged.answers.tolist(), strict=True)
    return [Answered(judged.name, place, value, str(answer)) for place, value, answer in rows]


def _averaged(found: Sequence[Difference]) -> Difference:
    """The mean over tasks; they are strata."""
    from scipy.stats import binomtest

    halves = [one.half_width_95 for one in found if one.half_width_95 is not None]
    only_target, only_against = (sum(getattr(one, name) for one in found) for name in ("only_target", "only_against"))
    questions = sum(one.questions for one in found)
    return replace(
        found[0],
        scope=AVERAGE,
        points=sum(one.points for one in found) / len(found),
        half_width_95=math.sqrt(sum(half**2 for half in halves)) / len(found) if halves else None,
        only_target=only_target,
        only_against=only_against,
        mcnemar_p=float(binomtest(only_target, only_target + only_against).pvalue) if only_target + only_against else 1.0,
        identical=sum(one.identical * one.questions for one in found) / questions,
        questions=questions,
    )
