"""`lonas-edge eval`: accuracy of one or several models on tasks."""

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
from pydantic.dataclasses import dataclass

from lonas_edge.cli.command import command
from lonas_edge.cli.groups import SUBNET_UNSET, JsonOptions, ModelOptions
from lonas_edge.cli.terminal import console, importing, progress
from lonas_edge.data.templates import CHAT, PROMPTS
from lonas_edge.data.test_sets import TASKS, present_tasks, resolve
from lonas_edge.evaluate.options import RunOptions
from lonas_edge.evaluate.protocols import GENERATE, PROMPT_PROTOCOLS, choose_protocol
from lonas_edge.options import COMMAS, Names, PathOrName, UserPath, declared, option

if TYPE_CHECKING:
    from lonas_edge.evaluate.compare import EvalRecord
    from lonas_edge.evaluate.options import EvalSettings
    from lonas_edge.evaluate.targets import Target
    from lonas_edge.families import ModelKind

_ROOM = 100_000_000  # bytes for the report and the sample logs


@dataclass(frozen=True, kw_only=True)
class EvalCommand(RunOptions, ModelOptions, JsonOptions):
    """All options of the command."""

    targets: tuple[PathOrName, ...] = option(
        (),
        argument=True,
        metavar="[TARGET]...",
        help="Exported directories, super-adapters, PEFT adapters, checkpoints or base models, compared with the first one.",
    )
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
        choices=tuple(PROMPT_PROTOCOLS),
        help="Generate an answer (as the LoNAS paper does), or rank answer words or option texts.",
        unset="option-text; generate for models trained with the prompt lonas, and for math",
    )
    subnet: Annotated[tuple[PathOrName, ...], COMMAS] = option(
        (),
        help="Sub-networks of super-adapters: heuristic, maximal, minimal, random:SEED, JSON files.",
        unset=SUBNET_UNSET,
    )
    limit: int | None = option(None, minimum=1, help="Examples per task, a random choice.", unset="all")
    output: UserPath | None = option(
        None, metavar="DIR", help="Directory for report and sample logs; only with it, a killed evaluation continues."
    )
    prompt: str | None = option(
        None,
        panel="Data",
        choices=(*PROMPTS, CHAT),
        help="Prompt template. option-text has its own.",
        unset="that of the training; else lonas for published LoNAS adapters, alpaca for others",
    )
    num_beams: int | None = option(
        None,
        panel="Data",
        minimum=1,
        help="Beams of the protocol generate; 1 is greedy.",
        unset=str(GENERATE.num_beams),
    )
    overwrite: bool = option(False, panel="Output", help="Replace an existing output.")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.overwrite and not self.output:
            yield "--overwrite needs --output"


@command
def run(options: EvalCommand) -> None:
    """Measure the accuracy of models, with standard errors and paired differences from the first TARGET.

    Exported directories run in OpenVINO, everything else in PyTorch. Language models get commonsense and math tasks,
    classifiers GLUE, embedding models STS-B. With --output, the same command
    continues a killed evaluation.
    """
    references = options.targets or ((options.model,) if options.model else ())
    if not references:
        raise click.UsageError("pass a TARGET, or --model BASE")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars; read when tqdm is first imported
    with progress() as report:
        with importing():
            from lonas_edge.evaluate.run import evaluate_into
            from lonas_edge.evaluate.targets import kind_of_targets, open_targets
            from lonas_edge.ir.core import check_device
            from lonas_edge.output import OutputDirectory
        used = (*references, options.model, options.nncf_config, options.datasets, *filter(os.path.isfile, options.subnet))
        directory = OutputDirectory(options.output, options.overwrite, used) if options.output else None
        if directory:
            directory.check(_ROOM, resumable=True)
        report("Opening", None)
        check_device(options.openvino_device)
        opened = open_targets(
            references, options.subnet or (None,), options.part(RunOptions), options.model, options.nncf_config
        )
        kind = kind_of_targets(opened)
        if not kind.generates:
            idle = ("protocol", "prompt", "num_beams")
            _refuse_idle(options, dict.fromkeys(idle, f"a {kind.name} has no prompt template"))
        settings = _settings(options, opened, kind)
        if directory:  # an adapter may name its base
            directory = replace(directory, inputs=(*used, *(target.base for target in opened)))
            directory.check(_ROOM, resumable=True)
        result = evaluate_into(directory, opened, settings, report)
    print(json.dumps(result.to_json(), indent=1)) if options.json else _print(result, options.output)


def _settings(options: EvalCommand, targets: "Sequence[Target]", kind: "ModelKind") -> "EvalSettings":
    """Tasks and protocol."""
    from lonas_edge.evaluate.encoder_sets import choose_tasks
    from lonas_edge.evaluate.options import EvalSettings

    named = options.tasks or None
    if kind.generates:
        present = present_tasks(TASKS, options.datasets) if named is None else resolve(TASKS, named)
        protocol = choose_protocol(options.protocol, [target.prompt for target in targets], present)
        _refuse_idle(options, {} if protocol.generates else {"num_beams": f"{protocol.name} generates nothing"})
        _refuse_idle(options, {"prompt": f"{protocol.name} has its own"} if protocol.prompt else {})
        tasks = tuple(present_tasks(protocol.tasks, options.datasets) if named is None else resolve(protocol.tasks, named))
        return EvalSettings(tasks, options.datasets, protocol, options.prompt, options.num_beams, options.limit)
    encodes, tasks = choose_tasks(kind, named, options.datasets)
    return EvalSettings(tasks, options.datasets, encodes, limit=options.limit)


def _refuse_idle(options: EvalCommand, idle: dict[str, str]) -> None:
    """Refuse options without effect; `idle` says why, by name."""
    wrong = []
    for name, reason in idle.items():
        if options.given(name):
            wrong.append(f"{declared(EvalCommand)[name].shown} has no effect: {reason}")
    if wrong:
        raise click.UsageError("; ".join(wrong))


def _print(result: "EvalRecord", output: Path | None) -> None:
    from lonas_edge.evaluate import report

    shown = console()
    shown.print(f"Protocol: {report.describe(result)}")
    report.card_table(result).print(shown, turn=True)
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
