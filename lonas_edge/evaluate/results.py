"""What the harness found, as results: metrics with their errors, and what was answered to each question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lonas_edge.evaluate.compare import Answered
from lonas_edge.evaluate.protocols import Protocol
from lonas_edge.exporting.evaluations import SHARES, LeftOut, Metric, TaskResult

OURS = "lonas_"  # in front of the names of our definitions
FOREIGN = "harness:"  # in front of a harness's task that has the name of one of ours


@dataclass(frozen=True)
class Found:
    """One task of one target: the result, what was answered if its metric is a share of right answers, the harness's log."""

    result: TaskResult
    answers: Sequence[Answered]
    samples: Sequence[Mapping[str, Any]]


def label(name: str, protocol: Protocol) -> str:
    """What a task is called in reports: ours by the task alone, the harness's by its name, marked where it is one of ours."""
    if name.startswith(OURS):
        return name.removeprefix(OURS).rsplit("_", 1)[0]
    return f"{FOREIGN}{name}" if name in protocol.tasks else name


def found_of(
    name: str,
    values: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    left_out: Sequence[LeftOut],
    protocol: Protocol,
) -> Found:
    """What was found of a task, from the harness's name of it, its results and its log."""
    shown, harness = label(name, protocol), not name.startswith(OURS)
    counted = samples[0]["filter"]  # a task of the harness's may read its answers in several ways: the first counts
    metrics = _metrics(values, counted)
    ours = None if harness else protocol.metric_of(shown)
    metric = ours or next((one for one in SHARES if one in metrics), next(iter(metrics)))
    asked = [sample for sample in samples if sample["filter"] == counted]
    others = {"questions": len(asked), "left_out": tuple(left_out), "harness": harness}
    answers = [_answered(shown, metric, sample) for sample in asked] if metric in SHARES else []
    return Found(TaskResult.of(shown, metric, metrics, **others), answers, samples)


def _metrics(values: Mapping[str, Any], counted: str) -> dict[str, Metric]:
    """Value and standard error by metric, from the harness's `metric,filter` and `metric_stderr,filter`."""
    found = {}
    for key, value in values.items():
        metric, _, chosen = key.partition(",")
        if chosen and not metric.endswith("_stderr") and isinstance(value, int | float):
            error = values.get(f"{metric}_stderr,{chosen}")
            name = metric if chosen == counted else key
            found[name] = Metric(float(value), float(error) if isinstance(error, int | float) else None)
    return found


def _answered(task: str, metric: str, sample: Mapping[str, Any]) -> Answered:
    """What was answered: a text; the place of the choice that wins by the metric; or whether a text was the likeliest."""
    index, right, responses = sample["doc_id"], float(sample[metric]), sample["filtered_resps"]
    if not isinstance(responses[0], tuple | list):
        return Answered(task, index, right, str(responses[0]))
    if len(responses) == 1:
        return Answered(task, index, right, str(responses[0][1]))
    scores = [response[0] for response in responses]
    if metric == "acc_norm":
        lengths = [len(arguments[1].lstrip()) or 1 for arguments in sample["arguments"]]
        scores = [score / length for score, length in zip(scores, lengths, strict=True)]
    return Answered(task, index, right, max(range(len(scores)), key=scores.__getitem__))
