"""An evaluation of classifiers on GLUE's development sets, from its targets to its report."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lonas_edge.data.encoding import PairCollator, encode_pairs
from lonas_edge.data.glue import TASKS, GlueTask, Pair, task_named
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.answer_log import AnswerLog, Progress
from lonas_edge.evaluate.glue import Judged, differences, metrics_of
from lonas_edge.evaluate.protocols import CLASSIFY
from lonas_edge.evaluate.record import Report
from lonas_edge.evaluate.report import Samples
from lonas_edge.evaluate.run import conditions
from lonas_edge.evaluate.targets import Target, cache_folder
from lonas_edge.exporting.evaluations import LeftOut, TargetResult, TaskResult, averaged

Classify = Callable[[Mapping[str, np.ndarray]], np.ndarray]  # a batch of `PairCollator` -> logits [texts, outputs]


@dataclass(frozen=True)
class ClassifyOptions:
    """What to ask.

    Attributes:
        tasks: Names of GLUE's tasks.
        datasets: Directory with a folder for each task.
        limit: Texts of each task, a seeded choice; all when None.
        seed: Seed of that choice.
        resume: Whether answers of an earlier run are used.
        cache: Where finished answers are kept.
    """

    tasks: tuple[str, ...]
    datasets: Path
    limit: int | None = None
    seed: int = 0
    resume: bool = True
    cache: Path | None = None


@dataclass(frozen=True)
class _Set:
    """A development set: the places of the texts that are asked, and the texts, in that order."""

    name: str
    task: GlueTask
    places: tuple[int, ...]
    pairs: tuple[Pair, ...]


def tasks_there(names: Sequence[str] | None, datasets: Path | None) -> tuple[str, ...]:
    """The tasks that are asked.

    Args:
        names: As on the command line; those that the directory has when None.
        datasets: The directory with a folder for each task.

    Returns:
        Their names, each once.

    Raises:
        LonasEdgeError: If one is none of GLUE's, or there is none.
    """
    if datasets is None:
        raise LonasEdgeError("--datasets DIR is needed: the directory with a folder for each task, as GLUE has it")
    if names is None:
        found = [task.name for task in TASKS.values() if task.path(datasets, task.splits[0]).is_file()]
        if not found:
            raise LonasEdgeError(f"--datasets {datasets}: no TASK/dev.tsv of {', '.join(TASKS)}")
        return tuple(found)
    known = [task_named(name) for name in names]
    wrong = [
        f"{name}: no task of GLUE, which is what a classifier is asked"
        for name, task in zip(names, known, strict=True)
        if not task
    ]
    raise_all("Tasks that do not fit a classifier:", wrong, f"GLUE's are {', '.join(TASKS)}.")
    return tuple(dict.fromkeys(task.name for task in known if task))


def classify(
    targets: Sequence[Target], options: ClassifyOptions, progress: Progress = lambda _what, _done: None
) -> tuple[Report, Samples]:
    """Ask every target every task.

    Args:
        targets: What to evaluate; the first one is what the others are compared with.
        options: What to ask.
        progress: Called with what is being done, and the share of it that is done.

    Returns:
        The report, and what was answered to each text by target and task.

    Raises:
        LonasEdgeError: If data is missing or faulty, or a target's head cannot answer a task; before a model is loaded.
    """
    sets = _read(options)
    misfits = [
        f"{target.name}: {misfit}"
        for target in targets
        for task in dict.fromkeys(one.task for one in sets)
        if (misfit := task.misfit(len(target.outputs)))
    ]
    raise_all("Tasks that do not fit a target's head:", misfits, "Ask each target what it was trained on.")
    results: list[TargetResult] = []
    judged: list[list[Judged]] = []
    samples: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for target in targets:
        result, answers, samples[target.name] = _evaluate(target, sets, options, progress)
        results.append(result)
        judged.append(answers)
        target.close()
    names = [target.name for target in targets]
    report = Report(
        protocol=CLASSIFY.name,
        num_beams=None,
        limit=options.limit,
        seed=options.seed,
        targets=tuple(results),
        differences=tuple(
            one
            for name, answers in zip(names[1:], judged[1:], strict=True)
            for one in differences(name, answers, names[0], judged[0])
        ),
        conditions=conditions(),
    )
    return report, samples


def _read(options: ClassifyOptions) -> list[_Set]:
    found, faults = [], []
    for task in (TASKS[name] for name in options.tasks):
        for number, split in enumerate(task.splits):
            name = f"{task.name}-mm" if number else task.name
            try:
                pairs = task.read(task.path(options.datasets, split))
            except LonasEdgeError as error:
                faults.append(str(error))
                continue
            places = list(range(len(pairs)))
            if options.limit is not None and options.limit < len(pairs):
                places = sorted(random.Random(f"{options.seed}/{name}").sample(places, options.limit))
            found.append(_Set(name, task, tuple(places), tuple(pairs[place] for place in places)))
    raise_all("The development sets are not usable:", faults)
    return found


def _evaluate(
    target: Target, sets: Sequence[_Set], options: ClassifyOptions, progress: Progress
) -> tuple[TargetResult, list[Judged], dict[str, list[dict[str, Any]]]]:
    identity = {"target": target.identity, "protocol": CLASSIFY.name}
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
    log = AnswerLog((options.cache or cache_folder()) / f"{key}.jsonl", {"name": target.name, **identity}, not options.resume)
    asking = _Asking(target, log, progress)
    results, judged, samples = [], [], {}
    try:
        for one in sets:
            logits, left_out = asking.logits(one)
            answers = _judged(one, logits, target.outputs)
            metrics = metrics_of(answers)
            first = one.task.metrics[0]
            others = {"questions": len(logits), "left_out": left_out, "harness": False}
            results.append(TaskResult.of(one.name, first, metrics, **others))
            judged.append(answers)
            samples[one.name] = [*_samples(one, answers, logits)]
    finally:
        log.close()
    average, error = averaged(results)
    result = TargetResult(
        name=target.name,
        kind=target.kind,
        precision=target.precision,
        prompt=CLASSIFY.prompt or "",
        sizes=target.sizes,
        average=average,
        average_stderr=error,
        tasks=tuple(results),
        asked=asking.asked,
        seconds=asking.seconds,
        identity=dict(target.identity),
    )
    return result, judged, samples


class _Asking:
    """Asks one target; finished batches are kept."""

    def __init__(self, target: Target, log: AnswerLog, progress: Progress):
        self._target, self._log, self._progress = target, log, progress
        self._classify: Classify | None = None
        self.asked, self.seconds = 0, 0.0

    def logits(self, one: _Set) -> tuple[dict[int, list[float]], tuple[LeftOut, ...]]:
        """Logits by place; what is too long for the context is left out, never cut."""
        encoded = encode_pairs(one.pairs, self._target.tokenizer, None)
        most = self._target.max_length
        lengths = [len(row["input_ids"]) for row in encoded]
        left_out = tuple(
            LeftOut(one.name, place, length, most) for place, length in zip(one.places, lengths, strict=True) if length > most
        )
        fitting = sorted((index for index, length in enumerate(lengths) if length <= most), key=lambda i: (-lengths[i], i))
        if not fitting:
            raise LonasEdgeError(f"{self._target.name}: {one.name}: every text is longer than the context, {most} tokens")
        found: dict[int, list[float]] = {}
        size = self._target.batch_size
        for start in range(0, len(fitting), size):
            self._progress(f"{self._target.name}  {one.name}", start / len(fitting))
            batch = fitting[start : start + size]
            answers = self._answers([{**encoded[index], "labels": 0} for index in batch])
            found |= {one.places[index]: answer for index, answer in zip(batch, answers, strict=True)}
        return dict(sorted(found.items())), left_out

    def _answers(self, rows: list[dict[str, Any]]) -> list[list[float]]:
        key = hashlib.sha256(json.dumps(rows).encode()).hexdigest()
        kept = self._log.batches.get(key)
        if kept is not None and len(kept) == len(rows):
            return kept
        self._classify = self._classify or self._target.load()
        collate = PairCollator(self._target.tokenizer.pad_token_id or 0)
        batch = {name: tensor.numpy() for name, tensor in collate(rows).items() if name != "labels"}
        start = perf_counter()
        found: list[list[float]] = self._classify(batch).astype(float).tolist()
        self.seconds += perf_counter() - start
        self.asked += len(rows)
        if not all(np.isfinite(row).all() for row in found):
            raise LonasEdgeError(f"{self._target.name}: answers are not finite; is the model damaged?")
        self._log.add(key, found)
        return found


def _judged(one: _Set, logits: Mapping[int, Sequence[float]], outputs: Sequence[str]) -> Judged:
    """Answers in the task's own numbers: a head whose classes have the task's names in another order is read by names."""
    right = dict(zip(one.places, one.pairs, strict=True))
    labels = np.array([right[place].label for place in logits])
    table = np.array(list(logits.values()))
    if one.task.regression:
        return Judged(one.name, one.task, tuple(logits), labels, table[:, 0])
    if set(outputs) == set(one.task.classes):
        table = table[:, [list(outputs).index(name) for name in one.task.classes]]
    return Judged(one.name, one.task, tuple(logits), labels, table.argmax(1))


def _samples(one: _Set, judged: Judged, logits: Mapping[int, Sequence[float]]) -> Iterator[dict[str, Any]]:
    right = dict(zip(one.places, one.pairs, strict=True))
    for place, answer in zip(judged.places, judged.answers.tolist(), strict=True):
        pair = right[place]
        texts = [pair.first] if pair.second is None else [pair.first, pair.second]
        yield {"doc_id": place, "texts": texts, "label": pair.label, "answer": answer, "logits": list(logits[place])}
