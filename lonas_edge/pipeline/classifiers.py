"""Measure exported classifiers and rerankers on held-out texts: distances from the unpruned model, and use of the labels."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lonas_edge.evaluate.encoders import ir_outputs
from lonas_edge.pipeline.embeddings import EXACT, add_correlations, distances
from lonas_edge.pipeline.measure import Scores, accuracy_difference
from lonas_edge.pipeline.record import Quality
from lonas_edge.progress import Progress

if TYPE_CHECKING:
    from lonas_edge.pipeline.plan import Plan


def qualities(plan: "Plan", folders: Mapping[str, Path], progress: Progress) -> dict[str, dict[str, Quality]]:
    """Measure distances and, with labels, accuracy or of one output Spearman's correlation, see `PipelineTask.measured`."""
    data = plan.source.open_data(plan.places.held_out, labels=True)
    reference = ir_outputs(plan.places.baseline("fp32"), data, EXACT, progress)
    found = {name: ir_outputs(folder, data, {}, progress) for name, folder in folders.items()}
    measured = distances(found, partial(data.distances, reference), "Logits")
    if data.scores:
        labels, outputs = np.array(data.scores), reference.shape[-1]
        if outputs == 1 and len(set(data.scores)) > 1:
            add_correlations(measured, {name: each[:, 0, 0] for name, each in found.items()}, labels, progress)
        elif outputs > 1:
            _add_accuracies(measured, {name: each[:, 0].argmax(-1) == labels for name, each in found.items()})
    return measured


def _add_accuracies(measured: dict[str, dict[str, Quality]], correct: Mapping[str, np.ndarray]) -> None:
    """Add the accuracy of each network, by whether it is correct [records]."""
    ones = np.ones(len(next(iter(correct.values()))))
    scores = {name: Scores(ones, each.astype(np.float64), ones) for name, each in correct.items()}
    first = next(iter(scores.values()))
    for name, each in scores.items():
        change = None if each is first else accuracy_difference(first, each)
        measured[name]["accuracy"] = Quality(100 * float(each.correct.mean()), change)
