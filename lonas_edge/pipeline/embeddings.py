"""Measure exported embedding models on held-out texts: distances from the unpruned model, and correlation with scores."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lonas_edge.bench.statistics import Interval, difference_of_means, difference_of_statistics
from lonas_edge.data.task import Task
from lonas_edge.errors import raise_all
from lonas_edge.evaluate.glue import METRICS
from lonas_edge.evaluate.targets import Encoder, embedder_of
from lonas_edge.exporting.exported import open_exported
from lonas_edge.families import EMBEDDING
from lonas_edge.ir import MODEL
from lonas_edge.ir.core import open_model
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.pipeline.record import Quality
from lonas_edge.progress import Progress

if TYPE_CHECKING:
    from lonas_edge.pipeline.plan import Plan

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}
_BATCH = 16  # records


def qualities(plan: "Plan", folders: Mapping[str, Path], progress: Progress) -> dict[str, dict[str, Quality]]:
    """Measure cosine distance and, with scored pairs, Spearman's correlation, see `PipelineTask.measured`."""
    data = plan.source.open_data(plan.places.held_out)
    reference = embedded(plan.places.baseline("fp32"), data, EXACT, progress)
    found = {name: embedded(folder, data, {}, progress) for name, folder in folders.items()}
    measured = distances(found, partial(data.distances, reference), "Embeddings")
    if len(set(data.scores)) > 1:
        cosines = {name: (each[:, 0] * each[:, 1]).sum(-1) for name, each in found.items()}
        add_correlations(measured, cosines, np.array(data.scores), progress)
    return measured


def distances(
    found: Mapping[str, np.ndarray], measure: Callable[[np.ndarray], np.ndarray], outputs: str
) -> dict[str, dict[str, Quality]]:
    """Mean distances of networks, of which the first is the baseline.

    Args:
        found: The outputs of each network, by name.
        measure: Computes the distances [records] of a network's outputs from the reference's.
        outputs: Their name in errors.

    Raises:
        LonasEdgeError: If outputs are not finite.
    """
    raise_all(
        f"{outputs} are not finite:",
        [name for name, each in found.items() if not np.isfinite(each).all()],
        "The weights are damaged, or a training diverged; see the losses in steps/.",
    )
    figures = {name: measure(each) for name, each in found.items()}
    first = next(iter(figures))
    return {
        name: {"distance": Quality(float(each.mean()), None if name == first else difference_of_means(figures[first], each))}
        for name, each in figures.items()
    }


def add_correlations(
    measured: dict[str, dict[str, Quality]], answers: Mapping[str, np.ndarray], scores: np.ndarray, progress: Progress
) -> None:
    """Add Spearman's correlation of each network's answers [records] with the scores [records]."""
    first = next(iter(measured))
    for name, own in measured.items():
        progress(f"correlations of {name}", None)
        change = None if name == first else correlation_difference(answers[first], answers[name], scores)
        own["spearman"] = Quality(correlation(answers[name], scores), change)


def embedded(folder: Path, data: Task, properties: Mapping[str, str], progress: Progress) -> np.ndarray:
    """Compute embeddings of length 1 by an IR: [records, texts of a record, hidden]."""
    exported, tokenizer = open_exported(folder, ours=False, kind=EMBEDDING), require_tokenizer(folder, "measuring embeddings")
    context = exported.context or tokenizer.model_max_length
    assert data.pooling
    longest = data.pooling.limited(tokenizer.model_max_length, context).max_length
    [encoded] = data.encode(tokenizer, int(longest or context))
    embed = embedder_of(open_model(folder / MODEL, "CPU", properties), data.pooling)
    rows = computed(embed, encoded, data.collator(tokenizer), f"embeddings of {folder.name}", progress)
    directions: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
    return directions


def computed(
    model: Encoder,
    encoded: Sequence[dict[str, Any]],
    collate: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
    title: str,
    progress: Progress,
) -> np.ndarray:
    """Compute an encoder's outputs of tokenized records, the longest first: [records, texts of a record, outputs], float64."""
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]["input_ids"]), reverse=True)
    parts = []
    for start in range(0, len(order), _BATCH):
        progress(title, start / len(order))
        batch = collate([encoded[index] for index in order[start : start + _BATCH]])
        parts.append(model({name: tensor.numpy() for name, tensor in batch.items()}))
    outputs = np.concatenate(parts).astype(np.float64)
    return outputs.reshape(len(order), -1, outputs.shape[-1])[np.argsort(order)]


def correlation(cosines: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's rank correlation, in percent; 0 for equal scores, which a resampling of few positive pairs can have."""
    return 100 * METRICS["spearman"](scores, cosines)


def correlation_difference(first: np.ndarray, second: np.ndarray, scores: np.ndarray) -> Interval:
    """second - first in points, with an interval by a bootstrap over pairs of texts."""
    return difference_of_statistics(lambda labels, cosines: correlation(cosines, labels), first, second, scores)
