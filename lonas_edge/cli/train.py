"""`lonas-edge train`: a super-adapter, or a plain LoRA adapter as its baseline."""

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lonas_edge.cli.importing import importing
from lonas_edge.cli.options import (
    USER_PATH,
    USER_PATH_OR_NAME,
    JsonOption,
    RevisionOption,
    choice,
    given,
    refuse_revision,
    seed_option,
    user_path,
)
from lonas_edge.cli.progress import progress
from lonas_edge.cli.terminal import console
from lonas_edge.data.glue import TASKS
from lonas_edge.data.templates import CHAT, TEMPLATES
from lonas_edge.errors import one_line
from lonas_edge.formats import FORMATS
from lonas_edge.network.solved import SOLVE_PROMPTS
from lonas_edge.progress import Progress
from lonas_edge.space.subnetwork import is_name
from lonas_edge.training.options import DEVICES, PRECISIONS, SolveOptions, TrainOptions

if TYPE_CHECKING:
    from lonas_edge.network.training_record import TrainingRecord

_DEFAULT = TrainOptions()
_LARGEST = 1e6  # far beyond what learns anything, and a float32
_OF_ELASTIC_TRAINING = ("front", "reorder")
_OF_THE_SUPER_ADAPTER = ("rank", "alpha", "target_modules", "elastic", *_OF_ELASTIC_TRAINING)

_Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        click_type=USER_PATH_OR_NAME,
        help="Base model, a directory or hub id; needed without --from. Default: the one that the adapter names.",
    ),
]
_From = Annotated[
    str | None,
    typer.Option(
        "--from",
        click_type=USER_PATH_OR_NAME,
        metavar="SUPER_ADAPTER",
        help="Train one sub-network of this super-adapter further, its widths fixed; a plain LoRA adapter as a whole. "
        "Default: a new adapter is trained.",
    ),
]
_Subnet = Annotated[
    str | None,
    typer.Option(
        "--subnet",
        click_type=USER_PATH_OR_NAME,
        help="Which one: heuristic, maximal, minimal, random:SEED or a sub-network JSON file. Default: heuristic.",
    ),
]
_Data = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="FILE[:WEIGHT]",
        help="What is learned, a JSON list, one object a line, or Parquet: {instruction, input, output}, or {messages}, of "
        "which the assistant's are learned, or {text}; of a classifier GLUE's TSV. May be repeated. WEIGHT: how often an epoch "
        "has each example; with 0.3 it has another 30 % of them each time. Default: 1.",
    ),
]
_Task = Annotated[
    str | None,
    typer.Option("--task", help=f"Task of GLUE that a TSV file is of: {', '.join(TASKS)}. Default: its folder's name."),
]
_Output = Annotated[
    Path, typer.Option("--output", click_type=USER_PATH, help="Super-adapter directory; it appears when the training is done.")
]
_NncfConfig = Annotated[
    Path | None,
    typer.Option(
        "--nncf-config",
        click_type=USER_PATH,
        help="Search space; `lonas-edge space` writes one. Needed unless --no-elastic. Default: that of --from, or none.",
    ),
]
_Rank = Annotated[int, typer.Option(min=1, help="Rank of the LoRA adapters.")]
_Alpha = Annotated[float, typer.Option(max=_LARGEST, help="Their alpha; the scale is alpha / rank, for every elastic rank.")]
_Dropout = Annotated[
    float,
    typer.Option(
        min=0, max=0.99, help="Dropout in front of the adapters (reference: 0.1). On a CPU it costs a fifth of a step."
    ),
]
_TargetModules = Annotated[str | None, typer.Option(help="Linear layers that get an adapter.", show_default="the family's")]
_Steps = Annotated[
    int | None, typer.Option(min=1, help="Optimizer steps in all; the stages are scaled to it. Default: from --epochs.")
]
_Epochs = Annotated[
    float | None, typer.Option(help="Passes over the data in all. Default: the sum of the search space's stages.")
]
_BatchSize = Annotated[int, typer.Option(min=1, help="Examples an optimizer step, over all devices.")]
_MicroBatchSize = Annotated[
    int | None, typer.Option(min=1, help="Examples a device computes at once; gradients accumulate. Default: all.")
]
_Lr = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=_LARGEST,
        help="Initial learning rate of each stage. Default: its init_lr, else 1e-3; classifiers and above 1e9 weights 3e-4.",
    ),
]
_WarmupSteps = Annotated[
    int | None, typer.Option(min=0, help="Linear warm-up. Default: 100, or 5 % of the steps when that is less.")
]
_WeightDecay = Annotated[float, typer.Option(min=0, max=_LARGEST, help="AdamW's, on the active part.")]
_Subnetworks = Annotated[
    list[str] | None,
    typer.Option(
        "--subnetworks",
        click_type=USER_PATH_OR_NAME,
        metavar="DIR|FILE|NAME",
        help="Draw from these sub-networks alone: a search's directory of them, files, or names as of --subnet; maximal trains "
        "plain LoRA that can be cut afterwards. May be repeated. Default: from the whole search space.",
    ),
]
_Teacher = Annotated[
    str | None,
    typer.Option(
        "--teacher",
        click_type=USER_PATH_OR_NAME,
        metavar="MODEL",
        help="A finished model to learn from, frozen: a LoRA adapter (of a super-adapter, its maximal network), what `export "
        "--stage checkpoint` wrote, or a Hugging Face model; of the same vocabulary. Default: none.",
    ),
]
_Solve = Annotated[
    Path | None,
    typer.Option(
        "--solve",
        click_type=USER_PATH,
        metavar="DATA",
        help="With --from: first solve what the sub-network cuts on this data, as `export --solve` does, and train on that. "
        "Default: nothing is solved.",
    ),
]
_SolvePrompts = Annotated[int, typer.Option("--solve-prompts", min=1, help="With --solve: number of prompts.")]
_Reorder = Annotated[bool, typer.Option("--reorder/--no-reorder", help="Put channels in order of importance before training.")]
_Elastic = Annotated[bool, typer.Option("--elastic/--no-elastic", help="--no-elastic: plain LoRA.")]
_Prompt = Annotated[
    str | None,
    typer.Option(
        click_type=choice((*TEMPLATES, CHAT)),
        help="alpaca: clean template, only the answer is learned, longer examples are left out. lonas: the "
        "reference's, with its odd spaces; the prompt is learned, long examples are cut. question: Question: …, Answer: … "
        "chat: the model's own chat template. Default: chat where --data holds messages, else with --from the super-adapter's, "
        "else alpaca.",
    ),
]
_MaxLength = Annotated[
    int | None,
    typer.Option(min=2, help="Tokens of the longest example. Default: 1024; classifiers cut at 128."),
]
_Seed = Annotated[int, seed_option("Two runs with one seed give the same adapter.")]
_Device = Annotated[str, typer.Option(click_type=choice(DEVICES), help="auto takes CUDA where there is one.")]
_Precision = Annotated[
    str,
    typer.Option(click_type=choice(PRECISIONS), help="auto takes bf16 where it is faster."),
]
_WeightFormat = Annotated[
    str | None,
    typer.Option(
        click_type=choice(name for name, one in FORMATS.items() if one.mode),
        help="Quantization-aware: train the network as `export --weight-format` will store it, so that it learns to live with "
        "that. A step takes half as long again. Default: none; weights are taken as they are.",
    ),
]
_GradientCheckpointing = Annotated[bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")]
_SaveSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Steps between two checkpoints. Default: 200, or a tenth of all when that is less."),
]
_LogSteps = Annotated[int, typer.Option(min=1, help="Steps between two records of the loss.")]
_ReportTo = Annotated[str, typer.Option(help="Logging integration: none, tensorboard, wandb, …")]
_Resume = Annotated[bool, typer.Option("--resume", help="Go on where a killed or stopped training was.")]
_Overwrite = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an existing output; without --resume, an unfinished training of it, too."),
]


def command(  # the options are read from the context, by the names they have in `TrainOptions`
    ctx: typer.Context,
    data: _Data,
    output: _Output,
    model: _Model = None,
    start: _From = None,
    subnet: _Subnet = None,
    task: _Task = None,
    nncf_config: _NncfConfig = None,
    rank: _Rank = _DEFAULT.rank,
    alpha: _Alpha = _DEFAULT.alpha,
    dropout: _Dropout = _DEFAULT.dropout,
    target_modules: _TargetModules = None,
    steps: _Steps = None,
    epochs: _Epochs = None,
    batch_size: _BatchSize = _DEFAULT.batch_size,
    micro_batch_size: _MicroBatchSize = None,
    lr: _Lr = None,
    warmup_steps: _WarmupSteps = None,
    weight_decay: _WeightDecay = _DEFAULT.weight_decay,
    front: _Subnetworks = None,
    teacher: _Teacher = None,
    solve: _Solve = None,
    solve_prompts: _SolvePrompts = SOLVE_PROMPTS,
    reorder: _Reorder = _DEFAULT.reorder,
    elastic: _Elastic = True,
    prompt: _Prompt = _DEFAULT.prompt,
    max_length: _MaxLength = _DEFAULT.max_length,
    seed: _Seed = _DEFAULT.seed,
    device: _Device = _DEFAULT.device,
    precision: _Precision = _DEFAULT.precision,
    weight_format: _WeightFormat = None,
    gradient_checkpointing: _GradientCheckpointing = _DEFAULT.gradient_checkpointing,
    save_steps: _SaveSteps = None,
    log_steps: _LogSteps = _DEFAULT.log_steps,
    report_to: _ReportTo = _DEFAULT.report_to,
    revision: RevisionOption = None,
    resume: _Resume = False,
    overwrite: _Overwrite = False,
    as_json: JsonOption = False,
) -> None:
    """Train a super-adapter: elastic LoRA, a sub-network of the search space activated in every step.

    Or, with --from, one sub-network of a super-adapter further: what it has of the adapters, and nothing else; or LoRA.
    A causal language model learns instruction data, a classifier (BERT) a task of GLUE, with a head that the adapter carries.

    OUTPUT then is a SOURCE for inspect and export. Its checkpoints lie in OUTPUT.partial until it is done. On several GPUs:
    torchrun --nproc-per-node N -m lonas_edge train …
    """
    _refuse_what_does_nothing(ctx)
    files_of_data = [_portion(one) for one in data]
    with progress(shown=int(os.environ.get("RANK", "0")) == 0) as report:
        with importing():
            from transformers.utils.logging import disable_progress_bar

            from lonas_edge.output import OutputDirectory
            from lonas_edge.training.inputs import open_inputs, open_recovery, read_subnetworks, with_teacher
            from lonas_edge.training.train import train
        disable_progress_bar()
        chosen = [one for one in (subnet, *(front or ())) if one and not is_name(one)]
        used = (model, *(path for path, _ in files_of_data), nncf_config, start, teacher, solve, *chosen)
        OutputDirectory(output, overwrite, used).check(0, resumable=True)  # before a base is downloaded
        if start:
            inputs = open_recovery(start, files_of_data, subnet, model, nncf_config, revision, task)
            inputs = replace(inputs, solve=SolveOptions(str(solve), solve_prompts)) if solve else inputs
        else:
            inputs = open_inputs(str(model), files_of_data, nncf_config, revision, elastic, task)
        inputs = with_teacher(inputs, teacher) if teacher else inputs
        _refuse_idle_prompt(ctx, inputs.data.glue)
        refuse_revision(revision, inputs.base)
        record = train(
            inputs,
            output,
            replace(_options(ctx.params), subnetworks=read_subnetworks(inputs, front or ())),
            resume,
            overwrite,
            _told(report),
            lambda line: report(f"{line}\nLoading", None),
        )
    if record:
        _print(record, output, as_json)


def _refuse_what_does_nothing(ctx: typer.Context) -> None:
    if ctx.params["alpha"] <= 0:
        raise typer.BadParameter(f"--alpha {ctx.params['alpha']:g}: must be more than 0")
    if ctx.params["solve"] and not ctx.params["start"]:
        raise typer.BadParameter("--solve goes with --from SUPER_ADAPTER: it is of one sub-network")
    if given(ctx, "solve_prompts") and not ctx.params["solve"]:
        raise typer.BadParameter("--solve-prompts goes with --solve")
    if given(ctx, "steps") and given(ctx, "epochs"):
        raise typer.BadParameter("--steps and --epochs: each says how long to train; give one")
    if ctx.params["start"]:
        if idle := [name for name in _OF_THE_SUPER_ADAPTER if given(ctx, name)]:
            told = "of a super-adapter's training, and --from names one that is trained. Leave it out"
            raise typer.BadParameter(f"{_flags(idle)}: {told}")
        return
    if not ctx.params["model"]:
        raise typer.BadParameter("--model M is needed, or --from SUPER_ADAPTER")
    if given(ctx, "subnet"):
        raise typer.BadParameter("--subnet goes with --from SUPER_ADAPTER; without it, all sub-networks are trained")
    elastic, idle = ctx.params["elastic"], [name for name in _OF_ELASTIC_TRAINING if given(ctx, name)]
    if elastic and not ctx.params["nncf_config"]:
        raise typer.BadParameter(
            "--nncf-config FILE is needed (`lonas-edge space --model M --output FILE` writes one), or --no-elastic"
        )
    if not elastic and idle:
        raise typer.BadParameter(f"{_flags(idle)}: plain LoRA (--no-elastic) has no sub-networks; leave it out")


def _portion(text: str) -> tuple[Path, float]:
    """A file of data and its weight; a file that is called so, colon and all, is that file."""
    whole, (name, colon, number) = Path(user_path(text)), text.rpartition(":")
    if not colon or not name or whole.exists():
        return whole, 1.0
    try:
        weight = float(number)
    except ValueError:
        return whole, 1.0  # the colon is the name's
    if not 0 < weight < math.inf:
        raise typer.BadParameter(f"--data {one_line(text)}: a weight must be more than 0")
    return Path(user_path(name)), weight


def _flags(names: Iterable[str]) -> str:
    known = {"front": "subnetworks"}
    return ", ".join(f"--{known.get(name, name).replace('_', '-')}" for name in names)


def _refuse_idle_prompt(ctx: typer.Context, task: str | None) -> None:
    if task and given(ctx, "prompt"):
        raise typer.BadParameter(f"--prompt: {task} is classified without a prompt; omit it")


def _options(parameters: Mapping[str, Any]) -> TrainOptions:
    options = {field.name: parameters[field.name] for field in fields(TrainOptions) if field.name in parameters}
    if options["target_modules"] is not None:
        options["target_modules"] = tuple(name.strip() for name in options["target_modules"].split(",") if name.strip())
    return TrainOptions(**options)


def _told(report: Progress) -> Callable[[int, int, Mapping[str, float]], None]:
    """Tells the bar of a step; what is logged of one stays on the terminal, and in the bar until the next."""
    last = ""

    def tell(step: int, steps: int, log: Mapping[str, float]) -> None:
        nonlocal last
        if "loss" in log:
            last = f"  loss {float(log['loss']):.3f}  lr {float(log['learning_rate']):.1e}"
        now = f"step {step}/{steps}{last}"
        report(f"{now}\n{now}" if "loss" in log else now, step / steps)

    return tell


def _print(record: "TrainingRecord", output: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps(record.to_json(), indent=2))
        return
    shown = console(soft_wrap=True)
    options, losses = record.options, record.losses
    special = record.specialized
    elastic = f"{special.subnetwork} sub-network" if special else "super-adapter"
    kind = elastic if record.search_space else "LoRA adapter"
    run = record.steps - (record.resumed_from_step or 0)
    pace = f"{record.seconds:.0f} s" + (f", {record.seconds / run:.2f} s a step" if run else "")
    shown.print(
        f"{output}: {kind}, rank {options['rank']}, {record.steps} steps of {options['batch_size']} examples on "
        f"{record.device} ({record.precision}), {pace}"
    )
    if losses:
        shown.print(f"loss {losses[0].loss:.3f} at step {losses[0].step}, {losses[-1].loss:.3f} at the end")
    if special and special.solved:
        shown.print(special.solved.told, markup=False)
    if record.search_space or special:
        stored = f" --weight-format {options['weight_format']}" if options["weight_format"] else ""
        shown.print(f"next: lonas-edge export {output}{'' if special else ' --subnet heuristic'}{stored} --output DIR")
