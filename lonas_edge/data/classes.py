"""Labels of the user's own data: classes of texts or pairs, scores of a reranker's pairs, cosines of an embedding model's.

A class is a name, or of single texts a number from 0.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.data.glue import GlueTask
from lonas_edge.data.texts import COSINES, TEXT, LabelRule, Texts, labels_of, read_records, read_texts
from lonas_edge.errors import LonasEdgeError

_CORRELATIONS = ("spearman", "pearson")


@dataclass(frozen=True)
class OwnLabels(GlueTask):
    """Predict the label of a text or pair."""

    published: bool = False
    rule: LabelRule = COSINES  # how labels are read

    def read(self, path: Path) -> list[Texts]:
        """Read a file; classes become numbers.

        Raises:
            LonasEdgeError: If records have no label, or another one; all are listed.
        """
        _, texts = read_texts(path, self.rule)
        if texts[0].label is None:
            raise LonasEdgeError(f"{path}: no labels; expected {self.rule.expected} as {self.rule.names[0]!r} in each record")
        return texts


COSINE_PAIRS = OwnLabels("labels", (), metrics=_CORRELATIONS)


def own_task(outputs: Sequence[str]) -> OwnLabels:
    """The task of a classifier or reranker with these outputs."""
    rule = labels_of(outputs)
    if len(outputs) == 1:
        return OwnLabels("labels", (), metrics=_CORRELATIONS, rule=rule)
    return OwnLabels("labels", (), classes=tuple(outputs), rule=rule)


def own_classes(paths: Sequence[Path]) -> OwnLabels | None:
    """The classes of data files by the labels in them, in alphabetical or numerical order; None if these name no classes."""
    records = [record for path in paths if path.suffix != ".tsv" for _, record in read_records(path)]
    labels = {_class(record) for record in records}
    if None in labels or not records:
        return None
    numbers = [label for label in labels if isinstance(label, int)]
    if numbers and len(numbers) == len(labels):
        names = [str(number) for number in range(max(numbers) + 1)]
    else:
        names = sorted(map(str, labels))
    if len(names) < 2:
        raise LonasEdgeError(f"{paths[0]}: all examples have the label {names[0]!r}; expected at least two classes")
    return own_task(names)


def _class(record: Any) -> str | int | None:
    """The class that a record names; None without one: a number next to two texts is a score."""
    label = record.get("label") if isinstance(record, dict) else None
    single = isinstance(record, dict) and TEXT in record
    return label if isinstance(label, str) or (single and type(label) is int and label >= 0) else None
