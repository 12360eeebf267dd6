"""Test sets of encoders: GLUE of classifiers and rerankers, STS-B of embedding models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from lonas_edge.data.classes import COSINE_PAIRS, own_task
from lonas_edge.data.encoding import collate_pairs, encode_pairs
from lonas_edge.data.glue import TASKS, GlueTask, task_named
from lonas_edge.data.task import Encoded
from lonas_edge.data.texts import Texts
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.answers import LoggedTarget, skip_too_long
from lonas_edge.evaluate.compare import Answers, TaskAnswers
from lonas_edge.evaluate.encoders import Arrays, Encoder, batches
from lonas_edge.evaluate.options import EvalSettings
from lonas_edge.evaluate.protocols import CLASSIFY, EMBED, SIMILARITY, Protocol
from lonas_edge.evaluate.results import ACCURACY, SkippedSample, TaskResult, metrics_of
from lonas_edge.evaluate.targets import Target
from lonas_edge.families import EMBEDDING, ModelKind
from lonas_edge.progress import Progress


def choose_tasks(
    kind: ModelKind, names: Sequence[str] | None, datasets: Path | None, data: Path | None = None
) -> tuple[Protocol, tuple[str, ...]]:
    """Choose the protocol of encoders and their tasks: none for `data`, or by name, or those in the directory `datasets`."""
    protocol, known = (EMBED, [SIMILARITY]) if kind is EMBEDDING else (CLASSIFY, list(TASKS))
    if data:
        return protocol, ()
    expected = f"a directory with TASK/dev.tsv of GLUE ({', '.join(known)})"
    if datasets is None:
        raise LonasEdgeError(f"Pass --data FILE, texts with labels, or --datasets DIR, {expected}")
    present = [name for name in known if TASKS[name].path(datasets, TASKS[name].splits[0]).is_file()]
    if names is None and not present:
        raise LonasEdgeError(f"--datasets {datasets}: expected {expected}, found none")
    chosen = [task.name if (task := task_named(name)) else name for name in names or present]
    wrong = [f"{name}: no task of a {kind.name}" for name in chosen if name not in known]
    raise_all("Tasks that cannot be evaluated:", wrong, f"Its tasks: {', '.join(known)}.")
    return protocol, tuple(dict.fromkeys(chosen))


@dataclass(frozen=True)
class _TestSet:
    """Chosen texts of a development set, by their index in the file, under the name that reports show."""

    name: str
    task: GlueTask
    texts: Mapping[int, Texts]


class EncoderEvaluation:
    """Evaluates encoders on the test sets of their protocol."""

    def __init__(self, settings: EvalSettings, targets: Sequence[Target], _progress: Progress):
        """Read the test sets, and refuse targets whose head does not fit one; all errors are reported together."""
        self._sets, errors = list[_TestSet](), list[str]()
        self._embeds = settings.protocol is EMBED
        if settings.data:
            self._sets.append(_read_own(settings.data, targets, settings))
        for name in settings.tasks:
            try:
                self._sets += _read(TASKS[name], settings)
            except LonasEdgeError as error:
                errors.append(str(error))
        raise_all("Test sets that cannot be used:", errors)
        for target in () if self._embeds else targets:
            found = [each.task.head_error(len(target.outputs)) for each in self._sets]
            errors += [f"{target.name}: {error}" for error in found if error]
        hint = "Evaluate each target on the task it was trained for."
        raise_all("Tasks that do not fit a target's head:", list(dict.fromkeys(errors)), hint)

    def prompt_of(self, _target: Target) -> str:
        """Return an empty text: there is no prompt template."""
        return ""

    def run(self, logged: LoggedTarget, progress: Progress) -> list[TaskAnswers]:
        """Evaluate a target."""
        evaluate = _embed if self._embeds else _classify
        return [evaluate(logged, each, progress) for each in self._sets]


def _read_own(path: Path, targets: Sequence[Target], settings: EvalSettings) -> _TestSet:
    """Read texts with labels: classes of the first target's head, its scores, or cosines of an embedding model's pairs."""
    first = targets[0]
    task = own_task(first.outputs) if first.outputs else COSINE_PAIRS
    texts = task.read(path)
    return _TestSet(path.stem, task, {index: texts[index] for index in settings.choose(path.stem, len(texts))})


def _read(task: GlueTask, settings: EvalSettings) -> list[_TestSet]:
    assert settings.datasets  # of `choose_tasks`
    sets = []
    for number, split in enumerate(task.splits):
        shown = f"{task.name}-mm" if number else task.name
        texts = task.read(task.path(settings.datasets, split))
        sets.append(_TestSet(shown, task, {index: texts[index] for index in settings.choose(shown, len(texts))}))
    return sets


def _classify(logged: LoggedTarget, test_set: _TestSet, progress: Progress) -> TaskAnswers:
    """Evaluate a classifier. Texts of GLUE beyond the context are skipped, others are cut, as in trainings."""
    target, name, task = logged.target, test_set.name, test_set.task
    longest = None if task.published else target.max_length
    encoded = encode_pairs([pair.texts for pair in test_set.texts.values()], target.tokenizer, longest)
    rows = dict(zip(test_set.texts, encoded, strict=True))
    kept, skipped = skip_too_long(target, name, {index: len(row["input_ids"]) for index, row in rows.items()})
    texts = {index: test_set.texts[index] for index in kept}
    logits = _outputs(logged, name, [rows[index] for index in kept], progress)
    given = logits[:, 0] if task.regression else logits[:, task.numbers_in(target.outputs)].argmax(1)
    return _judge(name, task.metrics, texts, given, skipped, [{"logits": row} for row in logits.tolist()])


def _embed(logged: LoggedTarget, test_set: _TestSet, progress: Progress) -> TaskAnswers:
    """Evaluate an embedding model on scored pairs by their cosines. Texts beyond the longest are cut, equal ones run once."""
    pooling, pairs = logged.target.pooling, test_set.texts.values()
    assert pooling
    texts = [pooling.prompt() + pair.texts[side] for side in (0, 1) for pair in pairs]
    rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    encoded = encode_pairs([(text,) for text in rows], logged.target.tokenizer, pooling.max_length)
    embeddings = torch.from_numpy(_outputs(logged, test_set.name, encoded, progress))
    directions = F.normalize(embeddings, dim=-1).numpy()[[rows[text] for text in texts]]
    cosines = (directions[: len(pairs)] * directions[len(pairs) :]).sum(1)
    return _judge(test_set.name, ("spearman", "pearson"), test_set.texts, cosines)


def _judge(
    name: str,
    metrics: Sequence[str],
    texts: Mapping[int, Texts],
    given: np.ndarray,
    skipped: Sequence[SkippedSample] = (),
    fields: Sequence[Mapping[str, Any]] | None = None,
) -> TaskAnswers:
    """Compute the metrics of answers, the first of which counts; `fields` are further ones of the sample log."""
    labels = np.array([pair.label for pair in texts.values()])
    found, first = metrics_of(metrics, labels, given), metrics[0]
    result = TaskResult.of(name, first, found, questions=len(texts), skipped=tuple(skipped), harness=False)
    samples = []
    for (index, pair), answer, more in zip(texts.items(), given.tolist(), fields or [{}] * len(texts), strict=True):
        samples.append({"doc_id": index, "texts": list(pair.texts), "label": pair.label, "answer": answer, **more})
    scores = (given == labels).astype(float)
    compared = Answers(name, np.array(list(texts)), scores, given, None if first == ACCURACY else labels, first)
    return TaskAnswers(result, samples, compared)


def _outputs(logged: LoggedTarget, title: str, rows: Sequence[Encoded], progress: Progress) -> np.ndarray:
    """Compute logits or embeddings of tokenized texts in batches: [texts, outputs], float64."""
    target, outputs = logged.target, dict[int, list[float]]()
    labelled = [{**row, "labels": 0} for row in rows]
    collate = partial(collate_pairs, pad_token_id=target.tokenizer.pad_token_id or 0)
    for indices, arrays in batches(labelled, collate, target.batch_size):
        progress(f"{target.name}  {title}", len(outputs) / len(rows))
        requests = [labelled[index] for index in indices]
        outputs |= zip(indices, logged.answers(requests, len(requests), partial(_run, target.name, arrays)), strict=True)
    return np.array([outputs[index] for index in range(len(rows))])


def _run(name: str, arrays: Arrays, encoder: Encoder) -> list[list[float]]:
    outputs = encoder(arrays)
    if not np.isfinite(outputs).all():
        raise LonasEdgeError(f"{name}: outputs are not finite; is the model damaged?")
    rows: list[list[float]] = outputs.astype(float).tolist()
    return rows
