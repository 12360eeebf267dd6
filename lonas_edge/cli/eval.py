"""`lonas-edge eval`: accuracy of one or several models on tasks."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import SUBNET_UNSET, ModelOptions, ReportOptions, command
from lonas_edge.cli.terminal import console, progress
from lonas_edge.data.templates import CHAT, PROMPTS
from lonas_edge.data.test_sets import TASKS, present_tasks, resolve
from lonas_edge.errors import UsageError
from lonas_edge.evaluate.answer_metrics import check_metric, metric_file
from lonas_edge.evaluate.options import METRIC_HELP, METRIC_UNSET, RunOptions
from lonas_edge.evaluate.protocols import ANSWERS, PROMPT_PROTOCOLS, choose_protocol
from lonas_edge.options import COMMAS, Names, PathOrName, UserPath, option

if TYPE_CHECKING:
    from lonas_edge.evaluate.options import EvalSettings
    from lonas_edge.evaluate.report import EvalRecord
    from lonas_edge.evaluate.targets import Target

_ROOM = 100_000_000  # bytes for the report and the sample logs


@dataclass(frozen=True, kw_only=True)
class EvalCommand(RunOptions, ModelOptions, ReportOptions):
    """All options of the command."""

    targets: tuple[PathOrName, ...] = option(
        (),
        argument=True,
        metavar="[TARGET]...",
        help="Exported directories, super-adapters, PEFT adapters, checkpoints or base models, compared with the first one.",
    )
    data: UserPath | None = option(
        None,
        exists=True,
        metavar="DATA",
        help="Conversations or instructions, whose last answers are the references; texts with labels.",
    )
    metric: tuple[str, ...] = option((), metavar="NAME|FILE.py:FUNCTION", repeat=True, help=METRIC_HELP, unset=METRIC_UNSET)
    tasks: Names = option(
        (),
        help="Tasks, commonsense, math, all, or tasks of lm-evaluation-harness (harness:boolq for its own boolq).",
        unset="those that --datasets has",
    )
    datasets: UserPath | None = option(
        None,
        metavar="DIR",
        help="Directory with TASK/test.json (LLM-Adapters) or TASK/dev.tsv (GLUE).",
    )
    protocol: str | None = option(
        None,
        panel="Data",
        choices=tuple(PROMPT_PROTOCOLS),
        help="Generate an answer (as the LoNAS paper does), or rank answer words or option texts.",
        unset="option-text; generate for models trained with the prompt lonas, and for math",
    )
    subnet: Annotated[tuple[PathOrName, ...], COMMAS] = option(
        (),
        panel="Model",
        help="Sub-networks of super-adapters: heuristic, maximal, minimal, random:SEED, JSON files.",
        unset=SUBNET_UNSET,
    )
    limit: int | None = option(None, minimum=1, help="Examples of each task or of the data, a random choice.", unset="all")
    template: str | None = option(
        None,
        panel="Data",
        choices=(*PROMPTS, CHAT),
        help="Prompt template. option-text has its own.",
        unset="that of the training; else lonas for published LoNAS adapters, alpaca for others",
    )

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not (self.targets or self.model):
            yield "pass a TARGET, or --model BASE"
        if self.metric and not self.data:
            yield "--metric needs --data"
        for name in self.metric:
            try:
                check_metric(name)
            except UsageError as error:
                yield str(error)


@command
def run(options: EvalCommand) -> None:
    """Measure the accuracy of models, with standard errors and paired differences from the first TARGET.

    With --data, language models answer its prompts, and metrics compare the answers with its references; classifiers and
    embedding models are compared with its labels. Otherwise they get commonsense and math tasks, or GLUE. Exported directories
    run in OpenVINO, everything else in PyTorch. With --output, the same command continues a killed evaluation.
    """
    references = options.targets or (str(options.model),)
    with progress() as report:
        from lonas_edge.evaluate.run import evaluate_into
        from lonas_edge.evaluate.targets import open_targets
        from lonas_edge.ir.core import check_device

        used: list[Path | str | None] = [*references, options.model, options.nncf_config, options.data, options.datasets]
        used += [options.draft, *map(metric_file, options.metric)]
        used += [path for path in options.subnet if Path(path).is_file()]
        options.check_output(used, _ROOM, resumable=True)  # before a base is downloaded
        report("Opening", None)
        check_device(options.openvino_device)
        subnets = options.subnet or (None,)
        opened = open_targets(references, subnets, options.part(RunOptions), options.model, options.nncf_config)
        settings = _settings(options, opened)
        bases = [target.base for target in opened]  # an adapter may name its base
        directory = options.check_output((*used, *bases), _ROOM, resumable=True)
        result = evaluate_into(directory, opened, settings, report)
    print(json.dumps(result.to_json(), indent=1)) if options.json else _print(result, options.output)


def _settings(options: EvalCommand, targets: "Sequence[Target]") -> "EvalSettings":
    """Choose tasks and protocol by the kind of the models, and refuse options that these ignore."""
    from lonas_edge.evaluate.encoder_sets import choose_tasks
    from lonas_edge.evaluate.options import EvalSettings
    from lonas_edge.evaluate.targets import kind_of_targets

    kind, names, datasets = kind_of_targets(targets), options.tasks or None, options.datasets
    if not kind.generates:
        options.refuse_idle(("protocol", "template"), f"a {kind.name} has no prompt template")
        if options.data:
            options.refuse_idle(("tasks", "datasets", "metric"), "--data has its own")
        encodes, tasks = choose_tasks(kind, names, datasets, options.data)
        return EvalSettings(tasks, datasets, encodes, limit=options.limit, data=options.data)
    if options.data:
        options.refuse_idle(("tasks", "datasets", "protocol"), "--data has its own")
        metrics = options.metric or ("auto",)
        return EvalSettings((), None, ANSWERS, options.template, limit=options.limit, data=options.data, metrics=metrics)
    known = present_tasks(TASKS, datasets) if names is None else resolve(TASKS, names)
    protocol = choose_protocol(options.protocol, [target.prompt for target in targets], known)
    if protocol.prompt:
        options.refuse_idle(("template",), f"{protocol.name} has its own")
    tasks = tuple(present_tasks(protocol.tasks, datasets) if names is None else resolve(protocol.tasks, names))
    return EvalSettings(tasks, datasets, protocol, options.template, options.limit)


def _print(result: "EvalRecord", output: Path | None) -> None:
    from lonas_edge.evaluate import report

    shown = console()
    shown.print(f"Protocol: {report.describe(result)}")
    report.card_table(result).print(shown, turn=True)
    if classes := report.class_table(result):
        classes.print(shown)
    if result.differences:
        report.difference_table(result).print(shown)
    shown.print(report.explained(result))
    for target in result.targets:
        if target.answered:
            rate = target.answered / target.seconds
            shown.print(f"{target.name}: {target.answered:,} prompts in {target.seconds:.0f} s, {rate:.1f} per second")
    for line in report.skipped(result):
        shown.print(line, style="yellow")
    if output:
        shown.print(f"{output}: eval.json, eval.md and samples")
