"""Metrics of encoders with their standard errors: GLUE's, by scikit-learn and SciPy.

Accuracies and means have a standard error by formula; F1, Matthews correlation, Pearson's and Spearman's have the standard
deviation of a seeded bootstrap over the texts.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lonas_edge.bench.statistics import bootstrap_error, standard_error
from lonas_edge.evaluate.results import Metric

ACCURACY = "acc"


def _accuracy(labels: np.ndarray, outputs: np.ndarray) -> float:
    return float((labels == outputs).mean())


def _f1(labels: np.ndarray, outputs: np.ndarray) -> float:
    from sklearn.metrics import f1_score

    return float(f1_score(labels, outputs, zero_division=0.0))


def _matthews(labels: np.ndarray, outputs: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(labels, outputs))


def _correlation(name: str, labels: np.ndarray, outputs: np.ndarray) -> float:
    """SciPy's; 0 for a constant, which correlates with nothing."""
    from scipy import stats

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = float(getattr(stats, name)(labels, outputs).statistic)
    return value if math.isfinite(value) else 0.0


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], float]] = {  # of labels and outputs, both [texts]
    ACCURACY: _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": lambda labels, outputs: _correlation("pearsonr", labels, outputs),
    "spearman": lambda labels, outputs: _correlation("spearmanr", labels, outputs),
}


def metrics_of(names: Sequence[str], labels: np.ndarray, outputs: np.ndarray) -> dict[str, Metric]:
    """Compute metrics by name, each with its standard error: shares or correlations."""
    return {name: Metric(METRICS[name](labels, outputs), _error(name, labels, outputs)) for name in names}


def _error(name: str, labels: np.ndarray, outputs: np.ndarray) -> float | None:
    if name == ACCURACY or len(labels) < 2:
        return standard_error((labels == outputs).astype(float))
    return bootstrap_error(lambda drawn: METRICS[name](labels[drawn], outputs[drawn]), len(labels))
