"""Measure exported embedding models on held-out texts: distances from the unpruned model, and correlation with scores."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lonas_edge.data.pooling import Pooling
from lonas_edge.data.sentences import SentenceCollator, Sentences, encode_sentences, read_sentences
from lonas_edge.errors import raise_all
from lonas_edge.evaluate.targets import embedder_of
from lonas_edge.exporting.exported import open_exported
from lonas_edge.families import EMBEDDING
from lonas_edge.ir import MODEL
from lonas_edge.ir.infer import open_model
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.pipeline.measure import Scores, loss_difference
from lonas_edge.pipeline.record import Interval, Quality
from lonas_edge.progress import Progress

if TYPE_CHECKING:
    from lonas_edge.pipeline.plan import Plan

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
_BATCH = 16  # records
_RESAMPLES = 1000  # of a bootstrap


def qualities(plan: "Plan", folders: Mapping[str, Path], progress: Progress) -> dict[str, dict[str, Quality]]:
    """Measure cosine distance and, with scored pairs, Spearman's correlation, see `PipelineTask.measured`."""
    sentences, pooling = read_sentences(plan.places.held_out), plan.source.pooling or Pooling()
    reference = embedded(plan.places.baseline("fp32"), sentences, pooling, EXACT, progress)
    found = {name: embedded(folder, sentences, pooling, {}, progress) for name, folder in folders.items()}
    raise_all(
        "Embeddings are not finite:",
        [name for name, each in found.items() if not np.isfinite(each).all()],
        "The weights are damaged, or a training diverged; see the losses in steps/.",
    )
    distances = {name: distance(reference, each) for name, each in found.items()}
    first = next(iter(folders))
    measured = {
        name: {"distance": Quality(float(each.mean()), None if name == first else _difference(distances[first], each))}
        for name, each in distances.items()
    }
    if sentences.scores:
        scores, cosines = np.array(sentences.scores), {name: (each[:, 0] * each[:, 1]).sum(-1) for name, each in found.items()}
        for name, own in measured.items():
            progress(f"correlations of {name}", None)
            change = None if name == first else correlation_difference(cosines[first], cosines[name], scores)
            own["spearman"] = Quality(correlation(cosines[name], scores), change)
    return measured


def embedded(
    folder: Path, sentences: Sentences, pooling: Pooling, properties: Mapping[str, str], progress: Progress
) -> np.ndarray:
    """Compute embeddings of length 1 by an IR: [records, texts of a record, hidden]."""
    exported, tokenizer = open_exported(folder, ours=False, task=EMBEDDING), require_tokenizer(folder, "measuring embeddings")
    context = exported.context or tokenizer.model_max_length
    longest = pooling.limited(tokenizer.model_max_length, context).max_length
    encoded = encode_sentences(sentences, pooling, tokenizer, int(longest or context))
    embed = embedder_of(open_model(folder / MODEL, "CPU", {**exported.properties, **properties}), pooling)
    collate = SentenceCollator(tokenizer.pad_token_id or 0)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]["input_ids"]), reverse=True)
    parts = []
    for start in range(0, len(order), _BATCH):
        progress(f"embeddings of {folder.name}", start / len(order))
        batch = collate([encoded[index] for index in order[start : start + _BATCH]])
        parts.append(embed({name: tensor.numpy() for name, tensor in batch.items()}))
    rows = np.concatenate(parts).astype(np.float64).reshape(len(order), len(sentences.rows[0]), -1)
    rows = rows[np.argsort(order)]
    directions: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return directions


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosine distances of directions, means over the texts of each record [records]."""
    means: np.ndarray = (first - second).__pow__(2).sum(-1).mean(-1) / 2
    return means


def _difference(first: np.ndarray, second: np.ndarray) -> Interval:
    """The mean difference, paired by record."""
    ones = np.ones_like(first)
    return loss_difference(Scores(first, ones, ones), Scores(second, ones, ones))


def correlation(cosines: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's rank correlation, in percent."""
    from scipy.stats import spearmanr

    return 100 * float(spearmanr(cosines, scores).statistic)


def correlation_difference(first: np.ndarray, second: np.ndarray, scores: np.ndarray) -> Interval:
    """second - first in points, with an interval by a bootstrap over pairs of texts."""
    from scipy.stats import bootstrap

    def change(one: np.ndarray, two: np.ndarray, true: np.ndarray) -> float:
        return correlation(two, true) - correlation(one, true)

    resampled = partial(bootstrap, paired=True, vectorized=False, n_resamples=_RESAMPLES, method="percentile")
    interval = resampled((first, second, scores), change, rng=np.random.default_rng(0)).confidence_interval
    return Interval(change(first, second, scores), float(interval.low), float(interval.high))
