"""Records of data files (JSON, JSON Lines, CSV or Parquet), and those of encoders: texts, pairs, triplets, labelled pairs.

Encoders have the formats of sentence-transformers: the names of its fields tell what a record is. `prompt` next to `text` is
the name of one of the model's prompts.
"""

import csv
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from lonas_edge.errors import LonasEdgeError, raise_all
from lonas_edge.files import read_by, read_text

TEXT, PAIR, TRIPLET, SCORED = "text", "pair", "triplet", "scored pair"  # kinds of records
_KINDS = {1: TEXT, 2: PAIR, 3: TRIPLET}  # by the number of texts
_ROLES = (  # names of the first, second and third text
    ("anchor", "query", "question", "sentence1"),
    ("positive", "passage", "answer", "sentence2"),
    ("negative",),
)
_ANSWERED = ("messages", "conversations", "instruction", "completion", "output")  # of a language model's data
_LARGEST = 1e30  # absolute value of a reranker's score
_EXPECTED = (
    'Expected {"text": "…"}, {"text": "…", "label": "…"}, {"query": "…", "positive": "…"}, the same with "negative", or '
    '{"sentence1": "…", "sentence2": "…", "score": 0.8}; one such object a line, or a JSON list of them. GLUE has TSV files.'
)


def read_records(path: Path) -> list[tuple[str, Any]]:
    """Read the records of a file; there is at least one."""
    readers = {".parquet": _parquet, ".csv": _csv}
    records = readers.get(path.suffix.lower(), _json)(path) if path.is_file() else _json(path)
    if not records:
        raise LonasEdgeError(f"{path}: holds no examples")
    return records


def is_table(path: Path) -> bool:
    """Whether a file is one of GLUE's."""
    return path.suffix.lower() == ".tsv"


def describe(record: Any) -> str:
    """Describe a record of another kind, for errors."""
    return f"the fields {', '.join(map(str, record)) or 'none'}" if isinstance(record, dict) else type(record).__name__


def _json(path: Path) -> list[tuple[str, Any]]:
    text = read_text(path, "the data")
    if text.lstrip().startswith("["):
        try:
            return [(f"record {number}", record) for number, record in enumerate(json.loads(text), 1)]
        except ValueError as error:
            raise LonasEdgeError(f"{path}: not a JSON list: {error}. Is the file cut off?") from error
    records, problems = [], []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                record = json.loads(line)
                if "\\ud" in line.lower():
                    json.dumps(record, ensure_ascii=False).encode()  # half of a surrogate pair is no text
                records.append((f"line {number}", record))
            except UnicodeEncodeError:
                problems.append(f"line {number}: a text has half of a character (a surrogate, \\ud800 to \\udfff)")
            except ValueError as error:
                problems.append(f"line {number}: not JSON: {error}")
    expected = "Expected one JSON object a line, a JSON list of them, CSV with a header (.csv), or Parquet (.parquet)."
    raise_all(f"{path}: cannot be read:", problems, expected)
    return records


def _csv(path: Path) -> list[tuple[str, Any]]:
    """Read the rows of a CSV file with a header; values are text."""
    csv.field_size_limit(2**31 - 1)  # its own limit is 131,072 characters
    rows = csv.DictReader(StringIO(read_text(path, "the data")), strict=True)
    with read_by("csv", path):
        records = [(f"line {rows.line_num}", row) for row in rows]
    where = [place for place, row in records if None in row or None in row.values()]
    raise_all(
        f"{path}: cannot be read as CSV:",
        [f"{place}: another number of values than the header" for place in where],
        f"Expected {len(rows.fieldnames or ())} values, with commas between them; quote a text with commas.",
    )
    return records


def _parquet(path: Path) -> list[tuple[str, Any]]:
    """Read the rows of a Parquet file, as the `datasets` library writes it."""
    from pyarrow.parquet import read_table  # takes a while

    with read_by("pyarrow", path):
        rows = read_table(path).to_pylist()
    return [(f"row {index}", _without_nulls(row)) for index, row in enumerate(rows)]


def _without_nulls(value: Any) -> Any:
    """Remove null fields: all objects of a column have the fields of each other, such as the arguments of other functions."""
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value


@dataclass(frozen=True)
class Texts:
    """The texts of a record, one to three; a query or question comes first."""

    texts: tuple[str, ...]
    label: float | None = None  # cosine of a scored pair, from -1 to 1; class number or score of a classifier's texts
    prompt: str | None = None  # name of the prompt of a single text; None for the model's default

    def record(self) -> dict[str, Any]:
        """As a record of a data file."""
        if len(self.texts) == 1:
            record: dict[str, Any] = {TEXT: self.texts[0], **({"prompt": self.prompt} if self.prompt else {})}
        else:
            names = ("query", "positive", "negative") if self.label is None else ("sentence1", "sentence2")
            record = dict(zip(names, self.texts, strict=False))
        return record if self.label is None else record | {"label": self.label}


@dataclass(frozen=True)
class LabelRule:
    """How labels of texts are read."""

    names: tuple[str, ...]  # of the field; the first one that a record has counts
    number: Callable[[Any], float | None]  # reads a label; None if it is none
    expected: str  # what a label is, for errors
    singles: bool = True  # whether single texts have labels, too


def number_of(value: Any, most: float = _LARGEST) -> float | None:
    """Read a number of this size at most, which CSV files have as text; None if it is none."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and abs(value) <= most else None


COSINES = LabelRule(("score", "label"), lambda value: number_of(value, 1), "a cosine from -1 to 1", singles=False)


def labels_of(outputs: Sequence[str]) -> LabelRule:
    """The labels of a classifier with these outputs: names or numbers of classes, or scores of one output."""
    if len(outputs) == 1:
        return LabelRule(("score", "label"), number_of, "a finite number")
    names = [name.casefold() for name in outputs]

    def number(value: Any) -> int | None:
        if isinstance(value, str) and value.casefold() in names:
            return names.index(value.casefold())
        whole = number_of(value, len(names) - 1)
        return int(whole) if whole is not None and whole in range(len(names)) else None

    expected = f"a class: {', '.join(outputs)}, or 0 to {len(outputs) - 1}"
    return LabelRule(("label", "score"), number, expected)  # a classifier writes the probability of its "label" as "score"


def read_texts(path: Path, labels: LabelRule | None) -> tuple[str, list[Texts]]:
    """Read texts, pairs, triplets or labelled pairs, and the kind of the records; without a rule labels are ignored."""
    records = read_records(path)
    place, first = records[0]
    fields = _fields(first, labels)
    if fields is None:
        raise LonasEdgeError(f"{path}: not sentences:\n  - {place}: found {describe(first)}\n{_EXPECTED}")
    names, label = fields
    read, errors = list[Texts](), list[str]()
    for place, record in records:
        try:
            if _fields(record, labels) != fields:
                expected = ", ".join(filter(None, (*names, label)))
                raise ValueError(f"expected the fields {expected}, as in the first record; found {describe(record)}")
            read.append(_texts(record, names, label, labels))
        except ValueError as error:
            errors.append(f"{place}: {error}")
    raise_all(f"{path}: not sentences:", errors, _EXPECTED)
    return SCORED if label and len(names) > 1 else _KINDS[len(names)], read


def is_text(record: Any) -> bool:
    """Whether a record is a text, a pair or a triplet, and nothing that a language model answers."""
    return _fields(record, None) is not None and not any(name in record for name in _ANSWERED)


def has_pairs(path: Path) -> bool:
    """Whether the records of a file are pairs or triplets of texts; questions with answers alone are not."""
    if is_table(path):
        return False
    first = read_records(path)[0][1]
    return is_text(first) and TEXT not in first and "answer" not in first


def _fields(record: Any, labels: LabelRule | None) -> tuple[tuple[str, ...], str | None] | None:
    """Names of a record's texts, by their roles, and of its label; None if it is no such record."""
    if not isinstance(record, dict):
        return None
    if TEXT in record:
        names: tuple[str, ...] = (TEXT,)
    else:
        roles = [next((name for name in role if name in record), None) for role in _ROLES]
        if None in roles[:2]:
            return None
        names = tuple(filter(None, roles))
    reads = labels is not None and (labels.singles or len(names) > 1)
    label = next((name for name in labels.names if name in record), None) if labels and reads else None
    return None if label and len(names) > 2 else (names, label)


def _texts(record: dict[str, Any], names: tuple[str, ...], label: str | None, labels: LabelRule | None) -> Texts:
    empty = [name for name in names if not isinstance(record[name], str) or not record[name].strip()]
    if empty:
        raise ValueError(f"no text in {' and '.join(map(repr, empty))}")
    number = labels.number(record[label]) if labels and label else None
    if labels and label and number is None:
        raise ValueError(f"{label} {str(record[label])[:50]}: expected {labels.expected}")
    prompt = record.get("prompt") if names == (TEXT,) else None
    if not isinstance(prompt, str | None):
        raise ValueError("'prompt' is no name")
    return Texts(tuple(record[name] for name in names), number, prompt)
