"""Measure exported classifiers and rerankers on held-out texts: distances from the unpruned model, and use of the labels."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lonas_edge.data.encoding import PairCollator, encode_pairs
from lonas_edge.data.sentences import Sentences, read_sentences
from lonas_edge.exporting.exported import open_exported
from lonas_edge.families import CLASSIFICATION
from lonas_edge.ir import MODEL
from lonas_edge.ir.infer import open_model
from lonas_edge.network.heldout import MAX_LENGTH
from lonas_edge.network.tokenizer import require_tokenizer
from lonas_edge.pipeline.embeddings import EXACT, add_correlations, computed, distances
from lonas_edge.pipeline.measure import Scores, accuracy_difference
from lonas_edge.pipeline.record import Quality
from lonas_edge.progress import Progress

if TYPE_CHECKING:
    from lonas_edge.pipeline.plan import Plan


def qualities(
    plan: "Plan", outputs: Sequence[str], folders: Mapping[str, Path], progress: Progress
) -> dict[str, dict[str, Quality]]:
    """Measure distances and, with labels, accuracy or of one output Spearman's correlation, see `PipelineTask.measured`."""
    sentences = read_sentences(plan.places.held_out, outputs)
    reference = logits(plan.places.baseline("fp32"), sentences, EXACT, progress)
    found = {name: logits(folder, sentences, {}, progress) for name, folder in folders.items()}
    measured = distances(found, partial(distance, reference), "Logits")
    if sentences.scores:
        labels = np.array(sentences.scores)
        if len(outputs) == 1 and sentences.ranked:
            add_correlations(measured, {name: each[:, 0, 0] for name, each in found.items()}, labels, progress)
        elif len(outputs) > 1:
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


def logits(folder: Path, sentences: Sentences, properties: Mapping[str, str], progress: Progress) -> np.ndarray:
    """Compute logits by an IR: [records, pairs of a record, outputs], float64. Long texts are cut, as in the trainings."""
    exported, tokenizer = open_exported(folder, ours=False, kind=CLASSIFICATION), require_tokenizer(folder, "measuring logits")
    encoded = encode_pairs(sentences.pairs, tokenizer, exported.context or MAX_LENGTH)
    infer = open_model(folder / MODEL, "CPU", properties)
    collate, rows = PairCollator(tokenizer.pad_token_id or 0), [{**row, "labels": 0} for row in encoded]
    outputs = computed(infer, rows, collate, f"logits of {folder.name}", progress)
    return outputs.reshape(len(sentences.rows), -1, outputs.shape[-1])


def distance(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Distances of logits, means over the pairs of each record [records]: KL in nats, or squared distances of one output."""
    from scipy.special import log_softmax

    if reference.shape[-1] == 1:
        each = (other - reference)[..., 0] ** 2
    else:
        p, q = log_softmax(reference, axis=-1), log_softmax(other, axis=-1)
        each = (np.exp(p) * (p - q)).sum(-1)
    means: np.ndarray = each.mean(-1)
    return means
