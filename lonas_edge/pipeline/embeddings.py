"""Measure exported embedding models on held-out texts: distances from the unpruned model, and correlation with scores."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lonas_edge.bench.statistics import Interval, difference_of_means, difference_of_statistics
from lonas_edge.errors import raise_all
from lonas_edge.evaluate.encoders import ir_outputs
from lonas_edge.evaluate.metrics import METRICS
from lonas_edge.pipeline.record import Quality
from lonas_edge.progress import Progress

if TYPE_CHECKING:
    from lonas_edge.pipeline.plan import Plan

EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def qualities(plan: "Plan", folders: Mapping[str, Path], progress: Progress) -> dict[str, dict[str, Quality]]:
    """Measure cosine distance and, with scored pairs, Spearman's correlation, see `PipelineTask.measured`."""
    data = plan.source.open_data(plan.places.held_out)
    reference = ir_outputs(plan.places.baseline("fp32"), data, EXACT, progress)
    found = {name: ir_outputs(folder, data, {}, progress) for name, folder in folders.items()}
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


def correlation(cosines: np.ndarray, scores: np.ndarray) -> float:
    """Spearman's rank correlation, in percent; 0 for equal scores, which a resampling of few positive pairs can have."""
    return 100 * METRICS["spearman"](scores, cosines)


def correlation_difference(first: np.ndarray, second: np.ndarray, scores: np.ndarray) -> Interval:
    """second - first in points, with an interval by a bootstrap over pairs of texts."""
    return difference_of_statistics(lambda labels, cosines: correlation(cosines, labels), first, second, scores)
