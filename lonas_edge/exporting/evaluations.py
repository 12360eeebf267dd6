"""Records of evaluations, and the ones that `eval --card` keeps with an exported directory."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from lonas_edge.schema import Record
from lonas_edge.space.subnetwork import Sizes

FILE = "lonas_edge_eval.json"
SHARES = ("acc_norm", "acc", "exact_match")  # metrics that are shares of correct answers; a task's first one counts
CORRELATIONS = ("matthews", "pearson", "spearman")  # GLUE's
_IN_PERCENT = (*SHARES, *CORRELATIONS)


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
    """Result of one task.

    Attributes:
        metric: The metric that counts as its accuracy.
        accuracy: In percent; the plain value if the metric is none of those reported in percent.
        accuracy_stderr: Its standard error in the same unit.
        questions: Number of evaluated samples.
        skipped: Skipped samples.
        harness: Whether it is one of the harness's own tasks, to which the protocol does not apply.
    """

    task: str
    metric: str
    accuracy: float
    accuracy_stderr: float | None
    questions: int
    skipped: tuple[SkippedSample, ...]
    metrics: dict[str, Metric]
    harness: bool

    @classmethod
    def of(cls, task: str, metric: str, metrics: Mapping[str, Metric], **others: Any) -> Self:
        """Make a result from all metrics of a task and the name of the one that counts."""
        unit, counted = 100 if metric in _IN_PERCENT else 1, metrics[metric]
        error = None if counted.stderr is None else unit * counted.stderr
        return cls(task, metric, unit * counted.value, error, metrics=dict(metrics), **others)

    @property
    def is_share(self) -> bool:
        """Whether its accuracy is in percent, so that it counts in an average."""
        return self.metric in _IN_PERCENT


@dataclass(frozen=True)
class TargetResult:
    """Results of one target.

    Attributes:
        kind: `ir` or `torch`.
        precision: Weight format of an IR, dtype in PyTorch.
        average: Mean accuracy in percent over the tasks that have one, and its standard error; the tasks are independent.
        answered: Prompts evaluated in this run; the others were in earlier ones.
        identity: Everything that its results depend on: hashes of files, sub-network, properties, versions.
    """

    name: str
    kind: str
    precision: str
    prompt: str
    sizes: Sizes | None
    average: float | None
    average_stderr: float | None
    tasks: tuple[TaskResult, ...]
    answered: int
    seconds: float
    identity: dict[str, Any]

    @property
    def properties(self) -> dict[str, str]:
        """OpenVINO runtime properties of the run."""
        return self.identity.get("properties") or {}


def averaged(tasks: Sequence[TaskResult]) -> tuple[float | None, float | None]:
    """Return the mean accuracy in percent and its standard error, where tasks have them."""
    shares = [task for task in tasks if task.is_share]
    known = [task.accuracy_stderr for task in shares if task.accuracy_stderr is not None]
    mean = statistics.mean(task.accuracy for task in shares) if shares else None
    return mean, sum(error**2 for error in known) ** 0.5 / len(known) if known and len(known) == len(shares) else None


@dataclass(frozen=True)
class Conditions:
    """Processor, versions and date of a measurement."""

    processor: str
    versions: dict[str, str]
    date: str


@dataclass(frozen=True)
class Evaluation:
    """An evaluation by one protocol; without `limit` on complete test sets, otherwise on samples chosen by `seed`."""

    described: str
    num_beams: int | None
    limit: int | None
    seed: int
    target: TargetResult
    conditions: Conditions


@dataclass(frozen=True)
class Evaluations(Record):
    """The latest evaluation of an exported directory by each protocol."""

    NAME = "evaluations"
    VERSION = 1
    AGAIN = "Delete it, and run `lonas-edge eval --card` again."

    by_protocol: dict[str, Evaluation] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read those of an exported directory; none without a file."""
        return cls.read(folder / FILE) if (folder / FILE).exists() else cls()

    def with_evaluation(self, protocol: str, evaluation: Evaluation) -> Self:
        """Add an evaluation, or replace the earlier one by the same protocol."""
        return replace(self, by_protocol={**self.by_protocol, protocol: evaluation})
