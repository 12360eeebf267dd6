"""Classifiers on GLUE's development sets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from lonas_edge.data.encoding import encode_pairs
from lonas_edge.data.glue import TASKS, GlueTask, task_named
from lonas_edge.data.texts import Texts
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.answer_log import LoggedTarget
from lonas_edge.evaluate.batches import answered
from lonas_edge.evaluate.compare import Answers, TaskAnswers
from lonas_edge.evaluate.encoders import Encoder
from lonas_edge.evaluate.glue import ACCURACY, metrics_of
from lonas_edge.evaluate.settings import EvalSettings
from lonas_edge.evaluate.targets import Target
from lonas_edge.exporting.evaluations import SkippedSample, TaskResult
from lonas_edge.progress import Progress


@dataclass(frozen=True)
class _Set:
    """The chosen texts of a development set, and their indices in the file."""

    name: str
    task: GlueTask
    indices: tuple[int, ...]
    pairs: tuple[Texts, ...]


def choose_tasks(names: Sequence[str] | None, datasets: Path | None) -> tuple[str, ...]:
    """Choose the GLUE tasks to evaluate; those in the directory `datasets` without names."""
    if datasets is None:
        raise LonasEdgeError("--datasets DIR is needed: the directory with a folder for each task, as GLUE has it")
    if names is None:
        present = [task.name for task in TASKS.values() if task.path(datasets, task.splits[0]).is_file()]
        if not present:
            raise LonasEdgeError(f"--datasets {datasets}: no TASK/dev.tsv of {', '.join(TASKS)}")
        return tuple(present)
    known = {name: task_named(name) for name in names}
    wrong = [f"{name}: not a task of GLUE, and the target is a classifier" for name, task in known.items() if not task]
    raise_all("Tasks that do not fit a classifier:", wrong, f"Tasks of GLUE: {', '.join(TASKS)}.")
    return tuple(dict.fromkeys(task.name for task in known.values() if task))


@dataclass(frozen=True)
class Classification:
    """Evaluates classifiers."""

    settings: EvalSettings

    @cached_property
    def _sets(self) -> list[_Set]:
        sets, problems = [], []
        for task in (TASKS[name] for name in self.settings.tasks):
            for number, split in enumerate(task.splits):
                name = f"{task.name}-mm" if number else task.name
                try:
                    pairs = task.read(task.path(self.settings.datasets or Path(), split))
                except LonasEdgeError as error:
                    problems.append(str(error))
                    continue
                indices = self.settings.chosen(name, len(pairs))
                sets.append(_Set(name, task, tuple(indices), tuple(pairs[index] for index in indices)))
        raise_all("Development sets that cannot be used:", problems)
        return sets

    def check(self, targets: Sequence[Target]) -> None:
        """Read the data, and refuse tasks that do not fit a target's head."""
        tasks = dict.fromkeys(dev_set.task for dev_set in self._sets)
        misfits = [
            f"{target.name}: {misfit}" for target in targets for task in tasks if (misfit := task.misfit(len(target.outputs)))
        ]
        raise_all("Tasks that do not fit a target's head:", misfits, "Evaluate each target on the task it was trained for.")

    def prompt_of(self, _target: Target) -> str:
        """Return an empty text: classifiers have no prompt."""
        return ""

    def run(self, logged: LoggedTarget, progress: Progress) -> list[TaskAnswers]:
        """Evaluate a target."""
        return [self._task(logged, dev_set, progress) for dev_set in self._sets]

    def _task(self, logged: LoggedTarget, dev_set: _Set, progress: Progress) -> TaskAnswers:
        logits, skipped = _logits(logged, dev_set, progress)
        pairs = dict(zip(dev_set.indices, dev_set.pairs, strict=True))
        labels = np.array([pairs[index].label for index in logits])
        answers = _answers(dev_set.task, np.array(list(logits.values())), logged.target.outputs)
        metrics, (first, *_) = metrics_of(dev_set.task.metrics, labels, answers), dev_set.task.metrics
        result = TaskResult.of(dev_set.name, first, metrics, questions=len(logits), skipped=skipped, harness=False)
        correct = -np.abs(answers - labels) if dev_set.task.regression else (answers == labels).astype(float)
        compared = Answers(dev_set.name, np.array(list(logits)), correct, answers, None if first == ACCURACY else labels, first)
        return TaskAnswers(result, list(_samples(pairs, logits, answers)), compared)


def _logits(
    logged: LoggedTarget, dev_set: _Set, progress: Progress
) -> tuple[dict[int, list[float]], tuple[SkippedSample, ...]]:
    """Compute logits by index. Texts beyond the context are skipped, never truncated."""
    target = logged.target
    encoded = encode_pairs([pair.texts for pair in dev_set.pairs], target.tokenizer, None)
    lengths, most = [len(row["input_ids"]) for row in encoded], target.max_length
    skipped = tuple(
        SkippedSample(dev_set.name, index, length, most)
        for index, length in zip(dev_set.indices, lengths, strict=True)
        if length > most
    )
    fitting = {index: row for index, row, length in zip(dev_set.indices, encoded, lengths, strict=True) if length <= most}
    if not fitting:
        raise LonasEdgeError(f"{target.name}: {dev_set.name}: every text is longer than the context of {most} tokens")
    return answered(logged, dev_set.name, fitting, partial(classify, name=target.name), progress), skipped


def classify(arrays: Mapping[str, np.ndarray], model: Encoder, name: str) -> list[list[float]]:
    """Compute the logits of a batch; `name` is the model's in errors."""
    logits = model(arrays)
    if not np.isfinite(logits).all():
        raise LonasEdgeError(f"{name}: logits are not finite; is the model damaged?")
    rows: list[list[float]] = logits.astype(float).tolist()
    return rows


def _answers(task: GlueTask, logits: np.ndarray, outputs: Sequence[str]) -> np.ndarray:
    """Number the answers as the task does; a head with the classes in another order is read by their names."""
    if task.regression:
        return logits[:, 0]
    answers: np.ndarray = logits[:, task.numbers_in(outputs)].argmax(1)
    return answers


def _samples(
    pairs: Mapping[int, Texts], logits: Mapping[int, Sequence[float]], answers: np.ndarray
) -> Iterator[dict[str, Any]]:
    for index, answer in zip(logits, answers.tolist(), strict=True):
        pair = pairs[index]
        yield {"doc_id": index, "texts": list(pair.texts), "label": pair.label, "answer": answer, "logits": list(logits[index])}
