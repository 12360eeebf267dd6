"""The record of an evaluation; as Markdown, in the layout of the adapter cards; and the files of `--output`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.data.test_sets import TASKS
from lonas_edge.evaluate.compare import AVERAGE, Difference
from lonas_edge.evaluate.protocols import ANSWERS, CLASSIFY, EMBED, PROTOCOLS
from lonas_edge.evaluate.results import Conditions, TargetResult
from lonas_edge.schema import Record
from lonas_edge.tables import Table

SampleLogs = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # by target and task

_SIZES = (
    "Total params: weights of the linear layers with head and unmerged adapters, without embeddings. "
    "TFLOPs: their multiply-accumulates for one sequence, as the adapter cards count them."
)
_ACCURACY = "Accuracy in percent ± standard error. "
_OF_GLUE = "First metric of each task in percent ± standard error (accuracies by formula, others by bootstrap). "
_OF_ANSWERS = "Mean over the answers ± standard error, in percent; a metric of your own in its unit. "
_EXPLAINED = {CLASSIFY.name: _OF_GLUE, EMBED.name: _OF_GLUE, ANSWERS.name: _OF_ANSWERS}


@dataclass(frozen=True)
class EvalRecord(Record):
    """An evaluation, `eval.json`. The other targets are compared with the first. A notebook shows its report."""

    NAME = "eval"
    VERSION = 1
    AGAIN = "Run `lonas-edge eval` again."

    protocol: str  # name of the protocol
    limit: int | None  # samples of each task; None for complete test sets
    seed: int  # seed of their choice
    targets: tuple[TargetResult, ...]
    differences: tuple[Difference, ...]  # of each from the first, by task and on average
    conditions: Conditions

    def _repr_markdown_(self) -> str:
        return markdown(self)


def explained(record: EvalRecord) -> str:
    """Explain the figures."""
    sizes = _SIZES if any(target.sizes for target in record.targets) else ""
    return f"{_EXPLAINED.get(record.protocol, _ACCURACY)}{sizes}".strip()


def describe(record: EvalRecord) -> str:
    """Describe the protocol in one line."""
    tasks = record.targets[0].tasks
    own = {task.task: list(task.metrics) for task in tasks if not task.harness}
    parts = []
    if own:
        prompts = " or ".join(sorted({target.prompt for target in record.targets} - {""}))
        parts.append(PROTOCOLS[record.protocol].describe(own) + (f"; prompt {prompts}" if prompts else ""))
    parts += [f"{task.task}: {task.metric}, as lm-evaluation-harness defines it" for task in tasks if task.harness]
    each = "" if record.protocol == ANSWERS.name else " of each task"
    parts += [f"{record.limit} samples{each}, seed {record.seed}"] if record.limit is not None else []
    return "; ".join(parts)


def _heading(scope: str) -> str:
    return TASKS[scope].heading if scope in TASKS else scope


def card_table(record: EvalRecord) -> Table:
    """The card's table: one row for each target, with its prompt where they differ, and sizes where they are known."""
    prompts, averages = {target.prompt for target in record.targets}, record.protocol != ANSWERS.name
    sized = any(target.sizes for target in record.targets)
    rows = []
    for target in record.targets:
        row = [f"{target.name} ({target.precision}{f', prompt {target.prompt}' if len(prompts) > 1 else ''})"]
        if sized:
            row.append(f"{target.sizes.linear_weights / 1e9:.3g}B" if target.sizes else "–")
            row.append(f"{target.sizes.macs / 1e12:.2g}" if target.sizes else "–")
        row += [percent(task.accuracy, task.accuracy_stderr, 1 if task.share else 3) for task in target.tasks]
        rows.append([*row, percent(target.average, target.average_stderr)] if averages else row)
    headings = [_heading(task.task) for task in record.targets[0].tasks] + ["Average"] * averages
    return Table(["Method", *(["Total params", "TFLOPs"] if sized else []), *headings], rows)


def percent(value: float | None, error: float | None, digits: int = 1) -> str:
    """A value with its standard error, mostly both in percentage points; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.{digits}f}" if error is None else f"{value:.{digits}f} ± {error:.{digits}f}"


def difference_table(record: EvalRecord, every: bool = False) -> Table:
    """Differences of each target from the first: of the average, or of the only task; or all of them."""
    headings = ("", "Accuracy Δ (points)", "95 % interval", "same answers")
    rows, units = [], {task.task: 1 if task.share else 3 for task in record.targets[0].tasks}
    for name in dict.fromkeys(difference.target for difference in record.differences):
        own = [difference for difference in record.differences if difference.target == name]
        averages = [] if every else [difference for difference in own if difference.scope == AVERAGE]
        for difference in averages or own:
            points, low, high = difference.points, difference.low, difference.high
            digits = units.get(difference.scope, 1)
            interval = "–" if low is None else f"{low:+.{digits}f} … {high:+.{digits}f}"
            scope = f", {_heading(difference.scope)}" if every or len(averages or own) > 1 else ""
            rows.append([name + scope, f"{points:+.{digits}f}", interval, f"{difference.identical:.1%}"])
    return Table(headings, rows, f"Accuracy compared with {record.targets[0].name}, on the same questions")


def class_table(record: EvalRecord) -> Table | None:
    """The accuracy of each target in each class of a classification; None without classes."""
    first = max(record.targets[0].tasks, key=lambda task: len(task.classes))
    number = record.targets[0].tasks.index(first)
    rows = [
        [name, f"{count:,}", *(f"{target.tasks[number].classes.get(name, (0, 0.0))[1]:.1f}" for target in record.targets)]
        for name, (count, _) in first.classes.items()
    ]
    title = f"{first.metric} of each class, percent"
    return Table(["class", "examples", *(target.name for target in record.targets)], rows, title) if rows else None


def markdown(record: EvalRecord) -> str:
    """The complete report as Markdown."""
    lines = ["# Evaluation", "", f"Protocol: {describe(record)}.", "", *card_table(record).to_markdown(), ""]
    if classes := class_table(record):
        lines += [f"{classes.title}:", "", *classes.to_markdown(), ""]
    if record.differences:
        differences = difference_table(record, every=True)
        lines += [f"{differences.title}:", "", *differences.to_markdown(), ""]
    lines += [explained(record), "", *_conditions(record), *skipped(record), ""]
    return "\n".join(lines)


def _conditions(record: EvalRecord) -> list[str]:
    """State machine, versions, and how each target ran."""
    conditions = record.conditions
    packages = ", ".join(f"{name} {version}" for name, version in conditions.versions.items())
    lines = [f"{conditions.processor.strip()}; {packages}; {conditions.date}.", ""]
    for target in record.targets:
        properties = ", ".join(f"{name}={value}" for name, value in target.identity.get("properties", {}).items())
        engine = "OpenVINO" if target.kind == "ir" else f"PyTorch, {target.precision}"
        chosen = f"; properties {properties}" if properties else "; the device's default properties" * (target.kind == "ir")
        where = f"{engine} on {target.identity['device']}{chosen}"
        lines.append(f"- {target.name}: {where}; batches of {target.identity['batch_size']} prompts")
    return lines


def skipped(record: EvalRecord) -> list[str]:
    """List the samples that did not fit the context."""
    return [
        f"Skipped: {target.name}, {sample.task} sample {sample.sample}: {sample.tokens} tokens with the answer, "
        f"context {sample.context}."
        for target in record.targets
        for task in target.tasks
        for sample in task.skipped
    ]


def write(record: EvalRecord, samples: SampleLogs, folder: Path) -> None:
    """Write eval.json, eval.md and the sample logs into a directory."""
    from lm_eval.utils import handle_non_serializable

    record.write(folder / "eval.json")
    (folder / "eval.md").write_text(markdown(record), encoding="utf-8")
    for target, tasks in samples.items():
        logs = folder / "samples" / _file_name(target)
        logs.mkdir(parents=True)
        for task, entries in tasks.items():
            if not entries:  # metrics of a data file share the log of the first
                continue
            lines = (json.dumps(sample, default=handle_non_serializable, ensure_ascii=False) for sample in entries)
            (logs / f"samples_{_file_name(task)}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _file_name(name: str) -> str:
    return name.replace("/", "_").replace(":", "_")
