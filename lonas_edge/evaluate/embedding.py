"""Sentence embedding models on pairs of texts (STS-B) and on retrieval data; embeddings are compared by the cosine."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lonas_edge.data.encoding import encode_pairs
from lonas_edge.data.glue import TASKS, task_named
from lonas_edge.data.pooling import PASSAGE, QUERY, Pooling
from lonas_edge.data.retrieval import CORPUS, Retrieval, read_retrieval
from lonas_edge.data.texts import Texts
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.answer_log import LoggedTarget
from lonas_edge.evaluate.batches import answered
from lonas_edge.evaluate.compare import Answers, TaskAnswers
from lonas_edge.evaluate.encoders import Encoder
from lonas_edge.evaluate.glue import metrics_of
from lonas_edge.evaluate.ordering import RANKED, judged, ordered_answers
from lonas_edge.evaluate.protocols import EMBED, SIMILARITY
from lonas_edge.evaluate.settings import EvalSettings
from lonas_edge.evaluate.targets import Target
from lonas_edge.exporting.evaluations import TaskResult
from lonas_edge.progress import Progress

_STORED = "<f4"  # embeddings in the log of answers
_EXPECTED = f"{SIMILARITY}/dev.tsv (GLUE) or NAME/{CORPUS} (BEIR)"


def choose_tasks(names: Sequence[str] | None, datasets: Path | None) -> tuple[str, ...]:
    """Choose the tasks to evaluate; those in the directory `datasets` without names."""
    if datasets is None:
        raise LonasEdgeError(f"--datasets DIR is needed: a directory with {_EXPECTED}")
    similarity = [SIMILARITY] if TASKS[SIMILARITY].path(datasets).is_file() else []
    retrieval = sorted(path.parent.name for path in datasets.glob(f"*/{CORPUS}"))
    if names is None:
        if not similarity + retrieval:
            raise LonasEdgeError(f"--datasets {datasets}: expected {_EXPECTED}, found neither")
        return *similarity, *retrieval
    chosen = [SIMILARITY if task_named(name) is TASKS[SIMILARITY] else name for name in names]
    known = list(dict.fromkeys([SIMILARITY, *retrieval]))
    wrong = [f"{name}: no {CORPUS} in {datasets / name}" for name in chosen if name not in known]
    raise_all("Tasks that do not fit an embedding model:", wrong, f"Its tasks in {datasets}: {', '.join(known)}.")
    return tuple(dict.fromkeys(chosen))


@dataclass(frozen=True)
class _Similarity:
    """Pairs of texts with a score, by their index in the file. An answer is the cosine of a pair."""

    name: str
    pairs: Mapping[int, Texts]

    def run(self, logged: LoggedTarget, progress: Progress) -> TaskAnswers:
        """Evaluate a target."""
        from scipy.stats import rankdata

        pairs, count, prompt = self.pairs.values(), len(self.pairs), _pooling(logged).prompt()
        texts = [prompt + text for text in (*(pair.texts[0] for pair in pairs), *(pair.texts[1] for pair in pairs))]
        directions = _directions(logged, self.name, texts, progress)
        cosines, labels = (directions[:count] * directions[count:]).sum(1), np.array([pair.label for pair in pairs])
        names = EMBED.metrics_of(self.name)
        metrics, (first, *_) = metrics_of(names, labels, cosines), names
        result = TaskResult.of(self.name, first, metrics, questions=count, skipped=(), harness=False)
        nearness = -np.abs(rankdata(cosines) - rankdata(labels)) / count  # their scales differ
        samples = [
            {"doc_id": index, "texts": list(pair.texts), "label": pair.label, "answer": cosine}
            for (index, pair), cosine in zip(self.pairs.items(), cosines.tolist(), strict=True)
        ]
        return TaskAnswers(result, samples, Answers(self.name, np.array(list(self.pairs)), nearness, cosines, labels, first))


@dataclass(frozen=True)
class _Search:
    """Chosen queries by their index in the data. An answer is the list of the nearest passages."""

    name: str
    queries: Mapping[int, str]
    data: Retrieval

    def run(self, logged: LoggedTarget, progress: Progress) -> TaskAnswers:
        """Evaluate a target."""
        pooling, ids = _pooling(logged), list(self.data.passages)
        texts = [pooling.prompt(*QUERY) + self.data.queries[query] for query in self.queries.values()]
        texts += [pooling.prompt(*PASSAGE) + text for text in self.data.passages.values()]
        queries, passages = np.split(_directions(logged, self.name, texts, progress), [len(self.queries)])
        samples = [
            {"doc_id": index, "query": query, **self._ranked(query, [ids[row] for row in np.argsort(-cosines, kind="stable")])}
            for (index, query), cosines in zip(self.queries.items(), (passages @ row for row in queries), strict=True)
        ]
        return ordered_answers(self.name, samples)

    def _ranked(self, query: str, passages: Sequence[str]) -> dict[str, Any]:
        """The nearest of sorted passages, and their metrics.

        As in BEIR, a passage with the query's own id is the query itself and is skipped, here unless it is relevant.
        """
        relevant = self.data.relevance[query]
        others = (name for name in passages if name != query or name in relevant)
        return judged(list(islice(others, RANKED)), relevant)


@dataclass(frozen=True)
class Embedding:
    """Evaluates embedding models."""

    settings: EvalSettings

    @cached_property
    def _sets(self) -> list[_Similarity | _Search]:
        sets, problems = list[_Similarity | _Search](), list[str]()
        for name in self.settings.tasks:
            try:
                sets.append(self._similarity() if name == SIMILARITY else self._search(name))
            except LonasEdgeError as error:
                problems.append(str(error))
        raise_all("Test sets that cannot be used:", problems)
        return sets

    def _similarity(self) -> _Similarity:
        task = TASKS[SIMILARITY]
        pairs = task.read(task.path(self.settings.datasets or Path()))
        return _Similarity(SIMILARITY, {index: pairs[index] for index in self.settings.chosen(SIMILARITY, len(pairs))})

    def _search(self, name: str) -> _Search:
        data = read_retrieval((self.settings.datasets or Path()) / name)
        queries = list(data.queries)
        return _Search(name, {index: queries[index] for index in self.settings.chosen(name, len(queries))}, data)

    def check(self, _targets: Sequence[Target]) -> None:
        """Read the data."""
        self._sets  # noqa: B018 - raises errors

    def prompt_of(self, _target: Target) -> str:
        """Return an empty text: there is no prompt template."""
        return ""

    def run(self, logged: LoggedTarget, progress: Progress) -> list[TaskAnswers]:
        """Evaluate a target."""
        return [each.run(logged, progress) for each in self._sets]


def _pooling(logged: LoggedTarget) -> Pooling:
    assert logged.target.pooling
    return logged.target.pooling


def _directions(logged: LoggedTarget, title: str, texts: Sequence[str], progress: Progress) -> np.ndarray:
    """Compute embeddings scaled to length 1 [texts, hidden], of equal texts once; texts beyond the longest are cut."""
    target, rows = logged.target, {text: row for row, text in enumerate(dict.fromkeys(texts))}
    encoded = encode_pairs([(text,) for text in rows], target.tokenizer, _pooling(logged).max_length)
    answers = answered(logged, title, dict(enumerate(encoded)), partial(_embed, name=target.name), progress)
    embeddings = np.array([np.frombuffer(base64.b64decode(answer), _STORED) for answer in answers.values()], float)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    directions: np.ndarray = embeddings[[rows[text] for text in texts]]
    return directions


def _embed(arrays: Mapping[str, np.ndarray], model: Encoder, name: str) -> list[str]:
    embeddings = model(arrays)
    if not np.isfinite(embeddings).all():
        raise LonasEdgeError(f"{name}: embeddings are not finite; is the model damaged?")
    return [base64.b64encode(row.tobytes()).decode() for row in embeddings.astype(_STORED)]
