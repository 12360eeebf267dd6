"""What evaluations found, typed; and what `eval --card` keeps of them with an exported directory."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from lonas_edge.schema import Record
from lonas_edge.space.complexity import Sizes

FILE = "lonas_edge_eval.json"
SHARES = ("acc_norm", "acc", "exact_match")  # metrics that are shares of right answers; the first that a task has counts
CORRELATIONS = ("matthews", "pearson", "spearman")  # GLUE's, which are told in percent, too


@dataclass(frozen=True)
class LeftOut:
    """A sample whose prompt and answer do not fit the model's context; it is not asked, and not counted."""

    task: str
    sample: int
    tokens: int
    context: int


@dataclass(frozen=True)
class Metric:
    """A metric's value with its standard error, as the harness gives them: shares, not percent."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Attributes:
        task: Its name.
        metric: The metric that counts as its accuracy.
        accuracy: Percent; the value as it is where the metric is no share of right answers and no correlation.
        accuracy_stderr: Its standard error in the same unit.
        questions: Samples that were asked.
        left_out: Samples that were not.
        metrics: All metrics by name.
        harness: Whether it is one of the harness's own tasks, which the protocol does not govern.
    """

    task: str
    metric: str
    accuracy: float
    accuracy_stderr: float | None
    questions: int
    left_out: tuple[LeftOut, ...]
    metrics: dict[str, Metric]
    harness: bool

    @classmethod
    def of(cls, task: str, metric: str, metrics: Mapping[str, Metric], **others: Any) -> Self:
        """A result, its accuracy taken from the metric that counts."""
        unit, counted = 100 if metric in (*SHARES, *CORRELATIONS) else 1, metrics[metric]
        error = None if counted.stderr is None else unit * counted.stderr
        return cls(task, metric, unit * counted.value, error, metrics=dict(metrics), **others)

    @property
    def is_share(self) -> bool:
        """Whether its metric is a share of right answers, or one of GLUE's correlations: it counts in an average."""
        return self.metric in (*SHARES, *CORRELATIONS)


@dataclass(frozen=True)
class TargetResult:
    """One target.

    Attributes:
        name: What it is called.
        kind: `ir` or `torch`.
        precision: Weight format of an IR, dtype in PyTorch.
        prompt: The prompt it was asked with.
        sizes: Its sizes, where they are known.
        average: Mean accuracy over the tasks that have one, in percent.
        average_stderr: Its standard error; the tasks are independent samples.
        tasks: The tasks.
        asked: Prompts that were answered in this run; the others were in earlier ones.
        seconds: That they took.
        identity: What its answers depend on: hashes of files, sub-network, properties, versions.
    """

    name: str
    kind: str
    precision: str
    prompt: str
    sizes: Sizes | None
    average: float | None
    average_stderr: float | None
    tasks: tuple[TaskResult, ...]
    asked: int
    seconds: float
    identity: dict[str, Any]

    @property
    def properties(self) -> dict[str, str]:
        """OpenVINO run-time properties that it ran with."""
        return self.identity.get("properties") or {}


def averaged(tasks: Sequence[TaskResult]) -> tuple[float | None, float | None]:
    """The mean accuracy in percent with its standard error, where tasks have them; a metric that is no share does not count."""
    shares = [task for task in tasks if task.is_share]
    known = [task.accuracy_stderr for task in shares if task.accuracy_stderr is not None]
    mean = statistics.mean(task.accuracy for task in shares) if shares else None
    return mean, sum(error**2 for error in known) ** 0.5 / len(known) if known and len(known) == len(shares) else None


@dataclass(frozen=True)
class Conditions:
    """Where and when figures were taken."""

    processor: str
    versions: dict[str, str]
    date: str


@dataclass(frozen=True)
class Evaluation:
    """What a model card shows of an evaluation by one protocol.

    Attributes:
        described: The protocol in one line.
        num_beams: Beams, where it generates.
        limit: Samples of each task; None for whole test sets.
        seed: Seed of their choice.
        target: What was found.
        conditions: Where and when.
    """

    described: str
    num_beams: int | None
    limit: int | None
    seed: int
    target: TargetResult
    conditions: Conditions


@dataclass(frozen=True)
class Evaluations(Record):
    """The evaluations of an exported directory, the last one of each protocol."""

    NAME = "evaluations"
    VERSION = 1
    AGAIN = "Delete it, and run `lonas-edge eval --card` again."

    by_protocol: dict[str, Evaluation] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Those that an exported directory keeps; none where there is no file."""
        return cls.read(folder / FILE) if (folder / FILE).exists() else cls()

    def with_one(self, protocol: str, evaluation: Evaluation) -> Self:
        """These with another one, in place of an earlier one by the same protocol."""
        return replace(self, by_protocol={**self.by_protocol, protocol: evaluation})
