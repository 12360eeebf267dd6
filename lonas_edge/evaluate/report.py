"""An evaluation as people read it: Markdown and CSV, in the layout of the adapter cards; and the files of `--output`."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lonas_edge.evaluate.compare import AVERAGE
from lonas_edge.evaluate.protocols import CLASSIFY, REPORTED
from lonas_edge.evaluate.record import Report
from lonas_edge.exporting.evaluations import Evaluation, TargetResult

EXPLAINED = (
    "Accuracy in percent ± standard error. Total params: weights of the linear layers, head and unmerged adapters included, "
    "embeddings not. TFLOPs: their multiply-accumulates for one sequence, as the adapter cards count them."
)


_OF_GLUE = (
    "Each task's first metric in percent ± standard error: of accuracies by formula, of the others by bootstrap. Of STS-B, "
    "`only this right` counts the texts on which its figure is the nearer one. "
)


def explained(report: Report) -> str:
    """What the figures are."""
    return EXPLAINED if report.protocol != CLASSIFY.name else _OF_GLUE + EXPLAINED.partition("standard error. ")[2]


def describe(report: Report) -> str:
    """The protocol in one line."""
    tasks = report.targets[0].tasks
    told = []
    if not all(task.harness for task in tasks):
        prompts = " or ".join(sorted({target.prompt for target in report.targets}))
        asked = [task.task for task in tasks if not task.harness]
        described = REPORTED[report.protocol].describe(report.num_beams, asked)
        told.append(f"{described}; prompt {prompts}" if prompts else described)
    told += [f"{task.task}: {task.metric}, as lm-evaluation-harness defines it" for task in tasks if task.harness]
    limit = [f"{report.limit} samples of each task, seed {report.seed}"] if report.limit is not None else []
    return "; ".join([*told, *limit])


def _heading(report: Report, scope: str) -> str:
    task = REPORTED[report.protocol].tasks.get(scope)
    return task.heading if task else scope


def headings(report: Report) -> list[str]:
    """Of the card's table."""
    tasks = [_heading(report, task.task) for task in report.targets[0].tasks]
    return ["Method", "Total params", "TFLOPs", *tasks, "Average"]


def card_rows(report: Report) -> list[list[str]]:
    """Of the card's table: one row a target; with its prompt where they differ."""
    prompts = {target.prompt for target in report.targets}
    return [
        [
            f"{target.name} ({target.precision}{f', prompt {target.prompt}' if len(prompts) > 1 else ''})",
            f"{target.sizes.linear_weights / 1e9:.3g}B" if target.sizes else "–",
            f"{target.sizes.macs / 1e12:.2g}" if target.sizes else "–",
            *(percent(task.accuracy, task.accuracy_stderr) for task in target.tasks),
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
            scope = f", {_heading(report, found.scope)}" if every else ""
            shown = [f"{found.points:+.1f}", interval, counts, f"{found.mcnemar_p:.2g}", f"{found.identical:.1%}"]
            rows.append([name + scope, *shown])
    return rows


def markdown(report: Report) -> str:
    """The whole report as Markdown."""
    lines = ["# Evaluation", "", f"Protocol: {describe(report)}.", "", *table(headings(report), card_rows(report)), ""]
    if report.differences:
        lines += [f"{difference_title(report)}:", "", *table(DIFFERENCE_HEADINGS, difference_rows(report, every=True)), ""]
    lines += [explained(report), "", *conditions(report), *left_out(report), ""]
    return "\n".join(lines)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


def conditions(report: Report) -> list[str]:
    """What the figures were taken on, and how each target ran."""
    found = report.conditions
    packages = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    lines = [f"{found.processor.strip()}; {packages}; {found.date}.", ""]
    for target in report.targets:
        properties = ", ".join(f"{name}={value}" for name, value in target.properties.items())
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
        known = [getattr(target.sizes, size, "") for size in sizes]
        what = [target.name, target.precision, report.protocol, target.prompt, *known]
        for task in target.tasks:
            for name, metric in task.metrics.items():
                writer.writerow([*what, task.task, name, metric.value, _or_empty(metric.stderr), task.questions])
        if target.average is not None:
            error = None if target.average_stderr is None else target.average_stderr / 100
            total = sum(task.questions for task in target.tasks)
            writer.writerow([*what, AVERAGE, "accuracy", target.average / 100, _or_empty(error), total])
    return text.getvalue()


def _or_empty(value: float | None) -> float | str:
    return "" if value is None else value


Samples = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]  # the harness's sample logs by target and task


def write(report: Report, samples: Samples, folder: Path) -> None:
    """Write eval.json, eval.csv, eval.md and the sample logs.

    Args:
        report: The report.
        samples: The sample logs.
        folder: Where to.
    """
    report.write(folder / "eval.json")
    (folder / "eval.csv").write_text(to_csv(report), encoding="utf-8", newline="")
    (folder / "eval.md").write_text(markdown(report), encoding="utf-8")
    for target, tasks in samples.items():
        logs = folder / "samples" / _file_name(target)
        logs.mkdir(parents=True)
        for task, asked in tasks.items():
            _write_samples(logs / f"samples_{_file_name(task)}.jsonl", asked)


def _write_samples(path: Path, samples: Sequence[Mapping[str, Any]]) -> None:
    from lm_eval.utils import handle_non_serializable

    lines = (json.dumps(sample, default=handle_non_serializable, ensure_ascii=False) for sample in samples)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _file_name(name: str) -> str:
    return name.replace("/", "_").replace(":", "_")


def for_card(report: Report, target: TargetResult) -> Evaluation:
    """What an exported directory keeps of an evaluation of it; its model card shows it.

    Args:
        report: The report.
        target: Which of its targets the directory is.

    Returns:
        The evaluation.
    """
    described = describe(replace(report, targets=(target,), differences=()))
    return Evaluation(described, report.num_beams, report.limit, report.seed, target, report.conditions)
