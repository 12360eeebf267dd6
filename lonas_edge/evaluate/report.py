"""The report of an evaluation: typed, versioned, as JSON, CSV and Markdown, in the layout of the adapter cards."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lonas_edge.evaluate.compare import AVERAGE, Answered, Difference

SCHEMA = "lonas-edge/eval/1"
NEW_TOKENS = 32  # of the protocol `generate`
CARD_NAMES = {  # the reference card's headings
    "boolq": "BoolQ",
    "piqa": "PIQA",
    "social_i_qa": "SIQA",
    "hellaswag": "HellaSwag",
    "winogrande": "WinoG",
    "ARC-Easy": "ARC-e",
    "ARC-Challenge": "ARC-c",
    "openbookqa": "OBQA",
}
SHARES = ("acc_norm", "acc", "exact_match")  # metrics that are shares of right answers; the first that a task has counts
OPTION_TEXT_PROMPT = "Question: …, Answer:"
EXPLAINED = (
    "Accuracy in percent ± standard error. Total params: weights of the linear layers, head and unmerged adapters included, "
    "embeddings not. TFLOPs: their multiply-accumulates for one sequence, as the adapter cards count them."
)


@dataclass(frozen=True)
class LeftOut:
    """A sample whose prompt and answer do not fit the model's context; it is not asked, and not counted."""

    task: str
    sample: int
    tokens: int
    context: int

    def named(self, task: str) -> "LeftOut":
        """The same, of a task named otherwise."""
        return replace(self, task=task)


@dataclass(frozen=True)
class TaskResult:
    """One task.

    Attributes:
        task: Its name.
        metric: The metric that counts as its accuracy.
        metrics: Value and standard error by metric, as the harness gives them (shares, not percent).
        questions: Samples that were asked.
        left_out: Samples that were not.
        harness: Whether it is one of the harness's own tasks, which the protocol does not govern.
    """

    task: str
    metric: str
    metrics: Mapping[str, tuple[float, float | None]]
    questions: int
    left_out: Sequence[LeftOut] = ()
    harness: bool = False

    @property
    def is_share(self) -> bool:
        """Whether its metric is a share of right answers."""
        return self.metric in SHARES

    @property
    def accuracy(self) -> float:
        """Percent; another metric's value as it is."""
        return (100 if self.is_share else 1) * self.metrics[self.metric][0]

    @property
    def stderr(self) -> float | None:
        """In the same unit."""
        error = self.metrics[self.metric][1]
        return None if error is None else (100 if self.is_share else 1) * error


@dataclass(frozen=True)
class TargetReport:
    """One target; `asked` prompts were answered in this run, in `seconds`, the others in earlier ones."""

    name: str
    kind: str
    precision: str
    prompt: str
    sizes: Mapping[str, Any]
    identity: Mapping[str, Any]
    tasks: Sequence[TaskResult]
    asked: int
    seconds: float
    answers: Sequence[Answered] = field(repr=False, default=())
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = field(repr=False, default_factory=dict)

    @property
    def average(self) -> float | None:
        """Mean accuracy over the tasks that have one, in percent."""
        return statistics.mean(task.accuracy for task in self._shares) if self._shares else None

    @property
    def average_stderr(self) -> float | None:
        """Its standard error, in percentage points; the tasks are independent samples."""
        errors = [task.stderr for task in self._shares]
        known = [error for error in errors if error is not None]
        return sum(error**2 for error in known) ** 0.5 / len(known) if known and len(known) == len(errors) else None

    @property
    def _shares(self) -> list[TaskResult]:
        return [task for task in self.tasks if task.is_share]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object; answers are in the sample logs."""
        tasks = [
            {
                "task": task.task,
                "metric": task.metric,
                "accuracy": task.accuracy,
                "accuracy_stderr": task.stderr,
                "questions": task.questions,
                "left_out": [asdict(one) for one in task.left_out],
                "metrics": {name: {"value": value, "stderr": error} for name, (value, error) in task.metrics.items()},
            }
            for task in self.tasks
        ]
        return {
            "name": self.name,
            "kind": self.kind,
            "precision": self.precision,
            "prompt": self.prompt,
            "sizes": dict(self.sizes),
            "average": self.average,
            "average_stderr": self.average_stderr,
            "tasks": tasks,
            "asked": self.asked,
            "seconds": self.seconds,
            "identity": dict(self.identity),
        }


@dataclass(frozen=True)
class Report:
    """An evaluation. The first target is what the others are compared with."""

    protocol: str
    num_beams: int | None
    limit: int | None
    seed: int
    targets: Sequence[TargetReport]
    differences: Sequence[Difference]
    conditions: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "schema": SCHEMA,
            "protocol": self.protocol,
            "num_beams": self.num_beams,
            "limit": self.limit,
            "seed": self.seed,
            "targets": [target.to_json() for target in self.targets],
            "differences": [asdict(found) for found in self.differences],
            "conditions": dict(self.conditions),
        }


def describe_protocol(report: Report) -> str:
    """The protocol in one line."""
    tasks = report.targets[0].tasks
    told = []
    if not all(task.harness for task in tasks):
        beams = "greedy" if report.num_beams == 1 else f"{report.num_beams} beams"
        protocol = {
            "generate": f"generate: {beams}, {NEW_TOKENS} new tokens, first answer word",
            "answer-word": 'answer-word: ranks "the correct answer is WORD"',
            "option-text": 'option-text: ranks " OPTION" after the question, length-normalized (BoolQ: plain)',
        }[report.protocol]
        told.append(f"{protocol}; prompt {' or '.join(sorted({target.prompt for target in report.targets}))}")
    told += [f"{task.task}: {task.metric}, as lm-evaluation-harness defines it" for task in tasks if task.harness]
    limit = [f"{report.limit} samples of each task, seed {report.seed}"] if report.limit is not None else []
    return "; ".join([*told, *limit])


def headings(report: Report) -> list[str]:
    """Of the card's table."""
    tasks = [CARD_NAMES.get(task.task, task.task) for task in report.targets[0].tasks]
    return ["Method", "Total params", "TFLOPs", *tasks, "Average"]


def card_rows(report: Report) -> list[list[str]]:
    """Of the card's table: one row a target; with its prompt where they differ."""
    prompts = {target.prompt for target in report.targets}
    return [
        [
            f"{target.name} ({target.precision}{f', prompt {target.prompt}' if len(prompts) > 1 else ''})",
            f"{target.sizes['linear_weights'] / 1e9:.3g}B" if target.sizes else "–",
            f"{target.sizes['macs'] / 1e12:.2g}" if target.sizes else "–",
            *(percent(task.accuracy, task.stderr) for task in target.tasks),
            percent(target.average, target.average_stderr),
        ]
        for target in report.targets
    ]


def percent(value: float | None, error: float | None) -> str:
    """A value with its standard error.

    Args:
        value: Percent.
        error: Percentage points.

    Returns:
        Both with one decimal; a dash where there is no value.
    """
    if value is None:
        return "–"
    return f"{value:.1f}" if error is None else f"{value:.1f} ± {error:.1f}"


DIFFERENCE_HEADINGS = ("", "points", "95 % interval", "only this right : only that", "McNemar p", "same answers")


def difference_title(report: Report) -> str:
    """What the differences are from."""
    return f"Less {report.targets[0].name}, on the same questions"


def difference_rows(report: Report, every: bool = False) -> list[list[str]]:
    """Differences of each target from the first one: of the average, or of the task where there is one only; or all of them."""
    rows = []
    for name in dict.fromkeys(found.target for found in report.differences):
        of_it = [found for found in report.differences if found.target == name]
        averages = [] if every else [one for one in of_it if one.scope == AVERAGE]
        for found in averages or of_it:
            half = found.half_width_95
            interval = "–" if half is None else f"{found.points - half:+.1f} … {found.points + half:+.1f}"
            counts = f"{found.only_target} : {found.only_against}"
            scope = f", {CARD_NAMES.get(found.scope, found.scope)}" if every else ""
            shown = [f"{found.points:+.1f}", interval, counts, f"{found.mcnemar_p:.2g}", f"{found.identical:.1%}"]
            rows.append([name + scope, *shown])
    return rows


def markdown(report: Report) -> str:
    """The whole report as Markdown."""
    lines = ["# Evaluation", "", f"Protocol: {describe_protocol(report)}.", "", *table(headings(report), card_rows(report)), ""]
    if report.differences:
        lines += [f"{difference_title(report)}:", "", *table(DIFFERENCE_HEADINGS, difference_rows(report, every=True)), ""]
    lines += [EXPLAINED, "", *conditions(report), *left_out(report), ""]
    return "\n".join(lines)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def conditions(report: Report) -> list[str]:
    """What the figures were taken on, and how each target ran."""
    found = report.conditions
    packages = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    lines = [f"{found['processor'].strip()}; {packages}; {found['date']}.", ""]
    for target in report.targets:
        properties = ", ".join(f"{name}={value}" for name, value in (target.identity.get("properties") or {}).items())
        runs_in = "OpenVINO" if target.kind == "ir" else f"PyTorch, {target.precision}"
        where = f"{runs_in} on {target.identity['device']}"
        told = f"; properties {properties}" if properties else "; the device's default properties" * (target.kind == "ir")
        lines.append(f"- {target.name}: {where}{told}; batches of {target.identity['batch_size']} prompts")
    return lines


def left_out(report: Report) -> list[str]:
    """Samples that were not asked."""
    return [
        f"Left out: {target.name}, {one.task} sample {one.sample}: {one.tokens} tokens with the answer, context {one.context}."
        for target in report.targets
        for task in target.tasks
        for one in task.left_out
    ]


def to_csv(report: Report) -> str:
    """One row for each target, task and metric, and one for its average."""
    text = io.StringIO()
    writer = csv.writer(text)
    sizes = ("linear_weights", "macs", "parameters")
    writer.writerow(["target", "precision", "protocol", "prompt", *sizes, "task", "metric", "value", "stderr", "questions"])
    for target in report.targets:
        what = [target.name, target.precision, report.protocol, target.prompt, *(target.sizes.get(size, "") for size in sizes)]
        for task in target.tasks:
            for name, (value, error) in task.metrics.items():
                writer.writerow([*what, task.task, name, value, "" if error is None else error, task.questions])
        if target.average is not None:
            error = target.average_stderr
            total = sum(task.questions for task in target.tasks)
            writer.writerow([*what, AVERAGE, "accuracy", target.average / 100, "" if error is None else error / 100, total])
    return text.getvalue()


def write(report: Report, folder: Path) -> None:
    """Write eval.json, eval.csv, eval.md and the harness's sample logs.

    Args:
        report: The report.
        folder: Where to.
    """
    from lm_eval.utils import handle_non_serializable

    (folder / "eval.json").write_text(json.dumps(report.to_json(), indent=1) + "\n")
    (folder / "eval.csv").write_text(to_csv(report))
    (folder / "eval.md").write_text(markdown(report))
    for target in report.targets:
        logs = folder / "samples" / _file_name(target.name)
        logs.mkdir(parents=True)
        for task, samples in target.samples.items():
            lines = (json.dumps(sample, default=handle_non_serializable, ensure_ascii=False) for sample in samples)
            (logs / f"samples_{_file_name(task)}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _file_name(name: str) -> str:
    return name.replace("/", "_").replace(":", "_")


def for_card(report: Report, target: TargetReport) -> dict[str, Any]:
    """What an exported directory keeps of an evaluation of it; its model card shows it.

    Args:
        report: The report.
        target: Which of its targets the directory is.

    Returns:
        A JSON object.
    """
    alone = replace(report, targets=[target], differences=[])
    return {"protocol_described": describe_protocol(alone), **alone.to_json()}
