"""GLUE (Wang et al., ICLR 2019): its tasks, read from the TSV files that GLUE distributes, `TASK/train.tsv` and `TASK/dev.tsv`.

The files know no quoting: a quotation mark is a character of the text, a tab ends a column, and a line ends with a newline
only (texts contain other line separators). Classes are numbered as in the GLUE of `datasets`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lonas_edge.data.texts import Texts, is_table, number_of
from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.families import casefold
from lonas_edge.files import read_text

LARGEST_SCORE = 5.0  # of STS-B; the smallest is 0


@dataclass(frozen=True)
class GlueTask:
    """One of GLUE's tasks."""

    name: str  # its name, and its folder's
    texts: tuple[str, ...]  # the columns of the one text or the two
    label: str = "label"
    classes: tuple[str, ...] = ()  # names of the classes in order; empty for a regression
    values: tuple[str, ...] | None = None  # the file's label of each class; the class names when None
    metrics: tuple[str, ...] = ("acc",)  # GLUE's own; searches and averages use the first
    columns: tuple[str, ...] = ()  # the columns in order, for a file without a header
    splits: tuple[str, ...] = ("dev",)  # the development sets; MNLI has two
    published: bool = True  # whether it is GLUE's; False for labels of the user's own
    torn: bool = False  # whether the published file has incomplete lines and empty texts, which are skipped

    @property
    def description(self) -> str:
        """For errors and records."""
        return f"the task {self.name} of GLUE" if self.published else "labels"

    @property
    def regression(self) -> bool:
        """Whether the label is a number."""
        return not self.classes

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the classifier's outputs."""
        return self.classes or ("score",)

    def path(self, datasets: Path, split: str = "dev") -> Path:
        """Return a split's file in a directory with a folder for each task."""
        return datasets / self.name / f"{split}.tsv"

    def read(self, path: Path) -> list[Texts]:
        """Read a file of the task; its labels are class numbers, or values of a regression."""
        rows = [line.split("\t") for line in read_text(path, f"the data of {self.name}").split("\n")]
        columns = list(self.columns) or rows.pop(0)
        wanted = (*self.texts, self.label)
        if missing := [name for name in wanted if name not in columns]:
            unlabelled = " (GLUE's test sets have no labels; take train.tsv or dev.tsv)" if missing == [self.label] else ""
            raise LonasEdgeError(
                f"{path}: not data of {self.name}: {', '.join(missing)} missing; expected the columns {', '.join(wanted)}, "
                f"found {', '.join(columns)[:300] or 'nothing'}{unlabelled}"
            )
        read, errors = [], []
        for line, row in enumerate(rows, 1 if self.columns else 2):
            if row == [""]:
                continue
            fields = dict(zip(columns, row, strict=False))
            *texts, stated = (fields.get(name, "") for name in wanted)
            if not all(text.strip() for text in (*texts, stated)):
                errors += [] if self.torn else [f"line {line}: {len(row)} columns, expected {len(columns)} with text"]
                continue
            label = self._label(stated)
            if label is None:
                expected = " or ".join(self.values or self.classes) or f"a number from 0 to {LARGEST_SCORE:g}"
                errors.append(f"line {line}: {self.label} {stated[:50]!r}: expected {expected}")
            else:
                read.append(Texts(tuple(texts), label))
        raise_all(f"{path}: not data of {self.name}:", errors, "Use the file as GLUE distributes it.")
        if not read:
            raise LonasEdgeError(f"{path}: holds no examples")
        return read

    def _label(self, stated: str) -> int | float | None:
        if self.classes:
            values = self.values or self.classes
            return values.index(stated) if stated in values else None
        figure = number_of(stated, LARGEST_SCORE)
        return figure if figure is not None and figure >= 0 else None

    def numbers_in(self, outputs: Sequence[str]) -> list[int]:
        """Number of each class among a head's outputs: by name in any case, or else in the task's order."""
        theirs, ours = casefold(outputs), casefold(self.classes)
        return [theirs.index(name) for name in ours] if sorted(theirs) == sorted(ours) else list(range(len(ours)))

    def renumber(self, texts: Sequence[Texts], outputs: Sequence[str]) -> list[Texts]:
        """Number the classes of examples as a head with these outputs does, see `numbers_in`."""
        if self.regression:
            return list(texts)
        numbers = self.numbers_in(outputs)
        return [replace(each, label=numbers[int(each.label or 0)]) for each in texts]

    def head_error(self, outputs: int) -> str | None:
        """Say why a head with this number of outputs does not fit; None if it does."""
        if outputs == len(self.outputs):
            return None
        theirs = "regression (1 output)" if outputs == 1 else f"classification ({outputs} outputs)"
        ours = "a regression (1 output)" if self.regression else f"a classification ({len(self.classes)} outputs)"
        return f"its head is one of {theirs}, and {self.name} is {ours}: {', '.join(self.outputs)}"


_BINARY, _ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
_NLI = ("entailment", "neutral", "contradiction")
_SENTENCES, _QUESTIONS = ("sentence1", "sentence2"), ("question1", "question2")
TASKS: Mapping[str, GlueTask] = {
    task.name: task
    for task in (
        GlueTask(
            "CoLA",
            ("sentence",),
            classes=("unacceptable", "acceptable"),
            values=_BINARY,
            metrics=("matthews",),
            columns=("source", "label", "", "sentence"),
        ),
        GlueTask("SST-2", ("sentence",), "label", ("negative", "positive"), _BINARY),
        GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), _BINARY, ("acc", "f1")),
        GlueTask("STS-B", _SENTENCES, "score", metrics=("pearson", "spearman")),
        GlueTask("QQP", _QUESTIONS, "is_duplicate", ("not_duplicate", "duplicate"), _BINARY, ("acc", "f1"), torn=True),
        GlueTask("MNLI", _SENTENCES, "gold_label", _NLI, splits=("dev_matched", "dev_mismatched")),
        GlueTask("QNLI", ("question", "sentence"), classes=_ENTAILMENT),
        GlueTask("RTE", _SENTENCES, classes=_ENTAILMENT),
    )
}


def task_named(name: str) -> GlueTask | None:
    """Find a task by its name, in any case, with or without the hyphen."""
    plain = {known.replace("-", "").lower(): task for known, task in TASKS.items()}
    return plain.get(name.replace("-", "").lower())


def task_of(path: Path, name: str | None = None) -> GlueTask:
    """Find the task of a file: `name`, else the name of its folder."""
    stated = name or path.absolute().parent.name
    task = task_named(stated)
    if task is None:
        known = ", ".join(TASKS)
        raise LonasEdgeError(f"{path}: Cannot infer the GLUE task from folder {stated!r}; rename it to one of {known}")
    return task


def glue_of(paths: Sequence[Path], name: str | None = None) -> GlueTask | None:
    """Find the GLUE task of data files, that of a TSV file: `name`, else the name of its folder. None without one."""
    tables = [path for path in paths if is_table(path)]
    return task_of(tables[0], name) if tables else None
