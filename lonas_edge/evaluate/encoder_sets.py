"""Test sets of encoders: GLUE of classifiers and rerankers, STS-B of embedding models."""

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lonas_edge.data.encoding import collate_pairs, encode_pairs
from lonas_edge.data.glue import TASKS, GlueTask, task_named
from lonas_edge.data.task import Encoded
from lonas_edge.data.texts import Texts
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.answers import LoggedTarget
from lonas_edge.evaluate.compare import Answers, TaskAnswers
from lonas_edge.evaluate.encoders import Arrays, Encoder, batches
from lonas_edge.evaluate.metrics import ACCURACY, metrics_of
from lonas_edge.evaluate.options import EvalSettings
from lonas_edge.evaluate.protocols import CLASSIFY, EMBED, SIMILARITY, EncoderProtocol
from lonas_edge.evaluate.results import SkippedSample, TaskResult
from lonas_edge.evaluate.targets import Target
from lonas_edge.families import EMBEDDING, ModelKind
from lonas_edge.progress import Progress

_STORED = "<f4"  # embeddings in the log of answers


def choose_tasks(
    kind: ModelKind, names: Sequence[str] | None, datasets: Path | None
) -> tuple[EncoderProtocol, tuple[str, ...]]:
    """Choose the protocol of encoders and their tasks: by name, or those in the directory `datasets`."""
    protocol, known = (EMBED, [SIMILARITY]) if kind is EMBEDDING else (CLASSIFY, list(TASKS))
    expected = f"a directory with TASK/dev.tsv of GLUE ({', '.join(known)})"
    if datasets is None:
        raise LonasEdgeError(f"--datasets DIR is needed: {expected}")
    present = [name for name in known if TASKS[name].path(datasets, TASKS[name].splits[0]).is_file()]
    if names is None and not present:
        raise LonasEdgeError(f"--datasets {datasets}: expected {expected}, found none")
    chosen = [task.name if (task := task_named(name)) else name for name in names or present]
    wrong = [f"{name}: no task of a {kind.name}" for name in chosen if name not in known]
    raise_all("Tasks that cannot be evaluated:", wrong, f"Its tasks: {', '.join(known)}.")
    return protocol, tuple(dict.fromkeys(chosen))


class EncoderEvaluation:
    """Evaluates encoders on the test sets of their protocol."""

    def __init__(self, settings: EvalSettings):
        """Read the test sets; all errors are reported together."""
        self._sets, errors = list[_EncoderSet](), list[str]()
        for name in settings.tasks:
            try:
                self._sets += _read(name, settings)
            except LonasEdgeError as error:
                errors.append(str(error))
        raise_all("Test sets that cannot be used:", errors)

    def check(self, targets: Sequence[Target]) -> None:
        """Refuse targets whose head does not fit a test set."""
        errors = [f"{target.name}: {error}" for target in targets for each in self._sets if (error := each.head_error(target))]
        hint = "Evaluate each target on the task it was trained for."
        raise_all("Tasks that do not fit a target's head:", list(dict.fromkeys(errors)), hint)

    def prompt_of(self, _target: Target) -> str:
        """Return an empty text: there is no prompt template."""
        return ""

    def run(self, logged: LoggedTarget, progress: Progress) -> list[TaskAnswers]:
        """Evaluate a target."""
        return [each.run(logged, progress) for each in self._sets]


@dataclass(frozen=True)
class _EncoderSet(ABC):
    """A test set under the name that reports show."""

    name: str

    @abstractmethod
    def run(self, logged: LoggedTarget, progress: Progress) -> TaskAnswers:
        """Evaluate a target."""

    def head_error(self, target: Target) -> str | None:
        """Say why the target's head does not fit; None if it does."""
        return None


@dataclass(frozen=True)
class _GlueSet(_EncoderSet):
    """Chosen texts of a development set, by their index in the file."""

    task: GlueTask
    pairs: Mapping[int, Texts]

    def head_error(self, target: Target) -> str | None:
        return self.task.head_error(len(target.outputs))

    def run(self, logged: LoggedTarget, progress: Progress) -> TaskAnswers:
        """Evaluate a target. Texts beyond the context are skipped, never cut."""
        target, rows, skipped = logged.target, dict[int, Encoded](), list[SkippedSample]()
        encoded = encode_pairs([pair.texts for pair in self.pairs.values()], target.tokenizer, None)
        for index, row in zip(self.pairs, encoded, strict=True):
            if len(row["input_ids"]) > target.max_length:
                skipped.append(SkippedSample(self.name, index, len(row["input_ids"]), target.max_length))
            else:
                rows[index] = row
        if not rows:
            most = target.max_length
            raise LonasEdgeError(f"{target.name}: {self.name}: every text is longer than the context of {most} tokens")
        logits = np.array(_answers(logged, self.name, list(rows.values()), _logits, progress))
        labels = np.array([self.pairs[index].label for index in rows])
        outputs = logits[:, 0] if self.task.regression else logits[:, self.task.numbers_in(target.outputs)].argmax(1)
        correct = -np.abs(outputs - labels) if self.task.regression else (outputs == labels).astype(float)
        metrics, first = metrics_of(self.task.metrics, labels, outputs), self.task.metrics[0]
        result = TaskResult.of(self.name, first, metrics, questions=len(rows), skipped=tuple(skipped), harness=False)
        samples = []
        for index, output, row in zip(rows, outputs.tolist(), logits.tolist(), strict=True):
            pair = self.pairs[index]
            sample = {"doc_id": index, "texts": list(pair.texts), "label": pair.label, "answer": output, "logits": row}
            samples.append(sample)
        compared = Answers(self.name, np.array(list(rows)), correct, outputs, None if first == ACCURACY else labels, first)
        return TaskAnswers(result, samples, compared)


@dataclass(frozen=True)
class _SimilaritySet(_EncoderSet):
    """Pairs of texts with a score, by their index in the file. An answer is the cosine of a pair."""

    pairs: Mapping[int, Texts]

    def run(self, logged: LoggedTarget, progress: Progress) -> TaskAnswers:
        from scipy.stats import rankdata

        pairs, count = self.pairs.values(), len(self.pairs)
        texts = [pair.texts[0] for pair in pairs] + [pair.texts[1] for pair in pairs]
        prompt = logged.target.embedding.prompt()
        directions = _directions(logged, self.name, [prompt + text for text in texts], progress)
        cosines, labels = (directions[:count] * directions[count:]).sum(1), np.array([pair.label for pair in pairs])
        names = EMBED.metrics[self.name]
        result = TaskResult.of(
            self.name, names[0], metrics_of(names, labels, cosines), questions=count, skipped=(), harness=False
        )
        nearness = -np.abs(rankdata(cosines) - rankdata(labels)) / count  # their scales differ
        samples = [
            {"doc_id": index, "texts": list(pair.texts), "label": pair.label, "answer": cosine}
            for (index, pair), cosine in zip(self.pairs.items(), cosines.tolist(), strict=True)
        ]
        compared = Answers(self.name, np.array(list(self.pairs)), nearness, cosines, labels, names[0])
        return TaskAnswers(result, samples, compared)


def _read(name: str, settings: EvalSettings) -> list[_EncoderSet]:
    task, sets = TASKS[name], list[_EncoderSet]()
    for number, split in enumerate(task.splits):
        shown = f"{name}-mm" if number else name
        pairs = task.read(task.path(_folder(settings), split))
        chosen = {index: pairs[index] for index in settings.choose(shown, len(pairs))}
        sets.append(_SimilaritySet(shown, chosen) if settings.protocol is EMBED else _GlueSet(shown, task, chosen))
    return sets


def _folder(settings: EvalSettings) -> Path:
    assert settings.datasets  # of `choose_tasks`
    return settings.datasets


def _answers(
    logged: LoggedTarget,
    title: str,
    rows: Sequence[Encoded],
    run: Callable[[str, Encoder, Arrays], list[Any]],
    progress: Progress,
) -> list[Any]:
    """Answer tokenized texts in batches; `run` computes an answer to each text of a batch, as JSON."""
    target, answers = logged.target, dict[int, Any]()
    labelled = [{**row, "labels": 0} for row in rows]
    collate = partial(collate_pairs, pad_token_id=target.tokenizer.pad_token_id or 0)
    for indices, arrays in batches(labelled, collate, target.batch_size):
        progress(f"{target.name}  {title}", len(answers) / len(rows))

        def compute(encoder: Encoder, arrays: Arrays = arrays) -> list[Any]:
            return run(target.name, encoder, arrays)

        requests = [labelled[index] for index in indices]
        answers |= zip(indices, logged.answers(requests, len(requests), compute), strict=True)
    return [answer for _, answer in sorted(answers.items())]


def _logits(name: str, encoder: Encoder, arrays: Arrays) -> list[list[float]]:
    logits = encoder(arrays)
    if not np.isfinite(logits).all():
        raise LonasEdgeError(f"{name}: logits are not finite; is the model damaged?")
    rows: list[list[float]] = logits.astype(float).tolist()
    return rows


def _embeddings(name: str, encoder: Encoder, arrays: Arrays) -> list[str]:
    embeddings = encoder(arrays)
    if not np.isfinite(embeddings).all():
        raise LonasEdgeError(f"{name}: embeddings are not finite; is the model damaged?")
    return [base64.b64encode(row.tobytes()).decode() for row in embeddings.astype(_STORED)]


def _directions(logged: LoggedTarget, title: str, texts: Sequence[str], progress: Progress) -> np.ndarray:
    """Compute embeddings scaled to length 1 [texts, hidden], of equal texts once; texts beyond the longest are cut."""
    target, rows = logged.target, {text: row for row, text in enumerate(dict.fromkeys(texts))}
    encoded = encode_pairs([(text,) for text in rows], target.tokenizer, target.embedding.max_length)
    answers = _answers(logged, title, encoded, _embeddings, progress)
    embeddings = np.array([np.frombuffer(base64.b64decode(answer), _STORED) for answer in answers], float)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    directions: np.ndarray = embeddings[[rows[text] for text in texts]]
    return directions
