"""Classifiers on GLUE's development sets."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from lonas_edge.data.encoding import PairCollator, encode_pairs
from lonas_edge.data.glue import TASKS, GlueTask, Pair, task_named
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.answer_log import Asking
from lonas_edge.evaluate.compare import Answers, TaskAnswers
from lonas_edge.evaluate.glue import ACCURACY, metrics_of
from lonas_edge.evaluate.settings import EvalSettings
from lonas_edge.evaluate.targets import Target
from lonas_edge.exporting.evaluations import LeftOut, TaskResult
from lonas_edge.progress import Progress

Classifier = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # a batch of `PairCollator` -> logits [texts, outputs]


@dataclass(frozen=True)
class _Set:
    """The texts of a development set that are asked, and their indices in the file."""

    name: str
    task: GlueTask
    indices: tuple[int, ...]
    pairs: tuple[Pair, ...]


def choose_tasks(names: Sequence[str] | None, datasets: Path | None) -> tuple[str, ...]:
    """The tasks of GLUE to ask.

    Args:
        names: As on the command line; those in the directory when None.
        datasets: The directory with a folder for each task.

    Raises:
        LonasEdgeError: If one is not of GLUE, or there is none.
    """
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
    """Asks classifiers."""

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
        tasks = dict.fromkeys(one.task for one in self._sets)
        misfits = [
            f"{target.name}: {misfit}" for target in targets for task in tasks if (misfit := task.misfit(len(target.outputs)))
        ]
        raise_all("Tasks that do not fit a target's head:", misfits, "Evaluate each target on the task it was trained for.")

    def prompt_of(self, _target: Target) -> str:
        """There is none."""
        return ""

    def ask(self, asking: Asking, progress: Progress) -> list[TaskAnswers]:
        """Ask a target."""
        return [self._task(asking, one, progress) for one in self._sets]

    def _task(self, asking: Asking, one: _Set, progress: Progress) -> TaskAnswers:
        logits, left_out = _logits(asking, one, progress)
        pairs = dict(zip(one.indices, one.pairs, strict=True))
        labels = np.array([pairs[index].label for index in logits])
        answers = _answers(one.task, np.array(list(logits.values())), asking.target.outputs)
        metrics, (first, *_) = metrics_of(one.task.metrics, labels, answers), one.task.metrics
        result = TaskResult.of(one.name, first, metrics, questions=len(logits), left_out=left_out, harness=False)
        right = -np.abs(answers - labels) if one.task.regression else (answers == labels).astype(float)
        compared = Answers(one.name, np.array(list(logits)), right, answers, None if first == ACCURACY else labels, first)
        return TaskAnswers(result, list(_samples(pairs, logits, answers)), compared)


def _logits(asking: Asking, one: _Set, progress: Progress) -> tuple[dict[int, list[float]], tuple[LeftOut, ...]]:
    """Logits by index. Texts beyond the context are left out, never cut."""
    target = asking.target
    encoded = encode_pairs(one.pairs, target.tokenizer, None)
    lengths, most = [len(row["input_ids"]) for row in encoded], target.max_length
    left_out = tuple(
        LeftOut(one.name, index, length, most) for index, length in zip(one.indices, lengths, strict=True) if length > most
    )
    fitting = sorted((row for row, length in enumerate(lengths) if length <= most), key=lambda row: (-lengths[row], row))
    if not fitting:
        raise LonasEdgeError(f"{target.name}: {one.name}: every text is longer than the context of {most} tokens")
    collate = PairCollator(target.tokenizer.pad_token_id or 0)
    logits: dict[int, list[float]] = {}
    for start in range(0, len(fitting), target.batch_size):
        progress(f"{target.name}  {one.name}", start / len(fitting))
        batch = fitting[start : start + target.batch_size]
        rows = [{**encoded[row], "labels": 0} for row in batch]
        arrays = {name: tensor.numpy() for name, tensor in collate(rows).items() if name != "labels"}
        answers = asking.answers(rows, len(rows), partial(_classify, arrays, target.name))
        logits |= {one.indices[row]: answer for row, answer in zip(batch, answers, strict=True)}
    return dict(sorted(logits.items())), left_out


def _classify(arrays: Mapping[str, np.ndarray], name: str, model: Classifier) -> list[list[float]]:
    logits = model(arrays)
    if not np.isfinite(logits).all():
        raise LonasEdgeError(f"{name}: logits are not finite; is the model damaged?")
    rows: list[list[float]] = logits.astype(float).tolist()
    return rows


def _answers(task: GlueTask, logits: np.ndarray, outputs: Sequence[str]) -> np.ndarray:
    """Answers as the task numbers them; a head that has the task's classes in another order is read by their names."""
    if task.regression:
        return logits[:, 0]
    if set(outputs) == set(task.classes):
        logits = logits[:, [list(outputs).index(name) for name in task.classes]]
    answers: np.ndarray = logits.argmax(1)
    return answers


def _samples(pairs: Mapping[int, Pair], logits: Mapping[int, Sequence[float]], answers: np.ndarray) -> Iterator[dict[str, Any]]:
    for index, answer in zip(logits, answers.tolist(), strict=True):
        pair = pairs[index]
        texts = [pair.first] if pair.second is None else [pair.first, pair.second]
        yield {"doc_id": index, "texts": texts, "label": pair.label, "answer": answer, "logits": list(logits[index])}
