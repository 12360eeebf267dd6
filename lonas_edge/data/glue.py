"""GLUE (Wang et al., ICLR 2019): its tasks, read from the TSV files that GLUE distributes, `TASK/train.tsv` and `TASK/dev.tsv`.

The files know no quoting: a quotation mark is a character of the text, a tab ends a column, and a line ends with a newline
only (texts contain other line separators). Classes are numbered as in the GLUE of `datasets`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import casefolded
from lonas_edge.files import read_text

_LIMIT = 2**31  # bytes; QQP's training file has 0.05 GB
_DEV = "dev"


@dataclass(frozen=True)
class Pair:
    """One text or two, and the label: a class number, or a value of a regression."""

    first: str
    second: str | None
    label: int | float


@dataclass(frozen=True)
class GlueTask:
    """One of GLUE's tasks."""

    name: str  # its name, and its folder's
    texts: tuple[str, ...]  # the columns of the one text or the two
    label: str = "label"
    classes: tuple[str, ...] = ()  # names of the classes in order; empty for a regression, with labels from `least` to `most`
    values: tuple[str, ...] | None = None  # the file's label of each class; the class names when None
    metrics: tuple[str, ...] = ("acc",)  # GLUE's own; searches and averages use the first
    columns: tuple[str, ...] = ()  # the columns in order, for a file without a header
    splits: tuple[str, ...] = (_DEV,)  # the development sets; MNLI has two
    torn: bool = False  # whether the published file has incomplete lines and empty texts, which are skipped
    least: float = field(default=0.0, kw_only=True)
    most: float = field(default=5.0, kw_only=True)

    @property
    def regression(self) -> bool:
        """Whether the label is a number."""
        return not self.classes

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the classifier's outputs."""
        return self.classes or ("score",)

    def path(self, datasets: Path, split: str = _DEV) -> Path:
        """Return a split's file in a directory with a folder for each task."""
        return datasets / self.name / f"{split}.tsv"

    def read(self, path: Path) -> list[Pair]:
        """Read a file of the task, and check every line."""
        lines = read_text(path, f"the data of {self.name}", _LIMIT).removesuffix("\n").split("\n")
        rows = [line.removesuffix("\r").split("\t") for line in lines]
        columns = list(self.columns) or rows.pop(0)
        numbered = [(line, row) for line, row in enumerate(rows, 1 if self.columns else 2) if row != [""]]
        wanted = (*self.texts, self.label)
        missing = [name for name in wanted if name not in columns]
        if missing:
            expected = f"expected the columns {', '.join(wanted)}, found {', '.join(columns)[:300] or 'nothing'}"
            unlabelled = " (GLUE's test sets have no labels; take train.tsv or dev.tsv)" if missing == [self.label] else ""
            raise LonasEdgeError(f"{path}: not data of {self.name}: {', '.join(missing)} missing; {expected}{unlabelled}")
        indices = [columns.index(name) for name in wanted]
        pairs, faults = [], []
        for line, row in numbered:
            if len(row) <= max(indices):
                faults += [] if self.torn else [f"line {line}: {len(row)} columns, expected {len(columns)}"]
                continue
            *texts, stated = (row[index] for index in indices)
            label = self._label(stated)
            if label is None:
                faults.append(f"line {line}: {self.label} {stated[:50]!r}: expected {self._expected()}")
            elif empty := [name for name, text in zip(self.texts, texts, strict=True) if not text.strip()]:
                faults += [] if self.torn else [f"line {line}: no text in {' and '.join(empty)}"]
            else:
                pairs.append(Pair(texts[0], texts[1] if len(texts) > 1 else None, label))
        raise_all(f"{path}: not data of {self.name}:", faults, "Use the file as GLUE distributes it.")
        if not pairs:
            raise LonasEdgeError(f"{path}: holds no examples")
        return pairs

    def _label(self, stated: str) -> int | float | None:
        if self.classes:
            values = self.values or self.classes
            return values.index(stated) if stated in values else None
        try:
            figure = float(stated)
        except ValueError:
            return None
        return figure if math.isfinite(figure) and self.least <= figure <= self.most else None

    def _expected(self) -> str:
        return " or ".join(self.values or self.classes) or f"a number from {self.least:g} to {self.most:g}"

    def numbers_in(self, outputs: Sequence[str]) -> list[int]:
        """Number of each class among a head's outputs: by name in any case, or else in the task's order."""
        theirs, ours = casefolded(outputs), casefolded(self.classes)
        return [theirs.index(name) for name in ours] if sorted(theirs) == sorted(ours) else list(range(len(ours)))

    def numbered(self, pairs: Sequence[Pair], outputs: Sequence[str]) -> list[Pair]:
        """Number the classes of examples as a head with these outputs does, see `numbers_in`."""
        numbers = self.numbers_in(outputs)
        return list(pairs) if self.regression else [replace(pair, label=numbers[int(pair.label)]) for pair in pairs]

    def misfit(self, outputs: int) -> str | None:
        """Say why a head with this number of outputs does not fit; None if it does."""
        if outputs == len(self.outputs):
            return None
        theirs = "regression (1 output)" if outputs == 1 else f"classification ({outputs} outputs)"
        ours = "a regression (1 output)" if self.regression else f"a classification ({len(self.classes)} outputs)"
        return f"its head is one of {theirs}, and {self.name} is {ours}: {', '.join(self.outputs)}"


_BINARY, _ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")
TASKS: Mapping[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            "CoLA",
            ("sentence",),
            classes=("unacceptable", "acceptable"),
            values=_BINARY,
            metrics=("matthews",),
            columns=("source", "label", "judgement", "sentence"),
        ),
        GlueTask("SST-2", ("sentence",), classes=("negative", "positive"), values=_BINARY),
        GlueTask(
            "MRPC", ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), _BINARY, metrics=("acc", "f1")
        ),
        GlueTask("STS-B", _SENTENCES, "score", metrics=("pearson", "spearman")),
        GlueTask(
            "QQP",
            ("question1", "question2"),
            "is_duplicate",
            ("not_duplicate", "duplicate"),
            _BINARY,
            metrics=("acc", "f1"),
            torn=True,
        ),
        GlueTask(
            "MNLI",
            _SENTENCES,
            "gold_label",
            ("entailment", "neutral", "contradiction"),
            splits=("dev_matched", "dev_mismatched"),
        ),
        GlueTask("QNLI", ("question", "sentence"), classes=_ENTAILMENT),
        GlueTask("RTE", _SENTENCES, classes=_ENTAILMENT),
    )
}


def task_named(name: str) -> GlueTask | None:
    """Find a task by its name, in any case, with or without the hyphen."""
    plain = {known.replace("-", "").lower(): task for known, task in TASKS.items()}
    return plain.get(name.replace("-", "").lower())


def task_of(path: Path, name: str | None, option: bool = True) -> GlueTask:
    """Find the task of a file: `name`, else the name of its folder; `option` says whether --task exists."""
    stated = path.absolute().parent.name if name is None else name
    task = task_named(stated)
    if task:
        return task
    known = ", ".join(TASKS)
    if name is None:
        way = f"pass --task, one of {known}" if option else f"expected a folder named {known}"
        raise LonasEdgeError(f"{path}: Cannot infer the GLUE task from folder {stated!r}; {way}")
    raise LonasEdgeError(f"--task {stated}: unknown; expected one of {known}")


def glue_of(paths: Sequence[Path], name: str | None = None) -> GlueTask | None:
    """Find the GLUE task of data files: the one of a TSV file, or of any file where it is named; else None."""
    tables = [path for path in paths if name is not None or path.suffix.lower() == ".tsv"]
    if not tables:
        return None
    if len(paths) > 1:
        raise LonasEdgeError(f"{tables[0]}: a GLUE task is one file; give --data once")
    return task_of(tables[0], name)


def texts_of(pairs: Sequence[Pair]) -> tuple[list[str], list[str] | None]:
    """Return the first and second texts, as tokenizers take them."""
    first = [pair.first for pair in pairs]
    return first, None if pairs[0].second is None else [pair.second or "" for pair in pairs]
