"""`lonas-edge eval`: answers of one or several models on the commonsense tasks."""

import importlib.util
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lonas_edge.cli.options import JsonOption, RevisionOption, SpaceOption, choice, parse_properties
from lonas_edge.cli.tables import print_table
from lonas_edge.formats import DTYPES

if TYPE_CHECKING:
    from lonas_edge.evaluate.report import Report


class ProtocolChoice(StrEnum):
    """How an answer is found."""

    GENERATE = "generate"
    ANSWER_WORD = "answer-word"
    OPTION_TEXT = "option-text"


class PromptChoice(StrEnum):
    """Prompt templates."""

    ALPACA = "alpaca"
    QUESTION = "question"
    LONAS = "lonas"
    LONAS_TRAIN = "lonas-train"


def command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="Exported directories (run by OpenVINO), super-adapters or PEFT adapters (in PyTorch, --subnet activated), "
            "base models. The others are compared with the first.",
            show_default=False,
        ),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="Separated by commas: boolq, piqa, social_i_qa, hellaswag, winogrande, ARC-Easy, ARC-Challenge, openbookqa, "
            "or all of them; any other task of lm-evaluation-harness by its name (harness:boolq for its own boolq). Default: "
            "those of the eight that --datasets has.",
        ),
    ] = None,
    datasets: Annotated[
        Path | None,
        typer.Option("--datasets", help="Directory with TASK/test.json, in the format of the LLM-Adapters collection."),
    ] = None,
    protocol: Annotated[
        ProtocolChoice,
        typer.Option(
            "--protocol",
            help="generate: the reference's, generates and takes the first answer word. answer-word: ranks 'the correct answer "
            "is WORD'. option-text: ranks the options' texts, the sensitive one for small models.",
        ),
    ] = ProtocolChoice.GENERATE,
    prompt: Annotated[
        PromptChoice | None,
        typer.Option(
            "--prompt",
            help="Template of the prompt: alpaca (clean), question, lonas (the reference's evaluation prompt, byte for byte), "
            "lonas-train (its training prompt). Default: the one the super-adapter was trained with (lonas in its evaluation "
            "form); lonas for other adapters with a search space, alpaca for the rest. option-text has its own.",
        ),
    ] = None,
    num_beams: Annotated[int, typer.Option("--num-beams", min=1, help="Beams of the protocol generate; 1 is greedy.")] = 4,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="Samples of each task, a seeded choice. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of --limit.")] = 0,
    subnet: Annotated[
        str | None,
        typer.Option(
            "--subnet",
            help="Sub-networks of super-adapters, several separated by commas: heuristic, maximal, minimal, random:SEED, a "
            "file. Default: heuristic; maximal for plain LoRA.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", help="Base model of adapters; alone, it is evaluated itself.")] = None,
    adapter: Annotated[str | None, typer.Option("--adapter", help="An adapter to evaluate on --model.")] = None,
    nncf_config: SpaceOption = None,
    revision: RevisionOption = None,
    device: Annotated[str, typer.Option("--device", help="OpenVINO device of exported directories.")] = "CPU",
    torch_device: Annotated[
        str, typer.Option("--torch-device", click_type=choice(("cpu", "cuda")), help="Device of what runs in PyTorch.")
    ] = "cpu",
    torch_dtype: Annotated[
        str, typer.Option("--torch-dtype", click_type=choice(DTYPES), help="Dtype of what runs in PyTorch.")
    ] = "fp32",
    properties: Annotated[
        list[str] | None,
        typer.Option("--property", help="NAME=VALUE, an OpenVINO run-time property, over tuned ones; may be repeated."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size", min=1, help="Prompts of a batch, what a kill may cost. Default: 64, 16 above 1 GB of weights."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Ask again what an earlier run with the same settings has answered.")
    ] = False,
    card: Annotated[
        bool,
        typer.Option("--card", help="Write the result into the model cards of the directories that `lonas-edge export` wrote."),
    ] = False,
    output: Annotated[
        Path | None, typer.Option("--output", help="Directory for eval.json, eval.csv, eval.md and the sample logs.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Measure the answers of models: accuracy with standard errors, and paired differences from the first TARGET.

    TARGETS are exported directories (run by OpenVINO), super-adapters or PEFT adapters (in PyTorch, the sub-networks of
    --subnet activated), checkpoints of `export --stage checkpoint`, or base models.

    Finished answers are kept; the same command, killed and started again, goes on where it was.
    """
    references = [*(targets or []), *([adapter] if adapter else [])] or ([model] if model else [])
    if not references:
        raise typer.BadParameter("a TARGET is needed, or --model BASE")
    if card and limit is not None:
        raise typer.BadParameter("--card is for whole test sets; leave out --limit")
    if importlib.util.find_spec("lm_eval") is None:
        raise typer.BadParameter("lm-eval is not installed; pip install 'lonas-edge[eval]'")
    os.environ.setdefault("TQDM_DISABLE", "1")  # the harness's bars; read when tqdm is first imported
    with _progress() as report:
        report("Loading", None)
        from lonas_edge.data.commonsense import TASKS, resolve, there

        names = resolve([name.strip() for name in tasks.split(",") if name.strip()]) if tasks else there(datasets)
        if not names:
            raise typer.BadParameter(f"--tasks: name one of {', '.join(TASKS)}")
        from lonas_edge.errors import LonasEdgeError
        from lonas_edge.evaluate.run import EvalOptions, evaluate, resumable
        from lonas_edge.evaluate.targets import RunOptions, open_targets
        from lonas_edge.ir.runtime import check_device
        from lonas_edge.output import OutputDirectory

        directory = OutputDirectory(output, overwrite) if output else None
        if directory:
            directory.check(100_000_000)
        options = EvalOptions(
            tasks=tuple(names),
            datasets=datasets,
            protocol=protocol.value,
            prompt=prompt.value if prompt else None,
            num_beams=num_beams,
            limit=limit,
            seed=seed,
            resume=not fresh,
        )
        run = RunOptions(device, parse_properties(properties or []), torch_device, torch_dtype, batch_size)
        chosen = [name.strip() for name in subnet.split(",")] if subnet else [None]
        report("Opening", None)
        check_device(device)
        opened = open_targets(references, chosen, run, model, nncf_config, revision)
        if card and not any(target.folder for target in opened):
            raise LonasEdgeError("--card: no TARGET is a directory that `lonas-edge export` wrote")
        with resumable():
            found = evaluate(opened, options, report)
        if directory:
            from lonas_edge.evaluate.report import write

            with directory.open() as folder:
                write(found, folder)
    print(json.dumps(found.to_json(), indent=1)) if as_json else _print(found, output)
    if card:
        from lonas_edge.evaluate.report import for_card
        from lonas_edge.exporting.exported import store_evaluation

        for target, told in zip(opened, found.targets, strict=True):
            if target.folder:
                store_evaluation(target.folder, for_card(found, told))


@contextmanager
def _progress() -> Iterator[Callable[[str, float | None], None]]:
    """A bar on standard error: target and task, the share done, and the time left."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        SpinnerColumn,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=2) as bar:
        task = bar.add_task("", total=None)

        def report(what: str, done: float | None) -> None:
            bar.update(task, description=what, total=None if done is None else 1, completed=done or 0)

        yield report


def _print(found: "Report", output: Path | None) -> None:
    from rich.console import Console

    from lonas_edge.evaluate import report

    console = Console()
    console.print(f"Protocol: {report.describe_protocol(found)}", markup=False, highlight=False)
    print_table(console, "", report.headings(found), report.card_rows(found), turn=True)
    if found.differences:
        print_table(console, report.difference_title(found), report.DIFFERENCE_HEADINGS, report.difference_rows(found))
    console.print(report.EXPLAINED, highlight=False)
    for target in found.targets:
        if target.asked:
            rate = target.asked / target.seconds
            told = f"{target.name}: {target.asked:,} prompts in {target.seconds:.0f} s, {rate:.1f} a second"
            console.print(told, markup=False, highlight=False)
    for line in report.left_out(found):
        console.print(line, style="yellow", markup=False, highlight=False)
    if output:
        console.print(f"{output}: eval.json, eval.csv, eval.md and samples", markup=False, highlight=False)
