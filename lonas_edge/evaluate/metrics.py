"""Metrics of encoders with their standard errors: GLUE's, by scikit-learn and SciPy.

Accuracies and means have a standard error by formula; F1, Matthews correlation, Pearson's and Spearman's have the standard
deviation of a seeded bootstrap over the texts.
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np

from lonas_edge.bench.statistics import bootstrap_error, standard_error
from lonas_edge.evaluate.results import Metric

ACCURACY = "acc"


def compute(metric: str, labels: np.ndarray, outputs: np.ndarray) -> float:
    """Compute a metric of labels and outputs, both [texts]: a share or a correlation, which is 0 for a constant."""
    if metric == ACCURACY:
        return float((labels == outputs).mean())
    if metric in ("f1", "matthews"):
        from sklearn.metrics import f1_score, matthews_corrcoef

        f1 = metric == "f1"
        return float(f1_score(labels, outputs, zero_division=0.0) if f1 else matthews_corrcoef(labels, outputs))
    from scipy import stats

    correlate = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[metric]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constants
        value = float(correlate(labels, outputs).statistic)
    return value if math.isfinite(value) else 0.0


def metrics_of(names: Sequence[str], labels: np.ndarray, outputs: np.ndarray) -> dict[str, Metric]:
    """Compute metrics by name, each with its standard error: shares or correlations."""
    return {name: Metric(compute(name, labels, outputs), _error(name, labels, outputs)) for name in names}


def _error(name: str, labels: np.ndarray, outputs: np.ndarray) -> float | None:
    if name == ACCURACY or len(labels) < 2:
        return standard_error((labels == outputs).astype(float))
    return bootstrap_error(lambda drawn: compute(name, labels[drawn], outputs[drawn]), len(labels))
