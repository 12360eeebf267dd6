"""Results of an evaluation, by target and task; metrics of encoders (GLUE's, by scikit-learn and SciPy).

Accuracies and means have a standard error by formula; F1, Matthews correlation, Pearson's and Spearman's have the standard
deviation of a seeded bootstrap over the texts.
"""

import math
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from lonas_edge.bench.statistics import Z_95, Interval, bootstrap_error, share_interval, standard_error
from lonas_edge.space.subnetwork import Sizes

ACCURACY = "acc"
SHARES = ("acc_norm", ACCURACY, "exact_match")  # metrics that are shares of correct answers; a task's first one counts
_CORRELATIONS = ("matthews", "pearson", "spearman")  # GLUE's, in percent, too


@dataclass(frozen=True)
class SkippedSample:
    """A sample whose prompt and answer exceed the model's context; it is skipped and not counted."""

    task: str
    sample: int
    tokens: int
    context: int


@dataclass(frozen=True)
class Metric:
    """A metric's value with its standard error, as in the harness: shares, not percent."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    """Result of one task."""

    task: str
    metric: str  # the metric that counts as its accuracy
    accuracy: float  # in percent; the plain value if the metric is none of those reported in percent
    accuracy_stderr: float | None  # in the same unit
    questions: int  # evaluated samples
    skipped: tuple[SkippedSample, ...]
    metrics: dict[str, Metric]
    harness: bool  # whether it is one of the harness's own tasks, to which the protocol does not apply
    share: bool = True  # whether its accuracy is in percent
    classes: dict[str, tuple[int, float]] = field(default_factory=dict)  # examples and accuracy by class

    @classmethod
    def of(cls, task: str, metric: str, metrics: Mapping[str, Metric], share: bool | None = None, **others: Any) -> Self:
        """Make a result from a task's metrics and the name of the one that counts; `share` has that in percent."""
        share, counted = metric in (*SHARES, *_CORRELATIONS) if share is None else share, metrics[metric]
        unit = 100 if share else 1
        error = None if counted.stderr is None else unit * counted.stderr
        return cls(task, metric, unit * counted.value, error, metrics=dict(metrics), share=share, **others)

    @property
    def interval(self) -> Interval:
        """The accuracy with its 95 % interval: Wilson's of a mean in percent, of others by a normal distribution."""
        if self.share and self.metric not in _CORRELATIONS:
            return share_interval(self.accuracy, self.questions)
        half = Z_95 * (self.accuracy_stderr or 0.0)
        return Interval(self.accuracy, self.accuracy - half, self.accuracy + half)


@dataclass(frozen=True)
class TargetResult:
    """Results of one target."""

    name: str
    kind: str  # `ir` or `torch`
    precision: str  # weight format of an IR, dtype in PyTorch
    prompt: str
    sizes: Sizes | None
    average: float | None  # mean accuracy in percent over the tasks that have one, which are independent
    average_stderr: float | None
    tasks: tuple[TaskResult, ...]
    answered: int  # prompts evaluated in this run; the others were in earlier ones
    seconds: float
    identity: dict[str, Any]  # what its results depend on: hashes of files, sub-network, properties, versions
    metrics: dict[str, Interval] = field(default_factory=dict)  # the accuracy by task, or by metric of a data file


@dataclass(frozen=True)
class Conditions:
    """Processor, versions and date of a measurement."""

    processor: str
    versions: dict[str, str]
    date: str


def averaged(tasks: Sequence[TaskResult]) -> tuple[float | None, float | None]:
    """Return the mean accuracy in percent and its standard error, where tasks have them."""
    shares = [task for task in tasks if task.metric in (*SHARES, *_CORRELATIONS)]
    known = [task.accuracy_stderr for task in shares if task.accuracy_stderr is not None]
    mean = statistics.mean(task.accuracy for task in shares) if shares else None
    return mean, sum(error**2 for error in known) ** 0.5 / len(known) if known and len(known) == len(shares) else None


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
