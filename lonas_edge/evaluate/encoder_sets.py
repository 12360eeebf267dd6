"""Test sets of encoders: GLUE of classifiers, STS-B and retrieval of embedding models, candidate passages of rerankers."""

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lonas_edge.bench.statistics import standard_error
from lonas_edge.data.encoding import collate_pairs, encode_pairs
from lonas_edge.data.glue import TASKS, GlueTask, task_named
from lonas_edge.data.pooling import PASSAGE, QUERY
from lonas_edge.data.retrieval import CANDIDATES, CORPUS, Candidates, Retrieval, read_candidates, read_retrieval
from lonas_edge.data.task import Encoded
from lonas_edge.data.texts import Texts
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.evaluate.answers import LoggedTarget
from lonas_edge.evaluate.compare import Answers, TaskAnswers
from lonas_edge.evaluate.encoders import Arrays, Encoder, batches
from lonas_edge.evaluate.metrics import ACCURACY, MRR, NDCG, RANKED, judge_order, metrics_of
from lonas_edge.evaluate.options import EvalSettings
from lonas_edge.evaluate.protocols import CLASSIFY, EMBED, RERANK, SIMILARITY, EncoderProtocol
from lonas_edge.evaluate.targets import Target
from lonas_edge.exporting.evaluations import Metric, SkippedSample, TaskResult
from lonas_edge.families import EMBEDDING, ModelKind
from lonas_edge.progress import Progress

_STORED = "<f4"  # embeddings in the log of answers


def choose_tasks(
    kind: ModelKind, targets: Sequence[Target], names: Sequence[str] | None, datasets: Path | None
) -> tuple[EncoderProtocol, tuple[str, ...]]:
    """Choose the protocol of encoders and their tasks: by name, or those in the directory `datasets`.

    A classifier with one output is a reranker where there are candidate passages.
    """
    if datasets is None:
        raise LonasEdgeError(f"--datasets DIR is needed: {_expected(kind)}")
    if kind is EMBEDDING:
        similarity = [SIMILARITY] if TASKS[SIMILARITY].path(datasets).is_file() else []
        protocol, present = EMBED, [*similarity, *_folders_with(datasets, CORPUS)]
    else:
        protocol, present = RERANK, _folders_with(datasets, CANDIDATES)
        ranks = set(names) <= set(present) if names else present and all(len(target.outputs) == 1 for target in targets)
        if not ranks:
            protocol = CLASSIFY
            present = [task.name for task in TASKS.values() if task.path(datasets, task.splits[0]).is_file()]
    if names is None and not present:
        raise LonasEdgeError(f"--datasets {datasets}: expected {_expected(kind)}, found none")
    known = list(TASKS) if protocol is CLASSIFY else [SIMILARITY, *present] if protocol is EMBED else present
    chosen = [task.name if (task := task_named(name)) and task.name in known else name for name in names or present]
    wrong = [f"{name}: no task of a {kind.name} in {datasets}" for name in chosen if name not in known]
    raise_all("Tasks that cannot be evaluated:", wrong, f"Its tasks: {', '.join(dict.fromkeys(known))}.")
    return protocol, tuple(dict.fromkeys(chosen))


def _folders_with(datasets: Path, file: str) -> list[str]:
    return sorted(path.parent.name for path in datasets.glob(f"*/{file}"))


def _expected(kind: ModelKind) -> str:
    if kind is EMBEDDING:
        return f"a directory with {SIMILARITY}/dev.tsv (GLUE) or NAME/{CORPUS} (BEIR)"
    return f"a directory with TASK/dev.tsv of GLUE ({', '.join(TASKS)}) or NAME/{CANDIDATES}"


class EncoderEvaluation:
    """Evaluates encoders on the test sets of their protocol."""

    def __init__(self, settings: EvalSettings):
        """Read the test sets; all errors are reported together."""
        self._sets, errors = list[_EncoderSet](), list[str]()
        for name in settings.tasks:
            try:
                self._sets += _READERS[settings.protocol.name](name, settings)
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
        names = EMBED.metrics_of(self.name)
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


@dataclass(frozen=True)
class _RetrievalSet(_EncoderSet):
    """Chosen queries by their index in the data. An answer is the list of the nearest passages."""

    queries: Mapping[int, str]
    data: Retrieval

    def run(self, logged: LoggedTarget, progress: Progress) -> TaskAnswers:
        pooling, ids = logged.target.embedding, list(self.data.passages)
        texts = [pooling.prompt(*QUERY) + self.data.queries[query] for query in self.queries.values()]
        texts += [pooling.prompt(*PASSAGE) + text for text in self.data.passages.values()]
        queries, passages = np.split(_directions(logged, self.name, texts, progress), [len(self.queries)])
        samples = []
        for (index, query), row in zip(self.queries.items(), queries, strict=True):
            relevant = self.data.relevance[query]
            ordered = (ids[place] for place in np.argsort(-(passages @ row), kind="stable"))
            # as in BEIR, a passage with the query's own id is the query itself and is skipped, here unless it is relevant
            nearest = list(islice((name for name in ordered if name != query or name in relevant), RANKED))
            samples.append({"doc_id": index, "query": query, **judge_order(nearest, relevant)})
        return _ordered(self.name, samples)


@dataclass(frozen=True)
class _RerankingSet(_EncoderSet):
    """Chosen queries with their candidates, by their index in the file. An answer is the order of the candidates."""

    queries: Mapping[int, Candidates]

    def head_error(self, target: Target) -> str | None:
        if len(target.outputs) == 1:
            return None
        return f"{len(target.outputs)} outputs; expected 1, a score of a query and a passage (a cross-encoder)"

    def run(self, logged: LoggedTarget, progress: Progress) -> TaskAnswers:
        """Evaluate a target. Of equal scores a passage that is not relevant comes first. Long pairs are cut."""
        target, samples = logged.target, []
        pairs = [(each.query, text) for each in self.queries.values() for text in (*each.negative, *each.positive)]
        rows = encode_pairs(pairs, target.tokenizer, int(min(target.tokenizer.model_max_length, target.max_length)))
        scores = (logits[0] for logits in _answers(logged, self.name, rows, _logits, progress))
        for index, each in self.queries.items():
            texts = (*each.negative, *each.positive)
            order = np.argsort(-np.array(list(islice(scores, len(texts)))), kind="stable")
            judged = judge_order([texts[place] for place in order], dict.fromkeys(each.positive, 1))
            samples.append({"doc_id": index, "query": each.query, **judged})
        return _ordered(self.name, samples)


def _ordered(task: str, samples: Sequence[Mapping[str, Any]]) -> TaskAnswers:
    """Make the result of a task of its queries, with the fields of `judge_order`."""
    scores = {name: np.array([sample[name] for sample in samples]) for name in (NDCG, MRR)}
    metrics = {name: Metric(float(values.mean()), standard_error(values)) for name, values in scores.items()}
    given = np.array(["\t".join(sample["answer"]) for sample in samples])
    compared = Answers(task, np.array([sample["doc_id"] for sample in samples]), scores[NDCG], given, metric=NDCG)
    result = TaskResult.of(task, NDCG, metrics, questions=len(samples), skipped=(), harness=False)
    return TaskAnswers(result, samples, compared)


def _read_glue(name: str, settings: EvalSettings) -> list[_EncoderSet]:
    sets: list[_EncoderSet] = []
    for number, split in enumerate(TASKS[name].splits):
        shown = f"{name}-mm" if number else name
        pairs = TASKS[name].read(TASKS[name].path(_folder(settings), split))
        sets.append(_GlueSet(shown, TASKS[name], _choose(shown, pairs, settings)))
    return sets


def _read_embedding(name: str, settings: EvalSettings) -> list[_EncoderSet]:
    if name == SIMILARITY:
        pairs = TASKS[name].read(TASKS[name].path(_folder(settings)))
        return [_SimilaritySet(name, _choose(name, pairs, settings))]
    data = read_retrieval(_folder(settings) / name)
    return [_RetrievalSet(name, _choose(name, list(data.queries), settings), data)]


def _read_reranking(name: str, settings: EvalSettings) -> list[_EncoderSet]:
    queries = read_candidates(_folder(settings) / name / CANDIDATES)
    return [_RerankingSet(name, _choose(name, queries, settings))]


_READERS: Mapping[str, Callable[[str, EvalSettings], list[_EncoderSet]]] = {
    CLASSIFY.name: _read_glue,
    EMBED.name: _read_embedding,
    RERANK.name: _read_reranking,
}


def _folder(settings: EvalSettings) -> Path:
    assert settings.datasets  # of `choose_tasks`
    return settings.datasets


def _choose(name: str, samples: Sequence[Any], settings: EvalSettings) -> dict[int, Any]:
    return {index: samples[index] for index in settings.choose(name, len(samples))}


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
