"""Labels of the user's own data: classes of texts or pairs, scores of a reranker's pairs, cosines of an embedding model's.

A class is a name, or of single texts a number from 0; a number next to two texts is a score.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lonas_edge.data.glue import GlueTask
from lonas_edge.data.texts import (
    COSINES,
    TEXT,
    LabelRule,
    Texts,
    is_table,
    is_text,
    labels_of,
    number_of,
    read_records,
    read_texts,
)
from lonas_edge.errors import LonasEdgeError

_CORRELATIONS = ("spearman", "pearson")
_UNUSED = 10  # numbers of classes up to this many times their count


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
        if is_table(path):
            raise LonasEdgeError(
                f"{path}: TSV files are those of GLUE; `eval --tasks TASK --datasets DIR` reads DIR/TASK/dev.tsv"
            )
        _, texts = read_texts(path, self.rule)
        if texts[0].label is None:
            pairs = "" if self.rule.singles else " and two texts"
            raise LonasEdgeError(
                f"{path}: no labels; expected {self.rule.expected} as {self.rule.names[0]!r}{pairs} in each record"
            )
        return texts


COSINE_PAIRS = OwnLabels("labels", (), metrics=_CORRELATIONS)


def own_task(outputs: Sequence[str]) -> OwnLabels:
    """The task of a classifier or reranker with these outputs."""
    rule = labels_of(outputs)
    if len(outputs) == 1:
        return OwnLabels("labels", (), metrics=_CORRELATIONS, rule=rule)
    return OwnLabels("labels", (), classes=tuple(outputs), rule=rule)


def own_classes(paths: Sequence[Path]) -> OwnLabels | None:
    """The classes of data files by their labels, in alphabetical or numerical order; None if the first record names none.

    Records without a class are reported when they are read.

    Raises:
        LonasEdgeError: If there is a single class, or the largest number is far beyond the number of classes.
    """
    files = [path for path in paths if not is_table(path)]
    if not files:
        return None
    if not names_class(files[0]):
        place, record = read_records(files[0])[0]
        if is_text(record) and TEXT in record and record.get("label") not in (None, ""):
            raise LonasEdgeError(
                f"{files[0]}: {place}: the label {record['label']!r} is no class; expected a text, or a number from 0 on"
            )
        return None
    labels = {_class(record) for path in files for _, record in read_records(path)} - {None}
    numbers = [label for label in labels if isinstance(label, int)]
    names = sorted({name.casefold(): name for name in sorted(map(str, labels), reverse=True)}.values())
    if len(names) < 2:
        raise LonasEdgeError(f"{files[0]}: all examples have the label {names[0]!r}; expected at least two classes")
    if len(numbers) == len(labels):
        if max(numbers) >= _UNUSED * len(numbers):
            raise LonasEdgeError(
                f"{files[0]}: {len(numbers)} labels up to {max(numbers)}; expected numbers of classes from 0 on"
            )
        names = [str(number) for number in range(max(numbers) + 1)]
    return own_task(names)


def names_class(path: Path) -> bool:
    """Whether the first record of a file names a class."""
    return not is_table(path) and _class(read_records(path)[0][1]) is not None


def _class(record: Any) -> str | int | None:
    """The class that a record names."""
    if not is_text(record):
        return None
    label, number = record.get("label"), number_of(record.get("label"))
    if number is None:
        return label if isinstance(label, str) and label.strip() else None
    return int(number) if TEXT in record and number >= 0 and number == int(number) else None
