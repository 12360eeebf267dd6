"""An evaluation as Markdown and CSV, in the layout of the adapter cards; and the files of `--output`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lonas_edge.data.test_sets import TASKS
from lonas_edge.evaluate.compare import AVERAGE, EvalRecord
from lonas_edge.evaluate.protocols import CLASSIFY, EMBED, PROTOCOLS
from lonas_edge.tables import Table

SampleLogs = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # by target and task

_SIZES = (
    "Total params: weights of the linear layers with head and unmerged adapters, without embeddings. "
    "TFLOPs: their multiply-accumulates for one sequence, as the adapter cards count them."
)
_ACCURACY = "Accuracy in percent ± standard error. "
_OF_GLUE = (
    "First metric of each task in percent ± standard error (accuracies by formula, others by bootstrap). "
    "For STS-B a text counts as correct only for the model that is nearer to its label. "
)
_OF_EMBEDDINGS = (
    "First metric of each task in percent ± standard error (STS-B by bootstrap). "
    "A pair of STS-B counts as correct only for the model that ranks it nearer to its label's rank. "
)
_EXPLAINED = {CLASSIFY.name: _OF_GLUE, EMBED.name: _OF_EMBEDDINGS}


def explained(record: EvalRecord) -> str:
    """Explain the figures."""
    return _EXPLAINED.get(record.protocol, _ACCURACY) + _SIZES


def describe(record: EvalRecord) -> str:
    """Describe the protocol in one line."""
    tasks = record.targets[0].tasks
    own = {task.task: list(task.metrics) for task in tasks if not task.harness}
    parts = []
    if own:
        prompts = " or ".join(sorted({target.prompt for target in record.targets} - {""}))
        parts.append(PROTOCOLS[record.protocol].describe(record.num_beams, own) + (f"; prompt {prompts}" if prompts else ""))
    parts += [f"{task.task}: {task.metric}, as lm-evaluation-harness defines it" for task in tasks if task.harness]
    parts += [f"{record.limit} samples of each task, seed {record.seed}"] if record.limit is not None else []
    return "; ".join(parts)


def _heading(scope: str) -> str:
    return TASKS[scope].heading if scope in TASKS else scope


def card_table(record: EvalRecord) -> Table:
    """The card's table: one row for each target, with its prompt where they differ."""
    prompts = {target.prompt for target in record.targets}
    rows = [
        [
            f"{target.name} ({target.precision}{f', prompt {target.prompt}' if len(prompts) > 1 else ''})",
            f"{target.sizes.linear_weights / 1e9:.3g}B" if target.sizes else "–",
            f"{target.sizes.macs / 1e12:.2g}" if target.sizes else "–",
            *(percent(task.accuracy, task.accuracy_stderr) for task in target.tasks),
            percent(target.average, target.average_stderr),
        ]
        for target in record.targets
    ]
    return Table(
        ["Method", "Total params", "TFLOPs", *(_heading(task.task) for task in record.targets[0].tasks), "Average"], rows
    )


def percent(value: float | None, error: float | None) -> str:
    """A value with its standard error, both in percentage points; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:.1f}" if error is None else f"{value:.1f} ± {error:.1f}"


def difference_table(record: EvalRecord, every: bool = False) -> Table:
    """Differences of each target from the first: of the average, or of the only task; or all of them."""
    headings = ("", "Accuracy Δ (points)", "95 % interval", "only this correct : only that", "McNemar p", "same answers")
    rows = []
    for name in dict.fromkeys(difference.target for difference in record.differences):
        own = [difference for difference in record.differences if difference.target == name]
        averages = [] if every else [difference for difference in own if difference.scope == AVERAGE]
        for difference in averages or own:
            half, points = difference.half_width_95, difference.points
            interval = "–" if half is None else f"{points - half:+.1f} … {points + half:+.1f}"
            counts = f"{difference.only_target} : {difference.only_against}"
            scope = f", {_heading(difference.scope)}" if every else ""
            cells = [f"{points:+.1f}", interval, counts, f"{difference.mcnemar_p:.2g}", f"{difference.identical:.1%}"]
            rows.append([name + scope, *cells])
    return Table(headings, rows, f"Accuracy compared with {record.targets[0].name}, on the same questions")


def markdown(record: EvalRecord) -> str:
    """The complete report as Markdown."""
    lines = ["# Evaluation", "", f"Protocol: {describe(record)}.", "", *card_table(record).to_markdown(), ""]
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
            lines = (json.dumps(sample, default=handle_non_serializable, ensure_ascii=False) for sample in entries)
            (logs / f"samples_{_file_name(task)}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _file_name(name: str) -> str:
    return name.replace("/", "_").replace(":", "_")
