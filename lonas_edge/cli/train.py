"""`lonas-edge train`: a super-adapter, or a plain LoRA adapter as its baseline."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from lonas_edge.cli.options import JsonOption, RevisionOption
from lonas_edge.training.plan import TrainOptions

_DEFAULT = TrainOptions()


class DeviceChoice(StrEnum):
    """Where to train."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


class PrecisionChoice(StrEnum):
    """What to compute in."""

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class SamplingChoice(StrEnum):
    """Which sub-networks a step trains."""

    RANDOM = "random"
    SANDWICH = "sandwich"


class PromptChoice(StrEnum):
    """Prompt templates."""

    ALPACA = "alpaca"
    QUESTION = "question"
    LONAS = "lonas"


def command(
    model: Annotated[str, typer.Option("--model", help="Base model, a directory or hub id.")],
    data: Annotated[
        Path, typer.Option("--data", help="Instruction data: a JSON list of {instruction, input, output}, or one a line.")
    ],
    output: Annotated[Path, typer.Option("--output", help="Super-adapter directory; it appears when the training is done.")],
    nncf_config: Annotated[
        Path | None,
        typer.Option("--nncf-config", help="Search space; `lonas-edge space` writes one. Needed unless --no-elastic."),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Rank of the LoRA adapters.")] = _DEFAULT.rank,
    alpha: Annotated[
        float, typer.Option(help="Their alpha; the scale is alpha / rank, for every elastic rank.")
    ] = _DEFAULT.alpha,
    dropout: Annotated[
        float,
        typer.Option(
            min=0, max=0.99, help="Dropout in front of the adapters (reference: 0.1). On a CPU it costs a fifth of a step."
        ),
    ] = _DEFAULT.dropout,
    target_modules: Annotated[str, typer.Option(help="Linear layers that get an adapter.")] = ",".join(_DEFAULT.target_modules),
    steps: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps in all; the stages are scaled to it. Default: from --epochs.")
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="Passes over the data in all. Default: the sum of the search space's stages.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples an optimizer step, over all devices.")] = _DEFAULT.batch_size,
    micro_batch_size: Annotated[
        int | None, typer.Option(min=1, help="Examples a device computes at once; gradients accumulate. Default: all.")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(min=0, help="Initial learning rate of each stage. Default: the stage's own, or 3e-4.")
    ] = None,
    warmup_steps: Annotated[
        int | None, typer.Option(min=0, help="Linear warm-up. Default: 100, or 5 % of the steps when that is less.")
    ] = None,
    weight_decay: Annotated[float, typer.Option(min=0, help="AdamW's, on the active part.")] = _DEFAULT.weight_decay,
    width_indicator: Annotated[
        int | None, typer.Option(min=1, help="Values of each group that may be drawn, widest first. Default: the stage's own.")
    ] = None,
    sample_rate: Annotated[
        int | None, typer.Option(min=1, help="Optimizer steps between two draws. Default: the stage's own.")
    ] = None,
    sampling: Annotated[
        SamplingChoice,
        typer.Option(
            help="random: one drawn sub-network a step. sandwich: the widest, the narrowest and a drawn one; 2.5 x as long."
        ),
    ] = SamplingChoice.RANDOM,
    distill: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the loss that is distillation from the maximal network; 0 is off.")
    ] = _DEFAULT.distill,
    reorder: Annotated[
        bool, typer.Option("--reorder/--no-reorder", help="Put channels in order of importance before training.")
    ] = _DEFAULT.reorder,
    elastic: Annotated[bool, typer.Option("--elastic/--no-elastic", help="--no-elastic: plain LoRA.")] = True,
    prompt: Annotated[
        PromptChoice,
        typer.Option(
            help="alpaca: clean template, only the answer is learned, longer examples are left out. lonas: the "
            "reference's, with its odd spaces; the prompt is learned, long examples are cut. question: Question: …, Answer: …"
        ),
    ] = PromptChoice.ALPACA,
    train_on_prompt: Annotated[
        bool | None,
        typer.Option(
            "--train-on-prompt/--no-train-on-prompt", help="Learn the prompt's tokens too. Default: the template's rule."
        ),
    ] = None,
    max_length: Annotated[int, typer.Option(min=2, help="Tokens of the longest example.")] = _DEFAULT.max_length,
    group_by_length: Annotated[
        bool,
        typer.Option("--group-by-length/--no-group-by-length", help="Batch examples of similar length: less padding."),
    ] = _DEFAULT.group_by_length,
    seed: Annotated[int, typer.Option(help="Two runs with one seed give the same adapter.")] = _DEFAULT.seed,
    device: Annotated[DeviceChoice, typer.Option(help="auto takes CUDA where there is one.")] = DeviceChoice.AUTO,
    precision: Annotated[
        PrecisionChoice, typer.Option(help="auto: fp32 on a CPU; on CUDA bf16, or fp16 where the card has no bf16.")
    ] = PrecisionChoice.AUTO,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = _DEFAULT.gradient_checkpointing,
    save_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Steps between two checkpoints. Default: 200, or a tenth of all when that is less."),
    ] = None,
    log_steps: Annotated[int, typer.Option(min=1, help="Steps between two records of the loss.")] = _DEFAULT.log_steps,
    report_to: Annotated[str, typer.Option(help="Logging integration: none, tensorboard, wandb, …")] = _DEFAULT.report_to,
    revision: RevisionOption = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where a killed or stopped training was.")] = False,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace an existing output; without --resume, an unfinished training of it, too."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train a super-adapter: elastic LoRA, a sub-network of the search space activated in every step.

    OUTPUT then is a SOURCE for inspect and export. Its checkpoints lie in OUTPUT.training until it is done. On several GPUs:
    torchrun --nproc-per-node N -m lonas_edge train …
    """
    if elastic and nncf_config is None:
        raise typer.BadParameter(
            "--nncf-config FILE is needed (`lonas-edge space --model M --output FILE` writes one), or --no-elastic"
        )
    options = TrainOptions(
        rank=rank,
        alpha=alpha,
        dropout=dropout,
        target_modules=tuple(name.strip() for name in target_modules.split(",") if name.strip()),
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        lr=lr,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        width_indicator=width_indicator,
        sample_rate=sample_rate,
        sampling=sampling.value,
        distill=distill,
        reorder=reorder,
        prompt=prompt.value,
        train_on_prompt=train_on_prompt,
        max_length=max_length,
        group_by_length=group_by_length,
        seed=seed,
        device=device.value,
        precision=precision.value,
        gradient_checkpointing=gradient_checkpointing,
        save_steps=save_steps,
        log_steps=log_steps,
        report_to=report_to,
    )
    with _progress() as report:
        record = _train(model, revision, nncf_config, elastic, data, output, options, resume, overwrite, report)
    if int(os.environ.get("RANK", "0")):
        return
    if as_json:
        print(json.dumps(record, indent=2))
    else:
        _print(record, output)


def _train(
    model: str,
    revision: str | None,
    nncf_config: Path | None,
    elastic: bool,
    data: Path,
    output: Path,
    options: TrainOptions,
    resume: bool,
    overwrite: bool,
    report: Callable[[int, int, Mapping[str, float]], None],
) -> dict[str, Any]:
    from lonas_edge.data.instructions import read_examples

    examples = read_examples(data)
    from lonas_edge.network.source import locate, read_model_config
    from lonas_edge.output import OutputDirectory
    from lonas_edge.space.architecture import Architecture, bind
    from lonas_edge.space.search_space import SearchSpace, read_search_space

    OutputDirectory(output, overwrite).check(0)
    space = read_search_space(nncf_config) if nncf_config else SearchSpace()
    space = space if elastic else replace(space, groups=())  # its stages stay, so that the baseline is trained as long
    base = locate(model, revision, weights=True)
    elasticity = bind(Architecture.from_config(read_model_config(base), str(base.folder)), space, str(nncf_config))
    from transformers.utils.logging import disable_progress_bar

    from lonas_edge.training.train import Inputs, train

    disable_progress_bar()
    return train(Inputs(base, elasticity, nncf_config, data, examples), output, options, resume, overwrite, report)


@contextmanager
def _progress() -> Iterator[Callable[[int, int, Mapping[str, float]], None]]:
    """A bar on standard error: steps, rate, time left, the last loss and learning rate."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        SpinnerColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    main_process = int(os.environ.get("RANK", "0")) == 0
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not main_process) as bar:
        task = bar.add_task("Loading", total=None)

        def report(step: int, steps: int, log: Mapping[str, float]) -> None:
            shown = f"loss {float(log['loss']):.3f}  lr {float(log['learning_rate']):.1e}" if "loss" in log else None
            bar.update(task, completed=step, total=steps, description=shown)
            if shown:
                bar.console.print(f"step {step}/{steps}  {shown}", highlight=False)

        bar.update(task, description="Loading")
        yield report


def _print(record: dict[str, Any], output: Path) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True)
    options, data, losses = record["options"], record["data"], record["losses"]
    kind = "super-adapter" if record["search_space"] else "LoRA adapter"
    run = record["steps"] - (record["resumed_from_step"] or 0)
    pace = f"{record['seconds']:.0f} s" + (f", {record['seconds'] / run:.2f} s a step" if run else "")
    console.print(
        f"{output}: {kind}, rank {options['rank']}, {record['steps']} steps of {options['batch_size']} examples on "
        f"{record['device']} ({record['precision']}), {pace}",
        highlight=False,
    )
    if losses:
        console.print(
            f"loss {losses[0]['loss']:.3f} at step {losses[0]['step']}, {losses[-1]['loss']:.3f} at the end", highlight=False
        )
    if data["left_out"]:
        console.print(
            f"{data['left_out']} of {data['left_out'] + data['examples']} examples were left out: longer than "
            f"--max-length {options['max_length']}",
            highlight=False,
        )
    if record["search_space"]:
        console.print(f"next: lonas-edge export {output} --subnet heuristic --output DIR", highlight=False)
