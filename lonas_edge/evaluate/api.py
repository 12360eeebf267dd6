"""`lonas_edge.evaluate`, `eval --data` as a function."""

from collections.abc import Sequence
from pathlib import Path

from lonas_edge.errors import UsageError
from lonas_edge.evaluate.answer_metrics import AUTO, metric_file
from lonas_edge.evaluate.encoder_sets import choose_tasks
from lonas_edge.evaluate.options import EvalSettings, RunOptions
from lonas_edge.evaluate.protocols import ANSWERS
from lonas_edge.evaluate.report import EvalRecord
from lonas_edge.evaluate.run import evaluate_into
from lonas_edge.evaluate.targets import kind_of_targets, open_targets
from lonas_edge.output import OutputDirectory
from lonas_edge.progress import Progress, silent


def evaluate(
    *targets: str | Path,
    data: str | Path,
    metric: str | Sequence[str] = AUTO,
    model: str | Path | None = None,
    limit: int | None = None,
    template: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress = silent,
) -> EvalRecord:
    """Answer the prompts of a data file with language models, and score the answers against its references.

    Classifiers, rerankers and embedding models are compared with the labels of its texts, without metric and template.

    Args:
        targets: Exported directories, adapters, checkpoints or base models, compared with the first one.
        data: Conversations or instructions.
        metric: One or several metrics by name, or FILE.py:FUNCTION.
        model: Base model of adapters.
        limit: Number of examples, a random choice; all by default.
        template: Name of the template of instructions; that of the training by default.
        output: Directory for report and sample log, from which a killed evaluation continues.
        overwrite: Whether to replace an existing output.
        progress: Called with what is being done, and the share that is done where known.

    Returns:
        The record, as written to `eval.json`: `record.targets[0].metrics["json"].value`.

    Raises:
        LonasEdgeError: If inputs do not fit, or a metric fails.
    """
    references, base = [str(target) for target in targets], str(model) if model else None
    opened = open_targets(references, [None], RunOptions(), base)
    kind, names = kind_of_targets(opened), (metric,) if isinstance(metric, str) else tuple(metric)
    settings = EvalSettings((), None, ANSWERS, template, limit=limit, data=Path(data), metrics=names)
    if not kind.generates:
        if template or names != (AUTO,):
            raise UsageError(f"metric and template have no effect: a {kind.name} generates no text")
        protocol, tasks = choose_tasks(kind, None, None, Path(data))
        settings = EvalSettings(tasks, None, protocol, limit=limit, data=Path(data))
    used = [*references, data, base, *(target.base for target in opened), *map(metric_file, names)]
    directory = OutputDirectory(Path(output), overwrite, used) if output else None
    if directory:
        directory.check(0, resumable=True)
    return evaluate_into(directory, opened, settings, progress)
