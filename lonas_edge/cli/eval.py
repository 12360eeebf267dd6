"""`lonas-edge eval`: answers of one or several models on the commonsense and math tasks."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lonas_edge.cli.importing import importing
from lonas_edge.cli.options import (
    USER_PATH,
    USER_PATH_OR_NAME,
    JsonOption,
    OverwriteOption,
    RevisionOption,
    SpaceOption,
    choice,
    files,
    given,
    names,
    parse_properties,
    require_extra,
    seed_option,
)
from lonas_edge.cli.progress import progress
from lonas_edge.cli.tables import print_table
from lonas_edge.cli.terminal import console
from lonas_edge.data.glue import TASKS as GLUE
from lonas_edge.data.tasks import resolve, there
from lonas_edge.data.templates import CHAT, PROMPTS
from lonas_edge.evaluate.protocols import DEFAULT, PROTOCOLS, TASKS, Protocol
from lonas_edge.formats import DTYPES

if TYPE_CHECKING:
    from lonas_edge.evaluate.record import Report
    from lonas_edge.evaluate.targets import Target

_NO_IR, _NO_TORCH = "no TARGET is an IR", "no TARGET runs in PyTorch"
_NO_SOURCE = "no TARGET is an adapter or a base"
_HEEDED = {  # options that only some targets heed, and what is said where none does
    "device": _NO_IR,
    "properties": _NO_IR,
    "torch_device": _NO_TORCH,
    "torch_dtype": _NO_TORCH,
    "model": _NO_SOURCE,
    "nncf_config": _NO_SOURCE,
    "revision": "no TARGET's base is the hub's",
    "subnet": "there is no search space: no TARGET is a super-adapter",
}


_Targets = Annotated[
    list[str] | None,
    typer.Argument(
        click_type=USER_PATH_OR_NAME,
        help="Exported directories (run by OpenVINO), super-adapters or PEFT adapters (in PyTorch, --subnet activated), "
        "base models. The others are compared with the first.",
        show_default=False,
    ),
]
_Tasks = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        help=f"Separated by commas: {', '.join(TASKS)}; commonsense, math or all; any other task of "
        f"lm-evaluation-harness by its name (harness:boolq for its own boolq); of classifiers {', '.join(GLUE)}. Default: "
        "those that --datasets has.",
    ),
]
_Datasets = Annotated[
    Path | None,
    typer.Option(
        "--datasets",
        click_type=USER_PATH,
        help="Directory with TASK/test.json, in the format of the LLM-Adapters collection; of classifiers with GLUE's "
        "TASK/dev.tsv.",
    ),
]
_Protocol = Annotated[
    str,
    typer.Option(
        "--protocol",
        click_type=choice(PROTOCOLS),
        help=" ".join(f"{known.name}: {known.about}." for known in PROTOCOLS.values()),
    ),
]
_Prompt = Annotated[
    str | None,
    typer.Option(
        "--prompt",
        click_type=choice((*PROMPTS, CHAT)),
        help=f"Template of the prompt: {'; '.join(known.described for known in PROMPTS.values())}; "
        "chat (the model's own chat template). Default: that of the training, else alpaca; lonas for the published LoNAS "
        "adapters. option-text has its own.",
    ),
]
_NumBeams = Annotated[
    int | None,
    typer.Option(
        "--num-beams",
        min=1,
        help=f"Beams of a protocol that generates; 1 is greedy. Default: {PROTOCOLS[DEFAULT].num_beams}.",
    ),
]
_Limit = Annotated[int | None, typer.Option("--limit", min=1, help="Samples of each task, a seeded choice. Default: all.")]
_Seed = Annotated[int, seed_option("Seed of --limit.")]
_Subnet = Annotated[
    str | None,
    typer.Option(
        "--subnet",
        help="Sub-networks of super-adapters, several separated by commas: heuristic, maximal, minimal, random:SEED, a "
        "file. Default: heuristic; maximal for plain LoRA.",
    ),
]
_Model = Annotated[
    str | None,
    typer.Option("--model", click_type=USER_PATH_OR_NAME, help="Base model of adapters; alone, it is evaluated itself."),
]
_Adapter = Annotated[
    str | None, typer.Option("--adapter", click_type=USER_PATH_OR_NAME, help="An adapter to evaluate on --model.")
]
_Device = Annotated[str, typer.Option("--device", help="OpenVINO device of exported directories.")]
_TorchDevice = Annotated[
    str, typer.Option("--torch-device", click_type=choice(("cpu", "cuda")), help="Device of what runs in PyTorch.")
]
_TorchDtype = Annotated[str, typer.Option("--torch-dtype", click_type=choice(DTYPES), help="Dtype of what runs in PyTorch.")]
_Properties = Annotated[
    list[str] | None,
    typer.Option("--property", help="NAME=VALUE, an OpenVINO run-time property, over tuned ones; may be repeated."),
]
_BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size", min=1, help="Prompts of a batch, what a kill may cost. Default: 64, 16 above 1 GB of weights."
    ),
]
_Fresh = Annotated[bool, typer.Option("--fresh", help="Ask again what an earlier run with the same settings has answered.")]
_Card = Annotated[
    bool,
    typer.Option("--card", help="Write the result into the model cards of the directories that `lonas-edge export` wrote."),
]
_Output = Annotated[
    Path | None,
    typer.Option("--output", click_type=USER_PATH, help="Directory for eval.json, eval.csv, eval.md and the sample logs."),
]


def command(
    ctx: typer.Context,
    targets: _Targets = None,
    tasks: _Tasks = None,
    datasets: _Datasets = None,
    protocol: _Protocol = DEFAULT,
    prompt: _Prompt = None,
    num_beams: _NumBeams = None,
    limit: _Limit = None,
    seed: _Seed = 0,
    subnet: _Subnet = None,
    model: _Model = None,
    adapter: _Adapter = None,
    nncf_config: SpaceOption = None,
    revision: RevisionOption = None,
    device: _Device = "CPU",
    torch_device: _TorchDevice = "cpu",
    torch_dtype: _TorchDtype = "fp32",
    properties: _Properties = None,
    batch_size: _BatchSize = None,
    fresh: _Fresh = False,
    card: _Card = False,
    output: _Output = None,
    overwrite: OverwriteOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the answers of models: accuracy with standard errors, and paired differences from the first TARGET.

    Language models are asked commonsense and math tasks, classifiers (BERT) GLUE's development sets.

    TARGETS are exported directories (run by OpenVINO), super-adapters or PEFT adapters (in PyTorch, the sub-networks of
    --subnet activated), checkpoints of `export --stage checkpoint`, or base models.

    Finished answers are kept; the same command, killed and started again, goes on where it was.
    """
    references = [*(targets or []), *([adapter] if adapter else [])] or ([model] if model else [])
    if not references:
        raise typer.BadParameter("a TARGET is needed, or --model BASE")
    if card and limit is not None:
        raise typer.BadParameter("--card is for whole test sets; leave out --limit")
    asked, named = PROTOCOLS[protocol], None if tasks is None else names("--tasks", tasks)
    _refuse_idle(ctx, {**_idle(asked), **_alone(limit, output)})
    chosen: list[str | None] = [*names("--subnet", subnet)] if subnet else [None]
    given_properties = parse_properties(properties or [])
    require_extra("eval", "lm_eval", "openvino_genai", "scipy", "sklearn")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars; read when tqdm is first imported
    with progress() as report:
        with importing():
            from lonas_edge.errors import LonasEdgeError
            from lonas_edge.evaluate.classification import ClassifyOptions, classify, tasks_there
            from lonas_edge.evaluate.report import for_card, write
            from lonas_edge.evaluate.run import EvalOptions, evaluate, resumable
            from lonas_edge.evaluate.targets import RunOptions, open_targets, task_of_targets
            from lonas_edge.exporting.evaluations import Evaluations
            from lonas_edge.exporting.exported import changed, store_evaluation
            from lonas_edge.families import CLASSIFICATION
            from lonas_edge.ir.runtime import check_device
            from lonas_edge.output import OutputDirectory
        used = (*references, model, nncf_config, datasets, *files(chosen))
        directory = OutputDirectory(output, overwrite, used) if output else None
        if directory:
            directory.check(100_000_000)
        classifies = task_of_targets(references, model, revision) == CLASSIFICATION
        if classifies:
            _refuse_idle(ctx, dict.fromkeys(("protocol", "prompt", "num_beams"), "a classifier is asked texts as they are"))
            wanted = tasks_there(named, datasets)
        else:
            wanted = tuple(there(asked.tasks, datasets) if named is None else resolve(asked.tasks, named))
        run = RunOptions(device, given_properties, torch_device, torch_dtype, batch_size)
        report("Opening", None)
        check_device(device)
        opened = open_targets(references, chosen, run, model, nncf_config, revision)
        _refuse_idle(ctx, _unheeded(opened))
        if card and not any(target.folder for target in opened):
            raise LonasEdgeError("--card: no TARGET is a directory that `lonas-edge export` wrote")
        for target in opened if card else ():
            if target.folder:
                Evaluations.of(target.folder)
                with changed(target.folder):  # so that what cannot be written to is refused before the long part
                    pass
        if directory:  # an adapter may name its base
            directory = replace(directory, inputs=(*used, *(target.base for target in opened)))
            directory.check(100_000_000)
        with resumable():
            if classifies and datasets:
                found, samples = classify(opened, ClassifyOptions(wanted, datasets, limit, seed, not fresh), report)
            else:
                options = EvalOptions(wanted, datasets, asked, prompt, num_beams, limit, seed, resume=not fresh)
                found, samples = evaluate(opened, options, report)
        if directory:
            with directory.open() as folder:
                write(found, samples, folder)
    print(json.dumps(found.to_json(), indent=1)) if as_json else _print(found, output)
    for target, told in zip(opened, found.targets, strict=True) if card else ():
        if target.folder:
            store_evaluation(target.folder, found.protocol, for_card(found, told))


def _refuse_idle(ctx: typer.Context, idle: dict[str, str]) -> None:
    """An option that was given and would do nothing is wrong usage; `idle` says why, by parameter."""
    flags = {parameter.name: parameter.opts[0] for parameter in ctx.command.params}
    wrong = [f"{flags[name]} does nothing: {reason}" for name, reason in idle.items() if given(ctx, name)]
    if wrong:
        raise typer.BadParameter("; ".join(wrong))


def _idle(protocol: Protocol) -> dict[str, str]:
    """What a protocol does not look at."""
    idle = {} if protocol.generates else {"num_beams": f"{protocol.name} ranks, it generates nothing"}
    return idle | ({"prompt": f"{protocol.name} has its own"} if protocol.prompt else {})


def _alone(limit: int | None, output: Path | None) -> dict[str, str]:
    """What needs another option."""
    return ({"seed": "there is no --limit"} if limit is None else {}) | (
        {} if output else {"overwrite": "there is no --output"}
    )


def _unheeded(targets: "list[Target]") -> dict[str, str]:
    """What no target looks at."""
    heeded = frozenset[str]().union(*(target.heeds for target in targets))
    return {name: reason for name, reason in _HEEDED.items() if name not in heeded}


def _print(found: "Report", output: Path | None) -> None:
    from lonas_edge.evaluate import report

    shown = console()
    shown.print(f"Protocol: {report.describe(found)}")
    print_table(shown, "", report.headings(found), report.card_rows(found), turn=True)
    if found.differences:
        print_table(shown, report.difference_title(found), report.DIFFERENCE_HEADINGS, report.difference_rows(found))
    shown.print(report.explained(found))
    for target in found.targets:
        if target.asked:
            rate = target.asked / target.seconds
            told = f"{target.name}: {target.asked:,} prompts in {target.seconds:.0f} s, {rate:.1f} a second"
            shown.print(told)
    for line in report.left_out(found):
        shown.print(line, style="yellow")
    if output:
        shown.print(f"{output}: eval.json, eval.csv, eval.md and samples")
