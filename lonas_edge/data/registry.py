"""Tasks by kind of a model, and `open_data`, the one door for data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lonas_edge.data.glue import GlueTask, glue_of
from lonas_edge.data.language import LanguageTask
from lonas_edge.data.pairs import PairTask
from lonas_edge.data.pooling import Pooling
from lonas_edge.data.sentences import SentenceTask
from lonas_edge.data.task import DataOptions, Task
from lonas_edge.data.templates import PromptRecord
from lonas_edge.errors import LonasEdgeError
from lonas_edge.families import CLASSIFICATION, EMBEDDING, ModelKind
from lonas_edge.space.architecture import Architecture

TASKS: Mapping[ModelKind, type[Task]] = {task.kind: task for task in (LanguageTask, PairTask, SentenceTask)}
Files = Path | Sequence[tuple[Path, float]]  # one file, or several with their weights


def task_of(architecture: Architecture, pooling: Pooling | None = None) -> Task:
    """The task of a model without data: its loss and distance."""
    return TASKS[architecture.family.kind].of(architecture, pooling, DataOptions())


def open_data(
    data: Files,
    architecture: Architecture,
    pooling: Pooling | None = None,
    *,
    glue: str | None = None,
    own: GlueTask | None = None,
    labels: bool = False,
    prompt: str | None = None,
    max_length: int | None = None,
    record: PromptRecord | None = None,
) -> Task:
    """Read and check data for a model; what is wrong in several files is reported at once. No weights are read.

    Args:
        data: One file, or several with their weights.
        architecture: The model's.
        pooling: The pooling of an embedding model.
        glue: Name of the GLUE task of a classifier's data; by the folder's name when None.
        own: The classes of a classifier's data with labels, which are to be learned.
        labels: Whether to read the labels of a classifier's texts, to measure with.
        prompt: Name of the prompt template of a language model's data; see `choose_prompt`.
        max_length: Tokens of the longest example of a language model; `MAX_LENGTH` when None.
        record: The prompts of the adapter's training.
    """
    files = [(data, 1.0)] if isinstance(data, Path) else list(data)
    kind = architecture.family.kind
    table = own or (glue_of([path for path, _ in files], glue) if kind is not EMBEDDING else None)
    if kind is CLASSIFICATION and table is None:
        _refuse_several_labels(architecture.config, files[0][0])
    if table:
        architecture.require(CLASSIFICATION, f"{files[0][0]}: {table.description}")
    options = DataOptions(table, labels, prompt, max_length, record or PromptRecord())
    return TASKS[kind].of(architecture, pooling, options).read(files)


def _refuse_several_labels(config: Any, path: Path) -> None:
    """Refuse a classifier whose outputs are no classes that exclude each other: the KL divergence is over exclusive classes."""
    if config.problem_type == "multi_label_classification" or (config.problem_type == "regression" and config.num_labels > 1):
        outputs = f" with {config.num_labels} outputs" if config.problem_type == "regression" else ""
        raise LonasEdgeError(
            f"{path}: a model with problem_type {config.problem_type!r}{outputs} is not supported; expected classes that "
            "exclude each other, or one score."
        )
