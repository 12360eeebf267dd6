"""An evaluation from its targets to its record."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from lonas_edge.evaluate.answers import FILE, AnswerLog, LoggedTarget
from lonas_edge.evaluate.compare import Difference, TaskAnswers, compare
from lonas_edge.evaluate.encoder_sets import EncoderEvaluation
from lonas_edge.evaluate.generated import AnswerEvaluation
from lonas_edge.evaluate.language import LanguageEvaluation
from lonas_edge.evaluate.options import EvalSettings
from lonas_edge.evaluate.protocols import ANSWERS, CLASSIFY, EMBED
from lonas_edge.evaluate.report import EvalRecord, SampleLogs, write
from lonas_edge.evaluate.results import Conditions, TargetResult, averaged
from lonas_edge.evaluate.targets import PACKAGES, Target
from lonas_edge.ir.core import openvino_core
from lonas_edge.output import OutputDirectory
from lonas_edge.progress import Progress, silent
from lonas_edge.versions import versions

EVALUATIONS: Mapping[str, type[EncoderEvaluation | AnswerEvaluation]] = {
    CLASSIFY.name: EncoderEvaluation,
    EMBED.name: EncoderEvaluation,
    ANSWERS.name: AnswerEvaluation,
}


def evaluate_into(
    directory: OutputDirectory | None, targets: Sequence[Target], settings: EvalSettings, progress: Progress = silent
) -> EvalRecord:
    """Evaluate, and write `eval.json`, `eval.md` and the sample logs; a killed evaluation continues.

    Without a directory nothing is written, and nothing can be continued.
    """
    if directory is None:
        return evaluate(targets, settings, progress)[0]
    identity = {**settings.identity, "targets": {target.name: target.identity for target in targets}}
    with directory.resume("eval", identity, restart=directory.overwrite):
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
    evaluation = EVALUATIONS.get(settings.protocol.name, LanguageEvaluation)(settings, targets, progress)
    saved, results, answers = AnswerLog(log), list[TargetResult](), dict[str, list[TaskAnswers]]()
    for target in targets:
        logged = LoggedTarget(target, saved)
        answers[target.name] = evaluation.run(logged, progress)
        results.append(_result(logged, evaluation.prompt_of(target), answers[target.name]))
        target.close()
    comparable = {name: [task.answers for task in tasks if task.answers] for name, tasks in answers.items()}
    first, *others = comparable
    average, differences = results[0].average is not None, list[Difference]()
    for name in others:
        differences += compare(name, comparable[name], first, comparable[first], average)
    processor = openvino_core().get_property("CPU", "FULL_DEVICE_NAME").strip()
    record = EvalRecord(
        protocol=settings.protocol.name,
        limit=settings.limit,
        seed=settings.seed,
        targets=tuple(results),
        differences=tuple(differences),
        conditions=Conditions(processor, versions(PACKAGES), time.strftime("%Y-%m-%d")),
    )
    return record, {name: {task.result.task: task.samples for task in tasks} for name, tasks in answers.items()}


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
        metrics={task.task: task.interval for task in results},
        answered=logged.answered,
        seconds=logged.seconds,
        identity=target.identity,
    )
