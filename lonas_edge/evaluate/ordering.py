"""Metrics of ordered passages: nDCG@10 and MRR@10, of retrieval and of reranking."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lonas_edge.bench.statistics import standard_error
from lonas_edge.evaluate.compare import Answers, TaskAnswers
from lonas_edge.exporting.evaluations import Metric, TaskResult

RANKED = 10  # passages that count
NDCG, MRR = "ndcg_at_10", "mrr_at_10"


def judged(nearest: Sequence[str], relevant: Mapping[str, int]) -> dict[str, Any]:
    """The first passages of an order by name, with the metrics of a query, given the grades of its relevant passages."""
    nearest = nearest[:RANKED]
    grades, ideal = [relevant.get(name, 0) for name in nearest], sorted(relevant.values(), reverse=True)[:RANKED]
    reciprocal = next((1 / rank for rank, grade in enumerate(grades, 1) if grade), 0.0)
    return {"answer": list(nearest), NDCG: _gain(grades) / _gain(ideal), MRR: reciprocal}


def ordered_answers(task: str, samples: Sequence[Mapping[str, Any]]) -> TaskAnswers:
    """The result of a task, given its queries with the fields of `judged`."""
    scores = {name: np.array([sample[name] for sample in samples]) for name in (NDCG, MRR)}
    given = np.array(["\t".join(sample["answer"]) for sample in samples])
    compared = Answers(task, np.array([sample["doc_id"] for sample in samples]), scores[NDCG], given, metric=NDCG)
    metrics = {name: Metric(float(values.mean()), standard_error(values)) for name, values in scores.items()}
    result = TaskResult.of(task, NDCG, metrics, questions=len(samples), skipped=(), harness=False)
    return TaskAnswers(result, samples, compared)


def _gain(grades: Sequence[int]) -> float:
    """Discounted cumulative gain (Järvelin and Kekäläinen 2002), as trec_eval has it."""
    return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades, 1))
