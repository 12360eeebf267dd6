"""An evaluation from its targets to its record."""

import time
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from lonas_edge.evaluate.answer_log import FILE, AnswerLog, LoggedTarget
from lonas_edge.evaluate.classification import Classification
from lonas_edge.evaluate.compare import Difference, TaskAnswers, compare
from lonas_edge.evaluate.embedding import Embedding
from lonas_edge.evaluate.language import Language
from lonas_edge.evaluate.protocols import RERANK
from lonas_edge.evaluate.record import EvalRecord
from lonas_edge.evaluate.report import SampleLogs, write
from lonas_edge.evaluate.reranking import Reranking
from lonas_edge.evaluate.settings import EvalSettings
from lonas_edge.evaluate.targets import Target
from lonas_edge.exporting.evaluations import Conditions, TargetResult, averaged
from lonas_edge.ir.core import openvino_core
from lonas_edge.output import OutputDirectory
from lonas_edge.progress import Progress, silent
from lonas_edge.versions import versions

PACKAGES = ("lonas-edge", "lm-eval", "openvino", "openvino-genai", "torch", "transformers", "peft")


def evaluate_into(
    directory: OutputDirectory | None, targets: Sequence[Target], settings: EvalSettings, progress: Progress = silent
) -> EvalRecord:
    """Evaluate, and write `eval.json`, `eval.csv`, `eval.md` and the sample logs; a killed evaluation continues.

    Without a directory nothing is written, and nothing can be continued.
    """
    if directory is None:
        return evaluate(targets, settings, progress)[0]
    with directory.resume("eval", _identity(targets, settings)):
        record, samples = evaluate(targets, settings, progress, directory.partial / FILE)
        with directory.publish() as folder:
            write(record, samples, folder)
    return record


def evaluate(
    targets: Sequence[Target], settings: EvalSettings, progress: Progress = silent, log: Path | None = None
) -> tuple[EvalRecord, SampleLogs]:
    """Evaluate every target on every task, and compare the others with the first.

    Finished answers are saved in the file `log`, or only in memory. Returns the record, and the sample logs by target and task.
    """
    evaluation = _evaluation(targets[0], settings, progress)
    evaluation.check(targets)
    saved = AnswerLog(log)
    results: list[TargetResult] = []
    answers: list[list[TaskAnswers]] = []
    for target in targets:
        logged = LoggedTarget(target, saved)
        answers.append(evaluation.run(logged, progress))
        results.append(_result(logged, evaluation.prompt_of(target), answers[-1]))
        target.close()
    names = [target.name for target in targets]
    record = EvalRecord(
        protocol=settings.protocol.name,
        num_beams=settings.beams,
        limit=settings.limit,
        seed=settings.seed,
        targets=tuple(results),
        differences=_differences(names, answers),
        conditions=conditions(),
    )
    return record, {
        name: {task.result.task: task.samples for task in tasks} for name, tasks in zip(names, answers, strict=True)
    }


def _evaluation(
    target: Target, settings: EvalSettings, progress: Progress
) -> Language | Classification | Embedding | Reranking:
    if target.pooling:
        return Embedding(settings)
    if settings.protocol is RERANK:
        return Reranking(settings)
    return Classification(settings) if target.outputs else Language(settings, progress)


def _differences(names: Sequence[str], answers: Sequence[Sequence[TaskAnswers]]) -> tuple[Difference, ...]:
    """Compare each target with the first."""
    first, *others = [[task.answers for task in tasks if task.answers] for tasks in answers]
    compared = (compare(name, other, names[0], first) for name, other in zip(names[1:], others, strict=True))
    return tuple(chain.from_iterable(compared))


def _result(logged: LoggedTarget, prompt: str, tasks: Sequence[TaskAnswers]) -> TargetResult:
    target, results = logged.target, tuple(task.result for task in tasks)
    average, error = averaged(results)
    return TargetResult(
        name=target.name,
        kind=target.kind,
        precision=target.precision,
        prompt=prompt,
        sizes=target.sizes,
        average=average,
        average_stderr=error,
        tasks=results,
        answered=logged.answered,
        seconds=logged.seconds,
        identity=dict(target.identity),
    )


def _identity(targets: Sequence[Target], settings: EvalSettings) -> dict[str, Any]:
    """What an evaluation must share with the one that it continues."""
    return {**settings.identity, "targets": {target.name: dict(target.identity) for target in targets}}


def conditions() -> Conditions:
    """Machine, versions, date."""
    processor = openvino_core().get_property("CPU", "FULL_DEVICE_NAME").strip()
    return Conditions(processor, versions(PACKAGES), time.strftime("%Y-%m-%d"))
