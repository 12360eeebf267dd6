"""GLUE's metrics with their standard errors: scikit-learn's and SciPy's.

Accuracies have a standard error by formula; F1, Matthews correlation, Pearson's and Spearman's have the standard deviation of a
seeded bootstrap over the texts.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lonas_edge.bench.statistics import bootstrap_error, standard_error
from lonas_edge.exporting.evaluations import Metric

ACCURACY = "acc"
Score = Callable[[np.ndarray, np.ndarray], float]  # labels, answers, both [texts]


def _accuracy(labels: np.ndarray, answers: np.ndarray) -> float:
    return float((labels == answers).mean())


def _f1(labels: np.ndarray, answers: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, answers, zero_division=0.0))


def _matthews(labels: np.ndarray, answers: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, answers))


def _correlation(name: str, labels: np.ndarray, answers: np.ndarray) -> float:
    """SciPy's; 0 for a constant, which correlates with nothing."""
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(getattr(stats, name)(labels, answers).statistic)
    return value if math.isfinite(value) else 0.0


METRICS: Mapping[str, Score] = {
    ACCURACY: _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": lambda labels, answers: _correlation("pearsonr", labels, answers),
    "spearman": lambda labels, answers: _correlation("spearmanr", labels, answers),
}


def metrics_of(names: Sequence[str], labels: np.ndarray, answers: np.ndarray) -> dict[str, Metric]:
    """Metrics by name, each with its standard error: shares or correlations."""
    return {name: Metric(METRICS[name](labels, answers), _error(name, labels, answers)) for name in names}


def _error(name: str, labels: np.ndarray, answers: np.ndarray) -> float | None:
    if name == ACCURACY or len(labels) < 2:
        return standard_error((labels == answers).astype(float))
    return bootstrap_error(lambda drawn: METRICS[name](labels[drawn], answers[drawn]), len(labels))
